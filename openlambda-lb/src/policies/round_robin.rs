//! The next worker in turn: [`RoundRobin`], the baseline.

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};

use super::catalog::PolicyEntry;
use super::parts::Candidates;

/// Each ready worker in turn, in order of their slots.
///
/// Formula: `ready[i mod n]`, then `i + 1`. When workers come and go, the turn goes on behind the
/// worker that was served last, so no worker is skipped or served twice.
///
/// Cost: O(1) per decision, O(log n) when a worker comes or goes. Weights are not respected.
///
/// Source: the textbook; every balancer has it.
#[derive(Clone, Debug, Default)]
pub struct RoundRobin {
    /// The place in the ready list whose turn is next; may be one past its end.
    next: usize,
    last: Option<WorkerId>,
}

impl RoundRobin {
    /// Starts with the first worker.
    pub fn new() -> Self {
        RoundRobin::default()
    }
}

impl BalancingPolicy for RoundRobin {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) -> Decision {
        let ready = view.ready();
        if ready.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        let mut place = if self.next < ready.len() { self.next } else { 0 };
        if !request.excluded.is_empty() {
            let candidates = Candidates::of(request, view);
            while !candidates.allows(ready[place]) {
                place = (place + 1) % ready.len();
            }
        }
        let worker = ready[place];
        self.next = place + 1;
        self.last = Some(worker);
        Decision::To(worker, Why("turn"))
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        if let PolicyEvent::Joined { .. }
        | PolicyEvent::Left { .. }
        | PolicyEvent::ReadyChanged { .. } = event
            && let Some(last) = self.last
        {
            // By slots: the one that was served last may have left, and a successor taken its slot.
            self.next = view.ready().partition_point(|worker| worker.index() <= last.index());
        }
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry::new("round-robin", "each worker in turn", "the textbook", || {
        Box::new(RoundRobin::new())
    })
}
