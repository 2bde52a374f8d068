//! How long idle instances are kept, and which one goes first when memory is short.
//!
//! [`KeepAlivePolicy`] is a pure decider: the scheduler keeps one for the whole worker. It is
//! selected by name: [`by_name`].
//!
//! | name | evicts by time | evicts under memory pressure |
//! |---|---|---|
//! | `ttl` | after a fixed time without use (default 10 minutes) | least recently used first |
//! | `lru` | never | least recently used first |

mod recency;

use std::fmt;
use std::time::Duration;

pub use recency::{Lru, Ttl};

use crate::scheduler::{InstanceId, VersionId};
use crate::time::Time;

/// Decides which idle instances live on.
///
/// The scheduler tells of each instance `started` once, then `idle` and `used` in turn, then
/// `ended` once, from whatever state. A victim is always one that is idle.
pub trait KeepAlivePolicy: Send + fmt::Debug {
    /// An instance is ready for its first use.
    fn started(&mut self, instance: InstanceId, facts: &InstanceFacts, now: Time) {
        let _ = (instance, facts, now);
    }

    /// An idle instance is taken into use.
    fn used(&mut self, instance: InstanceId, now: Time);

    /// An instance became idle. Returns when to evict it if it is not used before; `None` keeps it
    /// until memory is short.
    fn idle(&mut self, instance: InstanceId, now: Time) -> Option<Time>;

    /// An instance is gone, or going.
    fn ended(&mut self, instance: InstanceId, now: Time);

    /// The idle instance to evict next, when memory is short. `None` when none is idle. Does not
    /// change which is idle: `ended` follows when the scheduler has evicted it.
    fn victim(&mut self, now: Time) -> Option<InstanceId>;
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

/// The names that [`by_name`] knows.
pub const NAMES: [&str; 2] = ["ttl", "lru"];

/// The policy of this name; `ttl` is the time of the policies that have one. `None` for a name that
/// is not in [`NAMES`].
pub fn by_name(name: &str, ttl: Duration) -> Option<Box<dyn KeepAlivePolicy>> {
    match name {
        "ttl" => Some(Box::new(Ttl::new(ttl))),
        "lru" => Some(Box::new(Lru::default())),
        _ => None,
    }
}
