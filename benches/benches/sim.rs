//! Simulated invocations a second, with a small and a large number of functions.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use openlambda_core::scheduler::{Limits, SchedulerConfig};
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
        processors: None,
        scheduler: SchedulerConfig { memory: 4 << 30, ..SchedulerConfig::default() },
        keep_alive: "ttl".to_owned(),
        ttl: Duration::from_secs(600),
        code_budget: 1 << 40,
        bundle_bytes: 1 << 20,
        limits: Limits {
            memory: 128 << 20,
            slots: 1,
            max_instances: 16,
            queue: 1024,
            timeout: Duration::from_secs(30),
            reuse: true,
        },
        max_wait: Duration::from_secs(30),
        hop: Duration::from_micros(100),
        pull: Duration::from_millis(20),
        cold_start: Duration::from_millis(100),
        heartbeat: Duration::from_millis(500),
        seed: 1,
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
