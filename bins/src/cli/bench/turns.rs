//! `ol bench turns`: an ordinary user's turns, for `ol bench start --against rootless`.

use std::process::ExitCode;

use clap::Args;
use openlambda_lab::live;

use super::print_json;
use crate::Catalog;
use crate::error::Result;

#[derive(Args, Debug)]
pub(super) struct TurnsArgs {
    /// What starts
    #[arg(long)]
    function: String,
}

pub(super) async fn turns(args: TurnsArgs, catalog: &Catalog) -> Result<ExitCode> {
    live::turns(&args.function, catalog, print_json).await?;
    Ok(ExitCode::SUCCESS)
}
