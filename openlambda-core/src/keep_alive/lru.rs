//! `lru`: evicts the least recently used instance first.

use std::fmt;

use super::{KeepAliveEntry, KeepAlivePolicy};
use crate::arena::{List, Lists, Slots, slot_of};
use crate::scheduler::InstanceId;
use crate::time::Time;

/// Keeps everything until memory is short, then evicts the instance that is idle for longest.
///
/// The textbook's replacement policy: optimal within a constant factor of its memory when all
/// instances have the same size and cost (Sleator, Tarjan, CACM 28(2), 1985). It considers neither.
/// O(1): a list in the order in which instances became idle, through their slots.
#[derive(Default)]
pub struct Lru {
    idle: Slots<()>,
    links: Lists,
    /// The one that is idle for longest first.
    order: List,
}

impl Lru {
    fn remove(&mut self, instance: InstanceId) {
        if self.idle.remove(instance.0).is_some() {
            self.links.remove(&mut self.order, slot_of(instance.0));
        }
    }

    fn in_order(&self) -> impl Iterator<Item = InstanceId> {
        let ids = self.links.iter(self.order).filter_map(|slot| self.idle.id_at(slot));
        ids.map(InstanceId)
    }
}

impl fmt::Debug for Lru {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lru ")?;
        f.debug_list().entries(self.in_order()).finish()
    }
}

impl KeepAlivePolicy for Lru {
    fn used(&mut self, instance: InstanceId, _now: Time) {
        self.remove(instance);
    }

    fn idle(&mut self, instance: InstanceId, _now: Time) -> Option<Time> {
        self.remove(instance);
        self.idle.insert(instance.0, ());
        self.links.push_back(&mut self.order, slot_of(instance.0));
        None
    }

    fn ended(&mut self, instance: InstanceId, _now: Time) {
        self.remove(instance);
    }

    fn victim(&mut self, _now: Time) -> Option<InstanceId> {
        self.in_order().next()
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> KeepAliveEntry {
    KeepAliveEntry::new(
        "lru",
        "until memory is short; then the least recently used goes",
        "the textbook; Sleator, Tarjan, CACM 1985",
        || Box::new(Lru::default()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut policy = Lru::default();
        let [a, b] = [InstanceId(1), InstanceId(2)];
        assert_eq!(policy.idle(a, Time(1)), None);
        policy.idle(b, Time(2));
        assert_eq!(policy.victim(Time(3)), Some(a));
        policy.used(a, Time(3));
        assert_eq!(policy.victim(Time(3)), Some(b));
        policy.idle(a, Time(4));
        assert_eq!(policy.victim(Time(4)), Some(b));
        policy.ended(b, Time(5));
        policy.ended(a, Time(5));
        assert_eq!(policy.victim(Time(5)), None);
    }

    #[test]
    fn an_instance_in_the_slot_of_one_that_is_gone_is_another_one() {
        let mut policy = Lru::default();
        let [old, new] = [InstanceId(1), InstanceId(1 << 32 | 1)];
        policy.idle(old, Time(1));
        policy.ended(old, Time(2));
        policy.idle(new, Time(3));
        policy.used(old, Time(4));
        policy.ended(old, Time(4));
        assert_eq!(policy.victim(Time(5)), Some(new));
        policy.ended(new, Time(6));
        assert_eq!((policy.victim(Time(6)), format!("{policy:?}")), (None, "Lru []".to_owned()));
    }
}
