//! The two policies that know nothing but when an instance was used last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::KeepAlivePolicy;
use crate::scheduler::InstanceId;
use crate::time::Time;

/// Keeps everything until memory is short, then evicts the least recently used. O(log n).
#[derive(Debug, Default)]
pub struct Lru {
    since: BTreeMap<InstanceId, Time>,
    order: BTreeSet<(Time, InstanceId)>,
}

impl KeepAlivePolicy for Lru {
    fn used(&mut self, instance: InstanceId, _now: Time) {
        if let Some(since) = self.since.remove(&instance) {
            self.order.remove(&(since, instance));
        }
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.since.insert(instance, now);
        self.order.insert((now, instance));
        None
    }

    fn ended(&mut self, instance: InstanceId, now: Time) {
        self.used(instance, now);
    }

    fn victim(&mut self, _now: Time) -> Option<InstanceId> {
        self.order.first().map(|(_, instance)| *instance)
    }
}

/// Keeps an idle instance for a fixed time; under memory pressure the least recently used goes
/// first. The keep-alive of most platforms (OpenWhisk: 10 minutes).
#[derive(Debug)]
pub struct Ttl {
    ttl: Duration,
    recency: Lru,
}

impl Ttl {
    /// Keeps idle instances for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        Ttl { ttl, recency: Lru::default() }
    }
}

impl KeepAlivePolicy for Ttl {
    fn used(&mut self, instance: InstanceId, now: Time) {
        self.recency.used(instance, now);
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.recency.idle(instance, now);
        Some(now + self.ttl)
    }

    fn ended(&mut self, instance: InstanceId, now: Time) {
        self.recency.ended(instance, now);
    }

    fn victim(&mut self, now: Time) -> Option<InstanceId> {
        self.recency.victim(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut policy = Ttl::new(Duration::from_secs(1));
        let [a, b] = [InstanceId(1), InstanceId(2)];
        assert_eq!(policy.idle(a, Time(1)), Some(Time(1) + Duration::from_secs(1)));
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
