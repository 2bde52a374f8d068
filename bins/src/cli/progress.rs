//! Shows a person what takes long: one line on standard error, only on a terminal. The line disappears
//! when the work is done, and the result is printed as usual.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use openlambda_core::time::{Clock, SystemClock};

/// Work that is done before this needs no line.
const LONG: Duration = Duration::from_millis(400);
/// How often the line moves.
const TURN: Duration = Duration::from_millis(120);

/// A line that is shown until this is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    drawing: Option<(Sender<String>, JoinHandle<()>)>,
}

impl Progress {
    /// Begins with what is being done.
    pub(super) fn start(text: impl Into<String>) -> Self {
        // A dumb terminal cannot take a line back.
        let dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
        if dumb || !std::io::stderr().is_terminal() {
            return Progress { drawing: None };
        }
        let (sender, texts) = channel::<String>();
        let mut text = text.into();
        let thread = std::thread::spawn(move || {
            let clock = SystemClock::new();
            let (mut due, mut drawn) = (clock.now() + LONG, false);
            for sign in ['|', '/', '-', '\\'].into_iter().cycle() {
                // However often there is news, the line moves when it is due.
                while clock.now() < due {
                    match texts.recv_timeout(due.since(clock.now())) {
                        Ok(next) => text = next,
                        Err(RecvTimeoutError::Timeout) => {}
                        Err(RecvTimeoutError::Disconnected) => {
                            if drawn {
                                draw("");
                            }
                            return;
                        }
                    }
                }
                (due, drawn) = (clock.now() + TURN, true);
                draw(&format!("{sign} {text}"));
            }
        });
        Progress { drawing: Some((sender, thread)) }
    }

    /// Shows something else from now on.
    pub(super) fn set(&self, text: impl FnOnce() -> String) {
        if let Some((sender, _)) = &self.drawing {
            let _ = sender.send(text());
        }
    }
}

impl Drop for Progress {
    /// Takes the line back before anything else is printed.
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.drawing.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}

/// [`Progress`] of something that is counted: how fast it goes, and when it will be over.
#[derive(Debug)]
pub(super) struct Pace {
    progress: Progress,
    clock: SystemClock,
    what: &'static str,
}

impl Pace {
    /// `what`: what is counted, as `turns`.
    pub(super) fn start(text: &str, what: &'static str) -> Self {
        Pace { progress: Progress::start(text), clock: SystemClock::new(), what }
    }

    /// Shows something else, for what is not counted.
    pub(super) fn set(&self, text: impl FnOnce() -> String) {
        self.progress.set(text);
    }

    /// So many of all are done.
    pub(super) fn at(&self, done: u64, all: u64) {
        self.progress.set(|| paced(done, all, self.clock.now().as_secs_f64(), self.what));
    }
}

/// `3.2 of 13.0 million calls, 1.60 million a second, 6 s left`
fn paced(done: u64, all: u64, seconds: f64, what: &str) -> String {
    if done == 0 {
        return format!("0 of {all} {what}");
    }
    let (done, all) = (done as f64, all as f64);
    let rate = done / seconds.max(1e-3);
    let left = (all - done).max(0.0) / rate.max(1e-9);
    if all >= 1e6 {
        let (done, all, rate) = (done / 1e6, all / 1e6, rate / 1e6);
        return format!(
            "{done:.1} of {all:.1} million {what}, {rate:.2} million a second, {left:.0} s left"
        );
    }
    format!("{done:.0} of {all:.0} {what}, {rate:.1} a second, {left:.0} s left")
}

/// Replaces the line. Without colours, so `NO_COLOR` changes nothing.
fn draw(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "\r{text}\x1b[K").and_then(|()| err.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_has_a_rate_and_the_time_that_is_left() {
        for ((done, all), text) in [
            ((3_200_000, 13_000_000), "3.2 of 13.0 million calls, 1.60 million a second, 6 s left"),
            ((10, 40), "10 of 40 calls, 5.0 a second, 6 s left"),
            ((40, 40), "40 of 40 calls, 20.0 a second, 0 s left"),
            ((0, 40), "0 of 40 calls"),
        ] {
            assert_eq!(paced(done, all, 2.0, "calls"), text);
        }
    }
}
