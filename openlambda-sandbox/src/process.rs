//! The `process` kind: a child process per instance, without isolation.
//!
//! [`ProcessFactory`] is for trusted code, for development, and the baseline that stronger kinds are
//! compared with. An instance has a folder and an environment of its own and dies with the worker,
//! but it is a process of the worker's user: it can read that user's files, use the network, and
//! take all memory. So `network = "none"` is accepted, since a function that asks for no network
//! also runs with one, but it is *not* enforced; neither are `memory_mb`, `processes`, `cpus` and
//! `tmp_mb`. [`Capabilities`] say the same. `network = "bridge"` is refused, since this kind has none.
//!
//! All descendants die with the instance: by their process group or, when they have left it, by the
//! mark in their environment. A descendant that leaves the group *and* clears or overwrites its
//! environment escapes; only isolation could prevent that.
//!
//! ```text
//! create ─▶ folder, listener ─▶ child ─▶ first `next` ─▶ ready
//!                                 │
//!           monitor task: exit, destroy or Drop ─▶ group killed, reaped ─▶ calls fail (Exited)
//!                         ─▶ marked descendants killed ─▶ folder removed ─▶ gone
//! ```
//!
//! What a function finds is in [`launch`](crate::launch).

mod sweeper;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use openlambda_core::manifest::Network;
use openlambda_core::sandbox::{
    Capabilities, Created, Exit, Isolation, Report, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec, Usage,
};
use openlambda_core::time::Clock;
use parking_lot::Mutex;
use rustix::process::{PidfdFlags, getpgid, pidfd_open, pidfd_send_signal};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::OnceCell;

use crate::errors::{resources, unsupported};
use crate::kit::{self, Handle, Instances, Permit, Vessel, exit_of};
use crate::launch::{
    PYTHON_ARGUMENTS, PYTHON_FILES, Places, Program, check_mark, compile_python, environment,
    volumes,
};
use crate::node::{self, NODE_BOOTSTRAP, NODE_BOOTSTRAP_PATH, find_node};
use crate::output::FunctionOutput;
use crate::python::{ByVersion, Python, Pythons, find_python};
use crate::runtime_api::Listener;
use crate::sys::{
    Child, CommandSpec, Output, Resource, Signal, SpawnError, Spawner, kill_marked,
    marked_processes, processes_with_mark,
};
use crate::trees;
use sweeper::Sweeper;

/// Where our bootstrap is compiled to, in the state folder.
const COMPILED: &str = "runtimes/compiled";

/// Makes sandboxes that are plain child processes.
#[derive(Debug)]
pub struct ProcessFactory {
    shared: Arc<Shared>,
}

/// How a [`ProcessFactory`] works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ProcessConfig {
    /// Where it keeps its files; no two factories share one.
    pub state_dir: PathBuf,
    /// What its processes are marked with, so that the next worker of this name can find those of
    /// one that crashed. Unique on the machine; letters, digits and `._/-`.
    pub worker_mark: String,
    /// The Python interpreter of functions that name no version.
    pub python: PathBuf,
    /// More of them, for functions that name their version; see [`Pythons`].
    pub pythons: Vec<PathBuf>,
    /// Folders with Python packages that all functions can import, after their own. No path has a colon.
    pub python_packages: Vec<PathBuf>,
    /// Node.js; `None`: functions that need it are refused.
    pub node: Option<PathBuf>,
    /// Where volumes are: `<namespace>/<function>/<volume>` below it, `<function>@<version>` for one
    /// that was deleted and came again with that version. Workers that share it share
    /// their functions' volumes. `<state_dir>/volumes` unless changed.
    pub volumes_dir: PathBuf,
    /// Starts the processes.
    pub spawner: Arc<Spawner>,
    /// Measures the phases of a start.
    pub clock: Arc<dyn Clock>,
}

impl ProcessConfig {
    /// The usual: the Python that [`find_python`] finds, and the Node.js that [`find_node`] finds.
    pub fn new(
        state_dir: impl Into<PathBuf>,
        worker_mark: impl Into<String>,
        spawner: Arc<Spawner>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state_dir = state_dir.into();
        ProcessConfig {
            volumes_dir: state_dir.join("volumes"),
            state_dir,
            worker_mark: worker_mark.into(),
            python: find_python().unwrap_or_else(|| "python3".into()),
            pythons: Vec::new(),
            python_packages: Vec::new(),
            node: find_node(),
            spawner,
            clock,
        }
    }
}

#[derive(Debug)]
struct Shared {
    config: ProcessConfig,
    next_id: AtomicU64,
    /// Compiled, or the source when it cannot be compiled.
    bootstrap: OnceCell<PathBuf>,
    /// Other Pythons, each with its bootstrap.
    others: ByVersion<(PathBuf, PathBuf)>,
    sweeper: Arc<Sweeper>,
    instances: Instances<ChildProcess>,
}

impl ProcessFactory {
    /// Makes the state folder ready. Call [`reclaim`](SandboxFactory::reclaim) before the first
    /// `create`.
    ///
    /// # Errors
    ///
    /// The folder cannot be written; the mark is not valid.
    pub fn new(mut config: ProcessConfig) -> io::Result<Self> {
        check_mark(&config.worker_mark)?;
        config.state_dir = std::path::absolute(&config.state_dir)?;
        config.volumes_dir = std::path::absolute(&config.volumes_dir)?;
        let private = |path: PathBuf| DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(config.state_dir.join("sandboxes"))?;
        let runtimes = config.state_dir.join("runtimes");
        let python = PYTHON_FILES.map(|(name, text)| (format!("python/{name}"), text));
        let node = (NODE_BOOTSTRAP_PATH.to_owned(), NODE_BOOTSTRAP);
        for (path, text) in python.into_iter().chain([node]) {
            let path = runtimes.join(path);
            private(path.with_file_name(""))?;
            // A worker that starts again needs no room for it, which a full disk does not have.
            if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
                continue;
            }
            // By renaming: a function may be reading the file of an earlier version.
            fs::write(path.with_extension("new"), text)?;
            fs::rename(path.with_extension("new"), path)?;
        }
        Ok(ProcessFactory {
            shared: Arc::new(Shared {
                others: ByVersion::of(
                    Pythons::new(Some(config.python.clone()), config.pythons.clone()),
                    Arc::clone(&config.clock),
                ),
                config,
                next_id: AtomicU64::new(1),
                bootstrap: OnceCell::new(),
                sweeper: Arc::default(),
                instances: Instances::new(),
            }),
        })
    }
}

#[async_trait]
impl SandboxFactory for ProcessFactory {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::none();
        capabilities.isolation = Isolation::None;
        capabilities.pause = true;
        // All processes of the machine are looked at for those that have left the group.
        capabilities.pause_after = Some(Duration::from_secs(10));
        capabilities.compiles = true;
        capabilities.networks = vec![Network::None, Network::Host];
        capabilities
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        let start = Arc::clone(&self.shared).start(spec.clone());
        kit::create(&spec, &*self.shared.config.clock, start).await
    }

    async fn reclaim(&self) -> Report {
        let mark = self.shared.config.worker_mark.clone();
        let state = self.shared.config.state_dir.clone();
        let reclaim = tokio::task::spawn_blocking(move || {
            let mut report = Report { processes: kill_marked(&mark), ..Report::default() };
            let mut remove = |path: PathBuf, removed: io::Result<()>| match removed {
                Ok(()) => report.removed.push(path.display().to_string()),
                Err(error) => report.failed.push(format!("{}: {error}", path.display())),
            };
            for path in paths_in(&state.join("sandboxes")) {
                let removed = trees::remove(&path);
                remove(path, removed);
            }
            // What was compiled, or half-way so: the first `create` does it again.
            let compiled = state.join(COMPILED);
            if compiled.exists() {
                let removed = fs::remove_dir_all(&compiled);
                remove(compiled, removed);
            }
            report
        });
        reclaim.await.unwrap_or_default()
    }

    async fn shutdown(&self) {
        self.shared.instances.shutdown().await;
    }
}

impl Shared {
    /// Compiles our bootstrap once for a Python, into a folder of its own: beside its source, Python would take
    /// a module's source.
    async fn compile_bootstrap(&self, python: &Path, folder: &str) -> PathBuf {
        let sources = self.config.state_dir.join("runtimes/python");
        let into = self.config.state_dir.join(COMPILED).join(folder);
        let (spawner, mark) = (&self.config.spawner, &self.config.worker_mark);
        let [(first, _), ..] = PYTHON_FILES;
        match compile_python(spawner, mark, python, &sources, &into, &sources).await {
            true => into.join(first).with_extension("pyc"),
            false => sources.join(first),
        }
    }

    /// The Python that a function asks for, and its bootstrap.
    async fn python(&self, minor: Option<u8>) -> Result<(PathBuf, PathBuf), SandboxError> {
        let Some(minor) = minor else {
            let python = &self.config.python;
            let compile = || self.compile_bootstrap(python, "python");
            return Ok((python.clone(), self.bootstrap.get_or_init(compile).await.clone()));
        };
        let prepare = async |python: Python| {
            let folder = format!("python3.{minor}");
            let bootstrap = self.compile_bootstrap(&python.program, &folder).await;
            Ok((python.program, bootstrap))
        };
        self.others.get(minor, prepare).await
    }

    /// The command of a function, but for its environment.
    async fn command(
        &self,
        spec: &SandboxSpec,
        program: Program,
    ) -> Result<CommandSpec, SandboxError> {
        let mut command = match program {
            Program::Python(minor) => {
                let (python, bootstrap) = self.python(minor).await?;
                let mut command = CommandSpec::new(python);
                for argument in PYTHON_ARGUMENTS {
                    command = command.arg(argument);
                }
                command.arg(bootstrap)
            }
            Program::Node => {
                let node = self.config.node.as_ref().ok_or_else(node::missing)?;
                let mut command = CommandSpec::new(node);
                for argument in node::arguments(&spec.manifest) {
                    command = command.arg(argument);
                }
                command.arg(self.config.state_dir.join("runtimes").join(NODE_BOOTSTRAP_PATH))
            }
            Program::Own => {
                let program = std::path::absolute(spec.code.join("bootstrap"));
                CommandSpec::new(
                    program.map_err(|error| resources("the code folder cannot be found", error))?,
                )
            }
        };
        command.parent_death = Some(Signal::KILL);
        (command.stdout, command.stderr) = (Output::Pipe, Output::Pipe);
        // A core dump would land in the code folder.
        command.limits = vec![(Resource::Core, 0)];
        Ok(command)
    }

    /// Starts the child and what watches it.
    async fn start(
        self: Arc<Self>,
        spec: SandboxSpec,
    ) -> Result<Handle<ChildProcess>, SandboxError> {
        let permit: Permit = self.instances.permit().await?;
        if spec.manifest.network == Network::Bridge {
            return Err(unsupported(
                "process sandboxes share the machine's network; set network = \"host\" in ol.toml, \
                 or use another kind of sandbox",
            ));
        }
        let program = Program::of(&spec)?;
        let mut command = self.command(&spec, program).await?;
        let folder = self.folder().map_err(|error| resources("no folder can be made", error))?;
        let code = std::path::absolute(&spec.code)
            .map_err(|error| resources("the code folder cannot be found", error))?;
        let mark = format!("{}/{}", self.config.worker_mark, folder.id);
        let text = |path: &Path| path.display().to_string();
        let places = Places {
            code: text(&code),
            home: text(&folder.path),
            tmp: text(&folder.path.join("tmp")),
            runtimes: text(&self.config.state_dir.join("runtimes")),
            packages: self.config.python_packages.iter().map(|path| text(path)).collect(),
        };
        let volumes = volumes(&self.config.volumes_dir, &spec)?;
        let volumes = volumes.iter().map(|(name, path)| (name.clone(), text(path))).collect();
        for (key, value) in environment(&spec, &places, &mark, &volumes)? {
            command = command.env(key, value);
        }
        command.cwd = Some(code);
        let listener = match program {
            Program::Own => {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await;
                let listener =
                    listener.map_err(|error| resources("no port can be opened", error))?;
                let address = listener.local_addr();
                let address = address.map_err(|error| resources("no port can be opened", error))?;
                command = command.env(program.variable(), address.to_string());
                Listener::Tcp(listener)
            }
            Program::Python(_) | Program::Node => {
                command = command.env(program.variable(), folder.path.join("api.sock"));
                let listener = bind_in(&folder.path, "api.sock");
                let listener =
                    listener.map_err(|error| resources("no socket can be opened", error))?;
                Listener::Unix(listener)
            }
        };
        let mut child = match self.config.spawner.spawn(command).await {
            Ok(child) => child,
            Err(error) => {
                // It may have run for a moment before it was found that it cannot be watched.
                self.sweeper.kill(mark).await;
                return Err(spawn_failed(error, program));
            }
        };
        let (Some(stdout), Some(stderr)) = (child.take_stdout(), child.take_stderr()) else {
            unreachable!("both were spawned with Output::Pipe");
        };
        let clock = Arc::clone(&self.config.clock);
        let contact = kit::contact(&spec, clock, [stdout, stderr], listener);
        let (output, api, serving) = match contact {
            Ok(contact) => contact,
            Err(error) => {
                child.kill_group();
                child.wait().await;
                self.sweeper.kill(mark).await;
                return Err(error);
            }
        };
        let vessel = ChildProcess {
            mark,
            child,
            output,
            folder: Mutex::new(Some(folder)),
            sweeper: Arc::clone(&self.sweeper),
            stopped: Arc::default(),
        };
        let slots = spec.manifest.concurrency;
        Ok(self.instances.adopt(&permit, slots, api, serving, vessel))
    }

    fn folder(&self) -> io::Result<Folder> {
        loop {
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            let path = self.config.state_dir.join("sandboxes").join(id.to_string());
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let folder = Folder { id, path };
                    fs::create_dir(folder.path.join("tmp"))?;
                    return Ok(folder);
                }
                // Left by an earlier worker that nobody reclaimed yet.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn paths_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// An instance's own folder; removed by Drop.
#[derive(Debug)]
struct Folder {
    id: u64,
    path: PathBuf,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = trees::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a sandbox's folder");
        }
    }
}

/// A socket's address has room for about 100 bytes, a state folder's path may be longer: bind
/// through a descriptor of the folder.
fn bind_in(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let folder = fs::File::open(folder)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}

fn spawn_failed(error: SpawnError, program: Program) -> SandboxError {
    // ENOENT: its interpreter is missing; EACCES, ENOEXEC: it is no program.
    let faulty = [libc::ENOENT, libc::EACCES, libc::ENOEXEC];
    let its_fault = error.io().raw_os_error().is_some_and(|code| faulty.contains(&code));
    if its_fault {
        let next = "install it and start the worker again";
        return program.cannot_run(error.io(), next).with_source(error);
    }
    SandboxError::new(SandboxErrorKind::Resources, "the process cannot be started")
        .with_source(error)
}

/// An instance as a child process of ours.
#[derive(Debug)]
struct ChildProcess {
    mark: String,
    child: Child,
    output: Arc<FunctionOutput>,
    /// Until it is removed.
    folder: Mutex<Option<Folder>>,
    sweeper: Arc<Sweeper>,
    /// Descendants outside the process group that `pause` has stopped.
    stopped: Arc<tokio::sync::Mutex<Vec<OwnedFd>>>,
}

#[async_trait]
impl Vessel for ChildProcess {
    async fn ended(&self) -> Exit {
        exit_of(self.child.wait().await)
    }

    fn kill(&self) {
        self.child.kill_group();
    }

    async fn clean(&self) {
        self.sweeper.kill(self.mark.clone()).await;
        let folder = self.folder.lock().take();
        let _ = tokio::task::spawn_blocking(move || drop(folder)).await;
    }

    fn output(&self) -> Option<&FunctionOutput> {
        Some(&self.output)
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        let mut stopped = Arc::clone(&self.stopped).lock_owned().await;
        self.child.signal_group(Signal::STOP);
        let (mark, group) = (self.mark.clone(), self.child.pid());
        // The guard goes along, so that `resume` waits even when this future is dropped.
        let stop_others = tokio::task::spawn_blocking(move || {
            let mut known = Vec::new();
            loop {
                let others = processes_with_mark(&mark).into_iter();
                let new: Vec<_> = others
                    .filter(|pid| getpgid(Some(*pid)) != Ok(group) && !known.contains(pid))
                    .collect();
                if new.is_empty() {
                    return;
                }
                for pid in new {
                    known.push(pid);
                    if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
                        && processes_with_mark(&mark).contains(&pid)
                        && pidfd_send_signal(&pidfd, Signal::STOP).is_ok()
                    {
                        stopped.push(pidfd);
                    }
                }
            }
        });
        let _ = stop_others.await;
        Ok(())
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        let mut stopped = self.stopped.lock().await;
        for pidfd in stopped.drain(..) {
            let _ = pidfd_send_signal(&pidfd, Signal::CONT);
        }
        self.child.signal_group(Signal::CONT);
        Ok(())
    }

    async fn set_memory_limit(&self, _bytes: u64) -> Result<(), SandboxError> {
        Err(unsupported("process sandboxes have no memory limit; use another kind of sandbox"))
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        let mark = self.mark.clone();
        let usage = tokio::task::spawn_blocking(move || {
            let mut usage = Usage::default();
            for process in marked_processes(&[&mark]) {
                usage.processes += 1;
                usage.memory_bytes += resident_bytes(process.pid.as_raw_nonzero().get());
            }
            usage
        });
        Ok(usage.await.unwrap_or_default())
    }
}

/// Pages that processes share count for each of them.
fn resident_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
