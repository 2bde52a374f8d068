//! `ol bench turns`: the turns of an ordinary user, for `ol bench start --against rootless`.

use std::process::ExitCode;

use clap::Args;
use openlambda_lab::live;

use super::kinds::CatalogKinds;
use super::print_json;
use crate::error::Result;

#[derive(Args, Debug)]
pub(super) struct TurnsArgs {
    /// What starts
    #[arg(long)]
    function: String,
}

pub(super) async fn turns(args: TurnsArgs, kinds: &CatalogKinds<'_>) -> Result<ExitCode> {
    live::turns(&args.function, kinds, print_json).await?;
    Ok(ExitCode::SUCCESS)
}
