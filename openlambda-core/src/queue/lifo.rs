//! `adaptive-lifo`: first in, first out; under overload, last in, first out.

use std::time::Duration;

use super::{Arrival, QueueEntry, QueuePolicy};
use crate::catalog::{CENTURY, ParameterInfo};
use crate::time::Time;

/// Serves calls in the order of their arrival, and while the worker is overloaded the newest first. A
/// client that has waited for long has often given up, and if the old calls were served first, no call
/// would be in time. The calls that are passed over run when the overload is over, or leave when their
/// deadline comes.
///
/// The worker counts as overloaded when its queue has not been empty for [`after`](Self::new), until it
/// is empty. A call that waits for its code or for a cold start counts too: choose `after` longer than
/// these take, or cold starts change the order.
///
/// Source: B. Maurer, Fail at scale, ACM Queue 13(8), 2015 (adaptive LIFO, with CoDel's sign of
/// overload: a queue that has not been empty for 100 ms).
#[derive(Clone, Copy, Debug)]
pub struct AdaptiveLifo {
    after: Duration,
}

impl AdaptiveLifo {
    /// The default of [`new`](Self::new)'s `after`.
    pub const DEFAULT_AFTER: Duration = Duration::from_millis(100);

    /// The worker counts as overloaded when its queue has not been empty for `after`; with zero, at once.
    pub fn new(after: Duration) -> Self {
        AdaptiveLifo { after }
    }
}

impl Default for AdaptiveLifo {
    fn default() -> Self {
        AdaptiveLifo::new(AdaptiveLifo::DEFAULT_AFTER)
    }
}

impl QueuePolicy for AdaptiveLifo {
    fn rank(&mut self, _: &Arrival, _: Time) -> u64 {
        0
    }

    fn newest_first(&mut self, waiting_since: Time, now: Time) -> bool {
        now.since(waiting_since) >= self.after
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> QueueEntry {
    let default = AdaptiveLifo::DEFAULT_AFTER.as_secs_f64();
    let about = "the worker is overloaded when calls have waited all this time";
    QueueEntry {
        name: "adaptive-lifo".to_owned(),
        about: "the call that came first; under overload, the call that came last".to_owned(),
        source: "Maurer, Fail at scale, ACM Queue 2015".to_owned(),
        parameters: vec![ParameterInfo::new("after_seconds", default, about).within(0.0..=CENTURY)],
        build: Box::new(|given| Ok(Box::new(AdaptiveLifo::new(given.seconds("after_seconds")?)))),
    }
}
