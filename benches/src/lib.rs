//! OpenLambda's laboratory: experiments that run the platform's own deciders.
//!
//! [`sim`] is a discrete-event simulator. It holds no model of a balancer or a worker of its own:
//! it drives the same [`Balancer`](openlambda_core::balancing::balancer::Balancer) with the same
//! policies, and the same scheduler, keep-alive and code cache, that serve live traffic. Only what
//! takes time in the world is modelled: networks, pulls, starts and handlers.
//!
//! `live` (a feature) measures what sandboxes cost on this machine; its command is `ol bench`.
//!
//! The criterion benches are beside this crate, in `benches/benches`.

mod cumulative;
pub mod keep_alive;
#[cfg(feature = "live")]
pub mod live;
pub mod orderings;
pub mod parallel;
pub mod processors;
pub mod sim;
pub mod spacing;
pub mod statistics;
pub mod summary;
pub mod workload;
