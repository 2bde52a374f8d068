//! What a balancing decision costs: select, dispatched, completed, for each policy.
//!
//! One iteration is one invocation through the balancer's driver, which every live and simulated
//! call pays too; a fixed number of calls is kept in flight, as many as there are workers. Functions
//! have packages and colours, so that the policies that read them do their whole work.
//!
//! * `policies/NAME/uniform` and `policies/NAME/zipf`: alone, at several sizes of the cluster, with
//!   functions that are called alike, and by Zipf's law;
//! * `locked/NAME`: 100 workers, two threads that take turns at the balancer's lock, as the live
//!   proxy's threads do. One iteration is one invocation of either.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use openlambda_core::balancing::driver::{Balancer, BalancerOutput};
use openlambda_core::balancing::{Decision, FunctionId, Ticket, WorkerInfo, WorkerLoad};
use openlambda_core::invocation::StartKind;
use openlambda_core::manifest::Manifest;
use openlambda_core::time::Time;
use openlambda_lab::workload::{FunctionMix, Service, Workload, WorkloadConfig};
use openlambda_lb::policies::{PolicyCatalog, PolicyConfig};

const WORKERS: [usize; 4] = [10, 100, 1_000, 10_000];
const FUNCTIONS: u32 = 1_000;

struct Cluster {
    balancer: Balancer,
    keys: Vec<FunctionId>,
    in_flight: VecDeque<Ticket>,
    calls: usize,
    now: Time,
}

impl Cluster {
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
        let config = WorkloadConfig {
            rate: 1.0,
            functions: FUNCTIONS,
            zipf,
            service: Service::Fixed(Duration::ZERO),
            invocations: 1 << 16,
            mix: FunctionMix::default(),
        };
        let keys = Workload::new(config, 1).map(|call| ids[call.function as usize]).collect();
        let in_flight = VecDeque::new();
        let mut cluster = Cluster { balancer, keys, in_flight, calls: 0, now: Time::ZERO };
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

fn policies(c: &mut Criterion) {
    for (keys, zipf) in [("uniform", 0.0), ("zipf", 1.0)] {
        for entry in PolicyCatalog::standard().entries() {
            let mut group = c.benchmark_group(format!("policies/{}/{keys}", entry.name));
            hurry(&mut group);
            for workers in WORKERS {
                let mut cluster = Cluster::new(&entry.name, workers, zipf);
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
        let cluster = Mutex::new(Cluster::new(&entry.name, 100, 1.0));
        group.bench_function(&entry.name, |b| {
            b.iter_custom(|iterations| {
                let invocations = |count| {
                    for _ in 0..count {
                        cluster.lock().expect("no thread panics").invocation();
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

criterion_group!(benches, policies, locked);
criterion_main!(benches);
