//! The thread that writes the access log: [`Writer`].
//!
//! It takes the lines that have come since its last write, writes them together, and rests for a moment.
//! Lines that could not be written are counted, and a line that broke off in the middle is ended before
//! the next.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

/// Lines between the calls and the writing thread.
pub(super) const BACKLOG: usize = 16_384;

/// How long lines are collected before they are written: waking a thread for each costs more than
/// the line.
pub(super) const COLLECT: Duration = Duration::from_millis(50);

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Entry {
    Line(Vec<u8>),
    /// Tell when everything before this is written.
    Flush(Sender<()>),
}

/// The thread that writes.
pub(super) struct Writer {
    place: Box<dyn Write + Send>,
    /// The last write failed, perhaps in the middle of a line.
    torn: bool,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Counts in `dropped` the lines that it could not write.
    pub(super) fn new(place: impl Write + Send + 'static, dropped: Arc<AtomicU64>) -> Self {
        Writer { place: Box::new(place), torn: false, dropped }
    }

    /// Writes until every sender is gone.
    pub(super) fn run(mut self, entries: &Receiver<Entry>) {
        let mut batch = Vec::new();
        while let Ok(entry) = entries.recv() {
            let mut lines = 0;
            let mut flushed = Vec::new();
            let mut take = |entry| match entry {
                Entry::Line(line) => {
                    batch.extend_from_slice(&line);
                    lines += 1;
                }
                Entry::Flush(sender) => flushed.push(sender),
            };
            take(entry);
            entries.try_iter().take(BACKLOG).for_each(take);
            if lines > 0
                && let Err(error) = self.write(&batch)
            {
                if !self.torn {
                    tracing::warn!(%error, "cannot write the access log; lines are dropped");
                }
                self.torn = true;
                self.dropped.fetch_add(lines, Ordering::Relaxed);
            }
            batch.clear();
            let hurried = !flushed.is_empty();
            // Nobody may wait for it any more.
            for sender in flushed {
                let _ = sender.send(());
            }
            if !hurried {
                std::thread::sleep(COLLECT);
            }
        }
    }

    fn write(&mut self, batch: &[u8]) -> io::Result<()> {
        if self.torn {
            self.place.write_all(b"\n")?;
        }
        self.place.write_all(batch)?;
        self.place.flush()?;
        if self.torn {
            self.torn = false;
            tracing::info!("the access log can be written again");
        }
        Ok(())
    }
}
