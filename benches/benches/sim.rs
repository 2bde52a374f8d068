//! Simulated invocations a second, with a small and a large number of functions.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use openlambda_core::scheduler::SchedulerConfig;
use openlambda_lab::sim::{SimConfig, simulate};
use openlambda_lab::workload::{FunctionMix, Service, WorkloadConfig};
use openlambda_lb::policies::{PolicyCatalog, PolicyConfig};

const INVOCATIONS: u64 = 20_000;

fn config(functions: u32) -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 1_000.0,
            functions,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(50)),
            invocations: INVOCATIONS,
            mix: FunctionMix::default(),
        },
        workers: 20,
        scheduler: SchedulerConfig { memory: 4 << 30, ..SchedulerConfig::default() },
        code_budget: 1 << 40,
        ..SimConfig::default()
    }
}

fn sim(c: &mut Criterion) {
    let mut group = c.benchmark_group("sim");
    group.throughput(Throughput::Elements(INVOCATIONS));
    group.sample_size(10);
    for functions in [100, 1_000] {
        let config = config(functions);
        group.bench_function(BenchmarkId::from_parameter(functions), |b| {
            b.iter(|| {
                let policy = PolicyConfig::named("least-outstanding");
                let policy = PolicyCatalog::standard().build(&policy).expect("a standard policy");
                let mut records = 0;
                simulate(&config, policy, |_| records += 1).expect("a valid configuration");
                assert_eq!(records, INVOCATIONS);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sim);
criterion_main!(benches);
