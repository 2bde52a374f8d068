//! What a finished request leaves: counts, and a line of the access log.

mod access_log;
mod line;
mod stats;
mod telemetry;
mod writer;

pub use self::access_log::AccessLog;
pub(crate) use self::stats::Stats;
pub(crate) use self::telemetry::{Record, Subject, Telemetry};
