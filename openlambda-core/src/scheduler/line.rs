//! A queue that is sorted by rank: [`Line`].

use std::collections::BTreeMap;

use crate::arena::{List, Lists};

/// Slots by rank, those with the same rank in the order in which they came.
///
/// Each rank is a list of those who have it. Nearly always one rank is there (with the queue policy
/// `fifo` never more), and then every operation is O(1), and O(log ranks) else. Nothing is allocated
/// while there is one rank.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Those with the lowest rank, and that rank. Empty only if all is.
    lowest: List,
    rank: u64,
    /// The others, by rank; none of the lists is empty.
    #[expect(clippy::box_collection, reason = "there are many lines, and few with several ranks")]
    rest: Option<Box<BTreeMap<u64, List>>>,
}

impl Line {
    /// The first of the lowest rank.
    pub(super) fn first(&self) -> Option<u32> {
        self.lowest.first()
    }

    /// The last of the highest rank.
    pub(super) fn last(&self) -> Option<u32> {
        let rest = self.rest.as_ref().and_then(|rest| rest.last_key_value());
        rest.map_or(&self.lowest, |(_, list)| list).last()
    }

    /// The slot with so many before it, from the first or from the last. O(that many).
    pub(super) fn nth(&self, links: &Lists, place: u32, from_last: bool) -> Option<u32> {
        let rest = self.rest.iter().flat_map(|rest| rest.values());
        let place = place as usize;
        if from_last {
            let lists = rest.rev().chain([&self.lowest]);
            lists.flat_map(|list| links.iter_back(*list)).nth(place)
        } else {
            let lists = [&self.lowest].into_iter().chain(rest);
            lists.flat_map(|list| links.iter(*list)).nth(place)
        }
    }

    /// Enters a slot that is in none of the lines that share these links.
    pub(super) fn push(&mut self, links: &mut Lists, rank: u64, slot: u32) {
        if self.lowest.is_empty() {
            self.rank = rank;
        }
        if rank < self.rank {
            let lowest = std::mem::take(&mut self.lowest);
            let before = std::mem::replace(&mut self.rank, rank);
            self.rest.get_or_insert_default().insert(before, lowest);
        }
        let list = match rank == self.rank {
            true => &mut self.lowest,
            false => self.rest.get_or_insert_default().entry(rank).or_default(),
        };
        links.push_back(list, slot);
    }

    /// Takes out a slot that is here with this rank.
    pub(super) fn remove(&mut self, links: &mut Lists, rank: u64, slot: u32) {
        if rank == self.rank {
            links.remove(&mut self.lowest, slot);
            if self.lowest.is_empty()
                && let Some((rank, list)) = self.rest.as_mut().and_then(|rest| rest.pop_first())
            {
                (self.rank, self.lowest) = (rank, list);
            }
        } else if let Some(rest) = &mut self.rest
            && let Some(list) = rest.get_mut(&rank)
        {
            links.remove(list, slot);
            if list.is_empty() {
                rest.remove(&rank);
            }
        }
        if self.rest.as_ref().is_some_and(|rest| rest.is_empty()) {
            self.rest = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Ranks that come in any order, and slots that leave from anywhere.
        #[test]
        fn a_line_is_as_a_sorted_vector(
            ops in proptest::collection::vec((0..12u32, 0..4u64), 1..200),
        ) {
            let mut links = Lists::default();
            let mut line = Line::default();
            let mut model: Vec<(u64, usize, u32)> = Vec::new();
            for (n, (slot, rank)) in ops.into_iter().enumerate() {
                match model.iter().position(|(_, _, other)| *other == slot) {
                    Some(at) => {
                        let (rank, ..) = model.remove(at);
                        line.remove(&mut links, rank, slot);
                    }
                    None => {
                        line.push(&mut links, rank, slot);
                        model.push((rank, n, slot));
                        model.sort_unstable();
                    }
                }
                prop_assert_eq!(line.first(), model.first().map(|(_, _, slot)| *slot));
                prop_assert_eq!(line.last(), model.last().map(|(_, _, slot)| *slot));
                for place in 0..=model.len() {
                    let slot = model.get(place).map(|(_, _, slot)| *slot);
                    prop_assert_eq!(line.nth(&links, place as u32, false), slot);
                    let slot = model.iter().rev().nth(place).map(|(_, _, slot)| *slot);
                    prop_assert_eq!(line.nth(&links, place as u32, true), slot);
                }
                let ranks: BTreeSet<u64> = model.iter().map(|(rank, ..)| *rank).collect();
                let others = line.rest.as_ref().map_or(0, |rest| rest.len());
                prop_assert_eq!(others, ranks.len().saturating_sub(1));
            }
        }
    }
}
