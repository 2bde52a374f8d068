//! `ol-worker`.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use openlambda_core::catalog::Choice;
use openlambda_core::keep_alive::{self, DEFAULT_TTL};
use openlambda_core::sandbox::Isolation;
use openlambda_core::scheduler::RunningLimit;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_sandbox::sys::{MARK, Spawner};
use serde::Deserialize;

use super::{listen, say_ready, stop_signal};
use crate::Catalog;
use crate::catalog::SandboxContext;
use crate::error::{CliError, Context, Result};
use crate::settings::{Settings, complete};

/// The options of `ol-worker`, on the command line and in its file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Read options from this TOML file; flags and the environment go before it.
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Stable name of this worker, different from every other one's.
    #[arg(long, env = "OPENLAMBDA_WORKER_NAME")]
    name: Option<String>,
    /// Address to listen on [default: 127.0.0.1:0].
    #[arg(long, value_name = "ADDR", env = "OPENLAMBDA_WORKER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Address that balancers reach it at, when it is not the one it listens on.
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Folder for unpacked bundles, sandboxes and logs; no two workers share one.
    #[arg(long, value_name = "DIR", env = "OPENLAMBDA_WORKER_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Folder for functions' volumes [default: volumes in the state folder].
    #[arg(long, value_name = "DIR")]
    volumes_dir: Option<PathBuf>,
    /// Balancer to announce itself to; may be given more than once.
    #[arg(long = "balancer", value_name = "URL")]
    balancers: Vec<String>,
    /// Registry to pull from: native=URL or dir=FOLDER.
    #[arg(long, value_name = "NAME=PLACE", env = "OPENLAMBDA_REGISTRY")]
    registry: Option<String>,
    /// Kind of sandbox [default: auto].
    #[arg(long, value_name = "NAME", env = "OPENLAMBDA_SANDBOX")]
    sandbox: Option<String>,
    /// Memory pool for instances, MiB [default: 4096].
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u64>,
    /// Keep-alive policy, with parameters after commas; `ol policies` lists them [default: ttl].
    #[arg(long, value_name = "NAME[,KEY=VALUE]")]
    keep_alive: Option<Choice>,
    /// How long the keep-alive policy ttl keeps an idle instance, unless it says so itself
    /// [default: 600].
    #[arg(long, value_name = "SECONDS")]
    ttl_seconds: Option<f64>,
    /// Queue policy, which orders the waiting calls of all functions; `ol policies` lists them
    /// [default: fifo].
    #[arg(long, value_name = "NAME[,KEY=VALUE]")]
    queue_policy: Option<Choice>,
    /// How many calls run at once: none, a number, a multiple of the processors (2x), or load to follow
    /// it (load=1.5 for 1.5 threads per processor) [default: none].
    #[arg(long, value_name = "LIMIT")]
    running_limit: Option<String>,
    /// Pause an instance after this time without use [default: never].
    #[arg(long, value_name = "SECONDS")]
    pause_after_seconds: Option<f64>,
    /// How long a call may wait for a slot [default: 35].
    #[arg(long, value_name = "SECONDS")]
    max_wait_seconds: Option<f64>,
    /// Share of the load beside other workers [default: 1].
    #[arg(long)]
    weight: Option<f64>,
    /// Connections at once; one more waits until another ends [default: 10000].
    #[arg(long, value_name = "COUNT")]
    most_connections: Option<usize>,
    /// How long a client may take for the head of a request, or be silent between two [default: 30].
    #[arg(long, value_name = "SECONDS")]
    head_seconds: Option<f64>,
    /// Write a record of every call to this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// Write everything that the worker's decisions follow from to this file, for `ol replay`.
    #[arg(long, value_name = "FILE")]
    inputs: Option<PathBuf>,
}

impl Settings for Options {
    fn defaults() -> String {
        format!(
            r#"
            listen = "127.0.0.1:0"
            sandbox = "auto"
            memory_mb = 4096
            keep_alive = "{keep_alive}"
            ttl_seconds = {ttl}
            queue_policy = "fifo"
            running_limit = "none"
            max_wait_seconds = 35
            weight = 1
            most_connections = 10000
            head_seconds = 30
            "#,
            keep_alive = keep_alive::DEFAULT,
            ttl = DEFAULT_TTL.as_secs(),
        )
    }

    fn or(self, file: Options) -> Options {
        Options {
            config: self.config,
            name: self.name.or(file.name),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            state_dir: self.state_dir.or(file.state_dir),
            volumes_dir: self.volumes_dir.or(file.volumes_dir),
            balancers: if self.balancers.is_empty() { file.balancers } else { self.balancers },
            registry: self.registry.or(file.registry),
            sandbox: self.sandbox.or(file.sandbox),
            memory_mb: self.memory_mb.or(file.memory_mb),
            keep_alive: self.keep_alive.or(file.keep_alive),
            ttl_seconds: self.ttl_seconds.or(file.ttl_seconds),
            queue_policy: self.queue_policy.or(file.queue_policy),
            running_limit: self.running_limit.or(file.running_limit),
            pause_after_seconds: self.pause_after_seconds.or(file.pause_after_seconds),
            max_wait_seconds: self.max_wait_seconds.or(file.max_wait_seconds),
            weight: self.weight.or(file.weight),
            most_connections: self.most_connections.or(file.most_connections),
            head_seconds: self.head_seconds.or(file.head_seconds),
            records: self.records.or(file.records),
            inputs: self.inputs.or(file.inputs),
        }
    }
}

impl Options {
    fn into_config(self, catalog: &Catalog) -> Result<WorkerConfig> {
        let name = required(self.name, "name")?;
        let mut config = WorkerConfig::new(name, required(self.state_dir, "state-dir")?);
        config.balancers = self.balancers;
        config.advertise = self.advertise;
        config.records = self.records;
        config.inputs = self.inputs;
        if let Some(memory) = self.memory_mb {
            config.scheduler.memory = memory << 20;
        }
        let seconds = |flag: &str, value: f64| {
            Duration::try_from_secs_f64(value)
                .map_err(|_| CliError::new(format!("--{flag} {value} is not a time; use seconds")))
        };
        let ttl = self.ttl_seconds.map(|ttl| seconds("ttl-seconds", ttl)).transpose()?;
        let keep_alive = self.keep_alive.unwrap_or_else(|| Choice::named(keep_alive::DEFAULT));
        let keep_alive = keep_alive::or_ttl(keep_alive, ttl.unwrap_or(DEFAULT_TTL));
        config.keep_alive = catalog.keep_alive_policies().maker(&keep_alive)?;
        if let Some(name) = self.queue_policy {
            config.queue = catalog.queue_policies().maker(&name)?;
        }
        if let Some(limit) = self.running_limit {
            let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
            config.scheduler.running = RunningLimit::parse(&limit, processors as u32)
                .map_err(|error| CliError::new(format!("--running-limit: {error}")))?;
        }
        if let Some(after) = self.pause_after_seconds {
            config.scheduler.pause_after = Some(seconds("pause-after-seconds", after)?);
        }
        if let Some(wait) = self.max_wait_seconds {
            config.max_wait = seconds("max-wait-seconds", wait)?;
        }
        if let Some(most) = self.most_connections {
            config.patience.most_connections = most;
        }
        if let Some(head) = self.head_seconds {
            // A balancer keeps a connection without use for 5 s, and would send a call over one that
            // is being closed.
            if head < 6.0 {
                let message = format!("--head-seconds {head} is too short; use 6 or more");
                return Err(CliError::new(message));
            }
            config.patience.head = seconds("head-seconds", head)?;
        }
        if let Some(weight) = self.weight {
            if !(weight > 0.0 && weight.is_finite()) {
                let message = format!("--weight {weight} is not a share; use more than 0");
                return Err(CliError::new(message));
            }
            config.weight = weight;
        }
        Ok(config)
    }
}

fn required<T>(value: Option<T>, flag: &str) -> Result<T> {
    value
        .ok_or_else(|| CliError::new(format!("--{flag} is missing; pass it or put it in --config")))
}

pub(crate) async fn run(options: Options, catalog: &Catalog) -> Result<()> {
    let file = options.config.clone();
    let options = complete(options, file.as_deref())?;
    let stop = stop_signal()?;
    let registry = catalog.open_registry(&required(options.registry.clone(), "registry")?)?;
    let entry = catalog.sandbox_entry(options.sandbox.as_deref().unwrap_or("auto"))?;
    let state_dir = required(options.state_dir.clone(), "state-dir")?;
    std::fs::create_dir_all(&state_dir)
        .context(|| format!("cannot use {}; pass another --state-dir", state_dir.display()))?;
    let spawner = Spawner::start().context(|| "cannot start the spawning thread".to_owned())?;
    let clock = Arc::new(SystemClock::new());
    let factory = (entry.build)(SandboxContext {
        volumes_dir: options.volumes_dir.clone().unwrap_or_else(|| state_dir.join("volumes")),
        mark: mark(&options, &state_dir),
        state_dir,
        spawner,
        clock: clock.clone(),
    })
    .context(|| format!("the sandbox \"{}\" does not work here", entry.name))?;
    if factory.capabilities().isolation == Isolation::None {
        tracing::warn!(
            "sandbox {} does not isolate functions from this machine: run trusted code only",
            entry.name
        );
    }
    let listener =
        listen(options.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))).await?;
    let config = options.into_config(catalog)?;
    let worker = Worker::start(config, factory, registry, clock)
        .await
        .context(|| "the worker does not start".to_owned())?;
    say_ready(&listener)?;
    worker.serve(listener, stop).await.context(|| "the worker ended".to_owned())
}

/// The mark of everything that the worker starts: below its own, which a supervisor gave it, or made
/// from its folder, so that a restart finds what a crash left.
fn mark(options: &Options, state_dir: &std::path::Path) -> String {
    std::env::var(MARK).unwrap_or_else(|_| {
        let folder = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let name = options.name.as_deref().unwrap_or("worker");
        let hash = openlambda_core::hash::stable_hash(0, folder.as_os_str().as_encoded_bytes());
        format!("ol-{hash:016x}-{name}")
    })
}
