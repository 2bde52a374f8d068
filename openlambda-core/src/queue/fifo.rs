//! First in, first out.

use std::collections::{BTreeMap, VecDeque};

use super::{QueuePolicy, Waiting};
use crate::scheduler::InvocationId;
use crate::time::Time;

/// Serves invocations in the order of their arrival.
///
/// O(1), and O(log n) in a long queue that somebody has left early.
#[derive(Debug, Default)]
pub struct Fifo {
    /// In order. `None` has left early; neither end has.
    waiting: VecDeque<Option<Waiting>>,
    /// How many have not.
    len: usize,
    /// The number of the first place.
    first: u64,
    /// The numbers of all places, since somebody left a long queue early: those who do so are many at
    /// once, as when a balancer dies.
    places: Option<BTreeMap<InvocationId, u64>>,
}

/// A queue of so many is searched. A longer one gives its memory back when it is empty: most of a
/// worker's queues are empty nearly always.
const SHORT: usize = 32;

impl QueuePolicy for Fifo {
    fn push(&mut self, waiting: Waiting) {
        if let Some(places) = &mut self.places {
            places.insert(waiting.invocation, self.first + self.waiting.len() as u64);
        }
        self.waiting.push_back(Some(waiting));
        self.len += 1;
    }

    fn pop(&mut self, _now: Time) -> Option<Waiting> {
        let waiting = (*self.waiting.front()?)?;
        self.leave(0, waiting.invocation);
        Some(waiting)
    }

    fn remove(&mut self, invocation: InvocationId) -> bool {
        let Some(place) = self.find(invocation) else { return false };
        self.leave(place, invocation);
        true
    }

    fn oldest(&self) -> Option<Time> {
        self.waiting.front()?.map(|waiting| waiting.arrived)
    }

    fn len(&self) -> usize {
        self.len
    }
}

impl Fifo {
    fn find(&mut self, invocation: InvocationId) -> Option<usize> {
        let is_it = |waiting: &Option<Waiting>| waiting.is_some_and(|w| w.invocation == invocation);
        // Who has waited for too long is the first, mostly.
        if self.waiting.front().is_some_and(is_it) {
            return Some(0);
        }
        if self.waiting.len() <= SHORT {
            return self.waiting.iter().position(is_it);
        }
        if self.places.is_none() {
            self.number();
        }
        let place = self.places.as_ref()?.get(&invocation)?;
        Some((place - self.first) as usize)
    }

    /// Empties a place.
    fn leave(&mut self, place: usize, invocation: InvocationId) {
        self.waiting[place] = None;
        self.len -= 1;
        if let Some(places) = &mut self.places {
            places.remove(&invocation);
        }
        if self.len == 0 {
            self.waiting.clear();
            if self.waiting.capacity() > SHORT {
                *self = Fifo::default();
            }
            return;
        }
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.first += 1;
        }
        while let Some(None) = self.waiting.back() {
            self.waiting.pop_back();
        }
        // Those who left are not many more than those who stay.
        if self.waiting.len() > 2 * self.len + SHORT {
            self.waiting.retain(Option::is_some);
            if self.places.is_some() {
                self.number();
            }
        }
    }

    fn number(&mut self) {
        let places = self.waiting.iter().zip(self.first..);
        let places = places.filter_map(|(waiting, place)| Some(((*waiting)?.invocation, place)));
        self.places = Some(places.collect());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn waiting(n: u64) -> Waiting {
        Waiting { invocation: InvocationId(n), arrived: Time(n), deadline: Time::MAX }
    }

    #[test]
    fn order_is_kept_around_a_removal() {
        let mut queue = Fifo::default();
        for n in 0..4 {
            queue.push(waiting(n));
        }
        assert!(queue.remove(InvocationId(1)));
        assert!(!queue.remove(InvocationId(1)));
        assert_eq!(queue.oldest(), Some(Time(0)));
        let order: Vec<u64> =
            std::iter::from_fn(|| queue.pop(Time::ZERO)).map(|w| w.invocation.0).collect();
        assert_eq!(order, [0, 2, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_burst_leaves_no_memory_behind() {
        let mut queue = Fifo::default();
        for n in 0..10_000 {
            queue.push(waiting(n));
        }
        // The first stays, so that those who leave behind it leave gaps.
        for n in 1..9_999 {
            assert!(queue.remove(InvocationId(n)));
            assert!(queue.waiting.len() <= 2 * queue.len() + SHORT);
        }
        assert_eq!(queue.pop(Time::ZERO), Some(waiting(0)));
        assert_eq!(queue.pop(Time::ZERO), Some(waiting(9_999)));
        assert_eq!((queue.waiting.capacity(), queue.places), (0, None));
    }

    proptest! {
        #[test]
        fn a_queue_is_a_vector(
            ops in proptest::collection::vec((0..8u32, 0..1000usize), 1..400),
        ) {
            let mut queue = Fifo::default();
            let mut model: Vec<Waiting> = Vec::new();
            for (n, (op, choice)) in ops.into_iter().enumerate() {
                // First more come than go, so that the queue is long at times.
                match op {
                    0..5 => {
                        queue.push(waiting(n as u64));
                        model.push(waiting(n as u64));
                    }
                    5 => {
                        let first = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(queue.pop(Time::ZERO), first);
                    }
                    _ => {
                        let place = choice % (model.len() + 1);
                        let known = place < model.len();
                        let id = if known { model.remove(place).invocation.0 } else { 5000 };
                        prop_assert_eq!(queue.remove(InvocationId(id)), known);
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.oldest(), model.first().map(|waiting| waiting.arrived));
            }
            let rest: Vec<_> = std::iter::from_fn(|| queue.pop(Time::ZERO)).collect();
            prop_assert_eq!(rest, model);
        }
    }
}
