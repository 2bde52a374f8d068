//! [`Owned`]: [`Slots`](super::Slots) for values that own memory.

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
        let slot = super::slot_of(id) as usize;
        if slot >= self.places.len() {
            self.places.resize_with(slot + 1, || None);
        }
        assert!(self.places[slot].is_none(), "slot {slot} was given to {id:#x} while it is taken");
        self.places[slot] = Some((id, value));
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let (held, value) = self.places.get(super::slot_of(id) as usize)?.as_ref()?;
        (*held == id).then_some(value)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (held, value) = self.places.get_mut(super::slot_of(id) as usize)?.as_mut()?;
        (*held == id).then_some(value)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let place = self.places.get_mut(super::slot_of(id) as usize)?;
        Some(place.take_if(|(held, _)| *held == id)?.1)
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
}
