//! OpenLambda's load balancer: policies, and the proxy that applies them.
//!
//! * [`policies`]: the balancing policies, pure, and [`PolicyCatalog`](policies::PolicyCatalog),
//!   which makes one from its name and parameters;
//! * [`balancer`]: the state machine around a policy. It lives in `openlambda_core`, beside the
//!   contract, so that the conformance suite can drive any policy with it;
//! * [`proxy`] (feature `proxy`): the balancer as a server, or inside a program;
//! * [`workers`] (feature `proxy`): the live cluster behind it, and where its workers come from.
//!
//! Without the feature `proxy` the crate has neither tokio nor hyper; the simulator and the benches use
//! it that way.

pub use openlambda_core::balancing::balancer;

#[cfg(feature = "proxy")]
mod api;
#[cfg(feature = "proxy")]
mod config;
#[cfg(feature = "proxy")]
mod front;
#[cfg(feature = "proxy")]
mod observe;
pub mod policies;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "proxy")]
pub mod workers;
