//! `ol replay`: repeats a worker's decisions from the inputs that it recorded.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use openlambda_core::json_lines;
use openlambda_core::worker_core::recording;

use super::output::note;
use crate::Catalog;
use crate::error::{Context, Result};

#[derive(Args, Debug)]
pub(super) struct ReplayArgs {
    /// What `ol-worker --inputs FILE` wrote
    file: PathBuf,
}

/// Prints a record for each call that was over, as JSON lines: the same bytes as the worker's own
/// `--records`.
pub(super) fn replay(args: &ReplayArgs, catalog: &Catalog) -> Result<ExitCode> {
    let file = File::open(&args.file);
    let file = file.context(|| {
        let file = args.file.display();
        format!("cannot open {file}; name a file that `ol-worker --inputs FILE` wrote")
    })?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    recording::replay(
        BufReader::new(file),
        catalog.keep_alive_policies(),
        catalog.queue_policies(),
        |record| {
            if written.is_ok() {
                written = json_lines::write(&mut out, &record);
            }
        },
    )
    .context(|| format!("cannot replay {}", args.file.display()))?;
    if let Err(error) = written.and_then(|()| out.flush()) {
        note(&error);
    }
    Ok(ExitCode::SUCCESS)
}
