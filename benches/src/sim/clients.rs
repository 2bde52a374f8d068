//! The clients: calls at the workload's times (an open system), or users in a closed loop.

use std::time::Duration;

use openlambda_core::failure::FailureKind;
use openlambda_core::invocation::Phases;
use openlambda_core::metrics::Outcome;
use openlambda_core::random::Rng;

use super::calendar::Calendar;
use super::calls::{SimulatedCall, UnderWay};
use super::config::{SimConfig, Users};
use super::functions::Functions;
use super::what::What;
use crate::workload::{Arrival, Workload};

/// All clients of an experiment. `record` gets each call that is over.
pub(super) struct Clients<R> {
    record: R,
    users: Option<Users>,
    workload: Workload,
    next_arrival: Option<Arrival>,
    thoughts: Rng,
    /// How many of their calls are over.
    pub(super) over: u64,
}

impl<R: FnMut(&SimulatedCall<'_>)> Clients<R> {
    pub(super) fn new(config: &SimConfig, record: R) -> Self {
        Clients {
            record,
            users: config.users,
            workload: Workload::new(config.workload, config.seed),
            next_arrival: None,
            thoughts: Rng::from_seed_and_label(config.seed, "thoughts"),
            over: 0,
        }
    }

    /// Enters their first calls.
    pub(super) fn begin(&mut self, calendar: &mut Calendar<What>) {
        match self.users {
            None => self.await_arrival(calendar),
            Some(users) => (0..users.count).for_each(|_| self.think(users, calendar)),
        }
    }

    /// The call whose time has come, in an open system. The next one is entered.
    pub(super) fn arrival(&mut self, calendar: &mut Calendar<What>) -> Arrival {
        let arrival = self.next_arrival.take().expect("it was drawn");
        self.await_arrival(calendar);
        arrival
    }

    fn await_arrival(&mut self, calendar: &mut Calendar<What>) {
        self.next_arrival = self.workload.next();
        if let Some(arrival) = &self.next_arrival {
            calendar.in_order(arrival.at, What::Arrival);
        }
    }

    /// A call is over. `failure`: how, if it was not answered by its function.
    pub(super) fn hear(
        &mut self,
        call: &UnderWay,
        failure: Option<FailureKind>,
        functions: &Functions,
        config: &SimConfig,
        calendar: &mut Calendar<What>,
    ) {
        let now = calendar.now();
        let latency = now.since(call.arrived);
        let network = if call.worker.is_some() { 2 * config.hop } else { Duration::ZERO };
        let mut phases = call.ran.map(|(_, _, phases)| phases).unwrap_or_default();
        if let (Some((began, ..)), Some((ended, _))) = (call.ran, call.answer) {
            phases.run = ended.since(began);
        }
        let Phases { pull, create, init, run, .. } = phases;
        phases.queue = latency.saturating_sub(network + pull + create + init + run);
        self.over += 1;
        (self.record)(&SimulatedCall {
            number: call.number,
            function: call.function,
            balancer: call.balancer,
            worker: call.worker,
            attempts: call.attempts,
            arrived: call.arrived,
            answered: now,
            start: call.ran.map(|(_, start, _)| start),
            phases,
            network: network.min(latency),
            outcome: failure.map_or(Outcome::Ok, Outcome::Failed),
            functions,
            seed: config.seed,
        });
        if let Some(users) = self.users {
            self.think(users, calendar);
        }
    }

    /// A user thinks, then makes a call, if any is left to make.
    fn think(&mut self, users: Users, calendar: &mut Calendar<What>) {
        let at = calendar.now() + self.thoughts.exponential(users.think);
        if let Some(Arrival { function, service, .. }) = self.workload.call_at(at) {
            calendar.at(at, What::Call { function, service });
        }
    }
}
