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
//! end begins. Wishes for instances are served in the order of the queue policy over all functions;
//! `fifo` serves them first come, first served, so that small functions do not starve a large one.
//!
//! Pausing and giving memory back are two decisions. An instance is paused for the processor's sake,
//! soon after its last call. Its memory limit is lowered ([`Action::Lower`]) when a wish does not fit, the
//! one paused longest first, and before any instance is evicted for that wish. Before it is resumed the
//! rest is taken again, in turn with the wishes.
//!
//! # Which call runs next
//!
//! The [queue policy](crate::queue) orders all waiting calls. A call can run when its version has a free
//! slot. The first call that can run does so as soon as the [limit](RunningLimit) of running calls
//! admits it; a call that cannot run does not hold up the others. With a limit, starting an instance
//! takes one of its places too, when the instance's call comes before every call that has a slot. While
//! memory for the instance is missing, those calls run.
//!
//! # Namespaces
//!
//! The policy orders the calls of one namespace ([`Scheduler::belongs`]). Between namespaces the one comes
//! first that has had least: of time in the places of running calls, where those are limited, else of
//! memory. So a namespace that floods makes no other wait for longer than the other's share says: for one
//! of its calls, where the other has had less than its share. An idle instance is no claim: it is
//! evicted for whoever needs the memory. A free instance of a namespace that has more memory than the
//! first wish's namespace would have with it ends for that wish at once.
//!
//! # The life of a reservation
//!
//! A balancer that binds late (Sparrow, SOSP 2013) reserves a place in the queues of several workers,
//! and sends the invocation itself to the worker whose queue reaches the place first. A reservation is
//! that place. It bears the id of the invocation that may come. Like an invocation it waits in turn,
//! counts towards the queue's bound, and has instances started for it.
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
//! Each reservation gets exactly one [`Action::ReservationOver`]. A held slot is busy: no other call
//! gets it, and its instance is neither paused nor evicted for time or memory. An invocation that comes
//! after its reservation is over is treated like any other. So it runs once or is rejected once,
//! whichever messages get lost. A drain ends all reservations.

mod calls;
mod config;
mod grants;
mod instances;
mod invocations;
mod life;
mod limit;
mod line;
mod memory;
mod messages;
mod order;
mod queueing;
mod reservations;
mod shares;
mod timers;
mod version;
mod wishes;

use std::collections::{BTreeMap, VecDeque};

use calls::Calls;
use instances::{Instances, Kind};

pub use crate::pause_after::PauseAfter;
pub use config::{InstanceChoice, SchedulerConfig};
pub use limit::{LimitError, LoadLimit, RunningLimit};
pub use memory::MemoryPool;
pub use messages::{
    Action, Counts, Event, EvictReason, InstanceId, InvocationId, Limits, NamespaceId, Rejection,
    ReservationEnd, VersionId,
};
use queueing::Queueing;
use shares::Shares;
use timers::Timers;
use version::{Code, Version};
use wishes::Wishes;

use crate::arena::Lists;
use crate::keep_alive::KeepAlivePolicy;
use crate::queue::QueuePolicy;
use crate::time::Time;

/// See the module's documentation.
///
/// Beside the keep-alive policy and the queue policy a call costs O(1), and O(log n) where its rank is
/// not that of the others that wait, where running calls are limited, and where a deadline comes up: once in a time limit for each slot of its table, not once a call. One that finds a free
/// slot allocates nothing. What a version costs while nothing is there of it is a small constant.
pub struct Scheduler {
    config: SchedulerConfig,
    queueing: Queueing,
    shares: Shares,
    /// Places are being given out already.
    dispatching: bool,
    keep_alive: Box<dyn KeepAlivePolicy>,
    pool: MemoryPool,
    versions: Vec<Version>,
    instances: Instances,
    calls: Calls,
    /// The links of the instances' lists of reservations that slots are held for.
    offers: Lists,
    wishes: Wishes,
    starting: u32,
    /// Bytes that come back to the pool when what is ending is gone.
    ending_bytes: u64,
    /// Bytes of the instances that retire.
    retiring_bytes: u64,
    /// Bytes that come back to the pool when the limits of paused instances are lowered.
    lowering_bytes: u64,
    timers: Timers,
    /// Idle instances that are to end as soon as no call of their version waits.
    spared: Vec<InstanceId>,
    actions: VecDeque<Action>,
    draining: bool,
    drained: bool,
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
        queue: Box<dyn QueuePolicy>,
        keep_alive: Box<dyn KeepAlivePolicy>,
    ) -> Self {
        Scheduler {
            pool: MemoryPool::new(config.memory),
            queueing: Queueing::new(queue, &config.running),
            shares: Shares::default(),
            dispatching: false,
            config,
            keep_alive,
            versions: Vec::new(),
            instances: Instances::default(),
            calls: Calls::default(),
            offers: Lists::default(),
            wishes: Wishes::default(),
            starting: 0,
            ending_bytes: 0,
            retiring_bytes: 0,
            lowering_bytes: 0,
            timers: Timers::default(),
            spared: Vec::new(),
            actions: VecDeque::new(),
            draining: false,
            drained: false,
        }
    }

    /// Takes in what happened. Events about what the scheduler does not know (any more) are passed
    /// over.
    ///
    /// # Panics
    ///
    /// When a new invocation or reservation has the slot of one that is not over
    /// ([`InvocationId`]).
    pub fn handle(&mut self, now: Time, event: Event) {
        match event {
            Event::Arrived { invocation, version, deadline } => {
                self.on_arrived(now, invocation, version, deadline);
            }
            Event::Cancelled { invocation } => {
                if self.calls.waiting(invocation).is_some_and(|place| !place.reserved) {
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
            Event::CodeFailed { version } => self.on_code_failed(version),
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
            Event::Paused { instance, spare } => self.on_paused(instance, spare),
            Event::Lowered { instance, bytes } => self.on_lowered(instance, bytes),
            Event::Resumed { instance } => self.on_resumed(now, instance),
            Event::Died { instance } => self.evict(now, instance, EvictReason::Broken),
            Event::Destroyed { instance } => self.on_destroyed(instance),
            Event::Superseded { version } => self.on_superseded(now, version),
            Event::Prewarm { version, instances } => {
                self.on_prewarm(now, version, instances);
            }
            Event::MemoryPressure { bytes } => self.on_memory_pressure(now, bytes),
            Event::Load { per_processor } => {
                let before = self.queueing.limiter.calls();
                self.queueing.limiter.load(per_processor);
                if self.queueing.limiter.calls() != before {
                    // How many instances may be used at once has changed.
                    for id in (0..self.versions.len() as u32).map(VersionId) {
                        self.pump(now, id);
                    }
                }
            }
            Event::Drain => self.on_drain(now),
            Event::Timeout if !self.on_timeout(now) => return,
            Event::Timeout => {}
        }
        if self.queueing.limiter.limits() {
            self.dispatch(now);
        } else {
            self.serve_wishes(now);
        }
        self.end_spared(now);
        self.timers.settle(now);
        if self.draining && !self.drained && self.instances.is_empty() && self.calls.is_empty() {
            self.drained = true;
            self.actions.push_back(Action::Drained);
        }
    }

    /// The next thing to do. Carry them out in this order; poll until `None` after each `handle`.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call `handle` with [`Event::Timeout`], if nothing else happens before: `None` when
    /// nothing is to happen by time alone.
    ///
    /// It may be early, never late: a time-out before anything is due changes nothing. After any event
    /// it is later than that one's `now` unless something is due, so a shell that waits for it does not
    /// turn in a circle.
    pub fn poll_timeout(&self) -> Option<Time> {
        let timer = self.timers.next();
        // What ends has no use for instances that the keep-alive policy starts ahead.
        let wakeup = self.keep_alive.next_wakeup().filter(|_| !self.draining);
        timer.into_iter().chain(wakeup).min()
    }

    /// The memory pool.
    pub fn pool(&self) -> MemoryPool {
        self.pool
    }

    /// How much there is of everything. O(1).
    pub fn counts(&self) -> Counts {
        let paused = self.instances.count_of(Kind::Paused);
        Counts {
            waiting: self.calls.count_waiting(),
            running: self.calls.count_running(),
            reserved: self.calls.count_reserved(),
            offered: self.calls.count_offered(),
            starting: self.instances.count_of(Kind::Starting),
            busy: self.instances.count_of(Kind::Busy),
            idle: self.instances.count_of(Kind::Idle) + paused,
            paused,
            ending: self.instances.count_of(Kind::Ending),
        }
    }

    /// The versions with idle instances (paused ones too), and how many, in the order of their ids.
    ///
    /// O(versions), at four bytes each, and allocates nothing.
    pub fn idle_versions(&self) -> impl Iterator<Item = (VersionId, u32)> {
        self.instances.idle_versions()
    }

    /// [`idle_versions`](Self::idle_versions) as a map.
    pub fn idle_by_version(&self) -> BTreeMap<VersionId, u32> {
        self.idle_versions().collect()
    }

    /// How many calls may run at once now; `None` is no limit.
    pub fn running_limit(&self) -> Option<u32> {
        self.queueing.limiter.limits().then(|| self.queueing.limiter.calls())
    }

    /// Whether an instance of the version is wished for, so that its code is needed soon.
    pub fn waits(&self, version: VersionId) -> bool {
        let version = self.versions.get(version.0 as usize);
        version.is_some_and(Version::waits)
    }

    /// Whether the instance is paused, and not on its way back.
    pub fn is_paused(&self, instance: InstanceId) -> bool {
        self.instances.get(instance).is_some_and(|it| it.state() == instances::State::Paused)
    }

    /// Says of which namespace a new version is, before any event about it, and which share of the memory
    /// pool that namespace's instances may take together (`None`: all of it). Versions of which nothing is
    /// said are of [`NamespaceId`] 0.
    pub fn belongs(&mut self, id: VersionId, namespace: NamespaceId, share: Option<f64>) {
        let pool = self.pool.total();
        let most = share.map_or(u64::MAX, |share| (share.clamp(0.0, 1.0) * pool as f64) as u64);
        self.version(id).namespace = namespace;
        let (counted, knew) = (self.shares.counts(), self.shares.several());
        self.shares.know(namespace, most);
        if self.shares.several() && !knew {
            for version in &self.versions {
                (0..version.waiting).for_each(|_| self.shares.waits(version.namespace));
            }
        }
        if self.shares.counts() && !counted {
            self.count_memory();
        }
        if self.shares.several() && !self.queueing.orders {
            // So far memory was given in the order of wishes.
            self.queueing.orders = true;
            for id in (0..self.versions.len() as u32).map(VersionId) {
                self.enter_wishing(id);
            }
        }
    }

    /// Forgets a version of which nothing is left: no invocation, no instance, no fetch. Its id can
    /// be given to another one then. Returns whether it is forgotten. O(1).
    pub fn forget(&mut self, id: VersionId) -> bool {
        let Some(version) = self.versions.get_mut(id.0 as usize) else { return true };
        if version.waits()
            || version.wishes.count() > 0
            || version.code == Code::Fetching
            || version.members > 0
        {
            return false;
        }
        *version = Version::default();
        self.queueing.policy.forgotten(id);
        true
    }

    fn version(&mut self, id: VersionId) -> &mut Version {
        let index = id.0 as usize;
        if index >= self.versions.len() {
            self.versions.resize_with(index + 1, Version::default);
        }
        &mut self.versions[index]
    }
}
