//! The least loaded of a few random workers: [`PowerOfD`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, Refusal, RequestInfo, Why, WorkerId,
};

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::Candidates;

/// Draws `d` distinct ready workers and takes the one with the fewest requests in flight; among
/// equals, each with the same probability.
///
/// Formula: argmin over the sample of (qᵢ + 1) / wᵢ, with the worker's weight wᵢ. With equal weights,
/// Poisson arrivals and exponential service, the share of queues of length ≥ k tends to
/// λ^((dᵏ − 1) / (d − 1)).
///
/// Cost: O(d) and d random numbers per decision (plus one per tie); no state.
///
/// Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 2001.
#[derive(Clone, Copy, Debug)]
pub struct PowerOfD {
    d: usize,
}

impl PowerOfD {
    /// The largest sample.
    pub const MOST: usize = 16;

    /// Samples `d` workers: 1 is random, 2 the power of two choices. It is clamped to 1 ..=
    /// [`Self::MOST`].
    pub fn new(d: usize) -> Self {
        PowerOfD { d: d.clamp(1, PowerOfD::MOST) }
    }
}

impl BalancingPolicy for PowerOfD {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        let n = candidates.len();
        if n == 0 {
            return Decision::Refuse(Refusal::NoWorker);
        }
        let d = self.d.min(n);
        // Floyd's sampling (Bentley & Floyd, CACM 1987): d distinct places, each set of them with the
        // same probability, by d draws.
        let mut places = [0; PowerOfD::MOST];
        let mut best: Option<(WorkerId, f64)> = None;
        let mut equals = 1;
        for (taken, top) in (n - d..n).enumerate() {
            let drawn = cx.rng.below(top + 1);
            let place = if places[..taken].contains(&drawn) { top } else { drawn };
            places[taken] = place;
            let worker = candidates.nth(place);
            let cost = cost(worker, view);
            match best {
                Some((_, least)) if cost > least => {}
                // A tie: the k-th of k equals replaces the others with probability 1/k.
                Some((_, least)) if cost == least => {
                    equals += 1;
                    if cx.rng.below(equals) == 0 {
                        best = Some((worker, cost));
                    }
                }
                _ => {
                    equals = 1;
                    best = Some((worker, cost));
                }
            }
        }
        match best {
            Some((worker, _)) => Decision::To(worker, Why("less loaded")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }
}

fn cost(worker: WorkerId, view: &ClusterView<'_>) -> f64 {
    view.worker(worker)
        .map_or(f64::INFINITY, |worker| f64::from(worker.in_flight() + 1) / worker.weight())
}

/// Its line in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    let d = ParameterInfo::new("d", 2, "how many workers are sampled, 1 to 16");
    PolicyEntry {
        name: "power-of-two".to_owned(),
        about: "the least loaded of d random workers".to_owned(),
        source: "Mitzenmacher, The Power of Two Choices, IEEE TPDS 2001".to_owned(),
        parameters: vec![d.within(1..=PowerOfD::MOST as u32)],
        build: Box::new(|given| Ok(Box::new(PowerOfD::new(given.whole("d")? as usize)))),
    }
}
