//! What servers count, and the text in which Prometheus reads it.
//!
//! Counting is a few atomic additions and takes no lock. [`Text`] writes the
//! [text format](https://prometheus.io/docs/instrumenting/exposition_formats/), version 0.0.4;
//! names are in base units, counters end in `_total`.
//!
//! Labels are bounded: a function has series only after a registry has resolved it, and at most
//! [`MOST_FUNCTIONS`] functions have series at once: those that were called longest ago lose theirs.
//! A function that is deleted, or is not called for an hour, loses its series too.

mod calls;
mod histogram;
mod outcome;
mod text;

pub use calls::{CallMetrics, FunctionCalls, MOST_FUNCTIONS};
pub use histogram::Histogram;
pub use outcome::Outcome;
pub use text::{CONTENT_TYPE, Family, Kind, Text};
