//! What servers count, and the text in which Prometheus reads it.
//!
//! Counting is a few atomic additions and takes no lock. [`Text`] writes the
//! [text format](https://prometheus.io/docs/instrumenting/exposition_formats/), version 0.0.4;
//! names are in base units, counters end in `_total`.
//!
//! Labels are bounded: a function has series only once it was found in a registry, at most
//! [`MOST_FUNCTIONS`] have them at once (of more, those that were called longest ago lose theirs),
//! and one that is deleted, or was not called for an hour, loses them too.

mod calls;
mod histogram;
mod outcome;
mod text;

pub use calls::{CallMetrics, FunctionCalls, MOST_FUNCTIONS};
pub use histogram::Histogram;
pub use outcome::Outcome;
pub use text::{CONTENT_TYPE, Family, Kind, Text};
