//! The settings of the registry's daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use openlambda_core::serving::Patience;
use openlambda_core::serving::identity::Host;
use serde::{Deserialize, Serialize};

use super::count::Count;
use super::seconds::Seconds;
use super::section::Section;

/// `[registry]`
#[derive(Args, Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RegistrySettings {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", env = "OPENLAMBDA_REGISTRY_LISTEN")]
    pub(crate) listen: SocketAddr,
    /// Name, beside localhost and addresses, by which the registry is called; may be given more than once.
    /// With a port, daemons may reach it by that one, too
    #[arg(long = "host", value_name = "NAME[:PORT]", hide_short_help = true)]
    pub(crate) hosts: Vec<Host>,
    /// File with the cluster's secret, which all its daemons have; `ol secret FILE` makes one
    #[arg(long, value_name = "FILE", env = "OPENLAMBDA_SECRET_FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Write who changes what to this file, as lines of JSON; at 16 MiB it becomes FILE.1
    #[arg(long, value_name = "FILE")]
    pub(crate) audit_log: Option<PathBuf>,
    /// Connections at once; one more waits until another ends
    #[arg(long, value_name = "COUNT", hide_short_help = true)]
    pub(crate) most_connections: Count,
    /// How long a client may take until it has shown that it knows the secret
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) head_seconds: Seconds,
    /// Folder of the store; ol up keeps it in the cluster's folder unless this says otherwise
    #[arg(long, value_name = "DIR", env = "OPENLAMBDA_REGISTRY_DIR")]
    pub(crate) store: Option<PathBuf>,
}

impl Section for RegistrySettings {
    const NAME: &'static str = "registry";
    const OF_ONE: &'static [&'static str] = &["hosts", "secret_file", "audit_log"];
}

impl Default for RegistrySettings {
    fn default() -> Self {
        let patience = Patience::default();
        RegistrySettings {
            listen: SocketAddr::from(([127, 0, 0, 1], 9000)),
            hosts: Vec::new(),
            secret_file: None,
            audit_log: None,
            most_connections: Count::of(patience.most_connections as u64),
            head_seconds: patience.head.into(),
            store: None,
        }
    }
}

impl RegistrySettings {
    /// How many clients the library is to let in, and how slow they may be.
    pub(crate) fn patience(&self) -> Patience {
        let mut patience = Patience::default();
        patience.most_connections = self.most_connections.get() as usize;
        patience.head = self.head_seconds.into();
        patience
    }
}
