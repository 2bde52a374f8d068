//! Linked lists over a table's slots: an element is inserted or removed anywhere in O(1), without an
//! allocation of its own.

/// The links of lists whose elements are slots of one table. A slot is in at most one of the lists
/// that share these links.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    links: Vec<Link>,
}

/// One list. It knows its ends; [`Lists`] knows what is between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    first: u32,
    last: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Link {
    before: u32,
    after: u32,
}

/// There is no element on this side.
const NONE: u32 = u32::MAX;

/// The slot is in no list.
const OUT: Link = Link { before: NONE - 1, after: NONE - 1 };

impl List {
    pub(crate) fn first(&self) -> Option<u32> {
        some(self.first)
    }

    pub(crate) fn last(&self) -> Option<u32> {
        some(self.last)
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for List {
    fn default() -> Self {
        List { first: NONE, last: NONE, len: 0 }
    }
}

impl Lists {
    /// Whether the slot is in any of the lists.
    pub(crate) fn contains(&self, slot: u32) -> bool {
        self.links.get(slot as usize).is_some_and(|link| *link != OUT)
    }

    /// The element before this one.
    pub(crate) fn before(&self, slot: u32) -> Option<u32> {
        some(self.links[slot as usize].before)
    }

    /// From the first to the last.
    pub(crate) fn iter(&self, list: List) -> impl Iterator<Item = u32> {
        std::iter::successors(list.first(), |slot| some(self.links[*slot as usize].after))
    }

    /// From the last to the first.
    pub(crate) fn iter_back(&self, list: List) -> impl Iterator<Item = u32> {
        std::iter::successors(list.last(), |slot| self.before(*slot))
    }

    /// Appends a slot that is in no list.
    pub(crate) fn push_back(&mut self, list: &mut List, slot: u32) {
        self.insert_after(list, list.last(), slot);
    }

    /// Puts a slot that is in no list after an element of this one, or before all.
    pub(crate) fn insert_after(&mut self, list: &mut List, before: Option<u32>, slot: u32) {
        if slot as usize >= self.links.len() {
            self.links.resize(slot as usize + 1, OUT);
        }
        debug_assert!(!self.contains(slot), "{slot} is in a list already");
        let before = before.unwrap_or(NONE);
        let next = match before {
            NONE => &mut list.first,
            _ => &mut self.links[before as usize].after,
        };
        let after = std::mem::replace(next, slot);
        match after {
            NONE => list.last = slot,
            _ => self.links[after as usize].before = slot,
        }
        self.links[slot as usize] = Link { before, after };
        list.len += 1;
    }

    /// Takes a slot out of the list that it is in.
    pub(crate) fn remove(&mut self, list: &mut List, slot: u32) {
        debug_assert!(self.contains(slot), "{slot} is in no list");
        let Link { before, after } = std::mem::replace(&mut self.links[slot as usize], OUT);
        match before {
            NONE => list.first = after,
            _ => self.links[before as usize].after = after,
        }
        match after {
            NONE => list.last = before,
            _ => self.links[after as usize].before = before,
        }
        list.len -= 1;
    }
}

fn some(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_are_as_vectors(
            ops in proptest::collection::vec((0..3usize, 0..12u32, 0..12usize), 1..200),
        ) {
            let mut lists = Lists::default();
            let mut heads = [List::default(); 3];
            let mut model = [const { Vec::new() }; 3];
            for (list, slot, place) in ops {
                match model.iter().position(|list| list.contains(&slot)) {
                    Some(list) => {
                        lists.remove(&mut heads[list], slot);
                        model[list].retain(|other| *other != slot);
                    }
                    // Places beyond the end append.
                    None if place >= model[list].len() => {
                        lists.push_back(&mut heads[list], slot);
                        model[list].push(slot);
                    }
                    None => {
                        let before = place.checked_sub(1).map(|place| model[list][place]);
                        lists.insert_after(&mut heads[list], before, slot);
                        model[list].insert(place, slot);
                    }
                }
                for (head, model) in heads.iter().zip(&model) {
                    prop_assert_eq!(&lists.iter(*head).collect::<Vec<_>>(), model);
                    let mut back: Vec<_> = lists.iter_back(*head).collect();
                    back.reverse();
                    prop_assert_eq!(&back, model);
                    prop_assert_eq!(head.len() as usize, model.len());
                    prop_assert_eq!(head.is_empty(), model.is_empty());
                    prop_assert_eq!((head.first(), head.last()), (model.first().copied(), model.last().copied()));
                }
                for slot in 0..14 {
                    let is_in = model.iter().any(|list| list.contains(&slot));
                    prop_assert_eq!(lists.contains(slot), is_in);
                }
            }
        }
    }
}
