//! The arguments that all commands about a cluster share.

use std::path::PathBuf;

use clap::Args;

use crate::cluster::DataDir;
use crate::error::Result;
use crate::silence;

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
    /// The cluster's folder. Should the command wait for a part of the cluster that does not answer, it
    /// says so.
    pub(super) fn dir(&self) -> Result<DataDir> {
        let dir = self.dir_alone()?;
        silence::tell(&dir);
        Ok(dir)
    }

    /// The cluster's folder, for a command that looks after the daemons itself.
    pub(super) fn dir_alone(&self) -> Result<DataDir> {
        DataDir::new(self.data_dir.clone())
    }
}
