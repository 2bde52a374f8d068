//! State for each held request: a few workers, without allocation: [`FewWorkers`].

use openlambda_core::balancing::{ClusterView, WorkerId};

/// A copy of a request's excluded workers, or of where it has reservations: up to eight workers,
/// without allocation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FewWorkers {
    workers: [Option<WorkerId>; FewWorkers::MOST],
}

impl FewWorkers {
    pub(super) const MOST: usize = 8;

    /// `None` when they are more than [`Self::MOST`].
    pub(super) fn of(workers: &[WorkerId]) -> Option<Self> {
        let mut few = FewWorkers::default();
        for (at, worker) in workers.iter().enumerate() {
            *few.workers.get_mut(at)? = Some(*worker);
        }
        Some(few)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.iter().map_while(|worker| *worker)
    }

    pub(super) fn contains(&self, worker: WorkerId) -> bool {
        self.iter().any(|other| other == worker)
    }

    /// Whether a request that failed on these may go to `worker`, which is ready: not to one of them
    /// while another one is ready.
    pub(super) fn allow(&self, worker: WorkerId, view: &ClusterView<'_>) -> bool {
        !self.contains(worker)
            || self.iter().filter(|failed| view.is_ready(*failed)).count() == view.ready().len()
    }
}
