//! `landlord`: every instance pays rent, and the first without credit is evicted.

use std::collections::BTreeMap;

use super::order::{Order, Priority};
use super::units::{mebibytes, milliseconds};
use super::{InstanceFacts, KeepAliveEntry, KeepAlivePolicy};
use crate::scheduler::InstanceId;
use crate::time::Time;

/// Keeps everything until memory is short, then charges all idle instances rent by the MiB until
/// one has no credit left. That one goes.
///
/// Young's Landlord (*On-Line File Caching*, SODA 1998; Algorithmica 33, 2002):
///
/// * an instance whose use ends gets a credit as high as the cost of its start;
/// * to make room, with `δ = min credit / size` over all idle instances, the credit of each falls by
///   `δ × size`, and an instance without credit is evicted.
///
/// No online policy has a better worst case against the best choice in hindsight. Charging each
/// instance would be O(n), so the rent so far is one sum, `L`, and an instance is entered under
/// `L + credit / size`: the lowest entry is evicted, and `L` becomes its value. O(log n).
#[derive(Debug, Default)]
pub struct Landlord {
    /// `credit / size` when a use has just ended.
    full: BTreeMap<InstanceId, f64>,
    idle: Order<InstanceId, (Priority, Time)>,
    /// What each MiB that was idle all the time has paid so far: `L`.
    rent: f64,
    /// The last answer of `victim`: when that one ends, it does for lack of credit.
    named: Option<InstanceId>,
}

impl KeepAlivePolicy for Landlord {
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, _now: Time) {
        let credit = milliseconds(facts.start_cost);
        self.full.insert(instance, credit / mebibytes(facts.memory));
    }

    fn used(&mut self, instance: InstanceId, _now: Time) {
        self.named.take_if(|named| *named == instance);
        self.idle.remove(instance);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        let full = self.full.get(&instance).copied().unwrap_or_default();
        self.idle.set(instance, (Priority(self.rent + full), now));
        None
    }

    fn ended(&mut self, instance: InstanceId, _now: Time) {
        self.full.remove(&instance);
        let idle = self.idle.remove(instance);
        if self.named.take_if(|named| *named == instance).is_some()
            && let Some((Priority(paid), _)) = idle
        {
            self.rent = paid;
        }
    }

    fn victim(&mut self, _now: Time) -> Option<InstanceId> {
        self.named = self.idle.first().map(|(_, instance)| instance);
        self.named
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> KeepAliveEntry {
    KeepAliveEntry::new(
        "landlord",
        "until memory is short; then each instance pays rent by its size out of its start's \
         cost, and one without credit goes",
        "Young, On-Line File Caching, SODA 1998, Algorithmica 2002",
        || Box::new(Landlord::default()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{evict, facts, idle_at};
    use super::*;

    #[test]
    fn rent_is_charged_by_size_and_a_use_restores_the_credit() {
        let mut policy = Landlord::default();
        // Credit by the MiB: a 400/100 = 4, b 900/300 = 3, c 500/50 = 10.
        idle_at(&mut policy, 1, &facts(0, 100, 400), 1);
        idle_at(&mut policy, 2, &facts(1, 300, 900), 2);
        idle_at(&mut policy, 3, &facts(2, 50, 500), 3);
        // b pays δ = 3 and goes; a has 1 left, c has 7.
        assert_eq!(evict(&mut policy, 4), 2);
        assert_eq!(policy.rent, 3.0);
        // d comes with 2 by the MiB: more than a has left, although a once had 4.
        idle_at(&mut policy, 4, &facts(3, 100, 200), 5);
        assert_eq!(policy.victim(Time(6)), Some(InstanceId(1)));
        // A use restores a's 4: now d is the poorest.
        policy.used(InstanceId(1), Time(6));
        policy.idle(InstanceId(1), Time(7));
        assert_eq!(evict(&mut policy, 8), 4);
        assert_eq!(policy.rent, 5.0);
        // a has 3 + 4 - 5 = 2 left, c 10 - 5 = 5.
        assert_eq!((evict(&mut policy, 9), policy.rent), (1, 7.0));
        assert_eq!((evict(&mut policy, 9), policy.rent), (3, 10.0));
        assert_eq!(policy.victim(Time(9)), None);
    }

    #[test]
    fn an_instance_that_ends_otherwise_charges_nobody() {
        let mut policy = Landlord::default();
        idle_at(&mut policy, 1, &facts(0, 100, 400), 1);
        policy.ended(InstanceId(1), Time(2));
        assert_eq!(policy.rent, 0.0);
    }
}
