//! No policy allocates in the steady state: deciding is on the path of every invocation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::VecDeque;
use std::time::Duration;

use openlambda_core::balancing::{Decision, FunctionId, Ticket, WorkerId, WorkerInfo, WorkerLoad};
use openlambda_core::invocation::StartKind;
use openlambda_core::manifest::Manifest;
use openlambda_core::time::Time;
use openlambda_lb::balancer::{Balancer, BalancerOutput};
use openlambda_lb::policies::PolicyCatalog;

const WORKERS: usize = 100;
const FUNCTIONS: usize = 50;
/// Slots of a worker. More calls are in flight than there are slots, so that some are held where
/// policies hold.
const CAPACITY: u32 = 2;
const IN_FLIGHT: usize = 230;
const WARM_UP: usize = 30_000;

struct Live {
    balancer: Balancer,
    workers: Vec<WorkerId>,
    functions: Vec<FunctionId>,
    running: VecDeque<(Ticket, FunctionId, WorkerId)>,
    held: usize,
    /// Calls in flight that failed before.
    retried: Vec<Ticket>,
    /// Reservations in the order in which they will be offered.
    reserved: VecDeque<(Ticket, WorkerId)>,
    calls: usize,
    now: Time,
}

impl Live {
    fn new(policy: &str) -> Self {
        let policy = PolicyCatalog::standard().build(&policy.parse().unwrap()).unwrap();
        let mut balancer = Balancer::new(policy, 1);
        let workers = (0..WORKERS)
            .map(|i| balancer.join(Time(0), WorkerInfo::new(format!("w{i}"), CAPACITY)))
            .collect();
        let functions = (0..FUNCTIONS).map(|i| {
            let id = balancer.function(&format!("f{i}").parse().unwrap());
            // Each second one has what package-aware and palette look at.
            if i % 2 == 0 {
                let (packages, colour) = (vec![format!("p{}", i % 5)], format!("c{}", i % 7));
                balancer.describe(id, &Manifest { packages, colour, ..Manifest::default() });
            }
            id
        });
        let functions = functions.collect();
        Live {
            balancer,
            workers,
            functions,
            running: VecDeque::with_capacity(4 * IN_FLIGHT),
            held: 0,
            retried: Vec::with_capacity(4 * IN_FLIGHT),
            reserved: VecDeque::with_capacity(64 * IN_FLIGHT),
            calls: 0,
            now: Time(1),
        }
    }

    /// A call comes, and when enough are under way the oldest one is answered. Each tenth
    /// answer is a failure, and the call is tried again, but no call more than twice.
    fn step(&mut self) {
        self.now += Duration::from_micros(100);
        self.calls += 1;
        let function = self.functions[self.calls * self.calls % FUNCTIONS];
        let ticket = self.balancer.arrived(function);
        let size = Duration::from_micros(1 << (self.calls % 12));
        self.balancer.set_size_estimate(ticket, size);
        self.select(ticket);
        let mut may_fail = self.calls.is_multiple_of(10);
        while self.running.len() + self.held > IN_FLIGHT {
            let Some((ticket, function, worker)) = self.running.pop_front() else { break };
            self.balancer.completed(self.now, ticket, Some(StartKind::Warm), true);
            if may_fail && !self.retried.contains(&ticket) {
                may_fail = false;
                self.retried.push(ticket);
                self.outputs();
                self.balancer.exclude(ticket, worker);
                self.select(ticket);
            } else {
                self.retried.retain(|retried| *retried != ticket);
                self.balancer.finish(self.now, ticket);
                self.balancer.worker_idle(self.now, worker, function);
            }
            self.outputs();
        }
        let worker = self.workers[self.calls % WORKERS];
        let load = WorkerLoad { running: 1, ..WorkerLoad::default() };
        self.balancer.snapshot(self.now, worker, load, []);
        self.outputs();
    }

    fn select(&mut self, ticket: Ticket) {
        match self.balancer.select(self.now, ticket) {
            Decision::To(worker, _) => self.started(ticket, worker),
            Decision::Hold { .. } => self.held += 1,
            other => panic!("{other:?}"),
        }
        self.outputs();
    }

    fn started(&mut self, ticket: Ticket, worker: WorkerId) {
        let function = self.balancer.function_of(ticket).unwrap();
        self.running.push_back((ticket, function, worker));
    }

    fn outputs(&mut self) {
        loop {
            match self.balancer.poll_output() {
                Some(BalancerOutput::Bound { ticket, worker, .. }) => {
                    self.held -= 1;
                    self.started(ticket, worker);
                }
                Some(BalancerOutput::Probe { worker }) => {
                    let running = self.balancer.view().in_flight(worker);
                    let load = WorkerLoad { running, ..WorkerLoad::default() };
                    self.balancer.probed(self.now, worker, load);
                }
                Some(BalancerOutput::Reserve { ticket, worker }) => {
                    self.reserved.push_back((ticket, worker));
                }
                Some(BalancerOutput::Cancel { ticket, worker }) => {
                    self.reserved.retain(|reserved| *reserved != (ticket, worker));
                }
                Some(other) => panic!("{other:?}"),
                // Some reservations wait for a while before they are offered.
                None => match self.reserved.len() > 20 {
                    true => {
                        let (ticket, worker) = self.reserved.pop_front().unwrap();
                        self.balancer.offered(self.now, ticket, worker);
                    }
                    false => return,
                },
            }
        }
    }
}

#[test]
fn no_policy_allocates_once_it_is_warm() {
    for entry in PolicyCatalog::standard().entries() {
        // What it has learnt after the warm-up's three seconds must be all that there is to learn.
        let text = match entry.name.as_str() {
            "min-worker-set" => "min-worker-set,window=0.5",
            name => name,
        };
        let mut live = Live::new(text);
        for _ in 0..WARM_UP {
            live.step();
        }
        let before = live.calls;
        let counted = allocation_counter::measure(|| (0..5_000).for_each(|_| live.step()));
        assert_eq!(live.calls - before, 5_000);
        assert!(live.running.len() > IN_FLIGHT / 2, "{}: calls are in flight", entry.name);
        assert_eq!(live.balancer.defects().0, 0, "{}", entry.name);
        assert_eq!(counted.count_total, 0, "{} allocated", entry.name);
    }
}

/// The counter counts: a test that cannot fail shows nothing.
#[test]
fn an_allocation_is_seen() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(counted.count_total, 1);
}

/// Many workers, very many functions: what is known of idle instances takes little room, and reports
/// of them allocate nothing once they have been seen.
#[test]
fn reports_of_idle_instances_allocate_nothing_and_take_little() {
    const FUNCTIONS: u32 = 50_000;
    const HELD: u32 = 32;
    let policy = PolicyCatalog::standard().build(&"round-robin".parse().unwrap()).unwrap();
    let mut balancer = Balancer::new(policy, 1);
    let workers: Vec<_> = (0..1_000)
        .map(|n| balancer.join(Time(0), WorkerInfo::new(format!("w{n}"), HELD)))
        .collect();
    let functions: Vec<_> =
        (0..FUNCTIONS).map(|n| balancer.function(&format!("f{n}").parse().unwrap())).collect();
    // Two rounds in no order, of which the first names a function twice, and one in order.
    let report = |worker: &WorkerId, round: u32| {
        let place = |n: u32| worker.index() as u32 * 7_919 + n * n * 31 + round / 2 * 17;
        let held = (0..HELD).map(|n| functions[(place(n) % FUNCTIONS) as usize]);
        let mut idle: Vec<_> = held.map(|function| (function, 1)).collect();
        match round {
            0 => idle[HELD as usize - 1] = idle[3],
            1 => idle.sort(),
            _ => {}
        }
        idle
    };
    let mut rounds: Vec<Vec<_>> = Vec::new();
    for round in 0..3 {
        rounds.push(workers.iter().map(|worker| report(worker, round)).collect());
    }
    let mut hear = |reports: &[Vec<(FunctionId, u32)>]| {
        let load = WorkerLoad::default();
        for (worker, idle) in workers.iter().zip(reports) {
            balancer.snapshot(Time(1), *worker, load, idle.iter().copied());
        }
        let held = |(worker, idle): (&WorkerId, &Vec<(FunctionId, u32)>)| {
            idle.iter().map(|(function, _)| balancer.view().idle(*worker, *function)).sum::<u32>()
        };
        workers.iter().zip(reports).map(held).sum::<u32>()
    };
    let first = allocation_counter::measure(|| {
        // One of 32 is missing, and another has two instances and is asked twice.
        assert_eq!(hear(&rounds[0]), 1_000 * (HELD + 2));
    });
    assert!(first.bytes_max < 6 << 20, "{first:?}");
    // Every change from one round to the next.
    for reports in rounds.iter().chain(&rounds) {
        hear(reports);
    }
    let later = allocation_counter::measure(|| {
        for (reports, expected) in rounds.iter().zip([HELD + 2, HELD, HELD]) {
            assert_eq!(hear(reports), 1_000 * expected);
        }
    });
    assert_eq!(later.count_total, 0, "{later:?}");
}
