//! The order in which a worker's waiting calls run.
//!
//! A call waits while no instance of its version has a free slot, and while the worker runs as many
//! calls as its limit allows ([`RunningLimit`](crate::scheduler::RunningLimit)). [`QueuePolicy`] is a
//! pure decider that orders all waiting calls of a worker, across functions. The scheduler keeps one
//! policy for the whole worker, and the queues themselves. A policy is chosen by name: [`by_name`].
//!
//! A policy gives each arriving call a **rank**. The call with the lowest rank runs next; calls of equal
//! rank keep the order of their arrival. So a policy needs only its formula, and the scheduler's queues
//! do the rest in O(log n), or O(1) where all ranks are equal. One order cannot be expressed as a rank
//! at arrival, that the *newest* call runs next: [`QueuePolicy::newest_first`] says so.
//! (Sivaraman et al., Programmable packet scheduling at line rate, SIGCOMM 2016, show how much a
//! push-in-first-out queue expresses.)
//!
//! | name | runs next | improves |
//! |---|---|---|
//! | `fifo` | the call that came first | fairness between calls |
//! | `sjf` | the call with the shortest expected run | the mean latency |
//! | `edf` | the call with the earliest deadline | lateness |
//! | `fair` | the call whose function has had the least time | fairness between functions |
//! | `adaptive-lifo` | the call that came first; under overload, the one that came last | how many are in time under overload |
//! | `bypass` | the call that came first; short calls do not wait for others to end | the latency of short calls |
//!
//! Among calls of *one* version the order matters whenever they wait for a slot. Among versions it
//! decides which of them gets memory for a new instance, and, with a limit of running calls, which runs.

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
