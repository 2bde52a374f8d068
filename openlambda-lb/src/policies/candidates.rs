//! Which workers a request may go to: [`Candidates`].

use openlambda_core::balancing::{ClusterView, RequestInfo, WorkerId};
use openlambda_core::random::Rng;

/// The ready workers without those that failed the request before, or all ready workers when that
/// leaves none.
///
/// A first attempt excludes nothing and costs nothing here; a retry costs O(k² log n) for k excluded
/// workers, which are few. The view's ready workers are sorted, which is relied on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<'a> {
    ready: &'a [WorkerId],
    /// Empty when no worker is excluded.
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
        let few = Candidates { ready, excluded, len: 0 };
        let len = ready.len() - few.left_out().count();
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
        self.places_left_out().map(|place| self.ready[place])
    }

    /// Their places among the ready ones, each once.
    fn places_left_out(&self) -> impl Iterator<Item = usize> {
        let (ready, excluded) = (self.ready, self.excluded);
        let once = excluded.iter().enumerate().filter(|(i, one)| !excluded[..*i].contains(one));
        once.filter_map(|(_, one)| ready.binary_search(one).ok())
    }

    /// The candidate at a place below [`len`](Self::len).
    pub(crate) fn nth(&self, place: usize) -> WorkerId {
        // Each one that is left out at or before the place moves it on by one, perhaps past others.
        let mut at = place;
        loop {
            let next = place + self.places_left_out().filter(|out| *out <= at).count();
            if next == at {
                return self.ready[at];
            }
            at = next;
        }
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

#[cfg(test)]
mod tests {
    use openlambda_core::balancing::{Cluster, FunctionId, Ticket, WorkerInfo};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_filter(
            n in 1..12usize,
            excluded in proptest::collection::vec(0..12usize, 0..14),
            unready in 0..12usize,
        ) {
            let mut cluster = Cluster::new();
            let joined = (0..12).map(|i| cluster.join(WorkerInfo::new(format!("w{i}"), 1)));
            let workers: Vec<_> = joined.collect();
            for worker in &workers[n..] {
                cluster.leave(*worker);
            }
            cluster.set_healthy(workers[unready], false);
            let excluded: Vec<_> = excluded.into_iter().map(|i| workers[i]).collect();
            let mut request = RequestInfo::new(Ticket(0), FunctionId(0), 0);
            request.excluded = &excluded;
            let view = cluster.view();
            let candidates = Candidates::of(&request, &view);
            let allowed = |worker: &&WorkerId| !excluded.contains(worker);
            let mut expected: Vec<_> = view.ready().iter().filter(allowed).copied().collect();
            if expected.is_empty() {
                expected = view.ready().to_vec();
            }
            let listed: Vec<_> = (0..candidates.len()).map(|at| candidates.nth(at)).collect();
            prop_assert_eq!(&listed, &expected);
            let left_out = candidates.left_out().count();
            prop_assert_eq!(left_out, view.ready().len() - expected.len());
            prop_assert!(expected.iter().all(|worker| candidates.allows(*worker)));
        }
    }
}
