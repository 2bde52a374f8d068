//! The daemons' command lines, and the async runtime of each.

use std::future::Future;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use openlambda_sandbox::sys::give_back_freed_memory;

use super::process::start_log;
use super::{balancer, registry, worker};
use crate::Catalog;
use crate::error::{self, Context, Result};
use crate::settings::{Balancer, Given, Registry, Worker};
use crate::terminal::parsed;
use crate::version::VERSION;

/// The daemons that have a binary of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// `ol-worker`.
    Worker,
    /// `ol-lb`.
    Balancer,
    /// `ol-registry`.
    Registry,
}

/// `ol daemon …`, by which `ol up` starts its daemons from its own binary.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Runs functions on one machine.
    Worker(Box<Given<Worker>>),
    /// The load balancer in front of workers.
    Lb(Given<Balancer>),
    /// Stores functions' bundles.
    Registry(Given<Registry>),
}

#[derive(Parser)]
#[command(name = "ol-worker", version = VERSION, about = "Runs functions on one machine")]
struct WorkerCommand {
    #[command(flatten)]
    options: Given<Worker>,
}

#[derive(Parser)]
#[command(name = "ol-lb", version = VERSION, about = "The load balancer in front of workers")]
struct BalancerCommand {
    #[command(flatten)]
    options: Given<Balancer>,
}

#[derive(Parser)]
#[command(name = "ol-registry", version = VERSION, about = "Stores functions' bundles")]
struct RegistryCommand {
    #[command(flatten)]
    options: Given<Registry>,
}

/// The whole of `ol-worker`, `ol-lb` or `ol-registry` with the parts of `catalog`.
pub fn daemon_main(daemon: Daemon, catalog: Catalog) -> ExitCode {
    let command = match daemon {
        Daemon::Worker => {
            DaemonCommand::Worker(Box::new(parsed(WorkerCommand::try_parse()).options))
        }
        Daemon::Balancer => DaemonCommand::Lb(parsed(BalancerCommand::try_parse()).options),
        Daemon::Registry => DaemonCommand::Registry(parsed(RegistryCommand::try_parse()).options),
    };
    run(command, &catalog)
}

/// The daemons' command lines, for their manual pages.
pub(crate) fn commands() -> [clap::Command; 3] {
    [WorkerCommand::command(), BalancerCommand::command(), RegistryCommand::command()]
}

pub(crate) fn run(command: DaemonCommand, catalog: &Catalog) -> ExitCode {
    let (name, result) = match command {
        DaemonCommand::Worker(options) => ("ol-worker", block_on(worker::run(*options, catalog))),
        DaemonCommand::Lb(options) => ("ol-lb", block_on(balancer::run(options, catalog))),
        DaemonCommand::Registry(options) => ("ol-registry", block_on(registry::run(options))),
    };
    match result.and_then(|result| result) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error::print(name, &error);
            error.status()
        }
    }
}

/// Runs a future on a runtime of its own, with logs to standard error.
fn block_on<F: Future>(future: F) -> Result<F::Output> {
    start_log();
    give_back_freed_memory();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        runtime.worker_threads(serving_threads());
    }
    let runtime = runtime.enable_all().build();
    Ok(runtime.context(|| "cannot start the runtime".to_owned())?.block_on(future))
}

/// Half of the processors: functions run on the others, and a thread that wakes another for each
/// step of a call costs more than it helps. `TOKIO_WORKER_THREADS` says otherwise.
fn serving_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |processors| (processors.get() / 2).max(1))
}
