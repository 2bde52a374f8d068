//! `ol`: a file for each command, or for commands that belong together, and what they share.

#[cfg(feature = "bench")]
mod bench;
mod command;
mod common;
mod compare;
mod completions;
mod config;
mod deploy;
mod doctor;
mod functions;
mod image;
mod interrupt;
mod invoke;
mod logs;
mod lookup;
mod new;
mod output;
mod page;
mod policies;
mod progress;
mod registry;
mod replay;
mod runtime;
mod secret;
mod shown;
mod sim;
mod syntax;
mod times;
mod up;
mod vendored;
mod versions;
mod watch;

pub use command::main_with;
use common::Common;
use output::{print, print_json, table};
use runtime::block_on;
