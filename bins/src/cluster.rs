//! The cluster on this machine, as its data folder describes it.
//!
//! ```text
//! <data-dir>/FORMAT         the format of all this, and the release that brought it into that
//!            lock           held by the supervisor for as long as it lives
//!            config.toml    settings of `ol up`, written by people
//!            daemons.toml   the daemons' settings; ol up writes it
//!            cluster.json   what the supervisor runs; rewritten at every change
//!            secret         by which daemons, `ol` and tools prove that they belong to the cluster
//!            balancer.sock  the balancer, for this user's clients, which need no secret there
//!            logs/          the daemons' own logs, and who has changed what (audit-….jsonl)
//!            registry/      the native registry's store
//!            functions/     the dir registry's functions
//!            volumes/       functions' volumes
//!            pages/         functions' web pages, with the functions' URLs
//!            workers/<id>/  each worker's bundles, sandboxes and functions' logs
//! ```
//!
//! Every command looks at `FORMAT` first, and none touches a folder that a later release wrote. The
//! store in `registry/` has a format of its own, since it can be elsewhere.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openlambda_core::allow::Allow;
use openlambda_core::audit::{Actor, AuditLog, Audited};
use openlambda_core::format::Format;
use openlambda_core::function::FunctionName;
use openlambda_core::hash::stable_hash;
use openlambda_core::registry::Registry;
use openlambda_core::sandbox::Report;
use openlambda_core::serving::Secret;
use openlambda_sandbox::docker::remove_containers;
use openlambda_sandbox::sock::{remove_cgroups, remove_network_rules};
use openlambda_sandbox::sys::kill_marked;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::private;
use crate::settings::{Config, Settings, WorkerSettings};

/// The format of a data folder.
const FORMAT: Format = Format { kind: "data folder", number: 1 };

/// A cluster's data folder.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
}

/// What the supervisor writes down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterState {
    /// The release of the supervisor and its daemons; empty in what releases wrote that did not say it.
    #[serde(default)]
    pub(crate) release: String,
    /// The supervisor.
    pub(crate) pid: u32,
    /// Everything runs.
    pub(crate) ready: bool,
    /// How long the supervisor may take to end all of it, seconds.
    #[serde(default)]
    pub(crate) stops_within: f64,
    /// The file with the cluster's secret; none in what releases wrote that had no secrets.
    #[serde(default)]
    pub(crate) secret_file: Option<PathBuf>,
    /// What is in it, if it can be read.
    #[serde(skip)]
    pub(crate) secret: Option<Secret>,
    /// The cluster's folder.
    #[serde(skip)]
    pub(crate) folder: PathBuf,
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

impl ClusterState {
    /// The cluster's registry, for a command of `ol` that reads.
    pub(crate) fn open_registry(&self, catalog: &Catalog) -> Result<Arc<dyn Registry>> {
        catalog.open_registry(&self.registry.spec, self.secret.as_ref(), "ol")
    }

    /// The cluster's registry, for a command of `ol` that changes it. What it changes is written down: by the
    /// registry's daemon, or here, where there is none.
    pub(crate) fn open_to_change(
        &self,
        catalog: &Catalog,
        command: &str,
    ) -> Result<Arc<dyn Registry>> {
        let by = format!("uid {}, {command}", rustix::process::getuid().as_raw());
        let (spec, secret) = (&self.registry.spec, self.secret.as_ref());
        if self.registry.kind == "native" {
            return catalog.open_registry(spec, secret, &by);
        }
        let allow = DataDir { root: self.folder.clone() }.allow()?;
        let registry = catalog.open_registry_within(spec, secret, &by, allow)?;
        let path = self.folder.join("logs/audit-ol.jsonl");
        let log = AuditLog::open(&path).context(|| format!("cannot write {}", path.display()))?;
        let actor = Actor { by, from: "this machine".to_owned() };
        Ok(Arc::new(Audited::new(registry, log, actor)))
    }
}

impl DataDir {
    /// The folder that was named, if it is this user's own; or `$XDG_STATE_HOME/openlambda`, or
    /// `~/.local/state/openlambda`.
    ///
    /// # Errors
    ///
    /// That there is none, that another user may write it, or that a later release wrote it.
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
        private::check_way(&root)?;
        FORMAT.check(&root)?;
        Ok(DataDir { root })
    }

    /// Writes down that this release keeps the folder. The caller holds the lock.
    pub(crate) fn mark_format(&self) -> Result<()> {
        Ok(FORMAT.mark(&self.root)?)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn join(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// The cluster's own configuration, if there is one.
    ///
    /// # Errors
    ///
    /// Something else is in its place: a link, or what reading would wait for.
    pub(crate) fn config_file(&self) -> Result<Option<PathBuf>> {
        let path = self.join("config.toml");
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Ok(found) if found.is_file() => Ok(Some(path)),
            Ok(_) => Err(CliError::new(format!(
                "{} is no regular file; put the settings themselves there, or name their file with \
                 --config",
                path.display()
            ))),
            Err(error) => Err(error).context(|| format!("cannot look at {}", path.display())),
        }
    }

    /// Writes down what the daemons are told, for them to read.
    pub(crate) fn write_settings(&self, config: &Config) -> Result<PathBuf> {
        let path = self.join("daemons.toml");
        let head =
            "# The settings of this cluster's daemons; ol up writes this file at every start.\n\n";
        let text = toml::to_string(config).context(|| "cannot write the settings".to_owned())?;
        let written = replace(&path, format!("{head}{text}").as_bytes());
        written.context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// What the daemons were told, if it can be read.
    pub(crate) fn daemons_table(&self) -> Option<toml::Table> {
        let mut text = String::new();
        let path = self.join("daemons.toml");
        private::open_file(&path, File::options().read(true))
            .ok()?
            .read_to_string(&mut text)
            .ok()?;
        text.parse().ok()
    }

    /// The socket of the engine that this cluster's workers were told of.
    fn docker_socket(&self) -> Option<String> {
        let settings = self.daemons_table()?;
        Some(settings.get("worker")?.get("docker_socket")?.as_str()?.to_owned())
    }

    /// What the operator of the cluster that runs allows.
    ///
    /// # Errors
    ///
    /// That what `ol up` wrote down cannot be read.
    pub(crate) fn allow(&self) -> Result<Allow> {
        Ok(Settings::of_daemons(&self.join("daemons.toml"))?.config()?.allow.allow())
    }

    /// The settings of workers: those that the cluster which runs here was started with, else those that one would
    /// be.
    ///
    /// # Errors
    ///
    /// A file of settings cannot be read.
    pub(crate) fn worker_settings(&self) -> Result<WorkerSettings> {
        let told = self.is_up()?.then(|| self.daemons_table()).flatten();
        match told.and_then(|told| told.get("worker").cloned()) {
            Some(worker) => {
                let wrong = |error: toml::de::Error| CliError::new(error.message().to_owned());
                worker.try_into().map_err(wrong)
            }
            None => Ok(Settings::of_cluster(self.config_file()?.as_deref())?.config()?.worker),
        }
    }

    pub(crate) fn worker_dir(&self, id: &str) -> PathBuf {
        self.root.join("workers").join(id)
    }

    /// The page of a function, which knows where the function is.
    pub(crate) fn page_of(&self, function: &FunctionName) -> PathBuf {
        self.root.join("pages").join(function.namespace()).join(function.name())
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
        made.context(|| {
            format!(
                "cannot use the data folder {}; name another one with --data-dir",
                self.root.display()
            )
        })?;
        // Whatever folders were missing a moment ago.
        private::check_way(&self.root)?;
        for folder in ["logs", "registry", "functions", "volumes", "workers"] {
            private::make_folder(&self.join(folder))?;
        }
        Ok(())
    }

    /// Makes what is in the folder this user's alone, whatever it was. Functions' own files stay as they
    /// are. The caller holds the lock.
    pub(crate) fn make_private(&self) -> Result<()> {
        let close = |folder: &str, enter: &dyn Fn(&Path) -> bool| {
            let folder = self.join(folder);
            match std::fs::symlink_metadata(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                _ => private::close_to_others(&folder, enter),
            }
        };
        // A function's folder may be a link to where its author works, or to where that was.
        private::make_folder(&self.join("functions"))?;
        close("logs", &|_| true)?;
        close("registry", &|_| true)?;
        // A function's volumes are below its namespace and name.
        close("volumes", &|path| path.components().count() < 3)?;
        close("workers", &|path| {
            let mut parts = path.components().skip(1);
            parts.next().is_none_or(|part| part.as_os_str() == "logs")
        })
    }

    /// Takes the cluster's lock; `None` while a supervisor holds it. It is free again when the file
    /// is closed, by a crash too.
    pub(crate) fn try_lock(&self) -> Result<Option<File>> {
        self.lock_by(File::options().create(true).truncate(false).write(true))
    }

    fn lock_by(&self, options: &mut OpenOptions) -> Result<Option<File>> {
        let path = self.join("lock");
        let file = private::open_file(&path, options)
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
        // Nothing is written, so that it can be told on a disk that takes nothing.
        Ok(self.lock_by(File::options().read(true))?.is_none())
    }

    pub(crate) fn write_state(&self, state: &ClusterState) -> io::Result<()> {
        replace(&self.join("cluster.json"), &serde_json::to_vec_pretty(state)?)
    }

    pub(crate) fn read_state(&self) -> Option<ClusterState> {
        let mut text = Vec::new();
        let path = self.join("cluster.json");
        private::open_file(&path, File::options().read(true)).ok()?.read_to_end(&mut text).ok()?;
        let mut state: ClusterState = serde_json::from_slice(&text).ok()?;
        state.folder.clone_from(&self.root);
        state.secret = state.secret_file.as_deref().and_then(|file| Secret::read(file).ok());
        Some(state)
    }

    /// The file with the secret of a cluster that is to start: the one that is named, or the folder's own,
    /// which is made if it is not there. The caller holds the lock.
    ///
    /// # Errors
    ///
    /// There is no secret in it; others can read it; it cannot be made.
    pub(crate) fn secret_file(&self, named: Option<&Path>) -> Result<PathBuf> {
        let file = named.map_or_else(|| self.join("secret"), Path::to_owned);
        if named.is_none() {
            match private::make_secret(&file) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).context(|| format!("cannot write {}", file.display()));
                }
                _ => {}
            }
        }
        Secret::read(&file)?;
        Ok(file)
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
        let state = self.read_state().filter(|state| state.ready).ok_or_else(none)?;
        if let (None, Some(file)) = (&state.secret, &state.secret_file) {
            Secret::read(file)?;
        }
        Ok(state)
    }

    /// Removes what a cluster that is down has left: processes, cgroups, rules for bridged networks,
    /// containers, sandboxes' folders,
    /// its state. Keeps functions, volumes and logs. The caller holds the lock.
    pub(crate) fn clean(&self) -> Report {
        let mut report = remove_cgroups(&self.mark());
        report.processes += kill_marked(&self.mark());
        let containers = remove_containers(&self.mark(), self.docker_socket().as_deref());
        for more in [remove_network_rules(&self.mark()), containers] {
            report.removed.extend(more.removed);
            report.failed.extend(more.failed);
        }
        let leftovers = ["cluster.json", "cluster.json.new", "balancer.sock"];
        let mut leftovers: Vec<PathBuf> = leftovers.map(|name| self.join(name)).into();
        let workers = std::fs::read_dir(self.join("workers")).into_iter().flatten().flatten();
        for worker in workers {
            leftovers.push(worker.path().join("sandboxes"));
            leftovers.push(worker.path().join("code"));
        }
        for path in leftovers {
            let removed = match std::fs::symlink_metadata(&path) {
                Err(_) => continue,
                Ok(metadata) if metadata.is_dir() => openlambda_sandbox::trees::remove(&path),
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

/// Why a log may have no word in it of what went wrong: the disk that it is on has no room for one.
pub(crate) fn no_room_for(log: &Path) -> Option<String> {
    const TOO_LITTLE: u64 = 1 << 20;
    let found = rustix::fs::statvfs(log).ok()?;
    let left = found.f_bavail.saturating_mul(found.f_frsize);
    if left >= TOO_LITTLE && (found.f_favail > 0 || found.f_files == 0) {
        return None;
    }
    let folder = log.parent().unwrap_or(log).display();
    let what = match left >= TOO_LITTLE {
        true => "no more files fit on".to_owned(),
        false => format!("only {} KiB are left on", left >> 10),
    };
    Some(format!(
        "{what} the disk of {folder}; make room there, or use another folder, with --data-dir"
    ))
}

/// Puts a file of this user's own in the place of `path`, at one stroke.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.to_owned();
    temporary.as_mut_os_string().push(".new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let options = &mut File::options();
    private::open_file(&temporary, options.write(true).create_new(true))?.write_all(content)?;
    std::fs::rename(&temporary, path)
}
