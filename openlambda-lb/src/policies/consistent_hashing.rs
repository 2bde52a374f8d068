//! Each function at its own worker: [`ConsistentHashing`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
};

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, WorkerRing};

/// Consistent hashing: the first ready worker clockwise of the function's place on a ring.
///
/// All requests of a function go to the worker where its instances are warm, whatever the load. When one
/// of n workers joins or leaves, about 1/n of the functions move, all of them to or from that worker; a
/// worker that is not ready is skipped and gets its functions back afterwards.
///
/// Formula: with v points h(name, 1) … h(name, v) for each worker on a circle of 2⁶⁴, the choice is
/// the owner of the first point ≥ h(f). A worker of weight w has v·w points. The largest share of
/// the keys is about 1 + O(1/√v) times the mean.
///
/// Cost: one look-up, O(1) on average, and a step for each point of a worker that is not ready; no
/// allocation. When a worker comes or goes, O(points) at the next decision.
///
/// Source: D. Karger et al., Consistent Hashing and Random Trees, STOC 1997.
#[derive(Clone, Debug)]
pub struct ConsistentHashing {
    ring: WorkerRing,
}

impl ConsistentHashing {
    /// The largest number of points for a worker of weight 1.
    pub const MOST_VNODES: u32 = WorkerRing::MOST_VNODES;

    /// With `vnodes` points on the ring for a worker of weight 1.
    ///
    /// # Panics
    ///
    /// When `vnodes` is not in 1 ..= [`Self::MOST_VNODES`].
    pub fn new(vnodes: u32) -> Self {
        ConsistentHashing { ring: WorkerRing::new(vnodes) }
    }
}

impl Default for ConsistentHashing {
    /// 100 points.
    fn default() -> Self {
        ConsistentHashing::new(100)
    }
}

impl BalancingPolicy for ConsistentHashing {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        match self.ring.home(request.key, &candidates, view) {
            Some(worker) => Decision::To(worker, Why("home")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        self.ring.observe(event, view);
    }
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "consistent-hashing".to_owned(),
        about: "the function's own worker on a hash ring, whatever its load".to_owned(),
        source: "Karger et al., Consistent Hashing and Random Trees, STOC 1997".to_owned(),
        parameters: vec![
            ParameterInfo::new(
                "vnodes",
                100,
                "points on the ring for a worker of weight 1, 1 to 10000",
            )
            .within(1..=WorkerRing::MOST_VNODES),
        ],
        build: Box::new(|given| Ok(Box::new(ConsistentHashing::new(given.whole("vnodes")?)))),
    }
}
