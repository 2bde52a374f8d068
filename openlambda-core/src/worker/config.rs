//! The configuration of a worker.

use std::path::PathBuf;
use std::time::Duration;

use crate::allow::Allow;
use crate::keep_alive::{self, KeepAliveMaker};
use crate::queue::{self, QueueMaker};
use crate::scheduler::{PauseAfter, SchedulerConfig};
use crate::serving::identity::Host;
use crate::serving::{HttpConfig, Patience, Secret};
use crate::wire;

/// The configuration of a worker. [`WorkerConfig::new`] takes the name and the folder, and has defaults
/// for the rest.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its stable name: the same after a restart; no two workers share one.
    pub name: String,
    /// Its folder: unpacked bundles, logs. No two workers share one.
    pub state_dir: PathBuf,
    /// Balancers to announce itself to, `http://host:port`.
    pub balancers: Vec<String>,
    /// The address at which balancers reach it; `None`: the listener's own.
    pub advertise: Option<String>,
    /// Its share of the load relative to other workers.
    pub weight: f64,
    /// Memory pool, limits. When instances are paused is decided by [`pause_after`](Self::pause_after).
    pub scheduler: SchedulerConfig,
    /// When an instance without a call is paused whose manifest does not say it. `None`: when pausing is
    /// worth its cost with this [kind of sandbox](crate::sandbox::Capabilities::pause_after).
    pub pause_after: Option<PauseAfter>,
    /// The keep-alive policy: one of a [catalogue](keep_alive::standard), or one of your own.
    pub keep_alive: KeepAliveMaker,
    /// The queue policy: one of a [catalogue](queue::standard), or one of your own.
    pub queue: QueueMaker,
    /// How long an invocation may wait for a slot; then 429. The default is longer than an instance with
    /// the usual time limit may take to become ready, so that the failure says why it never did.
    pub max_wait: Duration,
    /// Bytes of unpacked bundles to keep.
    pub code_budget: u64,
    /// What functions may ask for; one that asks for more is not run, and its callers are told why.
    pub allow: Allow,
    /// The largest request body, bytes.
    pub body_limit: u64,
    /// The cluster's secret: only those who know it call the worker, and balancers have to know it, too.
    /// Without one, every process that reaches the worker calls it.
    pub secret: Option<Secret>,
    /// The names, beside `localhost`, addresses and that of [`advertise`](Self::advertise), by which the worker
    /// is called.
    pub hosts: Vec<Host>,
    /// What the bodies of all requests that are here may take, bytes, those that are still coming too: at
    /// least one and a half times the limit of one. A namespace may take twice what is free, and what
    /// [`allow`](Self::allow) allows it.
    pub body_budget: u64,
    /// Bounds on the number of clients and on how slow they may be.
    pub patience: Patience,
    /// How often balancers get a snapshot and an announcement.
    pub heartbeat: Duration,
    /// How long a drain may take before calls that still run are ended.
    pub drain_grace: Duration,
    /// How long clients may go on reading replies after the drain; then their connections are cut. The
    /// default is [`HttpConfig`]'s.
    pub reply_grace: Duration,
    /// The size of a file of a function's output, in bytes; two such files are kept of each function.
    pub log_size: u64,
    /// Write an [`InvocationRecord`](crate::invocation::InvocationRecord) of every call here.
    pub records: Option<PathBuf>,
    /// Write every input of the worker's [core](crate::worker_core) to this new file, so that the run can
    /// be played again ([`replay`](crate::worker_core::recording::replay)). It is written under the worker's lock: for experiments.
    pub inputs: Option<PathBuf>,
}

impl WorkerConfig {
    /// The defaults for a worker of this name with this folder.
    pub fn new(name: impl Into<String>, state_dir: impl Into<PathBuf>) -> Self {
        WorkerConfig {
            name: name.into(),
            state_dir: state_dir.into(),
            balancers: Vec::new(),
            advertise: None,
            weight: 1.0,
            scheduler: SchedulerConfig::default(),
            pause_after: None,
            keep_alive: keep_alive::default(),
            queue: queue::default(),
            max_wait: Duration::from_secs(35),
            code_budget: 1 << 30,
            allow: Allow::default(),
            body_limit: wire::DEFAULT_BODY_LIMIT,
            secret: None,
            hosts: Vec::new(),
            body_budget: 256 << 20,
            patience: Patience::default(),
            heartbeat: Duration::from_millis(500),
            drain_grace: Duration::from_secs(30),
            reply_grace: HttpConfig::default().drain,
            log_size: 16 << 20,
            records: None,
            inputs: None,
        }
    }
}
