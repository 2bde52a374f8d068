//! `ol logs`: what a function printed, from all workers on this machine, in order of time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use openlambda_core::function::FunctionName;
use serde::{Deserialize, Serialize};

use super::Common;
use super::times::utc;
use crate::cluster::DataDir;
use crate::error::{CliError, Result};

#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// The function
    function: FunctionName,
    /// Go on as lines come
    #[arg(short, long)]
    follow: bool,
    /// Show this many of the last lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000)]
    lines: usize,
    /// Show the lines of one call only
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// One line, as workers write it, and the worker.
#[derive(Debug, Deserialize, Serialize)]
struct Line {
    time_ms: u64,
    #[serde(default)]
    worker: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    stream: String,
    text: String,
}

/// A worker's log files of a function, the older first.
pub(super) fn files(dir: &DataDir, worker: &str, function: &FunctionName) -> [PathBuf; 2] {
    let logs = dir.worker_dir(worker).join("logs").join(function.namespace());
    let name = format!("{}.jsonl", function.name());
    [logs.join(format!("{name}.1")), logs.join(name)]
}

pub(super) fn logs(args: &LogsArgs) -> Result<ExitCode> {
    let dir = args.common.dir()?;
    // Logs outlive the cluster, so its state is not asked which workers there are.
    let workers = std::fs::read_dir(dir.join("workers")).into_iter().flatten().flatten();
    let mut workers: Vec<String> =
        workers.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    workers.sort();
    let exists = workers
        .iter()
        .any(|worker| files(&dir, worker, &args.function).iter().any(|file| file.exists()));
    if !exists && !args.follow {
        return Err(CliError::new(format!(
            "{} has printed nothing yet; `ol ls` shows the functions there are",
            args.function
        )));
    }
    let mut read = BTreeMap::new();
    let mut lines = Vec::new();
    for worker in &workers {
        for file in files(&dir, worker, &args.function) {
            read_new(&file, worker, &mut read, &mut lines);
        }
    }
    let mut shown = show(args, lines, args.lines);
    // A reader that has gone, as in `ol logs -f | head`, ends it.
    while shown.is_ok() && args.follow {
        std::thread::sleep(Duration::from_millis(100));
        let mut lines = Vec::new();
        for worker in &workers {
            let [_, current] = files(&dir, worker, &args.function);
            read_new(&current, worker, &mut read, &mut lines);
        }
        shown = show(args, lines, usize::MAX);
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads what has been added to a file since the last time. A shorter file is a new one.
fn read_new(
    path: &PathBuf,
    worker: &str,
    read: &mut BTreeMap<PathBuf, u64>,
    lines: &mut Vec<Line>,
) {
    let Ok(mut file) = File::open(path) else { return };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let at = read.entry(path.clone()).or_default();
    if length < *at {
        *at = 0;
    }
    if file.seek(SeekFrom::Start(*at)).is_err() {
        return;
    }
    let mut reader = BufReader::new(file);
    let mut text = Vec::new();
    while let Ok(bytes) = reader.read_until(b'\n', &mut text) {
        // A line without its end is still being written.
        if bytes == 0 || !text.ends_with(b"\n") {
            break;
        }
        *at += bytes as u64;
        if let Ok(mut line) = serde_json::from_slice::<Line>(&text) {
            worker.clone_into(&mut line.worker);
            lines.push(line);
        }
        text.clear();
    }
}

fn show(args: &LogsArgs, mut lines: Vec<Line>, most: usize) -> std::io::Result<()> {
    if let Some(wanted) = &args.request_id {
        lines.retain(|line| line.request_id.as_ref() == Some(wanted));
    }
    lines.sort_by_key(|line| line.time_ms);
    let first = lines.len().saturating_sub(most);
    let mut text = String::new();
    for line in &lines[first..] {
        if args.common.json {
            text.push_str(&serde_json::to_string(line).unwrap_or_default());
            text.push('\n');
        } else {
            let id = line.request_id.as_deref().unwrap_or("-");
            let (time, worker) = (utc(line.time_ms), &line.worker);
            text.push_str(&format!("{time} {worker} {id} {}: {}\n", line.stream, line.text));
        }
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}
