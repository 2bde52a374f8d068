//! What membership reports about a cluster's workers: [`ClusterEvent`].
//!
//! A *source* knows which workers exist: they announce themselves, a configuration lists them, or DNS
//! or an orchestrator knows them. A source reports them by these events alone. A *follower* acts on
//! the events: the live balancer hands them to the pure [`Balancer`](super::balancer::Balancer); another
//! follower may write a configuration or show the list. Sources and followers do not know each other.
//!
//! ```text
//!  Joined ─▶ ready ─ Unhealthy ─▶ not ready ─ Report ─▶ ready ─ Draining ─▶ not ready …… Left
//! ```
//!
//! # What a source must do
//!
//! A worker's first event is [`Joined`](Change::Joined), its last one [`Left`](Change::Left). Events
//! between them may get lost or come twice, because networks lose and repeat messages. A periodic
//! [`Report`](Change::Report) makes up for lost events, and says that the worker is alive.
//!
//! # What a follower must do
//!
//! A name belongs to one worker at a time: a worker that joins replaces the one that had its name.
//! The follower ignores later events of the replaced [`Member`], with one exception: when no worker
//! has the name any more, a report counts as [`Joined`](Change::Joined).
//!
//! A repeated event changes nothing: a worker that joins again unchanged keeps its health. A worker that
//! several sources report stays until the last of them says that it has left.

use std::sync::Arc;

use http::uri::Authority;

use super::{WorkerInfo, WorkerLoad};
use crate::function::FunctionName;

/// One start of a worker, and where it is reached.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Member {
    /// Its stable name, its weight, and how much it can take.
    pub info: WorkerInfo,
    /// Differs at every start of the worker. It is compared, never ordered.
    pub incarnation: u64,
    /// Where it listens, `host:port`.
    pub address: Authority,
}

impl Member {
    /// A worker that listens at `address`.
    pub fn new(info: WorkerInfo, incarnation: u64, address: Authority) -> Self {
        Member { info, incarnation, address }
    }

    /// Its stable name.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Whether both are one start of one worker, at one address. Its weight may have changed.
    pub fn is(&self, other: &Member) -> bool {
        self.incarnation == other.incarnation
            && self.info.name == other.info.name
            && self.address == other.address
    }
}

/// Something happened to a worker.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ClusterEvent {
    /// The worker.
    pub worker: Arc<Member>,
    /// What happened.
    pub change: Change,
}

impl ClusterEvent {
    /// `change` happened to `worker`.
    pub fn new(worker: Arc<Member>, change: Change) -> Self {
        ClusterEvent { worker, change }
    }
}

/// What happened to a worker.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// It is there and takes calls.
    Joined,
    /// It is gone for good.
    Left,
    /// It cannot be reached, or sends nothing. A report makes it healthy again.
    Unhealthy,
    /// It takes no new calls from now on.
    Draining,
    /// The state as a whole, which replaces what was known.
    Report {
        /// The load.
        load: WorkerLoad,
        /// Functions with idle instances, and how many.
        idle: Vec<(FunctionName, u32)>,
        /// Whether it takes no new calls.
        draining: bool,
    },
    /// An instance became idle. No other follower is told.
    Idle {
        /// The function.
        function: FunctionName,
    },
    /// An idle instance is gone.
    Evicted {
        /// The function.
        function: FunctionName,
    },
    /// A slot is kept for a call of the follower's own.
    Offered {
        /// The follower's number for the call.
        ticket: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_one_start_at_one_place() {
        let member = |name: &str, incarnation, address: &'static str| {
            let info = WorkerInfo::new(name, 4);
            Member::new(info, incarnation, Authority::from_static(address))
        };
        let one = member("one", 1, "127.0.0.1:1");
        let mut heavier = one.clone();
        heavier.info.weight = 2.0;
        assert!(one.is(&heavier));
        for other in
            [("two", 1, "127.0.0.1:1"), ("one", 2, "127.0.0.1:1"), ("one", 1, "127.0.0.1:2")]
        {
            assert!(!one.is(&member(other.0, other.1, other.2)), "{other:?}");
        }
    }
}
