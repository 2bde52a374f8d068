//! Wishes for memory for one more instance: served in the order of the queue policy over all functions,
//! with `fifo` first come, first served, and taken back latest first by the function that made them.

use super::VersionId;
use super::line::Line;
use super::queueing::Key;
use crate::arena::{List, Lists};
use crate::time::Time;

/// The wishes of all versions in their order. Every operation is O(1), with several ranks O(log ranks).
#[derive(Debug, Default)]
pub(super) struct Wishes {
    wishes: Vec<Wish>,
    free: Vec<u32>,
    /// Of all wishes, by rank.
    order: Line,
    order_links: Lists,
    /// Of each version, in the order in which it made them.
    own_links: Lists,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) version: VersionId,
    pub(super) since: Time,
    /// The place of the call for which it was made.
    pub(super) key: Key,
}

/// What a version knows of its wishes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    wishes: List,
}

impl Own {
    pub(super) fn count(&self) -> u32 {
        self.wishes.len()
    }
}

impl Wishes {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whose turn it is; with the highest rank, if `newest_first`.
    pub(super) fn first(&self, newest_first: bool) -> Option<Wish> {
        let first = if newest_first { self.order.last() } else { self.order.first() };
        first.map(|slot| self.wishes[slot as usize])
    }

    /// The version makes one more.
    pub(super) fn push(&mut self, own: &mut Own, version: VersionId, key: Key, now: Time) {
        let wish = Wish { version, since: now, key };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.wishes[slot as usize] = wish;
                slot
            }
            None => {
                self.wishes.push(wish);
                self.wishes.len() as u32 - 1
            }
        };
        self.order.push(&mut self.order_links, key.rank, slot);
        self.own_links.push_back(&mut own.wishes, slot);
    }

    /// The first one is granted, whose version's `own` must be given.
    pub(super) fn pop(&mut self, own: &mut Own, newest_first: bool) {
        let first = if newest_first { self.order.last() } else { self.order.first() };
        if let Some(slot) = first {
            self.remove(own, slot);
        }
    }

    /// The version takes its latest ones back until it has this many.
    pub(super) fn shrink(&mut self, own: &mut Own, count: u32) {
        while own.count() > count
            && let Some(newest) = own.wishes.last()
        {
            self.remove(own, newest);
        }
    }

    fn remove(&mut self, own: &mut Own, slot: u32) {
        let rank = self.wishes[slot as usize].key.rank;
        self.order.remove(&mut self.order_links, rank, slot);
        self.own_links.remove(&mut own.wishes, slot);
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn wishes_are_as_in_a_vector(
            ops in proptest::collection::vec((0..4usize, 0..5u32), 1..200),
            ranks in 0..2u64,
            newest_first: bool,
        ) {
            let mut wishes = Wishes::default();
            let mut owns = [Own::default(); 3];
            let mut model: Vec<(VersionId, Key)> = Vec::new();
            for (n, (version, count)) in ops.into_iter().enumerate() {
                let id = VersionId(version as u32);
                model.sort_by_key(|wish| wish.1);
                match (owns.get_mut(version), wishes.first(newest_first)) {
                    (Some(own), _) if count > own.count() => {
                        // A rank that does not come in order.
                        let key = Key { rank: ranks * (n as u64 * 7 % 3), number: n as u64 };
                        wishes.push(own, id, key, Time(n as u64));
                        model.push((id, key));
                    }
                    (Some(own), _) => {
                        wishes.shrink(own, count);
                        let of = |model: &Vec<(VersionId, Key)>| {
                            let of = model.iter().filter(|wish| wish.0 == id);
                            of.map(|wish| wish.1.number).collect::<Vec<_>>()
                        };
                        while of(&model).len() > count as usize {
                            let newest = of(&model).into_iter().max().unwrap();
                            model.retain(|wish| wish.1.number != newest);
                        }
                    }
                    (None, Some(first)) => {
                        wishes.pop(&mut owns[first.version.0 as usize], newest_first);
                        model.remove(if newest_first { model.len() - 1 } else { 0 });
                    }
                    (None, None) => {}
                }
                model.sort_by_key(|wish| wish.1);
                let first = if newest_first { model.last() } else { model.first() };
                let found = wishes.first(newest_first).map(|wish| (wish.version, wish.key));
                prop_assert_eq!(found, first.copied());
                prop_assert_eq!(wishes.is_empty(), model.is_empty());
                for (own, version) in owns.iter().zip(0..) {
                    let expected = model.iter().filter(|wish| wish.0.0 == version).count();
                    prop_assert_eq!(own.count() as usize, expected);
                }
            }
        }
    }
}
