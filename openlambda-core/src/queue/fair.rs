//! `fair`: start-time fair queueing.

use std::time::Duration;

use super::{Arrival, Estimates, QueueEntry, QueuePolicy};
use crate::scheduler::VersionId;
use crate::time::Time;

/// Serves functions in turn, by the time that their calls take: each version of a function is a flow, and
/// while flows wait, none of them gets more than its share of the worker, however many calls it sends.
///
/// A call's *start tag* is where its flow's last call ended in virtual time, or the virtual time now if
/// that is later; its *finish tag* is its expected run later. Virtual time is the start tag of the call
/// that began to run last. The lowest start tag is served first. The time of a run is known only when it
/// is over: then the flow's finish tag is corrected by what it took more or less than was charged, so that
/// estimates that are wrong do not add up over a flow's calls. Until its first run is over, a flow's calls
/// are charged a millisecond each, so a first burst of long calls gets more than its share. A call that
/// leaves before it runs is not charged.
///
/// With exact estimates, over any time in which two flows always have waiting calls, the service that they
/// got differs by at most the longest run of the one plus that of the other, for each call that the worker
/// runs at once.
///
/// Source: P. Goyal, H. M. Vin, H. Cheng, Start-time fair queuing, SIGCOMM 1996; with several servers:
/// W. Jin, J. S. Chase, J. Kaur, Interposed proportional sharing (SFQ(D)), SIGMETRICS 2004.
#[derive(Clone, Debug, Default)]
pub struct Fair {
    virtual_time: u64,
    /// By version.
    flows: Vec<Flow>,
    estimates: Estimates,
}

/// All tags are microseconds of virtual time.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    /// The finish tag of its last call.
    finish: u64,
    /// What its calls were charged that are not over, and how many they are.
    charged: u64,
    calls: u64,
}

/// The assumed time of a run before the first one is over.
const UNKNOWN: Duration = Duration::from_millis(1);

fn micros(run: Duration) -> u64 {
    u64::try_from(run.as_micros()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 4)
}

impl Flow {
    /// A call is over that took so long: its share of what was charged is corrected. Which call it was
    /// makes no difference to the sum.
    fn settle(&mut self, took: u64) {
        let Some(charge) = self.charged.checked_div(self.calls) else { return };
        self.charged -= charge;
        self.calls -= 1;
        self.finish = self.finish.saturating_add(took).saturating_sub(charge);
    }
}

impl Fair {
    fn flow(&mut self, version: VersionId) -> &mut Flow {
        let at = version.0 as usize;
        if at >= self.flows.len() {
            self.flows.resize(at + 1, Flow::default());
        }
        &mut self.flows[at]
    }
}

impl QueuePolicy for Fair {
    fn learns(&self) -> bool {
        true
    }

    fn rank(&mut self, call: &Arrival, _: Time) -> u64 {
        let now = self.virtual_time;
        let charge = micros(self.estimates.of(call.version).unwrap_or(UNKNOWN));
        let flow = self.flow(call.version);
        let start = now.max(flow.finish);
        flow.finish = start.saturating_add(charge);
        flow.charged = flow.charged.saturating_add(charge);
        flow.calls += 1;
        start
    }

    fn started(&mut self, _: &Arrival, rank: u64, _: Time) {
        self.virtual_time = self.virtual_time.max(rank);
    }

    fn left(&mut self, version: VersionId) {
        self.flow(version).settle(0);
    }

    fn finished(&mut self, version: VersionId, run: Duration, _: Time) {
        self.estimates.observe(version, run);
        self.flow(version).settle(micros(run));
    }

    fn forgotten(&mut self, version: VersionId) {
        if let Some(flow) = self.flows.get_mut(version.0 as usize) {
            *flow = Flow::default();
        }
        self.estimates.forget(version);
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> QueueEntry {
    let about = "the call whose function has had the least time";
    let source = "Goyal, Vin, Cheng, Start-time fair queuing, SIGCOMM 1996";
    QueueEntry::new("fair", about, source, || Box::new(Fair::default()))
}
