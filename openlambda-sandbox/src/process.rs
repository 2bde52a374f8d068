//! The `process` kind: a child process per instance, without isolation.
//!
//! [`ProcessFactory`] is for trusted code, for development, and the baseline that stronger kinds are
//! compared with. An instance has a folder and an environment of its own and dies with the worker,
//! but it is a process of the worker's user: it can read that user's files, use the network, and
//! take all memory. So `network = "none"` is accepted, since a function that asks for no network
//! runs well with one, and is *not* enforced; neither are `memory_mb`, `processes`, `cpus` and
//! `tmp_mb`. [`Capabilities`] say the same. `network = "bridge"`, which asks for something that is
//! not there, is refused.
//!
//! All descendants die with the instance: by their process group or, when they have left it, by the
//! mark in their environment. One that leaves the group *and* clears or overwrites its environment
//! escapes, as it can only where there is no isolation.
//!
//! ```text
//! create ─▶ folder, listener ─▶ child ─▶ first `next` ─▶ ready
//!                                 │
//!           monitor task: exit, destroy or Drop ─▶ group killed, reaped ─▶ calls fail (Exited)
//!                         ─▶ marked descendants killed ─▶ folder removed ─▶ gone
//! ```
//!
//! What a function finds:
//!
//! | place | what |
//! |---|---|
//! | working folder, `LAMBDA_TASK_ROOT` | its code, shared with other instances: read only, please |
//! | `HOME`, `TMPDIR` | its own folder and one inside; removed with the instance |
//! | `OPENLAMBDA_VOLUME_<NAME>` | the folder of a volume: upper case, `_` for what is no letter or digit |
//! | `_HANDLER`, `AWS_LAMBDA_*`, `LAMBDA_*`, `TZ` | as on AWS |
//! | `AWS_LAMBDA_RUNTIME_API` | with `runtime = "bootstrap"`: the address of the Runtime API |
//! | the manifest's `[environment]` | may change `PATH`, `LANG`, `HOME`, `TMPDIR` and `TZ`, not the rest |

mod sweeper;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use openlambda_core::failure::FunctionError;
use openlambda_core::function::FunctionName;
use openlambda_core::invocation::{Invocation, Reply, StartKind};
use openlambda_core::manifest::{Manifest, Network, Runtime, Style};
use openlambda_core::sandbox::{
    Capabilities, Created, Exit, Isolation, Report, Sandbox, SandboxError, SandboxErrorKind,
    SandboxFactory, SandboxSpec, Usage,
};
use openlambda_core::time::Clock;
use rustix::process::{PidfdFlags, getpgid, pidfd_open, pidfd_send_signal};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, OnceCell, RwLock, watch};

use crate::output::{FunctionOutput, Running};
use crate::runtime_api::{Listener, RuntimeApi, RuntimeApiConfig, Serving};
use crate::sys::{
    Child, CommandSpec, MARK, Output, Resource, Signal, SpawnError, Spawner, kill_marked,
    marked_processes, processes_with_mark,
};
use sweeper::Sweeper;

const PYTHON_BOOTSTRAP: &str = include_str!("../runtimes/python/bootstrap.py");

/// What functions find in `PATH`, whatever ours is.
const FUNCTION_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    /// The Python interpreter.
    pub python: PathBuf,
    /// Where volumes are: `<namespace>/<function>/<volume>` below it. Workers that share it share
    /// their functions' volumes. `<state_dir>/volumes` unless changed.
    pub volumes_dir: PathBuf,
    /// Starts the processes.
    pub spawner: Arc<Spawner>,
    /// Measures the phases of a start.
    pub clock: Arc<dyn Clock>,
}

impl ProcessConfig {
    /// The usual: `/usr/bin/python3`, or else the first `python3` in our `PATH`.
    pub fn new(
        state_dir: impl Into<PathBuf>,
        worker_mark: impl Into<String>,
        spawner: Arc<Spawner>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state_dir = state_dir.into();
        // A wrapper in PATH (pyenv's, for example) takes longer than Python itself to start.
        let system = PathBuf::from("/usr/bin/python3");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let in_path = || std::env::split_paths(&path).map(|dir| dir.join("python3"));
        let python = if system.exists() { Some(system) } else { in_path().find(|p| p.exists()) };
        ProcessConfig {
            volumes_dir: state_dir.join("volumes"),
            state_dir,
            worker_mark: worker_mark.into(),
            python: python.unwrap_or_else(|| "python3".into()),
            spawner,
            clock,
        }
    }
}

#[derive(Debug)]
struct Shared {
    config: ProcessConfig,
    next_id: AtomicU64,
    /// `bootstrap.pyc`, or the source when it cannot be compiled.
    bootstrap: OnceCell<PathBuf>,
    sweeper: Sweeper,
    /// Read while an instance is being started; `shutdown` waits for those by writing.
    starting: RwLock<()>,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    shut_down: bool,
    instances: BTreeMap<u64, Arc<Instance>>,
}

impl ProcessFactory {
    /// Makes the state folder ready. Call [`reclaim`](SandboxFactory::reclaim) before the first
    /// `create`.
    ///
    /// # Errors
    ///
    /// The folder cannot be written; the mark is not valid.
    pub fn new(mut config: ProcessConfig) -> io::Result<Self> {
        let mark = &config.worker_mark;
        let valid = mark.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
        if mark.is_empty() || !valid {
            let message = format!(
                "\"{mark}\" cannot mark processes; use letters, digits, dots, slashes, _ and -"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        config.state_dir = std::path::absolute(&config.state_dir)?;
        config.volumes_dir = std::path::absolute(&config.volumes_dir)?;
        let private = |path: PathBuf| DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(config.state_dir.join("sandboxes"))?;
        let runtime = config.state_dir.join("runtimes/python");
        private(runtime.clone())?;
        // By renaming: a function may be reading the file of an earlier version.
        fs::write(runtime.join(".new"), PYTHON_BOOTSTRAP)?;
        fs::rename(runtime.join(".new"), runtime.join("bootstrap.py"))?;
        Ok(ProcessFactory {
            shared: Arc::new(Shared {
                config,
                next_id: AtomicU64::new(1),
                bootstrap: OnceCell::new(),
                sweeper: Sweeper::default(),
                starting: RwLock::default(),
                live: Mutex::default(),
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
        capabilities.networks = vec![Network::None, Network::Host];
        capabilities
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        let shared = &self.shared;
        let clock = &shared.config.clock;
        let begin = clock.now();
        // In a task of its own, so that a start is never given up half-way: when this future is
        // dropped, Drop of the sandbox that the task made cleans up.
        let starting = Arc::clone(shared).start(spec.clone());
        let sandbox = tokio::spawn(starting).await.unwrap_or_else(|_| Err(shutting_down()))?;
        let instance = Arc::clone(&sandbox.instance);
        let started = clock.now();
        let ready = tokio::time::timeout(spec.init_timeout, instance.api.ready()).await;
        let error = match ready {
            Ok(Ok(())) => {
                let init = clock.now().since(started);
                let create = started.since(begin);
                return Ok(Created { sandbox, start: StartKind::Cold, create, init });
            }
            Ok(Err(error)) if error.kind == SandboxErrorKind::Init => error,
            Ok(Err(_)) => {
                let exit = instance.exited().await;
                if exit == Exit::Destroyed {
                    instance.destroy().await;
                    return Err(shutting_down());
                }
                let message = format!("the instance {exit} before it asked for its first event");
                init_error("Runtime.ExitError", instance.with_last_words(message))
            }
            Err(_) => {
                let message = format!(
                    "the instance did not ask for its first event within {:?}; do less when it \
                     starts, or raise timeout_seconds",
                    spec.init_timeout
                );
                let message = instance.with_last_words(message);
                SandboxError::new(SandboxErrorKind::InitTimeout, message)
            }
        };
        instance.destroy().await;
        Err(error)
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
                let removed = remove_folder(&path);
                remove(path, removed);
            }
            // What was compiled, or half-way so: the first `create` does it again.
            for path in paths_in(&state.join("runtimes/python")) {
                if !path.ends_with("bootstrap.py") {
                    let removed = fs::remove_file(&path);
                    remove(path, removed);
                }
            }
            report
        });
        reclaim.await.unwrap_or_default()
    }

    async fn shutdown(&self) {
        self.shared.live().shut_down = true;
        let starts = self.shared.starting.write().await;
        let instances: Vec<_> = self.shared.live().instances.values().cloned().collect();
        drop(starts);
        for instance in &instances {
            instance.stop.notify_one();
        }
        for instance in &instances {
            instance.destroy().await;
        }
    }
}

/// What to start for a function.
struct Program {
    command: CommandSpec,
    /// Ours speaks over a Unix socket, others over TCP.
    over_tcp: bool,
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides what to run, and refuses what this kind cannot do.
    async fn program(&self, spec: &SandboxSpec) -> Result<Program, SandboxError> {
        let manifest = &*spec.manifest;
        if manifest.network == Network::Bridge {
            return Err(unsupported(
                "process sandboxes share the machine's network; set network = \"host\" in ol.toml, \
                 or use another kind of sandbox",
            ));
        }
        let (program, args, over_tcp) = match manifest.runtime {
            Some(Runtime::Python) => {
                if matches!(manifest.style, Some(Style::Wsgi | Style::Asgi)) {
                    return Err(unsupported(
                        "the styles wsgi and asgi do not run yet; set style = \"lambda\" and \
                         event = \"http\" in ol.toml",
                    ));
                }
                let bootstrap = self.bootstrap.get_or_init(|| self.compile_bootstrap()).await;
                // Without site and user packages, which take longest (see the bootstrap), and
                // without writing into the shared code folder.
                let args = vec!["-S".into(), "-s".into(), "-B".into(), bootstrap.into()];
                (self.config.python.clone(), args, false)
            }
            Some(Runtime::Bootstrap) => {
                let program = std::path::absolute(spec.code.join("bootstrap"))
                    .map_err(|error| resources("the code folder cannot be found", error))?;
                check_bootstrap(&program)?;
                (program, Vec::new(), true)
            }
            Some(other) => {
                return Err(unsupported(format!(
                    "the runtime {} does not run in process sandboxes yet; use python or bootstrap",
                    format!("{other:?}").to_lowercase()
                )));
            }
            None => {
                return Err(unsupported(
                    "the manifest names no runtime; set runtime in ol.toml, or read it with \
                     Manifest::load, which looks at the files",
                ));
            }
        };
        let mut command = CommandSpec::new(program);
        command.args = args;
        command.parent_death = Some(Signal::KILL);
        (command.stdout, command.stderr) = (Output::Pipe, Output::Pipe);
        // A core dump would land in the code folder.
        command.limits = vec![(Resource::Core, 0)];
        Ok(Program { command, over_tcp })
    }

    /// Compiles our bootstrap once, which saves a few milliseconds of every start.
    async fn compile_bootstrap(&self) -> PathBuf {
        const COMPILE: &str = "import py_compile, sys; \
            py_compile.compile(sys.argv[1], cfile=sys.argv[2], doraise=True)";
        let source = self.config.state_dir.join("runtimes/python/bootstrap.py");
        let compiled = source.with_extension("pyc");
        let command = CommandSpec::new(&self.config.python)
            .env(MARK, &self.config.worker_mark)
            .arg("-S")
            .arg("-c")
            .arg(COMPILE)
            .arg(&source)
            .arg(&compiled);
        let done = match self.config.spawner.spawn(command).await {
            Ok(child) => child.wait().await.success(),
            Err(_) => false,
        };
        if done { compiled } else { source }
    }

    /// Starts the child and what watches it.
    async fn start(
        self: Arc<Self>,
        spec: SandboxSpec,
    ) -> Result<Arc<ProcessSandbox>, SandboxError> {
        let _starting = self.starting.read().await;
        if self.live().shut_down {
            return Err(shutting_down());
        }
        let spec = &spec;
        let Program { mut command, over_tcp } = self.program(spec).await?;
        let folder = self.folder().map_err(|error| resources("no folder can be made", error))?;
        let code = std::path::absolute(&spec.code)
            .map_err(|error| resources("the code folder cannot be found", error))?;
        command.env = self.environment(spec, &code, &folder)?;
        command.cwd = Some(code);
        let listener = if over_tcp {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await;
            let listener = listener.map_err(|error| resources("no port can be opened", error))?;
            let address = listener.local_addr();
            let address = address.map_err(|error| resources("no port can be opened", error))?;
            command = command.env("AWS_LAMBDA_RUNTIME_API", address.to_string());
            Listener::Tcp(listener)
        } else {
            command = command.env("OPENLAMBDA_RUNTIME_SOCKET", folder.path.join("api.sock"));
            let listener = bind_in(&folder.path, "api.sock");
            Listener::Unix(listener.map_err(|error| resources("no socket can be opened", error))?)
        };
        let mark = self.mark(folder.id);
        let mut child = match self.config.spawner.spawn(command).await {
            Ok(child) => child,
            Err(error) => {
                // It may have run for a moment before it was found that it cannot be watched.
                self.sweeper.kill(mark).await;
                return Err(spawn_failed(error, over_tcp));
            }
        };
        let running = Running::default();
        let (Some(stdout), Some(stderr)) = (child.take_stdout(), child.take_stderr()) else {
            unreachable!("both were spawned with Output::Pipe");
        };
        let output = FunctionOutput::new(stdout, stderr, &spec.function, &spec.log, &running);
        let output = match output {
            Ok(output) => Arc::new(output),
            Err(error) => {
                child.kill_group();
                child.wait().await;
                self.sweeper.kill(mark).await;
                return Err(resources("its output cannot be read", error));
            }
        };
        let api = RuntimeApi::new(RuntimeApiConfig {
            slots: spec.manifest.concurrency,
            event: spec.manifest.event,
            function: spec.function.clone(),
            version: spec.version,
            clock: Arc::clone(&self.config.clock),
            running,
            output: Some(Arc::clone(&output)),
        });
        let serving = api.serve(listener);
        let instance = Arc::new(Instance {
            id: folder.id,
            slots: spec.manifest.concurrency,
            mark,
            child,
            api,
            output,
            stop: Notify::new(),
            life: watch::channel(Life::Runs).0,
            stopped: Arc::default(),
        });
        self.live().instances.insert(instance.id, Arc::clone(&instance));
        tokio::spawn(monitor(Arc::clone(&self), Arc::clone(&instance), serving, folder));
        Ok(Arc::new(ProcessSandbox { instance }))
    }

    fn mark(&self, id: u64) -> String {
        format!("{}/{id}", self.config.worker_mark)
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

    fn environment(
        &self,
        spec: &SandboxSpec,
        code: &Path,
        folder: &Folder,
    ) -> Result<BTreeMap<OsString, OsString>, SandboxError> {
        let manifest = &*spec.manifest;
        let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
        let mut set = |key: &str, value: OsString| env.insert(key.into(), value);
        set("PATH", FUNCTION_PATH.into());
        set("LANG", "C.UTF-8".into());
        set("TZ", ":UTC".into());
        set("HOME", folder.path.clone().into());
        set("TMPDIR", folder.path.join("tmp").into());
        for (key, value) in &manifest.environment {
            set(key, value.into());
        }
        let name = spec.function.name();
        let version = spec.version.map_or_else(|| "$LATEST".to_owned(), |v| v.to_string());
        let style = match manifest.style {
            Some(Style::Event) => "event",
            Some(Style::Legacy) => "legacy",
            _ => "lambda",
        };
        set("_HANDLER", manifest.handler.clone().unwrap_or_default().into());
        set("AWS_EXECUTION_ENV", "OpenLambda".into());
        set("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", manifest.memory_mb.to_string().into());
        set("AWS_LAMBDA_FUNCTION_NAME", name.into());
        set("AWS_LAMBDA_FUNCTION_VERSION", version.into());
        set("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand".into());
        set("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}").into());
        set("AWS_LAMBDA_LOG_STREAM_NAME", self.mark(folder.id).into());
        set("AWS_LAMBDA_MAX_CONCURRENCY", manifest.concurrency.to_string().into());
        set("AWS_REGION", "local".into());
        set("AWS_DEFAULT_REGION", "local".into());
        set("LAMBDA_RUNTIME_DIR", self.config.state_dir.join("runtimes").into());
        set("LAMBDA_TASK_ROOT", code.into());
        set("OPENLAMBDA_STYLE", style.into());
        set(MARK, self.mark(folder.id).into());
        for (variable, path) in self.volumes(&spec.function, manifest)? {
            set(&variable, path.into());
        }
        Ok(env)
    }

    /// Makes the function's volumes and tells their variables.
    fn volumes(
        &self,
        function: &FunctionName,
        manifest: &Manifest,
    ) -> Result<BTreeMap<String, PathBuf>, SandboxError> {
        let mut volumes = BTreeMap::new();
        let own = self.config.volumes_dir.join(function.namespace()).join(function.name());
        for volume in &manifest.volumes {
            let path = own.join(&volume.name);
            fs::create_dir_all(&path)
                .map_err(|error| resources("the volume's folder cannot be made", error))?;
            let sign =
                |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            let name: String = volume.name.chars().map(sign).collect();
            let variable = format!("OPENLAMBDA_VOLUME_{name}");
            if volumes.insert(variable.clone(), path).is_some() {
                return Err(unsupported(format!(
                    "two volumes in ol.toml share the variable {variable}; rename one"
                )));
            }
        }
        Ok(volumes)
    }
}

fn paths_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Removes a folder, also when the function has locked folders in it.
fn remove_folder(path: &Path) -> io::Result<()> {
    fn unlock(folder: &Path) {
        let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                unlock(&entry.path());
            }
        }
    }
    fs::remove_dir_all(path).or_else(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            unlock(path);
            fs::remove_dir_all(path)
        }
        _ => Err(error),
    })
}

/// An instance's own folder; removed by Drop.
#[derive(Debug)]
struct Folder {
    id: u64,
    path: PathBuf,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = remove_folder(&self.path) {
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

fn check_bootstrap(path: &Path) -> Result<(), SandboxError> {
    const KIND: &str = "Runtime.InvalidEntrypoint";
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(metadata) if metadata.is_file() => Err(init_error(
            KIND,
            "the file bootstrap is not executable; run chmod +x bootstrap and deploy again",
        )),
        _ => Err(init_error(
            KIND,
            "there is no file named bootstrap; add one that speaks the Lambda Runtime API",
        )),
    }
}

fn spawn_failed(error: SpawnError, own_bootstrap: bool) -> SandboxError {
    // ENOENT: its interpreter is missing; EACCES, ENOEXEC: it is no program.
    let faulty = [libc::ENOENT, libc::EACCES, libc::ENOEXEC];
    if own_bootstrap && error.io().raw_os_error().is_some_and(|code| faulty.contains(&code)) {
        let message = format!(
            "the file bootstrap cannot be run ({}); begin it with a line like #!/bin/sh that names \
             its interpreter, or compile it for this machine",
            error.io()
        );
        return init_error("Runtime.InvalidEntrypoint", message).with_source(error);
    }
    SandboxError::new(SandboxErrorKind::Resources, "the process cannot be started")
        .with_source(error)
}

fn unsupported(message: impl Into<String>) -> SandboxError {
    SandboxError::new(SandboxErrorKind::Unsupported, message)
}

fn resources(what: &str, error: io::Error) -> SandboxError {
    SandboxError::new(SandboxErrorKind::Resources, format!("the sandbox cannot be made: {what}"))
        .with_source(error)
}

fn shutting_down() -> SandboxError {
    let message = "the sandbox cannot be made: the worker is shutting down; use another worker";
    SandboxError::new(SandboxErrorKind::Resources, message)
}

fn init_error(kind: &str, message: impl Into<String>) -> SandboxError {
    let message = message.into();
    let error = FunctionError {
        message: message.clone(),
        kind: kind.to_owned(),
        ..FunctionError::default()
    };
    SandboxError::new(SandboxErrorKind::Init, message).with_function_error(error)
}

/// The worker's handle of an instance; Drop ends it.
#[derive(Debug)]
struct ProcessSandbox {
    instance: Arc<Instance>,
}

impl Drop for ProcessSandbox {
    fn drop(&mut self) {
        self.instance.stop.notify_one();
    }
}

#[derive(Debug)]
struct Instance {
    id: u64,
    slots: u32,
    mark: String,
    child: Child,
    api: RuntimeApi,
    output: Arc<FunctionOutput>,
    /// Asks the monitor to end it.
    stop: Notify,
    life: watch::Sender<Life>,
    /// Descendants outside the process group that `pause` has stopped.
    stopped: Arc<tokio::sync::Mutex<Vec<OwnedFd>>>,
}

#[derive(Clone, Debug)]
enum Life {
    Runs,
    /// The process has ended.
    Exited(Exit),
    /// Nothing is left of it.
    Gone(Exit),
}

/// Sees an instance to its end and cleans up after it.
async fn monitor(shared: Arc<Shared>, instance: Arc<Instance>, serving: Serving, folder: Folder) {
    let exit = tokio::select! {
        status = instance.child.wait() => exit_of(status),
        () = instance.stop.notified() => {
            instance.child.kill_group();
            instance.child.wait().await;
            Exit::Destroyed
        }
    };
    instance.output.settle();
    instance.api.close(&exit);
    instance.life.send_replace(Life::Exited(exit.clone()));
    drop(serving);
    shared.sweeper.kill(instance.mark.clone()).await;
    instance.output.settle();
    let _ = tokio::task::spawn_blocking(move || drop(folder)).await;
    shared.live().instances.remove(&instance.id);
    instance.life.send_replace(Life::Gone(exit));
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Status(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Lost(status.to_string()),
    }
}

impl Instance {
    async fn exited(&self) -> Exit {
        let mut life = self.life.subscribe();
        let life = life.wait_for(|life| !matches!(life, Life::Runs)).await;
        match &*life.expect("we hold the sender") {
            Life::Exited(exit) | Life::Gone(exit) => exit.clone(),
            Life::Runs => unreachable!("that is what was waited for"),
        }
    }

    async fn destroy(&self) {
        self.stop.notify_one();
        let mut life = self.life.subscribe();
        let _ = life.wait_for(|life| matches!(life, Life::Gone(_))).await;
    }

    /// The message and what the process printed last.
    fn with_last_words(&self, message: String) -> String {
        self.output.settle();
        match self.output.last_words() {
            words if words.is_empty() => message,
            words => format!("{message}; its last words: {words}"),
        }
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        self.instance.api.invoke(invocation).await
    }

    async fn exited(&self) -> Exit {
        self.instance.exited().await
    }

    fn slots(&self) -> u32 {
        self.instance.slots
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        let instance = &self.instance;
        let mut stopped = Arc::clone(&instance.stopped).lock_owned().await;
        instance.api.pause()?;
        instance.child.signal_group(Signal::STOP);
        let (mark, group) = (instance.mark.clone(), instance.child.pid());
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
        let mut stopped = self.instance.stopped.lock().await;
        for pidfd in stopped.drain(..) {
            let _ = pidfd_send_signal(&pidfd, Signal::CONT);
        }
        self.instance.child.signal_group(Signal::CONT);
        self.instance.api.resume()
    }

    async fn set_memory_limit(&self, _bytes: u64) -> Result<(), SandboxError> {
        Err(unsupported("process sandboxes have no memory limit; use another kind of sandbox"))
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        if !matches!(*self.instance.life.borrow(), Life::Runs) {
            let message = "the instance is gone; its use cannot be told";
            return Err(SandboxError::new(SandboxErrorKind::Exited, message));
        }
        let mark = self.instance.mark.clone();
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

    async fn destroy(&self) {
        self.instance.destroy().await;
    }
}

/// Pages that processes share count for each of them.
fn resident_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
