//! `bypass`: short calls do not wait in the queue.

use std::time::Duration;

use super::{Arrival, Estimates, QueueEntry, QueuePolicy};
use crate::catalog::{CENTURY, ParameterInfo};
use crate::scheduler::VersionId;
use crate::time::Time;

/// Lets calls pass that are expected to be short: such a call runs at once if an instance of its version
/// has a free slot, even if the worker runs as many calls as its limit allows. It ends before it disturbs
/// others, and waiting would take many times as long as running. All other calls are in the order of
/// another policy.
///
/// It makes a difference where the number of running calls is limited.
///
/// Source: A. Fuerst et al., Ilúvatar, HPDC 2023 (queue bypass).
#[derive(Debug)]
pub struct Bypass {
    order: Box<dyn QueuePolicy>,
    order_learns: bool,
    under: Duration,
    estimates: Estimates,
}

impl Bypass {
    /// The default of what is short: a call that is expected to run for less than this.
    pub const DEFAULT_UNDER: Duration = Duration::from_millis(10);

    /// Calls that are expected to run for less than `under` skip the queue; `order` is the order of the
    /// others.
    pub fn new(order: Box<dyn QueuePolicy>, under: Duration) -> Self {
        let order_learns = order.learns();
        Bypass { order, order_learns, under, estimates: Estimates::default() }
    }
}

impl QueuePolicy for Bypass {
    fn learns(&self) -> bool {
        true
    }

    fn orders(&self) -> bool {
        self.order.orders()
    }

    fn rank(&mut self, call: &Arrival, now: Time) -> u64 {
        self.order.rank(call, now)
    }

    fn passes_by(&self, call: &Arrival) -> bool {
        let expected = self.estimates.of(call.version);
        expected.is_some_and(|expected| expected < self.under) || self.order.passes_by(call)
    }

    fn newest_first(&mut self, waiting_since: Time, now: Time) -> bool {
        self.order.newest_first(waiting_since, now)
    }

    fn started(&mut self, call: &Arrival, rank: u64, now: Time) {
        if self.order_learns {
            self.order.started(call, rank, now);
        }
    }

    fn left(&mut self, version: VersionId) {
        if self.order_learns {
            self.order.left(version);
        }
    }

    fn finished(&mut self, version: VersionId, run: Duration, now: Time) {
        self.estimates.observe(version, run);
        if self.order_learns {
            self.order.finished(version, run, now);
        }
    }

    fn forgotten(&mut self, version: VersionId) {
        self.estimates.forget(version);
        self.order.forgotten(version);
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> QueueEntry {
    let default = Bypass::DEFAULT_UNDER.as_secs_f64();
    let under = "a call that is expected to run for less time is short";
    QueueEntry {
        name: "bypass".to_owned(),
        about: "short calls do not wait for others to end; the others in another order".to_owned(),
        source: "Fuerst et al. (Ilúvatar), HPDC 2023".to_owned(),
        parameters: vec![
            ParameterInfo::new("under_seconds", default, under).within(0.0..=CENTURY),
            ParameterInfo::new("order", "fifo", "the queue policy of the other calls"),
        ],
        build: Box::new(|given| {
            let (_, order) = given.nested("order")?;
            Ok(Box::new(Bypass::new(order, given.seconds("under_seconds")?)))
        }),
    }
}
