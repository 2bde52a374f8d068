//! The settings of a balancer.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use openlambda_core::serving::Secret;
use openlambda_core::serving::identity::Host;
use openlambda_lb::policies::{PolicyCatalog, PolicyConfig};
use openlambda_lb::proxy::{AccessLog, Admin, Network, ProxyConfig};
use serde::{Deserialize, Serialize};

use super::count::Count;
use super::errors::ErrorSettings;
use super::seconds::Seconds;
use super::section::Section;
use super::share::Share;

/// `[balancer]`
#[derive(Args, Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BalancerSettings {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR", env = "OPENLAMBDA_LISTEN")]
    pub(crate) listen: SocketAddr,
    /// Name, beside localhost and addresses, by which the balancer is called; may be given more than once.
    /// With a port, daemons may reach it by that one, too
    #[arg(long = "host", value_name = "NAME[:PORT]")]
    pub(crate) hosts: Vec<Host>,
    /// Proxy in front of the balancer that is believed where requests come from; may be given more than
    /// once
    #[arg(long = "trusted-proxy", value_name = "ADDRESS|NETWORK")]
    pub(crate) trusted_proxies: Vec<Network>,
    /// Unix socket to listen on as well; by it, this user's own clients need not know the secret
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub(crate) socket: Option<PathBuf>,
    /// Folder of the workers' volumes, if they are on this machine: those of a function that is removed over
    /// HTTP are put aside there, where the registry would give them to the next one of its name
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) volumes_dir: Option<PathBuf>,
    /// File with the cluster's secret, which all its daemons have; `ol secret FILE` makes one
    #[arg(long, value_name = "FILE", env = "OPENLAMBDA_SECRET_FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Registry to resolve names with: native=URL or dir=FOLDER
    #[arg(long, value_name = "NAME=PLACE", env = "OPENLAMBDA_REGISTRY")]
    pub(crate) registry: Option<String>,
    /// Balancing policy, with parameters after commas: bounded-load,epsilon=0.5; `ol policies` lists
    /// them
    #[arg(long, value_name = "NAME[,KEY=VALUE]", env = "OPENLAMBDA_POLICY")]
    pub(crate) policy: PolicyConfig,
    /// Worker that does not announce itself; may be given more than once
    #[arg(long = "worker", value_name = "URL")]
    pub(crate) workers: Vec<String>,
    /// Who may read and change the registry over HTTP: off, loopback (clients on this machine) or
    /// any
    #[arg(long, value_name = "WHO", env = "OPENLAMBDA_ADMIN")]
    #[serde(with = "admin")]
    pub(crate) admin: Admin,
    /// Write a line of JSON for each request to this file, or, from ol-lb, to standard output (-)
    /// [default: no log]
    #[arg(long, value_name = "FILE|-", env = "OPENLAMBDA_ACCESS_LOG")]
    pub(crate) access_log: Option<PathBuf>,
    /// The size of a file of that log, MiB; two such files are kept
    #[arg(long, value_name = "MIB", hide_short_help = true)]
    pub(crate) access_log_mb: Count,
    /// Write who changes what to this file, as lines of JSON; at 16 MiB it becomes FILE.1
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log: Option<PathBuf>,
    /// Seed of the policy's choices [default: another one in each run]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Connections at once; one more waits until another ends
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) most_connections: Count,
    /// Calls that are answered at once; one more gets 503
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) most_calls: Count,
    /// How long a client may take for the head of a request, or be silent between two
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) head_seconds: Seconds,
    /// How long a client may take nothing of a reply that waits for it; then its connection is closed
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) write_seconds: Seconds,
    /// The largest head of a request, KiB; a larger one gets 431
    #[arg(long, value_name = "KIB", hide_short_help = true)]
    pub(crate) head_limit_kb: Count,
    /// The largest body of a request, MiB; a larger one gets 413
    #[arg(long, value_name = "MIB", hide_short_help = true)]
    pub(crate) body_limit_mb: Count,
    /// The largest bundle that is taken over HTTP, MiB; a larger one gets 413
    #[arg(long, value_name = "MIB", hide_short_help = true)]
    pub(crate) bundle_limit_mb: Count,
    /// How many more workers a call is tried on when it cannot have started
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) retries: u32,
    /// How much of a retry each call adds to the retry budget: 0.2 is one retry for every fifth call
    #[arg(long, value_name = "SHARE", hide_short_help = true)]
    pub(crate) retry_share: Share,
    /// How many retries the budget begins with, and the most that it saves up
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) retry_reserve: u32,
    /// How much longer than a function's time limit the balancer waits for a worker
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) timeout_grace_seconds: Seconds,
    /// How much time the balancer adds for what comes before the handler: queueing, pulling, a cold start
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) start_allowance_seconds: Seconds,
    /// A worker is unhealthy when it has sent nothing for this time
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) silence_seconds: Seconds,
    /// A worker that announced itself and was not reached for this time has left for good
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) forget_seconds: Seconds,
    /// How long calls under way may take to end when the balancer is told to stop
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) drain_seconds: Seconds,
}

impl Section for BalancerSettings {
    const NAME: &'static str = "balancer";
    const OF_ONE: &'static [&'static str] =
        &["registry", "workers", "secret_file", "socket", "audit_log", "volumes_dir"];
}

impl Default for BalancerSettings {
    fn default() -> Self {
        let config = ProxyConfig::default();
        // What the library holds is a time and a share that can be.
        let seconds =
            |seconds: f64| Seconds::try_from(seconds).unwrap_or_else(|why| panic!("{why}"));
        let share = |share: f64| Share::try_from(share).unwrap_or_else(|why| panic!("{why}"));
        BalancerSettings {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            hosts: config.hosts,
            trusted_proxies: config.trusted_proxies,
            socket: None,
            volumes_dir: None,
            secret_file: None,
            registry: None,
            policy: PolicyConfig::named(PolicyCatalog::DEFAULT),
            workers: config.workers,
            admin: config.admin,
            access_log: None,
            access_log_mb: Count::of(AccessLog::FILE_SIZE >> 20),
            audit_log: None,
            seed: config.seed,
            most_connections: Count::of(config.most_connections as u64),
            most_calls: Count::of(config.most_calls as u64),
            head_seconds: seconds(config.header_seconds),
            write_seconds: seconds(config.write_seconds),
            head_limit_kb: Count::of(config.header_limit as u64 >> 10),
            body_limit_mb: Count::of(config.body_limit >> 20),
            bundle_limit_mb: Count::of(config.bundle_limit >> 20),
            retries: config.retries,
            retry_share: share(config.retry_share),
            retry_reserve: config.retry_reserve,
            timeout_grace_seconds: seconds(config.timeout_grace_seconds),
            start_allowance_seconds: seconds(config.start_allowance_seconds),
            silence_seconds: seconds(config.silence_seconds),
            forget_seconds: seconds(config.forget_seconds),
            drain_seconds: seconds(config.drain_seconds),
        }
    }
}

impl BalancerSettings {
    /// What the library is told.
    pub(crate) fn config(&self, errors: &ErrorSettings, secret: Option<Secret>) -> ProxyConfig {
        ProxyConfig {
            secret,
            hosts: self.hosts.clone(),
            trusted_proxies: self.trusted_proxies.clone(),
            workers: self.workers.clone(),
            admin: self.admin,
            seed: self.seed,
            most_connections: self.most_connections.get() as usize,
            most_calls: self.most_calls.get() as usize,
            header_seconds: self.head_seconds.get(),
            write_seconds: self.write_seconds.get(),
            header_limit: (self.head_limit_kb.get() as usize) << 10,
            body_limit: self.body_limit_mb.get() << 20,
            bundle_limit: self.bundle_limit_mb.get() << 20,
            error_detail: errors.detail(self.listen),
            retries: self.retries,
            retry_share: self.retry_share.get(),
            retry_reserve: self.retry_reserve,
            timeout_grace_seconds: self.timeout_grace_seconds.get(),
            start_allowance_seconds: self.start_allowance_seconds.get(),
            silence_seconds: self.silence_seconds.get(),
            forget_seconds: self.forget_seconds.get(),
            drain_seconds: self.drain_seconds.get(),
        }
    }
}

/// [`Admin`] as its word.
mod admin {
    use openlambda_lb::proxy::Admin;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(admin: &Admin, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(admin)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Admin, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}
