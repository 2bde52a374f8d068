//! The settings of a cluster on one machine, beside those of its daemons.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::count::Count;
use super::seconds::Seconds;
use super::section::Section;

/// `[cluster]`
#[derive(Args, Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClusterSettings {
    /// How many workers, 1000 at most
    #[arg(long, env = "OPENLAMBDA_WORKERS")]
    pub(crate) workers: Count<1000>,
    /// native (a store of its own), dir (a folder of function folders), or NAME=PLACE of one that
    /// runs already
    #[arg(long, value_name = "NAME[=PLACE]", env = "OPENLAMBDA_REGISTRY")]
    pub(crate) registry: String,
    /// File with the secret by which daemons know each other [default: secret in the cluster's folder,
    /// which is made]
    #[arg(long, value_name = "FILE", env = "OPENLAMBDA_SECRET_FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// How long a daemon may take until it serves
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) start_limit_seconds: Seconds,
    /// How long a daemon may take to end when it is told to; then it is killed
    #[arg(long, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) stop_grace_seconds: Seconds,
}

impl Section for ClusterSettings {
    const NAME: &'static str = "cluster";
}

impl Default for ClusterSettings {
    fn default() -> Self {
        ClusterSettings {
            workers: Count::of(2),
            registry: "native".to_owned(),
            secret_file: None,
            start_limit_seconds: Duration::from_secs(30).into(),
            stop_grace_seconds: Duration::from_secs(40).into(),
        }
    }
}
