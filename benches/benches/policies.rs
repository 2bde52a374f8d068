//! What a balancing decision costs: select, dispatched, completed, for each policy at several sizes
//! of the cluster, with uniform and Zipf-distributed functions.
//!
//! One iteration is one invocation through the balancer's driver, which every live and simulated
//! call pays too; a fixed number of calls is kept in flight, as many as there are workers.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use openlambda_core::balancing::driver::{Balancer, BalancerOutput};
use openlambda_core::balancing::{Decision, FunctionId, Ticket, WorkerInfo, WorkerLoad};
use openlambda_core::invocation::StartKind;
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
            .map(|n| balancer.function(&format!("f{n}").parse().expect("a name")))
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
            group.warm_up_time(Duration::from_millis(300));
            group.measurement_time(Duration::from_millis(1000));
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

criterion_group!(benches, policies);
criterion_main!(benches);
