//! First in, first out.

use std::collections::BTreeMap;

use super::{QueuePolicy, Waiting};
use crate::scheduler::InvocationId;
use crate::time::Time;

/// Serves invocations in the order of their arrival. All operations are O(log n).
#[derive(Debug, Default)]
pub struct Fifo {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
    places: BTreeMap<InvocationId, u64>,
}

impl QueuePolicy for Fifo {
    fn push(&mut self, waiting: Waiting) {
        self.places.insert(waiting.invocation, self.next);
        self.waiting.insert(self.next, waiting);
        self.next += 1;
    }

    fn pop(&mut self, _now: Time) -> Option<Waiting> {
        let (_, waiting) = self.waiting.pop_first()?;
        self.places.remove(&waiting.invocation);
        Some(waiting)
    }

    fn remove(&mut self, invocation: InvocationId) -> bool {
        let Some(place) = self.places.remove(&invocation) else { return false };
        self.waiting.remove(&place).is_some()
    }

    fn oldest(&self) -> Option<Time> {
        self.waiting.first_key_value().map(|(_, waiting)| waiting.arrived)
    }

    fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_kept_around_a_removal() {
        let mut queue = Fifo::default();
        for n in 0..4 {
            let (invocation, arrived) = (InvocationId(n), Time(n));
            queue.push(Waiting { invocation, arrived, deadline: Time::MAX });
        }
        assert!(queue.remove(InvocationId(1)));
        assert!(!queue.remove(InvocationId(1)));
        assert_eq!(queue.oldest(), Some(Time(0)));
        let order: Vec<u64> =
            std::iter::from_fn(|| queue.pop(Time::ZERO)).map(|w| w.invocation.0).collect();
        assert_eq!(order, [0, 2, 3]);
        assert!(queue.is_empty());
    }
}
