//! A map that does not allocate once it has grown: [`FixedMap`].

use openlambda_core::hash::mix;

/// From a 64-bit key to a small value, by open addressing with linear probing.
///
/// A B-tree allocates and frees nodes as its size goes up and down, and the standard hash map is
/// seeded at random. This one allocates only when it grows beyond its largest size so far, hashes
/// with the project's own fixed hash, and cannot be iterated over, so that no order of entries can
/// reach a decision. Keys are tickets, hashes of names, or two ids side by side.
///
/// Cost: O(1) on average; at most half of the places are taken.
///
/// Source: D. E. Knuth, The Art of Computer Programming 3, algorithms 6.4L and 6.4R: removal shifts
/// the entries behind back, so no markers of removed entries pile up.
///
/// ```
/// use openlambda_lb::policies::parts::FixedMap;
///
/// let mut sent_to = FixedMap::default();
/// sent_to.insert(7, "a");
/// sent_to.insert(7, "b");
/// assert_eq!((sent_to.get(7), sent_to.len()), (Some(&"b"), 1));
/// assert_eq!(sent_to.remove(7), Some("b"));
/// ```
#[derive(Clone, Debug)]
pub struct FixedMap<V> {
    /// Their number is a power of two, or 0.
    places: Vec<Option<(u64, V)>>,
    len: usize,
}

impl<V> Default for FixedMap<V> {
    fn default() -> Self {
        FixedMap { places: Vec::new(), len: 0 }
    }
}

impl<V> FixedMap<V> {
    /// How many keys have a value.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key has a value.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of a key.
    pub fn get(&self, key: u64) -> Option<&V> {
        let (_, value) = self.places[self.find(key)?].as_ref()?;
        Some(value)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        let at = self.find(key)?;
        let (_, value) = self.places[at].as_mut()?;
        Some(value)
    }

    /// Sets the value of a key; the one that it had is dropped.
    pub fn insert(&mut self, key: u64, value: V) {
        if let Some(present) = self.get_mut(key) {
            *present = value;
            return;
        }
        if 2 * (self.len + 1) > self.places.len() {
            self.grow();
        }
        self.put(key, value);
        self.len += 1;
    }

    /// Takes a key out, and returns its value.
    pub fn remove(&mut self, key: u64) -> Option<V> {
        let mut hole = self.find(key)?;
        let (_, value) = self.places[hole].take()?;
        self.len -= 1;
        let mask = self.places.len() - 1;
        let mut next = (hole + 1) & mask;
        while let Some((key, _)) = &self.places[next] {
            // An entry may move back to the hole unless its home lies behind the hole.
            let from_home = next.wrapping_sub(self.home(*key)) & mask;
            if from_home >= next.wrapping_sub(hole) & mask {
                self.places[hole] = self.places[next].take();
                hole = next;
            }
            next = (next + 1) & mask;
        }
        Some(value)
    }

    fn home(&self, key: u64) -> usize {
        mix(key, 0) as usize & (self.places.len() - 1)
    }

    fn find(&self, key: u64) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.home(key);
        while let Some((present, _)) = &self.places[at] {
            if *present == key {
                return Some(at);
            }
            at = (at + 1) & (self.places.len() - 1);
        }
        None
    }

    /// For a key that is not there, with room.
    fn put(&mut self, key: u64, value: V) {
        let mut at = self.home(key);
        while self.places[at].is_some() {
            at = (at + 1) & (self.places.len() - 1);
        }
        self.places[at] = Some((key, value));
    }

    #[cold]
    fn grow(&mut self) {
        let size = (2 * self.places.len()).max(16);
        let old = std::mem::take(&mut self.places);
        self.places.resize_with(size, || None);
        for (key, value) in old.into_iter().flatten() {
            self.put(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_b_tree(steps in proptest::collection::vec((0..40u64, any::<bool>()), 1..400)) {
            let mut map = FixedMap::default();
            let mut model = BTreeMap::new();
            for (n, (key, insert)) in steps.into_iter().enumerate() {
                if insert {
                    map.insert(key, n);
                    model.insert(key, n);
                } else {
                    prop_assert_eq!(map.remove(key), model.remove(&key));
                }
                prop_assert_eq!(map.len(), model.len());
                for key in 0..40 {
                    prop_assert_eq!(map.get(key), model.get(&key));
                }
            }
        }
    }
}
