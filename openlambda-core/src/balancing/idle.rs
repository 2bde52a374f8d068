//! Where idle instances are: [`IdleInstances`], a part of the reducer.

use super::FunctionId;

/// How many instances of each function are idle on each worker, by function and by worker's slot.
///
/// A worker's report names all that it holds, several times a second, and replaces what was known of
/// that worker. So that this costs as much as the report is long, however many functions and workers
/// there are, each worker has a list of the functions that it may hold, and each of the list's places
/// is known where the function's workers are: a report needs one search for each function that it names,
/// in whatever order, marks it, and takes out what it has not marked.
///
/// Calls take an instance and give it back all the time: a count may be 0 until the next report, so that
/// neither moves anything.
///
/// All are vectors and not trees, whose nodes would be allocated and freed all the time. They grow as
/// far as they were ever needed: room for each function on each worker would be far too much.
#[derive(Debug, Default)]
pub(super) struct IdleInstances {
    /// By function: where it may have idle instances, by slot.
    by_function: Vec<Vec<Place>>,
    /// By slot: functions that may have idle instances there.
    by_slot: Vec<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u32,
    count: u32,
    /// Where the function is in the slot's list.
    at: u32,
}

#[derive(Debug, Default)]
struct Held {
    functions: Vec<(FunctionId, u32)>,
    /// The number of the last report, with which the functions that it names are marked.
    report: u32,
}

/// A worker's list has room for so many functions from the start.
const FEW: usize = 64;

impl IdleInstances {
    /// The slots with idle instances of the function, in order, and how many.
    #[inline]
    pub(super) fn slots(&self, function: FunctionId) -> impl Iterator<Item = (u32, u32)> {
        let places = self.by_function.get(function.0 as usize).into_iter().flatten();
        places.filter(|place| place.count > 0).map(|place| (place.slot, place.count))
    }

    /// How many instances of the function are idle there.
    #[inline]
    pub(super) fn count(&self, slot: u32, function: FunctionId) -> u32 {
        self.find(slot, function).map_or(0, |at| self.by_function[function.0 as usize][at].count)
    }

    /// One more is idle.
    pub(super) fn add(&mut self, slot: u32, function: FunctionId) {
        match self.find(slot, function) {
            Ok(at) => {
                let place = &mut self.by_function[function.0 as usize][at];
                place.count = place.count.saturating_add(1);
            }
            Err(at) => {
                let held = self.held_mut(slot);
                if held.functions.len() < held.functions.capacity() {
                    self.insert(slot, function, at, 1);
                } else {
                    self.insert_in_little_room(slot, function);
                }
            }
        }
    }

    /// One instance less is idle; does nothing where none is.
    #[inline]
    pub(super) fn take(&mut self, slot: u32, function: FunctionId) {
        if let Ok(at) = self.find(slot, function) {
            let place = &mut self.by_function[function.0 as usize][at];
            place.count = place.count.saturating_sub(1);
        }
    }

    /// These are idle, and no others. In any order; what is named twice adds up.
    pub(super) fn set(&mut self, slot: u32, told: impl IntoIterator<Item = (FunctionId, u32)>) {
        let held = self.held_mut(slot);
        held.report = held.report.wrapping_add(1);
        let report = held.report;
        for (function, count) in told {
            if count == 0 {
                continue;
            }
            match self.find(slot, function) {
                Ok(at) => {
                    let place = &mut self.by_function[function.0 as usize][at];
                    let (_, mark) = &mut self.by_slot[slot as usize].functions[place.at as usize];
                    // Named before in this report, or not.
                    let before = if *mark == report { place.count } else { 0 };
                    (place.count, *mark) = (before.saturating_add(count), report);
                }
                Err(at) => self.insert(slot, function, at, count),
            }
        }
        self.retain(slot, |_, _, mark| mark == report);
    }

    /// Nothing is idle there.
    pub(super) fn forget(&mut self, slot: u32) {
        self.set(slot, []);
    }

    /// Where the function's entry for the slot is, or where it belongs.
    #[inline]
    fn find(&self, slot: u32, function: FunctionId) -> Result<usize, usize> {
        let places = self.by_function.get(function.0 as usize).map_or(&[][..], |places| places);
        places.binary_search_by_key(&slot, |place| place.slot)
    }

    /// Enters what is not there: at `at` of the function's slots, marked as of the last report.
    fn insert(&mut self, slot: u32, function: FunctionId, mut at: usize, count: u32) {
        let of = function.0 as usize;
        if of >= self.by_function.len() {
            self.by_function.resize_with(of + 1, Vec::new);
        }
        if self.by_function[of].len() == self.by_function[of].capacity() {
            self.make_room(function);
            at = self.find(slot, function).unwrap_or_else(|at| at);
        }
        let held = &mut self.by_slot[slot as usize];
        let place = Place { slot, count, at: held.functions.len() as u32 };
        held.functions.push((function, held.report));
        self.by_function[of].insert(at, place);
    }

    /// The function's list is full: what is idle nowhere any more goes first.
    #[cold]
    fn make_room(&mut self, function: FunctionId) {
        let of = function.0 as usize;
        for at in (0..self.by_function[of].len()).rev() {
            let place = self.by_function[of][at];
            if place.count == 0 {
                self.by_function[of].remove(at);
                self.remove_held(place.slot, place.at as usize);
            }
        }
        let places = &mut self.by_function[of];
        let full = places.len() == places.capacity();
        // A long list that is nearly full would be gone through again soon.
        if full || places.len() > FEW && 4 * places.len() > 3 * places.capacity() {
            // A function on more than a few workers will soon be on many. Most are on few.
            places.reserve(4 * places.len());
        }
    }

    /// No report has cleared the worker's list for a while.
    #[cold]
    fn insert_in_little_room(&mut self, slot: u32, function: FunctionId) {
        self.retain(slot, |idle, function, _| idle.count(slot, function) > 0);
        let functions = &mut self.by_slot[slot as usize].functions;
        // With little room left this would happen again soon.
        if 4 * functions.len() > 3 * functions.capacity() {
            functions.reserve(2 * functions.len());
        }
        if let Err(at) = self.find(slot, function) {
            self.insert(slot, function, at, 1);
        }
    }

    /// Takes those of a worker's functions out that are not to be kept, by themselves and their marks.
    fn retain(&mut self, slot: u32, keep: impl Fn(&Self, FunctionId, u32) -> bool) {
        for at in (0..self.by_slot[slot as usize].functions.len()).rev() {
            let (function, mark) = self.by_slot[slot as usize].functions[at];
            if keep(self, function, mark) {
                continue;
            }
            if let Ok(place) = self.find(slot, function) {
                self.by_function[function.0 as usize].remove(place);
            }
            self.remove_held(slot, at);
        }
    }

    /// Takes a place out of a worker's list; the last one moves there.
    fn remove_held(&mut self, slot: u32, at: usize) {
        let functions = &mut self.by_slot[slot as usize].functions;
        functions.swap_remove(at);
        if let Some((moved, _)) = functions.get(at).copied()
            && let Ok(place) = self.find(slot, moved)
        {
            self.by_function[moved.0 as usize][place].at = at as u32;
        }
    }

    fn held_mut(&mut self, slot: u32) -> &mut Held {
        let slot = slot as usize;
        if slot >= self.by_slot.len() {
            let fresh = || Held { functions: Vec::with_capacity(FEW), report: 0 };
            self.by_slot.resize_with(slot + 1, fresh);
        }
        &mut self.by_slot[slot]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SLOTS: u32 = 3;
    /// More than a list has room for at first.
    const FUNCTIONS: u32 = FEW as u32 + 16;

    #[derive(Clone, Debug)]
    enum Step {
        Add(u32, u32),
        Take(u32, u32),
        Set(u32, Vec<(u32, u32)>),
        Forget(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let place = || (0..SLOTS, 0..FUNCTIONS);
        let told = proptest::collection::vec((0..FUNCTIONS, 0..3u32), 0..30);
        prop_oneof![
            6 => place().prop_map(|(slot, function)| Step::Add(slot, function)),
            4 => place().prop_map(|(slot, function)| Step::Take(slot, function)),
            1 => (0..SLOTS, told.clone()).prop_map(|(slot, told)| Step::Set(slot, told)),
            2 => (0..SLOTS, told).prop_map(|(slot, mut told)| {
                told.sort();
                told.dedup_by_key(|(function, _)| *function);
                Step::Set(slot, told)
            }),
            1 => (0..SLOTS).prop_map(Step::Forget),
        ]
    }

    proptest! {
        /// Reports in order, out of order, with zeros and with functions that they name twice.
        #[test]
        fn it_agrees_with_a_map(steps in proptest::collection::vec(step(), 1..200)) {
            let mut idle = IdleInstances::default();
            let mut model = BTreeMap::<(u32, u32), u32>::new();
            let mut most_held = 0;
            for step in steps {
                match step {
                    Step::Add(slot, function) => {
                        idle.add(slot, FunctionId(function));
                        *model.entry((slot, function)).or_default() += 1;
                    }
                    Step::Take(slot, function) => {
                        idle.take(slot, FunctionId(function));
                        let count = model.entry((slot, function)).or_default();
                        *count = count.saturating_sub(1);
                    }
                    Step::Set(slot, told) => {
                        let ids = told.iter().map(|(function, count)| (FunctionId(*function), *count));
                        idle.set(slot, ids);
                        model.retain(|(at, _), _| *at != slot);
                        for (function, count) in told {
                            *model.entry((slot, function)).or_default() += count;
                        }
                    }
                    Step::Forget(slot) => {
                        idle.forget(slot);
                        model.retain(|(at, _), _| *at != slot);
                    }
                }
                model.retain(|_, count| *count > 0);
                most_held = most_held.max(model.len());
                // What is not held any more takes no room for long.
                let room = idle.by_slot.iter().map(|held| held.functions.capacity()).max().unwrap_or(0);
                prop_assert!(room <= (2 * FEW).max(4 * most_held), "{} of {}", room, most_held);
                for slot in 0..SLOTS {
                    for function in 0..FUNCTIONS {
                        let expected = model.get(&(slot, function)).copied().unwrap_or(0);
                        prop_assert_eq!(idle.count(slot, FunctionId(function)), expected);
                    }
                }
                for function in 0..FUNCTIONS {
                    let of = model.iter().filter(|((_, other), _)| *other == function);
                    let expected: Vec<_> = of.map(|((slot, _), count)| (*slot, *count)).collect();
                    let slots: Vec<_> = idle.slots(FunctionId(function)).collect();
                    prop_assert_eq!(slots, expected);
                }
            }
        }
    }
}
