//! The configuration of a simulation.

use std::time::Duration;

use openlambda_core::balancing::retry::RetryConfig;
use openlambda_core::keep_alive::{self, KeepAliveMaker};
use openlambda_core::queue::{self, QueueMaker};
use openlambda_core::scheduler::{Limits, SchedulerConfig};

use crate::workload::WorkloadConfig;

/// A simulated cluster and what it is asked to do.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// The calls.
    pub workload: WorkloadConfig,
    /// The users who make them, in a closed loop: then the workload's rate, timers and bursts have no
    /// effect. `None`: an open system, where calls come at the workload's rate whether or not earlier
    /// ones are answered.
    pub users: Option<Users>,
    /// How many workers there are, all alike, all there from the start.
    pub workers: u32,
    /// How many balancers there are. Each call goes to a random one; they do not know each other.
    pub balancers: u32,
    /// How often each balancer tries a call again.
    pub retries: RetryConfig,
    /// How many processors each worker has, which all that runs there shares equally (see
    /// [`Processors`](crate::processors::Processors)); it is also what the worker tells the balancer as its capacity. `None`: a call
    /// has a processor of its own whatever else runs, and the capacity is how many instances fit.
    pub processors: Option<u32>,
    /// Each worker's scheduler.
    pub scheduler: SchedulerConfig,
    /// Each worker's keep-alive policy: one of a [catalogue](keep_alive::standard), or one of your own.
    pub keep_alive: KeepAliveMaker,
    /// Each worker's queue policy: one of a [catalogue](queue::standard), or one of your own.
    pub queue: QueueMaker,
    /// How long a paused instance takes until it runs again.
    pub resume: Duration,
    /// How much of its memory an instance uses that is paused, 0 to 1; the rest can be lent meanwhile.
    pub paused_share: f64,
    /// Bytes of unpacked bundles that each worker keeps.
    pub code_budget: u64,
    /// The size of every function's bundle, bytes. Functions with the same package share a bundle.
    pub bundle_bytes: u64,
    /// What every function's manifest says, except for the memory when the workload's mix gives it; that is
    /// in whole MiB, rounded up.
    pub limits: Limits,
    /// How many namespaces there are: function `n` is in number `n` modulo this many.
    pub namespaces: u32,
    /// How long a call may wait on a worker.
    pub max_wait: Duration,
    /// Between balancer and worker, one way.
    pub hop: Duration,
    /// Fetching and unpacking a bundle.
    pub pull: Duration,
    /// Making a sandbox and starting its runtime, unless the workload's mix says.
    pub cold_start: Duration,
    /// How often a worker reports its load.
    pub heartbeat: Duration,
    /// What goes wrong.
    pub faults: Faults,
    /// The mean time between two releases of a new version, each of a random function. `None`: no
    /// releases.
    pub releases: Option<Duration>,
    /// The seed of everything.
    pub seed: u64,
}

/// Random faults. By default there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// The share of fetches that fail.
    pub fetch: f64,
    /// The share of starts that fail, when they would have succeeded.
    pub start: f64,
    /// The share of calls that their instance does not survive; it dies somewhere in the middle.
    pub crash: f64,
    /// How often workers die, and for how long they are away.
    pub workers: Option<Deaths>,
}

/// Workers that die and come back, empty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deaths {
    /// The mean time that one lives.
    pub every: Duration,
    /// The time until it is there again.
    pub away: Duration,
}

/// Users in a closed loop: each makes a call, waits until it is over, answered or not, thinks for an
/// exponential time, and makes the next. They begin by thinking.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Users {
    /// How many, at least 1.
    pub count: u32,
    /// The mean time that one thinks.
    pub think: Duration,
}

impl Default for SimConfig {
    /// Ten workers with room for 16 instances each: none of them can keep all functions warm.
    fn default() -> Self {
        SimConfig {
            workload: WorkloadConfig::default(),
            users: None,
            workers: 10,
            balancers: 1,
            retries: RetryConfig::default(),
            processors: None,
            scheduler: SchedulerConfig { memory: 2 << 30, ..SchedulerConfig::default() },
            keep_alive: keep_alive::default(),
            queue: queue::default(),
            resume: Duration::ZERO,
            paused_share: 1.0,
            code_budget: 1 << 30,
            bundle_bytes: 1 << 20,
            limits: Limits {
                memory: 128 << 20,
                slots: 1,
                max_instances: 16,
                queue: 1024,
                timeout: Duration::from_secs(30),
                reuse: true,
                pause_after: None,
            },
            namespaces: 1,
            max_wait: Duration::from_secs(30),
            hop: Duration::from_micros(100),
            pull: Duration::from_millis(20),
            cold_start: Duration::from_millis(100),
            heartbeat: Duration::from_millis(500),
            faults: Faults::default(),
            releases: None,
            seed: 1,
        }
    }
}

/// A configuration that cannot be simulated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// A cluster without balancers.
    #[error("without a balancer no call gets anywhere; use 1 or more")]
    NoBalancer,
    /// More balancers than policies.
    #[error("each balancer has a policy of its own; give a maker of them (`simulate_with`)")]
    OnePolicy,
    /// A closed loop without users.
    #[error("a closed loop without users makes no call; use 1 or more")]
    NoUsers,
    /// A closed loop in which timers call every function.
    #[error("users call no function that a timer calls, and a timer calls each; use fewer timers")]
    OnlyTimers,
}
