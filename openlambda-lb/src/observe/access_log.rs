//! The access log: one line of JSON for each request; `line.rs` lists its fields.
//!
//! Checks (`/status`, `/stats`, `/livez`, `/readyz`, `/metrics`) and requests between the project's own
//! processes have no lines.
//!
//! A separate thread writes, so a call never waits: when the disk is full or the reader of a pipe is
//! slow, lines are dropped and counted (`ol_access_log_dropped_total`). A full file is renamed to
//! `FILE.1`, which replaces an older one.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, channel, sync_channel};
use std::time::Duration;

use openlambda_core::json_lines;
use openlambda_core::serving::LogFile;

use super::line::Line;
use super::writer::{BACKLOG, COLLECT, Entry, Writer};

/// How long the end of the balancer waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where lines go. Dropping it writes what there is, without waiting for it.
#[derive(Debug)]
pub struct AccessLog {
    entries: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// The usual size of a file, in bytes.
    pub const FILE_SIZE: u64 = 64 << 20;

    /// Appends to the file at `path`, which is made if it is not there; `-` is standard output. Up to
    /// `bytes` go into a file; then it is kept, with `.1` behind its name, in place of the one kept before.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        if path == Path::new("-") {
            return AccessLog::to(io::stdout());
        }
        AccessLog::to(LogFile::open(path, bytes)?)
    }

    /// Writes to `stream`, which may be slow: then lines are dropped.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub fn to(stream: impl Write + Send + 'static) -> io::Result<Self> {
        let (entries, receiver) = sync_channel(BACKLOG);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer::new(stream, Arc::clone(&dropped));
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread.spawn(move || writer.run(&receiver))?;
        Ok(AccessLog { entries, dropped })
    }

    /// Lines that were not written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn write(&self, line: &Line) {
        if self.entries.try_send(Entry::Line(json_lines::line(line))).is_err() {
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
            let log = AccessLog::to(LogFile::open(&file, 2 * one).unwrap()).unwrap();
            log.write(&line(&format!("/{n}")));
            log.flush();
            assert_eq!(paths(&file), expected);
            assert_eq!(log.dropped(), 0);
        }
        let log = AccessLog::open(&file, AccessLog::FILE_SIZE).unwrap();
        std::fs::rename(&file, folder.path().join("moved")).unwrap();
        log.write(&line("/4"));
        log.flush();
        assert_eq!(paths(&file), ["/4"]);
        assert_eq!(paths(&folder.path().join("access.jsonl.1")), ["/0", "/1"]);
        assert!(AccessLog::open(&folder.path().join("no/folder"), 1).is_err());
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
        let log = AccessLog::open(Path::new("/dev/full"), AccessLog::FILE_SIZE).unwrap();
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
}
