//! Two samples from a load vector that is not always fresh: [`Dodoor`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, Refusal, RequestInfo, Why, WorkerId,
};

use super::by_slot::BySlot;
use super::candidates::Candidates;
use super::catalog::{ParameterInfo, PolicyEntry, number};

/// Power of two choices on a cached load vector, which is refreshed every `b` decisions.
///
/// Formula: of two random distinct workers the one with the lower (Lᵢ + 1) / wᵢ, where Lᵢ is the
/// worker's load at the last refresh: its requests in flight from this balancer, or what it last
/// reported for all balancers when that is more. Before the decisions 0, b, 2b, … the loads of all
/// workers are taken over; in between, nothing changes, not even by this balancer's own requests,
/// so that what is seen is what b − 1 decisions of staleness do. With b = 1 it is the power of two
/// choices. A worker that came since the last refresh has load 0.
///
/// Cost: O(1) and two samples per decision, and O(n) every `b` decisions; no allocation.
///
/// Source: Dodoor: Efficient Randomized Decentralized Scheduling with Load Caching for Heterogeneous
/// Tasks and Clusters, arXiv 2510.12889, 2025; the analysis is that of the b-batched setting (Los &
/// Sauerwald, Balanced Allocations in Batches, SPAA 2022). The paper's load score also weighs
/// processors, memory and the estimated time of each task, and its schedulers fetch the vector from a
/// data store; here there is one count per worker.
#[derive(Clone, Debug)]
pub struct Dodoor {
    b: u32,
    /// Decisions until the next refresh.
    left: u32,
    loads: BySlot<u32>,
}

impl Dodoor {
    /// Refreshes every `b` decisions; 0 counts as 1.
    pub fn new(b: u32) -> Self {
        Dodoor { b: b.max(1), left: 0, loads: BySlot::default() }
    }

    fn refresh(&mut self, view: &ClusterView<'_>) {
        for id in view.ready() {
            let Some(worker) = view.worker(*id) else { continue };
            let reported = worker.load();
            let load = worker.in_flight().max(reported.running.saturating_add(reported.queued));
            self.loads.insert(*id, load);
        }
    }

    fn cost(&self, worker: WorkerId, view: &ClusterView<'_>) -> f64 {
        let load = self.loads.get(worker).copied().unwrap_or_default();
        view.worker(worker).map_or(f64::INFINITY, |known| (f64::from(load) + 1.0) / known.weight())
    }
}

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "dodoor".to_owned(),
        about: "the less loaded of two random workers, by loads that are refreshed now and then"
            .to_owned(),
        source: "Dodoor: Efficient Randomized Decentralized Scheduling with Load Caching, \
                 arXiv 2510.12889, 2025"
            .to_owned(),
        parameters: vec![ParameterInfo::new("b", 64, "decisions between two refreshes")],
        build: Box::new(|table| {
            let wanted = "a whole number from 1 to 1000000";
            let b = number("dodoor", table, "b", 64.0, wanted, |b| {
                b.fract() == 0.0 && (1.0..=1e6).contains(&b)
            })?;
            Ok(Box::new(Dodoor::new(b as u32)))
        }),
    }
}

impl BalancingPolicy for Dodoor {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let Some((a, b)) = Candidates::of(request, view).two(cx.rng) else {
            return Decision::Refuse(Refusal::NoWorker);
        };
        if self.left == 0 {
            self.refresh(view);
            self.left = self.b;
        }
        self.left -= 1;
        let better = self.cost(b, view) < self.cost(a, view);
        Decision::To(if better { b } else { a }, Why("less loaded"))
    }
}
