//! `ol config show`: what `ol up` or a daemon would be told, and by whom.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::{Common, print, print_json};
use crate::daemon::{balancer, registry, worker};
use crate::error::Result;
use crate::settings::{Origin, Setting, explain};

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
    let (flags, file) = (&args.flags, args.config.clone());
    let (program, settings) = match args.program {
        Program::Up => {
            let file = file.or(args.common.dir()?.config_file());
            ("ol up", explain::<super::up::Options>("ol up", flags, file)?)
        }
        Program::Worker => ("ol-worker", explain::<worker::Options>("ol-worker", flags, file)?),
        Program::Lb => ("ol-lb", explain::<balancer::Options>("ol-lb", flags, file)?),
        Program::Registry => {
            ("ol-registry", explain::<registry::Options>("ol-registry", flags, file)?)
        }
    };
    if args.common.json {
        print_json(&serde_json::json!({ "program": program, "settings": settings }));
        return Ok(ExitCode::SUCCESS);
    }
    let line = |setting: &Setting| match &setting.value {
        Some(value) => format!("{} = {value}", setting.name),
        None => format!("# {} is not set", setting.name),
    };
    let lines: Vec<String> = settings.iter().map(line).collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
    let mut text = format!("# {program}\n");
    for (line, setting) in lines.iter().zip(&settings) {
        match (args.origin, origin(setting)) {
            (true, Some(origin)) => text.push_str(&format!("{line:<width$}  # {origin}\n")),
            _ => text.push_str(&format!("{line}\n")),
        }
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

fn origin(setting: &Setting) -> Option<String> {
    let kind = match setting.origin {
        Origin::Flag => "flag",
        Origin::Environment => "environment",
        Origin::File => "file",
        Origin::Default => "default",
        Origin::Unset => return None,
    };
    let place = setting.place.as_deref().unwrap_or_default();
    Some(format!("{kind} {place}").trim_end().to_owned())
}
