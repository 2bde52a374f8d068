//! OpenLambda's binaries as a library: the parts by name, and the command line around them.
//!
//! A [`Catalog`] names the sandboxes, registries and policies that a binary offers;
//! [`main_with`] is the whole `ol`, so a researcher's own policy joins the real binary in three
//! lines:
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
mod settings;
mod supervisor;

use std::process::ExitCode;

/// The release: what `make dist` names it, from `git describe`, else the package's version.
const VERSION: &str = match option_env!("OPENLAMBDA_VERSION") {
    Some(version) => version,
    None => env!("CARGO_PKG_VERSION"),
};

pub use catalog::{
    BuildRegistry, BuildSandbox, Catalog, CheckSandbox, RegistryEntry, SandboxContext,
    SandboxEntry, SandboxOptions,
};
pub use cli::main_with;

/// The daemons that have a binary of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// `ol-worker`.
    Worker,
    /// `ol-lb`.
    Balancer,
    /// `ol-registry`.
    Registry,
}

/// The whole of `ol-worker`, `ol-lb` or `ol-registry` with the parts of `catalog`.
pub fn daemon_main(daemon: Daemon, catalog: Catalog) -> ExitCode {
    daemon::main(daemon, &catalog)
}
