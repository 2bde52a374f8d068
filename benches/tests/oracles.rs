//! The simulator against what queueing theory says, and against itself.
//!
//! The deciders in it are the live ones, so an oracle here speaks of the platform's own code.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::time::Duration;

use openlambda_core::invocation::InvocationRecord;
use openlambda_core::scheduler::{Limits, SchedulerConfig};
use openlambda_lab::sim::{SimConfig, simulate};
use openlambda_lab::summary::{Summary, Tally};
use openlambda_lab::workload::{Service, WorkloadConfig};
use openlambda_lb::policies::PolicyCatalog;

/// `workers` servers that run one call at a time, at `load` of what they can do, with nothing but
/// queueing: no hops, no cold starts, queues without bound.
fn queueing(workers: u32, load: f64, invocations: u64, seed: u64) -> SimConfig {
    let mean = Duration::from_millis(10);
    SimConfig {
        workload: WorkloadConfig {
            rate: load * f64::from(workers) / mean.as_secs_f64(),
            functions: 1,
            zipf: 0.0,
            service: Service::Exponential(mean),
            invocations,
            ..WorkloadConfig::default()
        },
        workers,
        scheduler: SchedulerConfig::default(),
        keep_alive: "lru".to_owned(),
        ttl: Duration::from_secs(600),
        code_budget: 1 << 30,
        bundle_bytes: 1 << 10,
        limits: Limits {
            memory: 1 << 20,
            slots: 1,
            max_instances: 1,
            queue: u32::MAX / 2,
            timeout: Duration::from_secs(86_400),
            reuse: true,
        },
        max_wait: Duration::from_secs(86_400 * 365),
        hop: Duration::ZERO,
        pull: Duration::ZERO,
        cold_start: Duration::ZERO,
        heartbeat: Duration::from_secs(1),
        seed,
    }
}

fn run(config: &SimConfig, policy: &str) -> (Summary, Vec<InvocationRecord>) {
    let policy_config = policy.parse().unwrap();
    let built = PolicyCatalog::standard().build(&policy_config).unwrap();
    let (mut tally, mut records) = (Tally::default(), Vec::new());
    simulate(config, built, |record| {
        tally.add(record);
        records.push(record.clone());
    })
    .unwrap();
    (tally.summary(policy), records)
}

/// The mean of the runs' means and the half-width of its 99 % confidence interval (normal, by
/// independent replications).
fn interval(means: &[f64]) -> (f64, f64) {
    let n = means.len() as f64;
    let mean = means.iter().sum::<f64>() / n;
    let variance = means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // Student's t for 19 degrees of freedom at 99 %, for the 20 replications used below.
    assert_eq!(means.len(), 20);
    (mean, 2.861 * (variance / n).sqrt())
}

#[test]
fn random_routing_makes_every_worker_an_mm1_queue() {
    for load in [0.5, 0.8] {
        let means: Vec<f64> = (0..20)
            .map(|seed| run(&queueing(10, load, 40_000, seed), "random").0.mean_wait_ms)
            .collect();
        let (mean, half) = interval(&means);
        // Waiting time of M/M/1 (Kleinrock 1975): ρ / (μ − λ), with μ = 100/s.
        let theory = load / (100.0 - 100.0 * load) * 1e3;
        assert!((mean - theory).abs() <= half, "load {load}: {mean} ± {half}, theory {theory}");
        assert!(half < 0.1 * theory, "the interval is too wide to tell anything: {half}");
    }
}

#[test]
fn least_outstanding_beats_random() {
    for seed in 0..5 {
        let config = queueing(10, 0.8, 40_000, seed);
        let (random, _) = run(&config, "random");
        let (least, _) = run(&config, "least-outstanding");
        assert!(least.mean_wait_ms < 0.25 * random.mean_wait_ms, "{least:?} {random:?}");
    }
}

/// At high load and with service times that differ much, the shorter of two queues may well be the
/// one behind a long call; the first of two workers that is free is never. So Sparrow samples and
/// binds late (Ousterhout et al., SOSP 2013), and claims response times within 12 % of an ideal
/// scheduler's. Here a call costs one more round trip, and waits much less in the mean.
///
/// Where a worker has many slots or the load is low, nobody waits for long in any case, and the round
/// trip is all that is left: that is not claimed.
#[test]
fn late_binding_beats_the_shorter_queue_when_few_calls_are_long() {
    for seed in 0..5 {
        let mut config = queueing(20, 0.9, 40_000, seed);
        let mean = Duration::from_millis(10);
        config.workload.service = Service::LogNormal { mean, sigma: 1.5 };
        config.hop = Duration::from_micros(100);
        let wait = |policy: &str| {
            let (summary, _) = run(&config, policy);
            assert_eq!((summary.invocations, summary.failed), (40_000, 0), "{policy}");
            summary.mean_wait_ms
        };
        let (random, shorter) = (wait("random"), wait("power-of-two"));
        // Patient enough that every call is bound by an offer.
        let late = wait("late-binding,patience=3600,wait=86400");
        assert!(late < 0.8 * shorter && late < 0.3 * random, "{late} {shorter} {random}");
    }
}

#[test]
fn no_invocation_is_lost_and_a_seed_gives_the_same_bytes() {
    let mut config = queueing(4, 0.7, 5_000, 7);
    config.workload.functions = 20;
    config.workload.zipf = 1.0;
    config.limits.max_instances = 8;
    config.scheduler.memory = 12 << 20;
    config.hop = Duration::from_micros(100);
    config.pull = Duration::from_millis(30);
    config.cold_start = Duration::from_millis(20);
    config.ttl = Duration::from_millis(500);
    config.keep_alive = "ttl".to_owned();
    config.code_budget = 5 << 10;
    config.scheduler.pause_after = Some(Duration::from_millis(100));
    for entry in PolicyCatalog::standard().entries() {
        let bytes = || {
            let (_, records) = run(&config, &entry.name);
            assert_eq!(records.len(), 5_000, "{}", entry.name);
            let mut ids: Vec<_> = records.iter().map(|record| &record.request_id).collect();
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), 5_000, "{}: a call was recorded twice", entry.name);
            let lines: Vec<_> = records.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
            lines.join("\n")
        };
        let first = bytes();
        assert!(first == bytes(), "{}: a second run differs", entry.name);
        assert!(first.contains("\"cold\"") && first.contains("\"warm\""));
        config.seed += 1;
        let other = run(&config, &entry.name).1;
        let other: Vec<_> = other.iter().map(|r| serde_json::to_string(r).unwrap()).collect();
        assert!(first != other.join("\n"), "{}: the seed changes nothing", entry.name);
        config.seed -= 1;
    }
}

#[test]
fn an_affinity_policy_starts_cold_less_often() {
    let mut config = queueing(8, 0.3, 20_000, 3);
    config.workload.functions = 200;
    config.workload.zipf = 0.9;
    config.limits.max_instances = 8;
    config.scheduler.memory = 20 << 20;
    config.cold_start = Duration::from_millis(100);
    let (random, _) = run(&config, "random");
    let (home, _) = run(&config, "bounded-load");
    assert!(home.cold_rate < 0.6 * random.cold_rate, "{home:?} {random:?}");
    assert!(home.mean_ms < random.mean_ms);
}
