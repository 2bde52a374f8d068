//! The arguments that all commands about a cluster share.

use std::path::PathBuf;

use clap::Args;

use crate::cluster::DataDir;
use crate::error::Result;

/// What every command about a cluster takes.
#[derive(Args, Clone, Debug)]
pub(super) struct Common {
    /// The cluster's folder [default: $XDG_STATE_HOME/openlambda or ~/.local/state/openlambda]
    #[arg(long, value_name = "DIR", env = "OPENLAMBDA_DATA_DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Print JSON, for scripts
    #[arg(long)]
    pub(super) json: bool,
}

impl Common {
    pub(super) fn dir(&self) -> Result<DataDir> {
        DataDir::new(self.data_dir.clone())
    }
}
