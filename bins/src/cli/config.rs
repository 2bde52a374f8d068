//! `ol config show`: the settings of `ol up` or a daemon, and where each comes from.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::{Common, print, print_json};
use crate::error::Result;
use crate::settings::{self, Balancer, Given, Registry, Settings, Up, Worker};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Show each setting with its value; the output is a valid file for --config
    Show(ShowArgs),
}

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// Whose settings: of ol up, ol-worker, ol-lb or ol-registry
    #[arg(value_enum, default_value_t = Program::Up)]
    program: Program,
    /// Say where each value comes from: flag, environment, file or default
    #[arg(long)]
    origin: bool,
    /// Read this file [default: config.toml in the cluster's folder, for up]
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Flags, as the program would be given them
    #[arg(last = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Program {
    Up,
    Worker,
    Lb,
    Registry,
}

pub(super) fn config(command: &ConfigCommand) -> Result<ExitCode> {
    let ConfigCommand::Show(args) = command;
    match args.program {
        Program::Up => show::<Up>(args, args.common.dir()?.config_file()?),
        Program::Worker => show::<Worker>(args, None),
        Program::Lb => show::<Balancer>(args, None),
        Program::Registry => show::<Registry>(args, None),
    }
}

fn show<P: settings::Program>(args: &ShowArgs, usual: Option<PathBuf>) -> Result<ExitCode> {
    let file = args.config.clone().or(usual);
    let settings = Settings::complete(Given::<P>::by_flags(&args.flags), file.as_deref())?;
    if args.common.json {
        print_json(&serde_json::json!({ "program": P::NAME, "settings": settings.all() }));
    } else {
        print(&format!("# {}\n{}", P::NAME, settings.to_file(args.origin)));
    }
    Ok(ExitCode::SUCCESS)
}
