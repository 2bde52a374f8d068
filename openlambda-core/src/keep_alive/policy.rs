//! The trait of a keep-alive policy, and the events that it observes.

use std::fmt;
use std::time::Duration;

use crate::catalog::{Catalog, Entry, Maker};
use crate::scheduler::{InstanceId, VersionId};
use crate::time::Time;

/// Decides how long idle instances are kept, and which is evicted first.
///
/// For each instance the scheduler calls `started` once, then `idle` and `used` in turn, then `ended`
/// once, from any state. It calls `invoked` for each invocation that begins to run in an instance, after
/// `used` if the instance was idle. A victim is always an idle instance. The low half of an id is used
/// again when an instance is gone ([`InstanceId`]), so identify instances by the whole id.
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

    /// An invocation that arrived at `arrived` begins to run in the instance. It may be the first since the
    /// instance was idle, one beside others, or the next without idle time between them.
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

    /// When the scheduler has to call [`prewarm`](Self::prewarm), even if nothing else happens until
    /// then and no instance exists. `None`: never. May change with any other call.
    fn next_wakeup(&self) -> Option<Time> {
        None
    }

    /// Returns a version that should have an instance now because a call of it is expected. The
    /// scheduler calls again until `None`; after that [`next_wakeup`](Self::next_wakeup) is later
    /// than `now`. The scheduler may refuse the wish: while it drains, or when there is a newer version.
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
    /// What starting it again would cost: the measured time of its own start.
    pub start_cost: Duration,
}

/// The keep-alive policies that can be chosen by name.
pub type KeepAliveCatalog = Catalog<dyn KeepAlivePolicy>;

/// A keep-alive policy that can be chosen by name.
pub type KeepAliveEntry = Entry<dyn KeepAlivePolicy>;

/// Makes keep-alive policies: what a worker's configuration holds.
pub type KeepAliveMaker = Maker<dyn KeepAlivePolicy>;
