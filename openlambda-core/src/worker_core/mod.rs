//! The worker as a pure state machine, which the live worker and the simulator both drive.
//!
//! [`WorkerCore`] makes every decision of a worker: which versions it knows and which is the newest, which
//! bundles are unpacked and which are removed, calls and reservations, instances from start to end, which
//! failure a rejection becomes, how much memory a paused instance may hold, which balancer is told of an
//! idle one, and the record of each call. It surrounds the [`Scheduler`] as the
//! [`Balancer`](crate::balancing::balancer::Balancer) surrounds a policy. It knows functions by names and
//! digests, does no I/O and reads no clock: [`Input`]s go in with the time, and [`Output`]s come out. A
//! shell carries them out, `worker/dispatch.rs` in the live system and `sim/workers.rs` in the simulator.
//!
//! ```text
//!            ┌──────────────────────────── WorkerCore ─────────────────────────────┐
//!   called ─▶│ versions ─ newest? ─▶ superseded                                    │
//!  reserved ▶│ calls                    │                                          │
//!            │    └────────────────▶ Scheduler ── Fetch ─▶ code cache ─────────────│─▶ fetch, remove
//!   started ▶│ instances ──────────────▶│  ├ Start, Evict ─▶ pins ─────────────────│─▶ create, cancel, destroy
//!    paused ▶│    └ limit ◀─────────────┤  ├ Pause, Resume ─▶ limit ───────────────│─▶ pause, set limit, resume
//!  finished ▶│ record                   │  ├ Run ─▶ phases ────────────────────────│─▶ run
//!            │    ▲                     │  ├ Reject, Expire ─▶ failure ────────────│─▶ answer
//!            │    └─────────────────────┘  └ TellIdle, Offer ─▶ whose turn ────────│─▶ tell
//!            └─────────────────────────────────────────────────────────────────────┘─▶ record
//! ```
//!
//! Every call that arrives gets exactly one [`Output::Record`], and before it exactly one of
//! [`Output::Run`] and [`Output::Answer`], or a `Run` and then an `Answer` when it is over its time limit.
//! After that its id may be given to another call.
//!
//! Where the shell can measure an instance's memory and change its limit, a paused instance's limit is
//! lowered to what it uses and some slack, once memory is short. The instance has its full limit back
//! before it runs again:
//!
//! ```text
//!   full ──paused, memory short──▶ lowering ──set──▶ lowered ──resume──▶ full
//!                                     └─ wanted meanwhile: set, then resume and raise ─▶
//! ```

mod calls;
mod compiling;
mod failures;
mod messages;
mod namespaces;
mod notices;
mod phases;
pub mod recording;
#[cfg(test)]
mod tests;
mod versions;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::messages::{Accepted, Call, CallRecord, Input, Notice, Output, StreamId};

use self::calls::{CallState, Calls};
use self::compiling::Compiling;
use self::failures::refused;
use self::namespaces::Over;
use self::notices::{BalancerId, Notices};
use self::phases::Start;
use self::versions::{Versions, limits_of};
use crate::allow::Allow;
use crate::arena::Slots;
use crate::balancing::{LatencyByLoad, WorkerLoad};
use crate::code_cache::{CodeCache, Lookup};
use crate::failure::{Failure, FailureKind};
use crate::format::FormatNumber;
use crate::function::{Digest, FunctionName, Version};
use crate::invocation::{InvocationRecord, Phases, RequestId, StartKind};
use crate::keep_alive::KeepAlivePolicy;
use crate::manifest::Manifest;
use crate::metrics::Outcome;
use crate::queue::QueuePolicy;
use crate::scheduler::{
    Action, Counts, Event, InstanceId, InvocationId, MemoryPool, Rejection, Scheduler,
    SchedulerConfig, VersionId,
};
use crate::time::Time;
use crate::wire::{Reservation, ReservationKey};

/// What a core is told about its worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreConfig {
    /// Memory pool, limits, pausing.
    pub scheduler: SchedulerConfig,
    /// How long a call may wait for a slot.
    pub max_wait: Duration,
    /// Bytes of unpacked bundles to keep.
    pub code_budget: u64,
    /// What the operator lets functions ask for. Recordings that do not say it come from releases that
    /// had no bounds.
    #[serde(default = "Allow::everything")]
    pub allow: Allow,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct WorkerCore {
    max_wait: Duration,
    scheduler: Scheduler,
    cache: CodeCache,
    compiling: Compiling,
    versions: Versions,
    calls: Calls,
    instances: Slots<InstanceState>,
    notices: Notices,
    /// How long calls took, by how many others they found.
    latencies: LatencyByLoad,
    /// Why an instance did not start, until the scheduler has named the call to tell.
    start_failure: Option<(InstanceId, Failure)>,
    /// The reply that is about to be sent.
    replying: Option<Replying>,
    drain: Drain,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug)]
struct InstanceState {
    version: VersionId,
    create: Duration,
    init: Duration,
    limit: Limit,
    /// The limit that it may have while it is paused, bytes.
    needs: u64,
}

/// An instance's memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Full,
    /// It is being lowered. `resume`: the instance is wanted meanwhile.
    Lowering {
        resume: bool,
    },
    Lowered,
}

/// A reply that can tell its balancer of an idle instance, without a message of its own.
#[derive(Clone, Copy, Debug)]
struct Replying {
    invocation: InvocationId,
    version: VersionId,
    balancer: BalancerId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// Calls are taken.
    No,
    Until(Time),
    /// Everything is over.
    Done,
    /// The grace was over first.
    GaveUp,
}

impl WorkerCore {
    /// A core without calls and instances. The same inputs at the same times give the same outputs.
    pub fn new(
        config: CoreConfig,
        queue: Box<dyn QueuePolicy>,
        keep_alive: Box<dyn KeepAlivePolicy>,
    ) -> Self {
        WorkerCore {
            max_wait: config.max_wait,
            scheduler: Scheduler::new(config.scheduler, queue, keep_alive),
            cache: CodeCache::new(config.code_budget),
            compiling: Compiling::default(),
            versions: Versions::new(config.allow),
            calls: Calls::default(),
            instances: Slots::default(),
            notices: Notices::default(),
            latencies: LatencyByLoad::new(),
            start_failure: None,
            replying: None,
            drain: Drain::No,
            outputs: VecDeque::new(),
        }
    }

    /// Takes in what happened. Inputs about what the core does not know (any more) are passed over.
    pub fn handle(&mut self, now: Time, input: Input<'_>) {
        match input {
            Input::Called(call) => {
                self.call(now, call);
                return;
            }
            Input::Cancelled { invocation } => self.step(now, Event::Cancelled { invocation }),
            Input::Reserved(reservation) => self.on_reserved(now, reservation),
            Input::ReservationCancelled { key } => {
                if let Some(invocation) = self.calls.named(&key) {
                    self.step(now, Event::ReservationCancelled { invocation });
                }
            }
            Input::Subscribed { stream, balancer } => self.notices.subscribe(stream, balancer),
            Input::Unsubscribed { stream } => {
                if let Some(balancer) = self.notices.unsubscribe(stream) {
                    for invocation in self.calls.reservations_of(&balancer) {
                        self.step(now, Event::ReservationCancelled { invocation });
                    }
                }
            }
            Input::Fetched { digest, bytes, manifest } => {
                self.cache.fetched(digest, bytes, now);
                self.versions.unpacked(digest, bytes, manifest);
                self.code_came(now, digest, None);
            }
            Input::Compilable { digest, sources } => self.compiling.unpacked(digest, sources),
            Input::Compiled { digest, bytes } => {
                self.compiling.compiled();
                self.cache.grown(digest, bytes);
                self.cache.unpin(digest, now);
                self.compile_next(now);
            }
            Input::FetchFailed { digest, failure } => {
                self.cache.failed(digest);
                self.code_came(now, digest, Some(&failure));
                self.versions.not_here(&digest);
            }
            Input::Removed { digest } => {
                self.versions.not_here(&digest);
                if self.cache.removed(digest) {
                    self.fetch(now, digest);
                }
            }
            Input::Started { instance, start, create, init } => {
                if let Some(place) = self.instances.get_mut(instance.0) {
                    (place.create, place.init) = (create, init);
                    let version = place.version;
                    self.step(now, Event::SandboxReady { instance, start });
                    self.has_started(now, version);
                }
            }
            Input::StartFailed { instance, failure } => {
                // It may have failed because its imports took too long.
                if let Some(version) = self.instances.get(instance.0).map(|place| place.version) {
                    self.has_started(now, version);
                }
                if self.forget(now, instance) {
                    self.start_failure = Some((instance, failure));
                    self.step(now, Event::SandboxFailed { instance });
                    self.start_failure = None;
                }
            }
            Input::Exited { instance } => self.step(now, Event::Died { instance }),
            Input::Paused { instance, used } => self.on_paused(now, instance, used),
            Input::LimitSet { instance, bytes } => self.on_limit_set(now, instance, bytes),
            Input::Resumed { instance } => self.step(now, Event::Resumed { instance }),
            Input::Finished { invocation, run, reusable, failure, replies } => {
                self.on_finished(now, invocation, run, reusable, failure, replies);
            }
            Input::ReplyLost { version } => self.tell_idle(version),
            Input::Destroyed { instance } => {
                if self.forget(now, instance) {
                    self.step(now, Event::Destroyed { instance });
                }
            }
            Input::Deleted { functions } => self.on_deleted(now, &functions),
            Input::Prewarm { function, instances } => {
                if let Some(version) = self.versions.newest_of(&function) {
                    self.step(now, Event::Prewarm { version, instances });
                }
            }
            Input::MemoryPressure { bytes } => self.step(now, Event::MemoryPressure { bytes }),
            Input::Load { per_processor } => self.step(now, Event::Load { per_processor }),
            Input::Drain { until } => {
                if self.drain == Drain::No {
                    self.drain = Drain::Until(until);
                    // Before what ends by it, so that no balancer takes the end for a place that is free.
                    self.outputs.push_back(Output::TellAll { notice: Notice::Draining });
                    self.step(now, Event::Drain);
                }
            }
            Input::Timeout => {
                self.step(now, Event::Timeout);
                if matches!(self.drain, Drain::Until(until) if until <= now) {
                    self.drain = Drain::GaveUp;
                    self.outputs.push_back(Output::Drained { in_time: false });
                }
            }
        }
        self.remove_surplus_code(now);
    }

    /// Takes in a call: [`Input::Called`]. Its number is known to the shell before any output about it
    /// is polled.
    pub fn call(&mut self, now: Time, call: Call<'_>) -> Accepted {
        let Call { function, version, digest, balancer, reservation } = call;
        let (version, superseded) = self.intern(&function, version, digest);
        let reserved = reservation.as_ref().and_then(|key| self.calls.named(key));
        let reserved = reserved
            .filter(|id| self.calls.get(*id).is_some_and(|call| call.reserved && !call.called));
        let balancer = balancer.and_then(|name| self.notices.balancer(name));
        let found = in_flight(&self.counts());
        let invocation = match reserved {
            // It takes over the number, and has waited since its place was kept.
            Some(id) if self.calls.get(id).is_some_and(|call| call.version == version) => {
                let call = self.calls.get_mut(id).expect("it was there above");
                (call.called, call.balancer, call.found) = (true, balancer, found);
                id
            }
            _ => {
                self.versions.get_mut(version).uses += 1;
                self.calls.insert(CallState {
                    version,
                    arrived: now,
                    found,
                    reserved: false,
                    called: true,
                    key: reservation.map(Box::new),
                    balancer,
                    waits: false,
                    over: None,
                    started: None,
                    expired: false,
                })
            }
        };
        if let Some(version) = superseded {
            self.step(now, Event::Superseded { version });
        }
        if let Some(other) = reserved.filter(|reserved| *reserved != invocation) {
            // Another version was reserved than is called now.
            self.step(now, Event::ReservationCancelled { invocation: other });
        }
        let namespace = self.versions.get(version).namespace;
        if let Err(over) = self.versions.namespaces.arrives(namespace, now) {
            // Before the scheduler hears of it: its place, if one was kept, goes to another.
            self.step(now, Event::ReservationCancelled { invocation });
            self.withdraw(now, invocation, over);
            // The places that went may have been what code was kept for.
            self.remove_surplus_code(now);
            return Accepted { invocation, version };
        }
        let deadline = now + self.max_wait;
        self.step(now, Event::Arrived { invocation, version, deadline });
        self.count_waiting(now, invocation);
        self.remove_surplus_code(now);
        Accepted { invocation, version }
    }

    /// The next thing to do. Carry them out in this order; poll until `None` after each `handle` and
    /// `call`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call `handle` with [`Input::Timeout`], if nothing else happens before.
    pub fn poll_timeout(&mut self) -> Option<Time> {
        let scheduler = self.scheduler.poll_timeout();
        match self.drain {
            Drain::Until(until) => Some(scheduler.map_or(until, |at| at.min(until))),
            _ => scheduler,
        }
    }

    // What shells ask.

    /// A version's function, number as far as it was called by one, bundle and manifest (the default
    /// one before the bundle was fetched).
    pub fn version(
        &self,
        id: VersionId,
    ) -> (&FunctionName, Option<Version>, Digest, &Arc<Manifest>) {
        let version = self.versions.get(id);
        (&version.function, version.version, version.digest, &version.manifest)
    }

    /// The number of a version that is known here.
    pub fn version_id(&self, function: &FunctionName, digest: &Digest) -> Option<VersionId> {
        self.versions.known(function, digest)
    }

    /// The functions that are known here: every one that has a call or an instance, and others that had.
    pub fn functions(&self) -> impl Iterator<Item = &FunctionName> {
        self.versions.iter().map(|(_, version)| &version.function)
    }

    /// A record with its names.
    pub fn named(&self, record: &CallRecord, id: RequestId, worker: &str) -> InvocationRecord {
        let version = self.versions.get(record.version);
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        InvocationRecord {
            v: FormatNumber,
            request_id: id,
            function: version.function.clone(),
            digest: Some(version.digest),
            worker: worker.to_owned(),
            arrived_ns: record.arrived.as_nanos(),
            start: record.start,
            queue_ns: ns(record.phases.queue),
            pull_ns: ns(record.phases.pull),
            create_ns: ns(record.phases.create),
            init_ns: ns(record.phases.init),
            run_ns: ns(record.phases.run),
            network_ns: 0,
            outcome: record.outcome.as_str().to_owned(),
        }
    }

    /// What a sandbox's failure is, of a call of this version if that is known. One that ends because the worker
    /// does is not the function's fault, and one for lack of memory names the limit.
    pub fn blamed(&self, version: Option<VersionId>, failure: Failure) -> Failure {
        if failure.kind == FailureKind::OutOfMemory
            && let Some(version) = version
        {
            let limit = self.versions.get(version).manifest.memory_mb;
            return failures::out_of_memory(failure, limit);
        }
        if failure.kind != FailureKind::SandboxCrashed || self.drain != Drain::GaveUp {
            return failure;
        }
        failures::shut_down(failure)
    }

    /// Whether a balancer of this name has a stream, so that it may make reservations.
    pub fn listens(&self, balancer: &str) -> bool {
        self.notices.balancer(balancer).is_some()
    }

    /// Whether it takes no more calls.
    pub fn is_draining(&self) -> bool {
        self.drain != Drain::No
    }

    /// How much there is of everything.
    pub fn counts(&self) -> Counts {
        self.scheduler.counts()
    }

    /// The load, as balancers get it.
    pub fn load(&self, now: Time) -> WorkerLoad {
        let (counts, pool) = (self.scheduler.counts(), self.scheduler.pool());
        let latency = self.latencies.estimate(now, in_flight(&counts)).unwrap_or_default();
        WorkerLoad {
            running: counts.running,
            queued: counts.waiting,
            idle: counts.idle,
            memory_used: pool.used(),
            memory_total: pool.total(),
            latency_ns: u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// The memory pool.
    pub fn memory(&self) -> MemoryPool {
        self.scheduler.pool()
    }

    /// Versions with idle instances, and how many, in the order of their numbers.
    pub fn idle_versions(&self) -> impl Iterator<Item = (VersionId, u32)> {
        self.scheduler.idle_versions()
    }

    /// Functions with idle instances, and how many.
    pub fn idle(&self) -> Vec<(FunctionName, u32)> {
        let mut idle = BTreeMap::<&FunctionName, u32>::new();
        for (version, count) in self.idle_versions() {
            *idle.entry(&self.versions.get(version).function).or_default() += count;
        }
        idle.into_iter().map(|(name, count)| (name.clone(), count)).collect()
    }

    /// Bytes of unpacked bundles on the disk, those that are being removed among them.
    pub fn code_bytes(&self) -> u64 {
        self.cache.on_disk()
    }

    // Calls.

    fn on_reserved(&mut self, now: Time, reservation: Reservation) {
        let Reservation { balancer, ticket, function, version, digest, deadline_ms } = reservation;
        let key = ReservationKey { balancer, ticket };
        if !self.listens(&key.balancer) || self.calls.named(&key).is_some() {
            return;
        }
        let (version, superseded) = self.intern(&function, Some(version), digest);
        if let Some(version) = superseded {
            self.step(now, Event::Superseded { version });
        }
        self.versions.get_mut(version).uses += 1;
        let invocation = self.calls.insert(CallState {
            version,
            arrived: now,
            found: 0,
            reserved: true,
            called: false,
            key: Some(Box::new(key)),
            balancer: None,
            waits: false,
            over: None,
            started: None,
            expired: false,
        });
        let deadline = now + Duration::from_millis(deadline_ms).min(self.max_wait);
        self.step(now, Event::Reserved { invocation, version, deadline });
    }

    /// A call that has arrived and does not run yet is one of its namespace's that wait; it leaves again
    /// if those are as many as may.
    fn count_waiting(&mut self, now: Time, invocation: InvocationId) {
        let Some(call) = self.calls.get_mut(invocation) else { return };
        if call.started.is_some() || !call.called {
            return;
        }
        call.waits = true;
        let namespace = self.versions.get(call.version).namespace;
        if let Err(over) = self.versions.namespaces.waits(namespace) {
            call.over = Some(over);
            self.step(now, Event::Cancelled { invocation });
        }
    }

    /// A call that the scheduler does not know is rejected.
    fn withdraw(&mut self, now: Time, invocation: InvocationId, over: Over) {
        if let Some(call) = self.calls.get_mut(invocation) {
            call.over = Some(over);
            self.reject(now, invocation, Rejection::QueueFull);
        }
    }

    fn on_finished(
        &mut self,
        now: Time,
        invocation: InvocationId,
        run: Duration,
        reusable: bool,
        failure: Option<FailureKind>,
        replies: bool,
    ) {
        let Some(call) = self.calls.get(invocation) else { return };
        let Some((start, phases)) = call.started else { return };
        let outcome = match failure {
            _ if call.expired => Outcome::Failed(FailureKind::Timeout),
            Some(kind) => Outcome::Failed(kind),
            None => Outcome::Ok,
        };
        if outcome == Outcome::Ok {
            self.latencies.finished(now, call.found, now.since(call.arrived));
        }
        self.replying = call
            .balancer
            .filter(|_| replies && !call.expired)
            .map(|balancer| Replying { invocation, version: call.version, balancer });
        self.outputs.push_back(Output::Record(CallRecord {
            invocation,
            version: call.version,
            arrived: call.arrived,
            start: Some(start),
            phases: Phases { run, ..phases },
            outcome,
        }));
        self.over(invocation, |call| call.called = false);
        self.step(now, Event::Finished { invocation, reusable });
        self.replying = None;
    }

    fn reject(&mut self, now: Time, invocation: InvocationId, why: Rejection) {
        let Some(call) = self.calls.get_mut(invocation) else { return };
        let (id, arrived, over) = (call.version, call.arrived, call.over);
        if std::mem::take(&mut call.waits) {
            let namespace = self.versions.get(id).namespace;
            self.versions.namespaces.waits_no_more(namespace);
        }
        let start = match (why, &self.start_failure) {
            (Rejection::StartFailed(instance), Some((failed, failure))) if *failed == instance => {
                Some(failure.clone())
            }
            _ => None,
        };
        let version = self.versions.get(id);
        let (why, failure) = match over {
            Some(over) => (Rejection::QueueFull, failures::of_quota(over, version)),
            None => (why, failures::of_rejection(why, version, self.max_wait, start)),
        };
        let record = CallRecord {
            invocation,
            version: id,
            arrived,
            start: None,
            phases: Phases { queue: now.since(arrived), ..Phases::default() },
            outcome: failures::outcome_of(why, &failure),
        };
        self.outputs.push_back(Output::Answer { invocation, failure: Box::new(failure) });
        self.outputs.push_back(Output::Record(record));
        self.over(invocation, |call| call.called = false);
    }

    fn run(&mut self, now: Time, invocation: InvocationId, instance: InstanceId, start: StartKind) {
        let call = self.calls.get_mut(invocation).expect("a call that runs has arrived");
        let version = call.version;
        if std::mem::take(&mut call.waits) {
            let namespace = self.versions.get(version).namespace;
            self.versions.namespaces.waits_no_more(namespace);
        }
        let phases = if start == StartKind::Warm {
            phases::phases(call.arrived, now, start, &Start::default())
        } else {
            let place = self.instances.get(instance.0).expect("it runs in an instance");
            let pulled = self.versions.get(version).pulled;
            let waited = Start { pulled, create: place.create, init: place.init };
            phases::phases(call.arrived, now, start, &waited)
        };
        call.started = Some((start, phases));
        self.outputs.push_back(Output::Run { invocation, instance, version, start, phases });
    }

    fn over(&mut self, invocation: InvocationId, end: impl FnOnce(&mut CallState)) {
        if let Some(call) = self.calls.over(invocation, end) {
            self.versions.get_mut(call.version).uses -= 1;
        }
    }

    fn intern(
        &mut self,
        function: &FunctionName,
        version: Option<Version>,
        digest: Digest,
    ) -> (VersionId, Option<VersionId>) {
        let scheduler = &mut self.scheduler;
        let interned = self.versions.intern(function, version, digest, |id| scheduler.forget(id));
        if let Some(id) = self.versions.take_added() {
            let namespace = self.versions.get(id).namespace;
            let share = self.versions.namespaces.memory_share(namespace);
            self.scheduler.belongs(id, namespace, share);
        }
        interned
    }

    // The scheduler.

    /// One event, and all actions that follow from it.
    fn step(&mut self, now: Time, event: Event) {
        self.scheduler.handle(now, event);
        while let Some(action) = self.scheduler.poll_action() {
            self.carry_out(now, action);
        }
    }

    fn carry_out(&mut self, now: Time, action: Action) {
        match action {
            Action::Fetch { version } => self.want_code(now, version),
            Action::Start { instance, version } => {
                let state = self.versions.get_mut(version);
                state.uses += 1;
                let pinned = self.cache.pin(state.digest, now);
                debug_assert!(pinned, "an instance starts from code that is held");
                let (create, init) = (Duration::ZERO, Duration::ZERO);
                let state = InstanceState { version, create, init, limit: Limit::Full, needs: 0 };
                self.instances.insert(instance.0, state);
                self.outputs.push_back(Output::Create { instance, version });
            }
            Action::CancelStart { instance } => {
                self.outputs.push_back(Output::Cancel { instance });
            }
            Action::Run { invocation, instance, start } => {
                self.run(now, invocation, instance, start);
            }
            Action::Expire { invocation } => {
                if let Some(call) = self.calls.get_mut(invocation) {
                    call.expired = true;
                    let failure = failures::timed_out(self.versions.get(call.version));
                    let failure = Box::new(failure);
                    self.outputs.push_back(Output::Answer { invocation, failure });
                }
            }
            Action::Reject { invocation, why } => self.reject(now, invocation, why),
            Action::Pause { instance } => self.outputs.push_back(Output::Pause { instance }),
            Action::Lower { instance } => {
                if let Some(place) = self.instances.get_mut(instance.0) {
                    place.limit = Limit::Lowering { resume: false };
                    let bytes = place.needs;
                    self.outputs.push_back(Output::SetLimit { instance, bytes });
                }
            }
            Action::Resume { instance } => self.resume(instance),
            Action::Evict { instance, why } => {
                if let Some(place) = self.instances.get_mut(instance.0) {
                    // It may have been wanted while its limit is set; it is not resumed any more.
                    place.limit = Limit::Full;
                }
                self.outputs.push_back(Output::Destroy { instance, why });
            }
            Action::Offer { invocation, .. } => {
                let key = self.calls.get(invocation).and_then(|call| call.key.as_ref());
                if let Some(key) = key
                    && let Some(stream) = self.notices.stream_of(&key.balancer)
                {
                    let notice = Notice::Offered { ticket: key.ticket };
                    self.outputs.push_back(Output::Tell { stream, notice });
                }
            }
            Action::ReservationOver { invocation, .. } => {
                self.over(invocation, |call| call.reserved = false);
            }
            Action::TellIdle { version } => match self.replying {
                Some(replying)
                    if replying.version == version
                        && self.notices.takes_turn(replying.balancer) =>
                {
                    self.replying = None;
                    let invocation = replying.invocation;
                    self.outputs.push_back(Output::IdleWithReply { invocation, version });
                }
                _ => self.tell_idle(version),
            },
            Action::TellEvicted { version } => {
                let notice = Notice::Evicted { version };
                self.outputs.push_back(Output::TellAll { notice });
            }
            Action::Drained => {
                if matches!(self.drain, Drain::Until(_)) {
                    self.drain = Drain::Done;
                    self.outputs.push_back(Output::Drained { in_time: true });
                }
            }
        }
    }

    fn tell_idle(&mut self, version: VersionId) {
        if let Some(stream) = self.notices.next() {
            let notice = Notice::Idle { version };
            self.outputs.push_back(Output::Tell { stream, notice });
        }
    }

    // Code.

    fn want_code(&mut self, now: Time, id: VersionId) {
        let digest = self.versions.get(id).digest;
        let found = self.cache.want(digest, now);
        // A call that came before its function was deleted does not make the bundle stay.
        self.discard_if_deleted(digest);
        let version = self.versions.get_mut(id);
        match found {
            Lookup::Held => {
                // Unpacked before, for itself or for another function with the same bytes.
                let (manifest, bytes) = self.versions.contents_of(&digest).expect("it is unpacked");
                let manifest = manifest.clone();
                let version = self.versions.get_mut(id);
                version.pulled = Some((now, now));
                let allow = self.versions.namespaces.allow();
                let refused = refused(allow, &self.versions.get(id).function, &manifest, bytes);
                let version = self.versions.get_mut(id);
                let limits = limits_of(&manifest);
                version.manifest = manifest;
                version.failure = refused.map(Box::new);
                let event = match version.failure {
                    None => Event::CodeReady { version: id, limits },
                    Some(_) => Event::CodeFailed { version: id },
                };
                self.scheduler.handle(now, event);
            }
            Lookup::Wait => version.fetching = true,
            Lookup::Fetch => {
                version.fetching = true;
                self.fetch(now, digest);
            }
        }
    }

    fn fetch(&mut self, now: Time, digest: Digest) {
        self.versions.fetch_begins(digest, now);
        self.outputs.push_back(Output::Fetch { digest });
    }

    /// A fetch is over; those who wait for it learn of it.
    fn code_came(&mut self, now: Time, digest: Digest, failure: Option<&Failure>) {
        let began = self.versions.fetch_began(&digest).unwrap_or(now);
        let contents = self.versions.contents_of(&digest);
        let contents = contents.map(|(manifest, bytes)| (manifest.clone(), bytes));
        let waiting = self.versions.with_bundle(&digest);
        let waiting: Vec<_> = waiting.filter(|id| self.versions.get(*id).fetching).collect();
        for id in waiting {
            let version = self.versions.get_mut(id);
            version.fetching = false;
            version.pulled = Some((began, now));
            let failure = match &contents {
                _ if failure.is_some() => failure.cloned(),
                // The bundle may be older than the bound, and functions of two namespaces may have it.
                Some((manifest, bytes)) => {
                    let allow = self.versions.namespaces.allow();
                    refused(allow, &self.versions.get(id).function, manifest, *bytes)
                }
                None => None,
            };
            let version = self.versions.get_mut(id);
            version.failure = failure.map(Box::new);
            match &contents {
                Some((manifest, _)) if version.failure.is_none() => {
                    version.manifest = manifest.clone();
                    let limits = limits_of(manifest);
                    self.step(now, Event::CodeReady { version: id, limits });
                }
                _ => self.step(now, Event::CodeFailed { version: id }),
            }
        }
    }

    /// An instance of this version has started, or has failed to: its bundle may be compiled now.
    fn has_started(&mut self, now: Time, version: VersionId) {
        self.compiling.started(self.versions.get(version).digest);
        self.compile_next(now);
    }

    fn compile_next(&mut self, now: Time) {
        if self.drain != Drain::No {
            return;
        }
        while let Some(digest) = self.compiling.next() {
            // It stays while it is compiled.
            let version = self.versions.with_bundle(&digest).next();
            match version.filter(|_| self.cache.pin(digest, now)) {
                Some(version) => {
                    self.outputs.push_back(Output::Compile { digest, version });
                    return;
                }
                None => self.compiling.compiled(),
            }
        }
    }

    fn remove_surplus_code(&mut self, now: Time) {
        while self.cache.has_surplus() {
            let (versions, scheduler) = (&self.versions, &self.scheduler);
            let wanted =
                |digest: &Digest| versions.with_bundle(digest).any(|id| scheduler.waits(id));
            let Some(digest) = self.cache.poll_removal(now, wanted) else { return };
            let with_it: Vec<_> = self.versions.with_bundle(&digest).collect();
            for version in with_it {
                self.step(now, Event::CodeGone { version });
            }
            self.compiling.removed(&digest);
            self.outputs.push_back(Output::Remove { digest });
        }
    }

    fn on_deleted(&mut self, now: Time, functions: &[FunctionName]) {
        let known = self.versions.iter();
        let gone = known.filter(|(_, version)| functions.contains(&version.function));
        let gone: Vec<_> = gone.map(|(id, version)| (id, version.digest)).collect();
        for (id, _) in &gone {
            self.versions.get_mut(*id).deleted = true;
        }
        for (id, digest) in gone {
            self.discard_if_deleted(digest);
            self.step(now, Event::Superseded { version: id });
        }
    }

    /// Another function may have the same bytes.
    fn discard_if_deleted(&mut self, digest: Digest) {
        let mut with_it = self.versions.with_bundle(&digest);
        if with_it.all(|id| self.versions.get(id).deleted) {
            self.cache.discard(digest);
        }
    }

    // Instances.

    fn on_paused(&mut self, now: Time, instance: InstanceId, used: Option<u64>) {
        let Some(place) = self.instances.get_mut(instance.0) else { return };
        let full = self.versions.get(place.version).manifest.memory_bytes();
        place.needs = used.map_or(full, with_slack).min(full);
        let spare = full - place.needs;
        self.step(now, Event::Paused { instance, spare });
    }

    fn on_limit_set(&mut self, now: Time, instance: InstanceId, bytes: Option<u64>) {
        let Some(place) = self.instances.get_mut(instance.0) else { return };
        let Limit::Lowering { resume } = place.limit else { return };
        place.limit = if bytes.is_some() { Limit::Lowered } else { Limit::Full };
        if resume {
            self.resume(instance);
        } else {
            // Where it could not be lowered, memory has to come from elsewhere.
            let full = self.versions.get(place.version).manifest.memory_bytes();
            let bytes = bytes.unwrap_or(full);
            self.step(now, Event::Lowered { instance, bytes });
        }
    }

    fn resume(&mut self, instance: InstanceId) {
        let Some(place) = self.instances.get_mut(instance.0) else { return };
        let raise = match place.limit {
            Limit::Full => None,
            Limit::Lowering { .. } => {
                place.limit = Limit::Lowering { resume: true };
                return;
            }
            Limit::Lowered => Some(self.versions.get(place.version).manifest.memory_bytes()),
        };
        place.limit = Limit::Full;
        self.outputs.push_back(Output::Resume { instance, raise });
    }

    /// Nothing is left of an instance: its code may go too. Whether it was there.
    fn forget(&mut self, now: Time, instance: InstanceId) -> bool {
        let Some(place) = self.instances.remove(instance.0) else { return false };
        let version = self.versions.get_mut(place.version);
        version.uses -= 1;
        self.cache.unpin(version.digest, now);
        true
    }
}

/// Calls that run or wait: what a call finds that arrives.
fn in_flight(counts: &Counts) -> u32 {
    counts.running + counts.waiting
}

/// What a paused instance that uses so much may hold: an eighth more, for what the kernel still charges
/// to it while nothing of it runs; but some pages.
fn with_slack(used: u64) -> u64 {
    const LEAST_SLACK: u64 = 4 << 20;
    used.saturating_add((used / 8).max(LEAST_SLACK))
}
