//! What a balancing decision costs, for each policy.
//!
//! A fixed number of calls is kept in flight, as many as there are workers. Functions have packages
//! and colours, so that the policies that read them do their whole work.
//!
//! * `decision/NAME`: the policy alone, with the reducer's counts kept: `select`, and what the policy
//!   observes of the call (dispatched, completed, and the answers to its probes and reservations), with
//!   functions called by Zipf's law. `decision/(loop)` is the loop around it, with a policy that only
//!   names a worker: subtract it to get the policy's own share;
//! * `policies/NAME/uniform` and `policies/NAME/zipf`: one invocation through the pure balancer,
//!   tickets and checks included, which every live and simulated call pays; at several sizes of the
//!   cluster, with functions called equally often, and by Zipf's law;
//! * `locked/NAME`: 100 workers, two threads that take turns at the balancer's lock, as the live
//!   proxy's threads do. One iteration is one invocation of either.

use std::collections::VecDeque;
use std::hint::black_box;
use std::iter;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use openlambda_core::balancing::balancer::{Balancer, BalancerOutput};
use openlambda_core::balancing::{
    BalancingPolicy, Cluster, ClusterView, ColourId, Decision, FunctionId, Output, PackageId,
    PolicyContext, PolicyEvent, RequestInfo, Ticket, Why, WorkerId, WorkerInfo, WorkerLoad,
};
use openlambda_core::invocation::StartKind;
use openlambda_core::manifest::Manifest;
use openlambda_core::random::Rng;
use openlambda_core::time::Time;
use openlambda_lab::workload::{FunctionMix, Service, Workload, WorkloadConfig};
use openlambda_lb::policies::{PolicyCatalog, PolicyConfig};
use parking_lot::Mutex;

const WORKERS: [usize; 4] = [10, 100, 1_000, 10_000];
const FUNCTIONS: u32 = 1_000;

fn workload(zipf: f64) -> WorkloadConfig {
    WorkloadConfig {
        rate: 1.0,
        functions: FUNCTIONS,
        zipf,
        service: Service::Fixed(Duration::ZERO),
        invocations: 1 << 16,
        mix: FunctionMix::default(),
    }
}

/// A balancer, and the calls that are in flight.
struct Driven {
    balancer: Balancer,
    keys: Vec<FunctionId>,
    in_flight: VecDeque<Ticket>,
    calls: usize,
    now: Time,
}

impl Driven {
    fn new(policy: &str, workers: usize, zipf: f64) -> Self {
        let policy = PolicyCatalog::standard().build(&PolicyConfig::named(policy));
        let mut balancer = Balancer::new(policy.expect("a standard policy"), 1);
        for n in 0..workers {
            balancer.join(Time::ZERO, WorkerInfo::new(format!("worker-{n}"), 32));
        }
        let ids: Vec<FunctionId> = (0..FUNCTIONS)
            .map(|n| {
                let id = balancer.function(&format!("f{n}").parse().expect("a name"));
                let packages = vec![format!("p{}", n % 50), format!("p{}", n % 7)];
                let colour = format!("c{}", n % 100);
                balancer.describe(id, &Manifest { packages, colour, ..Manifest::default() });
                id
            })
            .collect();
        let calls = Workload::new(workload(zipf), 1);
        let keys = calls.map(|call| ids[call.function as usize]).collect();
        let in_flight = VecDeque::new();
        let mut cluster = Driven { balancer, keys, in_flight, calls: 0, now: Time::ZERO };
        for _ in 0..workers {
            cluster.start();
        }
        cluster
    }

    fn start(&mut self) {
        self.now += Duration::from_micros(10);
        let function = self.keys[self.calls % self.keys.len()];
        self.calls += 1;
        let ticket = self.balancer.arrived(function);
        let decision = self.balancer.select(self.now, ticket);
        assert!(matches!(black_box(decision), Decision::To(..) | Decision::Hold { .. }));
        self.answer_outputs();
        assert_eq!(self.balancer.held(), 0, "every call is under way at once");
        self.in_flight.push_back(ticket);
    }

    /// Workers answer probes and offer slots at once.
    fn answer_outputs(&mut self) {
        while let Some(output) = self.balancer.poll_output() {
            match output {
                BalancerOutput::Probe { worker } => {
                    let running = self.balancer.view().in_flight(worker);
                    let load = WorkerLoad { running, ..WorkerLoad::default() };
                    self.balancer.probed(self.now, worker, load);
                }
                BalancerOutput::Reserve { ticket, worker } => {
                    self.balancer.offered(self.now, ticket, worker);
                }
                _ => {}
            }
        }
    }

    fn invocation(&mut self) {
        self.start();
        let ticket = self.in_flight.pop_front().expect("calls are in flight");
        self.balancer.completed(self.now, ticket, Some(StartKind::Warm), true);
        self.balancer.finish(self.now, ticket);
    }
}

/// A policy and the reducer, without the balancer around them.
struct Bare {
    cluster: Cluster,
    policy: Box<dyn BalancingPolicy>,
    rng: Rng,
    outputs: Vec<Output>,
    functions: Vec<Described>,
    /// The calls' functions, by index, over and over.
    calls: Vec<u32>,
    next: usize,
    /// Cyclic: a call in flight per worker, the oldest at `next`.
    in_flight: Vec<(Ticket, FunctionId, WorkerId)>,
    now: Time,
}

/// What the balancer knows of a function and tells with each request.
struct Described {
    id: FunctionId,
    key: u64,
    packages: Vec<PackageId>,
    colour: ColourId,
}

impl Bare {
    fn new(policy: Box<dyn BalancingPolicy>, workers: usize) -> Self {
        let mut cluster = Cluster::new();
        let functions = (0..FUNCTIONS).map(|n| {
            let (id, key) = cluster.function(&format!("f{n}").parse().expect("a name"));
            let packages = [n % 50, n % 7].map(|n| cluster.package(&format!("p{n}"))).to_vec();
            Described { id, key, packages, colour: cluster.colour(&format!("c{}", n % 100)) }
        });
        let functions = functions.collect();
        let mut bare = Bare {
            cluster,
            policy,
            rng: Rng::from_seed(1),
            outputs: Vec::new(),
            functions,
            calls: Workload::new(workload(1.0), 1).map(|call| call.function).collect(),
            next: 0,
            in_flight: Vec::new(),
            now: Time::ZERO,
        };
        for n in 0..workers {
            let worker = bare.cluster.join(WorkerInfo::new(format!("worker-{n}"), 32));
            bare.observe(&PolicyEvent::Joined { worker });
        }
        bare.in_flight = (0..workers).map(|_| bare.start()).collect();
        bare
    }

    fn observe(&mut self, event: &PolicyEvent<'_>) {
        let mut cx = PolicyContext::new(self.now, &mut self.rng, &mut self.outputs);
        self.policy.observe(event, &self.cluster.view(), &mut cx);
    }

    fn start(&mut self) -> (Ticket, FunctionId, WorkerId) {
        self.now += Duration::from_micros(10);
        let ticket = Ticket(self.next as u64);
        let called = self.calls[self.next % self.calls.len()] as usize;
        self.next += 1;
        let function = self.functions[called].id;
        let mut worker = None;
        while worker.is_none() {
            let described = &self.functions[called];
            let mut request = RequestInfo::new(ticket, function, described.key);
            request.packages = &described.packages;
            request.colour = Some(described.colour);
            let mut cx = PolicyContext::new(self.now, &mut self.rng, &mut self.outputs);
            match black_box(self.policy.select(&request, &self.cluster.view(), &mut cx)) {
                Decision::To(to, _) => worker = Some(to),
                Decision::Hold { .. } => {}
                Decision::Probe(set) => {
                    set.as_slice().iter().for_each(|worker| self.answer_probe(*worker));
                }
                Decision::Refuse(why) => panic!("{:?} refused: {why:?}", self.policy),
            }
            // Nearly always there is nothing.
            while let Some(output) = self.outputs.pop() {
                match output {
                    Output::Bind { worker: to, .. } => worker = Some(to),
                    Output::Reserve { worker, .. } => {
                        self.observe(&PolicyEvent::Offered { ticket, worker });
                    }
                    Output::Probe { worker } => self.answer_probe(worker),
                    _ => {}
                }
            }
        }
        let worker = worker.expect("the loop ends with one");
        self.cluster.dispatched(worker);
        self.observe(&PolicyEvent::Dispatched { ticket, function, worker });
        (ticket, function, worker)
    }

    fn answer_probe(&mut self, worker: WorkerId) {
        let running = self.cluster.view().in_flight(worker);
        let load = WorkerLoad { running, ..WorkerLoad::default() };
        self.observe(&PolicyEvent::Probed { worker, load });
    }

    fn decision(&mut self) {
        let place = self.next % self.in_flight.len();
        let begun = self.start();
        let (ticket, function, worker) = std::mem::replace(&mut self.in_flight[place], begun);
        self.cluster.completed(worker);
        let (latency, start) = (Duration::from_millis(10), Some(StartKind::Warm));
        self.observe(&PolicyEvent::Completed {
            ticket,
            function,
            worker,
            latency,
            start,
            ok: true,
        });
    }
}

/// Names one worker after the other without a thought: what the loop costs.
#[derive(Debug)]
struct Thoughtless;

impl BalancingPolicy for Thoughtless {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) -> Decision {
        let ready = view.ready();
        let most = 1 << ready.len().ilog2();
        Decision::To(ready[request.ticket.0 as usize & (most - 1)], Why("bench"))
    }
}

fn decision(c: &mut Criterion) {
    let catalog = PolicyCatalog::standard();
    let names = catalog.entries().map(|entry| &*entry.name);
    for name in iter::once("(loop)").chain(names) {
        let mut group = c.benchmark_group(format!("decision/{name}"));
        hurry(&mut group);
        for workers in WORKERS {
            let policy: Box<dyn BalancingPolicy> = match name {
                "(loop)" => Box::new(Thoughtless),
                _ => catalog.build(&PolicyConfig::named(name)).expect("a standard policy"),
            };
            let mut bare = Bare::new(policy, workers);
            group.bench_function(BenchmarkId::from_parameter(workers), |b| {
                b.iter(|| bare.decision());
            });
        }
        group.finish();
    }
}

fn policies(c: &mut Criterion) {
    for (keys, zipf) in [("uniform", 0.0), ("zipf", 1.0)] {
        for entry in PolicyCatalog::standard().entries() {
            let mut group = c.benchmark_group(format!("policies/{}/{keys}", entry.name));
            hurry(&mut group);
            for workers in WORKERS {
                let mut cluster = Driven::new(&entry.name, workers, zipf);
                group.bench_function(BenchmarkId::from_parameter(workers), |b| {
                    b.iter(|| cluster.invocation());
                });
            }
            group.finish();
        }
    }
}

fn locked(c: &mut Criterion) {
    let mut group = c.benchmark_group("locked");
    hurry(&mut group);
    for entry in PolicyCatalog::standard().entries() {
        let cluster = Mutex::new(Driven::new(&entry.name, 100, 1.0));
        group.bench_function(&entry.name, |b| {
            b.iter_custom(|iterations| {
                let invocations = |count| {
                    for _ in 0..count {
                        cluster.lock().invocation();
                    }
                };
                let started = now();
                thread::scope(|scope| {
                    let other = scope.spawn(|| invocations(iterations / 2));
                    invocations(iterations - iterations / 2);
                    other.join().expect("no thread panics");
                });
                started.elapsed()
            });
        });
    }
    group.finish();
}

#[allow(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// There are many benches: a short look at each, so that all are over in a few minutes.
fn hurry(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_millis(600));
    group.sample_size(50);
    group.nresamples(10_000);
}

criterion_group!(benches, decision, policies, locked);
criterion_main!(benches);
