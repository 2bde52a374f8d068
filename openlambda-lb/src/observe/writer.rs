//! The thread that writes the access log: [`Writer`].
//!
//! It takes the lines that have come since its last write, writes them together, and rests for a moment.
//! A full file is renamed to `FILE.1`, which replaces an older one. Lines that could not be written are
//! counted, and a line that broke off in the middle is ended before the next.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
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

/// Where it writes.
pub(super) enum Place {
    File(Appended),
    Stream(Box<dyn Write + Send>),
}

/// A file that grows at its end.
pub(super) struct Appended {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Appended {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Appended { path: path.to_owned(), file, bytes })
    }
}

/// The thread that writes.
pub(super) struct Writer {
    place: Place,
    /// A file's bound, bytes.
    bound: u64,
    /// The last write failed, perhaps in the middle of a line.
    torn: bool,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    /// Counts in `dropped` the lines that it could not write.
    pub(super) fn new(place: Place, bound: u64, dropped: Arc<AtomicU64>) -> Self {
        Writer { place, bound, torn: false, dropped }
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
        let whole = if self.torn { &b"\n"[..] } else { b"" };
        match &mut self.place {
            Place::Stream(stream) => {
                stream.write_all(whole)?;
                stream.write_all(batch)?;
                stream.flush()?;
            }
            Place::File(appended) => {
                // Somebody may have moved it away: write to where readers look.
                let gone = !appended.path.exists();
                if gone || appended.bytes + batch.len() as u64 > self.bound {
                    if !gone && appended.bytes > 0 {
                        let mut older = appended.path.clone().into_os_string();
                        older.push(".1");
                        std::fs::rename(&appended.path, older)?;
                    }
                    *appended = Appended::open(&appended.path)?;
                }
                appended.file.write_all(whole)?;
                appended.file.write_all(batch)?;
                appended.bytes += batch.len() as u64;
            }
        }
        if self.torn {
            self.torn = false;
            tracing::info!("the access log can be written again");
        }
        Ok(())
    }
}
