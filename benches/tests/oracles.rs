//! The simulator against what queueing theory says, and against itself.
//!
//! The deciders in it are the live ones, so an oracle here speaks of the platform's own code. Each
//! compares the mean over independent runs (one seed each), with its confidence interval, to a closed
//! formula. The bound that guardrails keep under any inner policy is a property test of its own:
//! `guardrails_keep_the_gap_within_the_limit` in `openlambda-lb/tests/queue_policies.rs`.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::collections::BTreeMap;
use std::time::Duration;

use openlambda_core::invocation::InvocationRecord;
use openlambda_core::keep_alive::{self, KeepAliveMaker, Lru};
use openlambda_core::scheduler::{Limits, SchedulerConfig};
use openlambda_lab::sim::{SimConfig, SimError, Users, simulate};
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
        keep_alive: KeepAliveMaker::new("lru", || Box::new(Lru::default())),
        code_budget: 1 << 30,
        bundle_bytes: 1 << 10,
        limits: Limits {
            memory: 1 << 20,
            slots: 1,
            max_instances: 1,
            queue: u32::MAX / 2,
            timeout: Duration::from_secs(86_400),
            reuse: true,
            pause_after: None,
        },
        max_wait: Duration::from_secs(86_400 * 365),
        hop: Duration::ZERO,
        pull: Duration::ZERO,
        cold_start: Duration::ZERO,
        heartbeat: Duration::from_secs(1),
        seed,
        ..SimConfig::default()
    }
}

fn run(config: &SimConfig, policy: &str) -> (Summary, Vec<InvocationRecord>) {
    let policy_config = policy.parse().unwrap();
    let built = PolicyCatalog::standard().build(&policy_config).unwrap();
    let (mut tally, mut records) = (Tally::default(), Vec::new());
    simulate(config, built, |call| {
        tally.add(call);
        records.push(call.record());
    })
    .unwrap();
    (tally.summary(policy), records)
}

/// The mean of the runs' results and the half-width of its 99 % confidence interval (by independent
/// replications).
fn interval(runs: &[f64]) -> (f64, f64) {
    let n = runs.len() as f64;
    let mean = runs.iter().sum::<f64>() / n;
    let variance = runs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    // Student's t at 99 %, by degrees of freedom.
    let t = match runs.len() {
        10 => 3.250,
        20 => 2.861,
        other => panic!("look Student's t up for {other} runs"),
    };
    (mean, t * (variance / n).sqrt())
}

/// The results of the runs agree with `theory`, and are precise enough that they could disagree.
/// `bias`: what the theory neglects, as a share of it.
fn agree(what: &str, runs: &[f64], theory: f64, bias: f64) {
    let (mean, half) = interval(runs);
    let off = (mean - theory).abs();
    assert!(off <= half + bias * theory, "{what}: {mean} ± {half}, theory {theory}");
    assert!(half < 0.1 * theory, "{what}: ± {half} is too wide to tell anything of {theory}");
}

/// One call at a time on each worker, and the balancer knows it.
fn one_slot_each(workers: u32, load: f64, invocations: u64, seed: u64) -> SimConfig {
    let mut config = queueing(workers, load, invocations, seed);
    config.scheduler.memory = config.limits.memory;
    config
}

/// `workers` of one processor each, shared by all calls that are there.
fn sharing(workers: u32, load: f64, service: Service, invocations: u64, seed: u64) -> SimConfig {
    let mut config = queueing(workers, load, invocations, seed);
    config.workload.service = service;
    config.processors = Some(1);
    config.limits.max_instances = u32::MAX / 2;
    config
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
    config.keep_alive = keep_alive::standard().maker_of("ttl,seconds=0.5").unwrap();
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

/// The probability that an arrival waits at `c` servers under `load` each (Erlang's C formula).
fn erlang_c(c: u32, load: f64) -> f64 {
    let offered = load * f64::from(c);
    // Erlang's B formula by its recursion, then C from B.
    let blocked = (1..=c).fold(1.0, |b, n| offered * b / (f64::from(n) + offered * b));
    blocked / (1.0 - load * (1.0 - blocked))
}

#[test]
fn erlangs_formula_is_typed_as_in_the_books() {
    // M/M/1 waits with probability ρ; M/M/2 with 2ρ² / (1 + ρ).
    assert!((erlang_c(1, 0.7) - 0.7).abs() < 1e-12);
    assert!((erlang_c(2, 0.6) - 0.72 / 1.6).abs() < 1e-12);
}

#[test]
fn the_central_queue_makes_the_cluster_an_mmc_queue() {
    for (workers, load, calls) in [(5, 0.8, 20_000), (10, 0.8, 40_000)] {
        let waits: Vec<f64> = (0..20)
            .map(|seed| {
                let config = one_slot_each(workers, load, calls, seed);
                let (summary, _) = run(&config, "central-queue,wait=3600");
                assert_eq!(summary.failed, 0);
                summary.mean_wait_ms
            })
            .collect();
        // Kleinrock 1975: C(c, ρ) / (c μ − λ), with μ = 100/s.
        let spare = 100.0 * f64::from(workers) * (1.0 - load);
        let theory = erlang_c(workers, load) / spare * 1e3;
        // The runs start with empty queues: up to 3 % of the mean at these lengths.
        agree(&format!("{workers} workers at {load}"), &waits, theory, 0.03);
    }
}

/// The share of time that a worker has at least 1, 2, … calls, over all workers, from the first fifth
/// of the run on.
fn queue_tail(records: &[InvocationRecord], workers: u32, up_to: usize) -> Vec<f64> {
    let arrived = |record: &InvocationRecord| record.arrived_ns;
    let end = records.iter().map(arrived).max().unwrap();
    let start = end / 5;
    let mut changes: Vec<(u64, i32, &str)> = Vec::new();
    for record in records {
        let over = arrived(record)
            + record.queue_ns
            + record.pull_ns
            + record.create_ns
            + record.init_ns
            + record.run_ns;
        changes.push((arrived(record), 1, &record.worker));
        changes.push((over, -1, &record.worker));
    }
    changes.sort_unstable();
    let mut queues: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let mut held = vec![0u64; up_to + 1];
    for (at, change, worker) in changes {
        let (queue, since) = queues.entry(worker).or_insert((0, start));
        let until = at.clamp(start, end);
        for held in held.iter_mut().take(*queue + 1) {
            *held += until.saturating_sub(*since);
        }
        *since = until;
        *queue = queue.checked_add_signed(change as isize).unwrap();
    }
    let whole = (end - start) as f64 * f64::from(workers);
    held.iter().skip(1).map(|held| *held as f64 / whole).collect()
}

#[test]
fn the_power_of_two_choices_has_mitzenmachers_tail() {
    let (workers, load) = (200, 0.9);
    let tails: Vec<Vec<f64>> = (0..10)
        .map(|seed| {
            let (_, records) = run(&one_slot_each(workers, load, 60_000, seed), "power-of-two");
            queue_tail(&records, workers, 4)
        })
        .collect();
    for k in 1..=4 {
        // Mitzenmacher 2001, for n → ∞: P(queue ≥ k) = λ^((dᵏ − 1) / (d − 1)), here with d = 2.
        let theory = load.powi((1 << k) - 1);
        let runs: Vec<f64> = tails.iter().map(|tail| tail[k - 1]).collect();
        // His own simulations of 100 queues are about 1 % off in the mean; the error falls as 1 / n.
        agree(&format!("queues of {k} and more"), &runs, theory, 0.02);
    }
    // And that is not what a single choice leads to: there it is λᵏ.
    let (_, records) = run(&one_slot_each(workers, load, 60_000, 0), "random");
    assert!(queue_tail(&records, workers, 4)[3] > 2.0 * load.powi(15));
}

#[test]
fn shared_processors_respond_alike_whatever_the_services_distribution() {
    let mean = Duration::from_millis(10);
    for service in [
        Service::Fixed(mean),
        Service::Exponential(mean),
        Service::HyperExponential { mean, scv: 5.0 },
    ] {
        let load = 0.7;
        let means: Vec<f64> = (0..20)
            .map(|seed| run(&sharing(4, load, service, 20_000, seed), "random").0.mean_ms)
            .collect();
        // M/G/1-PS (Kleinrock 1976): 1 / (μ (1 − ρ)).
        agree(&format!("{service:?}"), &means, 10.0 / (1.0 - load), 0.02);
    }
}

#[test]
fn a_first_come_first_served_worker_pays_for_the_services_variance() {
    let mean = Duration::from_millis(10);
    for (service, scv) in
        [(Service::Fixed(mean), 0.0), (Service::HyperExponential { mean, scv: 5.0 }, 5.0)]
    {
        let load = 0.7;
        let waits: Vec<f64> = (0..20)
            .map(|seed| {
                let mut config = queueing(4, load, 20_000, seed);
                config.workload.service = service;
                run(&config, "random").0.mean_wait_ms
            })
            .collect();
        // Pollaczek–Khinchine: ρ (1 + C²) / (2 μ (1 − ρ)).
        let theory = 10.0 * load / (1.0 - load) * (1.0 + scv) / 2.0;
        agree(&format!("{service:?}"), &waits, theory, 0.02);
    }
}

/// N users who think for Z on average share a server that takes S: the machine repairman's problem,
/// M/M/1//N (Kleinrock 1975). The server idles with the probability p₀ = 1 / Σ N! / (N − n)! (S / Z)ⁿ,
/// and the throughput is (1 − p₀) / S.
#[test]
fn a_closed_loop_has_the_throughput_of_the_repairmans_problem() {
    for (users, think_ms) in [(1, 10), (5, 30), (20, 100)] {
        let runs: Vec<f64> = (0..20)
            .map(|seed| {
                let mut config = queueing(1, 0.5, 20_000, seed);
                config.users = Some(Users { count: users, think: Duration::from_millis(think_ms) });
                let built = PolicyCatalog::standard().build(&"random".parse().unwrap()).unwrap();
                let mut calls = 0.0;
                let usage = simulate(&config, built, |call| {
                    assert!(call.is_ok());
                    calls += 1.0;
                });
                calls / usage.unwrap().seconds
            })
            .collect();
        let ratio = 10.0 / think_ms as f64;
        let (mut term, mut sum) = (1.0, 1.0);
        for n in 0..users {
            term *= f64::from(users - n) * ratio;
            sum += term;
        }
        let theory = (1.0 - 1.0 / sum) * 100.0;
        agree(&format!("{users} users"), &runs, theory, 0.005);
    }
}

#[test]
fn a_closed_loop_that_nobody_can_call_in_is_refused() {
    let refusal = |config: &SimConfig| {
        let built = PolicyCatalog::standard().build(&"random".parse().unwrap()).unwrap();
        simulate(config, built, |_| panic!("nobody calls")).unwrap_err()
    };
    let mut config = queueing(1, 0.5, 10, 1);
    config.users = Some(Users { count: 0, think: Duration::from_millis(1) });
    assert!(matches!(refusal(&config), SimError::NoUsers));
    config.users = Some(Users { count: 1, think: Duration::from_millis(1) });
    config.workload.mix.timers = 1.0;
    assert!(matches!(refusal(&config), SimError::OnlyTimers));
}
