//! How long idle instances are kept, and which one goes first when memory is short.
//!
//! [`KeepAlivePolicy`] is a pure decider: the scheduler keeps one for the whole worker. It is
//! selected by name and parameters, as `ttl,seconds=60`: [`KeepAliveConfig`] reads that, [`ENTRIES`]
//! lists what there is.
//!
//! | name | evicts by time | evicts when memory is short |
//! |---|---|---|
//! | `ttl` | after a fixed time without use | the least recently used |
//! | `lru` | never | the least recently used |
//! | `freq` | never | the least frequently called |
//! | `size` | never | the largest |
//! | `landlord` | never | who has run out of credit: slow to start and small is rich |
//! | `greedy-dual` | never | the lowest of clock + frequency × cost / size |
//! | `histogram` | when no call is likely soon; starts an instance before the next is due | the least recently used |

mod catalog;
mod freq;
mod greedy_dual;
mod histogram;
mod landlord;
mod lru;
mod order;
mod size;
mod ttl;

use std::fmt;
use std::time::Duration;

pub use catalog::{ENTRIES, KeepAliveConfig, KeepAliveEntry, NAMES, ParameterInfo};
pub use freq::Freq;
pub use greedy_dual::GreedyDual;
pub use histogram::{Histogram, HistogramConfig};
pub use landlord::Landlord;
pub use lru::Lru;
pub use size::Size;
pub use ttl::Ttl;

use crate::config::ConfigError;
use crate::scheduler::{InstanceId, VersionId};
use crate::time::Time;

/// Decides which idle instances live on.
///
/// The scheduler tells of each instance `started` once, then `idle` and `used` in turn, then
/// `ended` once, from whatever state. `invoked` comes for each invocation that begins to run in an
/// instance, after its `used` if it was idle. A victim is always one that is idle. Of an id, the low
/// half is used again when an instance is gone ([`InstanceId`]): the whole of it is the instance's name.
///
/// ```text
///   started ──▶ (in use) ──idle──▶ (idle) ──ended──▶ (gone)
///                  │ ▲               │
///            ended │ └─────used──────┘
///                  ▼
///               (gone)
/// ```
pub trait KeepAlivePolicy: Send + fmt::Debug {
    /// An instance is ready for its first use.
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, now: Time) {
        let _ = (instance, facts, now);
    }

    /// An idle instance is taken into use.
    fn used(&mut self, instance: InstanceId, now: Time);

    /// An invocation that arrived at `arrived` begins to run in the instance. It may be the first
    /// of a use, one beside others, or the next without a rest between them.
    fn invoked(&mut self, instance: InstanceId, arrived: Time, now: Time) {
        let _ = (instance, arrived, now);
    }

    /// An instance became idle. Returns when to evict it if it is not used before, at once when
    /// that is not after `now`; `None` keeps it until memory is short.
    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time>;

    /// An instance is gone, or going.
    fn ended(&mut self, instance: InstanceId, now: Time);

    /// The idle instance to evict next, when memory is short. `None` when none is idle. Does not
    /// change which is idle: `ended` follows when the scheduler has evicted it.
    fn victim(&mut self, now: Time) -> Option<InstanceId>;

    /// When it wants [`prewarm`](Self::prewarm) to be asked, although nothing else may happen until
    /// then: no instance needs to be there. `None`: never. May change with any other call.
    fn next_wakeup(&self) -> Option<Time> {
        None
    }

    /// Takes a version that shall have an instance now because a call of it is expected. The
    /// scheduler asks again until `None`, and after that [`next_wakeup`](Self::next_wakeup) is later
    /// than `now`. It may refuse the wish: while it drains, or when a newer version is there.
    fn prewarm(&mut self, now: Time) -> Option<VersionId> {
        let _ = now;
        None
    }
}

/// What a keep-alive policy may know of an instance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceFacts {
    /// The version that it runs.
    pub version: VersionId,
    /// What it takes from the memory pool, bytes.
    pub memory: u64,
    /// What starting it anew would cost: its own start, measured.
    pub start_cost: Duration,
}

/// How long `ttl` keeps an idle instance unless told otherwise: as OpenWhisk does.
pub const DEFAULT_TTL: Duration = Duration::from_secs(600);

/// The policy that `text` names, with parameters after commas: `ttl,seconds=60`. `ttl` is the time of
/// the policy of that name when `text` does not give it.
///
/// # Errors
///
/// A name or parameter that is not known, with the nearest that is; a value that is out of range.
pub fn by_name(text: &str, ttl: Duration) -> Result<Box<dyn KeepAlivePolicy>, ConfigError> {
    let config: KeepAliveConfig = text.parse()?;
    Ok(config.or_ttl(ttl).build())
}

/// Costs of starts, as the policies that weigh them against memory count them.
fn milliseconds(cost: Duration) -> f64 {
    cost.as_secs_f64() * 1e3
}

/// Sizes in the same. What takes no memory counts as a byte, so that it can be divided by.
fn mebibytes(memory: u64) -> f64 {
    memory.max(1) as f64 / (1 << 20) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn facts(version: u32, mebibytes: u64, start_ms: u64) -> InstanceFacts {
        InstanceFacts {
            version: VersionId(version),
            memory: mebibytes << 20,
            start_cost: Duration::from_millis(start_ms),
        }
    }

    /// An instance that started for one invocation, which is over at `at` nanoseconds.
    pub(super) fn idle_at(
        policy: &mut dyn KeepAlivePolicy,
        instance: u64,
        facts: &InstanceFacts,
        at: u64,
    ) {
        let instance = InstanceId(instance);
        policy.started(instance, facts, Time(at));
        policy.invoked(instance, Time(at), Time(at));
        policy.idle(instance, Time(at));
    }

    /// Evicts the victim, as the scheduler does, and says which it was.
    pub(super) fn evict(policy: &mut dyn KeepAlivePolicy, at: u64) -> u64 {
        let victim = policy.victim(Time(at)).unwrap();
        policy.ended(victim, Time(at));
        victim.0
    }

    #[test]
    fn a_policy_is_made_from_a_text() {
        let ttl_of = |text: &str| {
            let mut policy = by_name(text, Duration::from_secs(7)).unwrap();
            policy.idle(InstanceId(0), Time::ZERO).map(Time::as_secs_f64)
        };
        assert_eq!(ttl_of("ttl"), Some(7.0));
        assert_eq!(ttl_of("ttl,seconds=0.5"), Some(0.5));
        assert_eq!(ttl_of("greedy-dual"), None);
        assert!(by_name("landlrod", DEFAULT_TTL).unwrap_err().to_string().contains("landlord"));
    }
}
