//! A simulated call, while it is under way and when it is over.

use std::time::Duration;

use openlambda_core::balancing::Ticket;
use openlambda_core::failure::FailureKind;
use openlambda_core::format::FormatNumber;
use openlambda_core::hash::mix;
use openlambda_core::invocation::{InvocationRecord, Phases, RequestId, StartKind};
use openlambda_core::metrics::Outcome;
use openlambda_core::time::Time;

use super::functions::Functions;

/// A call that is over, in numbers, as its client sees it. [`record`](Self::record) puts names in.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedCall<'a> {
    /// 0, 1, 2, … in the order of arrival.
    pub number: u64,
    /// The function, `0..functions`.
    pub function: u32,
    /// The balancer that it came to.
    pub balancer: u32,
    /// The worker that had it last; `None`: it came to none.
    pub worker: Option<u32>,
    /// How many workers it was tried on.
    pub attempts: u32,
    /// When it came to its balancer.
    pub arrived: Time,
    /// When its balancer had the answer.
    pub answered: Time,
    /// How warm it ran, if it did.
    pub start: Option<StartKind>,
    /// Where its time went. `queue` is what is in none of the others: waiting at the worker, at the
    /// balancer, and for attempts that failed.
    pub phases: Phases,
    /// The hops of the network, there and back.
    pub network: Duration,
    /// How it came out.
    pub outcome: Outcome,
    pub(super) functions: &'a Functions,
    pub(super) seed: u64,
}

impl SimulatedCall<'_> {
    /// Whether it was answered by its function.
    pub fn is_ok(&self) -> bool {
        self.outcome == Outcome::Ok
    }

    /// From arrival to answer: all phases and the network.
    pub fn latency(&self) -> Duration {
        self.answered.since(self.arrived)
    }

    /// The same with names, as a live worker writes it.
    pub fn record(&self) -> InvocationRecord {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        InvocationRecord {
            v: FormatNumber,
            request_id: RequestId::from_bits(
                mix(self.seed, self.number),
                mix(self.number, self.seed),
            ),
            function: self.functions.name(self.function).clone(),
            digest: Some(self.functions.digest(self.function)),
            worker: self.worker.map(|worker| format!("w{worker}")).unwrap_or_default(),
            arrived_ns: self.arrived.as_nanos(),
            start: self.start,
            queue_ns: ns(self.phases.queue),
            pull_ns: ns(self.phases.pull),
            create_ns: ns(self.phases.create),
            init_ns: ns(self.phases.init),
            run_ns: ns(self.phases.run),
            network_ns: ns(self.network),
            outcome: self.outcome.as_str().to_owned(),
        }
    }
}

/// A call that is under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    pub(super) number: u64,
    pub(super) function: u32,
    pub(super) balancer: u32,
    pub(super) ticket: Ticket,
    pub(super) service: Duration,
    pub(super) arrived: Time,
    pub(super) attempts: u32,
    /// Workers were asked to keep places for it.
    pub(super) reserved: bool,
    /// The worker that has it, or had it last.
    pub(super) worker: Option<u32>,
    /// When it began to run there, how warm, and what it had waited for.
    pub(super) ran: Option<(Time, StartKind, Phases)>,
    /// How the worker answered, and when.
    pub(super) answer: Option<(Time, Result<(), FailureKind>)>,
}

/// Calls that are under way, in places that are used again.
#[derive(Debug, Default)]
pub(super) struct Calls {
    places: Vec<Option<UnderWay>>,
    free: Vec<u32>,
}

/// A place among [`Calls`].
pub(super) type CallId = u32;

impl Calls {
    pub(super) fn insert(&mut self, call: UnderWay) -> CallId {
        match self.free.pop() {
            Some(id) => {
                self.places[id as usize] = Some(call);
                id
            }
            None => {
                self.places.push(Some(call));
                CallId::try_from(self.places.len() - 1).expect("fewer than 2^32 calls at once")
            }
        }
    }

    pub(super) fn get(&self, id: CallId) -> &UnderWay {
        self.places[id as usize].as_ref().expect("it is under way")
    }

    pub(super) fn get_mut(&mut self, id: CallId) -> &mut UnderWay {
        self.places[id as usize].as_mut().expect("it is under way")
    }

    pub(super) fn remove(&mut self, id: CallId) -> UnderWay {
        self.free.push(id);
        self.places[id as usize].take().expect("it is under way")
    }
}
