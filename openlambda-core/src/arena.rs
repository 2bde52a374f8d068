//! Tables that reuse their slots. An id is an index with a generation, which tells apart the values
//! that a slot has held; so values that come and go all the time allocate nothing.
//!
//! [`Slots`] (and [`Owned`], for values that own memory) takes ids that its user gives out, [`Arena`]
//! (and [`OwnedArena`]) gives them out itself, and [`Lists`] links the slots of either into lists. Every
//! operation is O(1).

mod list;
mod owned;

pub(crate) use list::{List, Lists};
pub(crate) use owned::{Owned, OwnedArena};

/// An id's slot: its low half. The high half is the slot's generation.
pub(crate) const fn slot_of(id: u64) -> u32 {
    id as u32
}

const fn generation_of(id: u64) -> u32 {
    (id >> 32) as u32
}

const fn id_of(generation: u32, slot: u32) -> u64 {
    (generation as u64) << 32 | slot as u64
}

/// Values under ids that the user of the table gives out. The ids must be dense, and a slot that is used
/// again must get a new generation.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    entries: Vec<Entry<T>>,
    len: u32,
}

/// A free slot keeps its last value, which cannot be reached: looking up an id is one comparison.
#[derive(Clone, Copy, Debug)]
struct Entry<T> {
    /// The id that has the slot. Where it is free, the inverse of the one that had it last: that is no
    /// id of this slot.
    id: u64,
    value: T,
}

impl<T: Copy> Slots<T> {
    /// # Panics
    ///
    /// When the slot is taken: the code that gives the ids out has an error.
    pub(crate) fn insert(&mut self, id: u64, value: T) {
        let slot = slot_of(id) as usize;
        while slot >= self.entries.len() {
            let free = !(self.entries.len() as u64);
            self.entries.push(Entry { id: free, value });
        }
        let entry = &mut self.entries[slot];
        let taken = slot_of(entry.id) == slot_of(id);
        assert!(!taken, "slot {slot} was given to {id:#x} while {:#x} has it", entry.id);
        *entry = Entry { id, value };
        self.len += 1;
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let entry = self.entries.get_mut(slot_of(id) as usize).filter(|entry| entry.id == id)?;
        entry.id = !id;
        self.len -= 1;
        Some(entry.value)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let entry = self.entries.get(slot_of(id) as usize)?;
        (entry.id == id).then_some(&entry.value)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let entry = self.entries.get_mut(slot_of(id) as usize)?;
        (entry.id == id).then_some(&mut entry.value)
    }

    /// The id that has this slot.
    pub(crate) fn id_at(&self, slot: u32) -> Option<u64> {
        let entry = self.entries.get(slot as usize)?;
        (slot_of(entry.id) == slot).then_some(entry.id)
    }

    /// How many slots are taken.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// In the order of the slots, which says nothing about the order of insertion. O(slots).
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let entries = (0u32..).zip(&self.entries);
        let taken = entries.filter(|(slot, entry)| slot_of(entry.id) == *slot);
        taken.map(|(_, entry)| (entry.id, &entry.value))
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { entries: Vec::new(), len: 0 }
    }
}

/// Values under ids that it gives out: 0, 1, 2, …, then slots that are free again, each time with the
/// next generation.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    slots: Slots<T>,
    free: Vec<u32>,
}

impl<T: Copy> Arena<T> {
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let id = match self.free.pop() {
            Some(slot) => {
                let last = !self.slots.entries[slot as usize].id;
                id_of(generation_of(last).wrapping_add(1), slot)
            }
            None => id_of(0, self.slots.entries.len() as u32),
        };
        self.slots.insert(id, value);
        id
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let value = self.slots.remove(id)?;
        self.free.push(slot_of(id));
        Some(value)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        self.slots.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.slots.get_mut(id)
    }

    /// The id that has this slot.
    pub(crate) fn id_at(&self, slot: u32) -> Option<u64> {
        self.slots.id_at(slot)
    }

    pub(crate) fn len(&self) -> u32 {
        self.slots.len()
    }

    /// As [`Slots::iter`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter()
    }
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Arena { slots: Slots::default(), free: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_of_another_generation_is_unknown() {
        let mut slots = Slots::default();
        slots.insert(id_of(4, 2), 'a');
        for other in [id_of(3, 2), id_of(5, 2), id_of(4, 1), id_of(4, 9), u64::MAX] {
            assert_eq!(slots.get(other), None);
            assert_eq!(slots.get_mut(other), None);
            assert_eq!(slots.remove(other), None);
        }
        assert_eq!((slots.len(), slots.id_at(2), slots.id_at(1)), (1, Some(id_of(4, 2)), None));
        assert_eq!(slots.remove(id_of(4, 2)), Some('a'));
        assert_eq!(slots.remove(id_of(4, 2)), None);
        slots.insert(id_of(5, 2), 'b');
        assert_eq!((slots.get(id_of(4, 2)), slots.get(id_of(5, 2))), (None, Some(&'b')));
    }

    #[test]
    #[should_panic(expected = "slot 7 was given to 0x100000007 while 0x7 has it")]
    fn a_slot_has_one_id_at_a_time() {
        let mut slots = Slots::default();
        slots.insert(7, ());
        slots.insert(id_of(1, 7), ());
    }

    proptest! {
        #[test]
        fn an_arena_is_a_map_whose_ids_never_come_again(
            ops in proptest::collection::vec((any::<bool>(), 0..64usize), 1..200),
        ) {
            let mut arena = Arena::default();
            let mut model = BTreeMap::new();
            let mut seen = BTreeSet::new();
            let mut most = 0;
            for (n, (insert, choice)) in ops.into_iter().enumerate() {
                if insert {
                    let id = arena.insert(n);
                    prop_assert!(seen.insert(id), "an id came again");
                    model.insert(id, n);
                    most = most.max(model.len());
                    prop_assert!((slot_of(id) as usize) < most, "a slot more than were needed");
                } else if let Some(id) = seen.iter().nth(choice % seen.len().max(1)) {
                    prop_assert_eq!(arena.remove(*id), model.remove(id));
                }
                prop_assert_eq!(arena.len() as usize, model.len());
                for id in &seen {
                    prop_assert_eq!(arena.get(*id), model.get(id));
                }
                let mut left: Vec<_> = model.iter().map(|(id, value)| (*id, value)).collect();
                left.sort_by_key(|(id, _)| slot_of(*id));
                prop_assert_eq!(arena.iter().collect::<Vec<_>>(), left);
            }
        }
    }
}
