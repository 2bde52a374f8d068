//! What every daemon needs from the system: an address, signals, a log.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;

use openlambda_core::audit::AuditLog;
use openlambda_core::serving::Secret;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{CliError, Context, Result};

/// The cluster's secret, without which no daemon serves.
pub(super) fn secret_in(file: Option<&Path>) -> Result<Secret> {
    let file = file.ok_or_else(|| {
        CliError::new(
            "--secret-file is missing; make one with `ol secret FILE`, and name it to every daemon of the \
             cluster",
        )
        .by_the_call()
    })?;
    if !file.exists() && file.to_str().is_some_and(|text| text.parse::<Secret>().is_ok()) {
        // It is not repeated here, where others may read it.
        let message = "--secret-file takes the name of a file, and what was given may be a secret itself; \
                       make another one with `ol secret FILE`";
        return Err(CliError::new(message).by_the_call());
    }
    Ok(Secret::read(file)?)
}

/// The log of changes in a file, if there is to be one.
pub(super) fn audit_log(file: Option<&Path>) -> Result<Option<AuditLog>> {
    let open = |file: &Path| {
        AuditLog::open(file)
            .context(|| format!("cannot write {}; pass another --audit-log", file.display()))
    };
    file.map(open).transpose()
}

/// Listens, and names the flag when that fails.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener> {
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

/// Says on standard output that the daemon serves, whether or not anything reads it.
pub(super) fn say_ready(listener: &TcpListener) -> Result<()> {
    use std::io::Write;
    let address = listener.local_addr().context(|| "the listener has no address".to_owned())?;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", serde_json::json!({ "ready": format!("http://{address}") }));
    let _ = out.flush();
    Ok(())
}

/// The signals by which a program is told to stop.
#[derive(Debug)]
pub(crate) struct Stops {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal is gone. `None` where that is to be outlived, as with `nohup`.
    hangup: Option<Signal>,
}

impl Stops {
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context(|| "cannot listen to signals".to_owned());
        Ok(Stops {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: (!is_hangup_ignored()).then(|| listen(SignalKind::hangup())).transpose()?,
        })
    }

    /// Resolves at the next of them.
    pub(crate) async fn any(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }

    /// Resolves at the next Ctrl-C.
    pub(crate) async fn interrupt(&mut self) {
        self.interrupt.recv().await;
    }
}

/// Whether this program was started to ignore SIGHUP.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

/// Resolves at the first signal to stop.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut stops = Stops::listen()?;
    Ok(async move { stops.any().await })
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
        // A line that cannot be written, as on a full disk, is lost. It would be told on standard error,
        // which cannot be written, and who logs would panic.
        .log_internal_errors(false)
        .init();
}
