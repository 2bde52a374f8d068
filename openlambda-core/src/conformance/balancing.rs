//! What every balancing policy must do, checked over many random histories.
//!
//! Call [`check`] from a test of the policy:
//!
//! ```no_run
//! # use openlambda_core::balancing::BalancingPolicy;
//! # fn my_policy() -> Box<dyn BalancingPolicy> { unimplemented!() }
//! openlambda_core::conformance::balancing::check(my_policy);
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::times;
use crate::balancing::balancer::{Balancer, BalancerOutput};
use crate::balancing::{
    BalancingPolicy, Decision, FunctionId, Refusal, Ticket, WorkerId, WorkerInfo, WorkerLoad,
};
use crate::invocation::StartKind;
use crate::manifest::Manifest;
use crate::random::Rng;
use crate::time::Time;

/// Histories that [`check`] runs, [`times`] so many.
const HISTORIES: u64 = 60;

/// Holds a policy to the contract of [`BalancingPolicy`].
///
/// Over random histories of requests, retries, completions, workers that join, leave (and come back
/// under their name), fail and drain, of reservations that are offered in any order, and of events that
/// are lost or repeated:
///
/// 1. a worker that is not ready is never chosen, nor an excluded one while another is ready;
/// 2. it refuses with `NoWorker` exactly when no worker is ready;
/// 3. a held request is bound or its time runs out; nothing is held for ever;
/// 4. it takes probes and wake-ups without going round in circles;
/// 5. when all is over, nothing is left in flight;
/// 6. the same seed gives the same choices.
///
/// # Panics
///
/// When the policy does not, with the seed and the step.
pub fn check(make: impl Fn() -> Box<dyn BalancingPolicy>) {
    for seed in 0..HISTORIES * times() {
        check_history(&make, seed);
    }
    a_lone_worker_gets_everything(make());
    without_workers_it_refuses(make());
}

/// One random history of [`check`], for tests that bring seeds of their own.
///
/// # Panics
///
/// As [`check`].
pub fn check_history(make: impl Fn() -> Box<dyn BalancingPolicy>, seed: u64) {
    let first = History::new(make(), seed).run();
    let again = History::new(make(), seed).run();
    let differs = first.iter().zip(&again).position(|(a, b)| a != b);
    assert!(
        first == again,
        "seed {seed}: the same seed gave other choices, first at {differs:?}; draw randomness from \
         cx.rng only, and iterate over ordered maps"
    );
}

fn a_lone_worker_gets_everything(policy: Box<dyn BalancingPolicy>) {
    let mut history = History::new(policy, 0);
    let worker = history.join("only", 1.0);
    for _ in 0..50 {
        history.arrive();
        history.complete_some(1);
    }
    history.end();
    let elsewhere = history.choices.iter().find(|choice| **choice != Choice::To(worker));
    assert!(elsewhere.is_none(), "with one worker a request was not sent there: {elsewhere:?}");
}

fn without_workers_it_refuses(policy: Box<dyn BalancingPolicy>) {
    let mut history = History::new(policy, 0);
    let never_ready = history.join("draining", 1.0);
    history.balancer.set_draining(history.now, never_ready, true);
    history.arrive();
    history.balancer.leave(history.now, never_ready);
    history.arrive();
    history.end();
    let refused = Choice::Refused(Refusal::NoWorker);
    for choice in &history.choices {
        assert!(
            *choice == refused || *choice == Choice::Refused(Refusal::Overloaded),
            "without a ready worker a request was not refused: {choice:?}"
        );
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    To(WorkerId),
    Refused(Refusal),
}

#[derive(Debug)]
struct History {
    seed: u64,
    step: usize,
    rng: Rng,
    now: Time,
    balancer: Balancer,
    functions: Vec<FunctionId>,
    workers: Vec<WorkerId>,
    gone: Vec<String>,
    next_name: u32,
    /// Dispatched tickets and where they are.
    running: Vec<(Ticket, WorkerId)>,
    held: BTreeMap<Ticket, Time>,
    /// The reservations in each worker's queue.
    reserved: BTreeMap<WorkerId, VecDeque<Ticket>>,
    choices: Vec<Choice>,
}

impl History {
    fn new(policy: Box<dyn BalancingPolicy>, seed: u64) -> Self {
        let mut balancer = Balancer::new(policy, seed);
        let functions: Vec<_> = (0..20)
            .map(|i| balancer.function(&format!("f{i}").parse().expect("a valid name")))
            .collect();
        // Some functions share packages and colours, some have none.
        for (i, function) in functions.iter().enumerate() {
            let packages = (0..i % 4).map(|p| format!("package-{}", (i + p) % 5)).collect();
            let colour = if i % 3 == 0 { String::new() } else { format!("colour-{}", i % 7) };
            balancer.describe(*function, &Manifest { packages, colour, ..Manifest::default() });
        }
        History {
            seed,
            step: 0,
            rng: Rng::from_seed_and_label(seed, "conformance"),
            now: Time(1),
            balancer,
            functions,
            workers: Vec::new(),
            gone: Vec::new(),
            next_name: 0,
            running: Vec::new(),
            held: BTreeMap::new(),
            reserved: BTreeMap::new(),
            choices: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<Choice> {
        // Some histories live with few workers, where edges are, some with many.
        let most_workers = [1, 2, 3, 8, 40][self.rng.below(5)];
        for step in 0..400 {
            self.step = step;
            self.now += Duration::from_micros(self.rng.below(2_000) as u64);
            self.on_time();
            match self.rng.below(100) {
                0..45 => self.arrive(),
                45..75 => {
                    let most = self.rng.below(3);
                    self.complete_some(most);
                }
                75..83 => self.churn(most_workers),
                83..90 => self.health(),
                _ => self.noise(),
            }
            self.outputs();
        }
        self.end();
        self.choices
    }

    fn place(&self) -> String {
        format!("seed {}, step {}", self.seed, self.step)
    }

    fn join(&mut self, name: &str, weight: f64) -> WorkerId {
        let mut info = WorkerInfo::new(name, 4);
        info.weight = weight;
        let worker = self.balancer.join(self.now, info);
        self.workers.push(worker);
        worker
    }

    fn churn(&mut self, most: usize) {
        if self.workers.is_empty() || (self.workers.len() < most && self.rng.chance(0.7)) {
            // Half of the time one that left comes back under its name.
            let name = match self.gone.pop() {
                Some(name) if self.rng.chance(0.5) => name,
                _ => {
                    self.next_name += 1;
                    format!("worker-{}", self.next_name)
                }
            };
            let weight = [1.0, 1.0, 1.0, 2.0, 0.5][self.rng.below(5)];
            self.join(&name, weight);
        } else {
            let worker = self.workers.swap_remove(self.rng.below(self.workers.len()));
            self.reserved.remove(&worker);
            let view = self.balancer.view();
            self.gone.extend(view.worker(worker).map(|worker| worker.name().to_owned()));
            self.balancer.leave(self.now, worker);
        }
    }

    fn health(&mut self) {
        if self.workers.is_empty() {
            return;
        }
        let worker = self.workers[self.rng.below(self.workers.len())];
        let on = self.rng.chance(0.5);
        if self.rng.chance(0.5) {
            self.balancer.set_healthy(self.now, worker, on);
        } else {
            self.balancer.set_draining(self.now, worker, !on);
        }
    }

    /// Events of workers, each possibly wrong: repeated, lost, or of one that left.
    fn noise(&mut self) {
        if self.workers.is_empty() {
            return;
        }
        let worker = self.workers[self.rng.below(self.workers.len())];
        let function = self.functions[self.rng.below(self.functions.len())];
        let load = WorkerLoad {
            running: self.rng.below(10) as u32,
            queued: self.rng.below(10) as u32,
            ..WorkerLoad::default()
        };
        match self.rng.below(7) {
            5 | 6 => self.offer(worker),
            0 => self.balancer.worker_evicted(self.now, worker, function),
            1 => self.balancer.snapshot(self.now, worker, load, [(function, 2)]),
            2 => self.balancer.probed(self.now, worker, load),
            _ => {
                for _ in 0..=self.rng.below(2) {
                    self.balancer.worker_idle(self.now, worker, function);
                }
            }
        }
    }

    /// A worker's queue comes to a reservation, perhaps to one that was cancelled meanwhile.
    fn offer(&mut self, worker: WorkerId) {
        let Some(queue) = self.reserved.get_mut(&worker) else { return };
        let offered = match self.rng.chance(0.1) {
            true => queue.front().copied(),
            false => queue.pop_front(),
        };
        if let Some(ticket) = offered {
            self.balancer.offered(self.now, ticket, worker);
        }
    }

    fn arrive(&mut self) {
        // A few functions are popular.
        let most = 1 + self.rng.below(self.functions.len());
        let function = self.functions[self.rng.below(most)];
        let ticket = self.balancer.arrived(function);
        if self.rng.chance(0.3) {
            let micros = 1 << self.rng.below(25);
            self.balancer.set_size_estimate(ticket, Duration::from_micros(micros));
        }
        self.select(ticket);
    }

    fn select(&mut self, ticket: Ticket) {
        loop {
            let before = self.balancer.defects().0;
            let decision = self.balancer.select(self.now, ticket);
            let (defects, defect) = self.balancer.defects();
            assert!(
                defects == before,
                "{}: the policy broke its contract: {defect:?}",
                self.place()
            );
            let any_ready = !self.balancer.view().ready().is_empty();
            match decision {
                Decision::To(worker, why) => {
                    assert!(!why.0.is_empty(), "{}: no reason was given", self.place());
                    self.running.push((ticket, worker));
                    self.choices.push(Choice::To(worker));
                }
                Decision::Hold { until } => {
                    assert!(until >= self.now, "{}: held until a past time", self.place());
                    self.held.insert(ticket, until);
                }
                Decision::Probe(set) => {
                    for worker in set.as_slice() {
                        // Some answers get lost.
                        if self.rng.chance(0.8) {
                            self.balancer.probed(self.now, *worker, WorkerLoad::default());
                        }
                    }
                    continue;
                }
                Decision::Refuse(refusal) => {
                    assert!(
                        refusal != Refusal::NoWorker || !any_ready,
                        "{}: refused for want of a worker, and one is ready",
                        self.place()
                    );
                    self.choices.push(Choice::Refused(refusal));
                    self.balancer.finish(self.now, ticket);
                }
            }
            break;
        }
        self.outputs();
    }

    fn complete_some(&mut self, most: usize) {
        for _ in 0..most.min(self.running.len()) {
            let (ticket, worker) = self.running.swap_remove(self.rng.below(self.running.len()));
            let retry = self.rng.chance(0.15);
            let start = [StartKind::Cold, StartKind::Zygote, StartKind::Warm][self.rng.below(3)];
            self.balancer.completed(self.now, ticket, (!retry).then_some(start), !retry);
            self.outputs();
            if retry {
                self.balancer.exclude(ticket, worker);
                self.select(ticket);
            } else {
                self.balancer.finish(self.now, ticket);
            }
            self.outputs();
        }
        // A client of a held request leaves now and then.
        if self.rng.chance(0.1)
            && let Some(ticket) = self.held.keys().next().copied()
        {
            self.held.remove(&ticket);
            self.balancer.finish(self.now, ticket);
        }
        self.outputs();
    }

    fn on_time(&mut self) {
        for _ in 0..1_000 {
            match self.balancer.poll_timeout() {
                Some(at) if at <= self.now => self.balancer.handle_timeout(self.now),
                _ => {
                    self.outputs();
                    let late = self.held.values().any(|until| *until < self.now);
                    assert!(!late, "{}: a request is held beyond its time", self.place());
                    return;
                }
            }
        }
        panic!("{}: woken a thousand times at one moment", self.place());
    }

    fn outputs(&mut self) {
        while let Some(output) = self.balancer.poll_output() {
            match output {
                BalancerOutput::Bound { ticket, worker, .. } => {
                    assert!(self.held.remove(&ticket).is_some(), "{}", self.place());
                    self.running.push((ticket, worker));
                    self.choices.push(Choice::To(worker));
                }
                BalancerOutput::Refused { ticket, refusal } => {
                    assert!(self.held.remove(&ticket).is_some(), "{}", self.place());
                    self.choices.push(Choice::Refused(refusal));
                    self.balancer.finish(self.now, ticket);
                }
                BalancerOutput::Probe { worker } => {
                    if self.rng.chance(0.8) {
                        self.balancer.probed(self.now, worker, WorkerLoad::default());
                    }
                }
                BalancerOutput::Reserve { ticket, worker } => {
                    assert!(self.held.contains_key(&ticket), "{}", self.place());
                    if self.rng.chance(0.9) {
                        self.reserved.entry(worker).or_default().push_back(ticket);
                    }
                }
                BalancerOutput::Cancel { ticket, worker } => {
                    if let Some(queue) = self.reserved.get_mut(&worker)
                        && self.rng.chance(0.9)
                    {
                        queue.retain(|reserved| *reserved != ticket);
                    }
                }
            }
        }
        let (defects, defect) = self.balancer.defects();
        assert!(defects == 0, "{}: the policy broke its contract: {defect:?}", self.place());
    }

    /// Lets everything come to its end and looks at what is left.
    fn end(&mut self) {
        for _ in 0..100_000 {
            while !self.running.is_empty() {
                let (ticket, _) = self.running.swap_remove(0);
                self.balancer.completed(self.now, ticket, Some(StartKind::Warm), true);
                self.balancer.finish(self.now, ticket);
                self.outputs();
            }
            match self.balancer.poll_timeout() {
                Some(at) if !self.held.is_empty() => {
                    self.now = self.now.max(at);
                    self.balancer.handle_timeout(self.now);
                    self.outputs();
                }
                _ => break,
            }
        }
        assert!(self.held.is_empty(), "{}: requests are held for ever", self.place());
        assert_eq!(self.balancer.tickets(), 0, "{}: tickets are left", self.place());
        assert_eq!(self.balancer.held(), 0, "{}: holds are left", self.place());
        let left = self.balancer.view().in_flight_total();
        assert_eq!(left, 0, "{}: requests are left in flight", self.place());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancing::{ClusterView, PolicyContext, RequestInfo, Why};

    /// Chooses with a function, to break one rule at a time.
    #[derive(Debug)]
    struct Chooser(fn(&RequestInfo<'_>, &ClusterView<'_>, &mut PolicyContext<'_>) -> Decision);

    impl BalancingPolicy for Chooser {
        fn select(
            &mut self,
            request: &RequestInfo<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) -> Decision {
            (self.0)(request, view, cx)
        }
    }

    fn ready(request: &RequestInfo<'_>, view: &ClusterView<'_>) -> Option<WorkerId> {
        let mut ready = view.ready().iter().copied();
        ready.find(|worker| !request.excludes(*worker)).or(view.ready().first().copied())
    }

    fn to(worker: Option<WorkerId>) -> Decision {
        match worker {
            Some(worker) => Decision::To(worker, Why("test")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    #[test]
    fn a_good_policy_passes() {
        check(|| Box::new(Chooser(|request, view, _| to(ready(request, view)))));
    }

    #[test]
    fn holding_and_probing_pass() {
        // It never binds, so a lone worker does not get everything: histories only.
        let make = || -> Box<dyn BalancingPolicy> {
            Box::new(Chooser(|request, view, cx| match ready(request, view) {
                Some(_) if view.ready().len() > 1 && cx.rng.chance(0.2) => {
                    Decision::Hold { until: cx.now + Duration::from_millis(5) }
                }
                Some(worker) if request.attempt == 0 && cx.rng.chance(0.02) => {
                    Decision::Probe(crate::balancing::ProbeSet::new(&[worker]))
                }
                worker => to(worker),
            }))
        };
        for seed in 0..HISTORIES {
            check_history(make, seed);
        }
    }

    #[test]
    #[should_panic(expected = "ChoseUnready")]
    fn ignoring_health_is_found() {
        check(|| {
            Box::new(Chooser(|request, view, _| {
                let mut workers = view.workers().map(|(id, _)| id);
                to(workers.find(|worker| !request.excludes(*worker)).or(ready(request, view)))
            }))
        });
    }

    #[test]
    #[should_panic(expected = "ChoseExcluded")]
    fn ignoring_exclusion_is_found() {
        check(|| Box::new(Chooser(|_, view, _| to(view.ready().first().copied()))));
    }

    #[test]
    #[should_panic(expected = "RefusedWithoutReason")]
    fn refusing_without_reason_is_found() {
        check(|| {
            Box::new(Chooser(|request, view, _| {
                to(ready(request, view).filter(|_| view.ready().len() > 1))
            }))
        });
    }

    #[test]
    #[should_panic(expected = "the same seed gave other choices")]
    fn randomness_of_its_own_is_found() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        check(|| {
            Box::new(Chooser(|request, view, _| {
                let n = CALLS.fetch_add(1, Ordering::Relaxed) / 7;
                let ready = view.ready();
                match ready.get(n % ready.len().max(1)) {
                    Some(worker) if request.excluded.is_empty() => to(Some(*worker)),
                    _ => to(self::ready(request, view)),
                }
            }))
        });
    }
}
