//! How busy the machine's processors are, for a limit of running calls that follows the load.

use std::num::NonZero;
use std::sync::Arc;

use super::dispatch::Dispatcher;
use crate::scheduler::LoadLimit;
use crate::worker_core::Input;

/// How often the kernel is asked for each report: threads that run or want to come and go in
/// milliseconds, so the mean of several looks is told.
const LOOKS: u32 = 5;

/// Tells the core of the load again and again, until it is dropped. Where it cannot be read, once, and
/// the limit stays where it begins.
pub(super) async fn report(dispatcher: Arc<Dispatcher>) {
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get) as f64;
    loop {
        let mut sum = 0.0;
        for _ in 0..LOOKS {
            tokio::time::sleep(LoadLimit::EVERY / LOOKS).await;
            match runnable() {
                Some(threads) => sum += f64::from(threads),
                None => {
                    tracing::warn!(
                        "/proc/loadavg cannot be read: the limit of running calls does not follow the load"
                    );
                    return;
                }
            }
        }
        let per_processor = sum / f64::from(LOOKS) / processors;
        dispatcher.handle(Input::Load { per_processor });
    }
}

/// Threads of the machine that run or want to, this one not counted: the fourth field of `loadavg`.
fn runnable() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let (running, _) = text.split_ascii_whitespace().nth(3)?.split_once('/')?;
    Some(running.parse::<u32>().ok()?.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_tells_how_many_threads_want_to_run() {
        assert!(super::runnable().is_some_and(|threads| threads < 100_000));
    }
}
