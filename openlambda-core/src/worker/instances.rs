//! Makes, pauses, limits, resumes and destroys sandboxes for the core, each operation in its own task.
//!
//! [`Instances`] holds the sandboxes and starts those tasks. A task ends by telling its [`Shell`] what
//! became of the instance.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio_util::sync::CancellationToken;

use super::guarded::guarded;
use super::lives::Lives;
use super::log::LogWriter;
use super::metrics::Metrics;
use crate::arena::Owned;
use crate::failure::{Failure, Started};
use crate::function::FunctionName;
use crate::sandbox::{
    Created, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory, SandboxSpec,
};
use crate::scheduler::InstanceId;
use crate::worker_core::Input;

/// The owner of the instances, whose core is told what became of them.
pub(super) trait Shell: Send + Sync + 'static {
    /// Something happened to an instance: under the shell's lock, `happened` notes it and says what the
    /// core is to hear of it.
    fn tell(self: &Arc<Self>, happened: impl FnOnce(&mut Instances) -> Input<'static>);
}

/// A worker's instances, under its shell's lock.
#[derive(Debug)]
pub(super) struct Instances {
    places: Owned<Instance>,
    maker: Arc<Maker>,
}

/// An instance, from the order to make it until nothing is left of it.
#[derive(Debug)]
struct Instance {
    function: FunctionName,
    /// Once it is ready.
    sandbox: Option<Arc<dyn Sandbox>>,
    /// Stops its making.
    cancel: CancellationToken,
}

/// What the tasks that make sandboxes share.
#[derive(Debug)]
struct Maker {
    factory: Arc<dyn SandboxFactory>,
    lives: Lives,
    log: Arc<LogWriter>,
    metrics: Arc<Metrics>,
}

impl Instances {
    /// None yet, to be made by this factory.
    pub(super) fn new(
        factory: Arc<dyn SandboxFactory>,
        lives: Lives,
        log: Arc<LogWriter>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let maker = Arc::new(Maker { factory, lives, log, metrics });
        Instances { places: Owned::default(), maker }
    }

    /// An instance's sandbox, while it is there.
    pub(super) fn sandbox(&self, instance: InstanceId) -> Option<Arc<dyn Sandbox>> {
        self.places.get(instance.0)?.sandbox.clone()
    }

    pub(super) fn create(
        &mut self,
        shell: &Arc<impl Shell>,
        instance: InstanceId,
        spec: SandboxSpec,
    ) {
        let cancel = CancellationToken::new();
        let function = spec.function.clone();
        let place = Instance { function, sandbox: None, cancel: cancel.clone() };
        self.places.insert(instance.0, place);
        tokio::spawn(self.maker.clone().make(shell.clone(), instance, spec, cancel));
    }

    pub(super) fn cancel_start(&mut self, instance: InstanceId) {
        // When nobody listens any more, its success or failure is on its way.
        if let Some(place) = self.places.get(instance.0) {
            place.cancel.cancel();
        }
    }

    pub(super) fn pause(&self, shell: &Arc<impl Shell>, instance: InstanceId) {
        let Some(sandbox) = self.sandbox(instance) else { return };
        and_tell(shell, instance, async move {
            supported(sandbox.pause().await)?;
            let used = sandbox.usage().await.ok().map(|usage| usage.memory_bytes);
            Ok(Input::Paused { instance, used })
        });
    }

    pub(super) fn set_limit(&self, shell: &Arc<impl Shell>, instance: InstanceId, bytes: u64) {
        let Some(sandbox) = self.sandbox(instance) else { return };
        and_tell(shell, instance, async move {
            let set = sandbox.set_memory_limit(bytes).await;
            Ok(Input::LimitSet { instance, bytes: set.is_ok().then_some(bytes) })
        });
    }

    pub(super) fn resume(&self, shell: &Arc<impl Shell>, instance: InstanceId, raise: Option<u64>) {
        let Some(sandbox) = self.sandbox(instance) else { return };
        and_tell(shell, instance, async move {
            if let Some(bytes) = raise {
                sandbox.set_memory_limit(bytes).await?;
            }
            supported(sandbox.resume().await)?;
            Ok(Input::Resumed { instance })
        });
    }

    pub(super) fn destroy(&mut self, shell: &Arc<impl Shell>, instance: InstanceId) {
        let place = self.places.get_mut(instance.0);
        let sandbox = place.and_then(|place| place.sandbox.take());
        let sandbox = sandbox.expect("an instance that is evicted was ready");
        let shell = shell.clone();
        tokio::spawn(async move {
            let _ = guarded("a sandbox", async { sandbox.destroy().await }).await;
            shell.tell(|instances| instances.gone(instance));
        });
    }

    /// Nothing is left of it.
    fn gone(&mut self, instance: InstanceId) -> Input<'static> {
        self.places.remove(instance.0);
        Input::Destroyed { instance }
    }

    fn ready(&mut self, instance: InstanceId, created: Created) -> Input<'static> {
        let Created { sandbox, start, create, init, .. } = created;
        let place = self.places.get_mut(instance.0).expect("it is being started");
        let metrics = &self.maker.metrics;
        metrics.started.fetch_add(1, Ordering::Relaxed);
        metrics.create.observe(create);
        metrics.init.observe(init);
        place.sandbox = Some(sandbox);
        Input::Started { instance, start, create, init }
    }

    fn start_failed(&mut self, instance: InstanceId, failure: Failure) -> Input<'static> {
        self.maker.metrics.start_failed.fetch_add(1, Ordering::Relaxed);
        if let Some(place) = self.places.remove(instance.0) {
            // A call that this fails is told of, too, with its id.
            self.maker.log.failed(&place.function, None, &failure);
        }
        Input::StartFailed { instance, failure }
    }
}

impl Maker {
    /// Makes a sandbox, and waits for its end by itself.
    async fn make(
        self: Arc<Self>,
        shell: Arc<impl Shell>,
        instance: InstanceId,
        spec: SandboxSpec,
        cancel: CancellationToken,
    ) {
        let created = tokio::select! {
            created = guarded("making a sandbox", self.create(spec)) => created,
            () = cancel.cancelled() => return shell.tell(|instances| instances.gone(instance)),
        };
        match created {
            Ok(Ok(created)) => {
                let sandbox = created.sandbox.clone();
                shell.tell(|instances| instances.ready(instance, created));
                let _ = guarded("a sandbox", async { sandbox.exited().await }).await;
                shell.tell(|_| Input::Exited { instance });
            }
            Ok(Err(failure)) => {
                shell.tell(|instances| instances.start_failed(instance, failure));
            }
            Err(failure) => {
                let failure = failure.started(Started::No);
                shell.tell(|instances| instances.start_failed(instance, failure));
            }
        }
    }
}

impl Maker {
    async fn create(&self, mut spec: SandboxSpec) -> Result<Created, Failure> {
        if !spec.manifest.volumes.is_empty() {
            let born = self.lives.of(&spec.function, spec.version).await;
            spec.born = born.map_err(|failure| failure.started(Started::No))?;
        }
        Ok(self.factory.create(spec).await?)
    }
}

/// Where a kind of sandbox cannot pause, an instance whose manifest asks for it runs on.
fn supported(done: Result<(), SandboxError>) -> Result<(), SandboxError> {
    done.or_else(|error| match error.kind {
        SandboxErrorKind::Unsupported => Ok(()),
        _ => Err(error),
    })
}

/// Does something to a sandbox and tells the core what came of it. A sandbox that fails at it is
/// taken for broken.
fn and_tell(
    shell: &Arc<impl Shell>,
    instance: InstanceId,
    work: impl Future<Output = Result<Input<'static>, SandboxError>> + Send + 'static,
) {
    let shell = shell.clone();
    tokio::spawn(async move {
        let done = guarded("a sandbox", work).await;
        shell.tell(|_| match done {
            Ok(Ok(input)) => input,
            _ => Input::Exited { instance },
        });
    });
}
