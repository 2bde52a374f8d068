//! The cluster on this machine, as its data folder describes it.
//!
//! ```text
//! <data-dir>/lock           held by the supervisor for as long as it lives
//!            config.toml    settings of `ol up`, written by people
//!            daemons.toml   the daemons' settings; ol up writes it
//!            cluster.json   what the supervisor runs; rewritten at every change
//!            logs/          the daemons' own logs
//!            registry/      the native registry's store
//!            functions/     the dir registry's functions
//!            volumes/       functions' volumes
//!            workers/<id>/  each worker's bundles, sandboxes and functions' logs
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use openlambda_core::hash::stable_hash;
use openlambda_core::sandbox::Report;
use openlambda_sandbox::docker::remove_containers;
use openlambda_sandbox::sock::{remove_cgroups, remove_network_rules};
use openlambda_sandbox::sys::kill_marked;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::error::{CliError, Context, Result};
use crate::settings::Config;

/// A cluster's data folder.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
}

/// What the supervisor writes down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterState {
    /// The supervisor.
    pub(crate) pid: u32,
    /// Everything runs.
    pub(crate) ready: bool,
    /// How long the supervisor may take to end all of it, seconds.
    #[serde(default)]
    pub(crate) stops_within: f64,
    /// The balancer's address.
    pub(crate) url: String,
    pub(crate) policy: String,
    pub(crate) balancer_pid: Option<u32>,
    pub(crate) registry: RegistryState,
    pub(crate) workers: Vec<WorkerState>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RegistryState {
    pub(crate) kind: String,
    /// How daemons and commands open it: `NAME=PLACE`.
    pub(crate) spec: String,
    /// The registry's daemon, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pid: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WorkerState {
    pub(crate) id: String,
    pub(crate) url: String,
    pub(crate) sandbox: String,
    pub(crate) pid: Option<u32>,
}

impl DataDir {
    /// The folder that was named, or `$XDG_STATE_HOME/openlambda`, or `~/.local/state/openlambda`.
    pub(crate) fn new(named: Option<PathBuf>) -> Result<Self> {
        let root = match named {
            Some(root) => root,
            None => {
                let under = |variable: &str, below: &str| {
                    let base = PathBuf::from(std::env::var_os(variable)?);
                    base.is_absolute().then(|| base.join(below))
                };
                under("XDG_STATE_HOME", "openlambda")
                    .or_else(|| under("HOME", ".local/state/openlambda"))
                    .ok_or_else(|| {
                        CliError::new("HOME is not set; name the cluster's folder with --data-dir")
                    })?
            }
        };
        let root = std::path::absolute(&root)
            .context(|| format!("{} is not a usable path", root.display()))?;
        Ok(DataDir { root })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn join(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// The cluster's own configuration, if there is one.
    pub(crate) fn config_file(&self) -> Option<PathBuf> {
        Some(self.join("config.toml")).filter(|path| path.exists())
    }

    /// Writes down what the daemons are told, for them to read.
    pub(crate) fn write_settings(&self, config: &Config) -> Result<PathBuf> {
        let path = self.join("daemons.toml");
        let head =
            "# The settings of this cluster's daemons; ol up writes this file at every start.\n\n";
        let text = toml::to_string(config).context(|| "cannot write the settings".to_owned())?;
        let written = std::fs::write(&path, format!("{head}{text}"));
        written.context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    pub(crate) fn worker_dir(&self, id: &str) -> PathBuf {
        self.root.join("workers").join(id)
    }

    /// The mark that every process of this cluster carries, the same after a crash.
    pub(crate) fn mark(&self) -> String {
        let bytes = self.root.as_os_str().as_encoded_bytes();
        format!("ol-{:016x}", stable_hash(0, bytes))
    }

    /// Makes the folder, for this user alone.
    pub(crate) fn create(&self) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.and_then(|()| std::fs::create_dir_all(self.join("logs"))).context(|| {
            format!(
                "cannot use the data folder {}; name another one with --data-dir",
                self.root.display()
            )
        })
    }

    /// Takes the cluster's lock; `None` while a supervisor holds it. It is free again when the file
    /// is closed, by a crash too.
    pub(crate) fn try_lock(&self) -> Result<Option<File>> {
        let path = self.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .context(|| format!("cannot open {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Whether a supervisor lives.
    pub(crate) fn is_up(&self) -> Result<bool> {
        if !self.join("lock").exists() {
            return Ok(false);
        }
        Ok(self.try_lock()?.is_none())
    }

    pub(crate) fn write_state(&self, state: &ClusterState) -> io::Result<()> {
        let temporary = self.join("cluster.json.new");
        std::fs::write(&temporary, serde_json::to_vec_pretty(state)?)?;
        std::fs::rename(&temporary, self.join("cluster.json"))
    }

    pub(crate) fn read_state(&self) -> Option<ClusterState> {
        serde_json::from_slice(&std::fs::read(self.join("cluster.json")).ok()?).ok()
    }

    /// The cluster that runs.
    ///
    /// # Errors
    ///
    /// That none does, and how to start one.
    pub(crate) fn running(&self) -> Result<ClusterState> {
        let none = || {
            CliError::new(format!(
                "no cluster runs in {}; start one with `ol up --detach`",
                self.root.display()
            ))
        };
        if !self.is_up()? {
            return Err(none());
        }
        self.read_state().filter(|state| state.ready).ok_or_else(none)
    }

    /// Removes what a cluster that is down has left: processes, cgroups, rules for bridged networks,
    /// containers, sandboxes' folders,
    /// its state. Keeps functions, volumes and logs. The caller holds the lock.
    pub(crate) fn clean(&self) -> Report {
        let mut report = remove_cgroups(&self.mark());
        report.processes += kill_marked(&self.mark());
        for more in [remove_network_rules(&self.mark()), remove_containers(&self.mark())] {
            report.removed.extend(more.removed);
            report.failed.extend(more.failed);
        }
        let mut leftovers = vec![self.join("cluster.json"), self.join("cluster.json.new")];
        let workers = std::fs::read_dir(self.join("workers")).into_iter().flatten().flatten();
        for worker in workers {
            leftovers.push(worker.path().join("sandboxes"));
            leftovers.push(worker.path().join("code"));
        }
        for path in leftovers {
            let removed = match std::fs::symlink_metadata(&path) {
                Err(_) => continue,
                Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(&path),
                Ok(_) => std::fs::remove_file(&path),
            };
            let name = path.display().to_string();
            match removed {
                Ok(()) => report.removed.push(name),
                Err(error) => report.failed.push(format!("{name}: {error}")),
            }
        }
        report
    }
}
