//! `lru`: the least recently used goes first.

use super::KeepAlivePolicy;
use super::order::Order;
use crate::scheduler::InstanceId;
use crate::time::Time;

/// Keeps everything until memory is short, then evicts the instance that is idle for longest.
///
/// The textbook's replacement policy: optimal within a constant factor of its memory when all
/// instances are of one size and cost (Sleator, Tarjan, CACM 28(2), 1985), and blind to both.
/// O(log n).
#[derive(Debug, Default)]
pub struct Lru {
    idle: Order<InstanceId, Time>,
}

impl KeepAlivePolicy for Lru {
    fn used(&mut self, instance: InstanceId, _now: Time) {
        self.idle.remove(instance);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.idle.set(instance, now);
        None
    }

    fn ended(&mut self, instance: InstanceId, _now: Time) {
        self.idle.remove(instance);
    }

    fn victim(&mut self, _now: Time) -> Option<InstanceId> {
        self.idle.first().map(|(_, instance)| instance)
    }
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
}
