//! What the core wants done to sandboxes, each by a task of its own: make, pause, limit, resume, destroy.
//!
//! Sandboxes may be somebody's own: a panic in one ends one call, and the core hears of it as of any
//! other failure.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;

use super::dispatch::{Dispatcher, State, guarded};
use crate::failure::{Failure, Started};
use crate::function::FunctionName;
use crate::sandbox::{Created, LogLine, LogSink, LogStream, Sandbox, SandboxError, SandboxSpec};
use crate::scheduler::{InstanceId, VersionId};
use crate::worker_core::Input;

/// An instance, from the order to make it until nothing is left of it.
#[derive(Debug)]
pub(super) struct Instance {
    function: FunctionName,
    /// Once it is ready.
    pub(super) sandbox: Option<Arc<dyn Sandbox>>,
    /// Stops its making.
    cancel: Option<oneshot::Sender<()>>,
}

impl Dispatcher {
    pub(super) fn create(
        self: &Arc<Self>,
        state: &mut State,
        instance: InstanceId,
        version: VersionId,
    ) {
        let (function, number, digest, manifest) = state.core.version(version);
        let mut spec = SandboxSpec::new(
            function.clone(),
            digest,
            self.code.folder(&digest),
            manifest.clone(),
            self.log.clone(),
        );
        spec.version = number;
        let (cancel, cancelled) = oneshot::channel();
        let function = function.clone();
        let place = Instance { function, sandbox: None, cancel: Some(cancel) };
        state.instances.insert(instance.0, place);
        tokio::spawn(self.clone().make(instance, spec, cancelled));
    }

    async fn make(
        self: Arc<Self>,
        instance: InstanceId,
        spec: SandboxSpec,
        cancelled: oneshot::Receiver<()>,
    ) {
        let created = tokio::select! {
            created = guarded("making a sandbox", async { self.factory().create(spec).await }) => created,
            Ok(()) = cancelled => {
                let mut state = self.lock();
                state.instances.remove(instance.0);
                return self.step(&mut state, Input::Destroyed { instance });
            }
        };
        match created {
            Ok(Ok(created)) => {
                let sandbox = created.sandbox.clone();
                self.ready(instance, created);
                let _ = guarded("a sandbox", async { sandbox.exited().await }).await;
                self.handle(Input::Exited { instance });
            }
            Ok(Err(error)) => self.start_failed(instance, error.into()),
            Err(failure) => self.start_failed(instance, failure.started(Started::No)),
        }
    }

    fn ready(self: &Arc<Self>, instance: InstanceId, created: Created) {
        let Created { sandbox, start, create, init, .. } = created;
        let mut state = self.lock();
        let place = state.instances.get_mut(instance.0).expect("it is being started");
        self.metrics.started.fetch_add(1, Ordering::Relaxed);
        self.metrics.create.observe(create);
        self.metrics.init.observe(init);
        place.cancel = None;
        place.sandbox = Some(sandbox);
        self.step(&mut state, Input::Started { instance, start, create, init });
    }

    fn start_failed(self: &Arc<Self>, instance: InstanceId, failure: Failure) {
        let mut state = self.lock();
        self.metrics.start_failed.fetch_add(1, Ordering::Relaxed);
        if let Some(place) = state.instances.remove(instance.0) {
            let text = format!("an instance did not start: {failure}");
            self.log.line(LogLine::new(&place.function, None, LogStream::Platform, &text));
        }
        self.step(&mut state, Input::StartFailed { instance, failure });
    }

    pub(super) fn cancel_start(&self, state: &mut State, instance: InstanceId) {
        let place = state.instances.get_mut(instance.0);
        // When nobody listens any more, its success or failure is on its way.
        let _ = place.and_then(|place| place.cancel.take()).map(|cancel| cancel.send(()));
    }

    pub(super) fn pause(self: &Arc<Self>, state: &State, instance: InstanceId) {
        let Some(sandbox) = state.sandbox(instance) else { return };
        self.and_tell(instance, async move {
            sandbox.pause().await?;
            let used = sandbox.usage().await.ok().map(|usage| usage.memory_bytes);
            Ok(Input::Paused { instance, used })
        });
    }

    pub(super) fn set_limit(self: &Arc<Self>, state: &State, instance: InstanceId, bytes: u64) {
        let Some(sandbox) = state.sandbox(instance) else { return };
        self.and_tell(instance, async move {
            let set = sandbox.set_memory_limit(bytes).await;
            Ok(Input::LimitSet { instance, bytes: set.is_ok().then_some(bytes) })
        });
    }

    pub(super) fn resume(
        self: &Arc<Self>,
        state: &State,
        instance: InstanceId,
        raise: Option<u64>,
    ) {
        let Some(sandbox) = state.sandbox(instance) else { return };
        self.and_tell(instance, async move {
            if let Some(bytes) = raise {
                sandbox.set_memory_limit(bytes).await?;
            }
            sandbox.resume().await?;
            Ok(Input::Resumed { instance })
        });
    }

    /// Does something to a sandbox and tells the core what came of it. A sandbox that fails at it is
    /// taken for broken.
    fn and_tell(
        self: &Arc<Self>,
        instance: InstanceId,
        work: impl Future<Output = Result<Input<'static>, SandboxError>> + Send + 'static,
    ) {
        let dispatcher = self.clone();
        tokio::spawn(async move {
            let done = guarded("a sandbox", work).await;
            dispatcher.handle(match done {
                Ok(Ok(input)) => input,
                _ => Input::Exited { instance },
            });
        });
    }

    pub(super) fn destroy(self: &Arc<Self>, state: &mut State, instance: InstanceId) {
        let place = state.instances.get_mut(instance.0);
        let sandbox = place.and_then(|place| place.sandbox.take());
        let sandbox = sandbox.expect("an instance that is evicted was ready");
        let dispatcher = self.clone();
        tokio::spawn(async move {
            let _ = guarded("a sandbox", async { sandbox.destroy().await }).await;
            let mut state = dispatcher.lock();
            state.instances.remove(instance.0);
            dispatcher.step(&mut state, Input::Destroyed { instance });
        });
    }
}
