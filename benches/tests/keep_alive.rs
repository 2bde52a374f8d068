//! The keep-alive policies in the simulator: what their papers say must hold here too.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use openlambda_core::keep_alive::{self, KeepAliveMaker};
use openlambda_lab::keep_alive::{day, run};
use openlambda_lab::sim::{SimConfig, simulate};
use openlambda_lab::workload::LogNormal;
use openlambda_lb::policies::Random;

const GIB: f64 = (1u64 << 30) as f64;

/// The policy of this name and parameters.
fn policy(text: &str) -> KeepAliveMaker {
    keep_alive::standard().maker_of(text).unwrap()
}

/// A quarter of the published day, so that it is soon over: 100 functions and memory in proportion.
fn quarter_day(keep_alive: &str, memory_gb: u64, seed: u64) -> SimConfig {
    let mut config = day(&policy(keep_alive), memory_gb, seed);
    config.workload.functions = 100;
    config.workload.rate = 1.0;
    config.workload.invocations = 86_400;
    config
}

#[test]
fn greedy_dual_waits_least_when_memory_is_short() {
    for seed in 1..=2 {
        // About a tenth of what all functions take at once.
        let overhead = |policy: &str| {
            let (summary, _) = run(&quarter_day(policy, 3, seed)).unwrap();
            assert_eq!(summary.failed, 0, "{policy}");
            summary.cold_overhead
        };
        let (ttl, lru) = (overhead("ttl"), overhead("lru"));
        for policy in ["greedy-dual", "greedy-dual,per_instance=1"] {
            let dual = overhead(policy);
            assert!(dual <= ttl && dual <= lru, "{seed}: {policy} {dual}, ttl {ttl}, lru {lru}");
        }
        let landlord = overhead("landlord");
        assert!(landlord <= lru, "{seed}: landlord {landlord}, lru {lru}");
    }
}

#[test]
fn the_histogram_starts_what_a_timer_calls_ahead() {
    // Only timers, half of them slower than once in 40 minutes, and memory for all.
    let timers = |name: &str| {
        let mut config = day(&policy(name), 200, 1);
        config.workload.functions = 50;
        config.workload.mix.timers = 1.0;
        config.workload.mix.popularity =
            Some(LogNormal { median: 36.0, sigma: 0.5, least: 12.0, most: 96.0 });
        config.workload.rate = 50.0 * 36.0 / 86_400.0;
        config.workload.invocations = 3 * 50 * 36;
        // Handlers that take longer than their timers would rest by chance.
        config.workload.mix.service_ms = None;
        let (summary, usage) = run(&config).unwrap();
        (summary.cold_rate, usage.mean_memory / GIB)
    };
    let (ttl, lru, histogram) = (timers("ttl"), timers("lru"), timers("histogram"));
    // Each function starts cold once; the histogram learns from five rests, while it keeps the
    // instance for four hours.
    assert!(ttl.0 > 0.9, "every timer here is slower than ten minutes: {ttl:?}");
    assert!(lru.0 < 0.05, "{lru:?}");
    assert!(histogram.0 < 0.05, "{histogram:?}");
    assert!(histogram.1 < 0.5 * lru.1, "it holds less: {histogram:?} {lru:?}");
}

#[test]
fn every_policy_serves_every_call_and_repeats_itself() {
    let catalog = keep_alive::standard();
    for name in catalog.entries().map(|entry| &*entry.name) {
        let lines = |seed| {
            let mut config = quarter_day(name, 4, seed);
            config.workload.invocations = 4_000;
            config.workers = 2;
            config.scheduler.pause_after = Some(Duration::from_secs(20));
            let mut lines = Vec::new();
            simulate(&config, Box::new(Random), |call| {
                lines.push(serde_json::to_string(&call.record()).unwrap());
            })
            .unwrap();
            lines
        };
        let first = lines(1);
        assert_eq!(first.len(), 4_000, "{name}");
        assert!(first.iter().all(|line| line.contains("\"outcome\":\"ok\"")), "{name}");
        assert!(first == lines(1), "{name}: a second run differs");
        assert!(first != lines(2), "{name}: the seed changes nothing");
    }
}

#[test]
fn a_policy_that_is_not_known_is_refused_with_the_nearest() {
    let error = keep_alive::standard().maker_of("greedy_dual").unwrap_err().to_string();
    assert!(error.contains("did you mean \"greedy-dual\"?"), "{error}");
}
