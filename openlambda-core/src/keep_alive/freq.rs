//! `freq`: evicts an instance of the least frequently called version first.

use super::order::{Group, Grouped, Worth};
use super::{InstanceFacts, KeepAliveEntry, KeepAlivePolicy};
use crate::scheduler::InstanceId;
use crate::time::Time;

/// Keeps everything until memory is short, then evicts an instance of the version with the fewest
/// invocations; of equals, and within a version, the one that is idle for longest.
///
/// LFU, the textbook's in-cache variant: a version's invocations count over all of its instances,
/// from its first instance until its last one is gone, as in FaasCache (Fuerst, Sharma, ASPLOS
/// 2021). Counts do not age, so a version that was popular once stays for long. O(log n).
#[derive(Debug, Default)]
pub struct Freq {
    versions: Grouped<Frequency>,
}

#[derive(Debug, Default)]
struct Frequency(u64);

impl Worth for Frequency {
    type Mark = ();
    type Rank = u64;

    fn rank(&self, (): ()) -> u64 {
        self.0
    }
}

impl KeepAlivePolicy for Freq {
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, _now: Time) {
        self.versions.started(instance, Group::Version(facts.version), Frequency::default, |_| {});
    }

    fn invoked(&mut self, instance: InstanceId, _arrived: Time, _now: Time) {
        self.versions.update(instance, |frequency| frequency.0 += 1);
    }

    fn used(&mut self, instance: InstanceId, _now: Time) {
        self.versions.used(instance);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.versions.idle(instance, (), now);
        None
    }

    fn ended(&mut self, instance: InstanceId, _now: Time) {
        self.versions.ended(instance);
    }

    fn victim(&mut self, _now: Time) -> Option<InstanceId> {
        self.versions.first().map(|(_, instance)| instance)
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> KeepAliveEntry {
    KeepAliveEntry::new(
        "freq",
        "until memory is short; then the least frequently called goes",
        "the textbook's LFU",
        || Box::new(Freq::default()),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{facts, idle_at};
    use super::*;

    #[test]
    fn the_version_with_the_fewest_invocations_gives_one_up() {
        let mut policy = Freq::default();
        idle_at(&mut policy, 1, &facts(0, 100, 1), 1);
        idle_at(&mut policy, 2, &facts(1, 100, 1), 2);
        idle_at(&mut policy, 3, &facts(1, 100, 1), 3);
        // 1 against 2 invocations.
        assert_eq!(policy.victim(Time(4)), Some(InstanceId(1)));
        // Two more of version 0 make it 3 against 2.
        for _ in 0..2 {
            policy.invoked(InstanceId(1), Time(4), Time(4));
        }
        assert_eq!(policy.victim(Time(5)), Some(InstanceId(2)));
        policy.used(InstanceId(2), Time(6));
        assert_eq!(policy.victim(Time(6)), Some(InstanceId(3)));
    }

    #[test]
    fn the_count_begins_anew_after_the_last_instance() {
        let mut policy = Freq::default();
        idle_at(&mut policy, 1, &facts(0, 100, 1), 1);
        for _ in 0..9 {
            policy.invoked(InstanceId(1), Time(1), Time(1));
        }
        policy.ended(InstanceId(1), Time(2));
        idle_at(&mut policy, 2, &facts(1, 100, 1), 3);
        policy.invoked(InstanceId(2), Time(3), Time(3));
        idle_at(&mut policy, 3, &facts(0, 100, 1), 4);
        assert_eq!(policy.victim(Time(5)), Some(InstanceId(3)), "1 invocation against 2");
    }
}
