//! Functions' output and invocation records, as JSON lines in files.
//!
//! A separate thread writes, so a slow disk never holds up the runtime. When more lines come than it can
//! write, they are dropped and counted: the waiting lines are bounded in number and in bytes, so a
//! function that prints without end cannot fill the memory. A function's log is
//! `logs/<namespace>/<name>.jsonl` in the worker's folder. A full log is renamed to `….1`, which replaces
//! an older one, so such a function cannot fill the disk either. Nor can many functions of a namespace whose
//! logs have a quota: the files that were written to longest ago go.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

use serde::Serialize;
use tokio::sync::oneshot;

use crate::allow::Allow;
use crate::failure::{Culprit, Failure};
use crate::function::FunctionName;
use crate::invocation::{InvocationRecord, RequestId};
use crate::json_lines;
use crate::sandbox::{LogLine, LogSink, LogStream};
use crate::serving::LogFile;
use crate::time::{Clock, SystemClock};

/// Open log files at once; above that the one written last alphabetically is closed and reopened.
const MOST_FILES: usize = 64;
/// What is written of one failure: an error may bring megabytes.
const MOST_LINES_OF_A_FAILURE: usize = 200;
const MOST_OF_A_LINE: usize = 4 << 10;
const MOST_OF_A_FAILURE: usize = 32 << 10;
/// Lines between the runtime and the writing thread.
const BACKLOG: usize = 8192;
/// Bytes of the lines among them. A line of raw bytes can be some hundred KiB of JSON.
const BACKLOG_BYTES: usize = 8 << 20;

/// Hands lines and records to the writing thread.
#[derive(Debug)]
pub(super) struct LogWriter {
    entries: SyncSender<Entry>,
    /// Bytes of lines that wait.
    waiting: Arc<AtomicUsize>,
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

impl Entry {
    /// What it adds to the backlog. A record is small, and their number is bounded.
    fn bytes(&self) -> usize {
        match self {
            Entry::Line { line, .. } => line.len(),
            Entry::Record(_) | Entry::Flush(_) => 0,
        }
    }
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
        bytes: u64,
        records: Option<File>,
        clock: Arc<SystemClock>,
        allow: Allow,
    ) -> io::Result<Arc<Self>> {
        let root = state_dir.join("logs");
        std::fs::create_dir_all(&root)?;
        let (entries, receiver) = sync_channel(BACKLOG);
        let waiting = Arc::new(AtomicUsize::new(0));
        let dropped = Arc::new(AtomicU64::new(0));
        let log = LogWriter {
            entries,
            waiting: Arc::clone(&waiting),
            dropped: dropped.clone(),
            dropped_in_all: AtomicU64::new(0),
            clock,
            records: records.is_some(),
        };
        let (open, written) = (BTreeMap::new(), BTreeMap::new());
        let records = records.map(BufWriter::new);
        let mut files = Files { root, bytes, allow, open, written, records };
        std::thread::Builder::new()
            .name("function-log".to_owned())
            .spawn(move || files.write_all(&receiver, &waiting, &dropped))?;
        Ok(Arc::new(log))
    }

    /// Writes a record, if records are kept.
    pub(super) fn record(&self, record: impl FnOnce() -> InvocationRecord) {
        if self.records {
            self.send(Entry::Record(Box::new(record())));
        }
    }

    /// Writes why a call failed, or why an instance did not start, to the function's log, if it is for the
    /// function's author: the kind and the message, then the stack.
    pub(super) fn failed(
        &self,
        function: &FunctionName,
        id: Option<&RequestId>,
        failure: &Failure,
    ) {
        if !matches!(failure.culprit, Culprit::Function | Culprit::Sandbox) {
            return;
        }
        let mut message = failure.message.lines();
        let first = format!("{}: {}", failure.kind, message.next().unwrap_or_default());
        let stack = failure.function_error.iter().flat_map(|error| &error.stack_trace);
        let rest = message.chain(stack.flat_map(|frame| frame.lines()));
        // The rest is told to the call that waited for the instance.
        let rest = rest.take(if id.is_some() { usize::MAX } else { 0 });
        let lines = std::iter::once(&*first).chain(rest);
        let (mut count, mut bytes) = (0, 0);
        for line in lines {
            let most = line.len().min(MOST_OF_A_LINE);
            let end = (0..=most).rev().find(|end| line.is_char_boundary(*end)).unwrap_or(0);
            (count, bytes) = (count + 1, bytes + end);
            let over = count > MOST_LINES_OF_A_FAILURE || bytes > MOST_OF_A_FAILURE;
            let text = if over { "…" } else { &line[..end] };
            self.line(LogLine::new(function, id.map(RequestId::as_str), LogStream::Platform, text));
            if over {
                return;
            }
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
        let bytes = entry.bytes();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= BACKLOG_BYTES;
        if !fits || matches!(self.entries.try_send(entry), Err(TrySendError::Full(_))) {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.lost();
        }
    }

    fn lost(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.dropped_in_all.fetch_add(1, Ordering::Relaxed);
    }

    /// Lines and records that were never written, since the start.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped_in_all.load(Ordering::Relaxed)
    }
}

impl LogSink for LogWriter {
    fn line(&self, line: LogLine<'_>) {
        // Its JSON would only be thrown away.
        if self.waiting.load(Ordering::Relaxed) + line.text.len() > BACKLOG_BYTES {
            return self.lost();
        }
        let text = json_lines::line(&Line {
            time_ms: self.clock.unix_millis(),
            request_id: line.request_id,
            stream: line.stream,
            text: line.text,
        });
        self.send(Entry::Line { function: line.function.clone(), line: text });
    }
}

struct Files {
    root: PathBuf,
    /// A log file's bound.
    bytes: u64,
    allow: Allow,
    open: BTreeMap<FunctionName, BufWriter<LogFile>>,
    /// What namespaces with a quota have written since their folder was looked through, bytes.
    written: BTreeMap<String, u64>,
    records: Option<BufWriter<File>>,
}

impl Files {
    fn write_all(&mut self, entries: &Receiver<Entry>, waiting: &AtomicUsize, dropped: &AtomicU64) {
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
            let bytes = entry.bytes();
            if let Err(error) = self.write(entry) {
                tracing::warn!(%error, "could not write a log line");
            }
            waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.flush();
    }

    fn write(&mut self, entry: Entry) -> io::Result<()> {
        let (function, line) = match entry {
            Entry::Line { function, line } => (function, line),
            Entry::Record(record) => {
                let Some(file) = &mut self.records else { return Ok(()) };
                return json_lines::write(file, &record);
            }
            Entry::Flush(written) => {
                self.flush();
                let _ = written.send(());
                return Ok(());
            }
        };
        let quota = self.allow.log_bytes(function.namespace());
        if let Some(quota) = quota {
            self.make_room(function.namespace(), quota, line.len() as u64)?;
        }
        if !self.open.contains_key(&function) {
            if self.open.len() >= MOST_FILES
                && let Some((_, mut closed)) = self.open.pop_last()
            {
                closed.flush()?;
            }
            let folder = self.root.join(function.namespace());
            std::fs::create_dir_all(&folder)?;
            let path = folder.join(format!("{}.jsonl", function.name()));
            // So that something is left of what was before when a file begins anew.
            let most = quota.map_or(self.bytes, |quota| self.bytes.min(quota / 4));
            let log = BufWriter::new(LogFile::open(path, most)?);
            self.open.insert(function.clone(), log);
        }
        let Some(log) = self.open.get_mut(&function) else { return Ok(()) };
        // The buffer keeps a line together, so it comes whole to the file.
        log.write_all(&line)
    }

    /// Removes the files of a namespace that were written to longest ago, until so many bytes more are within
    /// its quota. The folder is looked through again when an eighth of the quota has been written.
    fn make_room(&mut self, namespace: &str, quota: u64, bytes: u64) -> io::Result<()> {
        let step = quota / 8;
        let written = match self.written.get_mut(namespace) {
            Some(written) => written,
            // An earlier run may have left some.
            None => self.written.entry(namespace.to_owned()).or_insert(step),
        };
        *written += bytes;
        if *written < step {
            return Ok(());
        }
        *written = bytes;
        let entries = match std::fs::read_dir(self.root.join(namespace)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        let (mut files, mut all) = (Vec::new(), 0);
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            all += metadata.len();
            files.push((metadata.modified()?, entry.path(), metadata.len()));
        }
        files.sort();
        let most = (quota - step).saturating_sub(bytes);
        for (_, path, length) in files {
            if all <= most {
                break;
            }
            // One that is open begins anew.
            std::fs::remove_file(path)?;
            all -= length;
        }
        Ok(())
    }

    fn flush(&mut self) {
        let logs = self.open.values_mut().map(|log| log as &mut dyn Write);
        let records = self.records.iter_mut().map(|records| records as &mut dyn Write);
        for file in logs.chain(records) {
            if let Err(error) = file.flush() {
                tracing::warn!(%error, "could not write a log");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// A disk that takes nothing for a while: a pipe that nobody reads.
    #[test]
    fn what_waits_for_a_slow_disk_is_bounded_and_the_rest_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("logs/default/f.jsonl");
        std::fs::create_dir_all(pipe.parent().unwrap()).unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        // Who could read it, and does not yet.
        let reader = File::options().read(true).write(true).open(&pipe).unwrap();
        let log = LogWriter::start(
            dir.path(),
            1 << 40,
            None,
            Arc::new(SystemClock::new()),
            Allow::default(),
        );
        let log = log.unwrap();
        let function = "f".parse().unwrap();
        let print = |text: &str| log.line(LogLine::new(&function, None, LogStream::Stdout, text));
        // What JSON makes six bytes of each.
        let long = "\u{1}".repeat(64 << 10);
        for _ in 0..100 {
            print(&long);
        }
        let waiting = log.waiting.load(Ordering::Relaxed);
        assert!(waiting > BACKLOG_BYTES / 2 && waiting <= BACKLOG_BYTES, "{waiting} bytes wait");
        let written = 100 - log.dropped();
        assert_eq!(written, waiting as u64 / (6 * long.len() as u64), "each is counted");

        let mut lines = BufReader::new(reader).lines();
        for _ in 0..written {
            assert!(lines.next().unwrap().unwrap().len() > 6 * long.len());
        }
        while log.waiting.load(Ordering::Relaxed) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        print("again");
        assert!(lines.next().unwrap().unwrap().ends_with(r#""text":"again"}"#));
        assert_eq!(log.dropped(), 100 - written);
    }

    #[tokio::test]
    async fn the_logs_of_a_namespace_stay_within_its_quota_and_the_newest_lines_stay() {
        const MIB: u64 = 1 << 20;
        let dir = tempfile::tempdir().unwrap();
        let mut allow = Allow::default();
        allow.namespace.entry("n".to_owned()).or_default().log_mb = Some(1);
        let log = || {
            let clock = Arc::new(SystemClock::new());
            LogWriter::start(dir.path(), 16 << 20, None, clock, allow.clone()).unwrap()
        };
        let size = |namespace: &str| -> u64 {
            let files = std::fs::read_dir(dir.path().join("logs").join(namespace)).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let text = "x".repeat(1000);
        for round in 0..2 {
            // The second finds what the first has left.
            let log = log();
            for n in 0..6000 {
                for namespace in ["n", "m"] {
                    let function = format!("{namespace}/f{}", n / 100).parse().unwrap();
                    let text = format!("{round} {n} {text}");
                    log.line(LogLine::new(&function, None, LogStream::Stdout, &text));
                }
                if n % 500 == 0 {
                    log.flush().await;
                    assert!(!dir.path().join("logs/n").exists() || size("n") <= MIB);
                }
            }
            log.flush().await;
            assert_eq!(log.dropped(), 0);
            assert!((MIB / 2..=MIB).contains(&size("n")), "{}", size("n"));
            assert!(size("m") > 6 * MIB, "another has no quota");
            let last = std::fs::read_to_string(dir.path().join("logs/n/f59.jsonl")).unwrap();
            assert!(last.lines().last().unwrap().contains(&format!("{round} 5999 x")));
        }
    }
}
