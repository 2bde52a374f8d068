//! The scheduler under random histories: whatever the order of events, no invocation is lost or run
//! twice, no limit is passed, the memory pool's books balance, cancels and deadlines answer, each
//! reservation has one outcome and loses no slot, and a drain ends.
//!
//! The test plays the shell: it keeps its own, naive picture of what the scheduler asked for, and
//! fulfils, fails or delays each action in random order. A spy stands between the scheduler and the
//! keep-alive policy and holds both to their contract.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openlambda_core::invocation::StartKind;
use openlambda_core::keep_alive::{self, InstanceFacts, KeepAlivePolicy};
use openlambda_core::queue;
use openlambda_core::scheduler::{
    Action, Counts, Event, EvictReason, InstanceChoice, InstanceId, InvocationId, Limits,
    LoadLimit, Rejection, ReservationEnd, RunningLimit, Scheduler, SchedulerConfig, VersionId,
};
use openlambda_core::time::Time;
use proptest::prelude::*;

const MB: u64 = 1 << 20;
const MAX_STARTING: u32 = 3;
const OFFER_TIMEOUT: Duration = Duration::from_millis(30);

fn limits_of(version: VersionId) -> Limits {
    let base = Limits {
        memory: 100 * MB,
        slots: 1,
        max_instances: 4,
        queue: 6,
        timeout: Duration::from_millis(500),
        reuse: true,
        pause_after: None,
    };
    match version.0 {
        0 => base,
        1 => Limits { slots: 3, memory: 200 * MB, max_instances: 2, ..base },
        2 => Limits { reuse: false, memory: 50 * MB, ..base },
        3 => Limits { memory: 450 * MB, max_instances: 1, queue: 0, ..base },
        4 => Limits { memory: 5000 * MB, ..base },
        // For the tests of a review.
        50 => Limits { memory: 50 * MB, slots: 2, reuse: false, queue: 1000, ..base },
        51 => Limits { memory: 50 * MB, max_instances: 1, queue: 0, ..base },
        52 => Limits { memory: 480 * MB, max_instances: 1, queue: 1000, ..base },
        _ => Limits { memory: 50 * MB, queue: 1000, timeout: Duration::from_secs(10), ..base },
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Waiting { deadline: Time },
    Running { instance: InstanceId, expires: Time, expired: bool },
    Over,
}

/// A reservation from its beginning to its one outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reservation {
    version: VersionId,
    /// Until when it waits, or its slot is held.
    until: Time,
    offered: Option<InstanceId>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Starting,
    Cancelling,
    Up,
    Pausing,
    Paused,
    Resuming,
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Duty {
    Fetch(VersionId),
    Start(InstanceId),
    Destroy(InstanceId),
    Pause(InstanceId),
    Lower(InstanceId),
    Resume(InstanceId),
    Finish(InvocationId),
}

/// What the scheduler has told the keep-alive policy of an instance.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    InUse,
    Idle,
}

/// A keep-alive policy under watch.
#[derive(Clone, Debug)]
struct Spy(Arc<Mutex<Watched>>);

#[derive(Debug)]
struct Watched {
    policy: Box<dyn KeepAlivePolicy>,
    told: BTreeMap<InstanceId, Told>,
}

impl Spy {
    fn step(&self, instance: InstanceId, from: Told, to: Told) {
        let old = self.0.lock().unwrap().told.insert(instance, to);
        assert_eq!(old, Some(from), "{instance:?} is told to be {to:?}");
    }
}

impl KeepAlivePolicy for Spy {
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, now: Time) {
        let mut watched = self.0.lock().unwrap();
        assert_eq!(watched.told.insert(instance, Told::InUse), None, "started twice");
        watched.policy.started(instance, facts, now);
    }

    fn used(&mut self, instance: InstanceId, now: Time) {
        self.step(instance, Told::Idle, Told::InUse);
        self.0.lock().unwrap().policy.used(instance, now);
    }

    fn invoked(&mut self, instance: InstanceId, arrived: Time, now: Time) {
        self.step(instance, Told::InUse, Told::InUse);
        assert!(arrived <= now);
        self.0.lock().unwrap().policy.invoked(instance, arrived, now);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.step(instance, Told::InUse, Told::Idle);
        self.0.lock().unwrap().policy.idle(instance, now)
    }

    fn ended(&mut self, instance: InstanceId, now: Time) {
        let mut watched = self.0.lock().unwrap();
        assert!(watched.told.remove(&instance).is_some(), "{instance:?} ended before or never was");
        watched.policy.ended(instance, now);
    }

    fn victim(&mut self, now: Time) -> Option<InstanceId> {
        let mut watched = self.0.lock().unwrap();
        let victim = watched.policy.victim(now);
        match victim {
            Some(victim) => assert_eq!(watched.told[&victim], Told::Idle, "the victim is in use"),
            None => assert!(!watched.told.values().any(|told| *told == Told::Idle), "spares all"),
        }
        victim
    }

    fn next_wakeup(&self) -> Option<Time> {
        self.0.lock().unwrap().policy.next_wakeup()
    }

    fn prewarm(&mut self, now: Time) -> Option<VersionId> {
        self.0.lock().unwrap().policy.prewarm(now)
    }
}

struct Shell {
    scheduler: Scheduler,
    keep_alive: Spy,
    log: Vec<(Time, Action)>,
    now: Time,
    calls: BTreeMap<InvocationId, Call>,
    /// What calls that arrived call.
    versions: BTreeMap<InvocationId, VersionId>,
    /// No more runs than this: the limit does not change, and no call passes by it.
    limit: Option<u32>,
    /// The number that each slot was given last.
    slots: Vec<InvocationId>,
    /// Slots of what is over are given again; else each number is a new one.
    reuse: bool,
    reservations: BTreeMap<InvocationId, Reservation>,
    /// Reservations that are over although their invocations have not arrived: those may come yet.
    unbound: BTreeMap<InvocationId, VersionId>,
    /// How reservations ended.
    ends: Vec<(InvocationId, ReservationEnd)>,
    /// Instances that lost slots which they held; their evictions follow.
    losing: BTreeSet<InstanceId>,
    instances: BTreeMap<InstanceId, (VersionId, Place)>,
    /// What paused instances can give back and were not asked for.
    spare: BTreeMap<InstanceId, u64>,
    /// The limit that instances are lowered to.
    lowering: BTreeMap<InstanceId, u64>,
    /// What paused instances hold whose limit was lowered.
    lowered: BTreeMap<InstanceId, u64>,
    duties: BTreeSet<Duty>,
    drained: bool,
}

impl Shell {
    fn new(pause: bool, keep_alive: &str) -> Self {
        Shell::that_picks(InstanceChoice::default(), pause, keep_alive)
    }

    fn that_picks(pick: InstanceChoice, pause: bool, keep_alive: &str) -> Self {
        Shell::with(&Settings { pick, pause, ..Settings::default() }, keep_alive)
    }

    /// One that runs no more than so many calls, in the order of this policy.
    fn that_runs(running: RunningLimit, queue: &'static str) -> Self {
        Shell::with(&Settings { running, queue, ..Settings::default() }, "ttl")
    }

    fn with(settings: &Settings, keep_alive: &str) -> Self {
        let config = SchedulerConfig {
            memory: 500 * MB,
            max_starting: MAX_STARTING,
            pause_after: settings.pause.then_some(Duration::from_millis(50)),
            fairness: Duration::from_millis(100),
            offer_timeout: OFFER_TIMEOUT,
            pick: settings.pick,
            running: settings.running,
        };
        let choice = keep_alive::or_ttl(keep_alive.parse().unwrap(), Duration::from_secs(2));
        let policy = keep_alive::standard().build(&choice).unwrap();
        let spy = Spy(Arc::new(Mutex::new(Watched { policy, told: BTreeMap::new() })));
        Shell {
            scheduler: Scheduler::new(
                config,
                queue::by_name(settings.queue).unwrap().make(),
                Box::new(spy.clone()),
            ),
            keep_alive: spy,
            log: Vec::new(),
            now: Time::ZERO,
            calls: BTreeMap::new(),
            versions: BTreeMap::new(),
            limit: match settings.running {
                RunningLimit::Calls(calls) if !settings.queue.starts_with("bypass") => Some(calls),
                _ => None,
            },
            slots: Vec::new(),
            reuse: settings.reuse,
            reservations: BTreeMap::new(),
            unbound: BTreeMap::new(),
            ends: Vec::new(),
            losing: BTreeSet::new(),
            instances: BTreeMap::new(),
            spare: BTreeMap::new(),
            lowering: BTreeMap::new(),
            lowered: BTreeMap::new(),
            duties: BTreeSet::new(),
            drained: false,
        }
    }

    fn handle(&mut self, event: Event) {
        self.scheduler.handle(self.now, event);
        while let Some(action) = self.scheduler.poll_action() {
            self.log.push((self.now, action));
            self.carry_out(action);
            self.check_limit(&action);
        }
        self.check();
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Fetch { version } => {
                assert!(self.duties.insert(Duty::Fetch(version)), "fetched twice at once");
            }
            Action::Start { instance, version } => {
                let old = self.instances.insert(instance, (version, Place::Starting));
                assert_eq!(old, None, "an instance's number was used twice");
                self.duties.insert(Duty::Start(instance));
            }
            Action::CancelStart { instance } => {
                self.step_instance(instance, &[Place::Starting], Place::Cancelling);
            }
            Action::Run { invocation, instance, .. } => {
                let (version, place) = self.instances[&instance];
                assert_eq!(place, Place::Up, "ran in an instance that is not up");
                let Call::Waiting { deadline } = self.calls[&invocation] else {
                    panic!("ran {invocation:?} twice, or after its end");
                };
                assert!(self.now <= deadline, "ran after it had waited for too long");
                let expires = self.now + limits_of(version).timeout;
                let running = Call::Running { instance, expires, expired: false };
                self.calls.insert(invocation, running);
                self.duties.insert(Duty::Finish(invocation));
            }
            Action::Expire { invocation } => match self.calls.get_mut(&invocation) {
                Some(Call::Running { expires, expired, .. }) => {
                    assert!(!*expired && *expires <= self.now, "expired too early or twice");
                    *expired = true;
                }
                other => panic!("expired {other:?}"),
            },
            Action::Pause { instance } => {
                assert_eq!(self.used(instance), 0, "paused while busy");
                self.step_instance(instance, &[Place::Up], Place::Pausing);
                self.duties.insert(Duty::Pause(instance));
            }
            Action::Lower { instance } => {
                let (version, place) = self.instances[&instance];
                assert_eq!(place, Place::Paused, "lowered while it is not paused");
                let spare = self.spare.remove(&instance).expect("nothing can be lowered");
                self.lowering.insert(instance, limits_of(version).memory - spare);
                self.duties.insert(Duty::Lower(instance));
            }
            Action::Resume { instance } => {
                self.step_instance(instance, &[Place::Paused], Place::Resuming);
                self.spare.remove(&instance);
                // It is resumed when its limit has been set, and nobody hears of that.
                self.lowering.remove(&instance);
                self.duties.remove(&Duty::Lower(instance));
                self.lowered.remove(&instance);
                self.duties.insert(Duty::Resume(instance));
            }
            Action::Evict { instance, why } => {
                if self.losing.remove(&instance) {
                    let forced = [EvictReason::Broken, EvictReason::TimedOut];
                    assert!(forced.contains(&why), "evicted for {why:?} while it held a slot");
                }
                let held = self.reservations.values().any(|r| r.offered == Some(instance));
                assert!(!held, "evicted although a slot is held");
                let from =
                    [Place::Up, Place::Pausing, Place::Paused, Place::Resuming, Place::Cancelling];
                self.step_instance(instance, &from, Place::Ending);
                self.spare.remove(&instance);
                self.lowering.remove(&instance);
                self.duties.remove(&Duty::Pause(instance));
                self.duties.remove(&Duty::Lower(instance));
                self.duties.remove(&Duty::Resume(instance));
                self.duties.insert(Duty::Destroy(instance));
            }
            Action::Reject { invocation, .. } => {
                let call = self.calls.insert(invocation, Call::Over);
                assert!(
                    matches!(call, Some(Call::Waiting { .. })),
                    "rejected what does not wait: {call:?}"
                );
            }
            Action::Offer { invocation, instance } => {
                let (version, place) = self.instances[&instance];
                assert_eq!(place, Place::Up, "offered an instance that is not up");
                let until = self.now + OFFER_TIMEOUT;
                let reservation = self.reservations.get_mut(&invocation).expect("it is over");
                assert_eq!((reservation.offered, reservation.version), (None, version));
                assert!(self.now <= reservation.until, "offered too late");
                reservation.offered = Some(instance);
                reservation.until = reservation.until.min(until);
            }
            Action::ReservationOver { invocation, why } => {
                let over = self.reservations.remove(&invocation).expect("it was over before");
                self.ends.push((invocation, why));
                match why {
                    ReservationEnd::Taken => {
                        let call = self.calls.get(&invocation);
                        assert!(matches!(call, Some(Call::Waiting { .. })), "taken by nobody");
                        return;
                    }
                    ReservationEnd::SlotLost => {
                        self.losing.insert(over.offered.expect("it had a slot"));
                    }
                    ReservationEnd::NotTaken => assert!(over.offered.is_some()),
                    _ => {}
                }
                if !self.calls.contains_key(&invocation) {
                    self.unbound.insert(invocation, over.version);
                }
            }
            Action::Drained => {
                assert!(!self.drained, "drained twice");
                self.drained = true;
            }
            _ => {}
        }
    }

    fn step_instance(&mut self, id: InstanceId, from: &[Place], to: Place) {
        let (_, place) = self.instances.get_mut(&id).expect("acted on an instance that is gone");
        assert!(from.contains(place), "{id:?} went from {place:?} to {to:?}");
        *place = to;
    }

    fn used(&self, id: InstanceId) -> u32 {
        let runs_here =
            |call: &&Call| matches!(call, Call::Running { instance, .. } if *instance == id);
        let runs = self.calls.values().filter(runs_here).count();
        let held = self.reservations.values().filter(|r| r.offered == Some(id)).count();
        (runs + held) as u32
    }

    /// What must hold after every event.
    fn check(&self) {
        let mut memory = 0;
        let mut starting = 0;
        let mut alive: BTreeMap<VersionId, u32> = BTreeMap::new();
        for (id, (version, place)) in &self.instances {
            let limits = limits_of(*version);
            memory += self.lowered.get(id).unwrap_or(&limits.memory);
            starting += u32::from(*place == Place::Starting);
            assert!(self.used(*id) <= limits.slots, "more invocations than slots");
            if !matches!(place, Place::Ending | Place::Cancelling) {
                *alive.entry(*version).or_default() += 1;
            }
        }
        assert_eq!(memory, self.scheduler.pool().used(), "the memory pool's books are wrong");
        assert!(memory <= self.scheduler.pool().total());
        assert!(starting <= MAX_STARTING);
        for (version, count) in alive {
            assert!(count <= limits_of(version).max_instances, "too many instances");
        }
        for (id, call) in &self.calls {
            match call {
                Call::Waiting { deadline } => {
                    assert!(self.now < *deadline, "{id:?} waits past its deadline");
                }
                Call::Running { expires, expired, .. } => {
                    assert!(*expired || self.now < *expires, "{id:?} was not expired");
                }
                Call::Over => {}
            }
        }
        for (id, reservation) in &self.reservations {
            assert!(self.now < reservation.until, "{id:?} is reserved for too long");
        }
        assert!(self.losing.is_empty(), "slots were lost without an eviction");
        let counts = self.scheduler.counts();
        let offered = self.reservations.values().filter(|r| r.offered.is_some()).count();
        let reserved = self.reservations.len() - offered;
        assert_eq!((counts.reserved, counts.offered), (reserved as u32, offered as u32));
        self.check_counts();
        self.check_idle();
        if let Some(timeout) = self.scheduler.poll_timeout() {
            assert!(timeout > self.now, "a timer that has passed is still set");
        }
    }

    /// All counts, by looking at everything.
    fn check_counts(&self) {
        let mut counts = self.scheduler.counts();
        (counts.reserved, counts.offered) = (0, 0);
        let mut naive = Counts::default();
        let mut idle = BTreeMap::new();
        for (id, (version, place)) in &self.instances {
            let at_rest = match place {
                Place::Starting | Place::Cancelling => &mut naive.starting,
                Place::Up if self.used(*id) > 0 => &mut naive.busy,
                Place::Up => &mut naive.idle,
                Place::Pausing | Place::Paused | Place::Resuming => {
                    naive.paused += 1;
                    &mut naive.idle
                }
                Place::Ending => &mut naive.ending,
            };
            *at_rest += 1;
            if matches!(place, Place::Up | Place::Pausing | Place::Paused | Place::Resuming)
                && self.used(*id) == 0
            {
                *idle.entry(*version).or_default() += 1;
            }
        }
        // An instance that is gone while something runs in it counts until that is over.
        let mut gone = BTreeSet::new();
        for call in self.calls.values() {
            match call {
                Call::Waiting { .. } => naive.waiting += 1,
                Call::Running { instance, .. } => {
                    naive.running += 1;
                    if !self.instances.contains_key(instance) {
                        gone.insert(*instance);
                    }
                }
                Call::Over => {}
            }
        }
        naive.ending += gone.len() as u32;
        assert_eq!(counts, naive);
        assert!(self.scheduler.idle_versions().eq(idle.clone()), "in order, and none without");
        assert_eq!(self.scheduler.idle_by_version(), idle);
    }

    fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        while let Some(at) = self.scheduler.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.handle(Event::Timeout);
        }
        self.now = until;
    }

    /// No slot and no place is lost: nothing waits while an instance of its version has a slot that was
    /// never given up, unless as much runs as may.
    fn check_idle(&self) {
        let counts = self.scheduler.counts();
        let starting = self.instances.values().filter(|(_, place)| *place == Place::Starting);
        let places = counts.running + counts.offered + starting.count() as u32;
        let limit = self.scheduler.running_limit();
        if limit.is_some_and(|limit| places >= limit) {
            return;
        }
        let waits = |version| {
            let reserved = self.reservations.values();
            let mut reserved = reserved.filter(|r| r.version == version && r.offered.is_none());
            let waits = |call: &Call| matches!(call, Call::Waiting { .. });
            let mut calls = self.calls.iter().filter(|(_, call)| waits(call));
            reserved.next().is_some() || calls.any(|(id, _)| self.versions[id] == version)
        };
        for (id, (version, place)) in &self.instances {
            if *place == Place::Up && self.used(*id) == 0 {
                assert!(!waits(*version), "a call waits beside {id:?}, which is idle");
            }
        }
    }

    /// No more runs than may.
    fn check_limit(&self, action: &Action) {
        let Some(limit) = self.limit else { return };
        if let Action::Run { .. } | Action::Offer { .. } | Action::Start { .. } = action {
            let counts = self.scheduler.counts();
            let starting = self.instances.values().filter(|(_, place)| *place == Place::Starting);
            let places = counts.running + counts.offered + starting.count() as u32;
            assert!(places <= limit, "{places} run or start, of {limit}");
        }
    }

    fn new_id(&mut self) -> InvocationId {
        let id = match self.slots.iter().find(|id| self.reuse && self.is_over(**id)) {
            Some(over) => InvocationId(over.0 + (1 << 32)),
            None => InvocationId(self.slots.len() as u64),
        };
        let slot = id.0 as u32 as usize;
        self.slots.resize(self.slots.len().max(slot + 1), id);
        self.slots[slot] = id;
        id
    }

    /// Neither the invocation nor its reservation is there or may come yet.
    fn is_over(&self, id: InvocationId) -> bool {
        let call = self.calls.get(&id);
        call.is_none_or(|call| *call == Call::Over)
            && !self.reservations.contains_key(&id)
            && !self.unbound.contains_key(&id)
    }

    fn reserve(&mut self, version: u32, patience: u64) -> InvocationId {
        let invocation = self.new_id();
        let (version, deadline) = (VersionId(version), self.now + Duration::from_millis(patience));
        let reservation = Reservation { version, until: deadline, offered: None };
        self.reservations.insert(invocation, reservation);
        self.handle(Event::Reserved { invocation, version, deadline });
        invocation
    }

    fn unreserve(&mut self, invocation: InvocationId) {
        let before = self.calls.get(&invocation).copied();
        self.handle(Event::ReservationCancelled { invocation });
        assert!(!self.reservations.contains_key(&invocation), "a cancel unanswered");
        assert_eq!(self.calls.get(&invocation).copied(), before, "a cancel ended what arrived");
    }

    /// The invocation itself comes, whether its reservation is there or over.
    fn bind(&mut self, invocation: InvocationId, patience: u64) {
        let reservation = self.reservations.get(&invocation).copied();
        let over = self.unbound.remove(&invocation);
        let Some(version) = reservation.map(|r| r.version).or(over) else { return };
        let deadline = self.now + Duration::from_millis(patience);
        self.calls.insert(invocation, Call::Waiting { deadline });
        self.versions.insert(invocation, version);
        self.handle(Event::Arrived { invocation, version, deadline });
        let Some(reservation) = reservation else { return };
        match self.calls[&invocation] {
            Call::Running { instance, .. } => assert_eq!(reservation.offered, Some(instance)),
            Call::Waiting { .. } => assert_eq!(reservation.offered, None, "its slot was lost"),
            Call::Over => panic!("what had a place was rejected"),
        }
    }

    /// Some reservation, live or over, whose invocation has not come.
    fn some_reservation(&self, choice: usize) -> Option<InvocationId> {
        let ids: Vec<_> = self.reservations.keys().chain(self.unbound.keys()).collect();
        (!ids.is_empty()).then(|| *ids[choice % ids.len()])
    }

    fn arrive(&mut self, version: u32, patience: u64) {
        let invocation = self.new_id();
        let deadline = self.now + Duration::from_millis(patience);
        self.calls.insert(invocation, Call::Waiting { deadline });
        let version = VersionId(version);
        self.versions.insert(invocation, version);
        self.handle(Event::Arrived { invocation, version, deadline });
    }

    /// Does one of the things that the scheduler has asked for, well or badly.
    fn fulfil(&mut self, choice: usize, well: bool) {
        if self.duties.is_empty() {
            return;
        }
        let duty = *self.duties.iter().nth(choice % self.duties.len()).unwrap();
        self.duties.remove(&duty);
        match duty {
            Duty::Fetch(version) if well => {
                self.handle(Event::CodeReady { version, limits: limits_of(version) });
            }
            Duty::Fetch(version) => self.handle(Event::CodeFailed { version }),
            Duty::Start(instance) => {
                let cancelling = self.instances[&instance].1 == Place::Cancelling;
                if cancelling && well {
                    // The cancellation came first.
                    self.instances.remove(&instance);
                    self.handle(Event::Destroyed { instance });
                } else if cancelling || well {
                    if !cancelling {
                        self.instances.get_mut(&instance).unwrap().1 = Place::Up;
                    }
                    self.handle(Event::SandboxReady { instance, start: StartKind::Cold });
                } else {
                    self.instances.remove(&instance);
                    self.handle(Event::SandboxFailed { instance });
                }
            }
            Duty::Destroy(instance) => {
                self.instances.remove(&instance);
                self.lowered.remove(&instance);
                self.handle(Event::Destroyed { instance });
            }
            Duty::Pause(instance) if well => {
                self.instances.get_mut(&instance).unwrap().1 = Place::Paused;
                // A half, three quarters …, or nothing.
                let memory = limits_of(self.instances[&instance].0).memory;
                self.is_paused(instance, memory - (memory >> (choice % 4)));
            }
            Duty::Lower(instance) => {
                let bytes = self.lowering.remove(&instance).unwrap();
                let full = limits_of(self.instances[&instance].0).memory;
                self.lowered.extend(well.then_some((instance, bytes)));
                self.handle(Event::Lowered { instance, bytes: if well { bytes } else { full } });
            }
            Duty::Resume(instance) if well => {
                self.instances.get_mut(&instance).unwrap().1 = Place::Up;
                self.handle(Event::Resumed { instance });
            }
            Duty::Pause(instance) | Duty::Resume(instance) => {
                self.handle(Event::Died { instance });
            }
            Duty::Finish(invocation) => {
                self.calls.insert(invocation, Call::Over);
                self.handle(Event::Finished { invocation, reusable: well });
            }
        }
    }

    /// A paused instance has so much to spare; it may be wanted again by now.
    fn is_paused(&mut self, instance: InstanceId, spare: u64) {
        if spare > 0 {
            self.spare.insert(instance, spare);
        }
        self.handle(Event::Paused { instance, spare });
    }

    fn some_instance(&self, choice: usize) -> Option<InstanceId> {
        let up: Vec<_> =
            self.instances.iter().filter(|(_, (_, place))| *place == Place::Up).collect();
        (!up.is_empty()).then(|| *up[choice % up.len()].0)
    }

    /// Everything that is asked for is done, at once: then nothing waits any more.
    fn come_to_rest(&mut self) {
        while let Some(invocation) = self.reservations.keys().next() {
            self.unreserve(*invocation);
        }
        for _ in 0..10_000 {
            if self.duties.is_empty() {
                break;
            }
            self.fulfil(0, true);
        }
        let counts = self.scheduler.counts();
        let still = Counts { idle: counts.idle, paused: counts.paused, ..Counts::default() };
        assert_eq!(counts, still, "something waits for nothing");
    }

    /// Drains and fulfils everything; it must come to an end.
    fn finish(&mut self) {
        self.handle(Event::Drain);
        for _ in 0..10_000 {
            if self.drained {
                break;
            }
            if self.duties.is_empty() {
                self.advance(Duration::from_millis(10));
            }
            self.fulfil(0, true);
        }
        assert!(self.drained, "the drain did not end: {:?}", self.scheduler);
        assert!(self.calls.values().all(|call| *call == Call::Over), "an invocation was lost");
        assert!(self.reservations.is_empty(), "a reservation without an outcome");
        assert_eq!(self.scheduler.pool().used(), 0);
        assert_eq!(self.scheduler.counts(), Default::default());
        let watched = self.keep_alive.0.lock().unwrap();
        assert!(watched.told.is_empty(), "the policy was not told of every end");
        let left = format!("{:?}", watched.policy);
        assert!(!left.contains("InstanceId("), "the policy remembers what is gone: {left}");
        drop(watched);
        let invocation = InvocationId(u64::MAX);
        self.calls.insert(invocation, Call::Waiting { deadline: Time::MAX });
        self.versions.insert(invocation, VersionId(0));
        let version = VersionId(0);
        self.handle(Event::Arrived { invocation, version, deadline: Time::MAX });
        assert_eq!(self.calls[&invocation], Call::Over, "took an invocation after the drain");
        self.reserve(0, 1000);
        assert!(self.reservations.is_empty(), "took a reservation after the drain");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Arrive(u32, u64),
    Fulfil(usize, bool),
    Cancel(usize),
    Reserve(u32, u64),
    Bind(usize, u64),
    Unreserve(usize),
    Advance(u64),
    Rest(u64),
    Die(usize),
    CodeGone(u32),
    Supersede(u32),
    Prewarm(u32, u32),
    Pressure(u64),
    Load(u32),
    Drain,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..5u32, 1..400u64).prop_map(|(version, patience)| Op::Arrive(version, patience)),
        12 => (0..64usize).prop_map(|choice| Op::Fulfil(choice, true)),
        3 => (0..64usize).prop_map(|choice| Op::Fulfil(choice, false)),
        2 => (0..64usize).prop_map(Op::Cancel),
        6 => (0..5u32, 1..400u64).prop_map(|(version, patience)| Op::Reserve(version, patience)),
        4 => (0..64usize, 1..400u64).prop_map(|(choice, patience)| Op::Bind(choice, patience)),
        2 => (0..64usize).prop_map(Op::Unreserve),
        3 => (1..120u64).prop_map(Op::Advance),
        1 => (1..4u64).prop_map(Op::Rest),
        1 => (0..16usize).prop_map(Op::Die),
        1 => (0..5u32).prop_map(Op::CodeGone),
        1 => (0..5u32).prop_map(Op::Supersede),
        1 => (0..5u32, 0..4u32).prop_map(|(version, n)| Op::Prewarm(version, n)),
        1 => (0..600u64).prop_map(Op::Pressure),
        2 => (0..3u32).prop_map(Op::Load),
        1 => (0..40u32).prop_map(|n| if n == 0 { Op::Drain } else { Op::Advance(1) }),
    ]
}

/// Every queue policy, and settings that make it act often in short histories.
const QUEUES: [&str; 8] = [
    "fifo",
    "sjf",
    "edf",
    "fair",
    "adaptive-lifo",
    "adaptive-lifo,after_seconds=0.01",
    "bypass",
    "bypass,under_seconds=1,order=fair",
];

/// What may differ between workers beside the keep-alive policy.
#[derive(Clone, Debug)]
struct Settings {
    pick: InstanceChoice,
    /// Instances are paused.
    pause: bool,
    /// The slots of invocations are given again.
    reuse: bool,
    queue: &'static str,
    running: RunningLimit,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            pick: InstanceChoice::default(),
            pause: false,
            reuse: false,
            queue: "fifo",
            running: RunningLimit::None,
        }
    }
}

fn settings() -> impl Strategy<Value = Settings> {
    let load = LoadLimit { least: 1, most: 4, target: 1.0 };
    let running = prop_oneof![
        2 => Just(RunningLimit::None),
        2 => (1..4u32).prop_map(RunningLimit::Calls),
        1 => Just(RunningLimit::Load(load)),
    ];
    let pick = prop_oneof![Just(InstanceChoice::MostRecent), Just(InstanceChoice::Newest)];
    let queue = proptest::sample::select(&QUEUES[..]);
    let switches = any::<(bool, bool)>();
    (pick, switches, queue, running).prop_map(|(pick, (pause, reuse), queue, running)| Settings {
        pick,
        pause,
        reuse,
        queue,
        running,
    })
}

fn play(ops: &[Op], settings: &Settings, keep_alive: &str) -> Vec<(Time, Action)> {
    let mut shell = Shell::with(settings, keep_alive);
    for op in ops {
        match *op {
            Op::Arrive(version, patience) => shell.arrive(version, patience),
            Op::Fulfil(choice, well) => shell.fulfil(choice, well),
            Op::Cancel(choice) if !shell.calls.is_empty() => {
                let invocation = *shell.calls.keys().nth(choice % shell.calls.len()).unwrap();
                let before = shell.calls[&invocation];
                shell.handle(Event::Cancelled { invocation });
                let after = shell.calls[&invocation];
                match before {
                    Call::Waiting { .. } => assert_eq!(after, Call::Over, "a cancel unanswered"),
                    _ => assert_eq!(after, before, "a cancel ended what runs"),
                }
            }
            Op::Cancel(_) => {}
            Op::Reserve(version, patience) => {
                shell.reserve(version, patience);
            }
            Op::Bind(choice, patience) => {
                if let Some(invocation) = shell.some_reservation(choice) {
                    shell.bind(invocation, patience);
                }
            }
            Op::Unreserve(choice) => {
                // Also for what arrived long ago, or never was.
                let known = shell.some_reservation(choice);
                shell.unreserve(known.unwrap_or(InvocationId(choice as u64)));
            }
            Op::Advance(ms) => shell.advance(Duration::from_millis(ms)),
            Op::Rest(minutes) => shell.advance(Duration::from_secs(60 * minutes)),
            Op::Die(choice) => {
                if let Some(instance) = shell.some_instance(choice) {
                    shell.handle(Event::Died { instance });
                }
            }
            Op::CodeGone(version) => {
                // The shell says so only when no instance pins the code.
                let version = VersionId(version);
                if shell.instances.values().all(|(of, _)| *of != version) {
                    shell.handle(Event::CodeGone { version });
                }
            }
            Op::Supersede(version) => {
                shell.handle(Event::Superseded { version: VersionId(version) });
            }
            Op::Prewarm(version, instances) => {
                shell.handle(Event::Prewarm { version: VersionId(version), instances });
            }
            Op::Load(load) => shell.handle(Event::Load { per_processor: f64::from(load) }),
            Op::Pressure(mb) => shell.handle(Event::MemoryPressure { bytes: mb * MB }),
            Op::Drain => shell.handle(Event::Drain),
        }
    }
    shell.come_to_rest();
    shell.finish();
    shell.log
}

/// Every policy, and settings that make it act often in short histories.
const POLICIES: [&str; 10] = [
    "ttl",
    "ttl,seconds=0",
    "lru",
    "freq",
    "size",
    "landlord",
    "greedy-dual",
    "greedy-dual,per_instance=1",
    "histogram",
    "histogram,samples=1,range_minutes=5,cv=0.1,fallback_seconds=1",
];

#[test]
fn every_queue_policy_is_tried() {
    for entry in queue::standard().entries() {
        assert!(QUEUES.contains(&&*entry.name), "{} is missing", entry.name);
    }
}

#[test]
fn every_policy_is_tried() {
    for entry in keep_alive::standard().entries() {
        assert!(POLICIES.contains(&&*entry.name), "{} is missing", entry.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1000)))]

    #[test]
    fn random_histories_keep_every_promise(
        ops in proptest::collection::vec(op(), 1..250),
        settings in settings(),
        policy in proptest::sample::select(&POLICIES),
    ) {
        let log = play(&ops, &settings, policy);
        prop_assert_eq!(log, play(&ops, &settings, policy), "the same history, other actions");
    }
}

/// A shell in which everything succeeds at once, for tests of one behaviour each.
fn fulfil_all(shell: &mut Shell) {
    while shell.duties.iter().any(|duty| !matches!(duty, Duty::Finish(_))) {
        let choice = shell.duties.iter().position(|duty| !matches!(duty, Duty::Finish(_)));
        shell.fulfil(choice.unwrap(), true);
    }
}

fn fulfil_code(shell: &mut Shell) {
    while let Some(choice) = shell.duties.iter().position(|duty| matches!(duty, Duty::Fetch(_))) {
        shell.fulfil(choice, true);
    }
}

fn finish_one(shell: &mut Shell) {
    let choice = shell.duties.iter().position(|duty| matches!(duty, Duty::Finish(_)));
    shell.fulfil(choice.expect("something runs"), true);
}

#[test]
fn a_burst_starts_many_instances_at_once() {
    let mut shell = Shell::new(false, "ttl");
    for _ in 0..6 {
        shell.arrive(0, 10_000);
    }
    shell.fulfil(0, true); // the code
    assert_eq!(shell.scheduler.counts().starting, MAX_STARTING);
    fulfil_all(&mut shell);
    let counts = shell.scheduler.counts();
    assert_eq!((counts.busy, counts.waiting), (4, 2), "up to max_instances run, the rest waits");
}

#[test]
fn a_warm_instance_is_used_again_and_the_last_used_first() {
    let mut shell = Shell::new(false, "ttl");
    for _ in 0..2 {
        shell.arrive(0, 10_000);
    }
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    finish_one(&mut shell);
    shell.arrive(0, 10_000);
    assert_eq!(shell.scheduler.counts().busy, 1);
    assert_eq!(shell.instances.len(), 2, "no third instance was made");
    let Call::Running { instance, .. } = shell.calls[&InvocationId(2)] else { panic!() };
    assert_eq!(instance, InstanceId(1));
}

/// Instances 0, 1 and 2 are idle, used last in the order 1, 2, 0.
#[test]
fn a_call_goes_to_the_instance_that_is_chosen() {
    for (pick, order) in
        [(InstanceChoice::MostRecent, [0, 2, 1]), (InstanceChoice::Newest, [2, 1, 0])]
    {
        let mut shell = Shell::that_picks(pick, false, "ttl");
        for _ in 0..3 {
            shell.arrive(0, 10_000);
            fulfil_all(&mut shell);
        }
        for n in [1, 2, 0] {
            assert!(shell.duties.remove(&Duty::Finish(InvocationId(n))));
            shell.calls.insert(InvocationId(n), Call::Over);
            shell.handle(Event::Finished { invocation: InvocationId(n), reusable: true });
        }
        for instance in order {
            shell.arrive(0, 10_000);
            let Some((_, Action::Run { instance: at, .. })) = shell.log.last() else { panic!() };
            assert_eq!(*at, InstanceId(instance), "{pick:?}");
        }
        shell.finish();
    }
}

#[test]
fn the_number_of_an_earlier_generation_is_unknown() {
    let mut shell = Shell::new(false, "ttl");
    shell.reuse = true;
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    shell.arrive(0, 10_000);
    let (old, new) = (InvocationId(0), InvocationId(1 << 32));
    assert!(matches!(shell.calls[&new], Call::Running { .. }));
    for invocation in [old, InvocationId(2 << 32)] {
        shell.handle(Event::Finished { invocation, reusable: true });
        shell.handle(Event::Cancelled { invocation });
        shell.handle(Event::ReservationCancelled { invocation });
    }
    assert_eq!(shell.scheduler.counts().running, 1);
    finish_one(&mut shell);
    assert_eq!(shell.scheduler.counts().running, 0);
    shell.finish();
}

#[test]
fn a_version_is_forgotten_when_nothing_is_left_of_it() {
    let mut shell = Shell::new(false, "ttl");
    assert!(shell.scheduler.forget(VersionId(0)), "it was never known");
    shell.arrive(0, 10_000);
    assert!(!shell.scheduler.forget(VersionId(0)), "its code is fetched");
    fulfil_all(&mut shell);
    assert!(!shell.scheduler.forget(VersionId(0)), "a call runs");
    finish_one(&mut shell);
    assert!(!shell.scheduler.forget(VersionId(0)), "an instance is idle");
    shell.handle(Event::Superseded { version: VersionId(0) });
    assert!(!shell.scheduler.forget(VersionId(0)), "an instance is ending");
    fulfil_all(&mut shell);
    assert!(shell.scheduler.forget(VersionId(0)));
    shell.arrive(0, 10_000);
    assert_eq!(Vec::from_iter(&shell.duties), [&Duty::Fetch(VersionId(0))], "all anew");
    shell.finish();
}

#[test]
fn balancers_are_told_of_what_becomes_idle_and_of_what_ends_while_it_is() {
    let mut shell = Shell::new(false, "ttl");
    let version = VersionId(0);
    let told = |shell: &mut Shell| {
        let told = [Action::TellIdle { version }, Action::TellEvicted { version }];
        let log = std::mem::take(&mut shell.log);
        told.map(|tell| log.iter().filter(|(_, action)| *action == tell).count())
    };
    for _ in 0..2 {
        shell.arrive(0, 10_000);
    }
    fulfil_all(&mut shell);
    assert_eq!(told(&mut shell), [0, 0]);
    finish_one(&mut shell);
    assert_eq!(told(&mut shell), [1, 0]);
    shell.handle(Event::Died { instance: InstanceId(1) });
    assert_eq!(told(&mut shell), [0, 0], "that one was busy");
    shell.handle(Event::MemoryPressure { bytes: 1 });
    assert_eq!(told(&mut shell), [0, 1]);
    shell.finish();
}

#[test]
fn a_free_slot_takes_a_call_although_none_may_wait() {
    let mut shell = Shell::new(false, "ttl");
    for _ in 0..3 {
        shell.arrive(3, 10_000);
        fulfil_all(&mut shell);
        assert_eq!(shell.scheduler.counts().running, 1);
        finish_one(&mut shell);
    }
}

#[test]
fn an_old_version_ends_when_nothing_waits_for_it_and_lives_on_when_it_is_called() {
    let version = VersionId(0);
    let mut shell = Shell::new(false, "ttl");
    shell.arrive(0, 10_000);
    fulfil_code(&mut shell);
    shell.handle(Event::Superseded { version });
    assert_eq!(shell.instances[&InstanceId(0)].1, Place::Starting, "a call waits for it");
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    assert_eq!(shell.scheduler.counts().ending, 1);
    fulfil_all(&mut shell);
    // As after an alias was set back.
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    assert_eq!(shell.scheduler.counts().idle, 1);
    shell.finish();
}

#[test]
fn what_a_cancelled_start_had_promised_is_not_waited_for() {
    let mut shell = Shell::new(false, "ttl");
    let version = VersionId(0);
    shell.handle(Event::Prewarm { version, instances: 1 });
    fulfil_code(&mut shell);
    assert_eq!(shell.scheduler.counts().starting, 1);
    shell.handle(Event::Superseded { version });
    assert_eq!(shell.instances[&InstanceId(0)].1, Place::Cancelling);
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    assert_eq!(shell.scheduler.counts().running, 1);
    finish_one(&mut shell);
    shell.finish();
}

#[test]
fn the_least_recently_used_instance_makes_room() {
    let mut shell = Shell::new(false, "lru");
    for _ in 0..2 {
        shell.arrive(0, 10_000);
    }
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    shell.advance(Duration::from_millis(5));
    finish_one(&mut shell);
    // 2 × 100 MB are idle, 500 MB in all: 450 MB need both gone.
    shell.arrive(3, 10_000);
    fulfil_all(&mut shell);
    let versions: Vec<_> = shell.instances.values().map(|(version, _)| version.0).collect();
    assert_eq!(versions, [3]);
}

#[test]
fn idle_instances_expire_after_their_time() {
    let mut shell = Shell::new(false, "ttl");
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    shell.advance(Duration::from_millis(1990));
    assert_eq!(shell.scheduler.counts().idle, 1);
    shell.advance(Duration::from_millis(20));
    assert_eq!(shell.scheduler.counts().idle, 0);
}

#[test]
fn a_time_of_zero_evicts_at_once() {
    let mut shell = Shell::new(false, "ttl,seconds=0");
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    assert_eq!(shell.scheduler.counts().ending, 1);
    fulfil_all(&mut shell);
    let told = |action| shell.log.iter().any(|(_, done)| *done == action);
    assert!(!told(Action::TellEvicted { version: VersionId(0) }), "it never was idle");
    assert_eq!(shell.instances.len(), 1);
}

/// A version that is called every half hour, six times over, and rests now.
fn called_every_half_hour() -> Shell {
    let mut shell = Shell::new(false, "histogram");
    for call in 0..6 {
        if call > 0 {
            shell.advance(Duration::from_secs(1800));
        }
        shell.arrive(0, 10_000);
        fulfil_all(&mut shell);
        finish_one(&mut shell);
        fulfil_all(&mut shell);
    }
    shell
}

#[test]
fn what_is_expected_is_there_before_the_call() {
    let mut shell = called_every_half_hour();
    assert!(shell.instances.is_empty(), "it is known that the next call is far away");
    // Nothing but the timer tells that it comes nearer, and the code may be gone meanwhile.
    shell.handle(Event::CodeGone { version: VersionId(0) });
    shell.advance(Duration::from_secs(27 * 60 - 1));
    assert!(shell.duties.is_empty());
    shell.advance(Duration::from_secs(1));
    assert_eq!(Vec::from_iter(&shell.duties), [&Duty::Fetch(VersionId(0))]);
    fulfil_all(&mut shell);
    assert_eq!(shell.scheduler.counts().idle, 1);
    shell.advance(Duration::from_secs(3 * 60));
    shell.arrive(0, 10_000);
    assert_eq!(shell.scheduler.counts().busy, 1, "the call found it");
}

#[test]
fn what_is_not_called_after_all_goes_for_good() {
    let mut shell = called_every_half_hour();
    shell.advance(Duration::from_secs(28 * 60));
    fulfil_all(&mut shell);
    assert_eq!(shell.scheduler.counts().idle, 1);
    shell.advance(Duration::from_secs(7 * 60));
    fulfil_all(&mut shell);
    assert!(shell.instances.is_empty());
    assert_eq!(shell.scheduler.poll_timeout(), None, "nothing wakes the worker any more");
}

#[test]
fn nothing_is_started_ahead_for_a_superseded_version_or_in_a_drain() {
    for event in [Event::Superseded { version: VersionId(0) }, Event::Drain] {
        let mut shell = called_every_half_hour();
        shell.handle(event);
        shell.advance(Duration::from_secs(3600));
        assert!(shell.duties.is_empty(), "{event:?}: {:?}", shell.duties);
        assert!(shell.instances.is_empty());
    }
}

#[test]
fn a_frequent_instance_outlives_a_rare_one_that_was_used_later() {
    for (policy, survivor) in [("greedy-dual", 0), ("freq", 0), ("lru", 1)] {
        let mut shell = Shell::new(false, policy);
        for version in [0, 0, 0, 1] {
            shell.arrive(version, 10_000);
            // Starts take their time, so that they have a cost.
            fulfil_code(&mut shell);
            shell.advance(Duration::from_millis(400));
            fulfil_all(&mut shell);
            finish_one(&mut shell);
        }
        // 100 and 200 of 500 MB are idle.
        shell.handle(Event::MemoryPressure { bytes: 1 });
        fulfil_all(&mut shell);
        let versions: Vec<_> = shell.instances.values().map(|(version, _)| version.0).collect();
        assert_eq!(versions, [survivor], "{policy}");
    }
}

#[test]
fn a_paused_instance_wakes_instead_of_a_new_one_being_made() {
    let mut shell = Shell::new(true, "ttl");
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    shell.advance(Duration::from_millis(60));
    fulfil_all(&mut shell);
    assert_eq!(shell.scheduler.counts().paused, 1);
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    assert_eq!(shell.instances.len(), 1);
    assert_eq!(shell.scheduler.counts().busy, 1);
}

#[test]
fn a_version_with_an_endless_queue_does_not_starve_the_others() {
    let mut shell = Shell::new(false, "ttl");
    for _ in 0..10 {
        shell.arrive(1, 60_000); // 2 instances of 200 MB with 3 slots
    }
    fulfil_all(&mut shell);
    shell.arrive(3, 60_000); // 450 MB
    fulfil_all(&mut shell);
    for _ in 0..20 {
        shell.advance(Duration::from_millis(60));
        shell.arrive(1, 60_000);
        if shell.duties.iter().any(|duty| matches!(duty, Duty::Finish(_))) {
            finish_one(&mut shell);
        }
        fulfil_all(&mut shell);
        if shell.instances.values().any(|(version, _)| version.0 == 3) {
            return;
        }
    }
    panic!("the large function never got its memory");
}

#[test]
fn what_never_starts_rejects_one_invocation_a_try() {
    let mut shell = Shell::new(false, "ttl");
    for _ in 0..5 {
        shell.arrive(0, 10_000);
    }
    shell.fulfil(0, true);
    for _ in 0..5 {
        shell.fulfil(0, false);
    }
    assert!(shell.duties.is_empty(), "{:?}", shell.duties);
    assert!(shell.calls.values().all(|call| *call == Call::Over));
}

fn end_of(shell: &Shell, invocation: InvocationId) -> Option<ReservationEnd> {
    shell.ends.iter().find(|(id, _)| *id == invocation).map(|(_, why)| *why)
}

#[test]
fn a_reservation_waits_in_turn_and_its_invocation_gets_the_slot_that_is_held() {
    let mut shell = Shell::new(false, "ttl");
    shell.arrive(3, 10_000); // one instance, one slot, no queue to speak of
    fulfil_all(&mut shell);
    let reserved = shell.reserve(3, 10_000);
    assert!(matches!(end_of(&shell, reserved), Some(ReservationEnd::Refused(_))), "no room");

    let mut shell = Shell::new(false, "ttl");
    for _ in 0..4 {
        shell.arrive(0, 10_000);
    }
    fulfil_all(&mut shell);
    let first = shell.reserve(0, 10_000);
    shell.arrive(0, 10_000);
    let second = shell.reserve(0, 10_000);
    finish_one(&mut shell);
    assert!(shell.reservations[&first].offered.is_some(), "first come, first served");
    finish_one(&mut shell);
    let counts = shell.scheduler.counts();
    assert_eq!((counts.running, counts.waiting, counts.reserved, counts.offered), (3, 0, 1, 1));
    // One takes its slot, the other its place in the queue.
    shell.bind(second, 10_000);
    assert_eq!(shell.scheduler.counts().waiting, 1);
    shell.bind(first, 10_000);
    assert!(matches!(shell.calls[&first], Call::Running { .. }));
    finish_one(&mut shell);
    assert!(matches!(shell.calls[&second], Call::Running { .. }));
    assert_eq!(shell.ends, [(second, ReservationEnd::Taken), (first, ReservationEnd::Taken)]);
    shell.finish();
}

#[test]
fn a_reservation_starts_an_instance_and_its_invocation_is_cold() {
    let mut shell = Shell::new(false, "ttl");
    let reserved = shell.reserve(0, 10_000);
    fulfil_all(&mut shell);
    assert_eq!(shell.scheduler.counts().busy, 1);
    shell.bind(reserved, 10_000);
    let cold =
        |(_, action): &(Time, Action)| matches!(action, Action::Run { start: StartKind::Cold, .. });
    assert!(shell.log.iter().any(cold));
}

#[test]
fn a_slot_that_is_not_taken_goes_to_the_next_and_a_late_invocation_is_like_any_other() {
    for cancel in [true, false] {
        let mut shell = Shell::new(false, "ttl");
        let reserved = shell.reserve(3, 10_000);
        fulfil_all(&mut shell);
        shell.arrive(3, 10_000);
        assert_eq!(shell.scheduler.counts().running, 0, "rejected: this version has no queue");
        let next = shell.reserve(0, 10_000);
        fulfil_all(&mut shell);
        if cancel {
            shell.unreserve(reserved);
            assert_eq!(end_of(&shell, reserved), Some(ReservationEnd::Cancelled));
        } else {
            shell.advance(OFFER_TIMEOUT);
            assert_eq!(end_of(&shell, reserved), Some(ReservationEnd::NotTaken));
        }
        // The large instance is idle now and makes room for the other version's.
        fulfil_all(&mut shell);
        assert!(shell.reservations[&next].offered.is_some());
        shell.bind(reserved, 10_000);
        shell.unreserve(next);
        fulfil_all(&mut shell);
        assert!(matches!(shell.calls[&reserved], Call::Running { .. }));
        shell.finish();
    }
}

#[test]
fn a_held_slot_is_neither_paused_nor_evicted_but_may_die() {
    let mut shell = Shell::new(true, "ttl,seconds=0");
    let reserved = shell.reserve(0, 10_000);
    fulfil_all(&mut shell);
    shell.advance(OFFER_TIMEOUT - Duration::from_millis(1));
    shell.handle(Event::MemoryPressure { bytes: u64::MAX });
    shell.handle(Event::Superseded { version: VersionId(0) });
    assert_eq!(shell.scheduler.counts().busy, 1);
    let instance = shell.reservations[&reserved].offered.unwrap();
    shell.handle(Event::Died { instance });
    assert_eq!(end_of(&shell, reserved), Some(ReservationEnd::SlotLost));
    fulfil_all(&mut shell);
    assert!(shell.instances.is_empty());
    shell.bind(reserved, 10_000);
    fulfil_all(&mut shell);
    assert!(matches!(shell.calls[&reserved], Call::Running { .. }));
}

/// Pauses whatever rests, which needs so much then.
fn pause_all(shell: &mut Shell, bytes: u64) {
    shell.advance(Duration::from_millis(60));
    while let Some(Duty::Pause(instance)) = shell.duties.pop_first() {
        shell.instances.get_mut(&instance).unwrap().1 = Place::Paused;
        let full = limits_of(shell.instances[&instance].0).memory;
        shell.is_paused(instance, full - bytes);
    }
}

#[test]
fn a_paused_instance_gives_memory_back_until_it_is_resumed() {
    let mut shell = Shell::new(true, "lru");
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    let full = shell.scheduler.pool().used();
    pause_all(&mut shell, MB);
    assert_eq!(shell.scheduler.pool().used(), full, "there is enough");
    shell.handle(Event::MemoryPressure { bytes: 1 });
    fulfil_all(&mut shell);
    assert_eq!(shell.scheduler.pool().used(), MB);
    shell.arrive(0, 10_000);
    assert_eq!(shell.scheduler.pool().used(), full, "it is taken before it is needed");
    fulfil_all(&mut shell);
    assert_eq!((shell.scheduler.counts().busy, shell.instances.len()), (1, 1));
    finish_one(&mut shell);
    shell.finish();
}

#[test]
fn paused_instances_give_memory_back_before_any_instance_ends_for_it() {
    let mut shell = Shell::new(true, "lru");
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    pause_all(&mut shell, MB);
    call(&mut shell, 0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    // Two instances of 200 MiB, beside 100 that are paused and 50 that are idle.
    for _ in 0..4 {
        shell.arrive(1, 10_000);
        fulfil_all(&mut shell);
    }
    let counts = shell.scheduler.counts();
    assert_eq!((counts.busy, counts.idle, counts.paused), (2, 2, 1));
    assert!(!shell.log.iter().any(|(_, action)| matches!(action, Action::Evict { .. })));
    shell.finish();
}

/// Where others have taken what it gave back, the call waits for memory in turn like one for which an
/// instance has to be made.
#[test]
fn a_call_for_a_paused_instance_that_lacks_memory_waits_in_turn() {
    let mut shell = Shell::new(true, "lru");
    shell.arrive(0, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    pause_all(&mut shell, MB);
    // It fits beside what is paused, not beside what runs.
    shell.arrive(3, 10_000);
    fulfil_all(&mut shell);
    assert_eq!((shell.scheduler.counts().busy, shell.scheduler.counts().paused), (1, 1));
    shell.arrive(0, 10_000);
    assert_eq!((shell.scheduler.counts().waiting, shell.scheduler.counts().busy), (1, 1));
    finish_one(&mut shell);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    assert!(shell.calls.values().all(|call| *call == Call::Over), "{:?}", shell.scheduler);
    assert_eq!(shell.log.iter().filter(|(_, a)| matches!(a, Action::Reject { .. })).count(), 0);
    shell.finish();
}

/// Versions from this one on are alike and small.
const PLAIN: u32 = 5;

fn call(shell: &mut Shell, version: u32, patience: u64) {
    shell.arrive(PLAIN + version, patience);
}

/// The versions of the calls that ran, in order.
fn ran(shell: &Shell) -> Vec<u32> {
    let runs = shell.log.iter().filter_map(|(_, action)| match action {
        Action::Run { invocation, .. } => Some(shell.versions[invocation].0 - PLAIN),
        _ => None,
    });
    runs.collect()
}

/// A shell that runs one call at once, in which versions 0, 1 and 2 have an idle instance each; a call of
/// them takes 30, 10 and 20 ms. Then one of version 0 runs.
fn warm_and_busy(queue: &'static str) -> Shell {
    let mut shell = Shell::that_runs(RunningLimit::Calls(1), queue);
    for version in 0..3 {
        call(&mut shell, version, 10_000);
        fulfil_all(&mut shell);
        shell.advance(Duration::from_millis([30, 10, 20][version as usize]));
        finish_one(&mut shell);
    }
    call(&mut shell, 0, 10_000);
    shell.log.clear();
    shell
}

/// One after the other ends, after so many milliseconds each.
fn run_all(shell: &mut Shell, milliseconds: [u64; 3]) {
    while let Some(Duty::Finish(invocation)) =
        shell.duties.iter().find(|duty| matches!(duty, Duty::Finish(_))).copied()
    {
        let version = (shell.versions[&invocation].0 - PLAIN) as usize;
        shell.advance(Duration::from_millis(*milliseconds.get(version).unwrap_or(&1)));
        finish_one(shell);
    }
}

#[test]
fn a_limit_of_running_calls_keeps_an_order_between_functions() {
    for (queue, order) in [
        ("fifo", [2, 1, 0, 1]),
        // 10 ms before 20 before 30; those alike in the order of their arrival.
        ("sjf", [1, 1, 2, 0]),
        // Due at 1 + 20, 2 + 10, 3 + 30, 20 + 10 ms.
        ("edf", [1, 2, 1, 0]),
    ] {
        let mut shell = warm_and_busy(queue);
        for version in [2, 1, 0] {
            shell.advance(Duration::from_millis(1));
            call(&mut shell, version, 10_000);
        }
        shell.advance(Duration::from_millis(17));
        call(&mut shell, 1, 10_000);
        assert_eq!(shell.scheduler.counts().running, 1, "the others wait beside idle instances");
        run_all(&mut shell, [30, 10, 20]);
        assert_eq!(ran(&shell), order, "{queue}");
        shell.finish();
    }
}

/// A function that sends a hundred calls ahead delays the one call of another by one call, and by all
/// hundred without fairness.
#[test]
fn a_flood_of_one_function_does_not_hold_up_another() {
    for (queue, before) in [("fifo", 100), ("fair", 1)] {
        let mut shell = warm_and_busy(queue);
        for _ in 0..100 {
            shell.advance(Duration::from_millis(1));
            call(&mut shell, 0, 1_000_000);
        }
        call(&mut shell, 1, 1_000_000);
        run_all(&mut shell, [30, 10, 20]);
        let order = ran(&shell);
        let waited_for = order.iter().position(|version| *version == 1).unwrap();
        assert!(waited_for <= before && order.len() == 101, "{queue}: {waited_for}");
        assert!(queue == "fair" || waited_for == before, "{queue}: {waited_for}");
        shell.finish();
    }
}

/// Two functions that always have calls waiting get the same time, whatever their calls take.
#[test]
fn fair_is_by_time_and_not_by_calls() {
    let mut shell = warm_and_busy("fair");
    for _ in 0..400 {
        call(&mut shell, 0, 1_000_000);
        call(&mut shell, 1, 1_000_000);
    }
    let mut took = [0, 0];
    for _ in 0..200 {
        let running = shell.duties.iter().find_map(|duty| match duty {
            Duty::Finish(invocation) => Some((shell.versions[invocation].0 - PLAIN) as usize),
            _ => None,
        });
        let version = running.unwrap();
        took[version] += [30, 10][version];
        shell.advance(Duration::from_millis([30, 10][version]));
        finish_one(&mut shell);
    }
    let difference = i64::abs_diff(took[0], took[1]);
    assert!(difference <= 2 * (30 + 10), "{took:?}");
    shell.come_to_rest();
    shell.finish();
}

#[test]
fn under_overload_the_newest_call_is_the_next() {
    let mut shell = warm_and_busy("adaptive-lifo");
    for version in [1, 2] {
        call(&mut shell, version, 10_000);
    }
    // Nobody has waited for 100 ms yet.
    shell.advance(Duration::from_millis(30));
    finish_one(&mut shell);
    assert_eq!(ran(&shell), [1]);
    shell.advance(Duration::from_millis(70));
    for version in [0, 1, 2] {
        call(&mut shell, version, 10_000);
    }
    run_all(&mut shell, [1, 1, 1]);
    assert_eq!(ran(&shell), [1, 2, 1, 0, 2]);
    // Nobody waits any more, and the overload is over.
    call(&mut shell, 0, 10_000);
    for version in [1, 2] {
        call(&mut shell, version, 10_000);
    }
    run_all(&mut shell, [1, 1, 1]);
    assert_eq!(ran(&shell)[5..], [0, 1, 2]);
    shell.finish();
}

#[test]
fn a_short_call_passes_by_the_queue_if_it_finds_a_slot() {
    let mut shell = Shell::that_runs(RunningLimit::Calls(1), "bypass");
    for (version, milliseconds) in [(0, 30), (1, 5)] {
        call(&mut shell, version, 10_000);
        fulfil_all(&mut shell);
        shell.advance(Duration::from_millis(milliseconds));
        finish_one(&mut shell);
    }
    for version in [0, 0, 1] {
        call(&mut shell, version, 10_000);
    }
    assert_eq!(ran(&shell), [0, 1, 0, 1], "the short one, before the second of the long ones");
    // Without a slot that is free it waits in its turn.
    call(&mut shell, 1, 10_000);
    assert_eq!(shell.scheduler.counts().waiting, 2);
    shell.come_to_rest();
    shell.finish();
}

/// What starts takes a place, and gets it in its turn.
#[test]
fn an_instance_starts_when_its_call_has_the_place_to_run() {
    let mut shell = warm_and_busy("fifo");
    call(&mut shell, 1, 10_000);
    call(&mut shell, 3, 10_000);
    call(&mut shell, 2, 10_000);
    fulfil_code(&mut shell);
    assert_eq!(shell.scheduler.counts().starting, 0);
    finish_one(&mut shell);
    assert_eq!(ran(&shell), [1]);
    finish_one(&mut shell);
    assert_eq!(shell.scheduler.counts().starting, 1, "its turn is before that of version 2");
    assert_eq!(shell.scheduler.counts().running, 0);
    fulfil_all(&mut shell);
    run_all(&mut shell, [1, 1, 1]);
    shell.finish();
}

/// A drain and a newer version do not take an instance from calls that only wait for their turn.
#[test]
fn an_instance_that_waiting_calls_need_is_there_for_them() {
    for drain in [false, true] {
        let mut shell = warm_and_busy("fifo");
        call(&mut shell, 1, 10_000);
        call(&mut shell, 1, 10_000);
        shell.handle(match drain {
            true => Event::Drain,
            false => Event::Superseded { version: VersionId(PLAIN + 1) },
        });
        run_all(&mut shell, [1, 1, 1]);
        assert_eq!(ran(&shell), [1, 1]);
        let started = shell.log.iter().any(|(_, action)| matches!(action, Action::Start { .. }));
        assert!(!started, "an instance was started in the place of one that was there");
        let evicted = |version| {
            let gone = |action: &Action| match action {
                Action::Evict { instance, .. } => {
                    shell.instances[instance].0 == VersionId(PLAIN + version)
                }
                _ => false,
            };
            shell.log.iter().any(|(_, action)| gone(action))
        };
        assert!(evicted(1), "it ends after them");
        shell.finish();
    }
}

#[test]
fn a_queue_behind_a_limit_is_bounded_though_slots_are_free() {
    let mut shell = warm_and_busy("fifo");
    let spare = 3 * limits_of(VersionId(PLAIN + 1)).slots;
    for _ in 0..limits_of(VersionId(PLAIN + 1)).queue + spare {
        call(&mut shell, 1, 10_000);
    }
    let waiting = shell.scheduler.counts().waiting;
    call(&mut shell, 1, 10_000);
    assert_eq!(shell.scheduler.counts().waiting, waiting);
    assert!(matches!(
        shell.log.last(),
        Some((_, Action::Reject { why: Rejection::QueueFull, .. }))
    ));
    shell.come_to_rest();
    shell.finish();
}

/// No place in the queue is needed for what a paused instance takes.
#[test]
fn a_paused_instance_takes_a_call_although_none_may_wait() {
    let mut shell = Shell::new(true, "lru");
    for _ in 0..3 {
        // Of these one may run and none may wait.
        shell.arrive(3, 10_000);
        fulfil_all(&mut shell);
        assert_eq!(shell.scheduler.counts().busy, 1, "it was rejected");
        finish_one(&mut shell);
        pause_all(&mut shell, MB);
    }
    shell.finish();
}

// Tests of a review.

fn starts(shell: &Shell) -> usize {
    shell.log.iter().filter(|(_, action)| matches!(action, Action::Start { .. })).count()
}

fn finish_of(shell: &mut Shell, version: u32) {
    let versions = &shell.versions;
    let choice = shell.duties.iter().position(
        |duty| matches!(duty, Duty::Finish(invocation) if versions[invocation].0 == version),
    );
    shell.fulfil(choice.expect("it runs"), true);
}

/// R1: the wish of a call that only waited for a place outlives the call.
#[test]
fn r01_a_call_that_waits_for_a_place_beside_an_idle_instance_starts_none() {
    let mut shell = Shell::that_runs(RunningLimit::Calls(2), "fifo");
    call(&mut shell, 1, 10_000);
    fulfil_all(&mut shell);
    finish_one(&mut shell);
    for _ in 0..2 {
        call(&mut shell, 0, 10_000);
        fulfil_all(&mut shell);
    }
    call(&mut shell, 1, 10_000);
    shell.log.clear();
    finish_of(&mut shell, PLAIN);
    assert_eq!(ran(&shell), [1], "in the idle instance");
    finish_of(&mut shell, PLAIN);
    assert_eq!(shell.scheduler.counts().waiting, 0);
    assert_eq!(starts(&shell), 0, "an instance is started for nobody");
}

/// R1: and it starts one, and takes the place, while idle ones and calls for them are there.
#[test]
fn r01_no_cold_start_takes_the_place_of_a_warm_one() {
    let mut shell = Shell::that_runs(RunningLimit::Calls(4), "fifo");
    for _ in 0..2 {
        call(&mut shell, 1, 10_000);
        call(&mut shell, 1, 10_000);
    }
    fulfil_all(&mut shell);
    shell.advance(Duration::from_millis(1));
    // Two of the four die; two are idle.
    for _ in 0..4 {
        finish_one(&mut shell);
    }
    for instance in [shell.some_instance(0).unwrap(), shell.some_instance(1).unwrap()] {
        shell.handle(Event::Died { instance });
        fulfil_all(&mut shell);
    }
    for _ in 0..4 {
        call(&mut shell, 0, 10_000);
        fulfil_all(&mut shell);
    }
    call(&mut shell, 1, 10_000);
    call(&mut shell, 1, 10_000);
    shell.log.clear();
    finish_of(&mut shell, PLAIN);
    finish_of(&mut shell, PLAIN);
    assert_eq!((ran(&shell), starts(&shell)), (vec![1, 1], 0));
}

/// R2: a limit that grows is seen only by what has a wish or a slot.
#[test]
fn r02_what_waits_runs_when_the_limit_has_grown() {
    let load = LoadLimit { least: 1, most: 4, target: 1.0 };
    let mut shell = Shell::that_runs(RunningLimit::Load(load), "fifo");
    call(&mut shell, 0, 10_000);
    fulfil_all(&mut shell);
    call(&mut shell, 0, 10_000);
    shell.handle(Event::Load { per_processor: 0.0 });
    assert_eq!(shell.scheduler.running_limit(), Some(2));
    fulfil_all(&mut shell);
    assert_eq!(shell.scheduler.counts().running, 2, "one waits beside a free place and memory");
}

/// R3: instances whose slots take nothing more count as if they did.
#[test]
fn r03_slots_that_are_spent_do_not_count_as_usable() {
    for running in [RunningLimit::None, RunningLimit::Calls(2)] {
        let mut shell = Shell::that_runs(running, "fifo");
        shell.arrive(50, 10_000);
        shell.arrive(50, 10_000);
        fulfil_all(&mut shell);
        assert_eq!(shell.scheduler.counts().running, 2);
        finish_one(&mut shell);
        // One runs, of two that may; its instance takes no more.
        shell.arrive(50, 10_000);
        fulfil_all(&mut shell);
        assert_eq!(shell.scheduler.counts().running, 2, "{running:?}");
    }
}

/// R4: the wish for the first call of several is at the place of the last.
#[test]
fn r04_a_call_keeps_its_turn_while_its_code_is_fetched() {
    let mut shell = warm_and_busy("fifo");
    call(&mut shell, 3, 10_000);
    call(&mut shell, 1, 10_000);
    call(&mut shell, 3, 10_000);
    fulfil_code(&mut shell);
    finish_one(&mut shell);
    assert_eq!(shell.scheduler.counts().starting, 1, "version 3 came before version 1");
}

/// R4: wishes of one rank are in the order in which they were made, not in that of their calls.
#[test]
fn r04_the_order_of_wishes_is_that_of_calls_whatever_code_comes_first() {
    let mut shell = warm_and_busy("fifo");
    call(&mut shell, 3, 10_000);
    call(&mut shell, 1, 10_000);
    call(&mut shell, 4, 10_000);
    for version in [4, 3].map(|version| VersionId(PLAIN + version)) {
        let choice = shell.duties.iter().position(|duty| *duty == Duty::Fetch(version));
        shell.fulfil(choice.unwrap(), true);
    }
    fulfil_all(&mut shell);
    run_all(&mut shell, [1, 1, 1]);
    fulfil_all(&mut shell);
    while shell.duties.iter().any(|duty| matches!(duty, Duty::Finish(_))) {
        finish_one(&mut shell);
        fulfil_all(&mut shell);
    }
    assert_eq!(ran(&shell), [3, 1, 4], "in the order of their arrival");
}

/// R4: and its flow waits for as long as all of its calls would take.
#[test]
fn r04_fair_stays_fair_to_a_flow_that_has_lost_its_instance() {
    let mut shell = warm_and_busy("fair");
    for _ in 0..100 {
        call(&mut shell, 0, 1_000_000);
        call(&mut shell, 1, 1_000_000);
    }
    let busy = shell.calls.values().find_map(|call| match call {
        Call::Running { instance, .. } => Some(*instance),
        _ => None,
    });
    shell.handle(Event::Died { instance: busy.unwrap() });
    finish_one(&mut shell);
    fulfil_all(&mut shell);
    for _ in 0..20 {
        shell.advance(Duration::from_millis(10));
        finish_one(&mut shell);
        fulfil_all(&mut shell);
    }
    assert!(ran(&shell).contains(&0), "200 ms of the one and nothing of the other");
}

/// R4: newest first, a cold function never has its turn.
#[test]
fn r04_newest_first_a_cold_call_that_is_the_newest_is_the_next() {
    let mut shell = warm_and_busy("adaptive-lifo,after_seconds=0");
    call(&mut shell, 3, 1_000_000);
    fulfil_code(&mut shell);
    for _ in 0..50 {
        shell.advance(Duration::from_millis(1));
        call(&mut shell, 0, 1_000_000);
        call(&mut shell, 3, 1_000_000);
        finish_one(&mut shell);
        fulfil_all(&mut shell);
    }
    assert!(ran(&shell).contains(&3), "the newest call was of version 3 fifty times");
}

/// R5: `fairness` looks at the first wish only, and that one is always new.
#[test]
fn r05_fairness_holds_whatever_the_order() {
    for queue in ["fifo", "adaptive-lifo,after_seconds=0"] {
        let mut shell = Shell::that_runs(RunningLimit::None, queue);
        shell.arrive(52, 1_000_000);
        fulfil_all(&mut shell);
        for version in 0..30 {
            shell.arrive(52, 1_000_000);
            call(&mut shell, version, 1_000_000);
            fulfil_code(&mut shell);
            shell.advance(Duration::from_millis(50));
            finish_one(&mut shell);
            fulfil_all(&mut shell);
        }
        let others = shell.log.iter().any(|(_, action)| {
            matches!(action, Action::Run { invocation, .. } if shell.versions[invocation].0 != 52)
        });
        assert!(others, "{queue}: thirty functions have waited for up to 1.5 s, fairness is 0.1 s");
    }
}

/// R6: the place of a start goes to somebody else when it is ready.
#[test]
fn r06_the_first_call_of_what_has_started_has_its_place() {
    let mut shell = Shell::that_runs(RunningLimit::Calls(1), "adaptive-lifo,after_seconds=0");
    for version in 0..8 {
        call(&mut shell, version, 1_000_000);
        fulfil_code(&mut shell);
        if version > 0 {
            let start = shell.duties.iter().position(|duty| matches!(duty, Duty::Start(_)));
            shell.fulfil(start.unwrap_or(0), true);
        }
    }
    assert!(!ran(&shell).is_empty(), "{} starts, and nothing runs", starts(&shell));
}

/// R7: an instance that waiting calls need ends at once with a time of zero.
#[test]
fn r07_an_instance_that_waiting_calls_need_does_not_expire() {
    let running = RunningLimit::Calls(1);
    let settings = Settings { running, ..Settings::default() };
    let mut shell = Shell::with(&settings, "ttl,seconds=0");
    call(&mut shell, 0, 10_000);
    fulfil_all(&mut shell);
    call(&mut shell, 1, 10_000);
    fulfil_code(&mut shell);
    call(&mut shell, 0, 10_000);
    finish_one(&mut shell);
    assert_eq!(shell.scheduler.counts().ending, 0, "a call of it waits for its turn");
}

/// R8: no short call passes by as long as one of its version waits.
#[test]
fn r08_short_calls_pass_by_though_one_of_them_waits() {
    let mut shell = Shell::that_runs(RunningLimit::Calls(1), "bypass");
    for (version, milliseconds) in [(0, 30), (1, 5)] {
        call(&mut shell, version, 10_000);
        fulfil_all(&mut shell);
        shell.advance(Duration::from_millis(milliseconds));
        finish_one(&mut shell);
    }
    for version in [0, 0, 1, 1] {
        call(&mut shell, version, 10_000);
    }
    shell.log.clear();
    finish_of(&mut shell, PLAIN + 1);
    call(&mut shell, 1, 10_000);
    assert_eq!(ran(&shell), [1], "short, and a slot is free");
}

/// R9: what would run at once is rejected.
#[test]
fn r09_a_short_call_that_passes_by_needs_no_place_in_the_queue() {
    let mut shell = Shell::that_runs(RunningLimit::Calls(1), "bypass");
    shell.arrive(51, 10_000);
    fulfil_all(&mut shell);
    shell.advance(Duration::from_millis(1));
    finish_one(&mut shell);
    call(&mut shell, 0, 10_000);
    fulfil_all(&mut shell);
    shell.arrive(51, 10_000);
    assert_eq!(shell.scheduler.counts().running, 2, "{:?}", shell.log.last());
}

/// R10: estimates that are wrong add up.
#[test]
fn r10_fair_counts_what_runs_took() {
    use openlambda_core::queue::{Arrival, Fair, QueuePolicy};
    let mut fair = Fair::default();
    let version = VersionId(0);
    let call = Arrival { version, arrived: Time::ZERO, deadline: Time::MAX };
    let second = Duration::from_secs(1);
    let ranks: Vec<u64> = (0..10).map(|_| fair.rank(&call, Time::ZERO)).collect();
    for (rank, now) in ranks.into_iter().zip(1..) {
        fair.started(&call, rank, Time(now * 1_000_000_000));
        fair.finished(version, second, Time((now + 1) * 1_000_000_000));
    }
    let tag = Duration::from_micros(fair.rank(&call, Time(11_000_000_000)));
    assert!(tag > 9 * second, "ten runs of a second count as {tag:?}");
}

/// R11: a prewarm goes before all that waits, with all policies but fifo.
#[test]
fn r11_a_prewarm_is_not_before_calls_that_wait() {
    for queue in ["fifo", "sjf"] {
        let mut shell = warm_and_busy(queue);
        call(&mut shell, 1, 10_000);
        shell.handle(Event::Prewarm { version: VersionId(PLAIN + 3), instances: 1 });
        fulfil_code(&mut shell);
        finish_one(&mut shell);
        assert_eq!((ran(&shell), starts(&shell)), (vec![1], 0), "{queue}");
    }
}

/// R12.
#[test]
fn r12_a_limit_is_parsed_for_any_number_of_processors() {
    assert_eq!(RunningLimit::parse("none", u32::MAX), Ok(RunningLimit::None));
}
