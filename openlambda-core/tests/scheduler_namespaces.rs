//! The scheduler between namespaces: whoever floods makes no other namespace wait for longer than the
//! other's share says, and gets no more memory than its own.
//!
//! The test plays the shell with a clock of its own: calls run for as long as their version says, starts
//! and ends of instances take fixed times, and functions of a flood are called again as soon as they run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use openlambda_core::invocation::StartKind;
use openlambda_core::keep_alive::Lru;
use openlambda_core::queue;
use openlambda_core::scheduler::{
    Action, Event, InstanceId, InvocationId, Limits, NamespaceId, Rejection, RunningLimit,
    Scheduler, SchedulerConfig, VersionId,
};
use openlambda_core::time::Time;
use proptest::prelude::*;

const MB: u64 = 1 << 20;
const MS: u64 = 1_000_000;

/// A version, by its number.
#[derive(Clone, Debug)]
struct Function {
    namespace: u32,
    /// Milliseconds that each call runs.
    run: u64,
    /// Calls of it that wait all the time.
    backlog: u32,
    /// MiB that each instance takes.
    memory: u64,
    /// Each call has an instance of its own.
    fresh: bool,
    /// Milliseconds until its code is there.
    fetch: u64,
}

impl Function {
    /// One whose instances take 1 MiB and are used again.
    fn new(namespace: u32, run: u64, backlog: u32) -> Function {
        Function { namespace, run, backlog, memory: 1, fresh: false, fetch: 0 }
    }
}

struct World {
    scheduler: Scheduler,
    functions: Vec<Function>,
    start: u64,
    end: u64,
    now: Time,
    coming: BinaryHeap<Reverse<(Time, u64)>>,
    events: BTreeMap<u64, Event>,
    count: u64,
    calls: u64,
    /// By call: of which version, when it arrived.
    arrived: BTreeMap<u64, (usize, Time)>,
    instances: BTreeMap<u64, usize>,
    began: BTreeMap<u64, (usize, Time)>,
    /// By namespace: nanoseconds of calls that are over.
    served: BTreeMap<u32, u64>,
    /// By version: the waits of its calls.
    waits: BTreeMap<usize, Vec<Duration>>,
    log: Vec<String>,
    share: Option<(u32, f64)>,
}

impl World {
    /// `start` and `end` of an instance take so many milliseconds; `memory` is in MiB.
    fn new(
        functions: Vec<Function>,
        running: RunningLimit,
        memory: u64,
        (start, end): (u64, u64),
        policy: &str,
        share: Option<(u32, f64)>,
    ) -> World {
        let config = SchedulerConfig { memory: memory * MB, running, ..SchedulerConfig::default() };
        let keep_alive = Box::new(Lru::default());
        let scheduler = Scheduler::new(config, queue::by_name(policy).unwrap().make(), keep_alive);
        World {
            scheduler,
            functions,
            start,
            end,
            now: Time::ZERO,
            coming: BinaryHeap::new(),
            events: BTreeMap::new(),
            count: 0,
            calls: 0,
            arrived: BTreeMap::new(),
            instances: BTreeMap::new(),
            began: BTreeMap::new(),
            served: BTreeMap::new(),
            waits: BTreeMap::new(),
            log: Vec::new(),
            share,
        }
    }

    fn know_namespaces(&mut self) {
        for (n, function) in self.functions.iter().enumerate() {
            let of = self.share.filter(|(namespace, _)| *namespace == function.namespace);
            let namespace = NamespaceId(function.namespace);
            self.scheduler.belongs(VersionId(n as u32), namespace, of.map(|(_, share)| share));
        }
    }

    fn later(&mut self, nanoseconds: u64, event: Event) {
        self.count += 1;
        self.events.insert(self.count, event);
        self.coming.push(Reverse((self.now + Duration::from_nanos(nanoseconds), self.count)));
    }

    fn call(&mut self, of: usize) {
        self.calls += 1;
        let invocation = InvocationId(self.calls);
        self.arrived.insert(self.calls, (of, self.now));
        let version = VersionId(of as u32);
        let deadline = self.now + Duration::from_secs(1_000_000);
        self.tell(Event::Arrived { invocation, version, deadline });
    }

    fn tell(&mut self, event: Event) {
        self.scheduler.handle(self.now, event);
        while let Some(action) = self.scheduler.poll_action() {
            self.log.push(format!("{} {action:?}", self.now.as_nanos()));
            self.carry_out(action);
        }
        if let Some((namespace, share)) = self.share {
            let its = |of: &&usize| self.functions[**of].namespace == namespace;
            let held = self.held(self.instances.values().filter(its));
            let most = self.scheduler.pool().total() as f64 * share;
            assert!(held as f64 <= most, "{held} of {most}");
        }
        let held = self.held(self.instances.values());
        assert_eq!(self.scheduler.pool().used(), held);
    }

    fn held<'a>(&self, versions: impl Iterator<Item = &'a usize>) -> u64 {
        versions.map(|of| self.functions[*of].memory * MB).sum()
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Fetch { version } => {
                let limits = Limits {
                    memory: self.functions[version.0 as usize].memory * MB,
                    slots: 1,
                    max_instances: 100,
                    queue: 1_000_000,
                    timeout: Duration::from_secs(1_000_000),
                    reuse: !self.functions[version.0 as usize].fresh,
                    pause_after: None,
                };
                let fetch = self.functions[version.0 as usize].fetch * MS;
                self.later(fetch, Event::CodeReady { version, limits });
            }
            Action::Start { instance, version } => {
                self.instances.insert(instance.0, version.0 as usize);
                let start = StartKind::Cold;
                self.later(self.start * MS, Event::SandboxReady { instance, start });
            }
            Action::CancelStart { instance } => self.is_gone(instance),
            Action::Evict { instance, .. } => self.is_gone(instance),
            Action::Run { invocation, .. } => {
                let (of, arrived) = self.arrived.remove(&invocation.0).unwrap();
                self.waits.entry(of).or_default().push(self.now.since(arrived));
                self.began.insert(invocation.0, (of, self.now));
                let run = self.functions[of].run * MS;
                self.later(run, Event::Finished { invocation, reusable: true });
            }
            Action::Reject { why: Rejection::Cancelled, .. } => {}
            Action::Reject { invocation, why } => panic!("{invocation:?} is rejected: {why:?}"),
            _ => {}
        }
    }

    fn is_gone(&mut self, instance: InstanceId) {
        self.later(self.end * MS, Event::Destroyed { instance });
    }

    /// Whoever floods calls again; then what happens next.
    fn step(&mut self) {
        for of in 0..self.functions.len() {
            let waiting = self.arrived.values().filter(|(its, _)| *its == of).count();
            for _ in waiting..self.functions[of].backlog as usize {
                self.call(of);
            }
        }
        let next = self.coming.pop().map(|Reverse(next)| next);
        match (next, self.scheduler.poll_timeout()) {
            (Some((at, n)), timeout) if timeout.is_none_or(|timeout| at <= timeout) => {
                self.now = at;
                let event = self.events.remove(&n).unwrap();
                match event {
                    Event::Finished { invocation, .. } => {
                        let (of, began) = self.began.remove(&invocation.0).unwrap();
                        let took = self.now.since(began).as_nanos() as u64;
                        *self.served.entry(self.functions[of].namespace).or_default() += took;
                    }
                    Event::Destroyed { instance } => {
                        self.instances.remove(&instance.0);
                    }
                    _ => {}
                }
                self.tell(event);
            }
            (next, Some(timeout)) => {
                self.coming.extend(next.map(Reverse));
                self.now = timeout;
                self.tell(Event::Timeout);
            }
            _ => unreachable!("a flood never ends"),
        }
    }

    fn until(&mut self, milliseconds: u64) {
        let until = Time(milliseconds * MS);
        while self.now < until {
            self.step();
        }
    }

    /// What a namespace has been served, milliseconds, calls under way included.
    fn service(&self, namespace: u32) -> u64 {
        let under_way =
            self.began.values().filter(|(of, _)| self.functions[*of].namespace == namespace);
        let under_way: u64 =
            under_way.map(|(_, began)| self.now.since(*began).as_nanos() as u64).sum();
        (self.served.get(&namespace).copied().unwrap_or(0) + under_way) / MS
    }

    /// Whether a call of this version, now, has begun after so many milliseconds.
    fn begins_within(&mut self, of: usize, milliseconds: u64) -> bool {
        let count = |world: &World| world.waits.get(&of).map_or(0, Vec::len);
        let before = count(self);
        self.call(of);
        let until = self.now + Duration::from_millis(milliseconds);
        while self.now <= until && count(self) == before {
            self.step();
        }
        self.waits.get(&of).is_some_and(|waits| {
            waits.len() > before && waits[before] <= Duration::from_millis(milliseconds)
        })
    }

    /// A call of this version, now; how long it waits, milliseconds.
    fn wait_of(&mut self, of: usize) -> u64 {
        let before = self.waits.get(&of).map_or(0, Vec::len);
        self.call(of);
        while self.waits.get(&of).map_or(0, Vec::len) == before {
            self.step();
        }
        let wait = self.waits[&of].last().unwrap().as_nanos() as u64;
        let running = |world: &World| world.began.values().any(|(its, _)| *its == of);
        while running(self) {
            self.step();
        }
        wait.div_ceil(MS)
    }
}

fn flood(namespace: u32, runs: &[u64], backlog: u32) -> Vec<Function> {
    runs.iter().map(|run| Function::new(namespace, *run, backlog)).collect()
}

/// A start of an instance takes a place as a call does, for as long as it takes.
#[test]
fn who_starts_an_instance_for_each_call_pays_for_the_places_that_starts_take() {
    let slow = Function { fresh: true, ..Function::new(0, 1, 20) };
    let functions = vec![slow, Function::new(1, 1, 20)];
    let mut world = World::new(functions, RunningLimit::Calls(4), 1_000, (200, 1), "fifo", None);
    world.know_namespaces();
    world.until(20_000);
    // Of four places for 20 s; its own first starts apart.
    assert!(world.service(1) > 36_000, "{} ms of 80,000", world.service(1));
}

/// A claim is no more than what was under way: not what others had while nothing of it waited, nor while it
/// waited for something else.
#[test]
fn who_was_idle_or_could_not_run_has_saved_up_nothing() {
    for (fetch, floods_at) in [(5_000, 0), (0, 5_000)] {
        let late = Function { fetch, ..Function::new(1, 10, 0) };
        let functions = vec![Function::new(0, 10, 20), late];
        let running = RunningLimit::Calls(2);
        let mut world = World::new(functions, running, 1_000, (5, 1), "fifo", None);
        world.know_namespaces();
        world.until(floods_at);
        world.functions[1].backlog = 20;
        world.until(5_100);
        let before = [world.service(0), world.service(1)];
        world.until(6_100);
        for (n, before) in before.into_iter().enumerate() {
            let had = world.service(n as u32) - before;
            assert!((900..=1_100).contains(&had), "{n} had {had} of 2,000 ms, {fetch}");
        }
    }
}

/// A function whose calls are served wishes for another instance all the time. The first wish of one that has
/// none is not behind that for ever.
#[test]
fn a_flood_that_wishes_for_more_starves_no_other_function() {
    for (memory, share) in [(1, None), (4, Some((0, 0.3)))] {
        let functions = flood(0, &[1, 1], 2);
        let mut world = World::new(functions, RunningLimit::None, memory, (5, 2), "fifo", share);
        world.know_namespaces();
        world.until(20_000);
        for of in 0..2 {
            let served = world.waits.get(&of).map_or(0, Vec::len);
            assert!(served > 5_000, "{of} is served {served} times, {share:?}");
        }
    }
}

/// What a namespace waited for may be over without that anything of it ends.
#[test]
fn a_wish_that_is_taken_back_holds_up_no_smaller_one() {
    let large = Function { memory: 3, ..Function::new(0, 10, 0) };
    let functions =
        vec![Function::new(0, 10_000, 0), large, Function::new(0, 10, 0), Function::new(1, 10, 1)];
    let share = Some((0, 0.5));
    let mut world = World::new(functions, RunningLimit::None, 8, (5, 1), "fifo", share);
    world.know_namespaces();
    world.call(0);
    world.call(0);
    world.until(100);
    // Two of four MiB are taken, so this does not fit.
    assert!(!world.begins_within(1, 100));
    let invocation = InvocationId(*world.arrived.iter().find(|(_, (of, _))| *of == 1).unwrap().0);
    world.arrived.remove(&invocation.0);
    world.tell(Event::Cancelled { invocation });
    assert!(world.begins_within(2, 20));
}

/// One that has all the memory that it may have gives some of it up for another, as one without a bound does.
#[test]
fn a_flood_at_its_share_makes_room_for_others() {
    let large = Function { memory: 4, ..Function::new(1, 10, 0) };
    let functions = vec![Function::new(0, 20, 40), large];
    for share in [None, Some((0, 0.9))] {
        let mut world =
            World::new(functions.clone(), RunningLimit::None, 16, (5, 1), "fifo", share);
        world.know_namespaces();
        world.until(1_000);
        assert!(world.begins_within(1, 200), "{share:?}");
    }
}

const POLICIES: [&str; 4] = ["fifo", "sjf", "fair", "adaptive-lifo"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// While all have calls that wait, each gets the same of the places, however many calls and functions
    /// it has, and whatever the policy within namespaces.
    #[test]
    fn namespaces_that_flood_share_the_places(
        runs in proptest::collection::vec(proptest::collection::vec(1..40u64, 1..4), 2..5),
        backlogs in proptest::collection::vec(1..30u32, 5),
        limit in 1..5u32,
        policy in proptest::sample::select(&POLICIES),
    ) {
        let mut functions = Vec::new();
        for (namespace, runs) in runs.iter().enumerate() {
            // Enough that some wait even when all that run end at the same moment.
            functions.extend(flood(namespace as u32, runs, backlogs[namespace] + 2 * limit));
        }
        let running = RunningLimit::Calls(limit);
        let mut world = World::new(functions, running, 10_000, (0, 0), policy, None);
        world.know_namespaces();
        world.until(20_000);
        let longest = |n: usize| *runs[n].iter().max().unwrap();
        for one in 0..runs.len() {
            for other in 0..one {
                let (a, b) = (world.service(one as u32), world.service(other as u32));
                // Each run of either that may be under way, wrongly estimated at first, and a start of each
                // instance, which is charged too.
                let starts = u64::from(limit) * (runs[one].len() + runs[other].len()) as u64;
                let most = (starts + 4 * u64::from(limit) + 4) * longest(one).max(longest(other));
                prop_assert!(a.abs_diff(b) <= most, "{a} ms and {b} ms, {most} apart at most");
            }
        }
    }

    /// The call of a namespace that has less than its share waits for the end of one running call.
    #[test]
    fn a_call_beside_a_flood_waits_for_one_call_to_end(
        runs in proptest::collection::vec(1..40u64, 1..6),
        own in 1..20u64,
        gaps in proptest::collection::vec(1..200u64, 1..20),
        limit in 1..5u32,
        backlog in 1..50u32,
        policy in proptest::sample::select(&POLICIES),
    ) {
        let mut functions = flood(0, &runs, backlog + limit);
        functions.push(Function::new(1, own, 0));
        let it = functions.len() - 1;
        let running = RunningLimit::Calls(limit);
        let mut world = World::new(functions, running, 10_000, (0, 0), policy, None);
        world.know_namespaces();
        world.until(100);
        // Its instance is there then.
        world.wait_of(it);
        let longest = *runs.iter().max().unwrap();
        for gap in gaps {
            // Less than its share, which is half.
            let rest = gap + own;
            world.until(world.now.as_nanos() / MS + rest);
            let wait = world.wait_of(it);
            prop_assert!(wait <= longest, "{wait} ms beside calls of {longest} ms");
        }
    }

    /// The same for memory, where it is what is scarce: for the end of a call and of its instance, and the
    /// start of one's own.
    #[test]
    fn an_instance_beside_a_flood_waits_for_one_call_to_end(
        runs in proptest::collection::vec(1..40u64, 8..16),
        gaps in proptest::collection::vec(1..200u64, 1..10),
        memory in 3..8u64,
        times in (1..30u64, 1..10u64),
        policy in proptest::sample::select(&POLICIES),
    ) {
        let mut functions = flood(0, &runs, 3);
        functions.push(Function::new(1, 5, 0));
        let it = functions.len() - 1;
        let mut world = World::new(functions, RunningLimit::None, memory, times, policy, None);
        world.know_namespaces();
        world.until(200);
        let (start, end) = times;
        // A start that is under way, the call after it, the instance's end, the own start.
        let most = start + *runs.iter().max().unwrap() + end + start;
        for gap in gaps {
            let wait = world.wait_of(it);
            prop_assert!(wait <= most, "{wait} ms, {most} at most");
            world.until(world.now.as_nanos() / MS + gap);
        }
    }

    /// A share of the memory is kept, all its calls are served within it, and it holds up nobody.
    #[test]
    fn a_share_of_the_memory_is_kept_and_suffices(
        runs in proptest::collection::vec(1..40u64, 2..12),
        memory in 4..10u64,
        share in 0.3..0.9f64,
        limit in proptest::option::of(1..6u32),
        policy in proptest::sample::select(&POLICIES),
        others in any::<bool>(),
    ) {
        let mut functions = flood(0, &runs, 2);
        if others {
            functions.extend(flood(1, &[10, 20], 2));
        }
        let running = limit.map_or(RunningLimit::None, RunningLimit::Calls);
        let mut world = World::new(functions, running, memory, (5, 2), policy, Some((0, share)));
        world.know_namespaces();
        world.until(20_000);
        if policy == "fifo" {
            for of in 0..runs.len() {
                prop_assert!(world.waits.get(&of).map_or(0, Vec::len) > 5, "{of} is not served");
            }
        }
        let calls: usize = world.waits.values().map(Vec::len).sum();
        prop_assert!(calls > 100, "{calls} calls");
        if others {
            prop_assert!(world.service(1) > 1000);
        }
    }

    /// Where all versions are of one namespace, nothing differs from a scheduler that knows of none.
    #[test]
    fn one_namespace_is_as_none(
        runs in proptest::collection::vec((1..40u64, 0..4u32), 1..10),
        memory in 2..8u64,
        limit in proptest::option::of(1..5u32),
        policy in proptest::sample::select(&POLICIES),
    ) {
        let functions: Vec<_> = runs
            .iter()
            .map(|(run, backlog)| Function::new(0, *run, *backlog + 1))
            .collect();
        let running = limit.map_or(RunningLimit::None, RunningLimit::Calls);
        let log = |know: bool| {
            let mut world =
                World::new(functions.clone(), running, memory, (7, 2), policy, None);
            if know {
                world.know_namespaces();
            }
            world.until(1_000);
            world.log
        };
        prop_assert_eq!(log(true), log(false));
    }
}
