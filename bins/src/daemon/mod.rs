//! The daemons: each assembles parts of a [`Catalog`](crate::Catalog), listens, and handles signals.
//!
//! A setting comes from a flag, else from the environment, else from the file that `--config` names. When
//! it serves, a daemon prints one line to standard output, `{"ready": "http://…"}`. It logs to standard
//! error.

pub(crate) mod balancer;
mod command;
mod process;
pub(crate) mod registry;
pub(crate) mod worker;

pub use command::{Daemon, daemon_main};
pub(crate) use command::{DaemonCommand, commands, run};
pub(crate) use process::{Stops, start_log};
use process::{audit_log, listen, say_ready, secret_in, stop_signal};
