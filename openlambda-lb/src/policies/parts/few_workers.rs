//! A policy's state for each held request: a few workers, without allocation: [`FewWorkers`].

use openlambda_core::balancing::{ClusterView, WorkerId};

/// A copy of a request's excluded workers, or of where it has reservations: up to eight workers,
/// without allocation. [`Candidates`](super::Candidates) borrow from the request, and a policy that
/// [holds](openlambda_core::balancing::Decision::Hold) it decides later.
///
/// Cost: O(8).
///
/// ```
/// use openlambda_core::balancing::{Cluster, WorkerInfo};
/// use openlambda_lb::policies::parts::FewWorkers;
///
/// let mut cluster = Cluster::new();
/// let [a, b] = ["a", "b"].map(|name| cluster.join(WorkerInfo::new(name, 8)));
/// let failed = FewWorkers::of(&[a]).unwrap();
/// assert!(failed.allow(b, &cluster.view()) && !failed.allow(a, &cluster.view()));
///
/// cluster.set_healthy(b, false);
/// assert!(failed.allow(a, &cluster.view()), "rather again than not at all");
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct FewWorkers {
    workers: [Option<WorkerId>; FewWorkers::MOST],
}

impl FewWorkers {
    /// The most workers that it holds.
    pub const MOST: usize = 8;

    /// `None` when they are more than [`Self::MOST`].
    pub fn of(workers: &[WorkerId]) -> Option<Self> {
        let mut few = FewWorkers::default();
        for (at, worker) in workers.iter().enumerate() {
            *few.workers.get_mut(at)? = Some(*worker);
        }
        Some(few)
    }

    /// The workers, in the order given.
    pub fn iter(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.iter().map_while(|worker| *worker)
    }

    /// Whether a worker is one of them.
    pub fn contains(&self, worker: WorkerId) -> bool {
        self.iter().any(|other| other == worker)
    }

    /// Whether a request that failed on these may go to `worker`, which is ready: not to one of them
    /// while another one is ready.
    pub fn allow(&self, worker: WorkerId, view: &ClusterView<'_>) -> bool {
        !self.contains(worker)
            || self.iter().filter(|failed| view.is_ready(*failed)).count() == view.ready().len()
    }
}
