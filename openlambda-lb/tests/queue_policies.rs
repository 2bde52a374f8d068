//! What the policies do that queue, pull, probe and pack, each held to its algorithm.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, Cluster, Decision, FunctionId, Output, PolicyContext, PolicyEvent, Refusal,
    RequestInfo, Ticket, Why, WorkerId, WorkerInfo, WorkerLoad,
};
use openlambda_core::invocation::StartKind;
use openlambda_core::random::Rng;
use openlambda_core::time::Time;
use openlambda_lb::balancer::{Balancer, BalancerOutput};
use openlambda_lb::policies::{PeakEwma, PolicyCatalog, Prequal, PrequalParameters};
use proptest::prelude::*;

fn policy(text: &str) -> Box<dyn BalancingPolicy> {
    PolicyCatalog::standard().build(&text.parse().unwrap()).unwrap()
}

/// A balancer with workers `w0`, `w1`, … of the given capacities.
struct Bench {
    balancer: Balancer,
    workers: Vec<WorkerId>,
    now: Time,
}

impl Bench {
    fn new(text: &str, capacities: &[u32]) -> Self {
        let mut balancer = Balancer::new(policy(text), 7);
        let joined = capacities.iter().enumerate();
        let workers = joined
            .map(|(i, capacity)| {
                balancer.join(Time(0), WorkerInfo::new(format!("w{i}"), *capacity))
            })
            .collect();
        Bench { balancer, workers, now: Time(0) }
    }

    fn function(&mut self, name: &str) -> FunctionId {
        self.balancer.function(&name.parse().unwrap())
    }

    fn select(&mut self, function: &str) -> (Ticket, Decision) {
        let function = self.function(function);
        let ticket = self.balancer.arrived(function);
        (ticket, self.balancer.select(self.now, ticket))
    }

    fn send(&mut self, function: &str) -> (Ticket, WorkerId, &'static str) {
        match self.select(function) {
            (ticket, Decision::To(worker, Why(why))) => (ticket, worker, why),
            (_, other) => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, ticket: Ticket) {
        self.balancer.completed(self.now, ticket, Some(StartKind::Warm), true);
        self.balancer.finish(self.now, ticket);
    }

    fn outputs(&mut self) -> Vec<BalancerOutput> {
        std::iter::from_fn(|| self.balancer.poll_output()).collect()
    }

    fn in_flight(&self) -> Vec<u32> {
        self.workers.iter().map(|worker| self.balancer.view().in_flight(*worker)).collect()
    }
}

// Join-idle-queue.

#[test]
fn join_idle_queue_takes_the_worker_that_has_been_idle_longest_then_any() {
    let mut bench = Bench::new("join-idle-queue", &[4; 3]);
    let [a, b, c] = bench.workers[..] else { unreachable!() };
    let (first, worker, why) = bench.send("f");
    assert_eq!((worker, why), (a, "idle"), "in order of joining");
    let (second, worker, _) = bench.send("f");
    assert_eq!(worker, b);
    // b becomes idle before a does, and c has been idle all the time.
    bench.answer(second);
    bench.answer(first);
    assert_eq!([0; 3].map(|_| bench.send("f").1), [c, b, a]);
    let mut counts = BTreeMap::new();
    for _ in 0..300 {
        let (ticket, worker, why) = bench.send("f");
        assert_eq!(why, "random", "nobody is idle");
        *counts.entry(worker).or_insert(0) += 1;
        // It still has the request from before, so it is not idle now.
        bench.answer(ticket);
    }
    assert!(counts.len() == 3 && counts.values().all(|n| (60..140).contains(n)), "{counts:?}");
}

#[test]
fn join_idle_queue_forgets_workers_that_fail_or_leave() {
    let mut bench = Bench::new("join-idle-queue", &[4; 3]);
    let [a, b, c] = bench.workers[..] else { unreachable!() };
    bench.balancer.set_healthy(Time(0), a, false);
    bench.balancer.leave(Time(0), b);
    let d = bench.balancer.join(Time(0), WorkerInfo::new("d", 4));
    assert_eq!(d.index(), b.index());
    bench.balancer.set_healthy(Time(0), a, true);
    assert_eq!([0; 3].map(|_| bench.send("f").1), [c, d, a], "a and d queue up again behind c");
    assert_eq!(bench.send("f").2, "random");
}

#[test]
fn join_idle_queue_may_count_a_worker_as_idle_that_has_requests() {
    let mut bench = Bench::new("join-idle-queue,below=2", &[4; 2]);
    let [a, b] = bench.workers[..] else { unreachable!() };
    assert_eq!([0; 4].map(|_| bench.send("f").1), [a, b, a, b]);
    assert_eq!(bench.send("f").2, "random");
}

// Hiku.

#[test]
fn hiku_returns_to_idle_instances_until_they_are_evicted() {
    let mut bench = Bench::new("hiku", &[4; 10]);
    let f = bench.function("f");
    let (ticket, home, why) = bench.send("f");
    assert_eq!(why, "least loaded", "nobody has an instance yet");
    bench.answer(ticket);
    for _ in 0..20 {
        let (ticket, worker, why) = bench.send("f");
        assert_eq!((worker, why), (home, "idle instance"));
        let (other, elsewhere, why) = bench.send("f");
        assert_eq!(why, "least loaded", "the only idle instance is taken");
        assert_ne!(elsewhere, home);
        bench.answer(ticket);
        bench.answer(other);
        bench.balancer.worker_evicted(bench.now, elsewhere, f);
    }
    bench.balancer.worker_evicted(bench.now, home, f);
    bench.balancer.worker_evicted(bench.now, home, f);
    assert_eq!(bench.send("f").2, "least loaded");
}

#[test]
fn hiku_takes_the_least_loaded_of_the_workers_with_an_idle_instance() {
    let mut bench = Bench::new("hiku", &[8; 3]);
    let [a, b, c] = bench.workers[..] else { unreachable!() };
    let (f, g) = (bench.function("f"), bench.function("g"));
    for _ in 0..3 {
        bench.balancer.worker_idle(bench.now, a, g);
    }
    bench.balancer.worker_idle(bench.now, b, g);
    assert_eq!(bench.send("g").1, a, "both are idle; a was first");
    assert_eq!(bench.send("g").1, b, "now it has less");
    for worker in [a, b] {
        bench.balancer.worker_idle(bench.now, worker, f);
    }
    bench.send("g");
    assert_eq!(bench.in_flight(), [2, 1, 0]);
    // f's queue was not touched by g's requests, and a's load in it is out of date.
    let (_, worker, why) = bench.send("f");
    assert_eq!((worker, why), (b, "idle instance"));
    assert_eq!(bench.send("f").1, a);
    assert_eq!(bench.send("f").1, c, "no instance is left: the least loaded of all");
}

#[test]
fn hiku_is_repaired_by_a_workers_report() {
    let mut bench = Bench::new("hiku", &[4; 3]);
    let (ticket, home, _) = bench.send("f");
    bench.answer(ticket);
    // The eviction's notice got lost; the report does not list the instance.
    bench.balancer.snapshot(bench.now, home, WorkerLoad::default(), []);
    assert_eq!(bench.send("f").2, "least loaded");
    let g = bench.function("g");
    bench.balancer.worker_idle(bench.now, home, g);
    bench.balancer.snapshot(bench.now, home, WorkerLoad::default(), [(g, 1)]);
    assert_eq!(bench.send("g").2, "idle instance");
}

#[test]
fn hiku_knows_nothing_of_a_worker_that_took_the_place_of_another() {
    let mut bench = Bench::new("hiku", &[4; 1]);
    let (ticket, old, _) = bench.send("f");
    let (late, _, _) = bench.send("f");
    bench.answer(ticket);
    let new = bench.balancer.join(bench.now, WorkerInfo::new("w0", 4));
    bench.answer(late);
    assert_eq!(new.index(), old.index());
    assert_eq!(bench.send("f"), (Ticket(late.0 + (1 << 32)), new, "least loaded"));
}

// Hermod.

#[test]
fn hermod_packs_while_there_is_room_then_takes_the_least_loaded() {
    let mut bench = Bench::new("hermod", &[2, 4, 2]);
    for _ in 0..8 {
        let before = bench.in_flight();
        let (_, worker, why) = bench.send("f");
        assert_eq!(why, "packed");
        let at = bench.workers.iter().position(|other| *other == worker).unwrap();
        let capacity = [2, 4, 2];
        let fill = |i: usize| f64::from(before[i]) / f64::from(capacity[i]);
        let fullest = (0..3).map(fill).filter(|fill| *fill < 1.0).fold(0.0, f64::max);
        assert_eq!(fill(at), fullest, "{before:?}");
    }
    assert_eq!(bench.in_flight(), [2, 4, 2], "all slots are taken");
    for _ in 0..8 {
        assert_eq!(bench.send("f").2, "least loaded");
    }
    assert_eq!(bench.in_flight(), [4, 8, 4], "by capacity");
}

#[test]
fn hermod_uses_one_worker_for_one_request_after_the_other() {
    let mut bench = Bench::new("hermod", &[4; 10]);
    let (ticket, home, _) = bench.send("f");
    bench.answer(ticket);
    for i in 0..50 {
        let (ticket, worker, _) = bench.send(&format!("f{i}"));
        assert_eq!(worker, home);
        bench.answer(ticket);
    }
}

#[test]
fn hermod_prefers_warm_workers_in_both_modes() {
    let mut bench = Bench::new("hermod", &[1; 3]);
    let f = bench.function("f");
    let c = bench.workers[2];
    let b = bench.workers[1];
    bench.balancer.worker_idle(bench.now, c, f);
    assert_eq!((bench.send("f").1, bench.send("f").2), (c, "packed"), "warm first, then packed");
    bench.send("f");
    assert_eq!(bench.in_flight(), [1, 1, 1]);
    bench.balancer.worker_idle(bench.now, b, f);
    let (_, worker, why) = bench.send("f");
    assert_eq!((worker, why), (b, "least loaded, warm"));
}

// The central queue.

#[test]
fn the_central_queue_binds_in_order_of_arrival_to_the_first_free_slot() {
    let mut bench = Bench::new("central-queue", &[1, 2]);
    let running: Vec<_> = (0..3).map(|_| bench.send("f").0).collect();
    assert_eq!(bench.in_flight(), [1, 2], "each worker has as many as its capacity");
    let waiting: Vec<_> = (0..4)
        .map(|_| match bench.select("f") {
            (ticket, Decision::Hold { .. }) => ticket,
            other => panic!("{other:?}"),
        })
        .collect();
    bench.balancer.abandoned(bench.now, waiting[1]);
    let mut order = Vec::new();
    for ticket in [running[2], running[0], running[1]] {
        bench.answer(ticket);
        for output in bench.outputs() {
            let BalancerOutput::Bound { ticket, .. } = output else { panic!("{output:?}") };
            order.push(ticket);
        }
        assert_eq!(bench.in_flight(), [1, 2], "no slot is free while requests wait");
    }
    assert_eq!(order, [waiting[0], waiting[2], waiting[3]]);
}

#[test]
fn the_central_queue_refuses_after_its_time_and_beyond_its_length() {
    let mut bench = Bench::new("central-queue,wait=1,most=1", &[1]);
    bench.send("f");
    let (held, decision) = bench.select("f");
    let until = Time(1_000_000_000);
    assert_eq!(decision, Decision::Hold { until });
    assert_eq!(bench.select("f").1, Decision::Refuse(Refusal::Overloaded));
    assert_eq!(bench.balancer.poll_timeout(), Some(until));
    bench.balancer.handle_timeout(until);
    let refusal = Refusal::Overloaded;
    assert_eq!(bench.outputs(), [BalancerOutput::Refused { ticket: held, refusal }]);
    assert!(matches!(bench.select("f").1, Decision::Hold { .. }), "there is room again");
}

#[test]
fn the_central_queue_sends_a_retry_elsewhere() {
    let mut bench = Bench::new("central-queue", &[1, 1]);
    let (first, failed, _) = bench.send("f");
    bench.send("f");
    let (next, _) = bench.select("f");
    bench.balancer.completed(bench.now, first, None, false);
    bench.outputs();
    bench.balancer.exclude(first, failed);
    assert!(matches!(bench.balancer.select(bench.now, first), Decision::Hold { .. }));
    // Its own worker becomes free, but must not get it; nobody else waits.
    bench.answer(next);
    assert_eq!(bench.outputs(), []);
    // Another one that comes later may use the slot meanwhile.
    assert_eq!(bench.send("f").1, failed);
    // When no other worker is left, it goes there after all.
    let other = bench.workers.iter().copied().find(|worker| *worker != failed).unwrap();
    bench.balancer.leave(bench.now, other);
    assert_eq!(bench.balancer.held(), 1, "the slot is taken");
}

proptest! {
    /// Work-conserving and first come, first served, at every step of any history.
    #[test]
    fn the_central_queue_never_leaves_a_slot_free_while_one_waits(
        capacities in proptest::collection::vec(1..4u32, 1..5),
        steps in proptest::collection::vec((0..6u8, any::<u16>()), 1..200),
    ) {
        let mut bench = Bench::new("central-queue", &capacities);
        let (mut running, mut waiting) = (Vec::new(), Vec::new());
        for (what, draw) in steps {
            match what {
                0..3 => match bench.select("f") {
                    (ticket, Decision::To(..)) => {
                        prop_assert!(waiting.is_empty(), "one that waits was overtaken");
                        running.push(ticket);
                    }
                    (ticket, Decision::Hold { .. }) => waiting.push(ticket),
                    (_, other) => panic!("{other:?}"),
                },
                3 if !waiting.is_empty() && draw % 4 == 0 => {
                    let ticket = waiting.remove(draw as usize / 4 % waiting.len());
                    bench.balancer.finish(bench.now, ticket);
                }
                _ if !running.is_empty() => {
                    let ticket = running.swap_remove(draw as usize % running.len());
                    bench.answer(ticket);
                }
                _ => {}
            }
            for output in bench.outputs() {
                let BalancerOutput::Bound { ticket, .. } = output else { panic!("{output:?}") };
                prop_assert_eq!(ticket, waiting.remove(0));
                running.push(ticket);
            }
            let in_flight = bench.in_flight();
            prop_assert!(in_flight.iter().zip(&capacities).all(|(q, c)| q <= c));
            let free = in_flight.iter().zip(&capacities).any(|(q, c)| q < c);
            prop_assert!(waiting.is_empty() || !free);
        }
    }

    /// What workers got of each size stays within the limit, however the inner policy behaves. The
    /// workers never become empty here, so that the sums are those of all requests.
    #[test]
    fn guardrails_keep_the_gap_within_the_limit(
        seed: u64,
        inner in prop_oneof![
            Just("random"), Just("round-robin"), Just("power-of-two"), Just("bounded-load"),
            Just("hiku"), Just("hermod"), Just("least-outstanding"),
        ],
        workers in 1..12usize,
        g in prop_oneof![Just(1.0f64), Just(2.0), Just(5.0)],
    ) {
        let mut rng = Rng::from_seed(seed);
        let mut bench = Bench::new(&format!("guardrails,inner={inner},c=2,g={g}"), &vec![4; workers]);
        // By rank: what each worker got, in nanoseconds.
        let mut sums: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for _ in 0..400 {
            let micros = 1u64 << rng.below(10);
            let nanos = micros * 1000 + rng.below(micros as usize * 1000) as u64;
            let f = format!("f{}", rng.below(3));
            let function = bench.function(&f);
            let ticket = bench.balancer.arrived(function);
            bench.balancer.set_size_estimate(ticket, Duration::from_nanos(nanos));
            let Decision::To(worker, _) = bench.balancer.select(bench.now, ticket) else {
                panic!("it was not sent")
            };
            let rank = micros.ilog2();
            let sums = sums.entry(rank).or_insert_with(|| vec![0; workers]);
            sums[worker.index()] += nanos;
            let gap = sums.iter().max().unwrap() - sums.iter().min().unwrap();
            let limit = (g * 1000.0 * f64::from(2u32.pow(rank + 1))) as u64;
            prop_assert!(gap <= limit, "{gap} over {limit} at rank {rank} with {inner}");
        }
    }
}

#[test]
fn guardrails_step_in_only_when_they_must() {
    // Bounded-load with a wide bound sends everything of a function home.
    let text = "guardrails,inner=bounded-load,c=2,g=2,size=0.1";
    let mut unguarded = Bench::new("bounded-load,epsilon=1000", &[4; 4]);
    assert!((0..20).all(|_| unguarded.send("f").2 == "home"));
    let mut bench = Bench::new(text, &[4; 4]);
    let homes = (0..20).filter(|_| bench.send("f").2 == "home").count();
    assert!((3..20).contains(&homes), "{homes}");
    // An empty worker starts anew, so one request after the other stays at home.
    let mut bench = Bench::new(text, &[4; 4]);
    for _ in 0..50 {
        let (ticket, _, why) = bench.send("f");
        assert_eq!(why, "home");
        bench.answer(ticket);
    }
}

// Prequal, driven by hand to look into its pool.

struct ByHand<P> {
    cluster: Cluster,
    policy: P,
    rng: Rng,
    outputs: Vec<Output>,
    now: Time,
}

impl<P: BalancingPolicy> ByHand<P> {
    fn new(policy: P, workers: usize) -> (Self, Vec<WorkerId>) {
        let mut hand = ByHand {
            cluster: Cluster::new(),
            policy,
            rng: Rng::from_seed(1),
            outputs: Vec::new(),
            now: Time(1),
        };
        let joined = (0..workers).map(|i| {
            let worker = hand.cluster.join(WorkerInfo::new(format!("w{i}"), 4));
            hand.observe(PolicyEvent::Joined { worker });
            worker
        });
        let workers = joined.collect();
        (hand, workers)
    }

    fn observe(&mut self, event: PolicyEvent<'_>) {
        let mut cx = PolicyContext::new(self.now, &mut self.rng, &mut self.outputs);
        self.policy.observe(&event, &self.cluster.view(), &mut cx);
    }

    fn completed(&mut self, worker: WorkerId, millis: u64, ok: bool) {
        let latency = Duration::from_millis(millis);
        let (ticket, function, start) = (Ticket(0), FunctionId(0), None);
        self.observe(PolicyEvent::Completed { ticket, function, worker, latency, start, ok });
    }

    fn select(&mut self) -> (WorkerId, &'static str) {
        let mut cx = PolicyContext::new(self.now, &mut self.rng, &mut self.outputs);
        let request = RequestInfo::new(Ticket(0), FunctionId(0), 0);
        match self.policy.select(&request, &self.cluster.view(), &mut cx) {
            Decision::To(worker, Why(why)) => (worker, why),
            other => panic!("{other:?}"),
        }
    }
}

fn prequal(change: impl Fn(&mut PrequalParameters)) -> Prequal {
    // Neither probes nor removals of their own, unless a test wants them.
    let mut parameters =
        PrequalParameters { probes: 0.0, remove: 0.0, ..PrequalParameters::default() };
    change(&mut parameters);
    Prequal::new(parameters)
}

fn probed(worker: WorkerId, rif: u32) -> PolicyEvent<'static> {
    probed_with(worker, rif, 0)
}

/// An answer that says how long a request would take now.
fn probed_with(worker: WorkerId, rif: u32, millis: u64) -> PolicyEvent<'static> {
    let (running, latency_ns) = (rif / 2, millis * 1_000_000);
    let load = WorkerLoad { running, queued: rif - running, latency_ns, ..WorkerLoad::default() };
    PolicyEvent::Probed { worker, load }
}

#[test]
fn prequal_takes_the_fastest_cold_worker_and_the_least_loaded_when_all_are_hot() {
    let (mut hand, w) = ByHand::new(prequal(|p| p.quantile = 0.5), 20);
    for (worker, rif, millis) in [(w[0], 0, 30), (w[1], 3, 10), (w[2], 1, 20), (w[3], 9, 1)] {
        hand.observe(probed_with(worker, rif, millis));
    }
    // The median of 0, 1, 3, 9 is 1: w3 is fastest and w1 next, but both are hot.
    assert_eq!(hand.select(), (w[2], "best probed"));
    // It counts one request more now, 2, and is hot like those; w0 is the only cold one.
    assert_eq!(hand.select(), (w[0], "best probed"));
    let (mut hand, w) = ByHand::new(prequal(|p| p.quantile = 0.0), 20);
    for (worker, rif, millis) in [(w[0], 7, 1), (w[1], 5, 9), (w[2], 6, 9)] {
        hand.observe(probed_with(worker, rif, millis));
    }
    let taken = [0; 3].map(|_| hand.select().0);
    assert_eq!(taken[0], w[1], "all are hot: the least loaded");
    assert!(taken[1..].contains(&w[2]), "6 and 6 now");
}

/// The worker says how fast it is, with the requests that it has now. What its replies took lags
/// behind its queue by as long as that is.
#[test]
fn prequal_believes_the_worker_and_not_its_replies() {
    let (mut hand, w) = ByHand::new(prequal(|p| p.quantile = 1.0), 20);
    for (worker, millis) in [(w[0], 300), (w[1], 10), (w[2], 200)] {
        hand.observe(probed_with(worker, 0, millis));
    }
    hand.completed(w[0], 1, true);
    hand.completed(w[1], 900, true);
    assert_eq!(hand.select().0, w[1]);
    // One that does not know is tried, and of two equally fast ones the less loaded.
    hand.observe(probed_with(w[3], 9, 0));
    hand.observe(probed_with(w[4], 2, 0));
    assert_eq!(hand.select().0, w[4]);
}

#[test]
fn prequal_uses_an_answer_b_times_and_falls_back_to_random() {
    // (1 + 1) / ((1 − 10/20) · 3 − 0.5) = 2
    let (mut hand, w) = ByHand::new(prequal(|p| (p.probes, p.remove, p.pool) = (3.0, 0.5, 10)), 20);
    assert_eq!(hand.policy.reuse(20), 2.0);
    hand.observe(probed(w[0], 0));
    assert_eq!(hand.select().1, "random", "one answer is not enough");
    for worker in &w[1..5] {
        hand.observe(probed(*worker, 0));
    }
    assert!(hand.policy.pool().all(|(_, _, uses)| uses == 2));
    hand.outputs.clear();
    let before: u32 = hand.policy.pool().map(|(_, _, uses)| uses).sum();
    let (used, why) = hand.select();
    assert_eq!(why, "best probed");
    let after: Vec<_> = hand.policy.pool().filter(|(worker, ..)| *worker == used).collect();
    assert!(after.is_empty() || after == [(used, 1, 1)], "one use less and one request more");
    assert!(hand.policy.pool().map(|(_, _, uses)| uses).sum::<u32>() < before);
    let probes: Vec<_> = hand.outputs.iter().collect();
    assert_eq!(probes.len(), 3, "three probes for each request: {probes:?}");
    for _ in 0..10 {
        hand.select();
    }
    assert_eq!(hand.policy.pool().count(), 0, "all used up");
    assert_eq!(hand.select().1, "random");
}

#[test]
fn prequal_removes_the_oldest_and_the_worst_in_turn_and_what_is_too_old() {
    let (mut hand, w) = ByHand::new(prequal(|p| (p.remove, p.quantile) = (1.0, 0.7)), 20);
    // Without probes b is its largest value, so that nothing is used up.
    for (i, rif) in [(0, 0), (1, 0), (2, 0), (3, 9), (4, 8)] {
        hand.observe(probed_with(w[i], rif, 10 + i as u64));
        hand.now += Duration::from_millis(100);
    }
    let left = |hand: &ByHand<Prequal>| {
        hand.policy.pool().map(|(worker, ..)| worker.index()).collect::<Vec<_>>()
    };
    assert_eq!(hand.select().0, w[0]);
    assert_eq!(left(&hand), [1, 2, 3, 4], "the oldest");
    hand.select();
    assert_eq!(left(&hand), [1, 2, 4], "the most loaded hot one");
    hand.now += Duration::from_millis(600);
    hand.select();
    assert_eq!(left(&hand), [4], "1 is too old by now, and 2 the oldest of the others");
    hand.observe(probed(w[4], 3));
    assert_eq!(hand.policy.pool().count(), 1, "one answer per worker");
    let (name, name_hash) = hand.cluster.leave(w[4]).unwrap();
    hand.observe(PolicyEvent::Left { worker: w[4], name: &name, name_hash });
    assert_eq!(hand.policy.pool().count(), 0);
}

#[test]
fn prequals_pool_is_bounded_and_workers_that_are_not_ready_are_out_of_it() {
    let (mut hand, w) = ByHand::new(prequal(|p| p.pool = 4), 20);
    for worker in &w {
        hand.observe(probed(*worker, 1));
        hand.observe(probed(*worker, 1));
    }
    let pooled: Vec<_> = hand.policy.pool().map(|(worker, ..)| worker).collect();
    assert_eq!(pooled, w[16..], "the newest");
    hand.cluster.set_healthy(w[19], false);
    hand.observe(PolicyEvent::ReadyChanged { worker: w[19], ready: false });
    hand.observe(probed(w[19], 0));
    assert!(hand.policy.pool().all(|(worker, ..)| worker != w[19]));
}

// Peak-EWMA.

#[test]
fn peak_ewma_jumps_to_peaks_and_decays_from_them() {
    let (mut hand, w) = ByHand::new(PeakEwma::new(10.0), 1);
    let worker = w[0];
    let millis =
        |hand: &ByHand<PeakEwma>| hand.policy.estimate(worker, hand.now).map(|ns| ns / 1e6);
    let close = |a: Option<f64>, b: f64| assert!((a.unwrap() - b).abs() < 1e-6, "{a:?}, {b}");
    assert_eq!(millis(&hand), None);
    hand.completed(worker, 100, true);
    close(millis(&hand), 100.0);
    hand.completed(worker, 400, true);
    close(millis(&hand), 400.0);
    hand.now += Duration::from_secs(5);
    let fading = libm::exp(-0.5);
    close(millis(&hand), 400.0 * fading);
    hand.completed(worker, 100, true);
    close(millis(&hand), 400.0 * fading + 100.0 * (1.0 - fading));
    let before = millis(&hand);
    hand.completed(worker, 1, false);
    assert_eq!(millis(&hand), before, "a failure does not make it look fast");
    hand.completed(worker, 900, false);
    close(millis(&hand), 900.0);
}

#[test]
fn peak_ewma_weighs_latency_with_queue_and_tries_the_unknown_once() {
    let (mut hand, w) = ByHand::new(PeakEwma::new(10.0), 2);
    hand.completed(w[0], 10, true);
    assert_eq!(hand.select().0, w[1], "nothing is known of it, and it has nothing to do");
    hand.cluster.dispatched(w[1]);
    assert_eq!(hand.select().0, w[0], "its first reply is still to come");
    hand.cluster.completed(w[1]);
    hand.completed(w[1], 25, true);
    for (in_flight, expected) in [(0, w[0]), (1, w[0]), (2, w[1])] {
        assert_eq!(hand.cluster.view().in_flight(w[0]), in_flight);
        assert_eq!(hand.select().0, expected, "10 · (q + 1) against 25");
        hand.cluster.dispatched(w[0]);
    }
}

// Dodoor.

#[test]
fn dodoor_looks_at_the_loads_every_b_decisions_only() {
    // With two workers both are sampled always.
    let mut bench = Bench::new("dodoor,b=4", &[8; 2]);
    let [a, b] = bench.workers[..] else { unreachable!() };
    // An outsider's load at a, reported before the first decision.
    let load = WorkerLoad { running: 3, queued: 2, ..WorkerLoad::default() };
    bench.balancer.snapshot(bench.now, a, load, []);
    for _ in 0..4 {
        assert_eq!(bench.send("f").1, b, "as it was at the refresh, 5 to 0");
    }
    bench.balancer.snapshot(bench.now, a, WorkerLoad::default(), []);
    for _ in 0..4 {
        assert_eq!(bench.send("f").1, a, "0 to 4");
    }
    // 4 to 4: coin flips, whose outcome counts only four decisions later.
    let first: Vec<_> = (0..4).map(|_| bench.send("f").1).collect();
    let at_a = first.iter().filter(|worker| **worker == a).count();
    if at_a != 2 {
        let fewer = if at_a > 2 { b } else { a };
        assert!((0..4).all(|_| bench.send("f").1 == fewer));
    }
}

/// A report is older than what this balancer knows of its own requests.
#[test]
fn dodoor_adds_from_a_report_only_what_others_sent() {
    let mut bench = Bench::new("dodoor,b=1", &[8; 2]);
    let [a, b] = bench.workers[..] else { unreachable!() };
    let sent: Vec<_> = (0..10).map(|_| bench.send("f")).collect();
    let load = WorkerLoad { running: 5, ..WorkerLoad::default() };
    bench.balancer.snapshot(bench.now, a, load, []);
    let at = |worker| sent.iter().filter(move |sent| sent.1 == worker);
    at(a).chain(at(b).take(2)).for_each(|sent| bench.answer(sent.0));
    assert_eq!(bench.in_flight(), [0, 3]);
    assert_eq!([0; 3].map(|_| bench.send("f").1), [a; 3], "the five of its report were from here");
    let load = WorkerLoad { running: 9, ..WorkerLoad::default() };
    bench.balancer.snapshot(bench.now, a, load, []);
    assert_eq!([0; 3].map(|_| bench.send("f").1), [b; 3], "six of these nine are others'");
}

// Late binding.

#[test]
fn late_binding_goes_to_the_first_of_its_workers_that_offers() {
    let mut bench = Bench::new("late-binding,d=3", &[1; 10]);
    let (ticket, decision) = bench.select("f");
    assert!(matches!(decision, Decision::Hold { .. }));
    let reserved: Vec<_> = bench
        .outputs()
        .into_iter()
        .map(|output| match output {
            BalancerOutput::Reserve { ticket: of, worker } if of == ticket => worker,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reserved.len(), 3);
    bench.balancer.offered(bench.now, ticket, reserved[1]);
    let bound = BalancerOutput::Bound { ticket, worker: reserved[1], why: Why("offered") };
    let cancel = |worker| BalancerOutput::Cancel { ticket, worker };
    assert_eq!(bench.outputs(), [bound, cancel(reserved[0]), cancel(reserved[2])]);
    assert_eq!(bench.balancer.poll_timeout(), None, "nothing is left to wait for");
}

#[test]
fn late_binding_does_without_offers_when_patience_ends() {
    let mut bench = Bench::new("late-binding,d=2,patience=0.5,wait=2", &[4; 10]);
    let (ticket, _) = bench.select("f");
    let mut reserved: Vec<_> = bench
        .outputs()
        .into_iter()
        .filter_map(|output| match output {
            BalancerOutput::Reserve { worker, .. } => Some(worker),
            _ => None,
        })
        .collect();
    let patience_ends = Time(500_000_000);
    assert_eq!(bench.balancer.poll_timeout(), Some(patience_ends));
    // One of the two is gone by then.
    let gone = reserved.pop().unwrap();
    bench.balancer.leave(bench.now, gone);
    bench.balancer.handle_timeout(patience_ends);
    let bound = BalancerOutput::Bound { ticket, worker: reserved[0], why: Why("no offer") };
    assert_eq!(bench.outputs(), [bound]);
    // With nobody ready it waits until its time is up.
    let (ticket, _) = bench.select("f");
    bench.outputs();
    for worker in bench.workers.clone() {
        bench.balancer.set_healthy(bench.now, worker, false);
    }
    let mut outputs = Vec::new();
    while let Some(at) = bench.balancer.poll_timeout() {
        bench.balancer.handle_timeout(at);
        outputs.extend(bench.outputs());
    }
    let refused = BalancerOutput::Refused { ticket, refusal: Refusal::Overloaded };
    assert!(outputs.contains(&refused), "{outputs:?}");
    assert_eq!((bench.balancer.held(), bench.balancer.defects().0), (0, 0));
}
