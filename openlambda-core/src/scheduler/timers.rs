//! Deadlines: one for each call and each instance, kept lazily.
//!
//! Nearly every deadline is cancelled before it comes: a call that may wait for a minute waits for
//! microseconds. If a warm call updated a heap each time, it would spend more time there than anywhere
//! else. So the heap of [`Timers`] holds only a lower bound of each deadline, and the owner holds the
//! deadline itself. Setting a deadline is free where the bound is early enough, and cancelling one always
//! is. An entry that comes up too early is put back with the deadline that its owner has by then, or
//! dropped. An owner has at most one entry, which the next owner of its slot takes over.

use crate::time::Time;

/// The deadlines of calls and instances, which are named by their slots.
#[derive(Debug, Default)]
pub(super) struct Timers {
    calls: Vec<Owner>,
    instances: Vec<Owner>,
    /// A binary heap, the first entry at its top.
    heap: Vec<Entry>,
    /// Owners that have a deadline.
    set: u32,
}

/// What happens. At the same time all of a kind happen before those of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A call, or a reservation, has waited for as long as it may.
    Wait,
    /// A slot was held for a reservation for as long as may be.
    Offer,
    /// A call has run for as long as it may.
    Run,
    /// An instance has rested so long that it is paused.
    Pause,
    /// An instance has rested so long that it ends.
    Expire,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    deadline: Option<(Time, Timer)>,
    /// Where its entry is in the heap. If it has a deadline, it has an entry, and not a later one.
    entry: u32,
    /// When the entry comes up, if it has one: to see here that it is early enough is one access to
    /// memory less than to see it there.
    bound: Time,
}

/// The owner has no entry.
const NOWHERE: u32 = u32::MAX;

/// Ordered by when it comes up; the order of its fields is that of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    at: Time,
    timer: Timer,
    slot: u32,
}

impl Timer {
    fn is_of_instance(self) -> bool {
        self >= Timer::Pause
    }
}

impl Timers {
    /// Gives the call or the instance in this slot a deadline, in the place of the one that it has.
    pub(super) fn set(&mut self, timer: Timer, slot: u32, at: Time) {
        let owners = self.owners(timer);
        if slot as usize >= owners.len() {
            let none = Owner { deadline: None, entry: NOWHERE, bound: Time::ZERO };
            owners.resize(slot as usize + 1, none);
        }
        let owner = &mut owners[slot as usize];
        let place = owner.entry as usize;
        let fresh = owner.deadline.replace((at, timer)).is_none();
        let early_enough = owner.entry != NOWHERE && owner.bound < at;
        self.set += u32::from(fresh);
        if early_enough {
            return;
        }
        let entry = Entry { at, timer, slot };
        match self.heap.get_mut(place) {
            Some(bound) if *bound <= entry => {}
            Some(_) => self.rise(place, entry),
            None => {
                self.heap.push(entry);
                self.rise(self.heap.len() - 1, entry);
            }
        }
    }

    /// Takes back the deadline of the call in this slot.
    pub(super) fn clear_call(&mut self, slot: u32) {
        let owner = self.calls.get_mut(slot as usize);
        let had = owner.is_some_and(|owner| owner.deadline.take().is_some());
        self.set -= u32::from(had);
    }

    /// Takes back the deadline of the instance in this slot.
    pub(super) fn clear_instance(&mut self, slot: u32) {
        let owner = self.instances.get_mut(slot as usize);
        let had = owner.is_some_and(|owner| owner.deadline.take().is_some());
        self.set -= u32::from(had);
    }

    /// Takes the first deadline that has come, if one has.
    pub(super) fn pop(&mut self, now: Time) -> Option<(Timer, u32)> {
        self.settle(now);
        let Entry { timer, slot, .. } = *self.heap.first().filter(|entry| entry.at <= now)?;
        self.owners(timer)[slot as usize].deadline = None;
        self.set -= 1;
        self.drop_first();
        Some((timer, slot))
    }

    /// Corrects the entries that have come up too early: after it, [`next`](Self::next) is later than
    /// `now` unless a deadline has come.
    pub(super) fn settle(&mut self, now: Time) {
        while let Some(&first) = self.heap.first().filter(|entry| entry.at <= now) {
            let Entry { timer, slot, .. } = first;
            match self.owners(timer)[slot as usize].deadline {
                None => self.drop_first(),
                Some((at, timer)) => {
                    let entry = Entry { at, timer, slot };
                    if entry == first {
                        return;
                    }
                    self.sink(0, entry);
                }
            }
        }
    }

    /// When to call [`pop`](Self::pop): not later than the first deadline, but maybe earlier.
    pub(super) fn next(&self) -> Option<Time> {
        self.heap.first().filter(|_| self.set > 0).map(|entry| entry.at)
    }

    fn owners(&mut self, timer: Timer) -> &mut Vec<Owner> {
        if timer.is_of_instance() { &mut self.instances } else { &mut self.calls }
    }

    fn drop_first(&mut self) {
        let last = self.heap.pop().expect("there is a first entry");
        let mut owner = last;
        if let Some(first) = self.heap.first() {
            owner = *first;
            self.sink(0, last);
        }
        self.owners(owner.timer)[owner.slot as usize].entry = NOWHERE;
    }

    /// Puts the entry at this place or above it.
    fn rise(&mut self, mut place: usize, entry: Entry) {
        while place > 0 {
            let above = (place - 1) / 2;
            if self.heap[above] <= entry {
                break;
            }
            self.put(place, self.heap[above]);
            place = above;
        }
        self.put(place, entry);
    }

    /// Puts the entry at this place or below it.
    fn sink(&mut self, mut place: usize, entry: Entry) {
        loop {
            let left = 2 * place + 1;
            let below = self.heap.get(left..(left + 2).min(self.heap.len())).unwrap_or_default();
            let Some((below, next)) = (left..).zip(below).min_by_key(|(_, entry)| **entry) else {
                break;
            };
            if entry <= *next {
                break;
            }
            self.put(place, *next);
            place = below;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: Entry) {
        self.heap[place] = entry;
        let owner = &mut self.owners(entry.timer)[entry.slot as usize];
        (owner.entry, owner.bound) = (place as u32, entry.at);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const KINDS: [Timer; 5] = [Timer::Wait, Timer::Offer, Timer::Run, Timer::Pause, Timer::Expire];

    #[derive(Clone, Debug)]
    enum Op {
        Set(usize, u32, u64),
        Clear(bool, u32),
        Pop(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..5usize, 0..8u32, 0..40u64).prop_map(|(kind, slot, after)| Op::Set(kind, slot, after)),
            3 => (any::<bool>(), 0..9u32).prop_map(|(instance, slot)| Op::Clear(instance, slot)),
            1 => (0..30u64).prop_map(Op::Pop),
        ]
    }

    proptest! {
        #[test]
        fn what_comes_up_is_what_a_sorted_map_says(
            ops in proptest::collection::vec(op(), 1..300),
        ) {
            let mut timers = Timers::default();
            let mut model: BTreeMap<(bool, u32), (Time, Timer)> = BTreeMap::new();
            let mut now = Time(0);
            for op in ops {
                match op {
                    Op::Set(kind, slot, after) => {
                        let (timer, at) = (KINDS[kind], now + Duration::from_nanos(after));
                        timers.set(timer, slot, at);
                        model.insert((timer.is_of_instance(), slot), (at, timer));
                    }
                    Op::Clear(instance, slot) => {
                        if instance { timers.clear_instance(slot) } else { timers.clear_call(slot) }
                        model.remove(&(instance, slot));
                    }
                    Op::Pop(by) => {
                        now += Duration::from_nanos(by);
                        loop {
                            let due = model.iter().map(|(&(_, slot), &(at, timer))| (at, timer, slot));
                            let due = due.min().filter(|(at, ..)| *at <= now);
                            let due = due.map(|(_, timer, slot)| (timer, slot));
                            prop_assert_eq!(timers.pop(now), due);
                            let Some((timer, slot)) = due else { break };
                            model.remove(&(timer.is_of_instance(), slot));
                        }
                    }
                }
                let first = model.values().map(|(at, _)| *at).min();
                timers.settle(now);
                if first.is_none_or(|at| at > now) {
                    prop_assert!(timers.next().is_none_or(|at| at > now), "a busy loop");
                }
                match (timers.next(), first) {
                    (Some(next), Some(first)) => prop_assert!(next <= first, "too late"),
                    (next, first) => prop_assert_eq!(next, first),
                }
                prop_assert!(timers.heap.len() <= 16, "an owner has one entry");
                for place in 1..timers.heap.len() {
                    prop_assert!(timers.heap[(place - 1) / 2] <= timers.heap[place]);
                }
            }
        }
    }

    #[test]
    fn a_later_deadline_and_one_that_is_taken_back_move_nothing() {
        let mut timers = Timers::default();
        timers.set(Timer::Wait, 0, Time(10));
        timers.set(Timer::Wait, 1, Time(20));
        for at in 11..15 {
            timers.clear_call(0);
            timers.set(Timer::Run, 0, Time(at));
            assert_eq!(timers.heap.len(), 2);
            assert_eq!(timers.next(), Some(Time(10)), "the old bound is early, which is right");
        }
        assert_eq!(timers.pop(Time(13)), None);
        assert_eq!(timers.next(), Some(Time(14)));
        assert_eq!(timers.pop(Time(14)), Some((Timer::Run, 0)));
        timers.clear_call(1);
        assert_eq!(timers.next(), None, "nothing is to happen any more");
    }
}
