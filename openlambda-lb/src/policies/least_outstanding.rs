//! The least loaded worker: [`LeastOutstanding`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
};

use super::catalog::PolicyEntry;
use super::parts::{Candidates, LoadOrder};

/// The ready worker with the fewest requests of this balancer in flight; among equals, any.
///
/// Formula: argmin qᵢ, ties drawn uniformly. The counts are the balancer's own and change with each
/// decision, so a burst spreads at once and does not herd to the worker that was least loaded a moment ago.
/// With several balancers each sees only its own requests.
///
/// Cost: O(1) per decision and per event ([`LoadOrder`]), O(n) for a retry. Weights are not
/// respected: the order is by whole numbers; `power-of-two` respects them.
///
/// Source: "least connections" of every balancer; near the optimal mean when counts are fresh.
#[derive(Clone, Debug, Default)]
pub struct LeastOutstanding {
    order: LoadOrder,
}

impl LeastOutstanding {
    /// Knows no workers yet.
    pub fn new() -> Self {
        LeastOutstanding::default()
    }
}

impl BalancingPolicy for LeastOutstanding {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        match self.order.draw_lowest(&candidates, cx.rng) {
            Some(worker) => Decision::To(worker, Why("least loaded")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        self.order.observe(event, view);
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry::new(
        "least-outstanding",
        "the worker with the fewest requests in flight",
        "least connections, as in every balancer",
        || Box::new(LeastOutstanding::new()),
    )
}
