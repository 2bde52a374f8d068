//! `size`: evicts the largest instance first.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::order::Order;
use super::{InstanceFacts, KeepAliveEntry, KeepAlivePolicy};
use crate::scheduler::InstanceId;
use crate::time::Time;

/// Keeps everything until memory is short, then evicts the instance that takes the most of it; of
/// equally large ones that which is idle for longest.
///
/// Policy SIZE of web caches: most objects are small, so few evictions make much room, but a large
/// function starts cold nearly every time (Williams et al., *Removal Policies in Network Caches for
/// World-Wide Web Documents*, SIGCOMM 1996). O(log n).
#[derive(Debug, Default)]
pub struct Size {
    memory: BTreeMap<InstanceId, u64>,
    idle: Order<InstanceId, (Reverse<u64>, Time)>,
}

impl KeepAlivePolicy for Size {
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, _now: Time) {
        self.memory.insert(instance, facts.memory);
    }

    fn used(&mut self, instance: InstanceId, _now: Time) {
        self.idle.remove(instance);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        let memory = self.memory.get(&instance).copied().unwrap_or_default();
        self.idle.set(instance, (Reverse(memory), now));
        None
    }

    fn ended(&mut self, instance: InstanceId, _now: Time) {
        self.memory.remove(&instance);
        self.idle.remove(instance);
    }

    fn victim(&mut self, _now: Time) -> Option<InstanceId> {
        self.idle.first().map(|(_, instance)| instance)
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> KeepAliveEntry {
    KeepAliveEntry::new(
        "size",
        "until memory is short; then the largest goes",
        "Williams et al., Removal Policies in Network Caches, SIGCOMM 1996",
        || Box::new(Size::default()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, idle_at};
    use super::*;

    #[test]
    fn the_largest_goes_first_and_of_equals_the_least_recently_used() {
        let mut policy = Size::default();
        idle_at(&mut policy, 1, &facts(0, 100, 1), 1);
        idle_at(&mut policy, 2, &facts(1, 300, 1), 2);
        idle_at(&mut policy, 3, &facts(2, 300, 1), 3);
        let mut order = Vec::new();
        while let Some(victim) = policy.victim(Time(9)) {
            policy.ended(victim, Time(9));
            order.push(victim.0);
        }
        assert_eq!(order, [2, 3, 1]);
    }
}
