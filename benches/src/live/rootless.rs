//! `sock` as an ordinary user, beside `sock` as root: a child process with dropped ids takes its turns.
//!
//! ```text
//! bench ── {"concurrency", "ms"} ──▶ turns(), as nobody ── {"times_ms", "per_second"} ──▶ bench
//! ```

use std::process::Stdio;

use openlambda_core::time::Duration;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::error::{Context, LiveError, Result};
use super::turn::Turn;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) concurrency: usize,
    pub(super) ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) isolation: String,
}

/// The child process.
pub(super) struct Rootless {
    child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    pub(super) isolation: String,
}

impl Rootless {
    pub(super) async fn start(turns: &[String], function: &str) -> Result<Rootless> {
        if !rustix::process::geteuid().is_root() {
            return Err(LiveError::new(
                "--against rootless compares root with an ordinary user, which you are already; run it as \
                 root (sudo)",
            ));
        }
        // Nobody's, by number: no name has to be known.
        const NOBODY: u32 = 65534;
        // By itself, since the way to its file may be closed to others.
        let mut child = Command::new("/proc/self/exe")
            .args(turns)
            .arg(function)
            .uid(NOBODY)
            .gid(NOBODY)
            .env("HOME", "/")
            .env_remove("TMPDIR")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context(|| {
                "this program cannot be run by an ordinary user; put it where all may read it"
                    .to_owned()
            })?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(LiveError::new("the child process has no pipes; report it"));
        };
        let answers = BufReader::new(answers).lines();
        let mut rootless = Rootless { child, requests, answers, isolation: String::new() };
        rootless.isolation = rootless.answer::<Ready>().await?.isolation;
        Ok(rootless)
    }

    pub(super) async fn turn(&mut self, concurrency: usize, time: Duration) -> Result<Turn> {
        let request = Request { concurrency, ms: time.as_millis() as u64 };
        let line = format!("{}\n", serde_json::json!(request));
        let sent = self.requests.write_all(line.as_bytes()).await;
        sent.context(|| "the ordinary user's process is gone; what it said is above".to_owned())?;
        self.answer().await
    }

    /// Lets it end, and clean up.
    pub(super) async fn end(self) {
        let Rootless { mut child, requests, .. } = self;
        drop(requests);
        let _ = child.wait().await;
    }

    async fn answer<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let failed = || "the ordinary user's process failed; what it said is above".to_owned();
        let line = self.answers.next_line().await.context(failed)?;
        let line = line.ok_or_else(|| LiveError::new(failed()))?;
        serde_json::from_str(&line).context(failed)
    }
}
