//! `ol-lb`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use openlambda_core::time::SystemClock;
use openlambda_lb::policies::{PolicyCatalog, PolicyConfig};
use openlambda_lb::proxy::{AccessLog, Admin, Proxy, ProxyConfig};
use serde::Deserialize;

use super::{listen, say_ready, stop_signal};
use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::settings::{Settings, complete};

/// The options of `ol-lb`, on the command line and in its file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Read options from this TOML file; flags and the environment go before it.
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR", env = "OPENLAMBDA_LISTEN")]
    listen: Option<SocketAddr>,
    /// Registry to resolve names with: native=URL or dir=FOLDER.
    #[arg(long, value_name = "NAME=PLACE", env = "OPENLAMBDA_REGISTRY")]
    registry: Option<String>,
    /// Balancing policy, with parameters after commas: bounded-load,epsilon=0.5 [default:
    /// least-outstanding].
    #[arg(long, value_name = "NAME[,KEY=VALUE]", env = "OPENLAMBDA_POLICY")]
    policy: Option<PolicyConfig>,
    /// Worker that does not announce itself; may be given more than once.
    #[arg(long = "worker", value_name = "URL")]
    workers: Vec<String>,
    /// Who may read and change the registry over HTTP: off, loopback (clients on this machine) or
    /// any [default: loopback].
    #[arg(long, value_name = "WHO", env = "OPENLAMBDA_ADMIN")]
    admin: Option<Admin>,
    /// Write a line of JSON for each request to this file, or to standard output (-) [default: no
    /// log].
    #[arg(long, value_name = "FILE|-", env = "OPENLAMBDA_ACCESS_LOG")]
    access_log: Option<PathBuf>,
    /// Connections at once; one more waits until another ends [default: 10000].
    #[arg(long, value_name = "COUNT")]
    most_connections: Option<usize>,
    /// How long a client may take for the head of a request, or be silent between two [default: 30].
    #[arg(long, value_name = "SECONDS")]
    head_seconds: Option<f64>,
    /// Seed of the policy's choices [default: another one in each run].
    #[arg(long)]
    seed: Option<u64>,
}

impl Settings for Options {
    fn defaults() -> String {
        format!(
            r#"
            listen = "127.0.0.1:8080"
            policy = "{policy}"
            admin = "loopback"
            most_connections = 10000
            head_seconds = 30
            "#,
            policy = PolicyCatalog::DEFAULT,
        )
    }

    fn or(self, file: Options) -> Options {
        Options {
            config: self.config,
            listen: self.listen.or(file.listen),
            registry: self.registry.or(file.registry),
            policy: self.policy.or(file.policy),
            workers: if self.workers.is_empty() { file.workers } else { self.workers },
            admin: self.admin.or(file.admin),
            access_log: self.access_log.or(file.access_log),
            most_connections: self.most_connections.or(file.most_connections),
            head_seconds: self.head_seconds.or(file.head_seconds),
            seed: self.seed.or(file.seed),
        }
    }
}

pub(crate) async fn run(options: Options, catalog: &Catalog) -> Result<()> {
    let file = options.config.clone();
    let options = complete(options, file.as_deref())?;
    let stop = stop_signal()?;
    let registry = options
        .registry
        .ok_or_else(|| CliError::new("--registry is missing; pass native=URL or dir=FOLDER"))?;
    let registry = catalog.open_registry(&registry)?;
    let policy = options.policy.ok_or_else(|| CliError::new("--policy is missing"))?;
    let built = catalog.policies().build(&policy)?;
    let address = options.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
    let listener = listen(address).await?;
    let default = ProxyConfig::default();
    let header_seconds = options.head_seconds.unwrap_or(default.header_seconds);
    if !(header_seconds > 0.0 && header_seconds < 1e9) {
        let message = format!("--head-seconds {header_seconds} is not a time; use seconds above 0");
        return Err(CliError::new(message));
    }
    let config = ProxyConfig {
        workers: options.workers,
        admin: options.admin.unwrap_or_default(),
        seed: options.seed,
        most_connections: options.most_connections.unwrap_or(default.most_connections),
        header_seconds,
        ..default
    };
    let proxy = Proxy::new(config, policy.name, built, registry, Arc::new(SystemClock::new()));
    if let Some(place) = &options.access_log {
        let log = AccessLog::open(place)
            .context(|| format!("cannot write {}; pass another --access-log", place.display()))?;
        proxy.write_access_log(log);
    }
    say_ready(&listener)?;
    proxy.serve(listener, stop).await;
    Ok(())
}
