//! The smallest legal balancing policy, tested against the contract, and simulated beside two others.
//!
//! Warm first: a worker that has an idle instance of the function gets the call; if there is none, the
//! least loaded worker does.

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, Refusal, RequestInfo, Why, WorkerId,
};
use openlambda_lab::sim::{SimConfig, simulate};
use openlambda_lab::summary::Tally;
use openlambda_lb::policies::{PolicyCatalog, PolicyConfig};

/// The policy. It has no state of its own: the view shows idle instances and calls in flight.
#[derive(Debug)]
pub(crate) struct WarmFirst;

impl BalancingPolicy for WarmFirst {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        _cx: &mut PolicyContext<'_>,
    ) -> Decision {
        // A worker that has failed this call gets it again only when there is no other.
        let all_failed = view.ready().iter().all(|worker| request.excludes(*worker));
        let allowed = |worker: &WorkerId| {
            view.is_ready(*worker) && (all_failed || !request.excludes(*worker))
        };
        let mut warm = view.idle_workers(request.function).map(|(worker, _)| worker);
        if let Some(worker) = warm.find(allowed) {
            return Decision::To(worker, Why("warm"));
        }
        let others = view.ready().iter().copied().filter(allowed);
        match others.min_by_key(|worker| view.in_flight(*worker)) {
            Some(worker) => Decision::To(worker, Why("least loaded")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let standard = |name| PolicyCatalog::standard().build(&PolicyConfig::named(name));
    println!("{:<20}{:>10}{:>10}{:>10}{:>10}", "policy", "cold", "mean ms", "p50 ms", "p99 ms");
    for (name, policy) in [
        ("warm-first", Box::new(WarmFirst) as Box<dyn BalancingPolicy>),
        ("least-outstanding", standard("least-outstanding")?),
        ("bounded-load", standard("bounded-load")?),
    ] {
        let mut tally = Tally::default();
        simulate(&SimConfig::default(), policy, |call| tally.add(call))?;
        let it = tally.summary(name);
        let cold = format!("{:.2} %", it.cold_rate * 100.0);
        println!("{name:<20}{cold:>10}{:>10.1}{:>10.1}{:>10.1}", it.mean_ms, it.p50_ms, it.p99_ms);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_honours_the_contract() {
        openlambda_core::conformance::balancing::check(|| Box::new(WarmFirst));
    }
}
