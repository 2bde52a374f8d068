//! A waiting call's place in the queue policy's order, [`Key`]; and versions sorted by the place of one
//! of their calls, [`Order`].

use super::VersionId;

/// A place in the order of all that waits: by rank, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) rank: u64,
    pub(super) number: u64,
}

/// Which version comes first, by a key that each has. A binary heap that knows where each version is, so
/// that a key changes in O(log versions) and nothing is allocated once it has been as long.
#[derive(Debug, Default)]
pub(super) struct Order {
    heap: Vec<(Key, VersionId)>,
    /// Where a version is in the heap, by its number.
    places: Vec<u32>,
    /// The highest key comes first.
    newest_first: bool,
}

/// It is not in the heap.
const OUT: u32 = u32::MAX;

impl Order {
    /// The first version, and its key.
    pub(super) fn first(&self) -> Option<(Key, VersionId)> {
        self.heap.first().copied()
    }

    /// Enters a version, with another key if it is there already, or takes it out.
    pub(super) fn set(&mut self, id: VersionId, key: Option<Key>) {
        let at = id.0 as usize;
        let place = self.places.get(at).copied().unwrap_or(OUT);
        match (place, key) {
            (OUT, None) => {}
            (OUT, Some(key)) => {
                if at >= self.places.len() {
                    self.places.resize(at + 1, OUT);
                }
                self.heap.push((key, id));
                self.rise(self.heap.len() - 1, (key, id));
            }
            (place, Some(key)) => {
                let place = place as usize;
                if self.heap[place].0 != key {
                    self.settle(place, (key, id));
                }
            }
            (place, None) => {
                self.places[at] = OUT;
                let last = self.heap.pop().expect("it is in the heap");
                if last.1 != id {
                    self.settle(place as usize, last);
                }
            }
        }
    }

    /// Empties it, and turns it round.
    pub(super) fn clear(&mut self, newest_first: bool) {
        self.newest_first = newest_first;
        for (_, id) in self.heap.drain(..) {
            self.places[id.0 as usize] = OUT;
        }
    }

    fn before(&self, one: (Key, VersionId), other: (Key, VersionId)) -> bool {
        if self.newest_first { one > other } else { one < other }
    }

    fn settle(&mut self, place: usize, entry: (Key, VersionId)) {
        if place > 0 && self.before(entry, self.heap[(place - 1) / 2]) {
            self.rise(place, entry);
        } else {
            self.sink(place, entry);
        }
    }

    fn rise(&mut self, mut place: usize, entry: (Key, VersionId)) {
        while place > 0 {
            let above = (place - 1) / 2;
            if !self.before(entry, self.heap[above]) {
                break;
            }
            self.put(place, self.heap[above]);
            place = above;
        }
        self.put(place, entry);
    }

    fn sink(&mut self, mut place: usize, entry: (Key, VersionId)) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let Some(mut next) = self.heap.get(left).copied() else { break };
            let mut below = left;
            if let Some(other) = self.heap.get(right).copied()
                && self.before(other, next)
            {
                (next, below) = (other, right);
            }
            if !self.before(next, entry) {
                break;
            }
            self.put(place, next);
            place = below;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: (Key, VersionId)) {
        self.heap[place] = entry;
        self.places[entry.1.0 as usize] = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_is_that_of_a_map(
            ops in proptest::collection::vec((0..12u32, proptest::option::of(0..6u64)), 1..300),
            newest_first: bool,
        ) {
            let mut order = Order::default();
            order.clear(newest_first);
            let mut model = BTreeMap::<VersionId, Key>::new();
            for (n, (id, rank)) in ops.into_iter().enumerate() {
                let key = rank.map(|rank| Key { rank, number: n as u64 % 7 });
                order.set(VersionId(id), key);
                model.remove(&VersionId(id));
                model.extend(key.map(|key| (VersionId(id), key)));
                let entries = model.iter().map(|(id, key)| (*key, *id));
                let first = if newest_first { entries.max() } else { entries.min() };
                prop_assert_eq!(order.first(), first);
            }
            order.clear(!newest_first);
            prop_assert_eq!(order.first(), None);
            order.set(VersionId(3), Some(Key { rank: 1, number: 1 }));
            prop_assert_eq!(order.first(), Some((Key { rank: 1, number: 1 }, VersionId(3))));
        }
    }
}
