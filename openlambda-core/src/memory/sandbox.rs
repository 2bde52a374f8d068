//! Sandboxes whose functions are Rust closures in this process.
//!
//! [`MemorySandboxFactory`] honours the whole contract of [`Sandbox`] without a process or a file:
//! for programs that embed a cluster, and for tests of everything above a sandbox.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use parking_lot::Mutex;
use tokio::task::JoinError;

use crate::failure::FunctionError;
use crate::function::FunctionName;
use crate::manifest::Network;
use crate::sandbox::kit::{Call, Fault, Handler, Simple};
use crate::sandbox::{
    Capabilities, Created, SandboxError, SandboxErrorKind, SandboxFactory, SandboxSpec,
};
use crate::time::{Clock, SystemClock};

/// Makes sandboxes that run closures, registered by the function's name.
///
/// Clones share the functions and instances. A closure gets the body unchanged; the reply has status 200
/// and the bytes that it returns, as `application/json`. When a closure panics, its instance crashes.
#[derive(Clone)]
pub struct MemorySandboxFactory {
    functions: Arc<Mutex<Functions>>,
    kind: Simple,
}

type Functions = BTreeMap<FunctionName, MemoryFunction>;

type Outcome = Result<Bytes, FunctionError>;

type Init = Arc<dyn Fn() -> BoxFuture<'static, Result<(), FunctionError>> + Send + Sync>;

/// A function as a closure, and what its instances do first.
#[derive(Clone)]
pub struct MemoryFunction {
    init: Option<Init>,
    handler: Arc<dyn Fn(Bytes) -> BoxFuture<'static, Outcome> + Send + Sync>,
}

impl MemoryFunction {
    /// A closure that may block. It cannot be stopped: an instance that is destroyed in the middle
    /// of a call leaves the closure to run to its end, without an answer.
    pub fn new(handler: impl Fn(Bytes) -> Outcome + Send + Sync + 'static) -> Self {
        let handler = Arc::new(handler);
        MemoryFunction::from_async(move |body| {
            let handler = Arc::clone(&handler);
            async move { joined(tokio::task::spawn_blocking(move || handler(body)).await) }
        })
    }

    /// A closure that does not block. Destroying the instance drops its future.
    pub fn from_async<F>(handler: impl Fn(Bytes) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let handler = Arc::new(move |body| handler(body).boxed());
        MemoryFunction { init: None, handler }
    }

    /// The same with something to do, and to fail at, when an instance starts.
    pub fn with_init<F>(mut self, init: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), FunctionError>> + Send + 'static,
    {
        self.init = Some(Arc::new(move || init().boxed()));
        self
    }
}

impl fmt::Debug for MemoryFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryFunction")
    }
}

/// A panic goes on in the task that waits, which is the instance's.
fn joined<T>(result: Result<T, JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => panic!("the runtime is shutting down"),
        },
    }
}

impl MemorySandboxFactory {
    /// A factory without functions.
    pub fn new() -> Self {
        MemorySandboxFactory::with_clock(Arc::new(SystemClock::new()))
    }

    /// The same with a clock of your own.
    pub fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let functions = Arc::<Mutex<Functions>>::default();
        let registered = Arc::clone(&functions);
        let capabilities = Capabilities {
            pause: true,
            networks: vec![Network::None, Network::Host],
            ..Capabilities::none()
        };
        let start = move |spec: Arc<SandboxSpec>| {
            let registered = registered.lock();
            start(registered.get(&spec.function).cloned(), spec)
        };
        let kind = Simple::new("memory", capabilities, start).with_clock(clock);
        MemorySandboxFactory { functions, kind }
    }

    /// From now on, new instances of `name` run `handler`, which may block.
    pub fn register(
        &self,
        name: FunctionName,
        handler: impl Fn(Bytes) -> Result<Bytes, FunctionError> + Send + Sync + 'static,
    ) {
        self.register_function(name, MemoryFunction::new(handler));
    }

    /// From now on, new instances of `name` run `handler`, which is async.
    pub fn register_async<F>(
        &self,
        name: FunctionName,
        handler: impl Fn(Bytes) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Bytes, FunctionError>> + Send + 'static,
    {
        self.register_function(name, MemoryFunction::from_async(handler));
    }

    /// From now on, new instances of `name` run `function`.
    pub fn register_function(&self, name: FunctionName, function: MemoryFunction) {
        self.functions.lock().insert(name, function);
    }
}

impl Default for MemorySandboxFactory {
    fn default() -> Self {
        MemorySandboxFactory::new()
    }
}

impl fmt::Debug for MemorySandboxFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = self.functions.lock();
        f.debug_struct("MemorySandboxFactory")
            .field("functions", &functions.keys())
            .field("lives", self.kind.lives())
            .finish()
    }
}

async fn start(
    function: Option<MemoryFunction>,
    spec: Arc<SandboxSpec>,
) -> Result<MemoryFunction, SandboxError> {
    let function = function.ok_or_else(|| {
        let message =
            format!("no closure is registered for {}; call register first", spec.function);
        SandboxError::new(SandboxErrorKind::Unsupported, message)
    })?;
    if let Some(init) = &function.init {
        init().await.map_err(SandboxError::init)?;
    }
    Ok(function)
}

#[async_trait]
impl Handler for MemoryFunction {
    async fn answer(&self, call: Call) -> Result<Response<Bytes>, Fault> {
        let mut response = Response::new((self.handler)(call.body).await?);
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        Ok(response)
    }
}

#[async_trait]
impl SandboxFactory for MemorySandboxFactory {
    fn kind(&self) -> &'static str {
        self.kind.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.kind.capabilities()
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        self.kind.create(spec).await
    }

    async fn shutdown(&self) {
        self.kind.shutdown().await;
    }
}
