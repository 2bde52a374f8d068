//! The state of an experiment: balancers, workers, calls, calendar.

use openlambda_core::balancing::WorkerLoad;
use openlambda_core::failure::FailureKind;
use openlambda_core::random::Rng;
use openlambda_core::time::Time;

use super::calendar::Calendar;
use super::calls::{CallId, Calls, SimulatedCall};
use super::clients::Clients;
use super::config::SimConfig;
use super::frontend::Frontend;
use super::functions::Functions;
use super::host::Host;
use super::on_the_way::{OnTheWay, Report};
use super::what::What;

/// See the module's documentation. What happens in it is in `experiment.rs`, `balancers.rs` and
/// `workers.rs`.
pub(super) struct World<'a, R> {
    pub(super) config: &'a SimConfig,
    pub(super) calendar: Calendar<What>,
    pub(super) functions: Functions,
    pub(super) calls: Calls,
    pub(super) clients: Clients<R>,
    pub(super) frontends: Vec<Frontend>,
    pub(super) hosts: Vec<Host>,
    pub(super) loads: OnTheWay<WorkerLoad>,
    pub(super) reports: OnTheWay<Report>,
    /// How many calls have come to a balancer.
    pub(super) arrived: u64,
    /// What goes wrong.
    pub(super) faults: Rng,
    /// To which balancer a call comes.
    pub(super) doors: Rng,
    pub(super) releases: Rng,
}

impl<R: FnMut(&SimulatedCall<'_>)> World<'_, R> {
    pub(super) fn now(&self) -> Time {
        self.calendar.now()
    }

    /// A call is over. `failure`: how, if it was not answered by its function.
    pub(super) fn call_over(&mut self, id: CallId, failure: Option<FailureKind>) {
        let call = self.calls.remove(id);
        self.clients.hear(&call, failure, &self.functions, self.config, &mut self.calendar);
    }
}
