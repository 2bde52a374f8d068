//! The `sock` kind: lean Linux containers, with root and without.
//!
//! The design follows SOCK (Oakes et al., USENIX ATC'18), which found what makes containers slow to start
//! (union file systems, network namespaces, new cgroups) and left it out. Here mount, network and user
//! namespaces are kept: the expensive ones are made ahead, the cheap ones by one clone.
//!
//! # What isolates a function
//!
//! | step (`sys/nursery/main.rs`) | what it takes away |
//! |---|---|
//! | mount namespace, root of its own | every file of the machine but `/usr`, read-only, its bundle, its volumes |
//! | process namespace | seeing and signalling others; everything in it dies with its first process, an init, which it cannot look into |
//! | IPC and host-name namespaces | shared memory, queues, the machine's name |
//! | network namespace, from the pool | every network but a loopback of its own; with `network = "bridge"` (`sock/bridge.rs`), the machine and what is on it |
//! | cgroup, from the pool | more memory, swap, processes and processor time than its manifest says |
//! | `/tmp` and `/dev/shm` of bounded size and number of files | memory that no process is charged for |
//! | `/dev/pts` of its own | terminals of others, more than eight at once |
//! | `/proc` read-only, without what is the machine's own business | changing the kernel's settings, being killed after the worker when memory is short, seeing others' keys and locks, how the machine was started |
//! | limits of single processes | core files, more than 1024 open files, a higher priority than others |
//! | signals, umask, session keyring, descriptors of its own | what the worker was started with |
//! | user id of its own, user namespace | being root, having a name for any other user |
//! | capabilities, `no_new_privs` | privileges, and getting them by setuid files |
//! | seccomp (`sock/seccomp.rs`) | system calls that are not needed, new namespaces among them, and those that take from what the machine's users share |
//!
//! # A start
//!
//! ```text
//! create ─▶ cell from the pool ─▶ Recipe ─▶ nursery: two clones, the steps, exec ─▶ first `next` ─▶ ready
//!                 ▲                                                │ a step that fails says which
//!                 └── cleaned ◀── the process namespace is empty ◀─┴─ exit, destroy, Drop
//! ```
//!
//! # What a cell could carry from one tenant to the next
//!
//! A cell is a cgroup and a network namespace, used by one sandbox (its *tenant*) after another. Between
//! two tenants no process is in either, so no socket is open in the network, abstract or not. In
//! `tests/sock_reuse.rs` one tenant leaves all that it can, and the next looks for it.
//!
//! | what | why the next tenant does not find it |
//! |---|---|
//! | connections to the Runtime API's listeners, which stay | waiting connections are accepted and closed |
//! | connections in `TIME_WAIT` | there are none on this loopback (`tcp_max_tw_buckets`) |
//! | addresses, routes, filters, settings of the network | they belong to the nursery's user namespace, where no tenant has privileges |
//! | limits of the cgroup | each tenant's are written before it starts |
//! | counters of the cgroup: out-of-memory kills | the worker reads differences; a tenant cannot see them |
//! | pages of files that stay charged to the cgroup | the kernel reclaims them first; a group with many of them is not used again |
//! | a frozen state | thawed before the cell goes back |
//! | the root's mounts, which all share | read-only; `/tmp`, `/proc` and IPC are made for each |
//! | a bridged network, which the world can send to | it is not used twice |
//!
//! The next tenant does see what the kernel has counted since the network was made (`/proc/net/dev`,
//! `snmp`, `netstat`): how much earlier tenants have sent over their loopback, not to whom or what.
//!
//! # Without root
//!
//! With unprivileged user namespaces the same steps work, with two exceptions. First, cgroups cannot be
//! made unless some are delegated to the user. Without them processor time is not bounded,
//! `RLIMIT_NPROC` bounds processes, and a watchdog bounds memory (`sock/watchdog.rs` says how exactly).
//! Second, every sandbox runs as the worker's own user on the machine, so it is kept from that user's
//! files only because it cannot see them. [`Capabilities`] and [`SockFactory::withheld`] say so. Limits
//! that the kernel counts by user (watches of epoll, memory of pipes, pending signals) are shared with
//! the worker, and sandboxes keep the worker's supplementary groups. `docs/kernel-limits.md` has all.
//!
//! # What is not isolated
//!
//! A function sees the machine's `/usr`, and what `/proc` shows everybody: its processors, memory, load,
//! uptime, the paths of the function's own mounts. With `network = "host"` it reaches everything that
//! listens on the machine, abstract Unix sockets included, and a function with its own `bootstrap` then
//! has its Runtime API at a port that others on the machine's network can reach too. Disk bandwidth is
//! not bounded.
//!
//! # Processes
//!
//! A sandbox's first process is an init (`sys/nursery/init.rs`); the function's program is the second one.
//! So orphans are waited for, and do not stay until no process can be started; signals act on the program
//! as on any other, also those that it sends to itself; signals to process 1 are passed on to it; and how it
//! ends, the worker is told, be it a status or a signal. The init does not count among the manifest's
//! `processes`, though in the cgroup's memory it does, with some 50 KiB of the kernel's. What about it could
//! be a way in, and why it is none, its own documentation says.
//!
//! Processes that a function leaves running do count. Where a call has failed and all that the manifest
//! allows are in use, the function can start no other: the instance gets no more calls, and the log says why.

mod bridge;
mod cell;
mod cgroup;
mod container;
#[cfg(feature = "lab")]
pub mod minimal;
mod seccomp;
mod sockets;
mod watchdog;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use openlambda_core::function::FunctionName;
use openlambda_core::hash::stable_hash;
use openlambda_core::manifest::{Manifest, Network, Volume};
use openlambda_core::sandbox::{
    Capabilities, Created, Isolation, Report, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec,
};
use openlambda_core::time::Clock;
use parking_lot::Mutex;
use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::OnceCell;

use self::bridge::Bridge;
use self::cell::{Cells, Network as CellNetwork};
use self::cgroup::{Cgroups, Limits};
use self::container::{Cell, Container, INITS};
use self::watchdog::Watchdog;
use crate::errors::{resources, shutting_down, unsupported};
use crate::kit::{self, Handle, Instances};
use crate::launch::{
    Folder, PYTHON_ARGUMENTS, PYTHON_FILES, Places, Program, absolute, check_mark, compile_python,
    environment, own_volume, packages, remove_sandboxes, text, volumes,
};
use crate::node::{self, NODE_BOOTSTRAP, NODE_BOOTSTRAP_PATH, find_node};
use crate::python::{ByVersion, Python, Pythons, find_python, installed_in, installed_packages};
use crate::runtime_api::Listener;
use crate::sys::nursery::{
    API_PORT, API_SOCKET, Belongings, Nursery, NurseryError, NurserySetup, RESOLVER, Recipe,
};
use crate::sys::{Spawner, kill_marked};

/// The first of the user ids that sandboxes have on the machine, when the worker is root. Each
/// function has one of the million from here on, told by its name, so that its volumes stay its own.
const FIRST_ID: u32 = 1_870_000_000;
const IDS: u64 = 1_000_000;
/// A sandbox's user id, as the sandbox sees it.
const INSIDE_ID: u32 = 1000;

/// Where a sandbox finds our bootstraps.
const RUNTIMES: &str = "/var/runtime";
/// Where it finds its bundle.
const TASK: &str = "/var/task";
/// Where one without a network namespace of its own finds the Runtime API's socket.
const SOCKET_FOLDER: &str = "/run/openlambda";
/// Where it finds a Node.js that is not in the machine's `/usr`.
const NODE_FOLDER: &str = "/opt/node";

/// Makes sandboxes that are lean containers. See the module's documentation.
#[derive(Debug)]
pub struct SockFactory {
    shared: Arc<Shared>,
}

/// How a [`SockFactory`] works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SockConfig {
    /// Where it keeps its files; no two factories share one.
    pub state_dir: PathBuf,
    /// What its processes and cgroups are marked with, so that the next worker of this name can find
    /// those of one that crashed. Unique on the machine; letters, digits and `._/-`.
    pub worker_mark: String,
    /// The Python interpreter of functions that name no version; see [`SeenPython`].
    pub python: PathBuf,
    /// More of them, for functions that name their version; see [`Pythons`].
    pub pythons: Vec<PathBuf>,
    /// Folders with Python packages that all functions can import, after their own; as the machine sees
    /// them.
    pub python_packages: Vec<PathBuf>,
    /// Node.js, as the machine sees it; `None`: functions that need it are refused. Sandboxes see its
    /// folder when it is not in `/usr`.
    pub node: Option<PathBuf>,
    /// Where volumes are: `<namespace>/<function>/<volume>` below it, `<function>@<version>` for one
    /// that was deleted and came again with that version.
    pub volumes_dir: PathBuf,
    /// Cells that are made ahead.
    pub ready_cells: usize,
    /// The addresses for bridged networks: a network and the length of its prefix, 8 to 20 bits. Each
    /// worker of the machine takes a /20 of it for 2,048 sandboxes.
    pub bridge_range: (Ipv4Addr, u8),
    /// Starts the nursery.
    pub spawner: Arc<Spawner>,
    /// Measures the phases of a start.
    pub clock: Arc<dyn Clock>,
}

impl SockConfig {
    /// The usual: the Python that [`find_python`] finds, the Node.js that [`find_node`] finds, 16 cells,
    /// 10.213.0.0/16 for bridged networks.
    pub fn new(
        state_dir: impl Into<PathBuf>,
        worker_mark: impl Into<String>,
        spawner: Arc<Spawner>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state_dir = state_dir.into();
        SockConfig {
            volumes_dir: state_dir.join("volumes"),
            state_dir,
            worker_mark: worker_mark.into(),
            python: find_python().unwrap_or_else(|| "/usr/bin/python3".into()),
            pythons: Vec::new(),
            python_packages: Vec::new(),
            node: find_node(),
            ready_cells: 16,
            bridge_range: (Ipv4Addr::new(10, 213, 0, 0), 16),
            spawner,
            clock,
        }
    }
}

/// A Python as sandboxes see it: they have the machine's `/usr`, and of one that is elsewhere the folders with its
/// program and its libraries, at the same places. What else is beside those, they do not see: a Python may have
/// been installed into somebody's `~/.local`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SeenPython {
    /// What is run.
    pub program: String,
    /// The folders that are shown, where it is not in `/usr`.
    pub folders: Vec<String>,
    /// The folders in these that are empty for sandboxes: where packages are installed.
    pub hidden: Vec<String>,
}

impl SeenPython {
    /// Looks at a Python of this machine. One that is outside of `/usr` is run, and waited for, to learn where its
    /// library is.
    ///
    /// # Errors
    ///
    /// It is no Python, or sandboxes cannot see it; for a person.
    pub fn of(python: &Path) -> Result<SeenPython, String> {
        let in_usr = |program| SeenPython { program, folders: Vec::new(), hidden: Vec::new() };
        let folder = python.parent().map(fs::canonicalize).and_then(Result::ok);
        let seen = folder.unwrap_or_default().join(python.file_name().unwrap_or_default());
        let real = fs::canonicalize(&seen).unwrap_or_default();
        let text = |path: &Path| path.to_str().map(str::to_owned);
        if let Some(program) = text(&seen)
            && [&seen, &real].iter().all(|path| path.starts_with("/usr"))
        {
            return Ok(in_usr(program));
        }
        let named = python.display();
        let Python { real, home, .. } =
            Python::ask(python).map_err(|error| format!("{named} is not a Python 3: {error}"))?;
        let home = fs::canonicalize(home).unwrap_or_default();
        match text(&real) {
            Some(program) if real.starts_with("/usr") => return Ok(in_usr(program)),
            Some(program) if real.starts_with(&home) => {
                let folders = folders_of(&home, &real);
                if folders.iter().all(|folder| can_be_shown(folder)) {
                    let hidden = installed_in(&folders);
                    return Ok(SeenPython { program, folders, hidden });
                }
            }
            _ => {}
        }
        Err(format!(
            "the sandbox sock shows functions a Python in /usr, or one whose program and library are in one \
             folder of its own, not below /tmp, and {named} is no such one; name another, or use --sandbox \
             process for code that you trust"
        ))
    }
}

/// The folders of a Python that it needs: with its program, its libraries, and (conda's) certificates.
fn folders_of(home: &Path, program: &Path) -> Vec<String> {
    let parts = ["lib", "lib64", "ssl"].map(|name| home.join(name));
    let all = program.parent().into_iter().chain(parts.iter().map(PathBuf::as_path));
    let mut folders: Vec<&Path> = Vec::new();
    for folder in all.filter(|folder| folder.is_dir()) {
        if !folders.iter().any(|shown| folder.starts_with(shown)) {
            folders.push(folder);
        }
    }
    folders.into_iter().filter_map(Path::to_str).map(str::to_owned).collect()
}

/// Whether a sandbox has room for this folder at its own place.
fn can_be_shown(folder: &str) -> bool {
    let volume = Volume { name: "python".to_owned(), path: folder.to_owned() };
    let manifest = Manifest { volumes: vec![volume], ..Manifest::default() };
    manifest.check_volumes().is_ok() && !Path::new(folder).starts_with("/tmp")
}

/// A Python of a version that functions name.
#[derive(Clone, Debug)]
struct Other {
    seen: SeenPython,
    /// Its bootstrap: the folder on the machine, and the first file in it.
    bootstrap: (String, String),
}

#[derive(Debug)]
struct Shared {
    config: SockConfig,
    /// The usual Python, or why sandboxes cannot see it.
    python: OnceCell<Result<SeenPython, String>>,
    /// Other Pythons.
    others: ByVersion<Arc<Other>>,
    rootless: bool,
    /// Why there are no cgroups.
    cgroups: Result<Cgroups, String>,
    filter: Vec<u8>,
    /// Our bootstrap for Python as files, the one to run first; compiled if it can be.
    bootstrap: OnceCell<Vec<(String, Vec<u8>)>>,
    nursery: tokio::sync::Mutex<Option<Arc<Nursery>>>,
    cells: Arc<Cells>,
    /// Why there are no bridged networks, if there are none.
    can_bridge: OnceLock<Result<(), String>>,
    /// Made when it is needed first.
    bridge: tokio::sync::Mutex<Option<Arc<Bridge>>>,
    next_id: AtomicU64,
    instances: Instances<Container>,
}

impl SockFactory {
    /// Makes the state folder ready and looks at what this machine allows. Call
    /// [`reclaim`](SandboxFactory::reclaim) before the first `create`.
    ///
    /// # Errors
    ///
    /// The folder cannot be written; the mark or the range of bridged networks is not valid.
    pub fn new(mut config: SockConfig) -> io::Result<Self> {
        check_mark(&config.worker_mark)?;
        let (network, prefix) = config.bridge_range;
        bridge_range(&format!("{network}/{prefix}"))?;
        config.state_dir = std::path::absolute(&config.state_dir)?;
        config.volumes_dir = std::path::absolute(&config.volumes_dir)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(config.state_dir.join("sandboxes"))?;
        let cgroups = Cgroups::find(&cgroup::name_of(&config.worker_mark));
        let by_kernel = cgroups.as_ref().is_ok_and(|cgroups| cgroups.has("memory"));
        let memory = if by_kernel { seccomp::Memory::Counted } else { seccomp::Memory::Watched };
        let filter = seccomp::filter(memory);
        let rootless = !rustix::process::geteuid().is_root();
        if rootless {
            allow_more_files();
        }
        Ok(SockFactory {
            shared: Arc::new(Shared {
                rootless,
                cells: Cells::new(config.ready_cells),
                cgroups,
                filter,
                python: OnceCell::new(),
                others: ByVersion::of(
                    Pythons::new(Some(config.python.clone()), config.pythons.clone()),
                    Arc::clone(&config.clock),
                ),
                config,
                bootstrap: OnceCell::new(),
                nursery: tokio::sync::Mutex::default(),
                can_bridge: OnceLock::new(),
                bridge: tokio::sync::Mutex::default(),
                next_id: AtomicU64::new(1),
                instances: Instances::new(),
            }),
        })
    }

    /// Checks whether this machine allows sandboxes of this kind at all.
    ///
    /// # Errors
    ///
    /// The error says what the machine does not allow, and how to get it.
    pub async fn probe(&self) -> Result<(), SandboxError> {
        self.shared.nursery().await.map(drop)
    }

    /// What is not enforced on this machine: a sentence each, with the reason and how to get it.
    pub fn withheld(&self) -> Vec<String> {
        let mut withheld = Vec::new();
        if let Err(why) = &self.shared.cgroups {
            withheld.push(format!(
                "the kernel's limits of memory and processor time, since no cgroup can be made \
                 ({why}); memory is looked at 20 times a second and more often near its limit, and \
                 what is over is killed; memory that no process's count has (memfd_create, shared \
                 mappings without a file) is refused for that; for the kernel's limits, run the worker as root, or as a unit of \
                 systemd with Delegate=yes"
            ));
        }
        if self.shared.rootless {
            withheld.push(
                "a user id of each function's own on the machine, since the worker is not root"
                    .to_owned(),
            );
        }
        if let Err(why) = self.shared.can_bridge() {
            withheld.push(format!("functions with network = \"bridge\": {why}"));
        }
        withheld
    }
}

/// What [`SockConfig::bridge_range`] is in a text such as `10.213.0.0/16`.
///
/// # Errors
///
/// The text is no network, or its prefix has fewer than 8 or more than 20 bits.
pub fn bridge_range(text: &str) -> io::Result<(Ipv4Addr, u8)> {
    let parts = text.split_once('/');
    let parsed =
        parts.and_then(|(network, prefix)| Some((network.parse().ok()?, prefix.parse().ok()?)));
    let fits = |&(network, prefix): &(Ipv4Addr, u8)| {
        (8..=20).contains(&prefix) && network.to_bits() << prefix == 0
    };
    parsed.filter(fits).ok_or_else(|| {
        let message = format!(
            "{text} is not a range for bridged networks; name a network with a prefix of 8 to 20 bits, \
             like 10.213.0.0/16"
        );
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

/// Removes the rules for bridged networks of factories whose marks are `mark` or begin with `mark/`, to
/// clean up after workers that are gone.
pub fn remove_network_rules(mark: &str) -> Report {
    let mut report = Report::default();
    bridge::remove_rules(mark, &mut report);
    report
}

/// The cgroups of factories whose marks are `mark` or begin with `mark/`, and of their sandboxes, for
/// reports.
pub fn cgroups_of(mark: &str) -> Vec<PathBuf> {
    cgroup::all_marked(mark)
}

/// Removes the cgroups of factories whose marks are `mark` or begin with `mark/`, and ends the processes
/// in them, to clean up after workers that are gone.
pub fn remove_cgroups(mark: &str) -> Report {
    let mut report = Report::default();
    cgroup::remove_marked(mark, &mut report);
    report
}

#[async_trait]
impl SandboxFactory for SockFactory {
    fn kind(&self) -> &'static str {
        "sock"
    }

    fn capabilities(&self) -> Capabilities {
        let has = |controller| self.shared.cgroups.as_ref().is_ok_and(|c| c.has(controller));
        let mut capabilities = Capabilities::none();
        capabilities.isolation = Isolation::Namespaces;
        // By the kernel, or by the watchdog.
        capabilities.memory_limit = true;
        capabilities.cpu_limit = has("cpu");
        capabilities.process_limit = true;
        capabilities.pause = true;
        // One file is written where there is a cgroup; else each process is stopped, and its memory is
        // looked up in the files of all of them.
        let frozen = self.shared.cgroups.is_ok();
        capabilities.pause_after = Some(Duration::from_millis(if frozen { 100 } else { 1000 }));
        capabilities.compiles = true;
        capabilities.networks = vec![Network::None, Network::Host];
        if self.shared.can_bridge().is_ok() {
            capabilities.networks.push(Network::Bridge);
        }
        capabilities
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        let start = Arc::clone(&self.shared).start(spec.clone());
        kit::create(&spec, &*self.shared.config.clock, start).await
    }

    async fn reclaim(&self) -> Report {
        let shared = Arc::clone(&self.shared);
        let reclaim = tokio::task::spawn_blocking(move || {
            let mut report = Report::default();
            // First, since what is frozen in one does not die.
            if let Ok(cgroups) = &shared.cgroups {
                cgroups.remove_all(&mut report);
                if let Err(error) = cgroups.renew() {
                    report.failed.push(error);
                }
            }
            report.processes += kill_marked(&shared.config.worker_mark);
            bridge::remove_rules(&shared.config.worker_mark, &mut report);
            remove_sandboxes(&shared.config.state_dir, &mut report);
            report
        });
        reclaim.await.unwrap_or_default()
    }

    async fn shutdown(&self) {
        self.shared.instances.shutdown().await;
        self.shared.cells.close();
        if let Some(nursery) = self.shared.nursery.lock().await.take() {
            nursery.end().await;
        }
        let bridge = self.shared.bridge.lock().await.take();
        let shared = Arc::clone(&self.shared);
        let remove = tokio::task::spawn_blocking(move || {
            shared.cells.clear();
            drop(bridge);
            if let Ok(cgroups) = &shared.cgroups {
                let mut report = Report::default();
                cgroups.remove_all(&mut report);
                for failed in report.failed {
                    tracing::warn!(%failed, "cannot remove a cgroup");
                }
            }
        });
        let _ = remove.await;
    }
}

impl Drop for Shared {
    /// For factories that are not shut down. What instances hold goes with them.
    fn drop(&mut self) {
        self.cells.close();
        self.cells.clear();
        if let Ok(cgroups) = &self.cgroups {
            cgroups.remove_folder();
        }
    }
}

impl Shared {
    /// The nursery; started when it is needed first, and again when it has died.
    async fn nursery(self: &Arc<Self>) -> Result<Arc<Nursery>, SandboxError> {
        let mut place = self.nursery.lock().await;
        if let Some(nursery) = place.as_ref().filter(|nursery| nursery.is_alive()) {
            return Ok(Arc::clone(nursery));
        }
        // Networks of an earlier nursery are as good, but its listeners' owner is gone: start afresh.
        self.cells.clear_networks();
        let bootstrap = self.bootstrap.get_or_init(|| self.compile_bootstrap()).await;
        let file = |(name, content): &(String, Vec<u8>)| {
            (format!("python/{name}"), 0o644, content.clone())
        };
        let node = (NODE_BOOTSTRAP_PATH.to_owned(), 0o644, NODE_BOOTSTRAP.into());
        let setup = NurserySetup {
            rootless: self.rootless,
            watched: !self.has_memory_cgroups(),
            hidden: installed_packages(),
            runtime_files: bootstrap.iter().map(file).chain([node]).collect(),
            filter: self.filter.clone(),
        };
        let launched = Nursery::launch(&self.config.spawner, &self.config.worker_mark, setup).await;
        let nursery = launched.map_err(|error| not_allowed(error, self.rootless))?;
        *place = Some(Arc::clone(&nursery));
        Ok(nursery)
    }

    fn has_memory_cgroups(&self) -> bool {
        self.cgroups.as_ref().is_ok_and(|cgroups| cgroups.has("memory"))
    }

    fn can_bridge(&self) -> &Result<(), String> {
        self.can_bridge.get_or_init(Bridge::check)
    }

    /// A network namespace that reaches the world.
    async fn bridged(
        self: &Arc<Self>,
        nursery: &Arc<Nursery>,
    ) -> Result<CellNetwork, SandboxError> {
        let bridge = {
            let mut place = self.bridge.lock().await;
            match place.as_ref() {
                Some(bridge) => Arc::clone(bridge),
                None => {
                    let shared = Arc::clone(self);
                    let open = tokio::task::spawn_blocking(move || {
                        if let Err(why) = shared.can_bridge() {
                            return Err(unsupported(format!(
                                "this worker has no bridged networks: {why}; or set network = \
                                 \"none\" or \"host\" in ol.toml"
                            )));
                        }
                        Bridge::open(&shared.config.worker_mark, shared.config.bridge_range)
                    });
                    let opened = open.await.unwrap_or_else(|_| Err(shutting_down()))?;
                    Arc::clone(place.insert(Arc::new(opened)))
                }
            }
        };
        let network = self.cells.bridged(nursery, &bridge).await;
        network.map_err(|error| not_allowed(error, self.rootless))
    }

    /// Our bootstrap for the usual Python as names and bytes; compiled, if that is possible.
    async fn compile_bootstrap(&self) -> Vec<(String, Vec<u8>)> {
        let folder = self.config.state_dir.join("runtimes");
        self.compile_into(&self.config.python, &folder, "python").await;
        let compiled = PYTHON_FILES.map(|(name, _)| {
            let name = Path::new(name).with_extension("pyc").display().to_string();
            fs::read(folder.join(&name)).map(|content| (name, content))
        });
        match compiled.into_iter().collect() {
            Ok(files) => files,
            Err(_) => PYTHON_FILES.map(|(name, text)| (name.to_owned(), text.into())).to_vec(),
        }
    }

    /// Compiles our bootstrap into a folder that sandboxes see as this one of `/var/runtime`. Where that fails, its
    /// files are there as they are, and nothing that is compiled.
    async fn compile_into(&self, python: &Path, folder: &Path, seen: &str) {
        let mut written = fs::create_dir_all(folder);
        for (name, text) in PYTHON_FILES {
            written = written.and_then(|()| fs::write(folder.join(name), text));
            let _ = fs::remove_file(folder.join(name).with_extension("pyc"));
        }
        let (spawner, mark) = (&self.config.spawner, &self.config.worker_mark);
        let seen = Path::new(RUNTIMES).join(seen);
        let done = compile_python(spawner, mark, python, folder, folder, &seen).await;
        if !done || written.is_err() {
            for (name, _) in PYTHON_FILES {
                let _ = fs::remove_file(folder.join(name).with_extension("pyc"));
            }
        }
    }

    /// The Python that a function asks for, and its bootstrap, as a sandbox with these mounts sees them; more of
    /// them, where it needs some to see them.
    ///
    /// # Errors
    ///
    /// There is no such Python, or sandboxes cannot see it.
    async fn python(
        &self,
        minor: Option<u8>,
        mounts: &mut Vec<(String, String, bool)>,
    ) -> Result<(String, String), SandboxError> {
        let (seen, bootstrap) = match minor {
            None => {
                let look = async || {
                    let python = self.config.python.clone();
                    let looked = tokio::task::spawn_blocking(move || SeenPython::of(&python)).await;
                    looked.unwrap_or_else(|_| Err("the worker is ending".to_owned()))
                };
                let seen = self.python.get_or_init(look).await.clone().map_err(unsupported)?;
                let files = self.bootstrap.get().map(Vec::as_slice).unwrap_or_default();
                let name = files.first().map_or("bootstrap.py", |(name, _)| name);
                (seen, format!("{RUNTIMES}/python/{name}"))
            }
            Some(minor) => {
                let prepare =
                    async |python: Python| self.prepare(minor, python).await.map(Arc::new);
                let other = self.others.get(minor, prepare).await?;
                let (folder, first) = &other.bootstrap;
                let place = format!("{RUNTIMES}/python3.{minor}");
                mounts.push((folder.clone(), place.clone(), false));
                (other.seen.clone(), format!("{place}/{first}"))
            }
        };
        self.keep_own_folders(&seen)?;
        mounts.extend(seen.folders.into_iter().map(|folder| (folder.clone(), folder, false)));
        if !seen.hidden.is_empty() {
            let empty = self.config.state_dir.join("runtimes/empty");
            fs::create_dir_all(&empty)
                .map_err(|error| resources("no folder can be made", error))?;
            let empty = text(&empty)?;
            mounts.extend(seen.hidden.into_iter().map(|folder| (empty.clone(), folder, false)));
        }
        Ok((seen.program, bootstrap))
    }

    /// Refuses a Python in whose folders the worker keeps its own files: without root those would be the
    /// function's to read, other functions' volumes and the cluster's secret among them.
    fn keep_own_folders(&self, seen: &SeenPython) -> Result<(), SandboxError> {
        let own = [&self.config.state_dir, &self.config.volumes_dir].map(fs::canonicalize);
        let holds = |folder: &&String| own.iter().flatten().any(|own| own.starts_with(folder));
        match seen.folders.iter().find(holds) {
            None => Ok(()),
            Some(folder) => Err(unsupported(format!(
                "{} cannot be shown to functions: in its folder {folder} are files of the worker; use another \
                 Python, or another --data-dir",
                seen.program
            ))),
        }
    }

    /// Another Python than the usual one.
    async fn prepare(&self, minor: u8, python: Python) -> Result<Other, SandboxError> {
        let program = python.program.clone();
        let seen = tokio::task::spawn_blocking(move || SeenPython::of(&program)).await;
        let seen = seen.map_err(|_| shutting_down())?.map_err(unsupported)?;
        let name = format!("python3.{minor}");
        let folder = self.config.state_dir.join("runtimes").join(&name);
        self.compile_into(&python.program, &folder, &name).await;
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).chain([folder.clone()]) {
            // Whatever our umask is: sandboxes, which are other users, see it.
            let mode = if path == folder { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
                .map_err(|error| resources("its bootstrap cannot be shown", error))?;
        }
        let [(first, _), ..] = PYTHON_FILES;
        let compiled = Path::new(first).with_extension("pyc").display().to_string();
        let is_compiled = folder.join(&compiled).exists();
        if is_compiled {
            // Beside their source, Python would take that of modules.
            for (name, _) in PYTHON_FILES {
                let _ = fs::remove_file(folder.join(name));
            }
        }
        let first = if is_compiled { compiled } else { first.to_owned() };
        Ok(Other { seen, bootstrap: (text(&folder)?, first) })
    }

    /// Node.js as a sandbox with these mounts sees it; one more, where it needs one to see it.
    ///
    /// # Errors
    ///
    /// There is no Node.js, or its path is not UTF-8.
    fn node(&self, mounts: &mut Vec<(String, String, bool)>) -> Result<String, SandboxError> {
        let node = self.config.node.as_ref().ok_or_else(node::missing)?;
        match (node.parent(), node.file_name()) {
            (Some(folder), Some(name)) if !node.starts_with("/usr") => {
                mounts.push((text(folder)?, NODE_FOLDER.to_owned(), false));
                text(&Path::new(NODE_FOLDER).join(name))
            }
            _ => text(node),
        }
    }

    /// Who a function is on the machine.
    fn outside_id(&self, function: &FunctionName) -> u32 {
        if self.rootless {
            return 0;
        }
        let hash = stable_hash(0, function.to_string().as_bytes());
        FIRST_ID + (hash % IDS) as u32
    }

    /// Starts a container and what watches it.
    async fn start(self: Arc<Self>, spec: SandboxSpec) -> Result<Handle<Container>, SandboxError> {
        let permit = self.instances.permit().await?;
        let program = Program::of(&spec)?;
        let nursery = self.nursery().await?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}/{id}", self.config.worker_mark);
        let outside_id = self.outside_id(&spec.function);

        let limits = Limits {
            memory: spec.manifest.memory_bytes(),
            processes: spec.manifest.processes + INITS,
            cpus: spec.manifest.cpus,
        };
        let cgroup = match &self.cgroups {
            Ok(cgroups) => Some(
                self.cells
                    .cgroup(cgroups, limits)
                    .map_err(|error| resources("no cgroup can be made", error))?,
            ),
            Err(_) => None,
        };
        let network = match spec.manifest.network {
            Network::None => {
                let network = self.cells.network(&nursery).await;
                Some(network.map_err(|error| not_allowed(error, self.rootless))?)
            }
            Network::Bridge => Some(self.bridged(&nursery).await?),
            Network::Host => None,
        };

        let mut mounts = vec![(text(&absolute(&spec.code)?)?, TASK.to_owned(), false)];
        if spec.manifest.network == Network::Bridge
            && let Some(resolver) = bridge::resolver()
        {
            mounts.push((text(&resolver)?, RESOLVER.to_owned(), false));
        }
        let packages = packages(&self.config.python_packages)?;
        for (source, place) in &packages {
            mounts.push((source.clone(), place.clone(), false));
        }
        let mut volume_places = BTreeMap::new();
        let sources = volumes(&self.config.volumes_dir, &spec)?;
        for volume in &spec.manifest.volumes {
            let source = &sources[&volume.name];
            own_volume(source, outside_id)?;
            mounts.push((text(source)?, volume.path.clone(), true));
            volume_places.insert(volume.name.clone(), volume.path.clone());
        }
        let places = Places {
            code: TASK.to_owned(),
            home: "/tmp".to_owned(),
            tmp: "/tmp".to_owned(),
            runtimes: RUNTIMES.to_owned(),
            packages: packages.into_iter().map(|(_, place)| place).collect(),
        };
        let mut env = environment(&spec, &places, &mark, &volume_places)?;
        let mut folder = None;
        let listener = match (&network, program) {
            // Not every Node.js knows abstract Unix sockets.
            (Some(network), Program::Own | Program::Node) => {
                let address = format!("127.0.0.1:{API_PORT}");
                env.insert(program.variable().to_owned(), address);
                network.tcp().map(Listener::Tcp)
            }
            (Some(network), Program::Python(_)) => {
                env.insert(program.variable().to_owned(), API_SOCKET.to_owned());
                network.unix().map(Listener::Unix)
            }
            (None, Program::Own) => {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await;
                listener.and_then(|listener| {
                    let address = listener.local_addr()?.to_string();
                    env.insert(program.variable().to_owned(), address);
                    Ok(Listener::Tcp(listener))
                })
            }
            (None, Program::Python(_) | Program::Node) => {
                // A folder that it alone can see: on the machine's network, others could find an
                // abstract socket.
                let own = self.config.state_dir.join("sandboxes").join(id.to_string());
                let socket = fs::create_dir(&own).and_then(|()| listen_in(&own, outside_id));
                folder = Some(Folder(own.clone()));
                mounts.push((text(&own)?, SOCKET_FOLDER.to_owned(), false));
                let place = format!("{SOCKET_FOLDER}/api.sock");
                env.insert(program.variable().to_owned(), place);
                socket.map(Listener::Unix)
            }
        };
        let listener = listener.map_err(|error| resources("no socket can be opened", error))?;
        let (path, arguments) = match program {
            Program::Own => (format!("{TASK}/bootstrap"), vec!["bootstrap".to_owned()]),
            Program::Python(minor) => {
                let (program, bootstrap) = self.python(minor, &mut mounts).await?;
                // By its path, so that children which run `sys.executable` have the same.
                let mut arguments = vec![program.clone()];
                arguments.extend(PYTHON_ARGUMENTS.map(str::to_owned));
                arguments.push(bootstrap);
                (program, arguments)
            }
            Program::Node => {
                let path = self.node(&mut mounts)?;
                let mut arguments = vec!["node".to_owned()];
                arguments.extend(node::arguments(&spec.manifest));
                arguments.push(format!("{RUNTIMES}/{NODE_BOOTSTRAP_PATH}"));
                (path, arguments)
            }
        };
        let recipe = Recipe {
            mounts,
            tmp_bytes: spec.manifest.tmp_mb << 20,
            shm_bytes: spec.manifest.memory_bytes(),
            outside_id,
            inside_id: INSIDE_ID,
            user_namespace: true,
            limits: vec![
                // No core file, and no program of the machine's that is handed one: with 0, a
                // core_pattern that names a program would run it all the same.
                (libc::RLIMIT_CORE, 1),
                (libc::RLIMIT_NPROC, spec.manifest.processes.into()),
                // As on AWS. The worker's own may be huge, and open files take the kernel's memory.
                (libc::RLIMIT_NOFILE, 1024),
                // Counted for the user of the machine around the sandbox's own, too: one sandbox must not
                // take all that the worker's user may have. A POSIX timer counts as a signal.
                (libc::RLIMIT_SIGPENDING, 1024),
                // What is locked cannot be written back, though the worker may have no such limit.
                (libc::RLIMIT_MEMLOCK, 8 << 20),
                // No way before others in line for a core, though the worker may have one.
                (libc::RLIMIT_NICE, 0),
                (libc::RLIMIT_RTPRIO, 0),
            ],
            folder: TASK.to_owned(),
            program: path,
            arguments,
            environment: env.into_iter().map(|(key, value)| format!("{key}={value}")).collect(),
        };

        let pipe = || io::pipe().map_err(|error| resources("no pipe can be made", error));
        let ((out, stdout), (err, stderr), (told, errors)) = (pipe()?, pipe()?, pipe()?);
        // It is read when somebody has written, or never will.
        let set = rustix::io::ioctl_fionbio(&told, true);
        set.map_err(|error| resources("no pipe can be made", error))?;
        if outside_id != 0 {
            // So that it can open them by name, as /dev/stdout: a pipe belongs to whoever makes it.
            let (user, group) = (Uid::from_raw(outside_id), Gid::from_raw(outside_id));
            for end in [&stdout, &stderr] {
                let given = rustix::fs::fchown(end, Some(user), Some(group));
                given.map_err(|error| resources("its output cannot be given to it", error))?;
            }
        }
        let belongings = Belongings {
            stdout: stdout.as_fd(),
            stderr: stderr.as_fd(),
            errors: errors.as_fd(),
            network: network.as_ref().map(|network| network.namespace()),
            cgroups: cgroup.as_ref().map(|cgroup| cgroup.join()).unwrap_or_default(),
            cgroup_v2: cgroup.as_ref().is_some_and(|cgroup| cgroup.is_v2()),
        };
        let newborn = nursery.start(recipe, &belongings).await;
        drop(belongings);
        drop((stdout, stderr, errors));
        let newborn = newborn.map_err(|error| not_allowed(error, self.rootless))?;
        let clock = Arc::clone(&self.config.clock);
        let contact = kit::contact(&spec, clock, [out.into(), err.into()], listener);
        let (output, api, serving) = match contact {
            Ok(contact) => contact,
            Err(error) => {
                newborn.kill();
                newborn.wait().await;
                return Err(error);
            }
        };
        let is_watched = !self.has_memory_cgroups();
        let sockets = network.as_ref().map(|network| network.sockets(newborn.pid(), is_watched));
        let sockets = sockets.transpose();
        let sockets = sockets.map_err(|e| resources("its sockets cannot be watched", e))?;
        let watchdog =
            is_watched.then(|| Watchdog::new(limits.memory, Arc::clone(&self.config.clock)));
        let oom_kills = cgroup.as_ref().map_or(0, |cgroup| cgroup.oom_kills());
        let vessel = Container {
            program,
            newborn,
            output,
            told,
            oom_kills,
            memory: limits.memory,
            processes: spec.manifest.processes,
            slots: spec.manifest.concurrency,
            sockets,
            watchdog,
            paused: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            cells: Arc::clone(&self.cells),
            cell: Mutex::new(Cell { cgroup: cgroup.map(Arc::new), network, folder }),
        };
        let slots = spec.manifest.concurrency;
        Ok(self.instances.adopt(&permit, slots, api, serving, vessel))
    }
}

/// As many as this process may have. Descriptors that are on their way between processes count for the
/// user, and nobody may send more who has sent as many as it may have open: without root, sandboxes,
/// which may have 1024, could send so many that their worker could start nothing.
fn allow_more_files() {
    let files = rustix::process::getrlimit(Resource::Nofile);
    let all = Rlimit { current: files.maximum, maximum: files.maximum };
    let _ = rustix::process::setrlimit(Resource::Nofile, all);
}

/// A socket in a folder that only its sandbox sees.
fn listen_in(folder: &Path, id: u32) -> io::Result<UnixListener> {
    use std::os::fd::AsRawFd;
    let opened = fs::File::open(folder)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/api.sock", opened.as_raw_fd()))?;
    if id != 0 {
        std::os::unix::fs::chown(folder.join("api.sock"), Some(id), Some(id))?;
        // Whatever our umask is; who else is on the machine does not get as far as here.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(listener)
}

/// What the machine does not allow, with the way to get it.
fn not_allowed(error: NurseryError, rootless: bool) -> SandboxError {
    let message = match &error {
        NurseryError::Refused { step, errno } if rootless && *errno == libc::EPERM => format!(
            "this machine does not let an ordinary user make sandboxes ({step}); allow user \
             namespaces (sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000, \
             or AppArmor's kernel.apparmor_restrict_unprivileged_userns=0), run the worker as root, \
             or use --sandbox process"
        ),
        NurseryError::Refused { step, errno } if *errno == libc::ENOSYS => format!(
            "this kernel is too old for sock sandboxes ({step}); Linux 5.12 is needed, or use \
             --sandbox process"
        ),
        _ => "the sandbox cannot be made".to_owned(),
    };
    SandboxError::new(SandboxErrorKind::Resources, message).with_source(error)
}

#[cfg(test)]
mod tests;
