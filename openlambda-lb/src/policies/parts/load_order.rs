//! Workers in order of their load, kept up in O(1) per request: [`LoadOrder`].

use openlambda_core::balancing::{ClusterView, PolicyEvent, WorkerId};
use openlambda_core::random::Rng;

use super::candidates::Candidates;

/// The ready workers, sorted by a small whole number such as the requests in flight.
///
/// One array holds the workers in order; a second one holds where each level begins. A worker that
/// moves up by one swaps places with the last of its level, whose end then moves back by one. The
/// members of a level are a slice, so that one of them can be drawn.
///
/// The order can be told levels of the policy's own ([`insert`](Self::insert), [`set`](Self::set),
/// [`remove`](Self::remove)), or it [observes](Self::observe) the requests in flight.
///
/// Cost: O(1) for a move by one level, O(highest level) for coming and going; no allocation once the
/// highest level was reached.
///
/// Source: V. Batagelj, M. Zaveršnik, An O(m) Algorithm for Cores Decomposition of Networks, 2003:
/// its sort of vertices by degree, kept up while degrees change.
///
/// ```
/// use openlambda_core::balancing::{Cluster, WorkerInfo};
/// use openlambda_lb::policies::parts::LoadOrder;
///
/// let mut cluster = Cluster::new();
/// let [a, b] = ["a", "b"].map(|name| cluster.join(WorkerInfo::new(name, 8)));
/// let mut order = LoadOrder::new();
/// order.insert(a, 3);
/// order.insert(b, 1);
/// assert_eq!(order.lowest(), [b]);
/// order.set(b, 4);
/// assert_eq!(order.iter().collect::<Vec<_>>(), [(a, 3), (b, 4)]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct LoadOrder {
    order: Vec<WorkerId>,
    /// `start[level]`: how many workers are below that level. Levels above the last are empty.
    start: Vec<usize>,
    /// By slot: the worker's place in `order` and its level.
    places: Vec<Option<Place>>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    worker: WorkerId,
    at: usize,
    level: usize,
}

impl LoadOrder {
    /// No workers.
    pub fn new() -> Self {
        LoadOrder::default()
    }

    /// Adds a worker at a level, or moves it there.
    pub fn insert(&mut self, worker: WorkerId, level: u32) {
        if self.place(worker).is_none() {
            if worker.index() >= self.places.len() {
                self.places.resize(worker.index() + 1, None);
            }
            // The end of the order is the highest level; from there it sinks to its own.
            let top = self.start.len().saturating_sub(1);
            if self.start.is_empty() {
                self.start.push(0);
            }
            let at = self.order.len();
            self.order.push(worker);
            self.places[worker.index()] = Some(Place { worker, at, level: top });
        }
        self.set(worker, level);
    }

    /// Moves a worker that is here to a level: O(1) for the next one up or down. Nothing happens for
    /// one that is not here.
    pub fn set(&mut self, worker: WorkerId, level: u32) {
        let level = level as usize;
        let Some(mut place) = self.place(worker) else { return };
        while self.start.len() <= level {
            self.start.push(self.order.len());
        }
        while place.level < level {
            let last = self.end(place.level) - 1;
            self.step_aside(last, place.at);
            self.start[place.level + 1] = last;
            place = Place { worker, at: last, level: place.level + 1 };
        }
        while place.level > level {
            let first = self.start[place.level];
            self.step_aside(first, place.at);
            self.start[place.level] = first + 1;
            place = Place { worker, at: first, level: place.level - 1 };
        }
        self.order[place.at] = worker;
        self.places[worker.index()] = Some(place);
    }

    /// The worker at a place goes to another one, whose own worker is on its way and comes to the first.
    fn step_aside(&mut self, from: usize, to: usize) {
        if from != to {
            let other = self.order[from];
            self.order[to] = other;
            if let Some(place) = &mut self.places[other.index()] {
                place.at = to;
            }
        }
    }

    /// Takes a worker out; nothing happens for one that is not here.
    pub fn remove(&mut self, worker: WorkerId) {
        if self.place(worker).is_none() {
            return;
        }
        let top = u32::try_from(self.start.len() - 1).unwrap_or(u32::MAX);
        self.set(worker, top);
        if let Some(place) = self.place(worker) {
            self.step_aside(self.order.len() - 1, place.at);
            self.order.pop();
            self.places[worker.index()] = None;
        }
    }

    /// The workers of the lowest level that has any, in no particular order.
    pub fn lowest(&self) -> &[WorkerId] {
        let Some(first) = self.order.first() else { return &[] };
        let level = self.place(*first).map_or(0, |place| place.level);
        &self.order[..self.end(level)]
    }

    /// The workers of a level, in no particular order.
    pub fn at(&self, level: u32) -> &[WorkerId] {
        let level = level as usize;
        let Some(start) = self.start.get(level) else { return &[] };
        &self.order[*start..self.end(level)]
    }

    /// All workers, the least loaded first, with their levels.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, u32)> {
        self.order
            .iter()
            .map(|worker| (*worker, self.place(*worker).map_or(0, |place| place.level as u32)))
    }

    /// One of the least loaded candidates, drawn uniformly; `None` when there is none. O(1), and O(n)
    /// when some are left out. Those in the order must be the ready workers.
    pub fn draw_lowest(&self, candidates: &Candidates<'_>, rng: &mut Rng) -> Option<WorkerId> {
        if candidates.len() == self.order.len() {
            let lowest = self.lowest();
            return match lowest.len() {
                0 => None,
                1 => Some(lowest[0]),
                n => Some(lowest[rng.below(n)]),
            };
        }
        let mut allowed = self.iter().filter(|(worker, _)| candidates.allows(*worker));
        let (mut chosen, least) = allowed.next()?;
        let equals = allowed.take_while(|(_, level)| *level == least);
        for (others, (worker, _)) in equals.enumerate() {
            if rng.below(others + 2) == 0 {
                chosen = worker;
            }
        }
        Some(chosen)
    }

    /// Keeps the ready workers in order of this balancer's requests in flight. To be told every event.
    pub fn observe(&mut self, event: &PolicyEvent<'_>, view: &ClusterView<'_>) {
        match *event {
            PolicyEvent::Joined { worker } | PolicyEvent::ReadyChanged { worker, ready: true } => {
                self.insert(worker, view.in_flight(worker));
            }
            PolicyEvent::Left { worker, .. }
            | PolicyEvent::ReadyChanged { worker, ready: false } => self.remove(worker),
            // Nothing happens for a worker that is not in the order.
            PolicyEvent::Dispatched { worker, .. } | PolicyEvent::Completed { worker, .. } => {
                self.set(worker, view.in_flight(worker));
            }
            _ => {}
        }
    }

    fn end(&self, level: usize) -> usize {
        self.start.get(level + 1).copied().unwrap_or(self.order.len())
    }

    fn place(&self, worker: WorkerId) -> Option<Place> {
        self.places.get(worker.index()).copied().flatten().filter(|place| place.worker == worker)
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::balancing::{Cluster, WorkerInfo};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_sorting(steps in proptest::collection::vec((0..8usize, 0..5u32, 0..4u8), 1..200)) {
            let mut cluster = Cluster::new();
            let workers: Vec<_> =
                (0..8).map(|i| cluster.join(WorkerInfo::new(format!("w{i}"), 1))).collect();
            let mut levels = [None; 8];
            let mut order = LoadOrder::new();
            for (i, level, what) in steps {
                if what == 0 {
                    order.remove(workers[i]);
                    levels[i] = None;
                } else {
                    order.insert(workers[i], level);
                    levels[i] = Some(level);
                }
                let mut expected: Vec<_> = levels
                    .iter()
                    .zip(&workers)
                    .filter_map(|(level, worker)| Some(((*level)?, *worker)))
                    .collect();
                expected.sort();
                let mut listed: Vec<_> = order.iter().map(|(worker, level)| (level, worker)).collect();
                prop_assert!(listed.is_sorted_by_key(|(level, _)| *level), "{listed:?}");
                listed.sort();
                prop_assert_eq!(&listed, &expected);
                let least = expected.first().map(|(level, _)| *level);
                let mut lowest: Vec<_> = order.lowest().to_vec();
                lowest.sort();
                let expected: Vec<_> =
                    expected.iter().filter(|(l, _)| Some(*l) == least).map(|(_, w)| *w).collect();
                prop_assert_eq!(lowest, expected);
                for level in 0..6 {
                    let expected = levels.iter().filter(|l| **l == Some(level)).count();
                    prop_assert_eq!(order.at(level).len(), expected);
                    prop_assert!(order.at(level).iter().all(|w| levels[w.index()] == Some(level)));
                }
            }
        }
    }
}
