//! A policy's state for each worker: [`BySlot`].

use openlambda_core::balancing::WorkerId;

/// One `T` per worker, by slot. A worker never sees what was remembered of an earlier one in its
/// slot: the whole id is compared, with its generation.
///
/// Cost: O(1), one read of an array; it allocates only when a slot is used for the first time.
///
/// ```
/// use openlambda_core::balancing::{Cluster, WorkerInfo};
/// use openlambda_lb::policies::parts::BySlot;
///
/// let mut cluster = Cluster::new();
/// let first = cluster.join(WorkerInfo::new("first", 8));
/// let mut latency_ms = BySlot::default();
/// latency_ms.insert(first, 12);
/// assert_eq!(latency_ms.get(first), Some(&12));
///
/// cluster.leave(first);
/// let next = cluster.join(WorkerInfo::new("next", 8));
/// assert_eq!(next.index(), first.index());
/// assert_eq!(latency_ms.get(next), None);
/// ```
#[derive(Clone, Debug)]
pub struct BySlot<T> {
    places: Vec<Option<(WorkerId, T)>>,
}

impl<T> Default for BySlot<T> {
    fn default() -> Self {
        BySlot { places: Vec::new() }
    }
}

impl<T> BySlot<T> {
    /// What is remembered of a worker.
    pub fn get(&self, worker: WorkerId) -> Option<&T> {
        let (id, value) = self.places.get(worker.index())?.as_ref()?;
        (*id == worker).then_some(value)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, worker: WorkerId) -> Option<&mut T> {
        let (id, value) = self.places.get_mut(worker.index())?.as_mut()?;
        (*id == worker).then_some(value)
    }

    /// Remembers this of a worker, instead of what was known of it or of an earlier one in its slot.
    pub fn insert(&mut self, worker: WorkerId, value: T) {
        if worker.index() >= self.places.len() {
            self.places.resize_with(worker.index() + 1, || None);
        }
        self.places[worker.index()] = Some((worker, value));
    }

    /// Forgets a worker; nothing happens to a later one in its slot.
    pub fn remove(&mut self, worker: WorkerId) {
        if self.get(worker).is_some() {
            self.places[worker.index()] = None;
        }
    }
}
