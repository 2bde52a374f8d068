//! The supervisor of `ol up`: it runs one balancer, one registry and the workers, each as a process.
//!
//! ```text
//!           spawn            ready line             exits by itself
//! (nothing) ─────▶ starting ───────────▶ running ──────────────────▶ waiting ──backoff──▶ starting
//!                     │                     │                           │
//!                     └── exits: the first start fails, a later one waits again
//!                                           └── stop: TERM, then KILL after the grace ──▶ (nothing)
//! ```
//!
//! Balancer and registry keep their addresses over restarts, since others know them; a worker announces
//! its new address. Daemons get SIGTERM when the supervisor dies, also by kill −9.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use openlambda_core::backoff::Backoff;
use openlambda_core::random::fresh_seed;
use openlambda_core::serving::Secret;
use openlambda_sandbox::sys::{Child, CommandSpec, MARK, Output, Spawner};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::cluster::{ClusterState, DataDir, RegistryState, WorkerState, no_room_for};
use crate::error::{CliError, Context, Result};
use crate::private;
use crate::settings::{self, Config};
use crate::version::VERSION;

/// The pauses before a dead daemon is started again.
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);

/// How large a daemon's own log may become, bytes, and how often that is looked at.
const MOST_LOG: u64 = 16 << 20;
const LOOK_AT_LOGS: Duration = Duration::from_secs(5);

/// What the cluster is to be: its settings, checked, with nothing left to be found out.
#[derive(Clone, Debug)]
pub(crate) struct ClusterSpec {
    pub(crate) config: Config,
    /// Where the balancer writes down its requests if the settings name no access log.
    pub(crate) requests: Option<PathBuf>,
}

/// A cluster that runs until it is stopped.
#[derive(Debug)]
pub(crate) struct Supervisor {
    shared: Arc<Shared>,
    /// In the order in which they were started.
    daemons: Vec<Supervised>,
    /// Keeps their logs from filling the disk.
    _logs: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    dir: DataDir,
    spawner: Arc<Spawner>,
    program: PathBuf,
    /// The file that all daemons read.
    settings: PathBuf,
    /// How long a daemon may take until it serves, and until it has ended.
    limits: (Duration, Duration),
    state: Mutex<ClusterState>,
    /// The daemons that have not ended for good.
    left: Mutex<BTreeSet<String>>,
}

/// Which daemons of a cluster that is being stopped have not ended yet.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    shared: Arc<Shared>,
}

impl Left {
    /// Their names, as a person calls them.
    pub(crate) fn names(&self) -> Vec<String> {
        let left = self.shared.left.lock();
        let called = |name: &String| match name.as_str() {
            "lb" => "the balancer".to_owned(),
            "registry" => "the registry".to_owned(),
            _ => name.clone(),
        };
        // The registry waits for the others itself.
        let others = left.iter().filter(|name| left.len() == 1 || name.as_str() != "registry");
        others.map(called).collect()
    }
}

#[derive(Debug)]
struct Supervised {
    /// Dropped, it is the word to stop.
    stop: DropGuard,
    task: JoinHandle<()>,
}

/// How one daemon is started.
#[derive(Clone, Debug)]
struct DaemonSpec {
    /// Its name in logs: `lb`, `registry`, `worker-1`.
    name: String,
    args: Vec<String>,
    /// The address to listen on first; a restart takes the one that it got.
    listen: SocketAddr,
    keeps_address: bool,
}

#[derive(Deserialize)]
struct ReadyLine {
    ready: String,
}

impl Supervisor {
    /// Starts everything, in order, and waits until all of it serves.
    ///
    /// # Errors
    ///
    /// What the first daemon that did not start said of it; the others are stopped again.
    pub(crate) async fn start(dir: DataDir, spec: &ClusterSpec) -> Result<Supervisor> {
        let program = std::env::current_exe()
            .context(|| "cannot find the path of this program".to_owned())?;
        let spawner = Spawner::start().context(|| "cannot start a thread".to_owned())?;
        let secret_file = dir.secret_file(spec.config.cluster.secret_file.as_deref())?;
        let secret = Secret::read(&secret_file)?;
        let state = ClusterState {
            release: VERSION.to_owned(),
            pid: std::process::id(),
            policy: spec.config.balancer.policy.to_string(),
            secret_file: Some(secret_file),
            secret: Some(secret),
            // The registry is told when the others have ended.
            stops_within: 2.0 * spec.config.cluster.stop_grace_seconds.get(),
            ..ClusterState::default()
        };
        let cluster = &spec.config.cluster;
        let settings = dir.write_settings(&spec.config)?;
        let limits = (cluster.start_limit_seconds.into(), cluster.stop_grace_seconds.into());
        let state = Mutex::new(state);
        let left = Mutex::default();
        let shared = Arc::new(Shared { dir, spawner, program, settings, limits, state, left });
        let logs = tokio::spawn(bound_logs(shared.dir.join("logs")));
        let logs = AbortOnDropHandle::new(logs);
        let mut supervisor = Supervisor { shared, daemons: Vec::new(), _logs: logs };
        match supervisor.start_all(spec).await {
            Ok(()) => Ok(supervisor),
            Err(error) => {
                supervisor.stop().await;
                Err(error)
            }
        }
    }

    async fn start_all(&mut self, spec: &ClusterSpec) -> Result<()> {
        let config = &spec.config;
        let path = |below: &str| self.shared.dir.join(below).display().to_string();
        let (functions, volumes) = (path("functions"), path("volumes"));
        let socket = path("balancer.sock");
        let audit = path("logs/audit-registry.jsonl");
        let audit_of_balancer = path("logs/audit-balancer.jsonl");
        let registry = match config.cluster.registry.as_str() {
            "native" => {
                let store = config.registry.store.as_ref().map(|path| path.display().to_string());
                let store = store.unwrap_or_else(|| path("registry"));
                let args = ["registry", "--store", &store, "--audit-log", &audit];
                let url =
                    self.start_daemon("registry", &args, config.registry.listen, true).await?;
                format!("native={url}")
            }
            "dir" => {
                std::fs::create_dir_all(&functions)
                    .context(|| format!("cannot make {functions}"))?;
                format!("dir={functions}")
            }
            place => place.to_owned(),
        };
        let kind = registry.split_once('=').map_or("", |(kind, _)| kind).to_owned();
        self.shared.update(|state| {
            let pid = state.registry.pid;
            state.registry = RegistryState { kind, spec: registry.clone(), pid };
        });
        let mut args = vec!["lb", "--registry", &registry, "--socket", &socket];
        args.extend(["--audit-log", &audit_of_balancer, "--volumes-dir", &volumes]);
        let requests = spec.requests.as_ref().filter(|_| config.balancer.access_log.is_none());
        let requests = requests.map(|path| path.display().to_string());
        args.extend(requests.iter().flat_map(|path| ["--access-log", path]));
        let balancer = self.start_daemon("lb", &args, config.balancer.listen, true).await?;
        let balancer = reachable(&balancer);
        self.shared.update(|state| state.url.clone_from(&balancer));
        for n in 1..=config.cluster.workers.get() {
            let id = format!("worker-{n}");
            let state_dir = self.shared.dir.worker_dir(&id);
            private::make_folder(&state_dir)?;
            let state_dir = state_dir.display().to_string();
            let mut args = vec!["worker", "--name", &id, "--registry", &registry];
            args.extend(["--state-dir", &state_dir, "--volumes-dir", &volumes]);
            args.extend(["--balancer", &balancer]);
            self.shared.update(|state| {
                let sandbox = config.worker.sandbox.clone();
                state.workers.push(WorkerState { id: id.clone(), sandbox, ..Default::default() });
            });
            self.start_daemon(&id, &args, config.worker.listen, false).await?;
        }
        self.wait_for_workers(&balancer, config.cluster.workers.get()).await?;
        self.shared.update(|state| state.ready = true);
        Ok(())
    }

    /// Starts a daemon and its supervision. Returns its URL once it serves.
    async fn start_daemon(
        &mut self,
        name: &str,
        args: &[&str],
        listen: SocketAddr,
        keeps_address: bool,
    ) -> Result<String> {
        let secret_file = self.shared.state.lock().secret_file.clone();
        let secret_file = secret_file
            .into_iter()
            .flat_map(|file| ["--secret-file".to_owned(), file.display().to_string()]);
        let spec = DaemonSpec {
            name: name.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).chain(secret_file).collect(),
            listen,
            keeps_address,
        };
        let stopped = CancellationToken::new();
        let stop = stopped.clone().drop_guard();
        let (child, url) = self.shared.start(&spec, &stopped).await?;
        self.shared.left.lock().insert(name.to_owned());
        let task = tokio::spawn(supervise(self.shared.clone(), spec, child, url.clone(), stopped));
        self.daemons.push(Supervised { stop, task });
        Ok(url)
    }

    /// Waits until the balancer has all workers in its rotation.
    async fn wait_for_workers(&self, balancer: &str, workers: u64) -> Result<()> {
        let url = format!("{balancer}{}", openlambda_core::wire::CLUSTER_PATH);
        for _ in 0..600 {
            let request = http::Request::get(&url).body(bytes::Bytes::new());
            let request = request.context(|| format!("{url} is not an address"))?;
            let secret = self.shared.state.lock().secret.clone();
            if let Ok(answer) = crate::http_client::send(request, secret.as_ref()).await
                && let Ok(status) =
                    serde_json::from_slice::<openlambda_core::wire::BalancerStatus>(answer.body())
                && status.workers.iter().filter(|worker| worker.state == "ready").count()
                    >= workers as usize
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let logs = self.shared.dir.join("logs");
        Err(CliError::new(format!(
            "the workers did not join the balancer in time; see {}",
            logs.display()
        )))
    }

    /// Tells which daemons are still there, also while it stops.
    pub(crate) fn left(&self) -> Left {
        Left { shared: self.shared.clone() }
    }

    /// Stops everything: balancer and workers finish the calls under way side by side, and the
    /// registry, which was started first and which they may still need, goes last.
    pub(crate) async fn stop(self) {
        self.shared.update(|state| state.ready = false);
        let mut daemons = self.daemons;
        let others = daemons.split_off(daemons.len().min(1));
        for group in [others, daemons] {
            let told = |Supervised { stop, task }| {
                drop(stop);
                task
            };
            let tasks: Vec<_> = group.into_iter().map(told).collect();
            for task in tasks {
                let _ = task.await;
            }
        }
    }
}

impl Shared {
    /// Starts a daemon and waits for its ready line.
    async fn start(
        &self,
        spec: &DaemonSpec,
        stopped: &CancellationToken,
    ) -> Result<(Child, String)> {
        let log = self.dir.join("logs").join(format!("{}.log", spec.name));
        let open = private::open_file(&log, File::options().create(true).append(true));
        let file = open.context(|| format!("cannot write {}", log.display()))?;
        let begin = file.metadata().map_or(0, |metadata| metadata.len());
        let mut command =
            CommandSpec::new(&self.program).env(MARK, format!("{}/{}", self.dir.mark(), spec.name));
        command = command.arg("daemon");
        for arg in &spec.args {
            command = command.arg(arg);
        }
        command = command.arg("--listen").arg(spec.listen.to_string());
        command = command.arg("--config").arg(&self.settings);
        // What the environment sets is in that file already, below what flags said.
        command.inherit_env = false;
        let settings = settings::variables();
        let others = std::env::vars_os().filter(|(name, _)| !settings.contains(name));
        for (name, value) in others {
            command.env.entry(name).or_insert(value);
        }
        command.parent_death = Some(Signal::TERM);
        command.stdout = Output::Pipe;
        command.stderr = Output::File(file);
        let spawned = self.spawner.spawn(command).await;
        let mut child = spawned.context(|| format!("cannot start {}", spec.name))?;
        let stdout = child.take_stdout().expect("its output is a pipe");
        let stdout = pipe::Receiver::from_owned_fd(stdout)
            .context(|| "cannot read a daemon's output".to_owned())?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::select! {
            line = tokio::time::timeout(self.limits.0, lines.next_line()) => line,
            () = stopped.cancelled() => Ok(Ok(None)),
        };
        let late = line.is_err();
        let ready = match line {
            Ok(Ok(Some(line))) => serde_json::from_str::<ReadyLine>(&line).ok(),
            _ => None,
        };
        if let Some(ReadyLine { ready }) = ready {
            self.note(spec, Some(child.pid().as_raw_nonzero().get() as u32), Some(&ready));
            return Ok((child, ready));
        }
        child.kill_group();
        child.wait().await;
        let (name, log_name) = (&spec.name, log.display());
        let silent = match late {
            true => format!(
                "{name} does not serve after {} s, which start_limit_seconds can raise; see {log_name}",
                self.limits.0.as_secs_f64()
            ),
            false => match no_room_for(&log) {
                Some(full) => format!("{name} did not start: {full}"),
                None => format!("{name} did not start; see {log_name}"),
            },
        };
        Err(CliError::new(last_words(&log, begin).unwrap_or(silent)))
    }

    /// Writes down a daemon's process and address.
    fn note(&self, spec: &DaemonSpec, pid: Option<u32>, url: Option<&str>) {
        self.update(|state| match spec.name.as_str() {
            "lb" => state.balancer_pid = pid,
            "registry" => state.registry.pid = pid,
            name => {
                if let Some(worker) = state.workers.iter_mut().find(|worker| worker.id == name) {
                    worker.pid = pid;
                    if let Some(url) = url {
                        worker.url = url.to_owned();
                    }
                }
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut ClusterState)) {
        let mut state = self.state.lock();
        change(&mut state);
        if let Err(error) = self.dir.write_state(&state) {
            tracing::warn!(%error, "cannot write cluster.json");
        }
    }
}

/// Starts a daemon again whenever it ends by itself, until it is told to stop.
async fn supervise(
    shared: Arc<Shared>,
    spec: DaemonSpec,
    child: Child,
    url: String,
    stopped: CancellationToken,
) {
    let name = spec.name.clone();
    keep_running(&shared, spec, child, url, stopped).await;
    shared.left.lock().remove(&name);
}

async fn keep_running(
    shared: &Shared,
    mut spec: DaemonSpec,
    mut child: Child,
    url: String,
    stopped: CancellationToken,
) {
    if spec.keeps_address
        && let Some(address) = url.strip_prefix("http://").and_then(|url| url.parse().ok())
    {
        spec.listen = address;
    }
    loop {
        let status = tokio::select! {
            status = child.wait() => status,
            () = stopped.cancelled() => {
                child.signal(Signal::TERM);
                // One that somebody has stopped would not hear it.
                child.signal(Signal::CONT);
                if tokio::time::timeout(shared.limits.1, child.wait()).await.is_err() {
                    tracing::warn!(daemon = spec.name, "did not stop in time and was killed");
                }
                child.kill_group();
                child.wait().await;
                return;
            }
        };
        tracing::warn!(daemon = spec.name, ?status, "ended; starting it again");
        child.kill_group();
        shared.note(&spec, None, None);
        let mut backoff = Backoff::new(BACKOFF, fresh_seed());
        child = loop {
            tokio::select! {
                () = tokio::time::sleep(backoff.pause()) => {}
                () = stopped.cancelled() => return,
            }
            let started = shared.start(&spec, &stopped).await;
            match started {
                Ok((child, _)) => break child,
                Err(_) if stopped.is_cancelled() => return,
                Err(error) => {
                    tracing::warn!(daemon = spec.name, %error, "did not start again");
                }
            }
        };
    }
}

/// Keeps the daemons' own logs below a size, for as long as it is polled: one that is larger becomes `….1`,
/// which replaces an older one, and begins anew. The daemons hold their files open, and append to them.
async fn bound_logs(folder: PathBuf) {
    loop {
        tokio::time::sleep(LOOK_AT_LOGS).await;
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_log = path.extension().is_some_and(|extension| extension == "log");
            let Ok(found) = entry.metadata() else { continue };
            if !is_log || !found.is_file() || found.len() < MOST_LOG {
                continue;
            }
            if let Err(error) = begin_anew(&path) {
                tracing::warn!(%error, log = %path.display(), "cannot make the log shorter");
            }
        }
    }
}

/// What a daemon writes between the two steps is lost.
fn begin_anew(path: &Path) -> io::Result<()> {
    let mut log = private::open_file(path, File::options().read(true).write(true))?;
    let mut older = path.as_os_str().to_owned();
    older.push(".1");
    let mut older = private::open_file(
        Path::new(&older),
        File::options().create(true).truncate(true).write(true),
    )?;
    // On a full disk it ends in the middle; the log itself has to be shorter, then most of all.
    let copied = io::copy(&mut log, &mut older);
    log.set_len(0)?;
    copied.map(drop)
}

/// The last line that a daemon which did not start left in its log: it says why.
fn last_words(log: &Path, begin: u64) -> Option<String> {
    let bytes = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(bytes.get(usize::try_from(begin).ok()?..)?).into_owned();
    let line = text.lines().rev().find(|line| line.starts_with("ol-"))?;
    Some(line.to_owned())
}

/// The address at which this machine reaches a daemon that listens on all addresses.
fn reachable(url: &str) -> String {
    url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
}
