//! OpenLambda's binaries as a library: the catalogue of parts, and the command line around it.
//!
//! A [`Catalog`] names the sandboxes, registries and policies that a binary offers; [`main_with`] is the
//! whole `ol`. So you can add your own policy to the real binary in three lines:
//!
//! ```no_run
//! use openlambda::{Catalog, main_with};
//! use openlambda_core::keep_alive::{KeepAliveEntry, Lru};
//!
//! fn main() -> std::process::ExitCode {
//!     let mine = KeepAliveEntry::new("mine", "as lru", "me", || Box::new(Lru::default()));
//!     main_with(Catalog::standard().keep_alive(mine))
//! }
//! ```
//!
//! `ol up` starts every daemon by running *itself* (`ol daemon worker …`), so the daemons of such a
//! binary know the same parts. `ol-worker`, `ol-lb` and `ol-registry` are the same daemons under
//! names of their own, for clusters of several machines.

mod catalog;
mod cli;
mod cluster;
mod daemon;
mod error;
mod http_client;
mod private;
mod settings;
mod silence;
mod supervisor;
mod terminal;
mod version;
mod volumes;

pub use catalog::{
    BuildRegistry, BuildSandbox, Catalog, CheckSandbox, RegistryContext, RegistryEntry,
    SandboxContext, SandboxEntry, SandboxOptions,
};
pub use cli::main_with;
pub use daemon::{Daemon, daemon_main};
