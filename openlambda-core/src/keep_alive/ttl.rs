//! `ttl`: evicts an instance after a fixed time without use.

use std::time::Duration;

use super::{KeepAliveEntry, KeepAlivePolicy, Lru};
use crate::catalog::{CENTURY, ParameterInfo};
use crate::scheduler::InstanceId;
use crate::time::Time;

/// How long `ttl` keeps an idle instance unless told otherwise: as OpenWhisk does.
pub const DEFAULT_TTL: Duration = Duration::from_secs(600);

/// Keeps an idle instance for a fixed time; when memory is short the least recently used goes
/// first.
///
/// The keep-alive of most platforms: OpenWhisk keeps a container for 10 minutes, and the providers'
/// clouds were measured at 5 to 27 minutes (Wang et al., *Peeking Behind the Curtains of Serverless
/// Platforms*, USENIX ATC 2018). O(1).
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

/// Its line in the catalogue.
pub(super) fn entry() -> KeepAliveEntry {
    let default = DEFAULT_TTL.as_secs();
    let seconds = ParameterInfo::new("seconds", default, "how long an idle instance is kept");
    KeepAliveEntry {
        name: "ttl".to_owned(),
        about: "a fixed time without use".to_owned(),
        source: "most platforms; OpenWhisk: 10 minutes".to_owned(),
        parameters: vec![seconds.within(0.0..=CENTURY)],
        build: Box::new(|given| {
            Ok(Box::new(Ttl::new(Duration::from_secs_f64(given.number("seconds")?))))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_counts_from_when_it_became_idle() {
        let mut policy = Ttl::new(Duration::from_secs(1));
        let [a, b] = [InstanceId(1), InstanceId(2)];
        assert_eq!(policy.idle(a, Time(1)), Some(Time(1_000_000_001)));
        policy.idle(b, Time(2));
        policy.used(a, Time(3));
        assert_eq!(policy.idle(a, Time(4)), Some(Time(1_000_000_004)));
        assert_eq!(policy.victim(Time(5)), Some(b));
    }
}
