//! `ol image`: the image that docker sandboxes run in.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use openlambda_sandbox::docker::{BASE_IMAGE, build_base_image, engine_socket};

use super::{block_on, print, print_json};
use crate::error::{Context, Result};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Make an image of this machine's own Python, a shell and a few programs: nothing is downloaded
    Build(BuildArgs),
}

#[derive(Args, Debug)]
pub(super) struct BuildArgs {
    /// The image's name; sandboxes use the one that OPENLAMBDA_DOCKER_IMAGE names
    #[arg(long, default_value = BASE_IMAGE, env = "OPENLAMBDA_DOCKER_IMAGE")]
    name: String,
    /// Socket of Docker's engine, a path or unix://PATH [default: /var/run/docker.sock]
    #[arg(long, value_name = "SOCKET", env = "DOCKER_HOST")]
    docker_socket: Option<String>,
    /// One more program with its libraries, or a folder, that functions need; may be given more than
    /// once
    #[arg(long = "with", value_name = "PATH")]
    more: Vec<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long)]
    json: bool,
}

pub(super) fn image(command: &ImageCommand) -> Result<ExitCode> {
    let ImageCommand::Build(args) = command;
    let size = block_on(async {
        let socket = engine_socket(args.docker_socket.as_deref());
        let socket = socket.context(|| "cannot find the engine".to_owned())?;
        let built = build_base_image(&socket, &args.name, &args.more).await;
        built.context(|| format!("cannot make the image {}", args.name))
    })?;
    if args.json {
        print_json(&serde_json::json!({ "image": args.name, "bytes": size }));
    } else {
        print(&format!("{}: {} MiB\n", args.name, size >> 20));
    }
    Ok(ExitCode::SUCCESS)
}
