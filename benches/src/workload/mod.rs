//! What a simulated cluster is asked to do: which function is called when, and how long it runs.
//!
//! A [`Workload`] is drawn from a seed alone, in streams with labels of their own, so every policy
//! under comparison sees the very same calls.

mod arrivals;
mod config;
mod mix;
mod service;
#[cfg(test)]
mod tests;

pub use arrivals::{Arrival, Workload};
pub use config::{Profile, WorkloadConfig};
pub use mix::{Bursts, FunctionMix, LogNormal};
pub use service::Service;
