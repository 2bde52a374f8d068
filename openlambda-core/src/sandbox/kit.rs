//! What every kind of sandbox needs: the life of an instance, its slots, and a complete kind built from
//! an async handler.
//!
//! ```text
//! begin ─▶ runs ── end (once: the first exit counts), shutdown ─▶ exited ── slots free, cleaned ─▶ gone
//!           │                                                       │
//!           └─ slots are taken and given back; paused when idle     └─ nothing can be taken (Exited)
//! ```
//!
//! * [`Simple`] is a [`SandboxFactory`] over a function that starts a [`Handler`]: for functions that
//!   are closures, connections or scripts. It keeps most of a kind's contract.
//! * [`Lives`] and [`Life`] are the parts of `Simple`, for a kind that needs its own `invoke`.
//!
//! [`SandboxSpec::print`] hands what a function printed to its log.
//!
//! [`try_once`] is the shortest way to see one work: an instance of a folder, one call, and the end.
//!
//! Kinds whose instances are processes that speak the Lambda Runtime API (containers, virtual
//! machines) find more in `openlambda_sandbox::kit`.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use futures_util::future::{Either, select};
use http::Response;
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, RwLock, oneshot, watch};

use super::{
    Capabilities, Created, Exit, NoLog, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec, Usage, collect_body,
};
use crate::failure::{FunctionError, Started};
use crate::function::{Digest, FunctionName, NameError};
use crate::invocation::{
    BoxError, Completion, Invocation, Reply, RequestHead, RequestId, RequestIds, StartKind,
    full_body,
};
use crate::manifest::Manifest;
use crate::time::{Clock, SystemClock, Time};

/// What answers the invocations of one instance.
///
/// A closure `Fn(Call) -> impl Future<Output = Result<Response<Bytes>, Fault>>` is a handler.
///
/// **Concurrency**: `answer` is called as often at once as the manifest's `concurrency` says.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers one invocation. It runs to its end even if no client waits for the answer any more; when
    /// the instance ends, its future is dropped in the middle. A panic ends the instance.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    async fn answer(&self, call: Call) -> Result<Response<Bytes>, Fault>;

    /// Called once when the instance has ended and no future of [`answer`](Self::answer) is left:
    /// removes what belongs to it and returns when that is gone. By default it does nothing.
    /// After a panic the instance counts as gone.
    async fn clean(&self) {}

    /// What the instance uses now; by default zero.
    async fn usage(&self) -> Usage {
        Usage::default()
    }
}

#[async_trait]
impl<F, A> Handler for F
where
    F: Fn(Call) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Response<Bytes>, Fault>> + Send + 'static,
{
    async fn answer(&self, call: Call) -> Result<Response<Bytes>, Fault> {
        self(call).await
    }
}

/// One invocation, as a [`Handler`] gets it: with its whole body.
#[derive(Debug)]
#[non_exhaustive]
pub struct Call {
    /// Its id.
    pub id: RequestId,
    /// When the handler should have answered, on the worker's clock. The worker ends the instance
    /// afterwards.
    pub deadline: Time,
    /// The client's request.
    pub head: RequestHead,
    /// The client's body.
    pub body: Bytes,
}

/// Why a [`Handler`] has no answer.
#[derive(Debug)]
pub enum Fault {
    /// The function raised; its instance lives on.
    Raised(FunctionError),
    /// The instance has ended by itself.
    Ended(Exit),
    /// Something else; the instance lives on.
    Other(SandboxError),
}

impl From<SandboxError> for Fault {
    fn from(error: SandboxError) -> Self {
        Fault::Other(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Other(error.into())
    }
}

impl From<FunctionError> for Fault {
    fn from(error: FunctionError) -> Self {
        Fault::Raised(error)
    }
}

type Start = dyn Fn(Arc<SandboxSpec>) -> BoxFuture<'static, Result<Arc<dyn Handler>, SandboxError>>
    + Send
    + Sync;

/// A kind of sandbox around an async function that starts a [`Handler`].
///
/// It keeps the contract of [`SandboxFactory`] and [`Sandbox`] for that handler: slots, time to
/// start, crashes, pauses, Drop and shutdown. Clones share the instances.
///
/// ```
/// use openlambda_core::manifest::Network;
/// use openlambda_core::sandbox::Capabilities;
/// use openlambda_core::sandbox::kit::{Call, Simple};
///
/// let mut capabilities = Capabilities::none();
/// capabilities.networks = vec![Network::None, Network::Host];
/// // Every function is its own name and the body.
/// let factory = Simple::new("parrot", capabilities, |spec| async move {
///     let name = spec.function.to_string();
///     Ok(move |call: Call| {
///         let answer = [name.as_bytes(), &call.body].concat();
///         async move { Ok(http::Response::new(answer.into())) }
///     })
/// });
/// ```
#[derive(Clone)]
pub struct Simple {
    kind: &'static str,
    capabilities: Capabilities,
    start: Arc<Start>,
    clock: Arc<dyn Clock>,
    lives: Lives,
}

impl Simple {
    /// The kind with this name in configuration.
    ///
    /// `start` makes the handler of a new instance within the spec's `init_timeout`. Its future is dropped
    /// when it takes longer, or when the caller does not want the instance any more. Return
    /// [`SandboxError::init`] for code that cannot start. With [`Capabilities::pause`], a paused instance
    /// only takes no calls, so do not declare it for handlers that do something between calls.
    pub fn new<S, F, H>(kind: &'static str, capabilities: Capabilities, start: S) -> Self
    where
        S: Fn(Arc<SandboxSpec>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<H, SandboxError>> + Send + 'static,
        H: Handler,
    {
        let start = Arc::new(move |spec| {
            start(spec).map(|started| started.map(|h| Arc::new(h) as Arc<dyn Handler>)).boxed()
        });
        let (clock, lives) = (Arc::new(SystemClock::new()), Lives::new());
        Simple { kind, capabilities, start, clock, lives }
    }

    /// The same with a clock of your own, which the durations in [`Created`] and [`Completion`] are
    /// measured with.
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Simple { clock, ..self }
    }

    /// The instances that are not gone.
    pub fn lives(&self) -> &Lives {
        &self.lives
    }
}

impl fmt::Debug for Simple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simple").field("kind", &self.kind).field("lives", &self.lives).finish()
    }
}

#[async_trait]
impl SandboxFactory for Simple {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        self.capabilities.honour(&spec)?;
        let permit = self.lives.permit().await?;
        let begin = self.clock.now();
        let spec = Arc::new(spec);
        let started = tokio::time::timeout(spec.init_timeout, (self.start)(Arc::clone(&spec)));
        let handler = started.await.unwrap_or_else(|_| {
            let message = format!(
                "the instance did not ask for its first event within {:?}; do less when it starts",
                spec.init_timeout
            );
            Err(SandboxError::new(SandboxErrorKind::InitTimeout, message))
        })?;
        let life = match self.lives.begin(spec.manifest.concurrency) {
            Ok(life) => life,
            Err(error) => {
                // A task of its own: `shutdown` waits for it, whoever waits for `create`.
                let cleaned = tokio::spawn(async move {
                    clean(&*handler).await;
                    drop(permit);
                });
                let _ = cleaned.await;
                return Err(error);
            }
        };
        let init = self.clock.now().since(begin);
        let cleaner = (life.clone(), Arc::clone(&handler));
        tokio::spawn(async move {
            let (life, handler) = cleaner;
            life.idle_for_ever().await;
            clean(&*handler).await;
            life.set_gone();
        });
        let (pause, clock) = (self.capabilities.pause, Arc::clone(&self.clock));
        let sandbox = Arc::new(SimpleSandbox { life, handler, pause, clock });
        Ok(Created { sandbox, start: StartKind::Cold, create: Duration::ZERO, init })
    }

    async fn shutdown(&self) {
        self.lives.shutdown().await;
    }
}

/// The owner's handle; Drop ends the instance.
struct SimpleSandbox {
    life: Life,
    handler: Arc<dyn Handler>,
    pause: bool,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for SimpleSandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimpleSandbox").field(&self.life).finish()
    }
}

impl Drop for SimpleSandbox {
    fn drop(&mut self) {
        self.life.end(Exit::Destroyed);
    }
}

#[async_trait]
impl Sandbox for SimpleSandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        let slot = self.life.take_slot()?;
        let Invocation { id, deadline, head, body, .. } = invocation;
        let body = std::pin::pin!(collect_body(body));
        let body = match select(body, std::pin::pin!(self.life.exited())).await {
            Either::Left((body, _)) => body?,
            Either::Right((exit, _)) => return Err(SandboxError::ended(&exit, Started::No)),
        };
        let call = Call { id, deadline, head, body };
        let (handler, clock) = (Arc::clone(&self.handler), Arc::clone(&self.clock));
        let (reply, answer) = oneshot::channel();
        // A task of its own: dropping `invoke` must not free the slot while the handler runs.
        tokio::spawn(async move {
            let begin = clock.now();
            let result = run(&slot.0, &*handler, call).await;
            let run = clock.now().since(begin);
            // Free before anybody hears that it is over.
            drop(slot);
            let _ = reply.send((run, result));
        });
        let lost = Exit::Lost("the runtime is shutting down".to_owned());
        let answer = answer.await.map_err(|_| SandboxError::ended(&lost, Started::Maybe));
        let (run, result) = answer?;
        let (head, body) = result.map_err(|error| SandboxError { run, ..error })?.into_parts();
        let done = Completion { run, reusable: true, failure: None };
        Ok(Reply {
            status: head.status,
            headers: head.headers,
            body: full_body(body),
            done: async move { done }.boxed(),
        })
    }

    async fn exited(&self) -> Exit {
        self.life.exited().await
    }

    fn slots(&self) -> u32 {
        self.life.slots()
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        match self.pause {
            true => self.life.pause(),
            false => Err(super::cannot("be paused")),
        }
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        self.life.resume()
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        self.life.alive()?;
        Ok(self.handler.usage().await)
    }

    async fn destroy(&self) {
        self.life.end(Exit::Destroyed);
        self.life.gone().await;
    }
}

/// Runs one call to its end or the instance's.
async fn run(
    life: &Life,
    handler: &dyn Handler,
    call: Call,
) -> Result<Response<Bytes>, SandboxError> {
    life.alive()?;
    let answer = AssertUnwindSafe(handler.answer(call)).catch_unwind();
    let exit = match select(std::pin::pin!(answer), std::pin::pin!(life.exited())).await {
        Either::Left((Ok(Ok(response)), _)) => return Ok(response),
        Either::Left((Ok(Err(Fault::Raised(error))), _)) => {
            return Err(SandboxError::raised(error));
        }
        Either::Left((Ok(Err(Fault::Other(error))), _)) => return Err(error),
        Either::Left((Ok(Err(Fault::Ended(exit))), _)) => exit,
        Either::Left((Err(panic), _)) => Exit::Lost(format!("panicked: {}", text_of(&*panic))),
        Either::Right((exit, _)) => exit,
    };
    life.end(exit.clone());
    Err(SandboxError::ended(&exit, Started::Yes))
}

/// Cleans up after an instance. Other tasks wait for what follows, so a panic, which the panic hook has
/// reported, ends here.
async fn clean(handler: &dyn Handler) {
    let _ = AssertUnwindSafe(handler.clean()).catch_unwind().await;
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

/// Makes an instance of the function in `code`, a folder with its files and maybe an `ol.toml`, calls it
/// once, destroys it, and returns the body of the reply.
///
/// # Errors
///
/// As [`SandboxFactory::create`] and [`Sandbox::invoke`]; a manifest that is not valid.
pub async fn try_once(
    factory: &dyn SandboxFactory,
    code: &Path,
    body: impl Into<Bytes>,
) -> Result<Bytes, SandboxError> {
    let invalid = |error: BoxError| SandboxError {
        source: Some(error),
        ..SandboxError::new(SandboxErrorKind::Unsupported, "the function is not valid")
    };
    let manifest = Manifest::load(code).map_err(|error| invalid(error.into()))?;
    let function: FunctionName =
        "tried".parse().map_err(|error: NameError| invalid(error.into()))?;
    let digest = Digest::from_bytes([0; 32]);
    let spec = SandboxSpec::new(
        function.clone(),
        digest,
        code.into(),
        Arc::new(manifest),
        Arc::new(NoLog),
    );
    let sandbox = factory.create(spec).await?.sandbox;
    let call = Invocation::new(RequestIds::new(0).next(), function, body.into());
    let answer = async { collect_body(sandbox.invoke(call).await?.body).await }.await;
    sandbox.destroy().await;
    answer
}

/// The instances of one factory, from their beginning until they are gone. Clones share them.
#[derive(Clone, Default)]
pub struct Lives {
    shared: Arc<Mutex<Live>>,
    /// Read while an instance is being started; `shutdown` waits for those by writing.
    starting: Arc<RwLock<()>>,
}

/// The right to start an instance: while it is held, a shutdown waits.
#[derive(Debug)]
pub struct Permit {
    _starting: OwnedRwLockReadGuard<()>,
}

#[derive(Default)]
struct Live {
    shut_down: bool,
    next_id: u64,
    lives: BTreeMap<u64, Life>,
}

impl Live {
    fn admit(&self) -> Result<(), SandboxError> {
        if self.shut_down {
            let message = "the worker is shutting down; use another worker";
            return Err(SandboxError::new(SandboxErrorKind::Resources, message));
        }
        Ok(())
    }
}

impl Lives {
    /// None yet.
    pub fn new() -> Self {
        Lives::default()
    }

    /// Allows one start. Hold the permit from before anything of the instance is made until the life has
    /// [begun](Self::begin), or, if it cannot begin, until everything made for it is removed.
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Resources`] after [`shutdown`](Self::shutdown).
    pub async fn permit(&self) -> Result<Permit, SandboxError> {
        let starting = Arc::clone(&self.starting).read_owned().await;
        self.shared.lock().admit()?;
        Ok(Permit { _starting: starting })
    }

    /// An instance with this many slots begins to live.
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Resources`] after [`shutdown`](Self::shutdown).
    pub fn begin(&self, slots: u32) -> Result<Life, SandboxError> {
        let mut live = self.shared.lock();
        live.admit()?;
        let id = live.next_id;
        live.next_id += 1;
        let life = Life(Arc::new(One {
            id,
            slots,
            lives: self.clone(),
            paused: Mutex::new(false),
            busy: watch::channel(0).0,
            stage: watch::channel(Stage::Runs).0,
        }));
        live.lives.insert(id, life.clone());
        Ok(life)
    }

    /// How many are not gone.
    pub fn count(&self) -> usize {
        self.shared.lock().lives.len()
    }

    /// Ends all with [`Exit::Destroyed`] and waits until they are gone, and until no
    /// [`Permit`] is held. None begins afterwards.
    pub async fn shutdown(&self) {
        let lives: Vec<Life> = {
            let mut live = self.shared.lock();
            live.shut_down = true;
            live.lives.values().cloned().collect()
        };
        for life in &lives {
            life.end(Exit::Destroyed);
        }
        drop(self.starting.write().await);
        for life in lives {
            life.gone().await;
        }
    }
}

impl fmt::Debug for Lives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lives").field("count", &self.count()).finish()
    }
}

/// The life of one instance: whether it runs, its slots, and how it ended. Clones share it.
///
/// The code that begins a life also ends it: it waits for [`idle_for_ever`](Self::idle_for_ever), cleans
/// up, and calls [`set_gone`](Self::set_gone).
#[derive(Clone)]
pub struct Life(Arc<One>);

struct One {
    id: u64,
    slots: u32,
    lives: Lives,
    /// Held while slots are taken, and while the instance is paused or ended.
    paused: Mutex<bool>,
    /// Slots that are taken.
    busy: watch::Sender<u32>,
    stage: watch::Sender<Stage>,
}

#[derive(Clone, Debug)]
enum Stage {
    Runs,
    Exited(Exit),
    Gone(Exit),
}

impl Stage {
    fn exit(&self) -> Option<&Exit> {
        match self {
            Stage::Runs => None,
            Stage::Exited(exit) | Stage::Gone(exit) => Some(exit),
        }
    }
}

impl Life {
    /// How many slots it has.
    pub fn slots(&self) -> u32 {
        self.0.slots
    }

    /// How many of them are taken.
    pub fn busy(&self) -> u32 {
        *self.0.busy.borrow()
    }

    /// Whether it runs.
    ///
    /// # Errors
    ///
    /// How it ended, as the error of a call that has not started.
    pub fn alive(&self) -> Result<(), SandboxError> {
        match self.0.stage.borrow().exit() {
            Some(exit) => Err(SandboxError::ended(exit, Started::No)),
            None => Ok(()),
        }
    }

    /// Takes a slot, which is busy until the [`Slot`] is dropped.
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Busy`], [`SandboxErrorKind::Paused`], or the instance has ended.
    pub fn take_slot(&self) -> Result<Slot, SandboxError> {
        let paused = self.0.paused.lock();
        self.alive()?;
        if *paused {
            let message = "the instance is paused; resume it first";
            return Err(SandboxError::new(SandboxErrorKind::Paused, message));
        }
        if self.busy() >= self.0.slots {
            let message = "all slots of the instance are busy; use another instance, or wait";
            return Err(SandboxError::new(SandboxErrorKind::Busy, message));
        }
        self.0.busy.send_modify(|busy| *busy += 1);
        Ok(Slot(self.clone()))
    }

    /// From now on no slot can be taken, until [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Busy`] while a slot is taken, or the instance has ended.
    pub fn pause(&self) -> Result<(), SandboxError> {
        let mut paused = self.0.paused.lock();
        self.alive()?;
        if self.busy() > 0 {
            let message = "the instance is busy; pause it when its invocations are over";
            return Err(SandboxError::new(SandboxErrorKind::Busy, message));
        }
        *paused = true;
        Ok(())
    }

    /// Slots can be taken again; nothing happens to an instance that is not paused.
    ///
    /// # Errors
    ///
    /// The instance has ended.
    pub fn resume(&self) -> Result<(), SandboxError> {
        let mut paused = self.0.paused.lock();
        self.alive()?;
        *paused = false;
        Ok(())
    }

    /// The instance has ended with `exit`. Only the first of several ends counts; returns whether this
    /// was it.
    pub fn end(&self, exit: Exit) -> bool {
        let _no_slot_is_taken_meanwhile = self.0.paused.lock();
        self.0.stage.send_if_modified(|stage| {
            let runs = matches!(stage, Stage::Runs);
            if runs {
                *stage = Stage::Exited(exit);
            }
            runs
        })
    }

    /// Resolves when it has ended, with how; at once if it has already.
    pub async fn exited(&self) -> Exit {
        let mut stage = self.0.stage.subscribe();
        let stage = stage.wait_for(|stage| stage.exit().is_some()).await;
        stage.ok().and_then(|stage| stage.exit().cloned()).unwrap_or(Exit::Destroyed)
    }

    /// Resolves when it has ended and all its slots are free: then nothing of it runs any more, and
    /// it can be cleaned up after.
    pub async fn idle_for_ever(&self) {
        self.exited().await;
        let _ = self.0.busy.subscribe().wait_for(|busy| *busy == 0).await;
    }

    /// Everything of the instance is removed. Call it once, after
    /// [`idle_for_ever`](Self::idle_for_ever) and the clean-up.
    pub fn set_gone(&self) {
        self.0.lives.shared.lock().lives.remove(&self.0.id);
        self.0.stage.send_modify(|stage| {
            *stage = Stage::Gone(stage.exit().cloned().unwrap_or(Exit::Destroyed));
        });
    }

    /// Resolves after [`set_gone`](Self::set_gone).
    pub async fn gone(&self) {
        let mut stage = self.0.stage.subscribe();
        let _ = stage.wait_for(|stage| matches!(stage, Stage::Gone(_))).await;
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life")
            .field("id", &self.0.id)
            .field("busy", &self.busy())
            .field("stage", &*self.0.stage.borrow())
            .finish_non_exhaustive()
    }
}

/// A slot that is taken; free again when dropped.
#[derive(Debug)]
pub struct Slot(Life);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.busy.send_modify(|busy| *busy -= 1);
    }
}
