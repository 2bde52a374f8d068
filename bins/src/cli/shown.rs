//! What an `ol up` that stays in the foreground shows: calls as they are answered, and what functions
//! print, as soon as they are written down. Each is a line on standard error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use serde::Deserialize;

use super::logs::{Line, Tail};
use super::times::utc;
use crate::cluster::DataDir;
use crate::terminal::say;

const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long the end waits for lines that are being printed, to somebody who may not read them.
const LAST_LINES: Duration = Duration::from_millis(500);

/// Shows until it is dropped.
#[derive(Debug)]
pub(super) struct Shown {
    stop: Option<Sender<()>>,
    over: Receiver<()>,
}

/// A call, as the balancer writes it down.
#[derive(Debug, Deserialize)]
struct Call {
    time_ms: u64,
    method: String,
    path: String,
    worker: Option<String>,
    status: Option<u16>,
    outcome: String,
    start: Option<String>,
    duration_ms: f64,
}

impl Shown {
    /// Shows what is written from now on. `requests`: the balancer's access log.
    pub(super) fn start(dir: DataDir, requests: PathBuf) -> Self {
        let (stop, stopped) = channel::<()>();
        let (end, over) = channel();
        let mut calls = Tail::from_now(with_older(&requests));
        let mut functions = BTreeMap::new();
        for path in logs_of_functions(&dir) {
            functions.insert(path.clone(), Tail::from_now(with_older(&path)));
        }
        std::thread::spawn(move || {
            let mut going_on = true;
            while going_on {
                let told = stopped.recv_timeout(LOOK_AGAIN);
                going_on = matches!(told, Err(RecvTimeoutError::Timeout));
                look(&dir, &mut calls, &mut functions);
            }
            let _ = end.send(());
        });
        Shown { stop: Some(stop), over }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.over.recv_timeout(LAST_LINES);
    }
}

/// Prints what is new, in order of time.
fn look(dir: &DataDir, calls: &mut Tail, functions: &mut BTreeMap<PathBuf, Tail>) {
    let mut lines = Vec::new();
    calls.read_new(|text| {
        if let Ok(call) = serde_json::from_slice::<Call>(text)
            // Other requests are the cluster's own.
            && call.path.contains("/run")
        {
            // It is shown when it is over.
            lines.push((call.time_ms + call.duration_ms as u64, call.text()));
        }
    });
    for path in logs_of_functions(dir) {
        functions.entry(path.clone()).or_insert_with(|| Tail::new(with_older(&path)));
    }
    for (path, tail) in functions {
        let name = name_of(path);
        tail.read_new(|text| {
            if let Ok(line) = serde_json::from_slice::<Line>(text) {
                lines.push((line.time_ms, format!("{name}: {}", line.text)));
            }
        });
    }
    lines.sort_by_key(|(time, _)| *time);
    for (time_ms, text) in lines {
        // The day is known to who looks on.
        let time = utc(time_ms);
        say!("{} {text}", time.get(11..).unwrap_or(&time));
    }
}

impl Call {
    fn text(&self) -> String {
        let answer = match self.status {
            Some(status) => status.to_string(),
            None => self.outcome.clone(),
        };
        let mut text = format!("{} {} {answer} {:.1} ms", self.method, self.path, self.duration_ms);
        for more in [&self.start, &self.worker].into_iter().flatten() {
            text.push(' ');
            text.push_str(more);
        }
        text
    }
}

/// The function whose log this is: `workers/ID/logs/NAMESPACE/NAME.jsonl`.
fn name_of(log: &Path) -> String {
    let part = |path: Option<&Path>| {
        path.and_then(Path::file_stem).unwrap_or_default().to_string_lossy().into_owned()
    };
    match part(log.parent()).as_str() {
        "default" => part(Some(log)),
        namespace => format!("{namespace}/{}", part(Some(log))),
    }
}

fn logs_of_functions(dir: &DataDir) -> Vec<PathBuf> {
    let inside = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    inside(dir.join("workers"))
        .flat_map(|worker| inside(worker.join("logs")))
        .flat_map(inside)
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect()
}

/// A log and the older one that it becomes when it is full, the older first.
fn with_older(log: &Path) -> [PathBuf; 2] {
    let mut older = log.to_owned();
    older.as_mut_os_string().push(".1");
    [older, log.to_owned()]
}
