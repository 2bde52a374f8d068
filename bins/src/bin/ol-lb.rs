//! `ol-lb`: the load balancer in front of workers.

use std::process::ExitCode;

use openlambda::{Catalog, Daemon, daemon_main};

fn main() -> ExitCode {
    daemon_main(Daemon::Balancer, Catalog::standard())
}
