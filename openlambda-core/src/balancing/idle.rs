//! Where idle instances are: [`IdleInstances`], a part of the reducer.

use super::FunctionId;

/// How many instances of each function are idle on each worker, by function and by worker's slot.
///
/// A worker's report names all that it holds, several times a second, and replaces what was known of
/// that worker. So that this costs as much as the report is long, however many functions and workers
/// there are, each worker has a list of the functions that it may hold. Calls come and go far more often
/// than reports: they only add to the end of that list, and it is the report which brings it into order.
///
/// All are vectors and not trees, whose nodes would be allocated and freed all the time. They grow as
/// far as they were ever needed: room for each function on each worker would be far too much.
#[derive(Debug, Default)]
pub(super) struct IdleInstances {
    /// By function: slots with idle instances of it, in order, and how many.
    by_function: Vec<Vec<(u32, u32)>>,
    /// By slot: functions with idle instances there; also some that have none any more, some twice, in
    /// no order.
    by_slot: Vec<Vec<FunctionId>>,
    /// The report that is read.
    told: Vec<(FunctionId, u32)>,
}

/// A worker's list has room for so many functions from the start.
const FEW: usize = 64;

impl IdleInstances {
    /// The slots with idle instances of the function, in order, and how many.
    #[inline]
    pub(super) fn slots(&self, function: FunctionId) -> &[(u32, u32)] {
        self.by_function.get(function.0 as usize).map_or(&[], |slots| slots)
    }

    /// How many instances of the function are idle there.
    #[inline]
    pub(super) fn count(&self, slot: u32, function: FunctionId) -> u32 {
        let slots = self.slots(function);
        slots.binary_search_by_key(&slot, |(slot, _)| *slot).map_or(0, |at| slots[at].1)
    }

    /// One more is idle.
    pub(super) fn add(&mut self, slot: u32, function: FunctionId) {
        let slots = self.slots_mut(function);
        match slots.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(at) => slots[at].1 = slots[at].1.saturating_add(1),
            Err(at) => {
                insert(slots, at, (slot, 1));
                self.note(slot, function);
            }
        }
    }

    /// One less is idle; where there is none, nothing happens.
    #[inline]
    pub(super) fn take(&mut self, slot: u32, function: FunctionId) {
        if let Some(slots) = self.by_function.get_mut(function.0 as usize)
            && let Ok(at) = slots.binary_search_by_key(&slot, |(slot, _)| *slot)
        {
            slots[at].1 -= 1;
            if slots[at].1 == 0 {
                slots.remove(at);
            }
        }
    }

    /// These are idle, and no others. In any order; what is named twice adds up.
    pub(super) fn set(&mut self, slot: u32, told: impl IntoIterator<Item = (FunctionId, u32)>) {
        // Taken out for the while, as what follows needs all of `self`; they come back below.
        let mut now = std::mem::take(&mut self.told);
        read(told, &mut now);
        let mut before = std::mem::take(self.functions_mut(slot));
        before.sort_unstable();
        before.dedup();
        let mut named = now.iter().map(|(function, _)| *function).peekable();
        for function in &before {
            while named.next_if(|other| other < function).is_some() {}
            if named.peek() != Some(function) {
                self.set_count(slot, *function, 0);
            }
        }
        for (function, count) in &now {
            self.set_count(slot, *function, *count);
        }
        before.clear();
        before.extend(now.iter().map(|(function, _)| *function));
        self.by_slot[slot as usize] = before;
        self.told = now;
    }

    /// Nothing is idle there.
    pub(super) fn forget(&mut self, slot: u32) {
        self.set(slot, []);
    }

    fn set_count(&mut self, slot: u32, function: FunctionId, count: u32) {
        let slots = self.slots_mut(function);
        match slots.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(at) if count == 0 => {
                slots.remove(at);
            }
            Ok(at) => slots[at].1 = count,
            Err(at) if count > 0 => insert(slots, at, (slot, count)),
            Err(_) => {}
        }
    }

    fn slots_mut(&mut self, function: FunctionId) -> &mut Vec<(u32, u32)> {
        let function = function.0 as usize;
        if function >= self.by_function.len() {
            self.by_function.resize_with(function + 1, Vec::new);
        }
        &mut self.by_function[function]
    }

    fn functions_mut(&mut self, slot: u32) -> &mut Vec<FunctionId> {
        let slot = slot as usize;
        if slot >= self.by_slot.len() {
            self.by_slot.resize_with(slot + 1, || Vec::with_capacity(FEW));
        }
        &mut self.by_slot[slot]
    }

    /// The function has an idle instance there, and had none.
    fn note(&mut self, slot: u32, function: FunctionId) {
        let functions = self.functions_mut(slot);
        // A popular function comes and goes.
        if functions.last() == Some(&function) {
            return;
        }
        if functions.len() == functions.capacity() {
            return self.note_in_little_room(slot, function);
        }
        functions.push(function);
    }

    /// No report has brought the worker's list into order for a while.
    #[cold]
    fn note_in_little_room(&mut self, slot: u32, function: FunctionId) {
        let mut functions = std::mem::take(self.functions_mut(slot));
        functions.push(function);
        functions.sort_unstable();
        functions.dedup();
        if functions.len() > functions.capacity() / 2 {
            functions.retain(|function| self.count(slot, *function) > 0);
        }
        // With little room left this would happen again soon.
        functions.reserve(functions.len() / 2);
        self.by_slot[slot as usize] = functions;
    }
}

fn insert(slots: &mut Vec<(u32, u32)>, at: usize, slot: (u32, u32)) {
    if slots.len() == slots.capacity() {
        // A function on more than a few workers will soon be on many. Most are on few.
        slots.reserve(4 * slots.len());
    }
    slots.insert(at, slot);
}

/// Brings a report into order, each function once; the simulator's reports are so already.
fn read(told: impl IntoIterator<Item = (FunctionId, u32)>, list: &mut Vec<(FunctionId, u32)>) {
    list.clear();
    let mut in_order = true;
    for (function, count) in told {
        if count > 0 {
            in_order &= list.last().is_none_or(|(last, _)| *last < function);
            list.push((function, count));
        }
    }
    if !in_order {
        list.sort_unstable_by_key(|(function, _)| *function);
        list.dedup_by(|again, first| {
            let same = again.0 == first.0;
            if same {
                first.1 = first.1.saturating_add(again.1);
            }
            same
        });
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
                let room = idle.by_slot.iter().map(Vec::capacity).max().unwrap_or(0);
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
                    prop_assert_eq!(idle.slots(FunctionId(function)), expected);
                }
            }
        }
    }
}
