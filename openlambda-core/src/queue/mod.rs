//! The order in which a worker's waiting calls run.
//!
//! A call waits while no instance of its version has a free slot, and while the worker runs as many
//! calls as it may ([`RunningLimit`](crate::scheduler::RunningLimit)). [`QueuePolicy`] is a pure decider
//! that orders all that wait on a worker, of whatever function; the scheduler keeps one for the whole
//! worker, and the queues themselves. It is selected by name: [`by_name`].
//!
//! A policy gives each call a **rank** when it comes, and the call with the lowest rank is the next one;
//! those with the same rank keep the order of their arrival. So a policy is as small as its idea, and the
//! scheduler's queues do the rest in O(log n), O(1) where all ranks are alike. What cannot be said by a
//! rank at arrival, that the *newest* call is the next, is said by [`QueuePolicy::newest_first`].
//! (Sivaraman et al., Programmable packet scheduling at line rate, SIGCOMM 2016, show how much a
//! push-in-first-out queue expresses.)
//!
//! | name | next is | for |
//! |---|---|---|
//! | `fifo` | who came first | fairness between calls |
//! | `sjf` | who is expected to run for the shortest time | the mean latency |
//! | `edf` | whose deadline is the earliest | lateness |
//! | `fair` | whose function has had the least | fairness between functions |
//! | `adaptive-lifo` | who came first; under overload, who came last | that some are in time |
//! | `bypass` | who came first; short calls do not wait for others to end | short calls |
//!
//! Between two calls of *one* version an order is of use as soon as it waits for a slot. Between
//! versions it decides who gets memory for a new instance, and with a limit of running calls who runs.

mod bypass;
mod edf;
mod estimates;
mod fair;
mod fifo;
mod lifo;
mod sjf;

use std::fmt;
use std::time::Duration;

pub use bypass::Bypass;
pub use edf::Edf;
pub use estimates::Estimates;
pub use fair::Fair;
pub use fifo::Fifo;
pub use lifo::AdaptiveLifo;
pub use sjf::Sjf;

use crate::catalog::{Catalog, Entry, Maker};
use crate::config::ConfigError;
use crate::scheduler::VersionId;
use crate::time::Time;

/// Orders the calls that wait on a worker. See the module's documentation.
///
/// The scheduler asks for the [`rank`](Self::rank) of a call once. If the policy
/// [`learns`](Self::learns), it does so for every call, and tells of each that runs when it starts and
/// when it has finished; else only calls that have to wait come here, and warm starts do not pay.
///
/// ```text
///   rank ──▶ (waits) ──started──▶ (runs) ──finished──▶
///                └─ (cancelled, too late: not told)
/// ```
pub trait QueuePolicy: Send + fmt::Debug {
    /// Whether it is to be told of all calls. Asked once.
    fn learns(&self) -> bool {
        false
    }

    /// The rank of a call that has arrived: the lowest is served first.
    fn rank(&mut self, call: &Arrival, now: Time) -> u64;

    /// Whether a call that finds a free slot runs at once although the worker runs as many calls as it
    /// may.
    fn passes_by(&self, call: &Arrival) -> bool {
        let _ = call;
        false
    }

    /// Whether the highest rank is served now, and of those with the same rank who came last.
    ///
    /// Asked whenever a place is free. `waiting_since` is when the first call of those began to wait
    /// since when somebody always waits.
    fn newest_first(&mut self, waiting_since: Time, now: Time) -> bool {
        let _ = (waiting_since, now);
        false
    }

    /// A call of this rank begins to run. Only if it [`learns`](Self::learns).
    fn started(&mut self, call: &Arrival, rank: u64, now: Time) {
        let _ = (call, rank, now);
    }

    /// A call has run for so long. Only if it [`learns`](Self::learns).
    fn finished(&mut self, version: VersionId, run: Duration, now: Time) {
        let _ = (version, run, now);
    }

    /// Nothing is left of a version, and its number may be given to another one.
    fn forgotten(&mut self, version: VersionId) {
        let _ = version;
    }
}

/// A call that has arrived, or the reservation of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What it calls.
    pub version: VersionId,
    /// When it arrived.
    pub arrived: Time,
    /// Until when it may wait.
    pub deadline: Time,
}

/// The queue policies that can be chosen by name.
pub type QueueCatalog = Catalog<dyn QueuePolicy>;

/// A queue policy that can be chosen by name.
pub type QueueEntry = Entry<dyn QueuePolicy>;

/// Makes the queue policy of a worker.
pub type QueueMaker = Maker<dyn QueuePolicy>;

/// What the catalogue's errors call a part.
pub const KIND: &str = "queue policy";

/// The policy of a worker that is told of none.
pub const DEFAULT: &str = "fifo";

/// The policies of this module. One of your own joins by [`Catalog::register`].
pub fn standard() -> QueueCatalog {
    Catalog::of(
        KIND,
        [fifo::entry(), sjf::entry(), edf::entry(), fair::entry(), lifo::entry(), bypass::entry()],
    )
}

/// [`DEFAULT`]'s maker.
pub fn default() -> QueueMaker {
    QueueMaker::new(DEFAULT, || Box::new(Fifo))
}

/// The maker of the standard policy that `text` names, with parameters after commas.
///
/// # Errors
///
/// A name or parameter that is not known, with the nearest that is; a value that is out of range.
pub fn by_name(text: &str) -> Result<QueueMaker, ConfigError> {
    standard().maker_of(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_builds_with_its_defaults_and_with_them_spelt_out() {
        for entry in standard().entries() {
            let mut text = entry.name.clone();
            assert!(by_name(&text).unwrap().make().rank(&arrival(), Time::ZERO) <= 1 << 40);
            for parameter in &entry.parameters {
                text += &format!(",{}={}", parameter.name, parameter.default);
            }
            by_name(&text).unwrap();
        }
        assert_eq!(default().text(), DEFAULT);
        by_name("bypass,order=sjf").unwrap();
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest() {
        let error = |text: &str| by_name(text).unwrap_err().to_string();
        assert_eq!(error("fif"), "queue: unknown policy \"fif\"; did you mean \"fifo\"?");
        assert!(error("bypass,order=sjff").contains("did you mean \"sjf\"?"));
        assert!(error("edf,stretch=-1").contains("use a number from 0 to 1000000"));
    }

    fn arrival() -> Arrival {
        Arrival { version: VersionId(0), arrived: Time::ZERO, deadline: Time::MAX }
    }
}
