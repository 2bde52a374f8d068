//! The queue of future events: a heap for events with varying delays, and a line for each constant delay.
//!
//! Most events of a simulation are one network hop away, or now, or come in the order of their times: a
//! line of such events is always in order, so inserting and taking cost O(1). The heap's keys are 16
//! bytes, the time and then the order of entry; the events themselves are stored beside it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use openlambda_core::time::Time;

/// Events in the order of their times, and of their entry where those are equal.
#[derive(Debug)]
pub(super) struct Calendar<T> {
    now: Time,
    entered: u64,
    heap: BinaryHeap<Reverse<Key>>,
    /// What the heap's keys stand for, by [`Key::place`].
    places: Vec<T>,
    free: Vec<u32>,
    lines: Vec<Line<T>>,
    /// The key of each line's first event, beside each other so that the least is soon found.
    firsts: Vec<Key>,
}

/// A time, then the order of entry in the upper and a place in the lower bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    at: Time,
    order: u64,
}

/// At most 2^24 events may wait in the heap at once, and at most 2^40 be entered in all.
const PLACE_BITS: u32 = 24;

impl Key {
    const NEVER: Key = Key { at: Time::MAX, order: u64::MAX };

    fn place(self) -> usize {
        (self.order & ((1 << PLACE_BITS) - 1)) as usize
    }
}

#[derive(Debug)]
struct Line<T> {
    /// `None`: what is entered by [`Calendar::in_order`].
    delay: Option<Duration>,
    waiting: VecDeque<(Key, T)>,
}

/// The line of what comes in order.
const IN_ORDER: usize = 0;

impl<T: Copy> Calendar<T> {
    /// Nothing, at time zero. `delays`: those that many events have.
    pub(super) fn new(delays: &[Duration]) -> Self {
        let mut delays: Vec<_> = delays.iter().copied().map(Some).collect();
        delays.sort_unstable();
        delays.dedup();
        delays.insert(IN_ORDER, None);
        let firsts = vec![Key::NEVER; delays.len()];
        let lines = delays.into_iter().map(|delay| Line { delay, waiting: VecDeque::new() });
        Calendar {
            now: Time::ZERO,
            entered: 0,
            heap: BinaryHeap::new(),
            places: Vec::new(),
            free: Vec::new(),
            lines: lines.collect(),
            firsts,
        }
    }

    /// The time of the event that was taken last.
    pub(super) fn now(&self) -> Time {
        self.now
    }

    /// Something happens after `delay`.
    pub(super) fn after(&mut self, delay: Duration, what: T) {
        let at = self.now + delay;
        match self.lines.iter().position(|line| line.delay == Some(delay)) {
            Some(line) => self.enter(line, at, what),
            None => self.at(at, what),
        }
    }

    /// Something happens at `at`, which is not before what was entered in this way before.
    pub(super) fn in_order(&mut self, at: Time, what: T) {
        let last = self.lines[IN_ORDER].waiting.back().map(|(key, _)| key.at);
        debug_assert!(last.is_none_or(|last| last <= at), "not in order");
        self.enter(IN_ORDER, at.max(self.now), what);
    }

    fn enter(&mut self, line: usize, at: Time, what: T) {
        let key = Key { at, order: self.entered << PLACE_BITS };
        self.entered += 1;
        let waiting = &mut self.lines[line].waiting;
        if waiting.is_empty() {
            self.firsts[line] = key;
        }
        waiting.push_back((key, what));
    }

    /// Something happens at `at`; now, if that has passed.
    pub(super) fn at(&mut self, at: Time, what: T) {
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = what;
                place
            }
            None => {
                self.places.push(what);
                (self.places.len() - 1) as u32
            }
        };
        assert!(place < 1 << PLACE_BITS, "too many events wait at once");
        let order = self.entered << PLACE_BITS | u64::from(place);
        self.entered += 1;
        self.heap.push(Reverse(Key { at: at.max(self.now), order }));
    }

    /// Takes the next event; the time is its.
    pub(super) fn next(&mut self) -> Option<T> {
        let mut first = self.heap.peek().map_or(Key::NEVER, |Reverse(key)| *key);
        let mut from = None;
        for (line, key) in self.firsts.iter().enumerate() {
            if *key < first {
                (first, from) = (*key, Some(line));
            }
        }
        debug_assert!(first.at >= self.now, "time went backwards");
        let what = match from {
            Some(line) => {
                let waiting = &mut self.lines[line].waiting;
                let (_, what) = waiting.pop_front()?;
                self.firsts[line] = waiting.front().map_or(Key::NEVER, |(key, _)| *key);
                what
            }
            None => {
                let Reverse(key) = self.heap.pop()?;
                self.free.push(key.place() as u32);
                self.places[key.place()]
            }
        };
        self.now = first.at;
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openlambda_core::random::Rng;

    #[test]
    fn events_come_in_the_order_of_time_and_entry_from_wherever_they_wait() {
        let delays = [0, 7, 7, 100].map(Duration::from_nanos);
        for seed in 0..50 {
            let mut rng = Rng::from_seed(seed);
            let mut calendar = Calendar::new(&delays);
            let mut expected: Vec<(Time, u32)> = Vec::new();
            let (mut entered, mut last) = (0, Time::ZERO);
            for step in 0..2_000 {
                if step < 1_500 && rng.chance(0.1) {
                    last = last.max(calendar.now()) + Duration::from_nanos(rng.below(50) as u64);
                    expected.push((last, entered));
                    calendar.in_order(last, entered);
                    entered += 1;
                } else if step < 1_500 && rng.chance(0.7) {
                    let delay = match rng.below(3) {
                        0 => Duration::from_nanos(rng.below(200) as u64),
                        _ => delays[rng.below(4)],
                    };
                    expected.push((calendar.now() + delay, entered));
                    calendar.after(delay, entered);
                    entered += 1;
                } else {
                    let first = expected.iter().copied().min();
                    expected.retain(|event| Some(*event) != first);
                    let taken = calendar.next().map(|number| (calendar.now(), number));
                    assert_eq!(taken, first, "seed {seed}, step {step}");
                }
            }
            while calendar.next().is_some() {
                expected.pop();
            }
            assert!(expected.is_empty());
        }
    }
}
