//! The daemons: the parts of a [`Catalog`], a listener, and signals.
//!
//! What is set comes from flags, else the environment, else the file that `--config` names. A daemon
//! prints one line to standard output when it serves, `{"ready": "http://…"}`, and logs to standard
//! error.

pub(crate) mod balancer;
pub(crate) mod registry;
pub(crate) mod worker;

use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{self, CliError, Context, Result};
use crate::settings::{Balancer, Given, Registry, Worker};
use crate::{Catalog, Daemon};

/// `ol daemon …`, by which `ol up` starts its daemons from its own binary.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// Runs functions on one machine.
    Worker(Box<Given<Worker>>),
    /// The load balancer in front of workers.
    Lb(Given<Balancer>),
    /// Keeps functions' bundles.
    Registry(Given<Registry>),
}

#[derive(Parser)]
#[command(name = "ol-worker", version = crate::VERSION, about = "Runs functions on one machine")]
struct WorkerCommand {
    #[command(flatten)]
    options: Given<Worker>,
}

#[derive(Parser)]
#[command(name = "ol-lb", version = crate::VERSION, about = "The load balancer in front of workers")]
struct BalancerCommand {
    #[command(flatten)]
    options: Given<Balancer>,
}

#[derive(Parser)]
#[command(name = "ol-registry", version = crate::VERSION, about = "Keeps functions' bundles")]
struct RegistryCommand {
    #[command(flatten)]
    options: Given<Registry>,
}

pub(crate) fn main(daemon: Daemon, catalog: &Catalog) -> ExitCode {
    let command = match daemon {
        Daemon::Worker => DaemonCommand::Worker(Box::new(WorkerCommand::parse().options)),
        Daemon::Balancer => DaemonCommand::Lb(BalancerCommand::parse().options),
        Daemon::Registry => DaemonCommand::Registry(RegistryCommand::parse().options),
    };
    run(command, catalog)
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
            ExitCode::FAILURE
        }
    }
}

/// Runs a future on a runtime of its own, with logs to standard error.
fn block_on<F: Future>(future: F) -> Result<F::Output> {
    start_log();
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

/// Sends log lines to standard error; `OPENLAMBDA_LOG` filters them.
pub(crate) fn start_log() {
    let filter = std::env::var("OPENLAMBDA_LOG").unwrap_or_else(|_| "info".to_owned());
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr())
        && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        .with_ansi(color)
        .init();
}

/// Listens, and names the flag when that fails.
async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        CliError::new(match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "port {} is in use; pass --listen {}:0 for a free one",
                address.port(),
                address.ip()
            ),
            std::io::ErrorKind::PermissionDenied => {
                format!("port {} needs root; pass --listen with a port above 1023", address.port())
            }
            _ => format!("cannot listen on {address}: {error}; pass another --listen"),
        })
    })
}

/// Says on standard output that the daemon serves. Nobody may be there to read it.
fn say_ready(listener: &TcpListener) -> Result<()> {
    use std::io::Write;
    let address = listener.local_addr().context(|| "the listener has no address".to_owned())?;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", serde_json::json!({ "ready": format!("http://{address}") }));
    let _ = out.flush();
    Ok(())
}

/// Resolves at the first SIGTERM or SIGINT.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context(|| "cannot listen to signals".to_owned());
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
