//! What the simulator must get right by itself, whatever the policies: small cases with known answers.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, ProbeSet, RequestInfo,
    Ticket, Why,
};
use openlambda_core::failure::FailureKind;
use openlambda_core::keep_alive;
use openlambda_core::metrics::Outcome;
use openlambda_core::time::Time;
use openlambda_lab::sim::{Deaths, Faults, SimConfig, SimError, simulate, simulate_with};
use openlambda_lab::workload::{Service, WorkloadConfig};
use openlambda_lb::policies::PolicyCatalog;

fn policy(name: &str) -> Box<dyn BalancingPolicy> {
    PolicyCatalog::standard().build(&name.parse().unwrap()).unwrap()
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// One call of 50 ms a second, on one worker that is 50 ms away; starts and pulls take no time.
fn far_away() -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 1.0,
            functions: 1,
            zipf: 0.0,
            service: Service::Fixed(ms(50)),
            invocations: 100,
            ..WorkloadConfig::default()
        },
        workers: 1,
        hop: ms(50),
        pull: Duration::ZERO,
        cold_start: Duration::ZERO,
        ..SimConfig::default()
    }
}

#[test]
fn a_call_takes_the_way_there_its_time_and_the_way_back() {
    let mut calls = 0;
    simulate(&far_away(), policy("random"), |call| {
        calls += 1;
        assert_eq!((call.latency(), call.network, call.phases.run), (ms(150), ms(100), ms(50)));
        let record = call.record();
        assert_eq!(
            (record.network_ns, record.run_ns, record.queue_ns),
            (100_000_000, 50_000_000, 0)
        );
    })
    .unwrap();
    assert_eq!(calls, 100);
}

/// Asks the worker for its load before it sends a call there, and again along with the call.
#[derive(Debug, Default)]
struct Curious {
    asked: BTreeMap<Ticket, Time>,
    told: Arc<Mutex<Vec<(Time, u32)>>>,
}

impl BalancingPolicy for Curious {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let worker = view.ready()[0];
        match self.asked.remove(&request.ticket) {
            None => {
                self.asked.insert(request.ticket, cx.now);
                Decision::Probe(ProbeSet::new(&[worker]))
            }
            Some(asked) => {
                assert_eq!(cx.now.since(asked), ms(100), "there and back");
                cx.probe(worker);
                Decision::To(worker, Why("asked"))
            }
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        _: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        if let PolicyEvent::Probed { load, .. } = event {
            self.told.lock().unwrap().push((cx.now, load.running + load.queued));
        }
    }
}

#[test]
fn probes_tell_what_was_a_hop_ago() {
    let mut config = far_away();
    config.workload.invocations = 1;
    config.workload.service = Service::Fixed(ms(40));
    let curious = Curious::default();
    let told = curious.told.clone();
    let mut call = None;
    simulate(&config, Box::new(curious), |over| {
        call = Some((over.arrived, over.latency()));
    })
    .unwrap();
    let (arrived, latency) = call.unwrap();
    // A round trip for the probe, and the call's own.
    assert_eq!(latency, ms(240));
    // The first answer was there before the call was sent. The second was asked as the call came to the
    // worker, and when it was back the handler had been through for 10 ms.
    assert_eq!(*told.lock().unwrap(), [(arrived + ms(100), 0), (arrived + ms(200), 1)]);
}

#[test]
fn a_function_is_placed_anew_under_each_seed() {
    for name in ["consistent-hashing", "rendezvous", "maglev"] {
        let mut placements = BTreeSet::new();
        for seed in 0..10 {
            let mut config = SimConfig { workers: 10, seed, ..SimConfig::default() };
            config.workload.functions = 30;
            config.workload.invocations = 2_000;
            let mut homes = BTreeMap::new();
            simulate(&config, policy(name), |call| {
                homes.insert(call.function, call.worker);
            })
            .unwrap();
            placements.insert(homes.into_iter().collect::<Vec<_>>());
        }
        assert_eq!(placements.len(), 10, "{name}");
    }
}

#[test]
fn each_call_ends_once_and_a_seed_repeats_it_whatever_goes_wrong() {
    let config = |seed| {
        let mut config = SimConfig { workers: 4, balancers: 2, seed, ..SimConfig::default() };
        config.workload.functions = 20;
        config.workload.invocations = 6_000;
        config.scheduler.memory = 6 << 27;
        config.scheduler.pause_after = Some(ms(100));
        config.paused_share = 0.25;
        config.limits.timeout = ms(300);
        config.limits.queue = 4;
        config.limits.max_instances = 2;
        config.code_budget = 8 << 20;
        config.releases = Some(Duration::from_secs(2));
        config.faults = Faults {
            fetch: 0.1,
            start: 0.1,
            crash: 0.02,
            workers: Some(Deaths { every: Duration::from_secs(8), away: ms(700) }),
        };
        config
    };
    for name in ["round-robin", "hiku", "late-binding", "central-queue", "prequal", "ch-rlu"] {
        let run = |seed| {
            let (mut seen, mut lines, mut outcomes) =
                (BTreeSet::new(), Vec::new(), BTreeMap::new());
            let mut retried = 0;
            simulate_with(
                &config(seed),
                || policy(name),
                |call| {
                    assert!(seen.insert(call.number), "{name}: call {} ended twice", call.number);
                    retried += u32::from(call.attempts > 1);
                    *outcomes.entry(call.outcome.as_str()).or_insert(0) += 1;
                    lines.push(serde_json::to_string(&call.record()).unwrap());
                },
            )
            .unwrap();
            assert_eq!(seen.len(), 6_000, "{name}");
            (lines, outcomes, retried)
        };
        let (lines, outcomes, retried) = run(1);
        assert!(outcomes["ok"] > 4_000, "{name}: {outcomes:?}");
        for outcome in ["timeout", "sandbox_crashed", "worker_died"] {
            assert!(outcomes.contains_key(outcome), "{name}: {outcomes:?}");
        }
        assert!(retried > 10, "{name}: failed starts are tried elsewhere, {retried}");
        assert!(lines == run(1).0, "{name}: a second run differs");
        assert!(lines != run(2).0, "{name}: the seed changes nothing");
    }
}

#[test]
fn a_call_that_cannot_start_on_one_worker_starts_on_another() {
    let mut config = far_away();
    config.workers = 3;
    config.workload.invocations = 2_000;
    config.faults.start = 0.5;
    config.keep_alive = keep_alive::standard().maker_of("ttl,seconds=0").unwrap();
    let ran = |config: &SimConfig| {
        let mut ok = 0;
        simulate(config, policy("random"), |call| {
            assert!(call.attempts <= 1 + config.retries.most);
            match call.outcome {
                Outcome::Ok => ok += 1,
                outcome => assert_eq!(outcome, Outcome::Failed(FailureKind::StartFailed)),
            }
        })
        .unwrap();
        f64::from(ok) / 2_000.0
    };
    // Each attempt fails with a half: an eighth of the calls fail on all three.
    assert!((ran(&config) - 0.875).abs() < 0.03, "{}", ran(&config));
    config.retries.most = 0;
    assert!((ran(&config) - 0.5).abs() < 0.04, "{}", ran(&config));
}

#[test]
fn memory_that_is_paused_is_lent_to_others() {
    let mut config = far_away();
    config.hop = Duration::ZERO;
    config.workload.functions = 8;
    config.workload.invocations = 4_000;
    config.scheduler.memory = 4 << 27;
    config.scheduler.pause_after = Some(ms(10));
    let cold = |share: f64| {
        let config = SimConfig { paused_share: share, ..config.clone() };
        let mut cold = 0;
        simulate(&config, policy("random"), |call| {
            assert!(call.is_ok());
            cold += u32::from(call.start.unwrap().as_str() == "cold");
        })
        .unwrap();
        cold
    };
    // Four instances fit where they hold all their memory, and all eight where they hold a quarter.
    let (all, quarter) = (cold(1.0), cold(0.25));
    assert!(all > 1_000, "{all}");
    assert!(quarter < 100, "{quarter}");
}

#[test]
fn what_cannot_be_simulated_is_refused_with_the_next_step() {
    let refusal = |config: &SimConfig| {
        simulate(config, policy("random"), |_| panic!("no call is made")).unwrap_err()
    };
    let error = refusal(&SimConfig { balancers: 2, ..far_away() });
    assert!(matches!(error, SimError::OnePolicy), "{error}");
    let error = refusal(&SimConfig { balancers: 0, ..far_away() });
    assert!(matches!(error, SimError::NoBalancer), "{error}");
}
