//! The access log: one line of JSON for each request.
//!
//! | field | what it is |
//! |---|---|
//! | `time_ms` | when the request came, milliseconds since 1970 |
//! | `request_id` | the reply's `x-openlambda-request-id`; `null` for one call too many that had none |
//! | `trace_id` | the trace of the request's `traceparent` (W3C Trace Context); `null` without one |
//! | `client` | the address at the other end of the connection |
//! | `method`, `path` | of the request, without the query, which may hold secrets |
//! | `function`, `version` | what ran or would have; `null` before it was found |
//! | `worker` | the worker that was tried last; `null` when none was |
//! | `status` | of the reply; `null` when the client left before it |
//! | `outcome` | `ok`, the failure's code, `broken_off` or `cancelled`, as in the metrics |
//! | `error` | the culprit, as in `x-openlambda-error`; `null` when nothing failed |
//! | `start` | `cold`, `zygote` or `warm`; `null` when nothing ran |
//! | `retries` | how many workers more were tried |
//! | `duration_ms` | from the request's head to the end of the reply |
//! | `reply_ms` | from the request's head to the reply's; `null` when there was none |
//! | `phases_ms` | the worker's `Server-Timing`: `queue`, `pull`, `create`, `init`, `run` |
//! | `request_bytes`, `reply_bytes` | of the bodies, as far as they came |
//!
//! The checks (`/status`, `/stats`, `/livez`, `/readyz`, `/metrics`) and what the project's own
//! processes say to each other have no lines.
//!
//! A thread of its own writes, so a call never waits: when the disk is full or the reader of a pipe is
//! slow, lines are dropped and counted (`ol_access_log_dropped_total`). A file that has reached its
//! bound becomes `FILE.1`, replacing an older one.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use openlambda_core::function::{FunctionName, Version};
use openlambda_core::invocation::RequestId;
use serde::Serialize;

/// A file's bound, bytes. Two such files are kept.
const MOST_BYTES: u64 = 64 << 20;

/// Lines between the calls and the writing thread.
const BACKLOG: usize = 16_384;

/// How long lines are collected before they are written: waking a thread for each costs more than
/// the line.
const COLLECT: Duration = Duration::from_millis(50);

/// How long the end of the balancer waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest path in a line, bytes.
const LONGEST_PATH: usize = 2048;

/// Where lines go. Dropping it writes what there is, without waiting for it.
#[derive(Debug)]
pub struct AccessLog {
    entries: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Tell when everything before this is written.
    Flush(Sender<()>),
}

/// See the module's documentation.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) time_ms: u64,
    pub(crate) request_id: Option<RequestId>,
    pub(crate) trace_id: Option<String>,
    pub(crate) client: IpAddr,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) function: Option<FunctionName>,
    pub(crate) version: Option<Version>,
    pub(crate) worker: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) outcome: &'static str,
    pub(crate) error: Option<String>,
    pub(crate) start: Option<&'static str>,
    pub(crate) retries: u32,
    pub(crate) duration_ms: f64,
    pub(crate) reply_ms: Option<f64>,
    pub(crate) phases_ms: Option<PhasesMs>,
    pub(crate) request_bytes: u64,
    pub(crate) reply_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct PhasesMs {
    pub(crate) queue: f64,
    pub(crate) pull: f64,
    pub(crate) create: f64,
    pub(crate) init: f64,
    pub(crate) run: f64,
}

impl AccessLog {
    /// Appends to the file at `path`, which is made if it is not there; `-` is standard output.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return AccessLog::start(Place::Stream(Box::new(io::stdout())), MOST_BYTES);
        }
        AccessLog::start(Place::File(Appended::open(path)?), MOST_BYTES)
    }

    /// Writes to `stream`, which may be slow: then lines are dropped.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub fn to(stream: impl Write + Send + 'static) -> io::Result<Self> {
        AccessLog::start(Place::Stream(Box::new(stream)), MOST_BYTES)
    }

    fn start(place: Place, bound: u64) -> io::Result<Self> {
        let (entries, receiver) = sync_channel(BACKLOG);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer { place, bound, torn: false, dropped: Arc::clone(&dropped) };
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(move || writer.run(&receiver))?;
        Ok(AccessLog { entries, dropped })
    }

    /// Lines that were not written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn write(&self, line: &Line) {
        let mut text = serde_json::to_vec(line).unwrap_or_default();
        text.push(b'\n');
        if self.entries.try_send(Entry::Line(text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything so far is written, but not for long: the other end may never read.
    pub(crate) fn flush(&self) {
        let (sender, written) = channel();
        let mut entry = Entry::Flush(sender);
        for _ in 0..PATIENCE.as_millis() / COLLECT.as_millis() {
            match self.entries.try_send(entry) {
                Ok(()) => {
                    let _ = written.recv_timeout(PATIENCE);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => entry = back,
            }
            std::thread::sleep(COLLECT);
        }
    }
}

/// A path as it stands in a line.
pub(crate) fn shown(path: &str) -> String {
    // Paths of requests are ASCII.
    path.get(..LONGEST_PATH).unwrap_or(path).to_owned()
}

/// The trace that a `traceparent` names: `00-<32 digits>-<16 digits>-<2 digits>`.
pub(crate) fn trace_of(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, trace, parent) = (parts.next()?, parts.next()?, parts.next()?);
    let digits = |text: &str, count: usize| {
        text.len() == count
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let valid = digits(version, 2) && version != "ff" && digits(trace, 32) && digits(parent, 16);
    (valid && trace.bytes().any(|digit| digit != b'0')).then_some(trace)
}

enum Place {
    File(Appended),
    Stream(Box<dyn Write + Send>),
}

struct Appended {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Appended {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Appended { path: path.to_owned(), file, bytes })
    }
}

/// The thread that writes.
struct Writer {
    place: Place,
    bound: u64,
    /// The last write failed, perhaps in the middle of a line.
    torn: bool,
    dropped: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, entries: &Receiver<Entry>) {
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

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    fn line(path: &str) -> Line {
        Line {
            time_ms: 1,
            request_id: None,
            trace_id: None,
            client: [127, 0, 0, 1].into(),
            method: "GET".to_owned(),
            path: path.to_owned(),
            function: None,
            version: None,
            worker: None,
            status: None,
            outcome: "ok",
            error: None,
            start: None,
            retries: 0,
            duration_ms: 0.5,
            reply_ms: None,
            phases_ms: None,
            request_bytes: 0,
            reply_bytes: 0,
        }
    }

    fn paths(file: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(file).unwrap();
        let path = |line: &str| -> String {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["path"].as_str().unwrap().to_owned()
        };
        text.lines().filter(|line| !line.is_empty()).map(path).collect()
    }

    #[test]
    fn a_file_is_appended_to_and_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("access.jsonl");
        let one = serde_json::to_vec(&line("/0")).unwrap().len() as u64 + 1;
        for (n, expected) in
            [(0, &["/0"][..]), (1, &["/0", "/1"]), (2, &["/2"]), (3, &["/2", "/3"])]
        {
            // Opened anew each time, as after a restart.
            let place = Place::File(Appended::open(&file).unwrap());
            let log = AccessLog::start(place, 2 * one).unwrap();
            log.write(&line(&format!("/{n}")));
            log.flush();
            assert_eq!(paths(&file), expected);
            assert_eq!(log.dropped(), 0);
        }
        let log = AccessLog::open(&file).unwrap();
        std::fs::rename(&file, folder.path().join("moved")).unwrap();
        log.write(&line("/4"));
        log.flush();
        assert_eq!(paths(&file), ["/4"]);
        assert_eq!(paths(&folder.path().join("access.jsonl.1")), ["/0", "/1"]);
        assert!(AccessLog::open(&folder.path().join("no/folder")).is_err());
    }

    /// A pipe whose reader does nothing until it is told to.
    #[derive(Clone, Default)]
    struct Stuck(Arc<Pipe>);

    #[derive(Default)]
    struct Pipe {
        read: Mutex<bool>,
        begins: Condvar,
        bytes: Mutex<Vec<u8>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let Pipe { read, begins, bytes: taken } = &*self.0;
            drop(begins.wait_while(read.lock().unwrap(), |read| !*read).unwrap());
            taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_slow_reader_does_not_take_is_dropped_and_counted() {
        let stuck = Stuck::default();
        let log = AccessLog::to(stuck.clone()).unwrap();
        let many = 3 * BACKLOG as u64;
        for _ in 0..many {
            log.write(&line("/"));
        }
        assert!(log.dropped() > 0);
        *stuck.0.read.lock().unwrap() = true;
        stuck.0.begins.notify_all();
        // What was kept comes whole, and every line was either written or counted.
        for _ in 0..1000 {
            log.flush();
            let bytes = stuck.0.bytes.lock().unwrap();
            let written = bytes.iter().filter(|byte| **byte == b'\n').count();
            if written as u64 + log.dropped() == many {
                return;
            }
        }
        panic!("lines are missing: {} dropped of {many}", log.dropped());
    }

    #[test]
    fn a_full_disk_drops_whole_lines_and_is_got_over() {
        // Writing to it fails as on a full disk.
        let log = AccessLog::open(Path::new("/dev/full")).unwrap();
        log.write(&line("/"));
        log.flush();
        assert_eq!(log.dropped(), 1);

        /// Fails in the middle of the first write.
        #[derive(Clone, Default)]
        struct Full(Arc<Mutex<Vec<u8>>>, bool);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let mut written = self.0.lock().unwrap();
                if !std::mem::replace(&mut self.1, true) {
                    written.extend_from_slice(&bytes[..5]);
                    return Ok(5);
                }
                if written.len() == 5 {
                    written.push(b'#');
                    return Err(io::ErrorKind::StorageFull.into());
                }
                written.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let full = Full::default();
        let log = AccessLog::to(full.clone()).unwrap();
        for path in ["/1", "/2"] {
            log.write(&line(path));
            log.flush();
        }
        assert_eq!(log.dropped(), 1);
        let text = String::from_utf8(full.0.lock().unwrap().clone()).unwrap();
        let whole = text.lines().filter(|line| line.ends_with('}')).collect::<Vec<_>>();
        assert_eq!(whole.len(), 1, "{text}");
        assert!(whole[0].starts_with('{') && whole[0].contains("\"/2\""), "{text}");
    }

    #[test]
    fn traces_are_read_and_nothing_else() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_of(&format!("00-{trace}-00f067aa0ba902b7-01")), Some(trace));
        let zero = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let upper = format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase());
        for bad in ["", "00", "00-1-2-3", &zero, &upper, &format!("ff-{trace}-00f067aa0ba902b7-01")]
        {
            assert_eq!(trace_of(bad), None, "{bad}");
        }
    }
}
