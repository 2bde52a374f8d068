//! What is kept of requests when they are over: counts, and lines of the access log.

mod access_log;
pub(crate) mod telemetry;

pub use self::access_log::AccessLog;
