//! Which workers a request may go to: [`Candidates`].

use openlambda_core::balancing::{ClusterView, RequestInfo, WorkerId};
use openlambda_core::random::Rng;

/// The ready workers without those that failed the request before, or all ready workers when that
/// leaves none.
///
/// A policy that chooses among them honours the duty of a
/// [`BalancingPolicy`](openlambda_core::balancing::BalancingPolicy) whatever it does. When they are
/// empty, it refuses with [`Refusal::NoWorker`](openlambda_core::balancing::Refusal::NoWorker).
///
/// Cost: a first attempt excludes nothing, so all is O(1); a retry costs O(k² log n) for k excluded
/// workers, which are few. The view's ready workers are sorted, which is relied on. No allocation.
///
/// ```
/// use openlambda_core::balancing::{Cluster, FunctionId, RequestInfo, Ticket, WorkerInfo};
/// use openlambda_lb::policies::parts::Candidates;
///
/// let mut cluster = Cluster::new();
/// let [a, b, c] = ["a", "b", "c"].map(|name| cluster.join(WorkerInfo::new(name, 8)));
/// let mut request = RequestInfo::new(Ticket(0), FunctionId(0), 0);
/// let failed = [b];
/// request.excluded = &failed;
///
/// let candidates = Candidates::of(&request, &cluster.view());
/// assert_eq!(candidates.iter().collect::<Vec<_>>(), [a, c]);
/// assert!(!candidates.allows(b));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    ready: &'a [WorkerId],
    /// Empty when no worker is excluded.
    excluded: &'a [WorkerId],
    len: usize,
}

impl<'a> Candidates<'a> {
    /// The workers that the request may go to.
    pub fn of(request: &RequestInfo<'a>, view: &ClusterView<'a>) -> Self {
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

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no worker is ready.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether this request may go to `worker`, which is ready.
    pub fn allows(&self, worker: WorkerId) -> bool {
        self.excluded.is_empty() || !self.excluded.contains(&worker)
    }

    /// All of them, in order of their ids: O(n).
    pub fn iter(&self) -> impl Iterator<Item = WorkerId> + use<'a> {
        let (ready, excluded) = (self.ready, self.excluded);
        ready.iter().copied().filter(move |worker| !excluded.contains(worker))
    }

    /// The workers that are left out although they are ready.
    pub fn left_out(&self) -> impl Iterator<Item = WorkerId> {
        self.places_left_out().map(|place| self.ready[place])
    }

    /// Their places among the ready ones, each once.
    fn places_left_out(&self) -> impl Iterator<Item = usize> {
        let (ready, excluded) = (self.ready, self.excluded);
        let once = excluded.iter().enumerate().filter(|(i, one)| !excluded[..*i].contains(one));
        once.filter_map(|(_, one)| ready.binary_search(one).ok())
    }

    /// The candidate at a place below [`len`](Self::len), in order of their ids.
    ///
    /// # Panics
    ///
    /// When there is none at that place.
    pub fn nth(&self, place: usize) -> WorkerId {
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
    pub fn any(&self, rng: &mut Rng) -> Option<WorkerId> {
        if self.is_empty() { None } else { Some(self.nth(rng.below(self.len))) }
    }

    /// Two distinct ones in random order, each pair with the same probability; the same one twice
    /// when there is no other.
    pub fn two(&self, rng: &mut Rng) -> Option<(WorkerId, WorkerId)> {
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
            prop_assert_eq!(&candidates.iter().collect::<Vec<_>>(), &expected);
            let left_out = candidates.left_out().count();
            prop_assert_eq!(left_out, view.ready().len() - expected.len());
            prop_assert!(expected.iter().all(|worker| candidates.allows(*worker)));
        }
    }
}
