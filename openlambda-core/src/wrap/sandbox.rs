//! Disturbed sandboxes.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;

use super::disturbance::{Operation, Trouble};
use super::disturbed::{By, DisturbedFactory};
use crate::failure::Started;
use crate::invocation::{Invocation, Reply};
use crate::sandbox::{
    Capabilities, Created, Exit, Report, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec, Usage, ZygoteSpec,
};
use crate::time::Clock;

impl DisturbedFactory {
    /// What [`Created`] says of the time includes the disturbance.
    async fn make(
        &self,
        operation: Operation,
        create: impl Future<Output = Result<Created, SandboxError>>,
    ) -> Result<Created, SandboxError> {
        let begin = self.by.clock.now();
        let _permit = self.by.before(operation).await.map_err(|trouble| {
            let message = "the sandbox cannot be made";
            SandboxError::new(SandboxErrorKind::Resources, message).with_source(trouble)
        })?;
        let waited = self.by.clock.now().since(begin);
        let mut created = create.await?;
        created.create += waited;
        let (inner, by) = (created.sandbox, Arc::clone(&self.by));
        created.sandbox = Arc::new(DisturbedSandbox { inner, by });
        Ok(created)
    }
}

#[async_trait]
impl SandboxFactory for DisturbedFactory {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        self.make(Operation::Create, self.inner.create(spec)).await
    }

    async fn create_zygote(&self, spec: ZygoteSpec) -> Result<Created, SandboxError> {
        self.make(Operation::Zygote, self.inner.create_zygote(spec)).await
    }

    async fn reclaim(&self) -> Report {
        self.inner.reclaim().await
    }

    async fn shutdown(&self) {
        self.inner.shutdown().await;
    }
}

#[derive(Debug)]
struct DisturbedSandbox {
    inner: Arc<dyn Sandbox>,
    by: Arc<By>,
}

#[async_trait]
impl Sandbox for DisturbedSandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        let permit = match self.by.before(Operation::Invoke).await {
            Ok(permit) => permit,
            Err(trouble @ Trouble::Full { .. }) => {
                let message = "the call cannot begin";
                let error = SandboxError::new(SandboxErrorKind::Busy, message);
                return Err(error.with_source(trouble));
            }
            Err(trouble) => {
                self.inner.destroy().await;
                let error = SandboxError::ended(&self.inner.exited().await, Started::No);
                return Err(error.with_source(trouble));
            }
        };
        let mut reply = self.inner.invoke(invocation).await?;
        reply.done = reply.done.inspect(move |_| drop(permit)).boxed();
        Ok(reply)
    }

    async fn exited(&self) -> Exit {
        self.inner.exited().await
    }

    fn slots(&self) -> u32 {
        self.inner.slots()
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        self.inner.pause().await
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        self.inner.resume().await
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), SandboxError> {
        self.inner.set_memory_limit(bytes).await
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        self.inner.usage().await
    }

    async fn destroy(&self) {
        self.inner.destroy().await;
    }
}
