//! Sandboxes whose functions are Rust closures in this process.
//!
//! [`MemorySandboxFactory`] honours the whole contract of [`Sandbox`] without a process or a file:
//! for programs that embed a cluster, and for tests of everything above a sandbox.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle};

use crate::failure::{Failure, FunctionError, Started};
use crate::function::FunctionName;
use crate::invocation::{Completion, Invocation, Reply, StartKind, full_body};
use crate::manifest::Network;
use crate::sandbox::{
    Capabilities, Created, Exit, Report, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec, Usage, collect_body,
};
use crate::time::{Clock, SystemClock, Time};

/// Makes sandboxes that run closures, registered by the function's name.
///
/// Clones share the functions and instances. A closure gets the body as it came and answers with
/// status 200 and the bytes that it returns, as `application/json`. A closure that panics is an
/// instance that crashed.
#[derive(Clone)]
pub struct MemorySandboxFactory {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    functions: BTreeMap<FunctionName, MemoryFunction>,
    shut_down: bool,
    next_id: u64,
    live: BTreeMap<u64, Arc<Instance>>,
}

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
    /// of a call leaves the closure to run to its end, unheard.
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
        MemorySandboxFactory { shared: Arc::new(Shared { clock, state: Mutex::default() }) }
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
        self.shared.lock().functions.insert(name, function);
    }
}

impl Default for MemorySandboxFactory {
    fn default() -> Self {
        MemorySandboxFactory::new()
    }
}

impl fmt::Debug for MemorySandboxFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("MemorySandboxFactory")
            .field("functions", &state.functions.keys())
            .field("instances", &state.live.len())
            .finish()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl SandboxFactory for MemorySandboxFactory {
    fn kind(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            networks: vec![Network::None, Network::Host],
            ..Capabilities::none()
        }
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        use SandboxErrorKind as K;
        let begin = self.shared.clock.now();
        if !self.capabilities().networks.contains(&spec.manifest.network) {
            let message = "closures share this process's network; set network = \"host\"";
            return Err(SandboxError::new(K::Unsupported, message));
        }
        let function = self.shared.lock().functions.get(&spec.function).cloned();
        let Some(function) = function else {
            let message =
                format!("no closure is registered for {}; call register first", spec.function);
            return Err(SandboxError::new(K::Unsupported, message));
        };
        if let Some(init) = &function.init {
            match tokio::time::timeout(spec.init_timeout, init()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let message = format!("{}: {}", error.kind, error.message);
                    return Err(SandboxError::new(K::Init, message).with_function_error(error));
                }
                Err(_) => {
                    let message = format!(
                        "the instance did not ask for its first event within {:?}; do less when \
                         it starts",
                        spec.init_timeout
                    );
                    return Err(SandboxError::new(K::InitTimeout, message));
                }
            }
        }
        let mut state = self.shared.lock();
        if state.shut_down {
            return Err(SandboxError::new(K::Resources, "the worker is shutting down"));
        }
        let id = state.next_id;
        state.next_id += 1;
        let instance = Arc::new(Instance {
            shared: Arc::clone(&self.shared),
            id,
            slots: spec.manifest.concurrency,
            function,
            state: Mutex::default(),
            exit: watch::channel(None).0,
            busy: watch::channel(0).0,
        });
        state.live.insert(id, Arc::clone(&instance));
        let init = self.shared.clock.now().since(begin);
        let sandbox = Arc::new(MemorySandbox { instance });
        Ok(Created { sandbox, start: StartKind::Cold, create: Duration::ZERO, init })
    }

    async fn reclaim(&self) -> Report {
        Report::default()
    }

    async fn shutdown(&self) {
        let live: Vec<_> = {
            let mut state = self.shared.lock();
            state.shut_down = true;
            state.live.values().cloned().collect()
        };
        for instance in live {
            instance.destroy().await;
        }
    }
}

/// The owner's handle; Drop ends the instance.
#[derive(Debug)]
struct MemorySandbox {
    instance: Arc<Instance>,
}

impl Drop for MemorySandbox {
    fn drop(&mut self) {
        self.instance.end(Exit::Destroyed);
    }
}

struct Instance {
    shared: Arc<Shared>,
    id: u64,
    slots: u32,
    function: MemoryFunction,
    state: Mutex<Life>,
    exit: watch::Sender<Option<Exit>>,
    /// Slots that are taken.
    busy: watch::Sender<u32>,
}

#[derive(Default)]
struct Life {
    paused: bool,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Instance {
    fn lock(&self) -> MutexGuard<'_, Life> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|now| {
            let alive = now.is_none();
            if alive {
                *now = Some(exit);
            }
            alive
        });
        self.shared.lock().live.remove(&self.id);
    }

    async fn destroy(&self) {
        self.end(Exit::Destroyed);
        let mut busy = self.busy.subscribe();
        let _ = busy.wait_for(|busy| *busy == 0).await;
    }

    fn alive(&self) -> Result<(), SandboxError> {
        match &*self.exit.borrow() {
            Some(exit) => Err(ended(exit, Started::No)),
            None => Ok(()),
        }
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Destroyed)
    }

    fn reserve(self: &Arc<Self>) -> Result<Slot, SandboxError> {
        let life = self.lock();
        self.alive()?;
        if life.paused {
            let message = "the instance is paused; resume it first";
            return Err(SandboxError::new(SandboxErrorKind::Paused, message));
        }
        if *self.busy.borrow() >= self.slots {
            let message = "all slots of the instance are busy; use another instance, or wait";
            return Err(SandboxError::new(SandboxErrorKind::Busy, message));
        }
        self.busy.send_modify(|busy| *busy += 1);
        Ok(Slot(Arc::clone(self)))
    }
}

/// A taken slot, free again when dropped.
struct Slot(Arc<Instance>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.busy.send_modify(|busy| *busy -= 1);
    }
}

fn ended(exit: &Exit, started: Started) -> SandboxError {
    let message = format!("the instance {exit}");
    SandboxError { started, ..SandboxError::new(SandboxErrorKind::Exited, message) }
}

/// Runs one call to its end, whoever still waits for it.
async fn run(slot: Slot, body: Bytes, begin: Time, reply: oneshot::Sender<Answer>) {
    let instance = Arc::clone(&slot.0);
    let call: JoinHandle<Outcome> = tokio::spawn((instance.function.handler)(body));
    let abort = call.abort_handle();
    let exited = std::pin::pin!(instance.exited());
    let result = match select(call, exited).await {
        Either::Left((Ok(Ok(bytes)), _)) => Ok(bytes),
        Either::Left((Ok(Err(error)), _)) => {
            let message = format!("{}: {}", error.kind, error.message);
            let kind = SandboxErrorKind::Function;
            Err(SandboxError::new(kind, message).with_function_error(error))
        }
        Either::Left((Err(panic), _)) => {
            let exit = Exit::Lost(panic.to_string());
            instance.end(exit.clone());
            Err(ended(&exit, Started::Yes))
        }
        Either::Right((exit, _)) => {
            abort.abort();
            Err(ended(&exit, Started::Yes))
        }
    };
    let run = instance.shared.clock.now().since(begin);
    // Free before anybody hears that it is over.
    drop(slot);
    let _ = reply.send((run, result));
}

type Answer = (Duration, Result<Bytes, SandboxError>);

#[async_trait]
impl Sandbox for MemorySandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        let slot = self.instance.reserve()?;
        let body = collect_body(invocation.body).await?;
        let begin = self.instance.shared.clock.now();
        let (reply, answer) = oneshot::channel();
        tokio::spawn(run(slot, body, begin, reply));
        let lost = || ended(&Exit::Lost("the runtime is shutting down".into()), Started::Maybe);
        let (run, result) = answer.await.map_err(|_| lost())?;
        let bytes = result.map_err(|error| SandboxError { run, ..error })?;
        let done = Completion { run, reusable: true, failure: None::<Failure> };
        let json = HeaderValue::from_static("application/json");
        Ok(Reply {
            status: StatusCode::OK,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, json)]),
            body: full_body(bytes),
            done: async move { done }.boxed(),
        })
    }

    async fn exited(&self) -> Exit {
        self.instance.exited().await
    }

    fn slots(&self) -> u32 {
        self.instance.slots
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        let mut life = self.instance.lock();
        self.instance.alive()?;
        if *self.instance.busy.borrow() > 0 {
            let message = "the instance is busy; pause it when its invocations are over";
            return Err(SandboxError::new(SandboxErrorKind::Busy, message));
        }
        life.paused = true;
        Ok(())
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        let mut life = self.instance.lock();
        self.instance.alive()?;
        life.paused = false;
        Ok(())
    }

    async fn set_memory_limit(&self, _bytes: u64) -> Result<(), SandboxError> {
        let message = "closures have no memory limit; use another kind of sandbox";
        Err(SandboxError::new(SandboxErrorKind::Unsupported, message))
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        self.instance.alive()?;
        Ok(Usage::default())
    }

    async fn destroy(&self) {
        self.instance.destroy().await;
    }
}
