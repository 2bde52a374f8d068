//! Workers in order of arrival, removed from anywhere: [`WorkerQueue`].

use openlambda_core::balancing::WorkerId;

use super::by_slot::BySlot;

/// Workers in order of arrival, each at most once: a list linked by slots.
///
/// Cost: O(1) to push, to remove from anywhere, and for the head; it allocates only when a slot is
/// used for the first time.
///
/// ```
/// use openlambda_core::balancing::{Cluster, WorkerInfo};
/// use openlambda_lb::policies::parts::WorkerQueue;
///
/// let mut cluster = Cluster::new();
/// let [a, b, c] = ["a", "b", "c"].map(|name| cluster.join(WorkerInfo::new(name, 8)));
/// let mut queue = WorkerQueue::default();
/// [c, a, b].map(|worker| queue.push(worker));
/// queue.remove(a);
/// queue.push(c);
/// assert_eq!(queue.iter().collect::<Vec<_>>(), [c, b]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct WorkerQueue {
    links: BySlot<Link>,
    head: Option<WorkerId>,
    tail: Option<WorkerId>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    before: Option<WorkerId>,
    behind: Option<WorkerId>,
}

impl WorkerQueue {
    /// The workers, from the head to the end.
    pub fn iter(&self) -> impl Iterator<Item = WorkerId> {
        std::iter::successors(self.head, |worker| self.links.get(*worker)?.behind)
    }

    /// Puts a worker at the end; nothing happens for one that is in the queue.
    pub fn push(&mut self, worker: WorkerId) {
        if self.links.get(worker).is_some() {
            return;
        }
        let before = self.tail.replace(worker);
        self.links.insert(worker, Link { before, behind: None });
        match before.and_then(|before| self.links.get_mut(before)) {
            Some(link) => link.behind = Some(worker),
            None => self.head = Some(worker),
        }
    }

    /// Takes a worker out; nothing happens for one that is not in the queue.
    pub fn remove(&mut self, worker: WorkerId) {
        let Some(Link { before, behind }) = self.links.get(worker).copied() else { return };
        self.links.remove(worker);
        match before.and_then(|before| self.links.get_mut(before)) {
            Some(link) => link.behind = behind,
            None => self.head = behind,
        }
        match behind.and_then(|behind| self.links.get_mut(behind)) {
            Some(link) => link.before = before,
            None => self.tail = before,
        }
    }
}
