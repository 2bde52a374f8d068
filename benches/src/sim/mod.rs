//! A discrete-event simulator that runs the platform's own deciders.
//!
//! [`simulate`] plays a [`Workload`](crate::workload::Workload) against one or more
//! [`Balancer`](openlambda_core::balancing::balancer::Balancer)s with a policy each and any number of
//! workers, each of them a [`WorkerCore`](openlambda_core::worker_core::WorkerCore): the very types that
//! serve live traffic. What is here is their shell, as `workers/` and `worker/dispatch.rs` are in the live
//! system, and decides nothing: a delay for each thing that the deciders want done, and a calendar instead
//! of a clock. What the world does is modelled by a few durations: a hop of the network, a pull, a start,
//! the handler's own time; and by what [goes wrong](Faults).
//!
//! | file | what |
//! |---|---|
//! | `config.rs` | what is simulated |
//! | `experiment.rs` | an experiment from its first call to its last: things happen in turn |
//! | `balancers.rs`, `workers.rs` | the two shells: what happens at balancers and at workers |
//! | `world.rs` | all there is in an experiment |
//! | `clients.rs` | those who make the calls |
//! | `frontend.rs`, `host.rs` | a balancer and a worker, with what belongs to them here |
//! | `calls.rs`, `functions.rs` | what a call and a function are to an experiment |
//! | `calendar.rs`, `what.rs` | what happens next; what can happen |
//! | `on_the_way.rs` | what is on its way between workers and balancers |
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
