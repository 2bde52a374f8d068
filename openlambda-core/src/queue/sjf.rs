//! `sjf`: shortest expected processing time first.

use std::time::Duration;

use super::{Arrival, Estimates, QueueEntry, QueuePolicy};
use crate::scheduler::VersionId;
use crate::time::Time;

/// Serves the call first whose version's runs take the shortest time, by [`Estimates`]. A version that
/// has never run is served at once, so that its time becomes known; so are all of its calls that come
/// before its first run is over.
///
/// With known times it has the least mean latency of all orders that do not know the future. Long calls
/// may wait for as long as short ones keep coming.
///
/// Source: W. E. Smith, Various optimizers for single-stage production, Naval Research Logistics 3,
/// 1956 (one server). For functions: A. Fuerst et al., Ilúvatar, HPDC 2023.
#[derive(Clone, Debug, Default)]
pub struct Sjf {
    estimates: Estimates,
}

impl QueuePolicy for Sjf {
    fn learns(&self) -> bool {
        true
    }

    fn rank(&mut self, call: &Arrival, _: Time) -> u64 {
        self.estimates.of(call.version).map_or(0, |expected| expected.as_nanos() as u64)
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
    let about = "the call with the shortest expected run";
    let source = "Smith, Naval Research Logistics 1956; Fuerst et al. (Ilúvatar), HPDC 2023";
    QueueEntry::new("sjf", about, source, || Box::new(Sjf::default()))
}
