//! The settings of a worker.

use std::net::SocketAddr;
use std::num::NonZero;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use openlambda_core::catalog::Choice;
use openlambda_core::keep_alive::{self, DEFAULT_TTL};
use openlambda_core::queue;
use openlambda_core::scheduler::{InstanceChoice, PauseAfter, RunningLimit};
use openlambda_core::serving::identity::Host;
use openlambda_core::worker::WorkerConfig;
use openlambda_sandbox::Pythons;
use openlambda_sandbox::sock;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use toml::Value;

use super::count::Count;
use super::seconds::Seconds;
use super::section::{Section, word};
use crate::Catalog;
use crate::catalog::SandboxOptions;
use crate::error::{CliError, Result};

/// `[worker]`
#[derive(Args, Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WorkerSettings {
    /// Stable name of this worker; no two workers share one
    #[arg(long, env = "OPENLAMBDA_WORKER_NAME")]
    pub(crate) name: Option<String>,
    /// Address to listen on
    #[arg(long, value_name = "ADDR", env = "OPENLAMBDA_WORKER_LISTEN")]
    pub(crate) listen: SocketAddr,
    /// Address at which balancers reach the worker, if it differs from the one it listens on
    #[arg(long, value_name = "URL")]
    pub(crate) advertise: Option<String>,
    /// Folder for unpacked bundles, sandboxes and logs; no two workers share one
    #[arg(long, value_name = "DIR", env = "OPENLAMBDA_WORKER_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Folder for functions' volumes [default: volumes in the state folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) volumes_dir: Option<PathBuf>,
    /// Balancer to announce itself to; may be given more than once
    #[arg(long = "balancer", value_name = "URL")]
    pub(crate) balancers: Vec<String>,
    /// Name, beside localhost and addresses, by which the worker is called; may be given more than once.
    /// With a port, daemons may reach it by that one, too
    #[arg(long = "host", value_name = "NAME[:PORT]", hide_short_help = true)]
    pub(crate) hosts: Vec<Host>,
    /// File with the cluster's secret, which all its daemons have; `ol secret FILE` makes one
    #[arg(long, value_name = "FILE", env = "OPENLAMBDA_SECRET_FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Registry to pull from: native=URL or dir=FOLDER
    #[arg(long, value_name = "NAME=PLACE", env = "OPENLAMBDA_REGISTRY")]
    pub(crate) registry: Option<String>,
    /// Kind of sandbox; auto takes the best that works here
    #[arg(long, value_name = "NAME", env = "OPENLAMBDA_SANDBOX")]
    pub(crate) sandbox: String,
    /// Each worker's memory pool for instances, MiB
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mb: Count,
    /// Keep-alive policy, with parameters after commas; `ol policies` lists them
    #[arg(long, value_name = "NAME[,KEY=VALUE]")]
    pub(crate) keep_alive: Choice,
    /// How long the keep-alive policy ttl keeps an idle instance, unless it says so itself
    #[arg(long, value_name = "SECONDS")]
    pub(crate) ttl_seconds: Seconds,
    /// Queue policy, which orders the waiting calls of all functions; `ol policies` lists them
    #[arg(long, value_name = "NAME[,KEY=VALUE]")]
    pub(crate) queue_policy: Choice,
    /// How many calls run at once on a worker: none, a number, a multiple of the processors (2x), or
    /// load to follow it (load=1.5 for 1.5 threads per processor)
    #[arg(long, value_name = "LIMIT")]
    #[serde(deserialize_with = "running_limit")]
    pub(crate) running_limit: String,
    /// Pause an instance after this time without a call, unless its manifest says otherwise: seconds or
    /// never [default: by the kind of sandbox; sock: 0.1]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) pause_after_seconds: Option<PauseAfter>,
    /// How long a call may wait for a slot
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_wait_seconds: Seconds,
    /// Share of the load relative to other workers
    #[arg(long, value_name = "SHARE")]
    #[serde(deserialize_with = "weight")]
    pub(crate) weight: f64,
    /// How many instances may be starting at once
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) max_starting: Count,
    /// Which instance with a free slot gets a call: most_recent or newest
    #[arg(long, value_name = "WHICH", value_parser = word::<InstanceChoice>, hide_short_help = true)]
    pub(crate) pick: InstanceChoice,
    /// How long a function may wait for memory before idle instances of others are stopped although
    /// calls of theirs wait
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) fairness_seconds: Seconds,
    /// How long a slot is held for a call that a balancer has reserved it for
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) offer_seconds: Seconds,
    /// Unpacked bundles to keep, MiB
    #[arg(long, value_name = "MIB", hide_short_help = true)]
    pub(crate) code_mb: u32,
    /// The largest body of a request, MiB; a larger one gets 413
    #[arg(long, value_name = "MIB", hide_short_help = true)]
    pub(crate) body_limit_mb: Count,
    /// What the bodies of all requests on a worker may take, MiB; what is over it gets 429
    #[arg(long, value_name = "MIB", hide_short_help = true)]
    pub(crate) body_memory_mb: Count,
    /// Connections at once; one more waits until another ends. A balancer keeps some of them open
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) most_connections: Count<1_000_000_000, 16>,
    /// How long a client may take for the head of a request, or be silent between two
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) head_seconds: Seconds,
    /// How long a client may take nothing of a reply that waits for it; then its connection is closed
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) write_seconds: Seconds,
    /// How often the worker sends its state to balancers
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) heartbeat_seconds: Seconds,
    /// How long calls under way may take to end when the worker is told to stop
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) drain_seconds: Seconds,
    /// How long clients may go on reading replies when the worker has drained
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) reply_grace_seconds: Seconds,
    /// The size of a file of a function's output, MiB; two such files are kept of each function
    #[arg(long, value_name = "MIB", hide_short_help = true)]
    pub(crate) log_mb: Count,
    /// Write a record of every call to this file, as JSON lines; {name} in it is the worker's name
    #[arg(long, value_name = "FILE")]
    pub(crate) records: Option<PathBuf>,
    /// Write every input of the worker's decisions to this file, for `ol replay`; {name} in
    /// it is the worker's name
    #[arg(long, value_name = "FILE")]
    pub(crate) inputs: Option<PathBuf>,
    /// Addresses for sandboxes of kind sock with a bridged network [default: 10.213.0.0/16]
    #[arg(long, value_name = "NETWORK", env = "OPENLAMBDA_BRIDGE_RANGE", hide_short_help = true)]
    #[serde(deserialize_with = "bridge_range")]
    pub(crate) bridge_range: Option<String>,
    /// How many sandboxes of kind sock are made ahead, 1000 at most [default: 16]
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) ready_cells: Option<Count<1000, 0>>,
    /// Python of sandboxes of kinds sock and process, by path or by its name in PATH; it checks what is
    /// deployed, too [default: /usr/bin/python3, else python3 in PATH]
    #[arg(long, value_name = "PROGRAM", env = "OPENLAMBDA_PYTHON", hide_short_help = true)]
    pub(crate) python: Option<PathBuf>,
    /// One more Python, for functions that name its version (runtime = "python3.13"), by path or by its
    /// name in PATH; may be given more than once. Those called python3.13 in PATH are found
    #[arg(long = "pythons", value_name = "PROGRAM", hide_short_help = true)]
    pub(crate) pythons: Vec<PathBuf>,
    /// Folder with Python packages that all functions can import, after their own; may be given more than
    /// once. What else is installed on the machine is not there for them
    #[arg(long = "python-packages", value_name = "DIR", hide_short_help = true)]
    pub(crate) python_packages: Vec<PathBuf>,
    /// Node.js of sandboxes of kinds sock and process, by path or by its name in PATH [default: node in
    /// /usr/bin, /usr/local/bin or PATH]
    #[arg(long, value_name = "PROGRAM", env = "OPENLAMBDA_NODE", hide_short_help = true)]
    pub(crate) node: Option<PathBuf>,
    /// Socket of the engine of kind docker, a path or unix://PATH [default: /var/run/docker.sock]
    #[arg(long, value_name = "SOCKET", env = "DOCKER_HOST", hide_short_help = true)]
    pub(crate) docker_socket: Option<String>,
    /// The image of sandboxes of kind docker [default: what `ol image build` makes]
    #[arg(long, value_name = "IMAGE", env = "OPENLAMBDA_DOCKER_IMAGE", hide_short_help = true)]
    pub(crate) docker_image: Option<String>,
    /// The OCI runtime of sandboxes of kind docker, by the name that the engine knows it by
    /// [default: the engine's own]
    #[arg(long, value_name = "NAME", env = "OPENLAMBDA_DOCKER_RUNTIME", hide_short_help = true)]
    pub(crate) docker_runtime: Option<String>,
}

impl Section for WorkerSettings {
    const NAME: &'static str = "worker";
    const OF_ONE: &'static [&'static str] = &[
        "name",
        "listen",
        "advertise",
        "hosts",
        "state_dir",
        "volumes_dir",
        "balancers",
        "registry",
        "secret_file",
    ];
}

impl Default for WorkerSettings {
    fn default() -> Self {
        let config = WorkerConfig::new("", "");
        WorkerSettings {
            name: None,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: config.advertise,
            state_dir: None,
            volumes_dir: None,
            balancers: config.balancers,
            hosts: config.hosts,
            secret_file: None,
            registry: None,
            sandbox: "auto".to_owned(),
            memory_mb: Count::of(config.scheduler.memory >> 20),
            keep_alive: Choice::named(keep_alive::DEFAULT),
            ttl_seconds: DEFAULT_TTL.into(),
            queue_policy: Choice::named(queue::DEFAULT),
            running_limit: "none".to_owned(),
            pause_after_seconds: config.pause_after,
            max_wait_seconds: config.max_wait.into(),
            weight: config.weight,
            max_starting: Count::of(config.scheduler.max_starting.into()),
            pick: config.scheduler.pick,
            fairness_seconds: config.scheduler.fairness.into(),
            offer_seconds: config.scheduler.offer_timeout.into(),
            code_mb: (config.code_budget >> 20) as u32,
            body_limit_mb: Count::of(config.body_limit >> 20),
            body_memory_mb: Count::of(config.body_budget >> 20),
            most_connections: Count::of(config.patience.most_connections as u64),
            head_seconds: config.patience.head.into(),
            write_seconds: config.patience.write.into(),
            heartbeat_seconds: config.heartbeat.into(),
            drain_seconds: config.drain_grace.into(),
            reply_grace_seconds: config.reply_grace.into(),
            log_mb: Count::of(config.log_size >> 20),
            records: config.records,
            inputs: config.inputs,
            bridge_range: None,
            ready_cells: None,
            python: None,
            pythons: Vec::new(),
            python_packages: Vec::new(),
            node: None,
            docker_socket: None,
            docker_image: None,
            docker_runtime: None,
        }
    }
}

impl WorkerSettings {
    /// The library's configuration of a worker with this name and folder.
    ///
    /// # Errors
    ///
    /// A policy that is not in the catalogue, a value that cannot be.
    pub(crate) fn config(
        &self,
        name: &str,
        state_dir: &Path,
        catalog: &Catalog,
    ) -> Result<WorkerConfig> {
        let mut config = WorkerConfig::new(name, state_dir);
        config.balancers.clone_from(&self.balancers);
        config.advertise.clone_from(&self.advertise);
        config.hosts.clone_from(&self.hosts);
        config.records = self.records.as_deref().map(|file| named(file, name));
        config.inputs = self.inputs.as_deref().map(|file| named(file, name));
        config.weight = self.weight;
        config.scheduler.memory = self.memory_mb.get() << 20;
        config.scheduler.max_starting = self.max_starting.get() as u32;
        config.scheduler.pick = self.pick;
        config.pause_after = self.pause_after_seconds;
        config.scheduler.fairness = self.fairness_seconds.into();
        config.scheduler.offer_timeout = self.offer_seconds.into();
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        config.scheduler.running = RunningLimit::parse(&self.running_limit, processors as u32)
            .map_err(|error| refuse(format!("running_limit: {error}")))?;
        let keep_alive = keep_alive::or_ttl(self.keep_alive.clone(), self.ttl_seconds.into());
        config.keep_alive = catalog.keep_alive_policies().maker(&keep_alive)?;
        config.queue = catalog.queue_policies().maker(&self.queue_policy)?;
        config.max_wait = self.max_wait_seconds.into();
        config.log_size = self.log_mb.get() << 20;
        config.code_budget = u64::from(self.code_mb) << 20;
        config.body_limit = self.body_limit_mb.get() << 20;
        config.body_budget = self.body_memory_mb.get() << 20;
        config.patience.most_connections = self.most_connections.get() as usize;
        config.patience.head = self.head_seconds.into();
        config.patience.write = self.write_seconds.into();
        config.heartbeat = self.heartbeat_seconds.into();
        config.drain_grace = self.drain_seconds.into();
        config.reply_grace = self.reply_grace_seconds.into();
        Ok(config)
    }

    /// How long a worker may take to end when it is told to, seconds.
    pub(crate) fn stops_within(&self) -> f64 {
        self.drain_seconds.get() + self.reply_grace_seconds.get()
    }

    /// What kinds of sandboxes are told.
    ///
    /// # Errors
    ///
    /// An interpreter that is not there.
    pub(crate) fn sandbox_options(&self) -> Result<SandboxOptions> {
        Ok(SandboxOptions {
            bridge_range: self.bridge_range.clone(),
            ready_cells: self.ready_cells.map(|cells| cells.get() as usize),
            python: program("python", self.python.as_deref())?,
            pythons: self.named_pythons()?,
            python_packages: self
                .python_packages
                .iter()
                .map(|path| packages(path))
                .collect::<Result<_>>()?,
            node: program("node", self.node.as_deref())?,
            docker_socket: self.docker_socket.clone(),
            docker_image: self.docker_image.clone(),
            docker_runtime: self.docker_runtime.clone(),
        })
    }
}

impl WorkerSettings {
    /// The Pythons of sandboxes that run this machine's.
    ///
    /// # Errors
    ///
    /// One that is not there.
    pub(crate) fn pythons(&self) -> Result<Pythons> {
        Ok(Pythons::new(program("python", self.python.as_deref())?, self.named_pythons()?))
    }

    fn named_pythons(&self) -> Result<Vec<PathBuf>> {
        let each = self.pythons.iter().map(|path| program("pythons", Some(path)));
        Ok(each.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }
}

/// The file's name with the worker's in place of `{name}`.
fn named(file: &Path, name: &str) -> PathBuf {
    match file.to_str() {
        Some(text) => text.replace("{name}", name).into(),
        None => file.to_owned(),
    }
}

/// The absolute path of a folder with packages for all functions, which find it in a list with colons in between.
fn packages(folder: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(folder).ok().filter(|path| path.is_dir());
    let named = || format!("python_packages = \"{}\"", folder.display());
    let path = path
        .ok_or_else(|| refuse(format!("{} is not a folder here; name one by its path", named())))?;
    match path.to_str() {
        Some(text) if !text.contains(':') => Ok(path),
        _ => {
            Err(refuse(format!("{} cannot be told to Python; use a path without a colon", named())))
        }
    }
}

/// The absolute path of the program that a setting names, by its path or by its name in `PATH`; `None` if
/// it names nothing.
fn program(setting: &str, named: Option<&Path>) -> Result<Option<PathBuf>> {
    let Some(named) = named else { return Ok(None) };
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    let found = match named.components().count() {
        0 => return Ok(None),
        1 if !named.has_root() => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|folder| folder.join(named)).find(runs)
        }
        _ => std::path::absolute(named).ok().filter(runs),
    };
    let refused = || {
        let named = named.display();
        refuse(format!("{setting} = \"{named}\" is not a program here; name one by its path"))
    };
    found.ok_or_else(refused).map(Some)
}

fn refuse(message: String) -> CliError {
    CliError::new(message)
}

/// What balancers accept.
fn weight<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let weight = f64::deserialize(from)?;
    match weight > 0.0 && weight <= 1e6 {
        true => Ok(weight),
        false => Err(D::Error::custom(format!(
            "{weight} is not a share; use more than 0, at most 1000000"
        ))),
    }
}

/// Checked here, since a worker whose kind of sandbox is auto takes another kind when one does not work.
fn bridge_range<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let range = Option::<String>::deserialize(from)?;
    let wrong = range.as_deref().filter(|it| !it.is_empty()).map(sock::bridge_range);
    wrong.transpose().map_err(D::Error::custom)?;
    Ok(range)
}

/// A number may stand without quotes.
fn running_limit<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let limit = match Value::deserialize(from)? {
        Value::String(limit) => limit,
        other => other.to_string(),
    };
    // How many processors there are does not decide whether it is one.
    RunningLimit::parse(&limit, 1).map(|_| limit).map_err(D::Error::custom)
}
