//! Start-time fair queueing.

use std::time::Duration;

use super::{Arrival, Estimates, QueueEntry, QueuePolicy};
use crate::scheduler::VersionId;
use crate::time::Time;

/// Serves functions in turn, by the time that their calls take: each version of a function is a flow,
/// and of those that wait none gets more than its share of the worker, however many calls it sends.
///
/// A call's *start tag* is where its flow's last call ended in virtual time, or the virtual time now if
/// that is later; its *finish tag* is its expected run later. Virtual time is the start tag of the call
/// that began to run last. The lowest start tag is served first. The time of a run is known only when it
/// is over: then the flow's finish tag is corrected by what it took more or less than was expected, so
/// that estimates that are wrong do not add up. Until its first run is over, a flow's calls count as a
/// millisecond. A call that leaves before it runs was a call of its flow all the same.
///
/// Where estimates are right, what two flows got differs, over any time in which both always have calls
/// that wait, by no more than the longest run of the one and of the other, for each call that the worker
/// runs at once.
///
/// Source: P. Goyal, H. M. Vin, H. Cheng, Start-time fair queuing, SIGCOMM 1996; with several servers:
/// W. Jin, J. S. Chase, J. Kaur, Interposed proportional sharing (SFQ(D)), SIGMETRICS 2004.
#[derive(Clone, Debug, Default)]
pub struct Fair {
    virtual_time: u64,
    /// The finish tag of each flow's last call, by version.
    finished: Vec<u64>,
    estimates: Estimates,
}

/// What a run is taken for before one is over.
const UNKNOWN: Duration = Duration::from_millis(1);

impl Fair {
    fn expected(&self, version: VersionId) -> u64 {
        self.estimates.of(version).unwrap_or(UNKNOWN).as_nanos() as u64
    }

    fn finish_tag(&mut self, version: VersionId) -> &mut u64 {
        let at = version.0 as usize;
        if at >= self.finished.len() {
            self.finished.resize(at + 1, 0);
        }
        &mut self.finished[at]
    }
}

impl QueuePolicy for Fair {
    fn learns(&self) -> bool {
        true
    }

    fn rank(&mut self, call: &Arrival, _: Time) -> u64 {
        let (now, expected) = (self.virtual_time, self.expected(call.version));
        let finish = self.finish_tag(call.version);
        let start = now.max(*finish);
        *finish = start.saturating_add(expected);
        start
    }

    fn started(&mut self, _: &Arrival, rank: u64, _: Time) {
        self.virtual_time = self.virtual_time.max(rank);
    }

    fn finished(&mut self, version: VersionId, run: Duration, _: Time) {
        let expected = self.expected(version);
        self.estimates.observe(version, run);
        let run = u64::try_from(run.as_nanos()).unwrap_or(u64::MAX / 4);
        let finish = self.finish_tag(version);
        *finish = finish.saturating_add(run).saturating_sub(expected);
    }

    fn forgotten(&mut self, version: VersionId) {
        *self.finish_tag(version) = 0;
        self.estimates.forget(version);
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> QueueEntry {
    let about = "whose function has had the least time";
    let source = "Goyal, Vin, Cheng, Start-time fair queuing, SIGCOMM 1996";
    QueueEntry::new("fair", about, source, || Box::new(Fair::default()))
}
