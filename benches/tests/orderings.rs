//! What policies' authors found holds in the simulator, or it is said that it does not.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use openlambda_lab::orderings::{COMPARISONS, Comparison, measure};

/// Runs of each policy.
const SEEDS: u64 = 3;

fn ratios(comparison: &Comparison) -> Vec<f64> {
    let run = |seed| {
        let mut config = (comparison.setting)(seed);
        // Enough to tell who is ahead; docs/orderings.md has the longer runs. Where functions differ,
        // rare ones decide, and it takes the whole run.
        if config.workload.mix.service_ms.is_none() {
            config.workload.invocations = 12_000;
        }
        let value = |policy| measure(&config, policy, comparison.measure).unwrap();
        value(comparison.worse) / value(comparison.better)
    };
    (1..=SEEDS).map(run).collect()
}

#[test]
fn published_orderings_hold_under_every_seed() {
    let holding = COMPARISONS.iter().filter(|comparison| comparison.otherwise.is_none());
    assert!(holding.clone().count() >= 8);
    for comparison in holding {
        let ratios = ratios(comparison);
        assert!(ratios.iter().all(|ratio| *ratio > 1.0), "{ratios:?} {comparison:?}");
    }
}

/// An explanation that has become untrue has to go.
#[test]
fn what_is_said_not_to_hold_does_not() {
    for comparison in COMPARISONS.iter().filter(|comparison| comparison.otherwise.is_some()) {
        let ratios = ratios(comparison);
        assert!(ratios.iter().any(|ratio| *ratio <= 1.0), "{ratios:?} {comparison:?}");
    }
}

#[test]
fn a_comparison_can_come_out_either_way() {
    let backwards = Comparison { better: "random", worse: "power-of-two", ..COMPARISONS[0] };
    assert!(ratios(&backwards).iter().all(|ratio| *ratio < 1.0));
}
