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
mod policy;
mod sjf;
mod standard;

pub use bypass::Bypass;
pub use edf::Edf;
pub use estimates::Estimates;
pub use fair::Fair;
pub use fifo::Fifo;
pub use lifo::AdaptiveLifo;
pub use policy::{Arrival, QueueCatalog, QueueEntry, QueueMaker, QueuePolicy};
pub use sjf::Sjf;
pub use standard::{DEFAULT, KIND, by_name, default, standard};
