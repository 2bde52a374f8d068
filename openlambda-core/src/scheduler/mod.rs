//! The worker's scheduler: which invocation runs in which instance, and which instances there are.
//!
//! [`Scheduler`] is a pure state machine in the shape of quinn-proto: [`handle`](Scheduler::handle)
//! takes an [`Event`] and the time, [`poll_action`](Scheduler::poll_action) yields what the shell
//! must do, [`poll_timeout`](Scheduler::poll_timeout) says when it wants to be called again without
//! an event. The worker's shell and the simulator drive this same type.
//!
//! # The life of an instance
//!
//! ```text
//!   wish ──memory──▶ starting ──ready──▶ idle ◀──finished / run──▶ busy
//!     │                 │ │               │ ▲                        │
//!   (dropped)      failed cancelled       │ └── resuming ◀─┐         │ died, timed out,
//!                       │ │        pause  ▼                │ resume  │ not reusable
//!                       ▼ │            pausing ──▶ paused ─┘         │
//!                   (gone)│               │           │              ▼
//!                         └───────────────┴──evict────┴──────────▶ ending ──destroyed──▶ (gone)
//! ```
//!
//! # The life of an invocation
//!
//! ```text
//!   arrived ──▶ waiting ──Run──▶ running ──finished──▶ (over)
//!      │           │                └─ Expire: answered, still running until finished
//!      └─ Reject ◀─┘  (queue full, too late, cancelled, start or code failed, draining)
//! ```
//!
//! Each invocation that arrives gets exactly one of [`Action::Reject`] and [`Action::Run`]. Memory
//! is taken from the pool when an instance starts and given back when it is *gone*, not when its
//! end begins. Wishes for instances are served first come, first served over all functions, so a
//! large function is not starved by small ones. A paused instance may be told to hold less
//! ([`Event::Lowered`]); before it is resumed the rest is taken again, in turn with the wishes.
//!
//! # The life of a reservation
//!
//! A balancer that binds late (Sparrow, SOSP 2013) sends a place in the queue ahead to several
//! workers, and the invocation itself to the one whose queue comes to it first. A reservation is that
//! place: it bears the id of the invocation that may come, waits in turn with the invocations,
//! counts to the queue's bound and has instances started for it like one.
//!
//! ```text
//!   reserved ──▶ waiting ──Offer──▶ offered ───────────────┐
//!      │           │ │             (a slot is held)        │ arrived: runs in the slot at once
//!      │           │ └─ arrived: the invocation            ▼
//!      │           │    waits in its place ─────▶ (over: Taken)
//!      │           │                  │
//!      │           │ cancelled,       │ cancelled, not taken in time,
//!      │           │ too late         │ instance ended
//!      └─ refused ─┴──────────────────┴─────────▶ (over; the slot goes to the next)
//! ```
//!
//! Each reservation gets exactly one [`Action::ReservationOver`]. A slot that is held is busy: it is
//! given to nobody else, and its instance is neither paused nor evicted for time or memory. An
//! invocation that comes after its reservation is over is one like any other, so whatever gets lost
//! on the way, it runs once or is rejected once. A drain ends all reservations.

mod memory;
mod messages;
mod reservations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use memory::MemoryPool;
pub use messages::{
    Action, Counts, Event, EvictReason, InstanceId, InvocationId, Limits, Rejection,
    ReservationEnd, VersionId,
};

use crate::invocation::StartKind;
use crate::keep_alive::{InstanceFacts, KeepAlivePolicy};
use crate::queue::{MakeQueue, QueuePolicy, Waiting};
use crate::time::Time;

/// What the scheduler is told about the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// The size of the memory pool, bytes.
    pub memory: u64,
    /// How many instances may be starting at once.
    pub max_starting: u32,
    /// Pause an instance after this time without use; `None` never pauses.
    pub pause_after: Option<Duration>,
    /// When a wish for memory is older than this, busy instances of other versions that become free
    /// are evicted for it although invocations of their own wait.
    pub fairness: Duration,
    /// How long a slot is held for a reservation's invocation before it goes to the next: some
    /// round trips to the balancer, since nothing runs there meanwhile.
    pub offer_timeout: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            memory: 4 << 30,
            max_starting: 16,
            pause_after: None,
            fairness: Duration::from_secs(1),
            offer_timeout: Duration::from_millis(200),
        }
    }
}

/// See the module's documentation.
pub struct Scheduler {
    config: SchedulerConfig,
    make_queue: MakeQueue,
    keep_alive: Box<dyn KeepAlivePolicy>,
    pool: MemoryPool,
    versions: Vec<Version>,
    instances: BTreeMap<InstanceId, Instance>,
    /// Invocations and reservations in the queues.
    waiting: BTreeMap<InvocationId, Place>,
    /// How many of those that wait are reservations.
    reserved: u32,
    /// Reservations that a slot is held for.
    offered: BTreeMap<InvocationId, Offer>,
    running: BTreeMap<InvocationId, (InstanceId, Option<Time>)>,
    /// Wishes for memory for one more instance, first come first served: whose, and since when.
    wishes: BTreeMap<u64, (VersionId, Time)>,
    next_wish: u64,
    starting: u32,
    /// Bytes that come back to the pool when what is ending is gone.
    ending_bytes: u64,
    /// Bytes of the instances that retire.
    retiring_bytes: u64,
    timers: BTreeSet<(Time, Timer)>,
    actions: VecDeque<Action>,
    next_instance: u64,
    draining: bool,
    drained: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Wait(InvocationId),
    Offer(InvocationId),
    Run(InvocationId),
    Pause(InstanceId),
    Expire(InstanceId),
}

/// A place in a version's queue.
#[derive(Clone, Copy)]
struct Place {
    version: VersionId,
    deadline: Time,
    /// Its invocation has not arrived yet.
    reserved: bool,
}

/// A slot that is held.
#[derive(Clone, Copy)]
struct Offer {
    instance: InstanceId,
    /// When the place was reserved.
    since: Time,
    until: Time,
    /// How warm the instance is for the one for which the slot is held.
    start: StartKind,
}

struct Version {
    code: Code,
    superseded: bool,
    queue: Box<dyn QueuePolicy>,
    /// Instances with a free slot, the one used last at the end: it is used next, so that the
    /// others can expire.
    free: Vec<InstanceId>,
    paused: Vec<InstanceId>,
    /// Instances in any state but ending.
    instances: u32,
    /// Slots that are coming: of instances that are starting or resuming.
    promised: u32,
    /// Its keys in [`Scheduler::wishes`], oldest first: instances that wait for memory.
    wishes: VecDeque<u64>,
    /// Instances that shall be there although nothing waits.
    prewarm: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Code {
    Unknown,
    Fetching,
    Ready(Limits),
    /// The limits are known, the folder is gone.
    Gone(Limits),
}

struct Instance {
    version: VersionId,
    /// What it takes from the pool now, bytes.
    memory: u64,
    /// What it takes unless it is paused.
    full: u64,
    slots: u32,
    /// Slots that are busy, the held ones among them.
    used: u32,
    held: u32,
    /// An invocation has run in it.
    ran: bool,
    state: State,
    started: Time,
    /// How it was made, until it has been given its first invocations.
    fresh: Option<StartKind>,
    /// The keep-alive policy and the balancers were told that it is idle.
    resting: bool,
    /// It takes no more invocations and is evicted when those that it has are over.
    retiring: bool,
    pause_at: Option<Time>,
    expire_at: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting,
    /// `CancelStart` was said; `Destroyed`, `SandboxReady` or `SandboxFailed` comes.
    Cancelling,
    /// Idle when no slot is used or held, else busy.
    Up,
    Pausing {
        wanted: bool,
    },
    Paused,
    Resuming,
    /// It takes no more invocations; `Evict` was said.
    Ending,
    /// `Destroyed` came before the last `Finished`.
    Gone,
}

impl std::fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scheduler").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Scheduler {
    /// A scheduler without instances.
    pub fn new(
        config: SchedulerConfig,
        make_queue: MakeQueue,
        keep_alive: Box<dyn KeepAlivePolicy>,
    ) -> Self {
        Scheduler {
            pool: MemoryPool::new(config.memory),
            config,
            make_queue,
            keep_alive,
            versions: Vec::new(),
            instances: BTreeMap::new(),
            waiting: BTreeMap::new(),
            reserved: 0,
            offered: BTreeMap::new(),
            running: BTreeMap::new(),
            wishes: BTreeMap::new(),
            next_wish: 0,
            starting: 0,
            ending_bytes: 0,
            retiring_bytes: 0,
            timers: BTreeSet::new(),
            actions: VecDeque::new(),
            next_instance: 0,
            draining: false,
            drained: false,
        }
    }

    /// Takes in what happened. Events about what the scheduler does not know (any more) are passed
    /// over.
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Arrived { invocation, version, deadline } => {
                self.on_arrived(now, invocation, version, deadline);
            }
            Event::Cancelled { invocation } => {
                if self.waiting.get(&invocation).is_some_and(|place| !place.reserved) {
                    self.reject_waiting(invocation, Rejection::Cancelled);
                }
            }
            Event::Reserved { invocation, version, deadline } => {
                self.on_reserved(now, invocation, version, deadline);
            }
            Event::ReservationCancelled { invocation } => {
                self.on_reservation_cancelled(now, invocation);
            }
            Event::CodeReady { version, limits } => self.on_code_ready(now, version, limits),
            Event::CodeFailed { version } => self.on_code_failed(now, version),
            Event::CodeGone { version } => {
                let version = self.version(version);
                if let Code::Ready(limits) = version.code {
                    version.code = Code::Gone(limits);
                }
            }
            Event::SandboxReady { instance, start } => self.on_sandbox_ready(now, instance, start),
            Event::SandboxFailed { instance } => self.on_sandbox_failed(now, instance),
            Event::Finished { invocation, reusable } => {
                self.on_finished(now, invocation, reusable);
            }
            Event::Paused { instance } => self.on_paused(instance),
            Event::Lowered { instance, bytes } => self.on_lowered(instance, bytes),
            Event::Resumed { instance } => self.on_resumed(now, instance),
            Event::Died { instance } => self.evict(now, instance, EvictReason::Broken),
            Event::Destroyed { instance } => self.on_destroyed(instance),
            Event::Superseded { version } => self.on_superseded(now, version),
            Event::Prewarm { version, instances } => {
                self.on_prewarm(now, version, instances);
            }
            Event::MemoryPressure { bytes } => self.on_memory_pressure(now, bytes),
            Event::Drain => self.on_drain(now),
            Event::Timeout => self.on_timeout(now),
        }
        self.serve_wishes(now);
        if self.draining
            && !self.drained
            && self.instances.is_empty()
            && self.waiting.is_empty()
            && self.running.is_empty()
        {
            self.drained = true;
            self.actions.push_back(Action::Drained);
        }
    }

    /// The next thing to do. Carry them out in this order; poll until `None` after each `handle`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call `handle` with [`Event::Timeout`], if nothing else happens before.
    pub fn poll_timeout(&self) -> Option<Time> {
        let timer = self.timers.first().map(|(time, _)| *time);
        // What ends has no use for instances that the keep-alive policy starts ahead.
        let wakeup = self.keep_alive.next_wakeup().filter(|_| !self.draining);
        timer.into_iter().chain(wakeup).min()
    }

    /// The memory pool.
    pub fn pool(&self) -> MemoryPool {
        self.pool
    }

    /// How much there is of everything. O(instances).
    pub fn counts(&self) -> Counts {
        let mut counts = Counts {
            waiting: self.waiting.len() as u32 - self.reserved,
            reserved: self.reserved,
            offered: self.offered.len() as u32,
            running: self.running.len() as u32,
            ..Counts::default()
        };
        for instance in self.instances.values() {
            match instance.state {
                State::Starting | State::Cancelling => counts.starting += 1,
                State::Up if instance.used > 0 => counts.busy += 1,
                State::Up => counts.idle += 1,
                State::Pausing { .. } | State::Paused | State::Resuming => {
                    counts.idle += 1;
                    counts.paused += 1;
                }
                State::Ending | State::Gone => counts.ending += 1,
            }
        }
        counts
    }

    /// The versions with idle instances (paused ones too), and how many.
    pub fn idle_by_version(&self) -> BTreeMap<VersionId, u32> {
        let mut idle = BTreeMap::new();
        for instance in self.instances.values() {
            let is_idle = match instance.state {
                State::Up => instance.used == 0,
                State::Pausing { .. } | State::Paused | State::Resuming => true,
                _ => false,
            };
            if is_idle {
                *idle.entry(instance.version).or_default() += 1;
            }
        }
        idle
    }

    /// Whether an instance of the version is wished for, so that its code is needed soon.
    pub fn waits(&self, version: VersionId) -> bool {
        let version = self.versions.get(version.0 as usize);
        version.is_some_and(|version| !version.queue.is_empty() || version.prewarm > 0)
    }

    /// Whether the instance is paused, and not on its way back.
    pub fn is_paused(&self, instance: InstanceId) -> bool {
        self.instances.get(&instance).is_some_and(|instance| instance.state == State::Paused)
    }

    /// Forgets a version of which nothing is left: no invocation, no instance, no fetch. Its id can
    /// be given to another one then. Returns whether it is forgotten.
    ///
    /// O(instances).
    pub fn forget(&mut self, id: VersionId) -> bool {
        let fresh = self.fresh_version();
        let Some(version) = self.versions.get_mut(id.0 as usize) else { return true };
        let waits = !version.queue.is_empty() || version.prewarm > 0 || !version.wishes.is_empty();
        if waits
            || version.code == Code::Fetching
            || self.instances.values().any(|instance| instance.version == id)
        {
            return false;
        }
        *version = fresh;
        true
    }

    // Invocations.

    fn on_arrived(
        &mut self,
        now: Time,
        invocation: InvocationId,
        version_id: VersionId,
        deadline: Time,
    ) {
        if self.take_reservation(now, invocation, version_id, deadline) {
            return;
        }
        match self.admits(version_id) {
            Ok(()) => self.enqueue(now, invocation, version_id, deadline, false),
            Err(why) => self.actions.push_back(Action::Reject { invocation, why }),
        }
    }

    /// Whether one more may wait for the version.
    fn admits(&mut self, version_id: VersionId) -> Result<(), Rejection> {
        let draining = self.draining;
        let pool = self.pool.total();
        let version = self.version(version_id);
        let limits = version.code.limits();
        let waiting = version.queue.len();
        match limits {
            _ if draining => Err(Rejection::Draining),
            Some(limits) if limits.memory > pool => {
                Err(Rejection::TooLarge { needs: limits.memory, pool })
            }
            // What a free slot takes at once does not wait, so a limit of 0 still serves. The slots
            // that are coming are not part of the queue's bound.
            Some(limits)
                if version.free.is_empty()
                    && waiting >= limits.queue as usize + version.spare(limits) as usize =>
            {
                Err(Rejection::QueueFull)
            }
            None if waiting >= QUEUE_BEFORE_CODE => Err(Rejection::QueueFull),
            _ => Ok(()),
        }
    }

    fn enqueue(
        &mut self,
        now: Time,
        invocation: InvocationId,
        version_id: VersionId,
        deadline: Time,
        reserved: bool,
    ) {
        let version = self.version(version_id);
        version.superseded = false;
        version.queue.push(Waiting { invocation, arrived: now, deadline });
        self.waiting.insert(invocation, Place { version: version_id, deadline, reserved });
        self.reserved += u32::from(reserved);
        self.timers.insert((deadline, Timer::Wait(invocation)));
        self.pump(now, version_id);
    }

    /// What waits is over; its wishes for instances shrink with the queue.
    fn reject_waiting(&mut self, invocation: InvocationId, why: Rejection) {
        self.leave_queue(
            invocation,
            Action::Reject { invocation, why },
            ReservationEnd::Refused(why),
        );
    }

    fn leave_queue(&mut self, invocation: InvocationId, rejection: Action, end: ReservationEnd) {
        let Some(place) = self.waiting.remove(&invocation) else { return };
        self.timers.remove(&(place.deadline, Timer::Wait(invocation)));
        self.version(place.version).queue.remove(invocation);
        if place.reserved {
            self.reserved -= 1;
            self.reservation_over(invocation, end);
        } else {
            self.actions.push_back(rejection);
        }
        self.drop_surplus_wishes(place.version);
    }

    // Runs.

    fn on_finished(&mut self, now: Time, invocation: InvocationId, reusable: bool) {
        let Some((id, limit)) = self.running.remove(&invocation) else { return };
        if let Some(limit) = limit {
            self.timers.remove(&(limit, Timer::Run(invocation)));
        }
        self.free_slot(now, id, reusable);
    }

    /// A slot that ran an invocation, or was held for one that did not come, is free.
    fn free_slot(&mut self, now: Time, id: InstanceId, reusable: bool) {
        let instance = self.instances.get_mut(&id).expect("a used slot has an instance");
        instance.used -= 1;
        let ran = instance.ran;
        let (version, used, state) = (instance.version, instance.used, instance.state);
        let was_full = used + 1 == instance.slots;
        match state {
            State::Gone => {
                if used == 0 {
                    self.instances.remove(&id);
                }
                return;
            }
            State::Ending => return,
            _ => {}
        }
        let reuse = self.version(version).code.limits().is_none_or(|limits| limits.reuse);
        if !reusable {
            self.evict(now, id, EvictReason::Broken);
        } else if !reuse && ran {
            if used == 0 {
                self.evict(now, id, EvictReason::NoReuse);
            }
        } else {
            let yields = self.must_yield(now, version);
            let instance = self.instances.get_mut(&id).expect("it was there above");
            if yields && !instance.retiring {
                instance.retiring = true;
                self.retiring_bytes += instance.memory;
                self.version(version).free.retain(|free| *free != id);
            } else if was_full && !instance.retiring {
                self.version(version).free.push(id);
            }
            if used == 0 && self.instances[&id].retiring {
                self.evict(now, id, EvictReason::Memory);
            }
        }
        self.pump(now, version);
        self.rest(now, id);
    }

    /// Whether a version must give up a free instance: somebody else has waited for memory for too
    /// long, and what is ending already does not suffice.
    fn must_yield(&self, now: Time, version: VersionId) -> bool {
        let Some((_, (wisher, since))) = self.wishes.first_key_value() else { return false };
        let needs = self.versions[wisher.0 as usize].code.limits().map_or(0, |l| l.memory);
        *wisher != version
            && now.since(*since) > self.config.fairness
            && self.pool.free() + self.ending_bytes + self.retiring_bytes < needs
    }

    // Code.

    fn on_code_ready(&mut self, now: Time, version_id: VersionId, limits: Limits) {
        let pool = self.pool.total();
        let version = self.version(version_id);
        version.code = Code::Ready(limits);
        if limits.memory > pool {
            version.prewarm = 0;
            let why = Rejection::TooLarge { needs: limits.memory, pool };
            self.reject_all(version_id, why, now);
            return;
        }
        // Before the code was there nobody knew the bound; the latest are over it.
        let room = limits.queue.saturating_add(version.spare(limits)) as usize;
        let queue = &mut self.versions[version_id.0 as usize].queue;
        let mut kept = Vec::new();
        let mut over = Vec::new();
        while let Some(waiting) = queue.pop(now) {
            if kept.len() < room { kept.push(waiting) } else { over.push(waiting.invocation) }
        }
        for waiting in kept {
            queue.push(waiting);
        }
        for invocation in over {
            self.reject_waiting(invocation, Rejection::QueueFull);
        }
        self.pump(now, version_id);
    }

    fn on_code_failed(&mut self, now: Time, version_id: VersionId) {
        let version = self.version(version_id);
        if version.code == Code::Fetching {
            version.code = Code::Unknown;
        }
        version.prewarm = 0;
        self.reject_all(version_id, Rejection::CodeFailed, now);
    }

    fn reject_all(&mut self, version: VersionId, why: Rejection, now: Time) {
        while let Some(waiting) = self.version(version).queue.pop(now) {
            self.reject_waiting(waiting.invocation, why);
        }
        self.drop_surplus_wishes(version);
    }

    // Instances.

    /// Gives free slots to what waits, in turn, then sees that enough instances are coming.
    fn pump(&mut self, now: Time, id: VersionId) {
        loop {
            let version = &mut self.versions[id.0 as usize];
            let Some(&instance) = version.free.last() else { break };
            let Some(waiting) = version.queue.pop(now) else { break };
            self.serve(now, waiting, instance);
            let place = &self.instances[&instance];
            if place.used == place.slots {
                self.versions[id.0 as usize].free.pop();
            }
        }
        let version = &mut self.versions[id.0 as usize];
        if version.queue.is_empty() && version.prewarm == 0 {
            self.drop_surplus_wishes(id);
            return;
        }
        let limits = match version.code {
            Code::Unknown => {
                version.code = Code::Fetching;
                self.actions.push_back(Action::Fetch { version: id });
                return;
            }
            Code::Fetching => return,
            Code::Ready(limits) | Code::Gone(limits) => limits,
        };
        // Paused instances first: waking one is cheaper than making one.
        while (self.versions[id.0 as usize].queue.len() as u32)
            > self.versions[id.0 as usize].promised
        {
            let paused = &self.versions[id.0 as usize].paused;
            let missing = |id: &InstanceId| self.instances[id].missing();
            let Some(place) = paused.iter().rposition(|id| missing(id) == 0).or_else(|| {
                // What it gave back it needs again: at once if nobody waits for memory, else in turn.
                let (last, id) = paused.iter().enumerate().next_back()?;
                (self.wishes.is_empty() && self.pool.take(missing(id))).then_some(last)
            }) else {
                break;
            };
            self.resume(id, place, limits.slots);
        }
        let version = &mut self.versions[id.0 as usize];
        while version.wishes.len() < version.wanted(limits) as usize {
            version.wishes.push_back(self.next_wish);
            self.wishes.insert(self.next_wish, (id, now));
            self.next_wish += 1;
        }
        self.drop_surplus_wishes(id);
    }

    /// Wakes the paused instance at this place in the version's list; its memory has been taken.
    fn resume(&mut self, id: VersionId, place: usize, slots: u32) {
        let version = &mut self.versions[id.0 as usize];
        let instance = version.paused.remove(place);
        version.promised += slots;
        let place = self.instances.get_mut(&instance).expect("a paused instance exists");
        place.memory = place.full;
        match &mut place.state {
            State::Pausing { wanted } => *wanted = true,
            state => {
                *state = State::Resuming;
                self.actions.push_back(Action::Resume { instance });
            }
        }
    }

    /// What has waited gets a slot: an invocation runs, a reservation has it held.
    fn serve(&mut self, now: Time, waiting: Waiting, id: InstanceId) {
        let invocation = waiting.invocation;
        let place = self.waiting.remove(&invocation).expect("what is in a queue waits");
        self.timers.remove(&(place.deadline, Timer::Wait(invocation)));
        let instance = self.instances.get_mut(&id).expect("a free instance exists");
        if instance.used == 0 {
            for (at, timer) in [
                (instance.pause_at.take(), Timer::Pause(id)),
                (instance.expire_at.take(), Timer::Expire(id)),
            ] {
                if let Some(at) = at {
                    self.timers.remove(&(at, timer));
                }
            }
            if std::mem::take(&mut instance.resting) {
                self.keep_alive.used(id, now);
            }
        }
        instance.used += 1;
        let start = instance.fresh.unwrap_or(StartKind::Warm);
        if !place.reserved {
            return self.run(now, invocation, waiting.arrived, id, start);
        }
        instance.held += 1;
        let until = place.deadline.min(now + self.config.offer_timeout);
        self.reserved -= 1;
        self.offered
            .insert(invocation, Offer { instance: id, since: waiting.arrived, until, start });
        self.timers.insert((until, Timer::Offer(invocation)));
        self.actions.push_back(Action::Offer { invocation, instance: id });
    }

    /// An invocation runs in a slot that it has.
    fn run(
        &mut self,
        now: Time,
        invocation: InvocationId,
        arrived: Time,
        id: InstanceId,
        start: StartKind,
    ) {
        self.keep_alive.invoked(id, arrived, now);
        let instance = self.instances.get_mut(&id).expect("it has a slot there");
        instance.ran = true;
        let limits = self.versions[instance.version.0 as usize].code.limits();
        let limit = limits.map(|limits| now + limits.timeout);
        if let Some(limit) = limit {
            self.timers.insert((limit, Timer::Run(invocation)));
        }
        self.running.insert(invocation, (id, limit));
        self.actions.push_back(Action::Run { invocation, instance: id, start });
    }

    /// An instance that nobody uses now rests: it may be paused, expire, or be evicted at once.
    fn rest(&mut self, now: Time, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else { return };
        if instance.state != State::Up || instance.used > 0 {
            return;
        }
        let version_id = instance.version;
        let superseded = self.version(version_id).superseded;
        if self.draining {
            return self.evict(now, id, EvictReason::Draining);
        }
        if superseded {
            return self.evict(now, id, EvictReason::Superseded);
        }
        let instance = self.instances.get_mut(&id).expect("it was there above");
        // One that was resumed but not needed after all has rested all the time.
        if !instance.resting {
            let until = self.keep_alive.idle(id, now);
            if until.is_some_and(|until| until <= now) {
                return self.evict(now, id, EvictReason::Expired);
            }
            instance.resting = true;
            instance.expire_at = until;
            self.timers.extend(until.map(|at| (at, Timer::Expire(id))));
            self.actions.push_back(Action::TellIdle { version: version_id });
        }
        instance.pause_at = self.config.pause_after.map(|after| now + after);
        self.timers.extend(instance.pause_at.map(|at| (at, Timer::Pause(id))));
    }

    fn on_sandbox_ready(&mut self, now: Time, id: InstanceId, start: StartKind) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        match instance.state {
            State::Starting => {}
            State::Cancelling => {
                instance.state = State::Ending;
                let why = EvictReason::Unwanted;
                self.actions.push_back(Action::Evict { instance: id, why });
                return;
            }
            _ => return,
        }
        instance.state = State::Up;
        instance.fresh = Some(start);
        let (version_id, slots) = (instance.version, instance.slots);
        let facts = InstanceFacts {
            version: version_id,
            memory: instance.memory,
            start_cost: now.since(instance.started),
        };
        self.starting -= 1;
        self.keep_alive.started(id, &facts, now);
        let version = self.version(version_id);
        version.promised -= slots;
        version.free.push(id);
        self.pump(now, version_id);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.fresh = None;
        }
        self.rest(now, id);
    }

    fn on_sandbox_failed(&mut self, now: Time, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else { return };
        let (version_id, slots, memory) = (instance.version, instance.slots, instance.memory);
        match instance.state {
            State::Starting => {
                self.starting -= 1;
                let version = self.version(version_id);
                version.promised -= slots;
                version.instances -= 1;
                version.prewarm = 0;
                // It was started for one invocation, and that one learns why it did not come. With
                // every failure one invocation fewer waits, so a function that never starts cannot
                // keep the worker busy for ever.
                if let Some(waiting) = version.queue.pop(now) {
                    let why = Rejection::StartFailed(id);
                    self.reject_waiting(waiting.invocation, why);
                }
            }
            State::Cancelling => self.ending_bytes -= memory,
            _ => return,
        }
        self.instances.remove(&id);
        self.pool.give_back(memory);
        self.pump(now, version_id);
    }

    fn on_paused(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.state = match instance.state {
            State::Pausing { wanted: true } => {
                self.actions.push_back(Action::Resume { instance: id });
                State::Resuming
            }
            State::Pausing { wanted: false } => State::Paused,
            other => other,
        };
    }

    fn on_lowered(&mut self, id: InstanceId, bytes: u64) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.state != State::Paused {
            return;
        }
        let less = instance.memory.saturating_sub(bytes);
        instance.memory -= less;
        self.pool.give_back(less);
    }

    fn on_resumed(&mut self, now: Time, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if instance.state != State::Resuming {
            return;
        }
        instance.state = State::Up;
        let (version_id, slots) = (instance.version, instance.slots);
        let version = self.version(version_id);
        version.promised -= slots;
        version.free.push(id);
        self.pump(now, version_id);
        self.rest(now, id);
    }

    fn on_destroyed(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        if !matches!(instance.state, State::Ending | State::Cancelling) {
            return;
        }
        let memory = instance.memory;
        if instance.used > 0 {
            instance.state = State::Gone;
        } else {
            self.instances.remove(&id);
        }
        self.ending_bytes -= memory;
        self.pool.give_back(memory);
    }

    /// Begins an instance's end, from whatever state it is in. Memory comes back when it is gone.
    fn evict(&mut self, now: Time, id: InstanceId, why: EvictReason) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        let (before, version_id, slots) = (instance.state, instance.version, instance.slots);
        let action = match before {
            State::Cancelling | State::Ending | State::Gone => return,
            State::Starting => {
                instance.state = State::Cancelling;
                Action::CancelStart { instance: id }
            }
            State::Up | State::Pausing { .. } | State::Paused | State::Resuming => {
                instance.state = State::Ending;
                Action::Evict { instance: id, why }
            }
        };
        let was_idle = std::mem::take(&mut instance.resting);
        let holds = instance.held > 0;
        if std::mem::take(&mut instance.retiring) {
            self.retiring_bytes -= instance.memory;
        }
        self.ending_bytes += instance.memory;
        for (at, timer) in [
            (instance.pause_at.take(), Timer::Pause(id)),
            (instance.expire_at.take(), Timer::Expire(id)),
        ] {
            if let Some(at) = at {
                self.timers.remove(&(at, timer));
            }
        }
        let version = &mut self.versions[version_id.0 as usize];
        version.instances -= 1;
        // A prewarm is a wish of the moment: what is evicted is not made again for its sake.
        version.prewarm = 0;
        match before {
            State::Up => version.free.retain(|free| *free != id),
            State::Paused | State::Pausing { wanted: false } => {
                version.paused.retain(|paused| *paused != id);
            }
            State::Starting | State::Resuming | State::Pausing { wanted: true } => {
                version.promised -= slots;
            }
            _ => {}
        }
        if before == State::Starting {
            self.starting -= 1;
        } else {
            self.keep_alive.ended(id, now);
        }
        if holds {
            self.lose_slots(id);
        }
        self.actions.push_back(action);
        if was_idle {
            self.actions.push_back(Action::TellEvicted { version: version_id });
        }
        self.pump(now, version_id);
    }

    fn on_superseded(&mut self, now: Time, id: VersionId) {
        let version = self.version(id);
        version.superseded = true;
        version.prewarm = 0;
        let waiting = !version.queue.is_empty();
        for instance in self.idle_instances(Some(id)) {
            self.evict(now, instance, EvictReason::Superseded);
        }
        if !waiting {
            for instance in self.starting_instances(Some(id)) {
                self.evict(now, instance, EvictReason::Superseded);
            }
        }
    }

    fn on_prewarm(&mut self, now: Time, id: VersionId, instances: u32) {
        let (draining, pool) = (self.draining, self.pool.total());
        let version = self.version(id);
        let fits = version.code.limits().is_none_or(|limits| limits.memory <= pool);
        // An instance of a superseded version would be evicted as soon as it is ready.
        let wanted = !draining && !version.superseded;
        if wanted && fits && version.instances < instances {
            version.prewarm = instances;
            self.pump(now, id);
        }
    }

    fn on_memory_pressure(&mut self, now: Time, bytes: u64) {
        let mut freed = 0;
        while freed < bytes {
            let Some(victim) = self.keep_alive.victim(now) else { break };
            freed += self.instances[&victim].memory;
            self.evict(now, victim, EvictReason::Memory);
        }
    }

    fn on_drain(&mut self, now: Time) {
        self.draining = true;
        for version in &mut self.versions {
            version.prewarm = 0;
        }
        self.end_reservations(now);
        for instance in self.idle_instances(None) {
            self.evict(now, instance, EvictReason::Draining);
        }
        for instance in self.starting_instances(None) {
            let version = self.instances[&instance].version;
            if self.version(version).queue.is_empty() {
                self.evict(now, instance, EvictReason::Draining);
            }
        }
    }

    fn idle_instances(&self, of: Option<VersionId>) -> Vec<InstanceId> {
        self.instances_where(of, |instance| match instance.state {
            State::Up => instance.used == 0,
            State::Pausing { wanted } => !wanted,
            State::Paused => true,
            _ => false,
        })
    }

    fn starting_instances(&self, of: Option<VersionId>) -> Vec<InstanceId> {
        self.instances_where(of, |instance| instance.state == State::Starting)
    }

    fn instances_where(
        &self,
        of: Option<VersionId>,
        matches: impl Fn(&Instance) -> bool,
    ) -> Vec<InstanceId> {
        self.instances
            .iter()
            .filter(|(_, instance)| of.is_none_or(|version| instance.version == version))
            .filter(|(_, instance)| matches(instance))
            .map(|(id, _)| *id)
            .collect()
    }

    // Memory.

    /// Takes back wishes that nothing waits for any more, the latest first.
    fn drop_surplus_wishes(&mut self, id: VersionId) {
        let version = &mut self.versions[id.0 as usize];
        let wanted = match version.code {
            Code::Ready(limits) | Code::Gone(limits) => version.wanted(limits),
            Code::Unknown | Code::Fetching => 0,
        };
        for wish in version.wishes.drain((wanted as usize).min(version.wishes.len())..) {
            self.wishes.remove(&wish);
        }
    }

    /// Starts instances in the order of the wishes while there is memory, or resumes those that gave
    /// some back, and evicts idle ones until the first wish fits.
    fn serve_wishes(&mut self, now: Time) {
        while let Some((_, &(id, _))) = self.wishes.first_key_value() {
            let version = &self.versions[id.0 as usize];
            if let (Some(limits), Some((place, paused))) =
                (version.code.limits(), version.paused.iter().enumerate().next_back())
                && version.queue.len() as u32 > version.promised
            {
                let missing = self.instances[paused].missing();
                if !self.pool.take(missing) {
                    self.make_room(now, missing);
                    return;
                }
                self.resume(id, place, limits.slots);
                self.versions[id.0 as usize].wishes.pop_front();
                self.wishes.pop_first();
                continue;
            }
            if self.starting >= self.config.max_starting {
                return;
            }
            let version = &mut self.versions[id.0 as usize];
            let limits = match version.code {
                Code::Ready(limits) => limits,
                Code::Gone(_) | Code::Unknown | Code::Fetching => {
                    // The folder is needed again; the wishes are made anew when it is there.
                    version.code = Code::Fetching;
                    self.actions.push_back(Action::Fetch { version: id });
                    self.drop_surplus_wishes(id);
                    continue;
                }
            };
            if !self.pool.take(limits.memory) {
                self.make_room(now, limits.memory);
                return;
            }
            let version = &mut self.versions[id.0 as usize];
            version.wishes.pop_front();
            version.instances += 1;
            version.promised += limits.slots;
            if version.instances >= version.prewarm {
                version.prewarm = 0;
            }
            self.wishes.pop_first();
            self.starting += 1;
            let instance = InstanceId(self.next_instance);
            self.next_instance += 1;
            self.instances.insert(
                instance,
                Instance {
                    version: id,
                    memory: limits.memory,
                    full: limits.memory,
                    slots: limits.slots,
                    used: 0,
                    held: 0,
                    ran: false,
                    state: State::Starting,
                    started: now,
                    fresh: None,
                    resting: false,
                    retiring: false,
                    pause_at: None,
                    expire_at: None,
                },
            );
            self.actions.push_back(Action::Start { instance, version: id });
        }
    }

    fn make_room(&mut self, now: Time, bytes: u64) {
        while self.pool.free() + self.ending_bytes < bytes {
            let Some(victim) = self.keep_alive.victim(now) else { return };
            self.evict(now, victim, EvictReason::Memory);
        }
    }

    // Time.

    fn on_timeout(&mut self, now: Time) {
        while let Some(&(at, timer)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Wait(invocation) => {
                    self.reject_waiting(invocation, Rejection::WaitedTooLong);
                }
                Timer::Offer(invocation) => {
                    self.end_offer(now, invocation, ReservationEnd::NotTaken);
                }
                Timer::Run(invocation) => {
                    if let Some((instance, limit)) = self.running.get_mut(&invocation) {
                        *limit = None;
                        let instance = *instance;
                        self.actions.push_back(Action::Expire { invocation });
                        self.evict(now, instance, EvictReason::TimedOut);
                    }
                }
                Timer::Expire(id) => {
                    if let Some(instance) = self.instances.get_mut(&id) {
                        instance.expire_at = None;
                        self.evict(now, id, EvictReason::Expired);
                    }
                }
                Timer::Pause(id) => self.pause(id),
            }
        }
        // After the timers: an instance that expires now is not one that the next call finds.
        while let Some(version) = self.keep_alive.prewarm(now) {
            self.on_prewarm(now, version, 1);
        }
    }

    fn pause(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(&id) else { return };
        instance.pause_at = None;
        instance.state = State::Pausing { wanted: false };
        let version = &mut self.versions[instance.version.0 as usize];
        version.free.retain(|free| *free != id);
        version.paused.push(id);
        self.actions.push_back(Action::Pause { instance: id });
    }

    fn version(&mut self, id: VersionId) -> &mut Version {
        while self.versions.len() <= id.0 as usize {
            let fresh = self.fresh_version();
            self.versions.push(fresh);
        }
        &mut self.versions[id.0 as usize]
    }

    fn fresh_version(&self) -> Version {
        Version {
            code: Code::Unknown,
            superseded: false,
            queue: (self.make_queue)(),
            free: Vec::new(),
            paused: Vec::new(),
            instances: 0,
            promised: 0,
            wishes: VecDeque::new(),
            prewarm: 0,
        }
    }
}

/// The most invocations that wait for a version's code, before its manifest says how many may.
const QUEUE_BEFORE_CODE: usize = 1024;

impl Code {
    fn limits(self) -> Option<Limits> {
        match self {
            Code::Ready(limits) | Code::Gone(limits) => Some(limits),
            Code::Unknown | Code::Fetching => None,
        }
    }
}

impl Instance {
    /// What it has to take from the pool before it runs.
    fn missing(&self) -> u64 {
        self.full - self.memory
    }
}

impl Version {
    /// How many instances to wish for: enough slots for what waits, within the limit. A paused one
    /// that has not been resumed for what waits lacks memory, and is wished for like a new one.
    fn wanted(&self, limits: Limits) -> u32 {
        let slots = (self.queue.len() as u32).saturating_sub(self.promised);
        let for_queue = slots.div_ceil(limits.slots);
        let for_prewarm = self.prewarm.saturating_sub(self.instances);
        let more = limits.max_instances.saturating_sub(self.instances);
        for_queue.min(more + self.paused.len() as u32).max(for_prewarm.min(more))
    }

    /// Slots that may still come: of instances that are coming, that are paused, or that the limit
    /// allows.
    fn spare(&self, limits: Limits) -> u32 {
        let more = limits.max_instances.saturating_sub(self.instances);
        let more = more.saturating_add(self.paused.len() as u32);
        self.promised.saturating_add(more.saturating_mul(limits.slots))
    }
}
