//! `ol secret`: makes the secret of a cluster whose daemons are started by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::error::{CliError, Result};
use crate::private;
use crate::terminal::say;

#[derive(Args, Debug)]
pub(super) struct SecretArgs {
    /// The file, which must not be there yet
    file: PathBuf,
}

pub(super) fn secret(args: &SecretArgs) -> Result<ExitCode> {
    let file = &args.file;
    private::make_secret(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => CliError::new(format!(
            "{} is there already; name another file, or remove it if no daemon uses it",
            file.display()
        )),
        _ => CliError::caused(format!("cannot write {}; name another file", file.display()), error),
    })?;
    say!(
        "made {}; copy it to each machine, for its user alone, and start every daemon of the cluster with \
         --secret-file",
        file.display()
    );
    Ok(ExitCode::SUCCESS)
}
