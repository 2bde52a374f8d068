//! `edf`: earliest deadline first.

use std::time::Duration;

use super::{Arrival, Estimates, QueueEntry, QueuePolicy};
use crate::catalog::ParameterInfo;
use crate::scheduler::VersionId;
use crate::time::Time;

/// Serves the call with the earliest deadline first: a call is due when `stretch` times the expected time
/// of its run has passed since its arrival, by [`Estimates`], and not later than it may wait. A call of a
/// version that has never run is due at once.
///
/// So short calls go first, as in [`Sjf`](super::Sjf), but none waits for ever: later calls are due later. Of all orders on one server it has the least maximal lateness (J. R. Jackson, Scheduling a
/// production line to minimize maximum tardiness, UCLA 1955).
///
/// Source of the deadlines: A. Fuerst et al., Ilúvatar, HPDC 2023 (earliest *effective* deadline: a
/// stretch of 1).
#[derive(Clone, Debug)]
pub struct Edf {
    stretch: f64,
    estimates: Estimates,
}

impl Edf {
    /// Deadlines after `stretch` times the expected time of a run: 0 or more.
    pub fn new(stretch: f64) -> Self {
        Edf { stretch: stretch.max(0.0), estimates: Estimates::default() }
    }
}

impl Default for Edf {
    fn default() -> Self {
        Edf::new(1.0)
    }
}

impl QueuePolicy for Edf {
    fn learns(&self) -> bool {
        true
    }

    fn rank(&mut self, call: &Arrival, _: Time) -> u64 {
        let expected = self.estimates.of(call.version).unwrap_or_default();
        let due = call.arrived.as_nanos() as f64 + self.stretch * expected.as_nanos() as f64;
        (due as u64).min(call.deadline.as_nanos())
    }

    fn finished(&mut self, version: VersionId, run: Duration, _: Time) {
        self.estimates.observe(version, run);
    }

    fn forgotten(&mut self, version: VersionId) {
        self.estimates.forget(version);
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> QueueEntry {
    let about = "how long after its arrival a call is due, in expected runs of it";
    QueueEntry {
        name: "edf".to_owned(),
        about: "the call with the earliest deadline".to_owned(),
        source: "Jackson 1955; Fuerst et al. (Ilúvatar), HPDC 2023".to_owned(),
        parameters: vec![ParameterInfo::new("stretch", 1, about).within(0..=1_000_000)],
        build: Box::new(|given| Ok(Box::new(Edf::new(given.number("stretch")?)))),
    }
}
