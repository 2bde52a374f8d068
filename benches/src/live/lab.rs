//! What measurements work in: a temporary folder with the function, and factories that start it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http_body_util::BodyExt;
use openlambda_core::function::Digest;
use openlambda_core::invocation::{Invocation, RequestHead, RequestIds, full_body};
use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::{Isolation, NoLog, Sandbox, SandboxFactory, SandboxSpec};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_sandbox::NOOP_BOOTSTRAP;
use openlambda_sandbox::sys::Spawner;
use tempfile::TempDir;

use super::error::{Context, LiveError, Result};
use super::kinds::{Kinds, Place};

/// Shared by the tasks of a bench.
pub(super) struct Lab {
    folder: TempDir,
    pub(super) code: PathBuf,
    manifest: Arc<Manifest>,
    pub(super) clock: Arc<SystemClock>,
    pub(super) spawner: Arc<Spawner>,
    ids: RequestIds,
    next: AtomicU64,
}

/// A kind of sandbox, ready to start some.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// What it keeps a function from, and how.
    pub(super) isolation: String,
    pub(super) factory: Arc<dyn SandboxFactory>,
    /// What its processes and cgroups are marked with.
    pub(super) mark: String,
    pub(super) state_dir: PathBuf,
}

impl Lab {
    /// `function`: `noop`, a static program, or `python`.
    pub(super) fn new(function: &str) -> Result<Lab> {
        let folder = tempfile::tempdir().context(|| "cannot make a temporary folder".to_owned())?;
        // Sandboxes are other users.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open)
            .context(|| "cannot open the temporary folder to sandboxes".to_owned())?;
        let code = write_function(folder.path(), function)?;
        let manifest = Manifest::load(&code).context(|| "the function is not valid".to_owned())?;
        Ok(Lab {
            folder,
            code,
            manifest: Arc::new(manifest),
            clock: Arc::new(SystemClock::new()),
            spawner: Spawner::start().context(|| "cannot start a thread".to_owned())?,
            ids: RequestIds::new(1),
            next: AtomicU64::new(0),
        })
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// A name that nothing else on the machine has.
    pub(super) fn name(&self) -> String {
        format!("ol-bench-{}", self.ids.next())
    }

    /// A folder and a mark of its own.
    pub(super) fn place(&self, name: &str) -> Result<(PathBuf, String)> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let state_dir = self.folder.path().join(format!("{name}-{n}"));
        std::fs::create_dir_all(&state_dir)
            .context(|| format!("cannot make {}", state_dir.display()))?;
        Ok((state_dir, format!("ol-bench-{}-{name}-{n}", std::process::id())))
    }

    /// The kind of this name, with what it makes once (a compiled bootstrap, a pool) made.
    pub(super) async fn kind(&self, kinds: &dyn Kinds, name: &str) -> Result<Kind> {
        let name = kinds.name(name).map_err(LiveError::Kind)?;
        let (state_dir, mark) = self.place(name)?;
        let factory = kinds.build(
            name,
            Place {
                mark: mark.clone(),
                state_dir: state_dir.clone(),
                spawner: Arc::clone(&self.spawner),
                clock: Arc::clone(&self.clock),
            },
        );
        let factory = factory.context(|| format!("{name} does not work here"))?;
        let isolation = isolation_of(&*factory);
        for _ in 0..4 {
            if let Err(error) = self.start(&*factory).await {
                factory.shutdown().await;
                return Err(error).context(|| name.to_owned());
            }
        }
        Ok(Kind { name, isolation, factory, mark, state_dir })
    }

    /// Create, first answer, destroy.
    pub(super) async fn start(&self, factory: &dyn SandboxFactory) -> Result<()> {
        let sandbox = self.create(factory).await?;
        self.call(&*sandbox).await?;
        sandbox.destroy().await;
        Ok(())
    }

    pub(super) async fn create(&self, factory: &dyn SandboxFactory) -> Result<Arc<dyn Sandbox>> {
        let spec = SandboxSpec::new(
            "bench".parse().context(String::new)?,
            Digest::from_bytes([0; 32]),
            self.code.clone(),
            Arc::clone(&self.manifest),
            Arc::new(NoLog),
        );
        let created = factory.create(spec).await.context(|| "create failed".to_owned())?;
        Ok(created.sandbox)
    }

    /// One call, whose answer is looked at.
    pub(super) async fn call(&self, sandbox: &dyn Sandbox) -> Result<()> {
        let invocation = Invocation {
            id: self.ids.next(),
            function: "bench".parse().context(String::new)?,
            deadline: Time::MAX,
            deadline_unix_ms: self.clock.unix_millis() + 60_000,
            head: RequestHead::default(),
            body: full_body("null"),
            websocket: None,
        };
        let reply = sandbox.invoke(invocation).await.context(|| "the call failed".to_owned())?;
        let body = reply.body.collect().await.map_err(|error| LiveError::new(error.to_string()))?;
        match body.to_bytes() == "null" {
            true => Ok(()),
            false => Err(LiveError::new("the answer is wrong; report it")),
        }
    }

    /// A number of idle instances, each of which has answered once; or none, when one of them fails.
    pub(super) async fn idle(
        &self,
        factory: &dyn SandboxFactory,
        count: usize,
        paused: bool,
    ) -> Result<Vec<Arc<dyn Sandbox>>> {
        let mut idle = Vec::new();
        let made: Result<()> = async {
            for _ in 0..count {
                idle.push(self.create(factory).await?);
                let sandbox = &idle[idle.len() - 1];
                self.call(&**sandbox).await?;
                if paused {
                    sandbox.pause().await.context(|| "pause failed".to_owned())?;
                }
            }
            Ok(())
        }
        .await;
        if made.is_err() {
            destroy(&idle).await;
        }
        made.context(|| format!("with {} of {count} idle instances", idle.len()))?;
        Ok(idle)
    }
}

pub(super) async fn destroy(instances: &[Arc<dyn Sandbox>]) {
    futures_util::future::join_all(instances.iter().map(|instance| instance.destroy())).await;
}

fn isolation_of(factory: &dyn SandboxFactory) -> String {
    let capabilities = factory.capabilities();
    let mut isolation = vec![match capabilities.isolation {
        Isolation::None => return "none".to_owned(),
        Isolation::Namespaces => "namespaces, seccomp",
        _ => "kernel",
    }];
    isolation.extend(capabilities.memory_limit.then_some("limits"));
    isolation.join(", ")
}

/// The function's folder.
fn write_function(folder: &Path, kind: &str) -> Result<PathBuf> {
    let code = folder.join("code");
    let write = || {
        std::fs::create_dir(&code)?;
        std::fs::set_permissions(&code, std::fs::Permissions::from_mode(0o755))?;
        let (file, mode) = match kind {
            "python" => ("f.py", 0o644),
            _ => ("bootstrap", 0o755),
        };
        match kind {
            "python" => std::fs::write(code.join(file), "def f(event):\n    return event\n")?,
            _ => std::fs::write(code.join(file), NOOP_BOOTSTRAP)?,
        }
        std::fs::set_permissions(code.join(file), std::fs::Permissions::from_mode(mode))
    };
    write().context(|| "cannot write the function".to_owned())?;
    Ok(code)
}
