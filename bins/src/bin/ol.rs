//! `ol`: starts clusters, deploys and calls functions, runs simulations.

use std::process::ExitCode;

use openlambda::{Catalog, main_with};

fn main() -> ExitCode {
    main_with(Catalog::standard())
}
