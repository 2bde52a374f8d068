//! The balancing contract: which worker handles an invocation.
//!
//! A [`BalancingPolicy`] is a pure state machine. It sees the request, a read-only
//! [`ClusterView`] and a [`PolicyContext`] (now, seeded randomness, outputs), and decides. It never
//! waits, does no I/O and reads no clock, so the same object is benchmarked, property-tested,
//! simulated, and run in the live balancer.
//!
//! One reducer, [`Cluster`], owns what every policy needs (which workers exist and are healthy,
//! in-flight counts, weights, what each worker holds) and applies an event *before* policies observe it.
//!
//! ```text
//!            ┌────────────── To(worker) ───────────────▶ dispatched ─▶ completed
//! request ─▶ select ─ Hold(until) ─▶ held ─ cx.bind ───▶ dispatched ─▶ completed
//!            │                 │      └──── until ─────▶ refused
//!            │                 └ cx.reserve ─▶ offered ─ cx.bind (late binding)
//!            ├─ Probe(set) ─▶ probed … ─▶ select again
//!            └─ Refuse ─▶ refused
//! ```

pub mod balancer;
mod cluster;
mod event;
mod idle;
mod ids;
mod latency;
pub mod retry;

use std::fmt;
use std::time::Duration;

pub use cluster::{Cluster, ClusterView, WorkerInfo, WorkerView};
pub use event::{Change, ClusterEvent, Member};
pub use ids::{ColourId, FunctionId, PackageId, Ticket, WorkerId, WorkerLoad};
pub use latency::LatencyByLoad;

use crate::failure::FailureKind;
use crate::invocation::StartKind;
use crate::random::Rng;
use crate::time::Time;

/// Selects a worker for each invocation.
///
/// **Concurrency**: one value per balancer, behind a short lock; methods are never called
/// concurrently.
///
/// **Cost**: `select` and `observe` do no I/O and, in the steady state, no allocation: they are on
/// the path of every invocation.
///
/// **Ordering**: an event is applied to the view first, then observed. After `select` returns
/// [`Decision::To`], the policy observes [`PolicyEvent::Dispatched`] for it like for any other.
///
/// **Robustness**: events may be lost or repeated (networks), except those about the balancer's own
/// tickets: each dispatched ticket gets exactly one [`PolicyEvent::Completed`].
///
/// **Late binding**: for a request that it holds, a policy may [reserve](PolicyContext::reserve) a
/// place in the queues of several workers. A worker whose queue has reached the reservation keeps a
/// slot free and [offers](PolicyEvent::Offered) it; the policy binds the request to it immediately, or
/// lets the offer go. The balancer does the rest: when a request is bound, refused or abandoned, it
/// cancels the other reservations, and it answers each offer at once, by the request or by a
/// cancellation. Reservations, offers and cancellations may get lost like other events, and not every
/// worker supports them, so a policy binds without an offer when none comes.
///
/// **Duty**: never choose a worker that is not ready in the view, nor an excluded one while another
/// is ready; refuse with [`Refusal::NoWorker`] when there is none. The suite
/// `conformance::balancing` holds every policy to that.
pub trait BalancingPolicy: Send + fmt::Debug {
    /// Decides where `request` goes.
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision;

    /// Observes an event; may bind held tickets through `cx`.
    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        let _ = (event, view, cx);
    }

    /// When the policy wants `on_wakeup` next, if at all. Asked after every other call.
    fn next_wakeup(&self) -> Option<Time> {
        None
    }

    /// The time that `next_wakeup` named has come.
    fn on_wakeup(&mut self, view: &ClusterView<'_>, cx: &mut PolicyContext<'_>) {
        let _ = (view, cx);
    }
}

/// What a policy knows of a request.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestInfo<'a> {
    /// The request's name.
    pub ticket: Ticket,
    /// The function, for indexing.
    pub function: FunctionId,
    /// A stable hash of the function's name, for rings.
    pub key: u64,
    /// 0 for the first try.
    pub attempt: u32,
    /// Workers that failed this request before.
    pub excluded: &'a [WorkerId],
    /// The function's packages.
    pub packages: &'a [PackageId],
    /// The function's colour.
    pub colour: Option<ColourId>,
    /// How long it may run, where that is known.
    pub size_estimate: Option<Duration>,
}

impl<'a> RequestInfo<'a> {
    /// A first attempt with nothing known but the function.
    pub fn new(ticket: Ticket, function: FunctionId, key: u64) -> Self {
        RequestInfo {
            ticket,
            function,
            key,
            attempt: 0,
            excluded: &[],
            packages: &[],
            colour: None,
            size_estimate: None,
        }
    }

    /// Whether an earlier attempt failed on `worker`.
    pub fn excludes(&self, worker: WorkerId) -> bool {
        self.excluded.contains(&worker)
    }
}

/// What a policy is given besides request and view.
#[derive(Debug)]
pub struct PolicyContext<'a> {
    /// The time now.
    pub now: Time,
    /// The balancer's generator for this policy.
    pub rng: &'a mut Rng,
    outputs: &'a mut Vec<Output>,
}

impl<'a> PolicyContext<'a> {
    /// A context that collects outputs in a reused buffer.
    pub fn new(now: Time, rng: &'a mut Rng, outputs: &'a mut Vec<Output>) -> Self {
        PolicyContext { now, rng, outputs }
    }

    /// Sends a held request to a worker. A ticket that is not held any more is passed over, and so
    /// is a worker that is not ready: the ticket stays held then.
    pub fn bind(&mut self, ticket: Ticket, worker: WorkerId, why: Why) {
        self.outputs.push(Output::Bind { ticket, worker, why });
    }

    /// Reserves a place for a held request in a worker's queue. When the place comes to the head,
    /// [`PolicyEvent::Offered`] follows. It is passed over for a ticket that is not held, for a worker
    /// that is not ready, and when there is a reservation already.
    pub fn reserve(&mut self, ticket: Ticket, worker: WorkerId) {
        self.outputs.push(Output::Reserve { ticket, worker });
    }

    /// Takes a reservation back. Not needed for those of a request that is bound, refused or
    /// abandoned.
    pub fn cancel(&mut self, ticket: Ticket, worker: WorkerId) {
        self.outputs.push(Output::Cancel { ticket, worker });
    }

    /// Asks a worker for its load without any request waiting for it; the answer comes as
    /// [`PolicyEvent::Probed`].
    pub fn probe(&mut self, worker: WorkerId) {
        self.outputs.push(Output::Probe { worker });
    }
}

/// What a policy asked for through its [`PolicyContext`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Output {
    /// Send the held request to this worker.
    Bind {
        /// The request.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
        /// The reason.
        why: Why,
    },
    /// Ask this worker for its load.
    Probe {
        /// The worker.
        worker: WorkerId,
    },
    /// Reserve a place for the held request in this worker's queue.
    Reserve {
        /// The request.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
    },
    /// Take the reservation back.
    Cancel {
        /// The request.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
    },
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this worker.
    To(WorkerId, Why),
    /// It waits at the balancer until the policy binds it, but not longer than `until`; then it is
    /// refused as overloaded.
    Hold {
        /// The latest time.
        until: Time,
    },
    /// Ask these workers for their load first, then select again.
    Probe(ProbeSet),
    /// It is not served.
    Refuse(Refusal),
}

/// Why a policy chose a worker, in a word or two, for traces: `turn`, `random`, `home`, `spill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why(pub &'static str);

/// Up to eight workers to probe, without allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeSet {
    workers: [WorkerId; ProbeSet::MOST],
    len: u8,
}

impl ProbeSet {
    /// The most workers that one decision probes.
    pub const MOST: usize = 8;

    /// The first eight of `workers`.
    pub fn new(workers: &[WorkerId]) -> Self {
        let mut set =
            ProbeSet { workers: [WorkerId { slot: 0, generation: 0 }; ProbeSet::MOST], len: 0 };
        for (place, worker) in set.workers.iter_mut().zip(workers) {
            *place = *worker;
            set.len += 1;
        }
        set
    }

    /// The workers.
    pub fn as_slice(&self) -> &[WorkerId] {
        &self.workers[..usize::from(self.len)]
    }
}

/// Why a request is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// No worker is ready. The client gets 503.
    NoWorker,
    /// All workers are too busy. The client gets 429.
    Overloaded,
}

impl Refusal {
    /// The kind of failure that the client gets.
    pub const fn kind(self) -> FailureKind {
        match self {
            Refusal::NoWorker => FailureKind::NoWorker,
            Refusal::Overloaded => FailureKind::QueueFull,
        }
    }
}

/// What happened, as policies observe it. The view shows the state after it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum PolicyEvent<'a> {
    /// A worker joined, and is ready.
    Joined {
        /// The worker.
        worker: WorkerId,
    },
    /// A worker is gone for good; the view does not know it any more. Requests that were sent to it
    /// complete all the same, later.
    Left {
        /// The worker.
        worker: WorkerId,
        /// Its stable name.
        name: &'a str,
        /// Its name's hash.
        name_hash: u64,
    },
    /// A worker became ready, or stopped being so (unhealthy, draining).
    ReadyChanged {
        /// The worker.
        worker: WorkerId,
        /// Whether it takes requests now.
        ready: bool,
    },
    /// A request was sent to a worker.
    Dispatched {
        /// The request.
        ticket: Ticket,
        /// Its function.
        function: FunctionId,
        /// The worker.
        worker: WorkerId,
    },
    /// A request was answered, or failed.
    Completed {
        /// The request.
        ticket: Ticket,
        /// Its function.
        function: FunctionId,
        /// The worker.
        worker: WorkerId,
        /// From dispatch to the end of the reply.
        latency: Duration,
        /// Whether its start was cold or warm, when it ran.
        start: Option<StartKind>,
        /// Whether it was answered.
        ok: bool,
    },
    /// A held request went away: its client left, or its time was up.
    Abandoned {
        /// The request.
        ticket: Ticket,
    },
    /// A held request's reservation came to the head of the worker's queue: a slot is kept free for
    /// it. It is given up unless the policy binds the request to this worker now.
    Offered {
        /// The request.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
    },
    /// An instance of the function became idle on the worker. A lease to this balancer: no other
    /// one was told.
    Idle {
        /// The worker.
        worker: WorkerId,
        /// The function.
        function: FunctionId,
    },
    /// An instance of the function was evicted from the worker.
    Evicted {
        /// The worker.
        worker: WorkerId,
        /// The function.
        function: FunctionId,
    },
    /// A worker's periodic report.
    Load {
        /// The worker.
        worker: WorkerId,
        /// The report.
        load: WorkerLoad,
    },
    /// The answer to a probe.
    Probed {
        /// The worker.
        worker: WorkerId,
        /// The answer.
        load: WorkerLoad,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers and balancers are updated one after the other.
    #[test]
    fn a_report_of_an_older_or_newer_worker_is_understood() {
        let old = r#"{"running":1,"queued":2,"idle":3,"memory_used":4,"memory_total":5}"#;
        let load: WorkerLoad = serde_json::from_str(old).unwrap();
        assert_eq!((load.memory_total, load.latency_ns), (5, 0), "not known");
        let newer = r#"{"running":1,"latency_ns":7,"unheard_of":8}"#;
        let load: WorkerLoad = serde_json::from_str(newer).unwrap();
        assert_eq!((load.running, load.queued, load.latency_ns), (1, 0, 7));
    }
}
