//! Every command with its arguments, and the file that carries it out.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};

#[cfg(feature = "bench")]
use super::bench;
use super::common::Common;
use super::{
    completions, config, deploy, doctor, functions, image, invoke, logs, new, output, policies,
    registry, replay, secret, sim, up, versions,
};
use crate::Catalog;
use crate::daemon::{self, DaemonCommand};
use crate::error;
use crate::version::VERSION;

/// The whole `ol` with the parts of `catalog`: reads the command line, carries the command out, and
/// returns the exit status: 0 done, 1 it failed, 2 it was called wrongly.
pub fn main_with(catalog: Catalog) -> ExitCode {
    let catalog = Arc::new(catalog);
    completions::answer(Cli::command, &catalog);
    let result = match crate::terminal::parsed(Cli::try_parse()).command {
        Command::Daemon(command) => return daemon::run(command, &catalog),
        Command::New(args) => new::new(&args),
        Command::Up(args) => up::up(args, &catalog),
        Command::Down(args) => up::down(&args),
        Command::Status(args) => up::status(&args),
        Command::Deploy(args) => deploy::deploy(&args, &catalog),
        Command::Invoke(args) => invoke::invoke(&args, &catalog),
        Command::Ls(args) => functions::list(&args, &catalog),
        Command::Describe(args) => versions::describe(&args, &catalog),
        Command::Versions(args) => versions::versions(&args, &catalog),
        Command::Alias(args) => versions::alias(&args, &catalog),
        Command::Rollback(args) => versions::rollback(&args, &catalog),
        Command::Logs(args) => logs::logs(&args, &catalog),
        Command::Rm(args) => functions::remove(&args, &catalog),
        Command::Policies(args) => policies::policies(&args, &catalog),
        Command::Sim(args) => sim::sim(&args, &catalog),
        Command::Replay(args) => replay::replay(&args, &catalog),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::bench(args, &catalog),
        Command::Image(command) => image::image(&command),
        Command::Registry(command) => registry::registry(&command),
        Command::Doctor(args) => doctor::doctor(&args, &catalog),
        Command::Secret(args) => secret::secret(&args),
        Command::Config(command) => config::config(&command),
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => completions::man(&args, Cli::command()),
    };
    match result {
        Ok(_) if output::is_lost() => ExitCode::FAILURE,
        Ok(code) => code,
        Err(error) => {
            error::print("ol", &error);
            error.status()
        }
    }
}

#[derive(Parser)]
#[command(
    name = "ol",
    version = VERSION,
    about = "A serverless platform for research",
    after_help = "A first session:\n  ol up --detach\n  ol deploy examples/functions/echo\n  \
                  ol invoke echo -d '{\"one\": 1}'\n  ol down"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a folder with a function to start from
    New(new::NewArgs),
    /// Start a cluster on this machine: a balancer, a registry, workers
    Up(up::UpArgs),
    /// Stop the cluster
    Down(Common),
    /// Show what runs
    Status(Common),
    /// Publish a function's folder as its next version
    Deploy(deploy::DeployArgs),
    /// Call a function; prints the reply's body
    Invoke(invoke::InvokeArgs),
    /// List the functions
    Ls(Common),
    /// Show one function: its manifest, size and versions
    Describe(versions::DescribeArgs),
    /// List the versions of a function
    Versions(versions::VersionsArgs),
    /// Point an alias at a version, or show a function's aliases
    Alias(versions::AliasArgs),
    /// Run the code of an earlier version again
    Rollback(versions::RollbackArgs),
    /// Show what a function printed
    Logs(logs::LogsArgs),
    /// Remove a function with all its versions
    Rm(functions::RmArgs),
    /// List the balancing policies, and the workers' keep-alive and queue policies
    Policies(policies::PoliciesArgs),
    /// Compare policies in a simulation that runs the live code for balancing and scheduling
    Sim(Box<sim::SimArgs>),
    /// Replay what a worker recorded with --inputs, and print the records of its calls
    Replay(replay::ReplayArgs),
    /// Show the settings of ol up and of the daemons
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Make a secret for the daemons of a cluster that are started by hand
    Secret(secret::SecretArgs),
    /// Make the image that docker sandboxes run in
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Check the native registry's store, or make its index anew
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// Check this machine for what OpenLambda needs
    Doctor(doctor::DoctorArgs),
    /// Measure what things cost on this machine
    #[cfg(feature = "bench")]
    Bench(bench::BenchArgs),
    /// Print the script by which a shell completes ol's commands, functions and policies
    Completions(completions::CompletionsArgs),
    /// Write manual pages
    #[command(hide = true)]
    Man(completions::ManArgs),
    /// Run one daemon, as `ol up` does
    #[command(hide = true, subcommand)]
    Daemon(DaemonCommand),
}
