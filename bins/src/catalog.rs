//! The parts that a binary offers, by name.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use openlambda_core::allow::Allow;
use openlambda_core::config::nearest;
use openlambda_core::invocation::BoxError;
use openlambda_core::keep_alive::{self, KeepAliveCatalog, KeepAliveEntry};
use openlambda_core::queue::{self, QueueCatalog, QueueEntry};
use openlambda_core::registry::{Bounded, Registry};
use openlambda_core::sandbox::SandboxFactory;
use openlambda_core::serving::Secret;
use openlambda_core::time::SystemClock;
use openlambda_lb::policies::{PolicyCatalog, PolicyEntry};
use openlambda_registry::dir::DirRegistry;
use openlambda_registry::native::RemoteRegistry;
use openlambda_sandbox::docker::{DockerConfig, DockerFactory, engine_socket};
use openlambda_sandbox::process::{ProcessConfig, ProcessFactory};
use openlambda_sandbox::sock::{self, SeenPython, SockConfig, SockFactory};
use openlambda_sandbox::sys::Spawner;

use crate::error::{CliError, Context, Result};
use crate::terminal::say;

/// The sandboxes, the registries, and the policies of balancers and workers, that a binary offers by
/// name.
pub struct Catalog {
    sandboxes: Vec<SandboxEntry>,
    registries: Vec<RegistryEntry>,
    policies: PolicyCatalog,
    keep_alive: KeepAliveCatalog,
    queues: QueueCatalog,
}

impl fmt::Debug for Catalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Catalog")
            .field("sandboxes", &self.sandbox_names())
            .field("registries", &self.registry_names())
            .finish_non_exhaustive()
    }
}

/// A kind of sandbox that a worker can be started with.
pub struct SandboxEntry {
    /// Its name: `--sandbox NAME`.
    pub name: &'static str,
    /// One line on it.
    pub about: &'static str,
    /// Checks whether it works on this machine, for this user. Returns what it cannot enforce here, a
    /// sentence each; the error says why it does not work at all, and how to get it.
    pub check: CheckSandbox,
    /// Makes the worker's factory.
    pub build: BuildSandbox,
}

/// See [`SandboxEntry::check`].
pub type CheckSandbox = Box<dyn Fn(&SandboxOptions) -> Result<Vec<String>, BoxError> + Send + Sync>;

/// See [`SandboxEntry::build`].
pub type BuildSandbox =
    Box<dyn Fn(SandboxContext) -> Result<Arc<dyn SandboxFactory>, BoxError> + Send + Sync>;

/// See [`RegistryEntry::build`].
pub type BuildRegistry =
    Box<dyn Fn(RegistryContext<'_>) -> Result<Arc<dyn Registry>, BoxError> + Send + Sync>;

/// What a registry is opened with.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RegistryContext<'a> {
    /// Its place, as it stands after `NAME=`: a folder, a URL.
    pub place: &'a str,
    /// The cluster's secret, where it has one.
    pub secret: Option<&'a Secret>,
    /// Who opens it, for an audit log: a user and a program.
    pub by: &'a str,
}

/// What a sandbox factory is made from.
#[derive(Debug)]
#[non_exhaustive]
pub struct SandboxContext {
    /// The worker's own folder.
    pub state_dir: PathBuf,
    /// Where functions' volumes are.
    pub volumes_dir: PathBuf,
    /// The worker's mark: its processes carry it in `OPENLAMBDA_MARK`.
    pub mark: String,
    /// Starts processes.
    pub spawner: Arc<Spawner>,
    /// The worker's clock.
    pub clock: Arc<SystemClock>,
    /// The settings of kinds of sandboxes.
    pub options: SandboxOptions,
}

/// Settings of the kinds of sandboxes that the project ships. `None` is the kind's own default.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SandboxOptions {
    /// Addresses for bridged networks of `sock`, as `10.213.0.0/16`.
    pub bridge_range: Option<String>,
    /// How many cells `sock` makes ahead.
    pub ready_cells: Option<usize>,
    /// The Python of `sock` and `process`.
    pub python: Option<PathBuf>,
    /// More Pythons of `sock` and `process`, for functions that name their version.
    pub pythons: Vec<PathBuf>,
    /// Folders with Python packages that all functions get.
    pub python_packages: Vec<PathBuf>,
    /// The Node.js of `sock` and `process`.
    pub node: Option<PathBuf>,
    /// The socket of the engine of `docker`: a path, or `unix://PATH`.
    pub docker_socket: Option<String>,
    /// The image of `docker`.
    pub docker_image: Option<String>,
    /// The OCI runtime of `docker`, by the engine's name for it.
    pub docker_runtime: Option<String>,
}

/// A kind of registry that workers and balancers can be started with.
pub struct RegistryEntry {
    /// Its name: `--registry NAME=PLACE`.
    pub name: &'static str,
    /// One line on it.
    pub about: &'static str,
    /// Opens the registry at a place: a folder, a URL.
    pub build: BuildRegistry,
}

impl Catalog {
    /// An empty catalogue.
    pub fn empty() -> Self {
        Catalog {
            sandboxes: Vec::new(),
            registries: Vec::new(),
            policies: PolicyCatalog::new(),
            keep_alive: KeepAliveCatalog::new(keep_alive::KIND),
            queues: QueueCatalog::new(queue::KIND),
        }
    }

    /// Everything that the project ships.
    pub fn standard() -> Self {
        let mut catalog = Catalog::empty();
        catalog.policies = PolicyCatalog::standard();
        catalog.keep_alive = keep_alive::standard();
        catalog.queues = queue::standard();
        catalog
            .sandbox(SandboxEntry {
                name: "sock",
                about: "a lean Linux container per instance, with root and without",
                check: Box::new(check_sock),
                build: Box::new(|context| {
                    let mut config = SockConfig::new(
                        context.state_dir,
                        context.mark,
                        context.spawner,
                        context.clock,
                    );
                    config.volumes_dir = context.volumes_dir;
                    let config = sock_options(config, &context.options)?;
                    Ok(Arc::new(SockFactory::new(config)?))
                }),
            })
            .sandbox(SandboxEntry {
                name: "docker",
                about: "a container of Docker's engine per instance, with any OCI runtime",
                check: Box::new(check_docker),
                build: Box::new(|context| {
                    let mut config =
                        DockerConfig::new(context.state_dir, context.mark, context.clock);
                    config.volumes_dir = context.volumes_dir;
                    let config = docker_options(config, &context.options)?;
                    Ok(Arc::new(on_a_thread(async || Ok(DockerFactory::connect(config).await?))?))
                }),
            })
            .sandbox(SandboxEntry {
                name: "process",
                about: "a child process per instance, without isolation: for trusted code",
                check: Box::new(|_| {
                    Ok(vec!["isolation of any kind: run only trusted code".into()])
                }),
                build: Box::new(|context| {
                    let mut config = ProcessConfig::new(
                        context.state_dir,
                        context.mark,
                        context.spawner,
                        context.clock,
                    );
                    config.volumes_dir = context.volumes_dir;
                    if let Some(python) = context.options.python {
                        config.python = python;
                    }
                    config.pythons = context.options.pythons;
                    config.python_packages = context.options.python_packages;
                    config.node = context.options.node.or(config.node);
                    Ok(Arc::new(ProcessFactory::new(config)?))
                }),
            })
            .registry(RegistryEntry {
                name: "dir",
                about: "a folder of function folders; a changed file takes effect on the next call",
                build: Box::new(|context| Ok(Arc::new(DirRegistry::new(context.place)?))),
            })
            .registry(RegistryEntry {
                name: "native",
                about: "ol-registry over gRPC; a URL such as http://127.0.0.1:9000",
                build: Box::new(|RegistryContext { place, secret, by }| {
                    let registry = RemoteRegistry::connect(place)?;
                    Ok(Arc::new(registry.with_secret(secret.cloned()).acting_as(by)))
                }),
            })
    }

    /// Adds a kind of sandbox; it replaces one of the same name.
    pub fn sandbox(mut self, entry: SandboxEntry) -> Self {
        self.sandboxes.retain(|known| known.name != entry.name);
        self.sandboxes.push(entry);
        self
    }

    /// Adds a kind of registry; it replaces one of the same name.
    pub fn registry(mut self, entry: RegistryEntry) -> Self {
        self.registries.retain(|known| known.name != entry.name);
        self.registries.push(entry);
        self
    }

    /// Adds a balancing policy; it replaces one of the same name.
    pub fn policy(mut self, entry: PolicyEntry) -> Self {
        self.policies.register(entry);
        self
    }

    /// Adds a keep-alive policy of workers; it replaces one of the same name.
    pub fn keep_alive(mut self, entry: KeepAliveEntry) -> Self {
        self.keep_alive.register(entry);
        self
    }

    /// Adds a queue policy of workers; it replaces one of the same name.
    pub fn queue(mut self, entry: QueueEntry) -> Self {
        self.queues.register(entry);
        self
    }

    pub(crate) fn policies(&self) -> &PolicyCatalog {
        &self.policies
    }

    pub(crate) fn keep_alive_policies(&self) -> &KeepAliveCatalog {
        &self.keep_alive
    }

    pub(crate) fn queue_policies(&self) -> &QueueCatalog {
        &self.queues
    }

    pub(crate) fn sandbox_names(&self) -> Vec<&'static str> {
        self.sandboxes.iter().map(|entry| entry.name).collect()
    }

    fn registry_names(&self) -> Vec<&'static str> {
        self.registries.iter().map(|entry| entry.name).collect()
    }

    /// The kinds of sandbox, the best first.
    pub(crate) fn sandboxes(&self) -> &[SandboxEntry] {
        &self.sandboxes
    }

    /// The kind of sandbox that `name` means; `auto` takes the first that works here, and says what
    /// was passed over.
    pub(crate) fn sandbox_entry(
        &self,
        name: &str,
        options: &SandboxOptions,
    ) -> Result<&SandboxEntry> {
        if name == "auto" {
            for entry in &self.sandboxes {
                match (entry.check)(options) {
                    Ok(_) => return Ok(entry),
                    Err(error) if error.is::<WrongOption>() => {
                        return Err(CliError::new(error.to_string()));
                    }
                    Err(error) => {
                        let why = openlambda_core::failure::chain(&*error);
                        say!("sandbox {} does not work here: {why}", entry.name);
                    }
                }
            }
            return Err(CliError::new("no sandbox works here; `ol doctor` says what each needs"));
        }
        let entry = self.sandboxes.iter().find(|entry| entry.name == name);
        entry.ok_or_else(|| unknown("sandbox", name, &self.sandbox_names()))
    }

    /// Opens the registry that `NAME=PLACE` means, in a cluster with this secret.
    pub(crate) fn open_registry(
        &self,
        spec: &str,
        secret: Option<&Secret>,
        by: &str,
    ) -> Result<Arc<dyn Registry>> {
        let Some((name, place)) = spec.split_once('=') else {
            let message = format!(
                "registry \"{spec}\" has no place; write NAME=PLACE, for example native=http://127.0.0.1:9000 or dir=./functions"
            );
            return Err(CliError::new(message));
        };
        let entry = self.registries.iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| unknown("registry", name, &self.registry_names()))?;
        (entry.build)(RegistryContext { place, secret, by })
            .context(|| format!("cannot open the registry {spec}"))
    }

    /// The same, for those who publish. It takes what this allows: the native registry sees to that
    /// itself, by its own settings, and this program does for every other.
    pub(crate) fn open_registry_within(
        &self,
        spec: &str,
        secret: Option<&Secret>,
        by: &str,
        allow: Allow,
    ) -> Result<Arc<dyn Registry>> {
        let registry = self.open_registry(spec, secret, by)?;
        Ok(match registry.kind() {
            "native" => registry,
            _ => Arc::new(Bounded::new(registry, allow)),
        })
    }
}

/// A kind of sandbox cannot be what was set. `auto` passes over kinds that do not work here, but not over
/// this: it would take one that isolates less because of a slip of the pen.
#[derive(Debug)]
struct WrongOption(String);

impl fmt::Display for WrongOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongOption {}

/// Makes a factory in a temporary folder and lets it try.
fn check_sock(options: &SandboxOptions) -> Result<Vec<String>, BoxError> {
    on_a_thread(async || {
        let folder = tempfile::tempdir()?;
        let mark = format!("ol-check-{}", std::process::id());
        let clock = Arc::new(SystemClock::new());
        let config = SockConfig::new(folder.path(), mark, Spawner::start()?, clock);
        let factory = SockFactory::new(sock_options(config, options)?)?;
        let works = factory.probe().await;
        let withheld = factory.withheld();
        factory.shutdown().await;
        works.map(|()| withheld).map_err(BoxError::from)
    })
}

/// What was set of lean containers.
fn sock_options(mut config: SockConfig, options: &SandboxOptions) -> Result<SockConfig, BoxError> {
    if let Some(range) = options.bridge_range.as_ref().filter(|range| !range.is_empty()) {
        let range = sock::bridge_range(range);
        config.bridge_range = range.map_err(|error| WrongOption(error.to_string()))?;
    }
    if let Some(cells) = options.ready_cells {
        config.ready_cells = cells;
    }
    if let Some(python) = &options.python {
        let named = |why| WrongOption(format!("python = \"{}\": {why}", python.display()));
        SeenPython::of(python).map_err(named)?;
        config.python.clone_from(python);
    }
    config.pythons.clone_from(&options.pythons);
    config.python_packages.clone_from(&options.python_packages);
    if let Some(node) = &options.node {
        // A sandbox sees its folder, and not what a link there leads to.
        config.node = Some(std::fs::canonicalize(node)?);
    }
    Ok(config)
}

/// Asks the engine whether it is there and has the image.
fn check_docker(options: &SandboxOptions) -> Result<Vec<String>, BoxError> {
    on_a_thread(async || {
        let folder = tempfile::tempdir()?;
        let mark = format!("ol-check-{}", std::process::id());
        let config = DockerConfig::new(folder.path(), mark, Arc::new(SystemClock::new()));
        let factory = DockerFactory::connect(docker_options(config, options)?).await?;
        factory.probe().await?;
        Ok(factory.withheld())
    })
}

/// What was set of containers of Docker's engine.
fn docker_options(
    mut config: DockerConfig,
    options: &SandboxOptions,
) -> Result<DockerConfig, BoxError> {
    let set = |option: &Option<String>| option.clone().filter(|value| !value.is_empty());
    config.socket = engine_socket(options.docker_socket.as_deref())?;
    if let Some(image) = set(&options.docker_image) {
        config.image = image;
    }
    config.runtime = set(&options.docker_runtime);
    config.python_packages.clone_from(&options.python_packages);
    Ok(config)
}

/// Waits for a future on a thread of its own, since the caller may be inside of a runtime.
fn on_a_thread<T: Send>(
    run: impl AsyncFnOnce() -> Result<T, BoxError> + Send,
) -> Result<T, BoxError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run())
        });
        thread.join().unwrap_or_else(|_| Err("it panicked; report it".into()))
    })
}

fn unknown(what: &str, name: &str, known: &[&str]) -> CliError {
    let hint = match nearest(name, known.iter().copied()) {
        Some(nearest) => format!("did you mean \"{nearest}\"?"),
        None => format!("known are {}", known.join(", ")),
    };
    CliError::new(format!("there is no {what} \"{name}\"; {hint}"))
}
