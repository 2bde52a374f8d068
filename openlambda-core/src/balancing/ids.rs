//! The ids by which policies know workers, functions and requests, and a worker's load.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A worker's place in the cluster: a dense slot, and a generation that tells its users apart.
///
/// Slots are reused, so arrays can be indexed by [`index`](Self::index); a ring must hash the
/// worker's stable name ([`WorkerView::name_hash`](super::WorkerView::name_hash)) instead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl WorkerId {
    /// The dense slot, for indexing arrays.
    pub const fn index(self) -> usize {
        self.slot as usize
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}.{}", self.slot, self.generation)
    }
}

/// An interned function name: dense, in order of first sight. See [`Cluster::function`](super::Cluster::function).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u32);

/// An interned package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageId(pub u32);

/// An interned colour, the opaque locality hint of Palette (EuroSys'23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ColourId(pub u32);

/// Names one request within one balancer, from arrival to completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a worker says of its load, over all its balancers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerLoad {
    /// Invocations that run.
    pub running: u32,
    /// Invocations that wait.
    pub queued: u32,
    /// Idle instances.
    pub idle: u32,
    /// Bytes of the memory pool in use.
    pub memory_used: u64,
    /// The size of the memory pool.
    pub memory_total: u64,
    /// How long a call would take that came now, nanoseconds: what [`LatencyByLoad`](super::LatencyByLoad) says for the
    /// present number of running and queued ones. 0 when that is not known.
    pub latency_ns: u64,
}
