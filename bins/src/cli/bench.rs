//! `ol bench`: what things cost on this machine.
//!
//! `ol bench start` measures starts: create → first answer of a function that does nothing → destroy.
//! The kinds take turns within each round, since a machine's speed changes from minute to minute; a
//! ratio is the median of the rounds' ratios.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use http_body_util::BodyExt;
use openlambda_core::function::Digest;
use openlambda_core::invocation::{Invocation, RequestHead, RequestIds, full_body};
use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::{Isolation, NoLog, SandboxFactory, SandboxSpec};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_sandbox::NOOP_BOOTSTRAP;
use openlambda_sandbox::sys::Spawner;
use serde::Serialize;

use super::{block_on, print, print_json, table};
use crate::Catalog;
use crate::catalog::SandboxContext;
use crate::error::{CliError, Context, Result};

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Subcommand, Debug)]
enum Bench {
    /// Create a sandbox, get its first answer, destroy it
    Start(StartArgs),
}

#[derive(Args, Debug)]
struct StartArgs {
    /// The kind of sandbox
    #[arg(long, value_name = "NAME", default_value = "auto")]
    sandbox: String,
    /// A kind to compare with, or runc (the program, on the same function); may be given more than
    /// once
    #[arg(long, value_name = "NAME")]
    against: Vec<String>,
    /// How many at once
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', default_value = "1,10")]
    concurrency: Vec<usize>,
    /// What starts: noop (a static program) or python (f.py that returns its event)
    #[arg(long, default_value = "noop", value_parser = ["noop", "python"])]
    function: String,
    /// Rounds in which the kinds take turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each turn lasts, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

/// One kind at one concurrency.
#[derive(Debug, Serialize)]
struct Row {
    sandbox: String,
    isolation: &'static str,
    concurrency: usize,
    starts: usize,
    p50_ms: f64,
    p99_ms: f64,
    per_second: f64,
}

/// How many times faster `of` is.
#[derive(Debug, Serialize)]
struct Ratio {
    of: String,
    against: String,
    concurrency: usize,
    p50: f64,
    throughput: f64,
    /// The lowest and the highest of the rounds' ratios of throughput.
    spread: [f64; 2],
}

pub(super) fn bench(args: &BenchArgs, catalog: &Catalog) -> Result<ExitCode> {
    match &args.what {
        Bench::Start(args) => block_on(start(args, catalog)),
    }
}

/// What is measured: a factory of ours, or a program beside it.
enum Side {
    Factory(Arc<dyn SandboxFactory>),
    Runc(PathBuf),
}

/// One turn: how long each start took, and how many there were in a second.
#[derive(Debug, Default)]
struct Turn {
    times: Vec<Duration>,
    per_second: f64,
}

async fn start(args: &StartArgs, catalog: &Catalog) -> Result<ExitCode> {
    let folder = tempfile::tempdir().context(|| "cannot make a temporary folder".to_owned())?;
    let code = function(folder.path(), &args.function)?;
    let clock = Arc::new(SystemClock::new());
    let spawner = Spawner::start().context(|| "cannot start a thread".to_owned())?;
    let mut sides = Vec::new();
    for name in std::iter::once(&args.sandbox).chain(&args.against) {
        let (name, isolation, side) = if name == "runc" {
            let bundle = runc_bundle(folder.path(), &code, &args.function)?;
            ("runc".to_owned(), "namespaces", Side::Runc(bundle))
        } else {
            let entry = catalog.sandbox_entry(name)?;
            let state_dir = folder.path().join(entry.name);
            std::fs::create_dir_all(&state_dir)
                .context(|| format!("cannot make {}", state_dir.display()))?;
            let factory = (entry.build)(SandboxContext {
                volumes_dir: state_dir.join("volumes"),
                mark: format!("ol-bench-{}-{}", std::process::id(), entry.name),
                state_dir,
                spawner: spawner.clone(),
                clock: clock.clone(),
            });
            let factory = factory.context(|| format!("{} does not work here", entry.name))?;
            let isolation = match factory.capabilities().isolation {
                Isolation::None => "none",
                Isolation::Namespaces => "namespaces",
                _ => "kernel",
            };
            (entry.name.to_owned(), isolation, Side::Factory(factory))
        };
        sides.push((name, isolation, side));
    }
    let manifest = Manifest::load(&code).context(|| "the function is not valid".to_owned())?;
    let bench =
        Arc::new(Starts { code, manifest: Arc::new(manifest), clock, ids: RequestIds::new(1) });

    let mut turns: BTreeMap<(usize, usize), Vec<Turn>> = BTreeMap::new();
    let measured = async {
        for (name, _, side) in &sides {
            // What is made once (a compiled bootstrap, a pool) is no part of a start.
            bench.turn(side, 2, Duration::from_millis(500)).await.context(|| name.clone())?;
        }
        for _ in 0..args.rounds {
            for &concurrency in &args.concurrency {
                for (n, (name, _, side)) in sides.iter().enumerate() {
                    let time = Duration::try_from_secs_f64(args.seconds)
                        .context(|| "--seconds is not a time".to_owned())?;
                    let turn = bench.turn(side, concurrency, time).await;
                    let turn = turn.context(|| format!("{name} at {concurrency}"))?;
                    turns.entry((n, concurrency)).or_default().push(turn);
                }
            }
        }
        Ok(())
    };
    let measured: Result<()> = measured.await;
    for (_, _, side) in &sides {
        if let Side::Factory(factory) = side {
            factory.shutdown().await;
        }
    }
    measured?;

    let mut rows = Vec::new();
    let mut ratios = Vec::new();
    for &concurrency in &args.concurrency {
        for (n, (name, isolation, _)) in sides.iter().enumerate() {
            let turns_of = &turns[&(n, concurrency)];
            let times: Vec<f64> = turns_of.iter().flat_map(|turn| &turn.times).map(ms).collect();
            rows.push(Row {
                sandbox: name.clone(),
                isolation,
                concurrency,
                starts: times.len(),
                p50_ms: quantile(times.clone(), 0.5),
                p99_ms: quantile(times, 0.99),
                per_second: quantile(turns_of.iter().map(|t| t.per_second).collect(), 0.5),
            });
            if n == 0 {
                continue;
            }
            let pairs = || turns[&(0, concurrency)].iter().zip(turns_of);
            let p50 = |turn: &Turn| quantile(turn.times.iter().map(ms).collect(), 0.5);
            let throughput: Vec<f64> = pairs().map(|(a, b)| a.per_second / b.per_second).collect();
            ratios.push(Ratio {
                of: sides[0].0.clone(),
                against: name.clone(),
                concurrency,
                p50: quantile(pairs().map(|(a, b)| p50(b) / p50(a)).collect(), 0.5),
                spread: [quantile(throughput.clone(), 0.0), quantile(throughput.clone(), 1.0)],
                throughput: quantile(throughput, 0.5),
            });
        }
    }
    report(args, &rows, &ratios);
    Ok(ExitCode::SUCCESS)
}

fn report(args: &StartArgs, rows: &[Row], ratios: &[Ratio]) {
    if args.json {
        return print_json(&serde_json::json!({ "rows": rows, "ratios": ratios }));
    }
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.sandbox.clone(),
                row.isolation.to_owned(),
                row.concurrency.to_string(),
                row.starts.to_string(),
                format!("{:.2}", row.p50_ms),
                format!("{:.2}", row.p99_ms),
                format!("{:.1}", row.per_second),
            ]
        })
        .collect();
    let headings = ["SANDBOX", "ISOLATION", "AT ONCE", "STARTS", "P50 ms", "P99 ms", "A SECOND"];
    print(&table(&headings, &cells));
    for Ratio { of, against, concurrency, p50, throughput, spread: [low, high] } in ratios {
        print(&format!(
            "{of} against {against} at {concurrency}: {p50:.1} times faster at the median, \
             {throughput:.1} times the throughput ({low:.1} to {high:.1})\n"
        ));
    }
}

struct Starts {
    code: PathBuf,
    manifest: Arc<Manifest>,
    clock: Arc<SystemClock>,
    ids: RequestIds,
}

impl Starts {
    /// Starts one after another, so many at once, for a time.
    async fn turn(
        self: &Arc<Self>,
        side: &Side,
        concurrency: usize,
        time: Duration,
    ) -> Result<Turn> {
        let begin = self.clock.now();
        let end = begin + time;
        let mut tasks = Vec::new();
        for _ in 0..concurrency {
            let this = Arc::clone(self);
            let side = match side {
                Side::Factory(factory) => Side::Factory(Arc::clone(factory)),
                Side::Runc(bundle) => Side::Runc(bundle.clone()),
            };
            tasks.push(tokio::spawn(async move {
                let mut times = Vec::new();
                loop {
                    let begin = this.clock.now();
                    match &side {
                        Side::Factory(factory) => this.start(&**factory).await?,
                        Side::Runc(bundle) => this.runc(bundle).await?,
                    }
                    times.push(this.clock.now().since(begin));
                    if this.clock.now() >= end {
                        return Ok::<_, CliError>(times);
                    }
                }
            }));
        }
        let mut turn = Turn::default();
        for task in tasks {
            let times = task.await.context(|| "a task of the bench failed".to_owned())?;
            turn.times.extend(times?);
        }
        let took = self.clock.now().since(begin);
        turn.per_second = turn.times.len() as f64 / took.as_secs_f64();
        Ok(turn)
    }

    async fn start(&self, factory: &dyn SandboxFactory) -> Result<()> {
        let spec = SandboxSpec::new(
            "bench".parse().context(String::new)?,
            Digest::from_bytes([0; 32]),
            self.code.clone(),
            Arc::clone(&self.manifest),
            Arc::new(NoLog),
        );
        let created = factory.create(spec).await.context(|| "create failed".to_owned())?;
        let invocation = Invocation {
            id: self.ids.next(),
            function: "bench".parse().context(String::new)?,
            deadline: Time::MAX,
            deadline_unix_ms: self.clock.unix_millis() + 60_000,
            head: RequestHead::default(),
            body: full_body("null"),
        };
        let reply = created.sandbox.invoke(invocation).await;
        let reply = reply.context(|| "the first call failed".to_owned())?;
        let body = reply.body.collect().await.map_err(|error| CliError::new(error.to_string()))?;
        if body.to_bytes() != "null" {
            return Err(CliError::new("the answer is wrong"));
        }
        created.sandbox.destroy().await;
        Ok(())
    }

    /// `runc run` of the function without its conversation: it starts and ends by itself.
    async fn runc(&self, bundle: &Path) -> Result<()> {
        let id = format!("ol-bench-{}", self.ids.next());
        let run = tokio::process::Command::new("runc")
            .arg("run")
            .arg("--bundle")
            .arg(bundle)
            .arg(&id)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .output();
        let output = run.await.context(|| {
            "runc does not run; install it (apt-get install runc), or leave out --against runc"
                .to_owned()
        })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(CliError::new(format!("runc failed: {}", said.trim())));
        }
        Ok(())
    }
}

/// The function's folder.
fn function(folder: &Path, kind: &str) -> Result<PathBuf> {
    let code = folder.join("code");
    let write = || {
        std::fs::create_dir(&code)?;
        std::fs::set_permissions(&code, std::fs::Permissions::from_mode(0o755))?;
        if kind == "python" {
            return std::fs::write(code.join("f.py"), "def f(event):\n    return event\n");
        }
        std::fs::write(code.join("bootstrap"), NOOP_BOOTSTRAP)?;
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(code.join("bootstrap"), executable)
    };
    write().context(|| "cannot write the function".to_owned())?;
    Ok(code)
}

/// A bundle for `runc`: the same isolation (own namespaces but for users, no capabilities, its limits),
/// a root with nothing but the program, or the machine's own /usr for Python.
fn runc_bundle(folder: &Path, code: &Path, kind: &str) -> Result<PathBuf> {
    let bundle = folder.join("runc");
    let args: &[&str] = match kind {
        "python" => &["/usr/bin/python3", "-S", "-s", "-B", "-c", "0"],
        // It ends at once when there is nobody to speak with.
        _ => &["/var/task/bootstrap"],
    };
    let mount = |destination: &str, source: &Path| {
        serde_json::json!({
            "destination": destination, "type": "bind", "source": source,
            "options": ["bind", "ro", "nosuid", "nodev"],
        })
    };
    let mut mounts = vec![
        serde_json::json!({ "destination": "/proc", "type": "proc", "source": "proc" }),
        serde_json::json!({
            "destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "size=64m"],
        }),
        serde_json::json!({
            "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "mode=755", "size=64k"],
        }),
        mount("/var/task", code),
    ];
    for place in ["/usr", "/lib", "/lib64", "/bin"] {
        if kind == "python" {
            mounts.push(mount(place, Path::new(place)));
        }
    }
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
        .map(|kind| serde_json::json!({ "type": kind }));
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 1000, "gid": 1000 },
            "args": args,
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": true,
        },
        "root": { "path": "root", "readonly": true },
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "resources": { "memory": { "limit": 128 << 20 }, "pids": { "limit": 64 } },
        },
    });
    let write = || {
        for place in [
            "root/proc",
            "root/dev",
            "root/tmp",
            "root/var/task",
            "root/usr",
            "root/lib",
            "root/lib64",
            "root/bin",
        ] {
            std::fs::create_dir_all(bundle.join(place))?;
        }
        std::fs::write(bundle.join("config.json"), config.to_string())
    };
    write().context(|| "cannot write a bundle for runc".to_owned())?;
    Ok(bundle)
}

fn ms(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The nearest-rank quantile; 0 of none.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}
