//! Messages on their way between workers and balancers.

use openlambda_core::balancing::WorkerLoad;

/// A worker's report, on its way.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) load: WorkerLoad,
    pub(super) idle: Vec<(u32, u32)>,
}

/// What is on its way and too large for an event, in places that are used again.
#[derive(Debug)]
pub(super) struct OnTheWay<T> {
    places: Vec<T>,
    free: Vec<u32>,
}

impl<T: Default> OnTheWay<T> {
    pub(super) fn new() -> Self {
        OnTheWay { places: Vec::new(), free: Vec::new() }
    }

    /// A place, with what was in it before.
    pub(super) fn take(&mut self) -> (u32, &mut T) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(T::default());
            (self.places.len() - 1) as u32
        });
        (at, &mut self.places[at as usize])
    }

    pub(super) fn get(&self, at: u32) -> &T {
        &self.places[at as usize]
    }

    pub(super) fn give_back(&mut self, at: u32) {
        self.free.push(at);
    }
}
