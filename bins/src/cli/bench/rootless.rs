//! `sock` as an ordinary user beside `sock` as root: a child process with dropped ids takes the turns.
//!
//! ```text
//! bench ── {"concurrency", "ms"} ──▶ ol bench turns, as nobody ── {"times_ms", "per_second"} ──▶ bench
//! ```

use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use clap::Args;
use openlambda_core::time::Duration;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::lab::Lab;
use super::side::{Side, Turn};
use super::{print, print_json};
use crate::Catalog;
use crate::error::{CliError, Context, Result};

#[derive(Args, Debug)]
pub(super) struct TurnsArgs {
    /// What starts
    #[arg(long)]
    function: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    concurrency: usize,
    ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    isolation: String,
}

/// The child process.
pub(super) struct Rootless {
    child: Child,
    requests: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    pub(super) isolation: String,
}

impl Rootless {
    pub(super) async fn start(function: &str) -> Result<Rootless> {
        if !rustix::process::geteuid().is_root() {
            return Err(CliError::new(
                "--against rootless compares root with an ordinary user, which you are already; run it as \
                 root (sudo)",
            ));
        }
        // Nobody's, by number: no name has to be known.
        const NOBODY: u32 = 65534;
        // By itself, since the way to its file may be closed to others.
        let mut child = Command::new("/proc/self/exe")
            .args(["bench", "turns", "--function", function])
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
            return Err(CliError::new("the child process has no pipes; report it"));
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
        let line = line.ok_or_else(|| CliError::new(failed()))?;
        serde_json::from_str(&line).context(failed)
    }
}

/// What the child process does, until its standard input ends.
pub(super) async fn turns(args: &TurnsArgs, catalog: &Catalog) -> Result<ExitCode> {
    let lab = Arc::new(Lab::new(&args.function)?);
    let side = Side::named(&lab, catalog, "sock", &args.function).await?;
    print_json(&serde_json::json!(Ready { isolation: side.isolation.clone() }));
    let mut requests = BufReader::new(tokio::io::stdin()).lines();
    let served: Result<()> = async {
        while let Some(line) = requests.next_line().await.context(|| "no request".to_owned())? {
            let request: Request = serde_json::from_str(&line)
                .context(|| "the requests are those of ol bench start; run that".to_owned())?;
            let time = Duration::from_millis(request.ms);
            let turn = side.turn(&lab, request.concurrency, time).await?;
            print(&format!("{}\n", serde_json::json!(turn)));
        }
        Ok(())
    }
    .await;
    side.end().await;
    served.map(|()| ExitCode::SUCCESS)
}
