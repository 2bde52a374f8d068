//! A keep-alive policy: [`Doubling`].

use std::collections::BTreeMap;
use std::time::Duration;

use openlambda_core::catalog::ParameterInfo;
use openlambda_core::keep_alive::{InstanceFacts, KeepAliveEntry, KeepAlivePolicy, Lru};
use openlambda_core::scheduler::InstanceId;
use openlambda_core::time::Time;

/// No instance is kept longer than `seconds` times this.
const MOST: u32 = 64;

/// Keeps an instance for some seconds without use, and twice as long each time that it is used
/// again before they are over.
///
/// When memory is short, the least recently used instance is evicted first. O(log instances).
#[derive(Debug)]
pub struct Doubling {
    first: Duration,
    /// The factor by which each instance's time has grown.
    times: BTreeMap<InstanceId, u32>,
    recency: Lru,
}

impl Doubling {
    /// Keeps an instance for `first` after its first use.
    pub fn new(first: Duration) -> Self {
        Doubling { first, times: BTreeMap::new(), recency: Lru::default() }
    }

    /// Its line in a catalogue.
    pub fn entry() -> KeepAliveEntry {
        let seconds = ParameterInfo::new("seconds", 10, "without use, at first");
        KeepAliveEntry {
            name: "doubling".to_owned(),
            about: "some seconds without use, and twice as long after each use".to_owned(),
            source: "examples/outside".to_owned(),
            parameters: vec![seconds.within(0.0..=1e6)],
            build: Box::new(|given| {
                let first = Duration::from_secs_f64(given.number("seconds")?);
                Ok(Box::new(Doubling::new(first)))
            }),
        }
    }
}

impl KeepAlivePolicy for Doubling {
    fn started(&mut self, instance: InstanceId, _facts: &InstanceFacts, _now: Time) {
        self.times.insert(instance, 1);
    }

    fn used(&mut self, instance: InstanceId, now: Time) {
        self.recency.used(instance, now);
        if let Some(times) = self.times.get_mut(&instance) {
            *times = (2 * *times).min(MOST);
        }
    }

    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time> {
        self.recency.idle(instance, now);
        Some(now + self.first * *self.times.get(&instance)?)
    }

    fn ended(&mut self, instance: InstanceId, now: Time) {
        self.recency.ended(instance, now);
        self.times.remove(&instance);
    }

    fn victim(&mut self, now: Time) -> Option<InstanceId> {
        self.recency.victim(now)
    }
}
