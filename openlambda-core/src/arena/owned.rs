//! [`Owned`] and [`OwnedArena`]: [`Slots`](super::Slots) and [`Arena`](super::Arena) for values that own
//! memory.

use super::{generation_of, id_of, slot_of};

/// Values under ids that the user of the table gives out, as in [`Slots`](super::Slots); what is taken out of
/// a slot is gone from it.
#[derive(Debug)]
pub(crate) struct Owned<T> {
    places: Vec<Option<(u64, T)>>,
}

impl<T> Default for Owned<T> {
    fn default() -> Self {
        Owned { places: Vec::new() }
    }
}

#[cfg_attr(not(feature = "worker"), allow(dead_code, reason = "the worker alone looks values up"))]
impl<T> Owned<T> {
    /// # Panics
    ///
    /// When the slot is taken: the code that gives the ids out has an error.
    pub(crate) fn insert(&mut self, id: u64, value: T) {
        let slot = slot_of(id) as usize;
        if slot >= self.places.len() {
            self.places.resize_with(slot + 1, || None);
        }
        assert!(self.places[slot].is_none(), "slot {slot} was given to {id:#x} while it is taken");
        self.places[slot] = Some((id, value));
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let (held, value) = self.places.get(slot_of(id) as usize)?.as_ref()?;
        (*held == id).then_some(value)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (held, value) = self.places.get_mut(slot_of(id) as usize)?.as_mut()?;
        (*held == id).then_some(value)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let place = self.places.get_mut(slot_of(id) as usize)?;
        Some(place.take_if(|(held, _)| *held == id)?.1)
    }
}

/// Values under ids that it gives out, as in [`Arena`](super::Arena): 0, 1, 2, …, then slots that are
/// free again, each time with the next generation.
#[derive(Debug)]
pub(crate) struct OwnedArena<T> {
    values: Owned<T>,
    /// The next ids of slots that are free.
    free: Vec<u64>,
}

impl<T> Default for OwnedArena<T> {
    fn default() -> Self {
        OwnedArena { values: Owned::default(), free: Vec::new() }
    }
}

impl<T> OwnedArena<T> {
    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let id = self.free.pop().unwrap_or(self.values.places.len() as u64);
        self.values.insert(id, value);
        id
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        self.values.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.values.get_mut(id)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let value = self.values.remove(id)?;
        self.free.push(id_of(generation_of(id).wrapping_add(1), slot_of(id)));
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_id_and_once() {
        let mut owned = Owned::default();
        let (first, second) = (3, 1 << 32 | 3);
        owned.insert(first, "a".to_owned());
        assert_eq!((owned.get(first).map(String::as_str), owned.get(second)), (Some("a"), None));
        assert_eq!(owned.remove(second), None);
        assert_eq!(owned.remove(first).as_deref(), Some("a"));
        owned.insert(second, "b".to_owned());
        owned.get_mut(second).unwrap().push('c');
        assert_eq!(owned.get(first), None);
        assert_eq!(owned.remove(second).as_deref(), Some("bc"));
        assert_eq!(owned.remove(second), None);
    }

    #[test]
    fn an_arena_gives_a_slot_out_again_under_another_id() {
        let mut arena = OwnedArena::default();
        let ids = ["a", "b"].map(|text| arena.insert(text.to_owned()));
        assert_eq!(ids, [0, 1]);
        assert_eq!(arena.remove(0).as_deref(), Some("a"));
        assert_eq!(arena.remove(0), None);
        assert_eq!([arena.insert("c".to_owned()), arena.insert("d".to_owned())], [1 << 32, 2]);
        assert_eq!((arena.get(0), arena.get(1 << 32).map(String::as_str)), (None, Some("c")));
        assert_eq!(arena.remove(1).as_deref(), Some("b"));
    }
}
