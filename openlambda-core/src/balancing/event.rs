//! What membership says of a cluster's workers: [`ClusterEvent`].
//!
//! A *source* knows which workers there are: they announce themselves, a configuration lists them, DNS
//! or an orchestrator knows them. It says what it knows in these events, and nothing else. A *follower*
//! acts on them: the live balancer hands them to the pure [`Balancer`](super::balancer::Balancer); another
//! one may write a configuration, or show who is there. Neither knows the other.
//!
//! ```text
//!  Joined ─▶ ready ─ Unhealthy ─▶ not ready ─ Report ─▶ ready ─ Draining ─▶ not ready …… Left
//! ```
//!
//! # What a source owes
//!
//! A worker's first event is [`Joined`](Change::Joined), its last one [`Left`](Change::Left). Others may
//! be lost or come twice, for networks lose and repeat; a [`Report`](Change::Report) from time to time
//! repairs what was lost, and says that the worker is alive.
//!
//! # What a follower owes
//!
//! There is one worker of a name: who joins takes the place of who had the name before. What is said
//! afterwards of another [`Member`] by that name is passed over, but for one case: a report by a worker
//! whose name nobody has any more is the word that it is there, as [`Joined`](Change::Joined) is.
//!
//! What is said again is no news: a worker that joins as it is known stays what it is, healthy or not. And
//! a worker that several sources tell of is there until the last of them says that it has left.

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
    /// It cannot be reached, or says nothing. A report makes it healthy again.
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
