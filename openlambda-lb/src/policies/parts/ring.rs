//! A consistent-hash ring over workers: [`Ring`].

use openlambda_core::balancing::WorkerId;
use openlambda_core::hash::mix;

/// Points on a circle of 2⁶⁴, several for each worker; a key belongs to the first point clockwise.
///
/// Points hash the worker's stable name, never its id or the order of joining, so every balancer and
/// every run has the same ring. When one of n workers comes or goes, about 1/n of the keys move, all
/// of them to or from that worker.
///
/// Cost: a look-up is O(1) on average (a table over the leading bits of the hash says where to begin
/// in the sorted points) and O(log points) at worst. Changes are collected and carried out together
/// by [`settle`](Self::settle): O(points), so a thousand workers that join at once cost one sort.
///
/// Source: D. Karger et al., Consistent Hashing and Random Trees, STOC 1997.
///
/// [`WorkerRing`](super::WorkerRing) is one that follows the workers' coming and going.
///
/// ```
/// use openlambda_core::balancing::{Cluster, WorkerInfo};
/// use openlambda_lb::policies::parts::Ring;
///
/// let mut cluster = Cluster::new();
/// let mut ring = Ring::new();
/// for name in ["a", "b"] {
///     let worker = cluster.join(WorkerInfo::new(name, 8));
///     let name_hash = cluster.view().worker(worker).unwrap().name_hash();
///     ring.insert(worker, name_hash, 100);
/// }
/// ring.settle();
/// assert_eq!(ring.walk(7).count(), 200);
/// let home = ring.walk(7).next().unwrap();
/// ring.remove(home);
/// ring.settle();
/// assert_ne!(ring.walk(7).next(), Some(home));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Ring {
    points: Vec<Point>,
    /// `starts[h >> shift]`: the first point whose hash has at least these leading bits.
    starts: Vec<u32>,
    shift: u32,
    added: Vec<Point>,
    removed: Vec<WorkerId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    hash: u64,
    worker: WorkerId,
}

impl Ring {
    /// An empty ring.
    pub fn new() -> Self {
        Ring::default()
    }

    /// Adds a worker with so many points. Takes effect with [`settle`](Self::settle).
    pub fn insert(&mut self, worker: WorkerId, name_hash: u64, points: u32) {
        let point = |i| Point { hash: mix(name_hash, u64::from(i) + 1), worker };
        self.added.extend((0..points).map(point));
    }

    /// Takes a worker out. Takes effect with [`settle`](Self::settle).
    pub fn remove(&mut self, worker: WorkerId) {
        self.removed.push(worker);
    }

    /// Carries out what `insert` and `remove` noted. Nothing noted: costs nothing.
    pub fn settle(&mut self) {
        if self.added.is_empty() && self.removed.is_empty() {
            return;
        }
        self.points.append(&mut self.added);
        if !self.removed.is_empty() {
            self.removed.sort();
            let removed = &self.removed;
            self.points.retain(|point| removed.binary_search(&point.worker).is_err());
            self.removed.clear();
        }
        // The stable sort finds the long sorted run that the old points are.
        self.points.sort();
        // About one point for each entry of the table.
        let bits = self.points.len().max(1).next_power_of_two().ilog2().clamp(1, 24);
        self.shift = 64 - bits;
        self.starts.clear();
        let mut next = 0;
        for prefix in 0..1u64 << bits {
            while self.points.get(next).is_some_and(|p| p.hash >> self.shift < prefix) {
                next += 1;
            }
            self.starts.push(u32::try_from(next).expect("fewer than 2^32 points"));
        }
    }

    /// Points of all workers.
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Whether no worker has a point.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// The workers clockwise from `key`, each as often as it has points; once around.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = WorkerId> {
        let first = self.first(key);
        let (before, after) = self.points.split_at(first);
        after.iter().chain(before).map(|point| point.worker)
    }

    /// The place of the first point at or after `key`; the end stands for the first of all.
    fn first(&self, key: u64) -> usize {
        let Some(start) = self.starts.get((key >> self.shift.min(63)) as usize) else { return 0 };
        let start = *start as usize;
        // Nearly always within a step or two; a crowded stretch is searched by halves.
        match self.points[start..].iter().take(8).position(|point| point.hash >= key) {
            Some(steps) => start + steps,
            None => start + self.points[start..].partition_point(|point| point.hash < key),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use openlambda_core::balancing::{Cluster, WorkerInfo};
    use openlambda_core::random::Rng;

    use super::*;

    const KEYS: usize = 20_000;

    struct Named {
        cluster: Cluster,
        ring: Ring,
        points: u32,
    }

    impl Named {
        fn new(names: impl IntoIterator<Item = usize>) -> Self {
            let mut named = Named { cluster: Cluster::new(), ring: Ring::new(), points: 100 };
            for name in names {
                named.join(name);
            }
            named
        }

        fn join(&mut self, name: usize) {
            let worker = self.cluster.join(WorkerInfo::new(format!("w{name}"), 1));
            let hash = self.cluster.view().worker(worker).unwrap().name_hash();
            self.ring.insert(worker, hash, self.points);
        }

        fn leave(&mut self, name: usize) {
            let worker = self.cluster.view().named(&format!("w{name}")).unwrap();
            self.cluster.leave(worker);
            self.ring.remove(worker);
        }

        /// The owner's name of each of many keys.
        fn owners(&mut self) -> Vec<String> {
            self.ring.settle();
            let mut rng = Rng::from_seed(5);
            let view = self.cluster.view();
            (0..KEYS)
                .map(|_| {
                    let worker = self.ring.walk(rng.next_u64()).next().unwrap();
                    view.worker(worker).unwrap().name().to_owned()
                })
                .collect()
        }
    }

    #[test]
    fn look_up_agrees_with_searching_all_points() {
        for workers in [0, 1, 2, 50] {
            let mut named = Named::new(0..workers);
            named.ring.settle();
            let mut rng = Rng::from_seed(1);
            let edges = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1];
            let at_points: Vec<u64> = named.ring.points.iter().map(|point| point.hash).collect();
            let keys = (0..1000).map(|_| rng.next_u64()).chain(edges).chain(at_points);
            for key in keys {
                let expected = named.ring.points.partition_point(|point| point.hash < key);
                assert_eq!(named.ring.first(key), expected);
            }
            assert_eq!(named.ring.walk(7).count(), named.ring.len());
        }
    }

    /// A ring that hashes ids or the order of joining places keys differently in each run.
    #[test]
    fn owners_do_not_depend_on_the_order_of_joining() {
        let mut forward = Named::new(0..20);
        let mut backward = Named::new((0..20).rev());
        // And not on slots: these have been used before.
        let mut reused = Named::new(50..70);
        reused.ring.settle();
        (50..70).for_each(|name| reused.leave(name));
        (0..20).for_each(|name| reused.join(name));
        let owners = forward.owners();
        assert_eq!(owners, backward.owners());
        assert_eq!(owners, reused.owners());
    }

    #[test]
    fn about_an_nth_of_the_keys_moves_and_none_between_those_that_stay() {
        let mut named = Named::new(0..20);
        let before = named.owners();
        named.join(20);
        let with = named.owners();
        let moved: Vec<_> = before.iter().zip(&with).filter(|(a, b)| a != b).collect();
        assert!(moved.iter().all(|(_, to)| *to == "w20"), "keys moved between those that stayed");
        let share = moved.len() as f64 / KEYS as f64;
        assert!((0.5 / 21.0..1.6 / 21.0).contains(&share), "{share} of the keys moved");
        named.leave(20);
        assert_eq!(named.owners(), before, "when it leaves, all its keys go back");
        named.leave(7);
        for (before, after) in before.iter().zip(named.owners()) {
            assert!(*before == after || before == "w7");
            assert_ne!(after, "w7");
        }
    }

    #[test]
    fn shares_are_even_and_follow_the_number_of_points() {
        let mut named = Named::new(0..19);
        named.points = 200;
        named.join(19);
        let mut shares = BTreeMap::new();
        for owner in named.owners() {
            *shares.entry(owner).or_insert(0.0) += 21.0 / KEYS as f64;
        }
        for (name, share) in shares {
            let expected = if name == "w19" { 2.0 } else { 1.0 };
            assert!((0.6..1.5).contains(&(share / expected)), "{name} has {share} times its share");
        }
    }

    #[test]
    fn one_that_came_and_went_between_two_look_ups_leaves_nothing() {
        let mut named = Named::new(0..3);
        named.join(9);
        named.leave(9);
        named.ring.settle();
        assert_eq!(named.ring.len(), 300);
    }
}
