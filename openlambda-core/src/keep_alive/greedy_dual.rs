//! `greedy-dual`: keeps instances that are called often, slow to start and small.

use super::order::{Group, Grouped, Priority, Worth};
use super::units::{mebibytes, milliseconds};
use super::{InstanceFacts, KeepAliveEntry, KeepAlivePolicy};
use crate::catalog::ParameterInfo;
use crate::scheduler::InstanceId;
use crate::time::Time;

/// Keeps everything until memory is short, then evicts the instance of the lowest priority:
///
/// ```text
/// priority = clock + frequency × cost / size
/// ```
///
/// Greedy-Dual-Size-Frequency (Cherkasova 1998) as FaasCache uses it (Fuerst, Sharma, *FaasCache:
/// Keeping Serverless Computing Alive with Greedy-Dual Caching*, ASPLOS 2021):
///
/// * *clock*: the highest priority of all that were evicted so far, taken when the instance's last
///   use ended. It makes instances that are not used any more fall behind.
/// * *frequency*: the invocations of its version over all instances, from the first instance until
///   the last one is gone.
/// * *cost*: what its version takes to start, in milliseconds: the mean of its starts here.
/// * *size*: what it takes from the memory pool, in MiB.
///
/// All instances of a version share the last three, so an invocation in one of them raises the
/// priority of all. So instances that a popular function needed once, at a peak, stay as long as the one
/// that it needs all the time. [`GreedyDual::per_instance`] counts frequency and cost of each instance
/// alone, so that surplus instances are evicted; this is not in the paper. O(log n).
#[derive(Debug, Default)]
pub struct GreedyDual {
    per_instance: bool,
    groups: Grouped<Value>,
    clock: f64,
    /// The last answer of `victim` and its priority: when that one ends, the clock moves on.
    named: Option<(InstanceId, f64)>,
}

#[derive(Debug, Default)]
struct Value {
    frequency: u64,
    /// The sum over its starts, milliseconds.
    cost: f64,
    starts: u64,
    /// MiB.
    size: f64,
}

impl GreedyDual {
    /// The paper's policy, or the one that looks at each instance alone.
    pub fn new(per_instance: bool) -> Self {
        GreedyDual { per_instance, ..GreedyDual::default() }
    }

    /// Frequency and cost are each instance's own.
    pub fn per_instance() -> Self {
        GreedyDual::new(true)
    }
}

impl Worth for Value {
    /// The clock.
    type Mark = Priority;
    type Rank = Priority;

    fn rank(&self, clock: Priority) -> Priority {
        let cost = self.cost / self.starts as f64;
        Priority(clock.0 + self.frequency as f64 * cost / self.size)
    }
}

impl KeepAlivePolicy for GreedyDual {
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, _now: Time) {
        let group = match self.per_instance {
            true => Group::Instance(instance),
            false => Group::Version(facts.version),
        };
        self.groups.started(instance, group, Value::default, |value| {
            value.cost += milliseconds(facts.start_cost);
            value.starts += 1;
            value.size = mebibytes(facts.memory);
        });
    }

    fn invoked(&mut self, instance: InstanceId, _arrived: Time, _now: Time) {
        self.groups.update(instance, |value| value.frequency += 1);
    }

    fn used(&mut self, instance: InstanceId, _now: Time) {
        self.named.take_if(|(named, _)| *named == instance);
        self.groups.used(instance);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.groups.idle(instance, Priority(self.clock), now);
        None
    }

    fn ended(&mut self, instance: InstanceId, _now: Time) {
        self.groups.ended(instance);
        if let Some((_, priority)) = self.named.take_if(|(named, _)| *named == instance) {
            // A version whose later starts were cheaper can be below the clock, which never falls.
            self.clock = self.clock.max(priority);
        }
    }

    fn victim(&mut self, _now: Time) -> Option<InstanceId> {
        let first = self.groups.first();
        self.named = first.map(|(priority, instance)| (instance, priority.0));
        first.map(|(_, instance)| instance)
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> KeepAliveEntry {
    let about = "1 counts each instance's own invocations, not those of its function";
    KeepAliveEntry {
        name: "greedy-dual".to_owned(),
        about: "until memory is short; then the lowest of clock + frequency x cost / size goes"
            .to_owned(),
        source: "Fuerst, Sharma, FaasCache, ASPLOS 2021".to_owned(),
        parameters: vec![ParameterInfo::new("per_instance", 0, about).within(0..=1)],
        build: Box::new(|given| Ok(Box::new(GreedyDual::new(given.number("per_instance")? > 0.5)))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{evict, facts, idle_at};
    use super::*;

    fn invoke(policy: &mut GreedyDual, instance: u64, times: u64) {
        for _ in 0..times {
            policy.invoked(InstanceId(instance), Time(0), Time(0));
        }
    }

    #[test]
    fn priorities_are_as_computed_by_hand() {
        let mut policy = GreedyDual::default();
        // a: 3 × 400 / 100 = 12. b: 1 × 900 / 300 = 3. c: 1 × 500 / 50 = 10.
        idle_at(&mut policy, 1, &facts(0, 100, 400), 1);
        invoke(&mut policy, 1, 2);
        idle_at(&mut policy, 2, &facts(1, 300, 900), 2);
        idle_at(&mut policy, 3, &facts(2, 50, 500), 3);
        assert_eq!((evict(&mut policy, 4), policy.clock), (2, 3.0));
        // d comes after b went: 3 + 2 × 500 / 100 = 13. Without the clock it would go before a.
        idle_at(&mut policy, 4, &facts(3, 100, 500), 5);
        invoke(&mut policy, 4, 1);
        assert_eq!((evict(&mut policy, 6), policy.clock), (3, 10.0));
        assert_eq!((evict(&mut policy, 6), policy.clock), (1, 12.0));
        assert_eq!((evict(&mut policy, 6), policy.clock), (4, 13.0));
        assert_eq!(policy.victim(Time(6)), None);
    }

    #[test]
    fn a_version_shares_its_frequency_and_its_mean_cost() {
        let mut policy = GreedyDual::default();
        // One version: starts of 100 and 300 ms, 2 invocations: 2 × 200 / 100 = 4 each.
        idle_at(&mut policy, 1, &facts(0, 100, 100), 1);
        idle_at(&mut policy, 2, &facts(0, 100, 300), 2);
        // Another: 1 × 350 / 100 = 3.5.
        idle_at(&mut policy, 3, &facts(1, 100, 350), 3);
        assert_eq!(policy.victim(Time(4)), Some(InstanceId(3)));
        // With a second invocation it has 7, and of the first version the older one goes.
        invoke(&mut policy, 3, 1);
        assert_eq!((evict(&mut policy, 5), policy.clock), (1, 4.0));
    }

    #[test]
    fn each_instance_for_itself_lets_the_surplus_go() {
        let mut policy = GreedyDual::per_instance();
        // One version. a: 1 × 100 / 100 = 1. b: 5 × 100 / 100 = 5.
        idle_at(&mut policy, 1, &facts(0, 100, 100), 1);
        idle_at(&mut policy, 2, &facts(0, 100, 100), 2);
        invoke(&mut policy, 2, 4);
        // Another: 1 × 300 / 100 = 3.
        idle_at(&mut policy, 3, &facts(1, 100, 300), 3);
        assert_eq!((evict(&mut policy, 4), policy.clock), (1, 1.0));
        assert_eq!((evict(&mut policy, 4), policy.clock), (3, 3.0));
        assert_eq!((evict(&mut policy, 4), policy.clock), (2, 5.0));
    }

    #[test]
    fn only_an_eviction_moves_the_clock() {
        let mut policy = GreedyDual::default();
        idle_at(&mut policy, 1, &facts(0, 100, 400), 1);
        idle_at(&mut policy, 2, &facts(1, 100, 500), 1);
        assert_eq!(policy.victim(Time(2)), Some(InstanceId(1)));
        policy.ended(InstanceId(2), Time(3));
        assert_eq!(policy.clock, 0.0);
        policy.ended(InstanceId(1), Time(3));
        assert_eq!(policy.clock, 4.0);
    }
}
