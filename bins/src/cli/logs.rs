//! `ol logs`: what a function printed, from all workers on this machine, in order of time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use openlambda_core::function::FunctionName;
use openlambda_core::time::{Clock, SystemClock};
use serde::{Deserialize, Serialize};

use super::lookup::versions_of;
use super::output::{json_line, note, write};
use super::times::{moment, utc};
use super::{Common, block_on};
use crate::catalog::Catalog;
use crate::cluster::DataDir;
use crate::error::{CliError, Result};
use crate::terminal::{for_output, say};

/// How many lines are shown when nothing narrows them down.
const LINES: usize = 1000;

/// How often one who follows looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// The function
    function: FunctionName,
    /// Keep printing lines as they come
    #[arg(short, long)]
    follow: bool,
    /// Show this many of the last lines [default: 1000; all with --since or --request-id]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Show what was printed since then: 90s, 10m, 2h or 1d ago, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since, allow_hyphen_values = true)]
    since: Option<u64>,
    /// Show the time, the worker, the call's id and the stream of each line, too
    #[arg(long)]
    long: bool,
    /// Show the lines of one call only
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    common: Common,
}

fn since(text: &str) -> std::result::Result<u64, String> {
    moment(text, SystemClock::new().unix_millis())
}

/// One line, as workers write it, and the worker.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Line {
    pub(super) time_ms: u64,
    #[serde(default)]
    worker: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    stream: String,
    pub(super) text: String,
}

/// A worker's log files of a function, the older first.
pub(super) fn files(dir: &DataDir, worker: &str, function: &FunctionName) -> [PathBuf; 2] {
    let logs = dir.worker_dir(worker).join("logs").join(function.namespace());
    let name = format!("{}.jsonl", function.name());
    [logs.join(format!("{name}.1")), logs.join(name)]
}

pub(super) fn logs(args: &LogsArgs, catalog: &Catalog) -> Result<ExitCode> {
    let dir = args.common.dir()?;
    let mut workers = BTreeMap::new();
    let mut lines = read(&dir, args, &mut workers);
    let printed = workers.values().any(|tail| tail.file.is_some() || tail.older.is_some());
    if !printed && !args.follow {
        // Without a cluster it is not known whether there is such a function.
        if let Ok(state) = dir.running() {
            let registry = state.open_registry(catalog)?;
            block_on(async { versions_of(&registry, &args.function).await })?;
            say!("{} has printed nothing yet", args.function);
            return Ok(ExitCode::SUCCESS);
        }
        return Err(CliError::new(format!(
            "{} has printed nothing yet; `ol ls` shows the functions there are",
            args.function
        )));
    }
    let narrowed = args.since.is_some() || args.request_id.is_some();
    let most = args.lines.unwrap_or(if narrowed { usize::MAX } else { LINES });
    let first = lines.len().saturating_sub(most);
    lines.drain(..first);
    let mut shown = show(args, &lines);
    // A reader that has gone, as in `ol logs -f | head`, ends it.
    while shown.is_ok() && args.follow {
        std::thread::sleep(LOOK_AGAIN);
        shown = show(args, &read(&dir, args, &mut workers));
    }
    if let Err(error) = shown {
        note(&error);
    }
    Ok(ExitCode::SUCCESS)
}

/// The unread lines of all workers that match the arguments, in order of time.
///
/// The folder says which workers there are, not the cluster's state: logs outlive the cluster, and
/// one who follows sees a new worker's as soon as it has any.
fn read(dir: &DataDir, args: &LogsArgs, workers: &mut BTreeMap<String, Tail>) -> Vec<Line> {
    for entry in std::fs::read_dir(dir.join("workers")).into_iter().flatten().flatten() {
        if let Ok(worker) = entry.file_name().into_string() {
            let tail = || Tail::new(files(dir, &worker, &args.function));
            workers.entry(worker.clone()).or_insert_with(tail);
        }
    }
    let mut lines = Vec::new();
    for (worker, tail) in workers {
        tail.read_new(|text| {
            let Ok(mut line) = serde_json::from_slice::<Line>(text) else { return };
            let wanted = args.since.is_none_or(|since| line.time_ms >= since)
                && (args.request_id.is_none() || args.request_id == line.request_id);
            if wanted {
                worker.clone_into(&mut line.worker);
                lines.push(line);
            }
        });
    }
    lines.sort_by_key(|line| line.time_ms);
    lines
}

/// Reads one worker's log on and on. A log that is full is renamed to the older file and begun
/// anew; the one that is open stays the one that was read so far, whatever it is called now.
#[derive(Debug)]
pub(super) struct Tail {
    older_path: PathBuf,
    path: PathBuf,
    /// The older file that was read last, by its inode.
    older: Option<u64>,
    file: Option<Open>,
}

#[derive(Debug)]
struct Open {
    inode: u64,
    file: File,
    /// The beginning of a line whose end is still being written.
    rest: Vec<u8>,
}

impl Tail {
    /// The whole log, by the paths of its files, the older first.
    pub(super) fn new([older_path, path]: [PathBuf; 2]) -> Self {
        Tail { older_path, path, older: None, file: None }
    }

    /// What is written to it from now on.
    pub(super) fn from_now(paths: [PathBuf; 2]) -> Self {
        let mut tail = Tail::new(paths);
        if let Some(mut open) = Open::new(&tail.path) {
            // Where the end is not found, more is read than is new.
            let _ = open.file.seek(SeekFrom::End(0));
            tail.older = inode(&tail.older_path);
            tail.file = Some(open);
        }
        tail
    }

    /// Hands over each line that was not read yet and has its end.
    pub(super) fn read_new(&mut self, mut line: impl FnMut(&[u8])) {
        // The current file is opened before the older one: should they change places in between,
        // lines come by either way.
        let next = match (&self.file, Open::new(&self.path)) {
            (Some(open), Some(next)) if open.inode == next.inode => None,
            (_, next) => next,
        };
        if let Some(open) = &mut self.file {
            open.read(&mut line);
        }
        let Some(mut next) = next else { return };
        let known = self.file.as_ref().map(|open| open.inode);
        if let Some(mut older) = Open::new(&self.older_path)
            && ![known, self.older, Some(next.inode)].contains(&Some(older.inode))
        {
            older.read(&mut line);
        }
        self.older = known.or(inode(&self.older_path));
        next.read(&mut line);
        self.file = Some(next);
    }
}

impl Open {
    fn new(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        Some(Open { inode: file.metadata().ok()?.ino(), file, rest: Vec::new() })
    }

    fn read(&mut self, line: &mut impl FnMut(&[u8])) {
        // What was read before an error stays for the next time.
        let _ = self.file.read_to_end(&mut self.rest);
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.rest[..whole].split(|byte| *byte == b'\n').for_each(&mut *line);
        self.rest.drain(..whole);
    }
}

fn inode(path: &Path) -> Option<u64> {
    Some(std::fs::metadata(path).ok()?.ino())
}

fn show(args: &LogsArgs, lines: &[Line]) -> std::io::Result<()> {
    let mut text = String::new();
    for line in lines {
        if args.common.json {
            text.push_str(&json_line(&serde_json::to_string(line).unwrap_or_default()));
        } else if !args.long {
            text.push_str(&for_output(&line.text));
            text.push('\n');
        } else {
            let id = line.request_id.as_deref().unwrap_or("-");
            let (time, worker) = (utc(line.time_ms), &line.worker);
            let line = format!("{time} {worker} {id} {}: {}", line.stream, line.text);
            text.push_str(&for_output(&line));
            text.push('\n');
        }
    }
    write(text.as_bytes())
}
