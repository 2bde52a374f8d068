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

/// Replaces the line. Without colours, so `NO_COLOR` changes nothing.
fn draw(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "\r{text}\x1b[K").and_then(|()| err.flush());
}
