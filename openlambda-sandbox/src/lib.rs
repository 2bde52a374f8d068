//! OpenLambda's sandboxes: where a function's code runs.
//!
//! * [`process`]: a child process per instance. No isolation: for trusted code, for development
//!   and as the baseline of experiments.
//! * [`docker`]: a container per instance, made by Docker's engine.
//! * [`sock`]: lean Linux containers, with root and without.
//! * [`runtime_api`]: the Lambda Runtime API, which every kind of sandbox speaks with the code
//!   inside it; [`event`]: what a handler gets and what its reply means; [`raw`]: requests without an
//!   envelope, for web applications.
//! * [`sys`]: processes that never outlive their parent; also for a supervisor's daemons;
//!   [`trees`]: folders that functions have written.
//!
//! A new kind builds on the [`kit`], brings a [`Vessel`](kit::Vessel) for its instances, and passes the
//! suite in `openlambda_core::conformance::sandbox`.

#![cfg_attr(
    not(any(feature = "docker", feature = "process", feature = "sock")),
    allow(dead_code, unused_imports, reason = "what the kinds share is used by none of them")
)]

#[cfg(feature = "docker")]
pub mod docker;
mod errors;
pub mod event;
pub mod kit;
pub mod launch;
mod node;
pub mod output;
#[cfg(feature = "process")]
pub mod process;
mod python;
pub mod raw;
pub mod runtime_api;
#[cfg(feature = "sock")]
pub mod sock;
pub mod sys;
pub mod trees;

pub use node::find_node;
pub use python::{Python, Pythons, find_python};

/// The function that does nothing, as an executable `bootstrap`: it answers each event with `null`.
/// Starts are measured with it.
#[cfg(feature = "lab")]
pub static NOOP_BOOTSTRAP: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/noop"));
