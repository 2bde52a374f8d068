//! Packs workers while slots are free, and balances load when none are: [`Hermod`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, Refusal,
    RequestInfo, Why, WorkerId,
};

use super::catalog::PolicyEntry;
use super::parts::{Candidates, FillOrder};

/// Hermod's hybrid of packing and least-loaded, with early binding.
///
/// Algorithm: while any worker has a free slot, a request goes to a worker that has a free slot and
/// an idle instance of the function, the fullest of those; failing that, to the fullest worker with
/// a free slot. So at low load few workers are in use, and requests find warm instances there. When
/// all slots of all workers are taken, it goes to the least loaded worker by capacity (qᵢ / cᵢ), and
/// among equals to one with an idle instance. How full a worker is counts in sixteenths of its
/// capacity. A worker should share its processors among all its calls, as far as queue policy and limits
/// allow: the paper combines the placement with processor sharing.
///
/// Cost: O(1) and one look-up among the idle instances, of which the first 32 workers of the
/// function are considered; no allocation. O(n) for a retry.
///
/// Source: K. Kaffes, N. J. Yadwadkar, C. Kozyrakis, Hermod: Principled and Practical Scheduling for
/// Serverless Functions, SoCC 2022.
#[derive(Clone, Debug, Default)]
pub struct Hermod {
    order: FillOrder,
}

/// How many workers with idle instances a decision looks at.
const MOST_WARM: usize = 32;

impl Hermod {
    /// Knows no workers yet.
    pub fn new() -> Self {
        Hermod::default()
    }

    /// The worker to take among those that are allowed, for a retry.
    #[cold]
    fn after_failures(&self, candidates: &Candidates<'_>) -> Option<(WorkerId, Why)> {
        let allowed = || self.order.iter().filter(|(worker, _)| candidates.allows(*worker));
        match allowed().take_while(|(_, level)| *level < FillOrder::FULL).last() {
            Some((worker, _)) => Some((worker, Why("packed"))),
            None => allowed().next().map(|(worker, _)| (worker, Why("least loaded"))),
        }
    }
}

/// Ready workers with an idle instance, and how full they are.
fn warm<'a>(
    function: FunctionId,
    view: &'a ClusterView<'_>,
) -> impl Iterator<Item = (WorkerId, u32)> + 'a {
    view.idle_workers(function).take(MOST_WARM).filter_map(|(worker, _)| {
        let known = view.worker(worker).filter(|_| view.is_ready(worker))?;
        Some((worker, FillOrder::level(known)))
    })
}

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry::new(
        "hermod",
        "the fullest worker with a free slot, warm ones first; all busy: the least loaded",
        "Kaffes, Yadwadkar, Kozyrakis, Hermod, SoCC 2022",
        || Box::new(Hermod::new()),
    )
}

impl BalancingPolicy for Hermod {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        if !request.excluded.is_empty() {
            return match self.after_failures(&Candidates::of(request, view)) {
                Some((worker, why)) => Decision::To(worker, why),
                None => Decision::Refuse(Refusal::NoWorker),
            };
        }
        // The last of a level is the one that came down to it last: so one request after the other
        // on an idle cluster goes to the same worker.
        if let Some(packed) = self.order.fullest_with_room().last() {
            let warm = warm(request.function, view)
                .filter(|(_, level)| *level < FillOrder::FULL)
                .max_by_key(|(_, level)| *level);
            return match warm {
                Some((worker, _)) => Decision::To(worker, Why("warm")),
                None => Decision::To(*packed, Why("packed")),
            };
        }
        let least = self.order.least();
        if least.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        let level = view.worker(least[0]).map(FillOrder::level);
        match warm(request.function, view).find(|(_, warm)| Some(*warm) == level) {
            Some((worker, _)) => Decision::To(worker, Why("least loaded, warm")),
            None => Decision::To(least[cx.rng.below(least.len())], Why("least loaded")),
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
