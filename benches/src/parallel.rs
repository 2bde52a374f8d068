//! Experiments side by side on all processors: [`in_parallel`].

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use parking_lot::Mutex;

/// Runs `job` for 0, 1, … below `count` on up to `threads` threads (`None`: one for each processor), and
/// returns the results in that order: the number of threads changes how long it takes, and nothing else. A
/// panic in a job is passed on.
pub fn in_parallel<T: Send>(
    count: usize,
    threads: Option<NonZero<usize>>,
    job: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let threads = threads.or_else(|| available_parallelism().ok()).map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<T>>> = (0..count).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = results.get(number) else { break };
                    let result = job(number);
                    *place.lock() = Some(result);
                }
            });
        }
    });
    results.into_iter().map(|place| place.into_inner().expect("every job was run")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_whatever_the_threads() {
        for threads in [1, 2, 7] {
            let results = in_parallel(100, NonZero::new(threads), |n| n * n);
            assert!(results.iter().enumerate().all(|(n, square)| *square == n * n));
        }
        assert!(in_parallel(0, None, |n| n).is_empty());
    }
}
