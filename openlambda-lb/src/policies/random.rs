//! Any worker, uniformly: [`Random`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, Refusal, RequestInfo, Why,
};

use super::catalog::PolicyEntry;
use super::parts::Candidates;

/// A ready worker, drawn uniformly.
///
/// Under Poisson arrivals and exponential service each worker is an M/M/1 queue, whose waiting
/// times are known: the analytic oracle of the simulator.
///
/// Cost: O(1) and one random number per decision; no state. Weights are not respected: a worker's
/// share is 1/n, which is what the oracle needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl BalancingPolicy for Random {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        if candidates.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        Decision::To(candidates.nth(cx.rng.below(candidates.len())), Why("random"))
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry::new(
        "random",
        "any worker, uniformly",
        "the textbook; each worker is an M/M/1 queue",
        || Box::new(Random),
    )
}
