//! A discrete-event simulator that runs the platform's own deciders.
//!
//! [`simulate`] plays a [`Workload`](crate::workload::Workload) against one or more
//! [`Balancer`](openlambda_core::balancing::balancer::Balancer)s with a policy each and any number of
//! workers, each of them a [`WorkerCore`](openlambda_core::worker_core::WorkerCore): the very types that
//! serve live traffic. This module is their shell, as `workers/` and `worker/dispatch.rs` are in the live
//! system, and decides nothing: it delays each thing that the deciders ask for, and has a calendar instead
//! of a clock. A few durations model the world: a hop of the network, a pull, a start, the handler's own
//! time; and so do [faults](Faults).
//!
//! | file | what |
//! |---|---|
//! | `config.rs` | the configuration |
//! | `experiment.rs` | the loop of an experiment, from its first call to its last |
//! | `balancers.rs`, `workers.rs` | the two shells: what happens at balancers and at workers |
//! | `world.rs` | the state of an experiment |
//! | `clients.rs` | the clients, who make the calls |
//! | `frontend.rs`, `host.rs` | one balancer and one worker |
//! | `calls.rs`, `functions.rs` | calls and functions |
//! | `calendar.rs`, `what.rs` | the queue of future events, and their kinds |
//! | `on_the_way.rs` | messages on their way between workers and balancers |
//!
//! Nothing here reads a clock or draws from anything but the seed: the same configuration gives the same
//! calls, byte for byte, on every machine. Workers and functions are placed anew under each seed.

mod balancers;
mod calendar;
mod calls;
mod clients;
mod config;
mod experiment;
mod frontend;
mod functions;
mod host;
mod on_the_way;
mod what;
mod workers;
mod world;

pub use self::calls::SimulatedCall;
pub use self::config::{Deaths, Faults, SimConfig, SimError, Users};
pub use self::experiment::{Usage, simulate, simulate_with};
