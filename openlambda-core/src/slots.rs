//! Values by ids whose low half is a dense slot, and whose high half tells apart who has it in turn.

/// See the module's documentation. All operations are O(1).
#[derive(Debug)]
pub(crate) struct Slots<T> {
    places: Vec<Option<(u64, T)>>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { places: Vec::new() }
    }
}

impl<T> Slots<T> {
    pub(crate) fn insert(&mut self, id: u64, value: T) {
        let at = slot(id);
        if at >= self.places.len() {
            self.places.resize_with(at + 1, || None);
        }
        self.places[at] = Some((id, value));
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let (held, value) = self.places.get(slot(id))?.as_ref()?;
        (*held == id).then_some(value)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (held, value) = self.places.get_mut(slot(id))?.as_mut()?;
        (*held == id).then_some(value)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let place = self.places.get_mut(slot(id))?;
        Some(place.take_if(|(held, _)| *held == id)?.1)
    }
}

const fn slot(id: u64) -> usize {
    id as u32 as usize
}
