//! The `docker` kind: a container per instance, made by Docker's engine or one with the same API.
//!
//! It is for machines that already run an engine, for any OCI runtime that the engine knows by name
//! (gVisor's `runsc`, for example), and the baseline that leaner sandboxes are compared with: the engine
//! takes more than a hundred milliseconds to start a container.
//!
//! # What isolates a function
//!
//! | what the engine is told | what it takes away |
//! |---|---|
//! | an image, read-only; the bundle at `/var/task`, read-only | every file of the machine, but for the function's volumes |
//! | a user of its own, 1000, without capabilities, `no-new-privileges` | privileges, and ways to get them |
//! | `network_mode = none` | every network but a loopback of its own |
//! | limits of memory, processors and processes | more than the manifest says |
//! | `/tmp` as a file system of bounded size | filling the machine's disk |
//! | the engine's own filter of system calls, its namespaces | seeing other processes |
//!
//! # A start
//!
//! ```text
//! create ─▶ folder with sockets ─▶ engine: create, start ─▶ ol-init ⇄ worker ─▶ program ─▶ first `next` ─▶ ready
//!                                                             │ descriptors: output in, listener out
//!           cleaned ◀── engine: kill, remove ◀── exit (told by events), destroy, Drop
//! ```
//!
//! A container's entrypoint is `ol-init` (`sys/init/main.rs`), mounted in. Over a socket it gets the
//! function's standard output and error from the worker, so that output of a call is read before the
//! call is over, which the engine's own stream of output cannot promise. It gives the worker the Runtime
//! API's listener, opened inside the container's network, so the worker needs no privilege but the
//! engine's socket. Descriptors cannot pass into a runtime with its own kernel (gVisor): there the output
//! comes from the engine's stream, the worker opens the listener in the container's network from
//! outside, which takes root, and `ol-init` waits for it.
//!
//! `ol-init` stays as process 1: it waits for orphans and passes signals on to the function's program. It
//! does not count among the manifest's `processes`.
//!
//! # When the engine goes away
//!
//! Starts fail and say so. Running functions continue, since calls do not pass through the engine; most
//! engines end them when they come back. Containers that could not be removed meanwhile are removed
//! then, and those that a crashed worker has left are found by their labels.

mod container;
mod deaths;
mod engine;
mod handshake;
mod image;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType,
    ResourcesUlimits,
};
use bollard::query_parameters::{AttachContainerOptions, CreateContainerOptions};
use futures_util::StreamExt;
use openlambda_core::manifest::Network;
use openlambda_core::sandbox::{
    Capabilities, Created, Exit, Isolation, Report, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec,
};
use openlambda_core::time::Clock;
use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use self::container::Container;
use self::deaths::{Death, Deaths};
use self::engine::{Engine, MARK_LABEL, WORKER_LABEL, status_of, worker_label};
pub use self::engine::{engine_socket, remove_containers};
use self::handshake::{API, Greeting, Handshake, listen_in, listen_in_network_of};
pub use self::image::{BASE_IMAGE, build_base_image};
use crate::errors::{resources, unsupported};
use crate::kit::{self, Handle, Instances};
use crate::launch::{
    Folder, PYTHON_ARGUMENTS, PYTHON_FILES, Places, Program, absolute, check_mark, environment,
    own_volume, packages, remove_sandboxes, text, volumes,
};
use crate::node::{self, NODE_BOOTSTRAP, NODE_BOOTSTRAP_PATH};
use crate::runtime_api::Listener;
use crate::sys::{Signal, kill_marked, watch_readable};

/// The container's first program, as `build.rs` compiled it.
static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ol-init"));

/// A function's user id in its container.
const USER: u32 = 1000;

/// Where a container finds our bootstraps and `ol-init`.
const RUNTIMES: &str = "/var/runtime";
/// Where it finds its bundle.
const TASK: &str = "/var/task";
/// Where it finds the worker's sockets.
const SOCKETS: &str = "/run/openlambda";

/// What the scheduler counts a core's time in, microseconds.
const CPU_PERIOD: i64 = 100_000;

/// Makes sandboxes that are containers of an engine. See the module's documentation.
#[derive(Debug)]
pub struct DockerFactory {
    shared: Arc<Shared>,
}

/// How a [`DockerFactory`] works.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DockerConfig {
    /// Where it keeps its files; no two factories share one.
    pub state_dir: PathBuf,
    /// What its containers and their processes are marked with, so that the next worker of this name
    /// can find those of one that crashed. Unique on the machine; letters, digits and `._/-`.
    pub worker_mark: String,
    /// The engine's socket.
    pub socket: PathBuf,
    /// The image of all containers. It needs `python3` in its `PATH` for functions in Python, `node` for
    /// those in Node.js, and for others what their `bootstrap` asks for.
    pub image: String,
    /// Folders of this machine with Python packages that all functions can import, after their own.
    pub python_packages: Vec<PathBuf>,
    /// The OCI runtime, by the name that the engine knows it by; the engine's default when absent.
    pub runtime: Option<String>,
    /// Where volumes are: `<namespace>/<function>/<volume>` below it, `<function>@<version>` for one
    /// that was deleted and came again with that version.
    pub volumes_dir: PathBuf,
    /// Measures the phases of a start.
    pub clock: Arc<dyn Clock>,
}

impl DockerConfig {
    /// The usual: the engine at `/var/run/docker.sock`, its default runtime, [`BASE_IMAGE`].
    pub fn new(
        state_dir: impl Into<PathBuf>,
        worker_mark: impl Into<String>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state_dir = state_dir.into();
        DockerConfig {
            volumes_dir: state_dir.join("volumes"),
            state_dir,
            worker_mark: worker_mark.into(),
            socket: "/var/run/docker.sock".into(),
            image: BASE_IMAGE.to_owned(),
            python_packages: Vec::new(),
            runtime: None,
            clock,
        }
    }

    /// Whether containers have their own kernel, into which no descriptor can pass. An engine tells only
    /// the names of its runtimes; these are the usual ones.
    fn second_kernel(&self) -> bool {
        let runtime = self.runtime.as_deref().unwrap_or_default();
        ["runsc", "gvisor", "kata"].iter().any(|known| runtime.contains(known))
    }
}

#[derive(Debug)]
struct Shared {
    config: DockerConfig,
    engine: Engine,
    capabilities: Capabilities,
    next_id: AtomicU64,
    deaths: OnceCell<Arc<Deaths>>,
    instances: Instances<Container>,
}

impl DockerFactory {
    /// Makes the state folder ready and asks the engine what it can do. Call
    /// [`reclaim`](SandboxFactory::reclaim) before the first `create`.
    ///
    /// # Errors
    ///
    /// The folder cannot be written; the mark is not valid; the engine does not answer, or does not
    /// know the runtime.
    pub async fn connect(mut config: DockerConfig) -> Result<Self, SandboxError> {
        check_mark(&config.worker_mark).map_err(|error| unsupported(error.to_string()))?;
        config.state_dir = absolute(&config.state_dir)?;
        config.volumes_dir = absolute(&config.volumes_dir)?;
        prepare(&config.state_dir, config.python_packages.len())
            .map_err(|error| resources("the state folder cannot be written", error))?;
        let engine = Engine::connect(&config.socket).await?;
        let info = engine.info().await?;
        if let Some(runtime) = &config.runtime
            && !info.runtimes.as_ref().is_some_and(|known| known.contains_key(runtime))
        {
            return Err(unsupported(format!(
                "the engine knows no runtime {runtime}; add it to \"runtimes\" in \
                 /etc/docker/daemon.json and restart the engine"
            )));
        }
        let second_kernel = config.second_kernel();
        let mut capabilities = Capabilities::none();
        capabilities.isolation =
            if second_kernel { Isolation::Kernel } else { Isolation::Namespaces };
        capabilities.memory_limit = info.memory_limit == Some(true);
        capabilities.cpu_limit = info.cpu_cfs_quota == Some(true);
        // The engine counts the second kernel's threads, not the function's processes.
        capabilities.process_limit = info.pids_limit == Some(true) && !second_kernel;
        capabilities.pause = true;
        // The engine takes milliseconds for it, and as many to resume.
        capabilities.pause_after = Some(Duration::from_secs(10));
        capabilities.compiles = true;
        capabilities.networks = vec![Network::None, Network::Host];
        if engine.has_bridge().await {
            capabilities.networks.push(Network::Bridge);
        }
        Ok(DockerFactory {
            shared: Arc::new(Shared {
                config,
                engine,
                capabilities,
                next_id: AtomicU64::new(1),
                deaths: OnceCell::new(),
                instances: Instances::new(),
            }),
        })
    }

    /// Checks whether the engine has the image.
    ///
    /// # Errors
    ///
    /// The image is missing; the error says how to get it.
    pub async fn probe(&self) -> Result<(), SandboxError> {
        self.shared.engine.find_image(&self.shared.config.image).await
    }

    /// What is not enforced on this machine: a sentence each, with the reason and how to get it.
    pub fn withheld(&self) -> Vec<String> {
        let capabilities = &self.shared.capabilities;
        let mut withheld = Vec::new();
        let mut limit = |there: bool, what: &str| {
            if !there {
                withheld.push(format!("limits of {what}, which this engine cannot set"));
            }
        };
        limit(capabilities.memory_limit, "memory");
        limit(capabilities.cpu_limit, "processor time");
        limit(capabilities.process_limit, "processes");
        withheld
    }
}

/// What containers mount, and the folder for each one's sockets.
fn prepare(state_dir: &Path, packages: usize) -> io::Result<()> {
    let make = |path: PathBuf| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    make(state_dir.join("sandboxes"))?;
    let runtimes = state_dir.join("runtimes");
    let packages = (0..packages).map(|n| format!("packages/{n}"));
    let below = ["python", "node", "packages"].map(str::to_owned).into_iter().chain(packages);
    for folder in [runtimes.clone()].into_iter().chain(below.map(|name| runtimes.join(name))) {
        fs::create_dir_all(&folder)?;
        readable(&folder)?;
    }
    let python =
        PYTHON_FILES.map(|(name, text)| (format!("python/{name}"), text.as_bytes(), 0o644));
    let others = [
        (NODE_BOOTSTRAP_PATH.to_owned(), NODE_BOOTSTRAP.as_bytes(), 0o644),
        ("ol-init".to_owned(), INIT, 0o755),
    ];
    for (name, content, mode) in python.into_iter().chain(others) {
        // By renaming: a container of an earlier worker may be running the file.
        let new = runtimes.join("new");
        fs::write(&new, content)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
        fs::rename(&new, runtimes.join(name))?;
    }
    Ok(())
}

/// Lets containers, which are other users, into a folder that they find by a mount alone: whatever the
/// umask, or another kind of sandbox, has made of it.
fn readable(folder: &Path) -> io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

#[async_trait]
impl SandboxFactory for DockerFactory {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities.clone()
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        let start = Arc::clone(&self.shared).start(spec.clone());
        kit::create(&spec, &*self.shared.config.clock, start).await
    }

    async fn reclaim(&self) -> Report {
        let mut report = Report::default();
        let label = worker_label(&self.shared.config.worker_mark);
        self.shared.engine.remove_marked(&label, |_| true, &mut report).await;
        let shared = Arc::clone(&self.shared);
        let rest = tokio::task::spawn_blocking(move || {
            // Those of an engine that does not answer.
            report.processes = kill_marked(&shared.config.worker_mark);
            remove_sandboxes(&shared.config.state_dir, &mut report);
            report
        });
        rest.await.unwrap_or_default()
    }

    async fn shutdown(&self) {
        self.shared.instances.shutdown().await;
    }
}

/// How a container and the worker reach each other.
struct Contact {
    /// The first argument of `ol-init`.
    init: &'static str,
    /// Where the Runtime API is served; `None` until the container has opened its port, or we have.
    listener: Option<Listener>,
    handshake: Option<Handshake>,
}

impl Shared {
    /// Starts a container and what watches it.
    async fn start(self: Arc<Self>, spec: SandboxSpec) -> Result<Handle<Container>, SandboxError> {
        let permit = self.instances.permit().await?;
        if !self.capabilities.networks.contains(&spec.manifest.network) {
            return Err(unsupported(
                "this engine has no bridged network; set network = \"none\" or \"host\" in ol.toml, \
                 or start the engine without --bridge none",
            ));
        }
        let program = Program::of(&spec)?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mark = format!("{}/{id}", self.config.worker_mark);
        let path = self.config.state_dir.join("sandboxes").join(id.to_string());
        let folder = fs::create_dir(&path).map(|()| Folder(path));
        let folder = folder.and_then(|folder| readable(&folder.0).map(|()| folder));
        let folder = folder.map_err(|error| resources("no folder can be made", error))?;

        let mut volume_places = BTreeMap::new();
        let mut mounts = vec![
            mount(&absolute(&spec.code)?, TASK, false)?,
            mount(&self.config.state_dir.join("runtimes"), RUNTIMES, false)?,
        ];
        let packages = packages(&self.config.python_packages)?;
        for (source, place) in &packages {
            mounts.push(mount(Path::new(source), place, false)?);
        }
        let sources = volumes(&self.config.volumes_dir, &spec)?;
        for volume in &spec.manifest.volumes {
            let source = &sources[&volume.name];
            own_volume(source, USER)?;
            mounts.push(mount(source, &volume.path, true)?);
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
        let contact = self.contact(&spec, program, &folder.0, &mut env).await;
        let contact = contact.map_err(|error| resources("no socket can be opened", error))?;
        if !self.config.second_kernel() {
            mounts.push(mount(&folder.0, SOCKETS, false)?);
        }
        let body = self.describe(&spec, &mark, &contact, program, env, mounts);

        let deaths = self.deaths().await;
        let created =
            self.engine.docker.create_container(None::<CreateContainerOptions>, body).await;
        let container = created.map_err(|error| match status_of(&error) {
            Some(404) => engine::missing_image(&self.config.image),
            _ => self.engine.error("the sandbox cannot be made", error),
        })?;
        let draft = Draft { id: container.id, deaths: Arc::clone(&deaths), engine: &self.engine };
        let death = deaths.of(&draft.id);
        match self.bring_up(&spec, contact, &draft.id, &death).await {
            Ok(Up { listener, out, err, process, failed, start }) => {
                if let Some(start) = start {
                    tokio::spawn(see_started(start, &draft.id, &deaths, process.as_ref()));
                }
                let clock = Arc::clone(&self.config.clock);
                let contact = kit::contact(&spec, clock, [out, err], listener);
                let (output, api, serving) = match contact {
                    Ok(contact) => contact,
                    Err(error) => {
                        draft.discard().await;
                        return Err(error);
                    }
                };
                let vessel = Container {
                    id: draft.id,
                    program,
                    image: self.config.image.clone(),
                    engine: self.engine.clone(),
                    deaths,
                    death,
                    process,
                    output,
                    failed,
                    paused: AtomicBool::new(false),
                    removal: Mutex::default(),
                    folder: Mutex::new(Some(folder)),
                };
                let slots = spec.manifest.concurrency;
                Ok(self.instances.adopt(&permit, slots, api, serving, vessel))
            }
            Err(error) => {
                draft.discard().await;
                Err(error)
            }
        }
    }

    /// The stream of events, which lives as long as the factory or one of its sandboxes.
    async fn deaths(&self) -> Arc<Deaths> {
        let listen = async || {
            let clock = Arc::clone(&self.config.clock);
            Deaths::listen(self.engine.clone(), &self.config.worker_mark, clock)
        };
        Arc::clone(self.deaths.get_or_init(listen).await)
    }

    /// Opens what the container will look for, and tells it where.
    async fn contact(
        &self,
        spec: &SandboxSpec,
        program: Program,
        folder: &Path,
        env: &mut BTreeMap<String, String>,
    ) -> io::Result<Contact> {
        let own_network = spec.manifest.network != Network::Host;
        let second_kernel = self.config.second_kernel();
        if program != Program::Own && !second_kernel {
            let place = format!("{SOCKETS}/api.sock");
            env.insert(program.variable().to_owned(), place);
            let listener: UnixListener = listen_in(folder, "api.sock")?;
            let listener = Some(Listener::Unix(listener));
            return Ok(Contact {
                init: "output",
                listener,
                handshake: Some(Handshake::prepare(folder)?),
            });
        }
        let (listener, address) = match own_network {
            true => (None, API.to_owned()),
            false => {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
                let address = listener.local_addr()?.to_string();
                (Some(Listener::Tcp(listener)), address)
            }
        };
        env.insert(program.variable().to_owned(), address);
        let init = match (second_kernel, own_network) {
            (true, true) => "wait",
            (true, false) => "go",
            (false, true) => "listen",
            (false, false) => "output",
        };
        let handshake = if second_kernel { None } else { Some(Handshake::prepare(folder)?) };
        Ok(Contact { init, listener, handshake })
    }

    /// What the engine is told to make.
    fn describe(
        &self,
        spec: &SandboxSpec,
        mark: &str,
        contact: &Contact,
        program: Program,
        env: BTreeMap<String, String>,
        mounts: Vec<Mount>,
    ) -> ContainerCreateBody {
        let manifest = &*spec.manifest;
        let mut command = vec![format!("{RUNTIMES}/ol-init"), contact.init.to_owned()];
        match program {
            Program::Own => command.push(format!("{TASK}/bootstrap")),
            Program::Python(minor) => {
                command.push(match minor {
                    Some(minor) => format!("python3.{minor}"),
                    None => "python3".to_owned(),
                });
                command.extend(PYTHON_ARGUMENTS.map(str::to_owned));
                command.push(format!("{RUNTIMES}/python/bootstrap.py"));
            }
            Program::Node => {
                command.push("node".to_owned());
                command.extend(node::arguments(manifest));
                command.push(format!("{RUNTIMES}/{NODE_BOOTSTRAP_PATH}"));
            }
        }
        let memory = i64::try_from(manifest.memory_bytes()).unwrap_or(i64::MAX);
        let network = match manifest.network {
            Network::None => "none",
            Network::Host => "host",
            Network::Bridge => "bridge",
        };
        // The engine would make it without permission to run what is in it, which Lambda gives.
        let tmp = format!("exec,nosuid,nodev,mode=1777,size={}", manifest.tmp_mb << 20);
        let core = ResourcesUlimits { name: Some("core".to_owned()), soft: Some(0), hard: Some(0) };
        let has = &self.capabilities;
        let when = |there: bool, value: i64| there.then_some(value);
        let host = HostConfig {
            memory: when(has.memory_limit, memory),
            // The same: no swap beyond it.
            memory_swap: when(has.memory_limit, memory),
            cpu_period: when(has.cpu_limit, CPU_PERIOD),
            cpu_quota: when(has.cpu_limit, ((manifest.cpus * CPU_PERIOD as f64) as i64).max(1000)),
            // And `ol-init`, which is not the function's.
            pids_limit: when(has.process_limit, i64::from(manifest.processes) + 1),
            ulimits: Some(vec![core]),
            mounts: Some(mounts),
            tmpfs: Some(HashMap::from([("/tmp".to_owned(), tmp)])),
            readonly_rootfs: Some(true),
            network_mode: Some(network.to_owned()),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            // What it prints goes to the worker; the engine would keep it on the disk as well.
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            runtime: self.config.runtime.clone(),
            ..HostConfig::default()
        };
        ContainerCreateBody {
            image: Some(self.config.image.clone()),
            hostname: Some("sandbox".to_owned()),
            user: Some(format!("{USER}:{USER}")),
            working_dir: Some(TASK.to_owned()),
            entrypoint: Some(command),
            // An image's own would be appended.
            cmd: Some(Vec::new()),
            env: Some(env.into_iter().map(|(key, value)| format!("{key}={value}")).collect()),
            labels: Some(HashMap::from([
                (MARK_LABEL.to_owned(), mark.to_owned()),
                (WORKER_LABEL.to_owned(), self.config.worker_mark.clone()),
                ("openlambda.function".to_owned(), spec.function.to_string()),
            ])),
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            host_config: Some(host),
            ..ContainerCreateBody::default()
        }
    }

    /// Starts a container that was made, until its program is about to run.
    async fn bring_up(
        &self,
        spec: &SandboxSpec,
        contact: Contact,
        id: &str,
        death: &Death,
    ) -> Result<Up, SandboxError> {
        let Contact { listener, handshake, .. } = contact;
        let pipe = || io::pipe().map_err(|error| resources("no pipe can be made", error));
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        let start = {
            let (engine, id) = (self.engine.clone(), id.to_owned());
            async move {
                let started = engine.docker.start_container(&id, None).await;
                started.map_err(|error| engine.error("the sandbox cannot be started", error))
            }
        };
        let Some(handshake) = handshake else {
            self.attach(id, stdout.into(), stderr.into()).await?;
            start.await?;
            let pid = self.pid(id).await?;
            let listener = match listener {
                Some(listener) => listener,
                None => listen_in_network_of(pid)
                    .await
                    .and_then(tcp_listener)
                    .map_err(|error| no_network(error, spec))?,
            };
            let (out, err) = (out.into(), err.into());
            let process = watch_process(Some(pid));
            return Ok(Up { listener, out, err, process, failed: None, start: None });
        };
        for writer in [stdout.as_fd(), stderr.as_fd()] {
            // Functions open /dev/stdout too, as themselves. Not needed for anything else.
            let (user, group) = (rustix::fs::Uid::from_raw(USER), rustix::fs::Gid::from_raw(USER));
            let _ = rustix::fs::fchown(writer, Some(user), Some(group));
        }
        // The engine answers long after the program has begun, so nobody waits for that: only for its
        // refusal.
        let mut start = tokio::spawn(start);
        let mut answered = false;
        let refused = async {
            let answer = (&mut start).await;
            answered = true;
            match answer {
                Ok(Err(error)) => error,
                _ => std::future::pending().await,
            }
        };
        let greeting = tokio::select! {
            greeting = handshake.greet(stdout.as_fd(), stderr.as_fd()) => {
                greeting.map_err(|error| resources("its first process is gone", error))
            }
            error = refused => Err(error),
            exit = death.wait() => {
                let message = format!(
                    "the sandbox cannot be made: its first process {exit}; the image may be for \
                     another kind of machine"
                );
                Err(SandboxError::new(SandboxErrorKind::Resources, message))
            }
        }?;
        let Greeting { listener: opened, pid, failed } = greeting;
        let listener = match (listener, opened) {
            (Some(listener), _) => Ok(listener),
            (None, Some(opened)) => tcp_listener(opened),
            (None, None) => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let listener = listener.map_err(|error| resources("no port can be opened", error))?;
        let (out, err) = (out.into(), err.into());
        let process = watch_process(pid);
        let start = (!answered).then_some(start);
        Ok(Up { listener, out, err, process, failed: Some(failed), start })
    }

    /// Lets the engine's stream of its output flow into pipes.
    async fn attach(&self, id: &str, stdout: OwnedFd, stderr: OwnedFd) -> Result<(), SandboxError> {
        let options = AttachContainerOptions {
            stream: true,
            stdout: true,
            stderr: true,
            ..AttachContainerOptions::default()
        };
        let attached = self.engine.docker.attach_container(id, Some(options)).await;
        let mut attached =
            attached.map_err(|error| self.engine.error("its output cannot be read", error))?;
        let writer = |fd: OwnedFd| {
            rustix::io::ioctl_fionbio(&fd, true)?;
            pipe::Sender::from_owned_fd(fd)
        };
        let writers = writer(stdout).and_then(|out| Ok((out, writer(stderr)?)));
        let (mut stdout, mut stderr) =
            writers.map_err(|error| resources("its output cannot be read", error))?;
        tokio::spawn(async move {
            // Ends when the container does, or when nobody reads the pipes any more.
            while let Some(Ok(output)) = attached.output.next().await {
                let written = match output {
                    LogOutput::StdErr { message } => stderr.write_all(&message).await,
                    other => stdout.write_all(&other.into_bytes()).await,
                };
                if written.is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// The container's first process, as the machine numbers it.
    async fn pid(&self, id: &str) -> Result<i32, SandboxError> {
        let inspected = self.engine.docker.inspect_container(id, None).await;
        let inspected = inspected.map_err(|error| {
            self.engine.error("the sandbox's container cannot be inspected", error)
        })?;
        let pid =
            inspected.state.and_then(|state| state.pid).and_then(|pid| i32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0).ok_or_else(|| {
            let message = "the sandbox cannot be made: its first process ended at once; the image may \
                           be for another kind of machine";
            SandboxError::new(SandboxErrorKind::Resources, message)
        })
    }
}

fn tcp_listener(listener: OwnedFd) -> io::Result<Listener> {
    TcpListener::from_std(listener.into()).map(Listener::Tcp)
}

fn mount(source: &Path, target: &str, writes: bool) -> Result<Mount, SandboxError> {
    Ok(Mount {
        source: Some(text(source)?),
        target: Some(target.to_owned()),
        typ: Some(MountType::BIND),
        read_only: Some(!writes),
        ..Mount::default()
    })
}

fn no_network(error: io::Error, spec: &SandboxSpec) -> SandboxError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        let message = format!(
            "the network of {}'s sandbox cannot be entered without root, which runtimes with a kernel \
             of their own need; run the worker as root, or set network = \"host\"",
            spec.function
        );
        return SandboxError::new(SandboxErrorKind::Resources, message).with_source(error);
    }
    resources("no port can be opened", error)
}

/// Tells when the process has ended, also while the engine is away.
fn watch_process(pid: Option<i32>) -> Option<AsyncFd<OwnedFd>> {
    let pid = pid.and_then(Pid::from_raw)?;
    watch_readable(pidfd_open(pid, PidfdFlags::empty()).ok()?).ok()
}

/// A container whose program is about to run.
struct Up {
    listener: Listener,
    out: OwnedFd,
    err: OwnedFd,
    process: Option<AsyncFd<OwnedFd>>,
    failed: Option<std::os::unix::net::UnixStream>,
    /// The engine's answer, if it has not come yet.
    start: Option<JoinHandle<Result<(), SandboxError>>>,
}

/// An engine that goes away before it has written down that a container runs knows nothing of it when
/// it is back. Such a container is ended.
fn see_started(
    start: JoinHandle<Result<(), SandboxError>>,
    id: &str,
    deaths: &Arc<Deaths>,
    process: Option<&AsyncFd<OwnedFd>>,
) -> impl Future<Output = ()> + Send + 'static {
    let (id, deaths) = (id.to_owned(), Arc::clone(deaths));
    let process = process.and_then(|process| process.get_ref().try_clone().ok());
    async move {
        if let Ok(Err(error)) = start.await {
            process.map(|process| pidfd_send_signal(process, Signal::KILL));
            deaths.tell(&id, Exit::Lost(error.message));
        }
    }
}

/// A container that is not an instance yet.
struct Draft<'a> {
    id: String,
    deaths: Arc<Deaths>,
    engine: &'a Engine,
}

impl Draft<'_> {
    async fn discard(self) {
        if let Err(error) = self.engine.remove(&self.id).await {
            tracing::warn!(%error, container = self.id, "cannot remove a sandbox that did not start");
            self.deaths.remove_later(&self.id);
        }
    }
}
