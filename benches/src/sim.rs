//! A discrete-event simulator that runs the platform's own deciders.
//!
//! [`simulate`] plays a [`Workload`] against one [`Balancer`] with one policy and any number of
//! workers, each with its own scheduler, keep-alive policy and code cache: the very types that serve
//! live traffic. The loop below is their shell, as `proxy.rs` and `dispatch.rs` are in the live
//! system, with time taken from a heap of events instead of a clock. What the world does is modelled
//! by four durations: a hop of the network, a pull, a start, and the handler's own time.
//!
//! Nothing here reads a clock or draws from anything but the seed: the same configuration gives the
//! same records, byte for byte, on every machine.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use openlambda_core::balancing::driver::{Balancer, BalancerOutput};
use openlambda_core::balancing::{
    BalancingPolicy, Decision, FunctionId, ProbeSet, Refusal, Ticket, WorkerId, WorkerInfo,
    WorkerLoad,
};
use openlambda_core::code_cache::{CodeCache, Lookup};
use openlambda_core::config::ConfigError;
use openlambda_core::function::{Digest, FunctionName};
use openlambda_core::hash::{mix, stable_hash};
use openlambda_core::invocation::{InvocationRecord, RequestId, StartKind};
use openlambda_core::manifest::Manifest;
use openlambda_core::random::Rng;
use openlambda_core::scheduler::{
    Action, Event, InstanceId, InvocationId, Limits, Rejection, Scheduler, SchedulerConfig,
    VersionId,
};
use openlambda_core::time::Time;
use openlambda_core::{keep_alive, queue};

use crate::processors::Processors;
use crate::workload::{Arrival, Profile, Workload, WorkloadConfig};

/// A simulated cluster and what it is asked to do.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// The calls.
    pub workload: WorkloadConfig,
    /// Who makes them, in a closed loop: then the workload's rate, timers and bursts say nothing.
    /// `None`: an open system, where calls come at the workload's rate whatever becomes of them.
    pub users: Option<Users>,
    /// How many workers there are, all alike, all there from the start.
    pub workers: u32,
    /// How many processors each worker has, which all that runs there shares equally (see
    /// [`Processors`]); it is also what the worker tells the balancer as its capacity. `None`: a call
    /// has a processor of its own whatever else runs, and the capacity is how many instances fit.
    pub processors: Option<u32>,
    /// Each worker's scheduler.
    pub scheduler: SchedulerConfig,
    /// Each worker's keep-alive policy, one of [`keep_alive::NAMES`], with parameters after commas.
    pub keep_alive: String,
    /// How long the keep-alive policy `ttl` keeps an idle instance, unless it says so itself.
    pub ttl: Duration,
    /// Bytes of unpacked bundles that each worker keeps.
    pub code_budget: u64,
    /// The size of every function's bundle, bytes. Functions with the same package share a bundle.
    pub bundle_bytes: u64,
    /// What every function's manifest says, but for the memory when the workload's mix gives it.
    pub limits: Limits,
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
    /// The seed of everything.
    pub seed: u64,
}

/// Users in a closed loop: each makes a call, waits until it is over, answered or not, thinks for an
/// exponential time, and makes the next. They begin with a thought.
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
            processors: None,
            scheduler: SchedulerConfig { memory: 2 << 30, ..SchedulerConfig::default() },
            keep_alive: "ttl".to_owned(),
            ttl: keep_alive::DEFAULT_TTL,
            code_budget: 1 << 30,
            bundle_bytes: 1 << 20,
            limits: Limits {
                memory: 128 << 20,
                slots: 1,
                max_instances: 16,
                queue: 1024,
                timeout: Duration::from_secs(30),
                reuse: true,
            },
            max_wait: Duration::from_secs(30),
            hop: Duration::from_micros(100),
            pull: Duration::from_millis(20),
            cold_start: Duration::from_millis(100),
            heartbeat: Duration::from_millis(500),
            seed: 1,
        }
    }
}

/// A configuration that cannot be simulated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimError {
    /// The keep-alive policy is not known, or a parameter of it is not valid.
    #[error(transparent)]
    KeepAlive(#[from] ConfigError),
    /// A closed loop without anybody in it.
    #[error("a closed loop without users makes no call; use 1 or more")]
    NoUsers,
    /// A closed loop in which timers call every function.
    #[error("users call no function that a timer calls, and a timer calls each; use fewer timers")]
    OnlyTimers,
}

/// What the experiment took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// From the beginning until the last call was over. In a closed loop, calls by seconds are the
    /// throughput.
    pub seconds: f64,
    /// Bytes that all workers' instances took from the pools: the mean over time, until the last
    /// call was over.
    pub mean_memory: f64,
}

/// Runs the experiment; `record` sees every call when it is over, in the order in which they end.
///
/// # Errors
///
/// [`SimError`].
pub fn simulate(
    config: &SimConfig,
    policy: Box<dyn BalancingPolicy>,
    record: impl FnMut(&InvocationRecord),
) -> Result<Usage, SimError> {
    let mut sim = Simulation::new(config, policy, record)?;
    match config.users {
        None => sim.schedule_arrival(),
        Some(users) => sim.let_users_in(users)?,
    }
    while let Some(Reverse(next)) = sim.events.pop() {
        debug_assert!(next.at >= sim.now, "time went backwards");
        sim.now = next.at;
        sim.happen(next.what);
    }
    let byte_seconds: f64 = sim.workers.iter().map(|worker| worker.byte_seconds).sum();
    // An experiment without calls takes no time, and holds nothing.
    let seconds = sim.ended.as_secs_f64();
    Ok(Usage { seconds, mean_memory: if seconds > 0.0 { byte_seconds / seconds } else { 0.0 } })
}

/// What can happen. The order of the variants is the order at equal times after `seq`, which is
/// unique, so it never decides.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Arrive { arrival: Arrival },
    AtWorker { ticket: Ticket, worker: usize },
    Reserved { ticket: Ticket, worker: usize, function: u32 },
    ReservationCancelled { ticket: Ticket, worker: usize },
    Offered { ticket: Ticket, worker: usize },
    Answered { ticket: Ticket },
    CodeCame { worker: usize, digest: Digest },
    Started { worker: usize, instance: InstanceId },
    Destroyed { worker: usize, instance: InstanceId },
    Finished { worker: usize, invocation: InvocationId },
    ProcessorsTurn { worker: usize },
    PauseDone { worker: usize, instance: InstanceId, paused: bool },
    WorkerTimer { worker: usize },
    BalancerTimer,
    TellIdle { worker: usize, function: u32 },
    TellEvicted { worker: usize, function: u32 },
    Heartbeat { worker: usize },
    Probed { worker: usize },
    SelectAgain { ticket: Ticket },
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Next {
    at: Time,
    seq: u64,
    what: What,
}

/// A call that is under way.
#[derive(Debug)]
struct InFlight {
    arrival: Arrival,
    number: u64,
    worker: usize,
    /// How warm it ran and when, once it does.
    ran: Option<(StartKind, Time)>,
    ended: Time,
    outcome: &'static str,
}

struct SimWorker {
    id: WorkerId,
    scheduler: Scheduler,
    cache: CodeCache,
    /// Versions that wait for a bundle. A version's number is its function's.
    fetching: BTreeMap<Digest, Vec<VersionId>>,
    /// Pull times that a cold call waited for: when the code came.
    pulled: BTreeMap<VersionId, Time>,
    starting: BTreeSet<InstanceId>,
    versions: BTreeMap<InstanceId, VersionId>,
    timer: Option<Time>,
    /// What runs, and when it is looked at next, where processors are shared.
    processors: Option<(Processors, Option<Time>)>,
    /// Memory taken from the pool times how long, up to `metered`.
    byte_seconds: f64,
    metered: Time,
}

impl SimWorker {
    /// Counts what was held since the last call. Call it before that changes.
    fn meter(&mut self, now: Time) {
        let held = self.scheduler.pool().used() as f64;
        self.byte_seconds += held * now.since(self.metered).as_secs_f64();
        self.metered = self.metered.max(now);
    }
}

struct Simulation<'a, R> {
    config: &'a SimConfig,
    record: R,
    now: Time,
    seq: u64,
    events: BinaryHeap<Reverse<Next>>,
    workload: Workload,
    thoughts: Rng,
    arrived: u64,
    over: u64,
    /// When the last call was over.
    ended: Time,
    balancer: Balancer,
    balancer_timer: Option<Time>,
    names: Vec<FunctionName>,
    functions: Vec<FunctionId>,
    digests: Vec<Digest>,
    profiles: Vec<Profile>,
    workers: Vec<SimWorker>,
    calls: BTreeMap<Ticket, InFlight>,
    /// Calls that are at a worker. See [`at_workers`].
    tickets: BTreeMap<InvocationId, Ticket>,
}

impl<'a, R: FnMut(&InvocationRecord)> Simulation<'a, R> {
    fn new(
        config: &'a SimConfig,
        policy: Box<dyn BalancingPolicy>,
        record: R,
    ) -> Result<Self, SimError> {
        let mut balancer = Balancer::new(policy, config.seed);
        let names: Vec<FunctionName> = (0..config.workload.functions)
            .map(|n| format!("f{n}").parse().expect("a letter and digits are a name"))
            .collect();
        let functions: Vec<_> = names.iter().map(|name| balancer.function(name)).collect();
        let profiles = config.workload.profiles(config.seed);
        let digests = names.iter().zip(&profiles).map(|(name, profile)| {
            let mut bytes = [0; 32];
            let hash = match &profile.package {
                Some(package) => stable_hash(0, package_name(*package).as_bytes()),
                None => stable_hash(0, name.name().as_bytes()),
            };
            bytes[..8].copy_from_slice(&hash.to_le_bytes());
            Digest::from_bytes(bytes)
        });
        for (function, profile) in functions.iter().zip(&profiles) {
            if let Some(package) = profile.package {
                let packages = vec![package_name(package)];
                balancer.describe(*function, &Manifest { packages, ..Manifest::default() });
            }
        }
        let mut workers = Vec::new();
        for n in 0..config.workers {
            let keep_alive = keep_alive::by_name(&config.keep_alive, config.ttl)?;
            let make_queue = queue::by_name("fifo").expect("fifo is a queue policy");
            let fit = config.scheduler.memory / config.limits.memory.max(1);
            let fit = u32::try_from(fit).unwrap_or(u32::MAX);
            let capacity = config.processors.unwrap_or(fit);
            workers.push(SimWorker {
                id: balancer.join(Time::ZERO, WorkerInfo::new(format!("w{n}"), capacity)),
                scheduler: Scheduler::new(config.scheduler.clone(), make_queue, keep_alive),
                cache: CodeCache::new(config.code_budget),
                fetching: BTreeMap::new(),
                pulled: BTreeMap::new(),
                starting: BTreeSet::new(),
                versions: BTreeMap::new(),
                timer: None,
                processors: config.processors.map(|count| (Processors::new(count), None)),
                byte_seconds: 0.0,
                metered: Time::ZERO,
            });
        }
        let mut sim = Simulation {
            config,
            record,
            now: Time::ZERO,
            seq: 0,
            events: BinaryHeap::new(),
            workload: Workload::new(config.workload, config.seed),
            thoughts: Rng::from_seed_and_label(config.seed, "thoughts"),
            arrived: 0,
            over: 0,
            ended: Time::ZERO,
            balancer,
            balancer_timer: None,
            digests: digests.collect(),
            profiles,
            names,
            functions,
            workers,
            calls: BTreeMap::new(),
            tickets: BTreeMap::new(),
        };
        for worker in 0..sim.workers.len() {
            sim.after(config.heartbeat, What::Heartbeat { worker });
        }
        Ok(sim)
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Arrive { arrival } => {
                if self.config.users.is_none() {
                    self.schedule_arrival();
                }
                let ticket = self.balancer.arrived(self.functions[arrival.function as usize]);
                let number = self.arrived;
                self.arrived += 1;
                self.calls.insert(
                    ticket,
                    InFlight {
                        arrival,
                        number,
                        worker: 0,
                        ran: None,
                        ended: self.now,
                        outcome: "ok",
                    },
                );
                self.select(ticket);
            }
            What::SelectAgain { ticket } => self.select(ticket),
            What::AtWorker { ticket, worker } => {
                let call = self.calls.get_mut(&ticket).expect("it is under way");
                call.worker = worker;
                let invocation = at_workers(ticket);
                let version = VersionId(call.arrival.function);
                self.tickets.insert(invocation, ticket);
                let deadline = self.now + self.config.max_wait;
                self.at_worker(worker, Event::Arrived { invocation, version, deadline });
            }
            What::Reserved { ticket, worker, function } => {
                let (invocation, version) = (at_workers(ticket), VersionId(function));
                let deadline = self.now + self.config.max_wait;
                self.at_worker(worker, Event::Reserved { invocation, version, deadline });
            }
            What::ReservationCancelled { ticket, worker } => {
                let invocation = at_workers(ticket);
                self.at_worker(worker, Event::ReservationCancelled { invocation });
            }
            What::Offered { ticket, worker } => {
                self.balancer.offered(self.now, ticket, self.workers[worker].id);
                self.after_balancer();
            }
            What::Answered { ticket } => self.answered(ticket),
            What::CodeCame { worker, digest } => {
                let (now, place) = (self.now, &mut self.workers[worker]);
                place.cache.fetched(digest, self.config.bundle_bytes, now);
                for version in place.fetching.remove(&digest).unwrap_or_default() {
                    self.workers[worker].pulled.insert(version, now);
                    let limits = self.limits(version);
                    self.at_worker(worker, Event::CodeReady { version, limits });
                }
            }
            What::Started { worker, instance } => {
                if self.workers[worker].starting.remove(&instance) {
                    let start = StartKind::Cold;
                    self.at_worker(worker, Event::SandboxReady { instance, start });
                }
            }
            What::Destroyed { worker, instance } => {
                let now = self.now;
                let place = &mut self.workers[worker];
                if let Some(version) = place.versions.remove(&instance) {
                    place.cache.unpin(self.digests[version.0 as usize], now);
                }
                self.at_worker(worker, Event::Destroyed { instance });
            }
            What::Finished { worker, invocation } => {
                if let Some(ticket) = self.tickets.remove(&invocation) {
                    self.call_ended(ticket, "ok");
                }
                self.at_worker(worker, Event::Finished { invocation, reusable: true });
            }
            What::ProcessorsTurn { worker } => {
                let Some((processors, turn)) = &mut self.workers[worker].processors else { return };
                if *turn != Some(self.now) {
                    return;
                }
                *turn = None;
                let mut ended = Vec::new();
                while let Some(invocation) = processors.poll_ended(self.now) {
                    ended.push(invocation);
                }
                for invocation in ended {
                    self.after(Duration::ZERO, What::Finished { worker, invocation });
                }
                self.after_processors(worker);
            }
            What::PauseDone { worker, instance, paused: true } => {
                self.at_worker(worker, Event::Paused { instance });
            }
            What::PauseDone { worker, instance, paused: false } => {
                self.at_worker(worker, Event::Resumed { instance });
            }
            What::WorkerTimer { worker } => {
                if self.workers[worker].timer == Some(self.now) {
                    self.workers[worker].timer = None;
                    self.at_worker(worker, Event::Timeout);
                }
            }
            What::BalancerTimer => {
                if self.balancer_timer == Some(self.now) {
                    self.balancer_timer = None;
                    self.balancer.handle_timeout(self.now);
                    self.after_balancer();
                }
            }
            What::TellIdle { worker, function } => {
                let (id, function) = (self.workers[worker].id, self.functions[function as usize]);
                self.balancer.worker_idle(self.now, id, function);
                self.after_balancer();
            }
            What::TellEvicted { worker, function } => {
                let (id, function) = (self.workers[worker].id, self.functions[function as usize]);
                self.balancer.worker_evicted(self.now, id, function);
                self.after_balancer();
            }
            What::Heartbeat { worker } => self.heartbeat(worker),
            What::Probed { worker } => {
                let (id, load) = (self.workers[worker].id, self.load(worker));
                self.balancer.probed(self.now, id, load);
                self.after_balancer();
            }
        }
    }

    // The balancer's shell.

    fn select(&mut self, ticket: Ticket) {
        match self.balancer.select(self.now, ticket) {
            Decision::To(worker, _) => self.send(ticket, worker),
            Decision::Hold { .. } => {}
            Decision::Probe(set) => self.probe_for(ticket, &set),
            Decision::Refuse(refusal) => self.refuse(ticket, refusal),
        }
        self.after_balancer();
    }

    fn probe_for(&mut self, ticket: Ticket, set: &ProbeSet) {
        for worker in set.as_slice() {
            let worker = self.index_of(*worker);
            self.after(2 * self.config.hop, What::Probed { worker });
        }
        // Scheduled last at the same time, so it selects when all answers are in.
        self.after(2 * self.config.hop, What::SelectAgain { ticket });
    }

    fn after_balancer(&mut self) {
        while let Some(output) = self.balancer.poll_output() {
            match output {
                BalancerOutput::Bound { ticket, worker, .. } => self.send(ticket, worker),
                BalancerOutput::Refused { ticket, refusal } => self.refuse(ticket, refusal),
                BalancerOutput::Probe { worker } => {
                    let worker = self.index_of(worker);
                    self.after(2 * self.config.hop, What::Probed { worker });
                }
                BalancerOutput::Reserve { ticket, worker } => {
                    let (worker, call) = (self.index_of(worker), &self.calls[&ticket]);
                    let function = call.arrival.function;
                    self.after(self.config.hop, What::Reserved { ticket, worker, function });
                }
                BalancerOutput::Cancel { ticket, worker } => {
                    let worker = self.index_of(worker);
                    self.after(self.config.hop, What::ReservationCancelled { ticket, worker });
                }
                _ => {}
            }
        }
        let timeout = self.balancer.poll_timeout();
        if let Some(at) = timeout.filter(|at| self.balancer_timer.is_none_or(|set| *at < set)) {
            let at = at.max(self.now);
            self.balancer_timer = Some(at);
            self.at(at, What::BalancerTimer);
        }
    }

    fn send(&mut self, ticket: Ticket, worker: WorkerId) {
        let worker = self.index_of(worker);
        self.after(self.config.hop, What::AtWorker { ticket, worker });
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        let call = self.calls.get_mut(&ticket).expect("it is under way");
        call.outcome = match refusal {
            Refusal::NoWorker => "no_worker",
            _ => "queue_full",
        };
        call.ended = self.now;
        self.answered(ticket);
    }

    fn answered(&mut self, ticket: Ticket) {
        let call = self.calls.remove(&ticket).expect("it is under way");
        let start = call.ran.map(|(start, _)| start);
        self.balancer.completed(self.now, ticket, start, call.outcome == "ok");
        self.balancer.finish(self.now, ticket);
        self.after_balancer();
        self.over += 1;
        if self.over == self.config.workload.invocations {
            self.ended = self.now;
            for worker in &mut self.workers {
                worker.meter(self.now);
            }
        }
        let record = self.record_of(&call);
        (self.record)(&record);
        if let Some(users) = self.config.users {
            self.think(users);
        }
    }

    // The workers' shell.

    fn at_worker(&mut self, worker: usize, event: Event) {
        let now = self.now;
        if self.ended == Time::ZERO {
            self.workers[worker].meter(now);
        }
        self.workers[worker].scheduler.handle(now, event);
        while let Some(action) = self.workers[worker].scheduler.poll_action() {
            self.carry_out(worker, action);
        }
        let place = &mut self.workers[worker];
        let versions = || (0u32..).map(VersionId).zip(&self.digests);
        while let Some(digest) = place.cache.poll_removal(now, |digest| {
            versions().any(|(version, of)| of == digest && place.scheduler.waits(version))
        }) {
            for (version, of) in versions() {
                if *of == digest {
                    place.scheduler.handle(now, Event::CodeGone { version });
                }
            }
            // Removing a folder takes no time here, so nobody can want it meanwhile.
            let _ = place.cache.removed(digest);
        }
        let next = place.scheduler.poll_timeout();
        if let Some(at) = next.filter(|at| place.timer.is_none_or(|set| *at < set)) {
            place.timer = Some(at);
            self.at(at, What::WorkerTimer { worker });
        }
    }

    fn carry_out(&mut self, worker: usize, action: Action) {
        let now = self.now;
        let place = &mut self.workers[worker];
        match action {
            Action::Fetch { version } => {
                let digest = self.digests[version.0 as usize];
                place.fetching.entry(digest).or_default().push(version);
                match place.cache.want(digest, now) {
                    Lookup::Held => self.after(Duration::ZERO, What::CodeCame { worker, digest }),
                    Lookup::Fetch => {
                        self.after(self.config.pull, What::CodeCame { worker, digest })
                    }
                    Lookup::Wait => {}
                }
            }
            Action::Start { instance, version } => {
                let pinned = place.cache.pin(self.digests[version.0 as usize], now);
                debug_assert!(pinned, "an instance starts from code that is held");
                place.starting.insert(instance);
                place.versions.insert(instance, version);
                self.after(self.cold_start(version), What::Started { worker, instance });
            }
            Action::CancelStart { instance } => {
                let was_starting = place.starting.remove(&instance);
                if was_starting {
                    self.after(Duration::ZERO, What::Destroyed { worker, instance });
                }
            }
            Action::Run { invocation, start, .. } => {
                let ticket = self.tickets[&invocation];
                let call = self.calls.get_mut(&ticket).expect("it is under way");
                call.ran = Some((start, now));
                let service = call.arrival.service;
                match &mut place.processors {
                    None => self.after(service, What::Finished { worker, invocation }),
                    Some((processors, _)) => {
                        processors.start(now, invocation, service);
                        self.after_processors(worker);
                    }
                }
            }
            Action::Expire { invocation } => {
                if let Some(ticket) = self.tickets.remove(&invocation) {
                    self.call_ended(ticket, "timeout");
                }
            }
            Action::Reject { invocation, why } => {
                if let Some(ticket) = self.tickets.remove(&invocation) {
                    self.call_ended(ticket, outcome_of(why));
                }
            }
            Action::Pause { instance } => {
                self.after(Duration::ZERO, What::PauseDone { worker, instance, paused: true });
            }
            Action::Resume { instance } => {
                self.after(Duration::ZERO, What::PauseDone { worker, instance, paused: false });
            }
            Action::Evict { instance, .. } => {
                self.after(Duration::ZERO, What::Destroyed { worker, instance });
            }
            Action::Offer { invocation, .. } => {
                let ticket = Ticket(invocation.0);
                self.after(self.config.hop, What::Offered { ticket, worker });
            }
            Action::TellIdle { version } => {
                self.after(self.config.hop, What::TellIdle { worker, function: version.0 });
            }
            Action::TellEvicted { version } => {
                self.after(self.config.hop, What::TellEvicted { worker, function: version.0 });
            }
            _ => {}
        }
    }

    /// What runs has changed, and so has the time of the next end.
    fn after_processors(&mut self, worker: usize) {
        let Some((processors, turn)) = &mut self.workers[worker].processors else { return };
        let next = processors.next_end();
        if next != *turn {
            *turn = next;
            if let Some(at) = next {
                self.at(at, What::ProcessorsTurn { worker });
            }
        }
    }

    fn call_ended(&mut self, ticket: Ticket, outcome: &'static str) {
        let call = self.calls.get_mut(&ticket).expect("it is under way");
        call.outcome = outcome;
        call.ended = self.now;
        self.after(self.config.hop, What::Answered { ticket });
    }

    fn heartbeat(&mut self, worker: usize) {
        let idle = self.workers[worker].scheduler.idle_by_version();
        let idle: Vec<_> = idle
            .into_iter()
            .map(|(version, count)| (self.functions[version.0 as usize], count))
            .collect();
        let (id, load) = (self.workers[worker].id, self.load(worker));
        self.balancer.snapshot(self.now, id, load, idle);
        self.after_balancer();
        // The experiment is over with its last call, not with the last heartbeat.
        if self.over < self.config.workload.invocations {
            self.after(self.config.heartbeat, What::Heartbeat { worker });
        }
    }

    fn load(&self, worker: usize) -> WorkerLoad {
        let scheduler = &self.workers[worker].scheduler;
        let (counts, pool) = (scheduler.counts(), scheduler.pool());
        WorkerLoad {
            running: counts.running,
            queued: counts.waiting,
            idle: counts.idle,
            memory_used: pool.used(),
            memory_total: pool.total(),
        }
    }

    // Records and time.

    fn record_of(&self, call: &InFlight) -> InvocationRecord {
        let ns = |duration: Duration| duration.as_nanos() as u64;
        let arrived = call.arrival.at;
        let mut rest = match call.ran {
            Some((_, at)) => at.since(arrived),
            None => call.ended.since(arrived),
        };
        let (mut create, mut pull) = (Duration::ZERO, Duration::ZERO);
        if let Some((StartKind::Cold, _)) = call.ran {
            let version = VersionId(call.arrival.function);
            create = self.cold_start(version).min(rest);
            rest -= create;
            let came = self.workers[call.worker].pulled.get(&version).copied();
            let waited = came.map_or(Duration::ZERO, |came| came.since(arrived));
            pull = waited.min(self.config.pull).min(rest);
            rest -= pull;
        }
        InvocationRecord {
            request_id: RequestId::from_bits(
                mix(self.config.seed, call.number),
                mix(call.number, self.config.seed),
            ),
            function: self.names[call.arrival.function as usize].clone(),
            digest: Some(self.digests[call.arrival.function as usize]),
            worker: format!("w{}", call.worker),
            arrived_ns: arrived.as_nanos(),
            start: call.ran.map(|(start, _)| start),
            queue_ns: ns(rest),
            pull_ns: ns(pull),
            create_ns: ns(create),
            init_ns: 0,
            run_ns: call.ran.map_or(0, |(_, at)| ns(call.ended.since(at))),
            outcome: call.outcome.to_owned(),
        }
    }

    /// What a function's manifest says.
    fn limits(&self, version: VersionId) -> Limits {
        let limits = self.config.limits;
        let memory = self.profiles[version.0 as usize].memory.unwrap_or(limits.memory);
        Limits { memory, ..limits }
    }

    fn cold_start(&self, version: VersionId) -> Duration {
        self.profiles[version.0 as usize].cold_start.unwrap_or(self.config.cold_start)
    }

    /// Workers join once, in order, and never leave.
    fn index_of(&self, worker: WorkerId) -> usize {
        worker.index()
    }

    fn schedule_arrival(&mut self) {
        if let Some(arrival) = self.workload.next() {
            self.at(arrival.at, What::Arrive { arrival });
        }
    }

    fn let_users_in(&mut self, users: Users) -> Result<(), SimError> {
        if users.count == 0 {
            return Err(SimError::NoUsers);
        }
        if self.profiles.iter().all(|profile| profile.timer) {
            return Err(SimError::OnlyTimers);
        }
        (0..users.count).for_each(|_| self.think(users));
        Ok(())
    }

    /// A user thinks, then makes a call, if any is left to make.
    fn think(&mut self, users: Users) {
        let at = self.now + self.thoughts.exponential(users.think);
        if let Some(arrival) = self.workload.call_at(at) {
            self.at(at, What::Arrive { arrival });
        }
    }

    fn after(&mut self, delay: Duration, what: What) {
        self.at(self.now + delay, what);
    }

    fn at(&mut self, at: Time, what: What) {
        self.events.push(Reverse(Next { at, seq: self.seq, what }));
        self.seq += 1;
    }
}

/// A worker's number for a call, or for its reservation, is that of its ticket: it is the same
/// everywhere, and nobody has it again.
fn at_workers(ticket: Ticket) -> InvocationId {
    InvocationId(ticket.0)
}

fn package_name(package: u32) -> String {
    format!("p{package}")
}

fn outcome_of(why: Rejection) -> &'static str {
    use openlambda_core::failure::FailureKind as Kind;
    let kind = match why {
        Rejection::QueueFull | Rejection::WaitedTooLong => Kind::QueueFull,
        Rejection::Draining => Kind::Draining,
        Rejection::CodeFailed | Rejection::StartFailed(_) | Rejection::TooLarge { .. } => {
            Kind::StartFailed
        }
        _ => Kind::Internal,
    };
    kind.code()
}
