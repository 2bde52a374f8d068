//! The least loaded worker: [`LeastOutstanding`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};

use super::candidates::Candidates;
use super::load_order::LoadOrder;

/// The ready worker with the fewest requests of this balancer in flight; among equals, any.
///
/// Formula: argmin qᵢ, ties drawn uniformly. The counts are the balancer's own and change with each
/// decision, so a burst spreads at once and does not herd to whoever was least loaded a moment ago.
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
        let worker = if request.excluded.is_empty() {
            let lowest = self.order.lowest();
            match lowest.len() {
                0 => None,
                1 => Some(lowest[0]),
                n => Some(lowest[cx.rng.below(n)]),
            }
        } else {
            self.after_failures(&Candidates::of(request, view), cx)
        };
        match worker {
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
        match *event {
            PolicyEvent::Joined { worker } | PolicyEvent::ReadyChanged { worker, ready: true } => {
                self.order.insert(worker, view.in_flight(worker));
            }
            PolicyEvent::Left { worker, .. }
            | PolicyEvent::ReadyChanged { worker, ready: false } => self.order.remove(worker),
            // Nothing happens for a worker that is not in the order.
            PolicyEvent::Dispatched { worker, .. } | PolicyEvent::Completed { worker, .. } => {
                self.order.set(worker, view.in_flight(worker));
            }
            _ => {}
        }
    }
}

impl LeastOutstanding {
    #[cold]
    fn after_failures(
        &self,
        candidates: &Candidates<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Option<WorkerId> {
        let mut allowed = self.order.iter().filter(|(worker, _)| candidates.allows(*worker));
        let (mut chosen, least) = allowed.next()?;
        let equals = allowed.take_while(|(_, level)| *level == least);
        for (others, (worker, _)) in equals.enumerate() {
            if cx.rng.below(others + 2) == 0 {
                chosen = worker;
            }
        }
        Some(chosen)
    }
}
