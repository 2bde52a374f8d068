//! The trait of a queue policy, and the events that it observes.

use std::fmt;
use std::time::Duration;

use crate::catalog::{Catalog, Entry, Maker};
use crate::scheduler::VersionId;
use crate::time::Time;

/// Orders the calls that wait on a worker. See the [module's documentation](super).
///
/// The scheduler asks for the [`rank`](Self::rank) of a call once. If the policy
/// [`learns`](Self::learns), the scheduler asks for every call, and reports when each starts and
/// finishes. Otherwise the policy sees only calls that have to wait, and warm starts cost nothing.
///
/// ```text
///   rank ──▶ (waits) ──started──▶ (runs) ──finished──▶
///                └─left──▶
/// ```
pub trait QueuePolicy: Send + fmt::Debug {
    /// Whether the policy observes all calls, not only those that wait. Asked once.
    fn learns(&self) -> bool {
        false
    }

    /// Whether the policy's order can differ from the order of arrival. Asked once.
    fn orders(&self) -> bool {
        true
    }

    /// The rank of a call that has arrived: the lowest is served first.
    fn rank(&mut self, call: &Arrival, now: Time) -> u64;

    /// Whether a call that finds a free slot runs at once, even if the worker already runs as many calls
    /// as its limit allows.
    fn passes_by(&self, call: &Arrival) -> bool {
        let _ = call;
        false
    }

    /// Whether to serve the highest rank now, and among equal ranks the call that came last.
    ///
    /// Asked whenever a place is free. `waiting_since` is the start of the present time without an empty
    /// queue: since then at least one call has been waiting.
    fn newest_first(&mut self, waiting_since: Time, now: Time) -> bool {
        let _ = (waiting_since, now);
        false
    }

    /// A call of this rank begins to run. Called only if the policy [`learns`](Self::learns).
    fn started(&mut self, call: &Arrival, rank: u64, now: Time) {
        let _ = (call, rank, now);
    }

    /// A call of the version that has a rank leaves before it runs: it was cancelled, or rejected after a
    /// wait. Called only if the policy [`learns`](Self::learns).
    fn left(&mut self, version: VersionId) {
        let _ = version;
    }

    /// A call has finished after running for `run`. Called only if the policy [`learns`](Self::learns).
    fn finished(&mut self, version: VersionId, run: Duration, now: Time) {
        let _ = (version, run, now);
    }

    /// The scheduler forgets a version; its id may be given to another one.
    fn forgotten(&mut self, version: VersionId) {
        let _ = version;
    }
}

/// A call that has arrived, or the reservation of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What it calls.
    pub version: VersionId,
    /// When it arrived.
    pub arrived: Time,
    /// Until when it may wait.
    pub deadline: Time,
}

/// The queue policies that can be chosen by name.
pub type QueueCatalog = Catalog<dyn QueuePolicy>;

/// A queue policy that can be chosen by name.
pub type QueueEntry = Entry<dyn QueuePolicy>;

/// Makes the queue policy of a worker.
pub type QueueMaker = Maker<dyn QueuePolicy>;
