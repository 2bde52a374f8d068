//! A policy's state for each worker: [`BySlot`].

use openlambda_core::balancing::WorkerId;

/// One `T` per worker, by slot. A worker never sees what was remembered of an earlier one in its
/// slot: the whole id is compared, with its generation.
#[derive(Clone, Debug)]
pub(super) struct BySlot<T> {
    places: Vec<Option<(WorkerId, T)>>,
}

impl<T> Default for BySlot<T> {
    fn default() -> Self {
        BySlot { places: Vec::new() }
    }
}

impl<T> BySlot<T> {
    pub(super) fn get(&self, worker: WorkerId) -> Option<&T> {
        let (id, value) = self.places.get(worker.index())?.as_ref()?;
        (*id == worker).then_some(value)
    }

    pub(super) fn get_mut(&mut self, worker: WorkerId) -> Option<&mut T> {
        let (id, value) = self.places.get_mut(worker.index())?.as_mut()?;
        (*id == worker).then_some(value)
    }

    pub(super) fn insert(&mut self, worker: WorkerId, value: T) {
        if worker.index() >= self.places.len() {
            self.places.resize_with(worker.index() + 1, || None);
        }
        self.places[worker.index()] = Some((worker, value));
    }

    pub(super) fn remove(&mut self, worker: WorkerId) {
        if self.get(worker).is_some() {
            self.places[worker.index()] = None;
        }
    }
}
