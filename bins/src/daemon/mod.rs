//! The daemons: the parts of a [`Catalog`](crate::Catalog), a listener, and signals.
//!
//! What is set comes from flags, else the environment, else the file that `--config` names. A daemon
//! prints one line to standard output when it serves, `{"ready": "http://…"}`, and logs to standard
//! error.

pub(crate) mod balancer;
mod command;
mod process;
pub(crate) mod registry;
pub(crate) mod worker;

pub use command::{Daemon, daemon_main};
pub(crate) use command::{DaemonCommand, commands, run};
use process::{listen, say_ready};
pub(crate) use process::{start_log, stop_signal};
