//! Which workers a request may go to: [`Candidates`].

use openlambda_core::balancing::{ClusterView, RequestInfo, WorkerId};
use openlambda_core::random::Rng;

/// The ready workers without those that failed the request before, or all ready workers when that
/// leaves none.
///
/// A first attempt excludes nothing and costs nothing here; a retry walks the ready workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<'a> {
    ready: &'a [WorkerId],
    /// Empty when nobody is to be left out.
    excluded: &'a [WorkerId],
    len: usize,
}

impl<'a> Candidates<'a> {
    pub(crate) fn of(request: &RequestInfo<'a>, view: &ClusterView<'a>) -> Self {
        let ready = view.ready();
        if request.excluded.is_empty() {
            return Candidates { ready, excluded: &[], len: ready.len() };
        }
        Candidates::after_failures(ready, request.excluded)
    }

    #[cold]
    fn after_failures(ready: &'a [WorkerId], excluded: &'a [WorkerId]) -> Self {
        let len = ready.iter().filter(|worker| !excluded.contains(worker)).count();
        match len {
            0 => Candidates { ready, excluded: &[], len: ready.len() },
            _ => Candidates { ready, excluded, len },
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this request may go to `worker`, which is ready.
    pub(crate) fn allows(&self, worker: WorkerId) -> bool {
        self.excluded.is_empty() || !self.excluded.contains(&worker)
    }

    /// The workers that are left out although they are ready.
    pub(crate) fn left_out(&self) -> impl Iterator<Item = WorkerId> {
        let excluded = self.excluded;
        let ready = if excluded.is_empty() { &[] } else { self.ready };
        ready.iter().copied().filter(move |worker| excluded.contains(worker))
    }

    /// The candidate at a place below [`len`](Self::len).
    pub(crate) fn nth(&self, place: usize) -> WorkerId {
        if self.excluded.is_empty() {
            return self.ready[place];
        }
        let mut left = self.ready.iter().copied().filter(|worker| self.allows(*worker));
        left.nth(place).expect("a place below len")
    }

    /// Any of them, uniformly; `None` when there is none.
    pub(crate) fn any(&self, rng: &mut Rng) -> Option<WorkerId> {
        if self.is_empty() { None } else { Some(self.nth(rng.below(self.len))) }
    }

    /// Two distinct ones in random order, each pair with the same probability; the same one twice
    /// when there is no other.
    pub(crate) fn two(&self, rng: &mut Rng) -> Option<(WorkerId, WorkerId)> {
        match self.len {
            0 => None,
            1 => Some((self.nth(0), self.nth(0))),
            n => {
                let first = rng.below(n);
                let second = rng.below(n - 1);
                let second = if second >= first { second + 1 } else { second };
                Some((self.nth(first), self.nth(second)))
            }
        }
    }
}
