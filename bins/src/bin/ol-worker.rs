//! `ol-worker`: runs functions on one machine.

use std::process::ExitCode;

use openlambda::{Catalog, Daemon, daemon_main};

fn main() -> ExitCode {
    daemon_main(Daemon::Worker, Catalog::standard())
}
