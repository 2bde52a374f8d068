//! Functions' output and invocation records, as JSON lines in files.
//!
//! A thread of its own writes, so a slow disk never holds up the runtime; when more comes than it
//! can write, lines are dropped and counted. A function's log is `logs/<namespace>/<name>.jsonl` in
//! the worker's folder; when it has reached its bound it becomes `….1`, replacing an older one, so
//! a function that prints without end cannot fill the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

use serde::Serialize;
use tokio::sync::oneshot;

use crate::function::FunctionName;
use crate::invocation::InvocationRecord;
use crate::sandbox::{LogLine, LogSink, LogStream};
use crate::time::{Clock, SystemClock};

/// A log file's bound, bytes.
const MOST_BYTES: u64 = 16 << 20;
/// Open log files at once; above that the one written last alphabetically is closed and reopened.
const MOST_FILES: usize = 64;
/// Lines between the runtime and the writing thread.
const BACKLOG: usize = 8192;

/// Hands lines and records to the writing thread.
#[derive(Debug)]
pub(super) struct LogWriter {
    entries: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
    /// Of all that were dropped, those that were told of in the log too.
    dropped_in_all: AtomicU64,
    clock: Arc<SystemClock>,
    records: bool,
}

#[derive(Debug)]
enum Entry {
    Line {
        function: FunctionName,
        line: Vec<u8>,
    },
    Record(Box<InvocationRecord>),
    /// Tell when everything before this is written.
    Flush(oneshot::Sender<()>),
}

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    stream: LogStream,
    text: &'a str,
}

impl LogWriter {
    pub(super) fn start(
        state_dir: &Path,
        records: Option<&Path>,
        clock: Arc<SystemClock>,
    ) -> io::Result<Arc<Self>> {
        let root = state_dir.join("logs");
        std::fs::create_dir_all(&root)?;
        let open = |path| File::options().create(true).append(true).open(path);
        let records = records.map(open).transpose()?;
        let (entries, receiver) = sync_channel(BACKLOG);
        let dropped = Arc::new(AtomicU64::new(0));
        let log = LogWriter {
            entries,
            dropped: dropped.clone(),
            dropped_in_all: AtomicU64::new(0),
            clock,
            records: records.is_some(),
        };
        let mut files = Files { root, open: BTreeMap::new(), records: records.map(BufWriter::new) };
        std::thread::Builder::new()
            .name("function-log".to_owned())
            .spawn(move || files.write_all(&receiver, &dropped))?;
        Ok(Arc::new(log))
    }

    /// Writes a record, if records are kept.
    pub(super) fn record(&self, record: impl FnOnce() -> InvocationRecord) {
        if self.records {
            self.send(Entry::Record(Box::new(record())));
        }
    }

    /// Resolves when everything so far is in the files.
    pub(super) async fn flush(&self) {
        let (sender, written) = oneshot::channel();
        let entries = self.entries.clone();
        // It waits for a place when the backlog is full.
        let sent = tokio::task::spawn_blocking(move || entries.send(Entry::Flush(sender))).await;
        if matches!(sent, Ok(Ok(()))) {
            let _ = written.await;
        }
    }

    fn send(&self, entry: Entry) {
        if let Err(TrySendError::Full(_)) = self.entries.try_send(entry) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.dropped_in_all.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines and records that were never written, since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped_in_all.load(Ordering::Relaxed)
    }
}

impl LogSink for LogWriter {
    fn line(&self, line: LogLine<'_>) {
        let mut text = serde_json::to_vec(&Line {
            time_ms: self.clock.unix_millis(),
            request_id: line.request_id,
            stream: line.stream,
            text: line.text,
        })
        .unwrap_or_default();
        text.push(b'\n');
        self.send(Entry::Line { function: line.function.clone(), line: text });
    }
}

struct Files {
    root: PathBuf,
    open: BTreeMap<FunctionName, LogFile>,
    records: Option<BufWriter<File>>,
}

struct LogFile {
    path: PathBuf,
    file: BufWriter<File>,
    bytes: u64,
}

impl Files {
    fn write_all(&mut self, entries: &Receiver<Entry>, dropped: &AtomicU64) {
        loop {
            let entry = match entries.try_recv() {
                Ok(entry) => entry,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    // Nothing more at once: now is the time for readers to see what there is.
                    self.flush();
                    let lost = dropped.swap(0, Ordering::Relaxed);
                    if lost > 0 {
                        tracing::warn!(lost, "functions printed more than could be written");
                    }
                    let Ok(entry) = entries.recv() else { break };
                    entry
                }
            };
            if let Err(error) = self.write(entry) {
                tracing::warn!(%error, "could not write a log line");
            }
        }
        self.flush();
    }

    fn write(&mut self, entry: Entry) -> io::Result<()> {
        let (function, line) = match entry {
            Entry::Line { function, line } => (function, line),
            Entry::Record(record) => {
                let Some(file) = &mut self.records else { return Ok(()) };
                serde_json::to_writer(&mut *file, &record)?;
                return file.write_all(b"\n");
            }
            Entry::Flush(written) => {
                self.flush();
                let _ = written.send(());
                return Ok(());
            }
        };
        if !self.open.contains_key(&function) {
            if self.open.len() >= MOST_FILES
                && let Some((_, mut closed)) = self.open.pop_last()
            {
                closed.file.flush()?;
            }
            let folder = self.root.join(function.namespace());
            std::fs::create_dir_all(&folder)?;
            let path = folder.join(format!("{}.jsonl", function.name()));
            self.open.insert(function.clone(), LogFile::open(path)?);
        }
        let Some(log) = self.open.get_mut(&function) else { return Ok(()) };
        // Somebody may have removed it, with its function: write to where readers look.
        if log.bytes + line.len() as u64 > MOST_BYTES || !log.path.exists() {
            log.file.flush()?;
            let _ = std::fs::rename(&log.path, log.path.with_extension("jsonl.1"));
            *log = LogFile::open(log.path.clone())?;
        }
        log.bytes += line.len() as u64;
        log.file.write_all(&line)
    }

    fn flush(&mut self) {
        let logs = self.open.values_mut().map(|log| &mut log.file);
        for file in logs.chain(&mut self.records) {
            if let Err(error) = file.flush() {
                tracing::warn!(%error, "could not write a log");
            }
        }
    }
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let file = File::options().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(LogFile { path, file: BufWriter::new(file), bytes })
    }
}
