//! `ol-registry`: stores functions' bundles.

use std::process::ExitCode;

use openlambda::{Catalog, Daemon, daemon_main};

fn main() -> ExitCode {
    daemon_main(Daemon::Registry, Catalog::standard())
}
