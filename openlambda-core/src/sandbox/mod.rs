//! The sandbox contract: where an instance of a function runs.
//!
//! A [`SandboxFactory`] makes [`Sandbox`]es. A sandbox holds one instance of one function for its
//! whole life:
//!
//! ```text
//!            create                 invoke × n               destroy, drop, exit
//! (nothing) ───────▶ ready, idle ◀──────────────▶ busy ───────────────────────▶ (nothing)
//!                        │  ▲
//!                  pause ▼  │ resume
//!                       paused
//! ```
//!
//! Implementations: `process` and others in `openlambda-sandbox`, [`memory`](crate::memory) here.
//! Every one runs the suite in `conformance::sandbox`, which demands exactly what the factory's
//! [`Capabilities`] declare. [`kit`] (feature `kit`) has what they share; a new kind builds on it.

#[cfg(feature = "kit")]
pub mod kit;
mod log;
mod zygote;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, LengthLimitError};
use serde::Serialize;
use thiserror::Error;

use crate::failure::{Culprit, Failure, FailureKind, FunctionError, Started};
use crate::function::{Digest, FunctionName, Version};
use crate::invocation::{Body, Invocation, Reply, RequestId, StartKind};
use crate::manifest::{Manifest, Network};

pub use log::{LogLine, LogSink, LogStream, NoLog};
pub use zygote::{ZygoteId, ZygoteSpec};

/// Makes sandboxes of one kind.
///
/// **Concurrency**: all methods may be called from many tasks at once; `create` calls do not wait
/// for each other beyond what the kernel imposes.
///
/// **Cancellation**: dropping the future of `create` leaves nothing behind; what it had made is
/// torn down by the factory's reaper.
///
/// **Drop**: the factory's Drop lets its reaper finish what it has; [`shutdown`](Self::shutdown)
/// waits for it.
#[async_trait]
pub trait SandboxFactory: Send + Sync + fmt::Debug {
    /// The kind's name in configuration: `process`, `docker`, `sock`.
    fn kind(&self) -> &'static str;

    /// What sandboxes of this factory do and enforce here, on this machine, as this user. Constant
    /// over the factory's life.
    fn capabilities(&self) -> Capabilities;

    /// Makes a sandbox with a running instance: resolves when the instance has asked for its first
    /// event, so its initialisation is over.
    ///
    /// Where the spec names a [zygote](SandboxSpec::zygote), the instance is forked from it, or not
    /// made at all.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]; nothing is left of the attempt. [`SandboxErrorKind::NoZygote`] when the zygote
    /// is not there: make the sandbox without it.
    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError>;

    /// Makes a zygote, from which [`create`](Self::create) can fork instances: resolves when all that
    /// the spec wants is loaded. Only with [`Capabilities::fork`]; by default it is refused.
    ///
    /// The zygote is a sandbox without slots, which counts and ends like any other: see [`ZygoteSpec`].
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Unsupported`]; else as `create`: [`SandboxErrorKind::Init`] when something
    /// cannot be loaded, [`SandboxErrorKind::NoZygote`] when its parent is not there.
    async fn create_zygote(&self, _spec: ZygoteSpec) -> Result<Created, SandboxError> {
        Err(cannot("be forked from zygotes"))
    }

    /// Removes what an earlier, crashed worker with the same state folder left. Called once before
    /// the first `create`. By default it does nothing, which suits a kind whose sandboxes never outlive
    /// their worker.
    async fn reclaim(&self) -> Report {
        Report::default()
    }

    /// Destroys everything the factory has made and waits until it is gone.
    async fn shutdown(&self);
}

/// A running instance of a function.
///
/// **Concurrency**: `invoke` may be called up to [`slots`](Self::slots) times at once; one call
/// more is refused with [`SandboxErrorKind::Busy`].
///
/// **Cancellation**: dropping the future of `invoke`, or its [`Reply`], does *not* free the slot:
/// it is busy until the handler has answered or was killed, as [`Reply::done`] tells.
///
/// **Ordering**: `pause` is called only while all slots are idle, and `invoke` never while paused;
/// otherwise they fail with [`SandboxErrorKind::Busy`] and [`SandboxErrorKind::Paused`].
///
/// **Drop** hands the instance to the factory's reaper, which kills it and removes all that
/// belongs to it; [`destroy`](Self::destroy) does the same and waits.
#[async_trait]
pub trait Sandbox: Send + Sync + fmt::Debug {
    /// Delivers the invocation to the handler and waits for the head of its reply.
    ///
    /// The sandbox does not enforce the deadline: it passes it on to the handler, and the caller ends the
    /// sandbox when the time is over.
    ///
    /// # Errors
    ///
    /// [`SandboxError`]: a handler that raised is [`SandboxErrorKind::Function`], and the instance
    /// lives on unless [`SandboxError::reusable`] says otherwise.
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError>;

    /// Resolves when the instance is gone, for whatever reason; at once if it is gone already.
    async fn exited(&self) -> Exit;

    /// How many invocations it takes at once. Constant.
    fn slots(&self) -> u32;

    /// Stops all its processes from running until `resume`. Only with [`Capabilities::pause`]; by
    /// default it is refused.
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Busy`]; [`SandboxErrorKind::Exited`] when the instance is gone;
    /// [`SandboxErrorKind::Unsupported`].
    async fn pause(&self) -> Result<(), SandboxError> {
        Err(cannot("be paused"))
    }

    /// Lets a paused instance run again; nothing happens to a running one. Only with
    /// [`Capabilities::pause`]; by default it is refused.
    ///
    /// # Errors
    ///
    /// The instance is gone; [`SandboxErrorKind::Unsupported`].
    async fn resume(&self) -> Result<(), SandboxError> {
        Err(cannot("be resumed"))
    }

    /// Changes its memory limit, in bytes. Only with [`Capabilities::memory_limit`]; by default it is
    /// refused.
    ///
    /// # Errors
    ///
    /// The instance is gone, or the limit cannot be changed; [`SandboxErrorKind::Unsupported`].
    async fn set_memory_limit(&self, _bytes: u64) -> Result<(), SandboxError> {
        Err(cannot("be limited in memory"))
    }

    /// Its present use of resources; by default it is not known.
    ///
    /// # Errors
    ///
    /// The instance is gone; [`SandboxErrorKind::Unsupported`] where the use is not known.
    async fn usage(&self) -> Result<Usage, SandboxError> {
        Err(cannot("tell what they use"))
    }

    /// Kills everything inside and removes what belongs to it; resolves when that is done. May be
    /// called at any time and more than once.
    async fn destroy(&self);
}

fn cannot(what: &str) -> SandboxError {
    let message = format!("sandboxes of this kind cannot {what}; use another kind");
    SandboxError::new(SandboxErrorKind::Unsupported, message)
}

/// What a sandbox is made from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SandboxSpec {
    /// The function.
    pub function: FunctionName,
    /// Its version, where the caller knows it.
    pub version: Option<Version>,
    /// The version with which its present life began, where its registry knows that. Volumes of
    /// another life are not its own; see [`volumes_of`](SandboxSpec::volumes_of).
    pub born: Option<Version>,
    /// The bundle's digest.
    pub digest: Digest,
    /// The folder with the unpacked bundle. Shared by all instances: sandboxes treat it as
    /// read-only.
    pub code: PathBuf,
    /// What the function is and may use.
    pub manifest: Arc<Manifest>,
    /// How long the instance may take until it asks for its first event.
    pub init_timeout: Duration,
    /// What it is for. Only [`Work::Serve`] where [`Capabilities::compiles`] does not hold.
    pub work: Work,
    /// Where its output goes.
    pub log: Arc<dyn LogSink>,
    /// What it is to be forked from; `None`, the default: it is made from nothing. Only with
    /// [`Capabilities::fork`].
    pub zygote: Option<ZygoteId>,
}

impl SandboxSpec {
    /// The spec of an instance of `function` whose unpacked bundle is in `code`.
    pub fn new(
        function: FunctionName,
        digest: Digest,
        code: PathBuf,
        manifest: Arc<Manifest>,
        log: Arc<dyn LogSink>,
    ) -> Self {
        let init_timeout = manifest.timeout().max(Duration::from_secs(10));
        SandboxSpec {
            function,
            version: None,
            born: None,
            digest,
            code,
            manifest,
            init_timeout,
            work: Work::default(),
            log,
            zygote: None,
        }
    }

    /// Hands what the function printed to its log, a line for each line of `printed`. `call` is the
    /// invocation that was running, when there was exactly one.
    pub fn print(&self, call: Option<&RequestId>, stream: LogStream, printed: &[u8]) {
        for line in String::from_utf8_lossy(printed).lines() {
            let call = call.map(RequestId::as_str);
            self.log.line(LogLine::new(&self.function, call, stream, line));
        }
    }

    /// What the folder of the function's volumes is called, in the one of its namespace.
    pub fn volumes_of(&self) -> String {
        volumes_of(&self.function, self.born)
    }
}

/// What the folder of a function's volumes is called, in the one of its namespace: `chat` in its first
/// life, and where lives are not known, `chat@4` in the one that began with version 4.
pub fn volumes_of(function: &FunctionName, born: Option<Version>) -> String {
    match born {
        Some(Version(born)) if born > 1 => format!("{}@{born}", function.name()),
        _ => function.name().to_owned(),
    }
}

/// What a sandbox is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Work {
    /// The function answers calls.
    #[default]
    Serve,
    /// Nothing of the function runs: its Python files are compiled. The event of a call is the JSON list of
    /// their paths in the bundle. The reply is a stream: the name that compiled files of this Python have (`cpython-313`)
    /// and a line feed; then for each file that can be compiled its number in the list and the number of bytes that
    /// follow, four bytes each, the lowest first, and the content of a `.pyc` whose hash is not compared.
    Compile,
}

/// A sandbox that was made, and how.
#[derive(Debug)]
pub struct Created {
    /// The sandbox.
    pub sandbox: Arc<dyn Sandbox>,
    /// [`StartKind::Cold`] or [`StartKind::Zygote`].
    pub start: StartKind,
    /// How long making it took.
    pub create: Duration,
    /// How long its runtime took until the first request for an event.
    pub init: Duration,
}

/// The whole body of an invocation, for sandboxes that hand it over at once.
///
/// # Errors
///
/// [`SandboxErrorKind::BodyTooLarge`] and [`SandboxErrorKind::BodyLost`].
pub async fn collect_body(mut body: Body) -> Result<Bytes, SandboxError> {
    let mut whole = BytesMut::new();
    // Most bodies are one frame, which is not copied.
    let mut first = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.downcast_ref::<LengthLimitError>().is_some() {
                let message = "the request's body is too large; send less";
                return SandboxError::new(SandboxErrorKind::BodyTooLarge, message);
            }
            let message = "the request's body broke off; send it again";
            SandboxError::new(SandboxErrorKind::BodyLost, message).with_source(error)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.is_empty() && whole.is_empty() {
            first = data;
        } else {
            whole.extend_from_slice(&std::mem::take(&mut first));
            whole.extend_from_slice(&data);
        }
    }
    Ok(if whole.is_empty() { first } else { whole.freeze() })
}

/// What the sandboxes of a factory do and enforce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// Whether a function is kept from files, processes and networks that are not its own.
    pub isolation: Isolation,
    /// The manifest's memory limit is enforced.
    pub memory_limit: bool,
    /// The manifest's limit on processes is enforced.
    pub process_limit: bool,
    /// The manifest's limit on cores is enforced.
    pub cpu_limit: bool,
    /// `pause` and `resume` work.
    pub pause: bool,
    /// Pausing and resuming are worth what they cost for an instance that was without a call for so
    /// long: a few hundred microseconds, say, after a tenth of a second. `None`: only when somebody asks for
    /// it.
    pub pause_after: Option<Duration>,
    /// Sandboxes can be made that compile a bundle: [`Work::Compile`].
    pub compiles: bool,
    /// Zygotes can be made, and instances and other zygotes forked from them.
    pub fork: bool,
    /// The network kinds that are honoured; others are refused by `create`.
    pub networks: Vec<Network>,
}

impl Capabilities {
    /// Nothing is enforced, and every optional operation is unsupported.
    pub fn none() -> Self {
        Capabilities {
            isolation: Isolation::None,
            memory_limit: false,
            process_limit: false,
            cpu_limit: false,
            pause: false,
            pause_after: None,
            compiles: false,
            fork: false,
            networks: Vec::new(),
        }
    }

    /// Whether sandboxes with these capabilities can be what `spec` asks for: first thing in
    /// [`create`](SandboxFactory::create).
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Unsupported`], with what to ask for instead.
    pub fn honour(&self, spec: &SandboxSpec) -> Result<(), SandboxError> {
        if spec.zygote.is_some() && !self.fork {
            return Err(cannot("be forked from zygotes"));
        }
        if spec.work == Work::Compile && !self.compiles {
            return Err(cannot("compile bundles"));
        }
        let wanted = spec.manifest.network;
        if self.networks.contains(&wanted) {
            return Ok(());
        }
        let known = self.networks.iter().map(|network| format!("\"{}\"", network.as_str()));
        let known = known.collect::<Vec<_>>().join(" or ");
        let message = format!(
            "this kind of sandbox has no network \"{}\"; set network = {known} in ol.toml, or use \
             another kind of sandbox",
            wanted.as_str()
        );
        Err(SandboxError::new(SandboxErrorKind::Unsupported, message))
    }
}

/// How well an instance is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Isolation {
    /// Not at all: only for trusted code.
    None,
    /// By the kernel's namespaces and filters.
    Namespaces,
    /// By a second kernel: gVisor, a virtual machine.
    Kernel,
}

/// What a sandbox uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes.
    pub processes: u32,
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// It was destroyed by its owner.
    Destroyed,
    /// Its process ended by itself with this status.
    Status(i32),
    /// Its process was ended by this signal.
    Signal(i32),
    /// It was killed for using more memory than its limit.
    OutOfMemory,
    /// The sandbox broke underneath it, with the reason.
    Lost(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Destroyed => f.write_str("was ended by the worker"),
            Exit::Status(status) => write!(f, "exited with status {status}"),
            Exit::Signal(signal) => write!(f, "was ended by signal {signal}"),
            Exit::OutOfMemory => f.write_str("ran out of memory"),
            Exit::Lost(why) => write!(f, "was lost: {why}"),
        }
    }
}

/// What `reclaim` or a clean-up removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Processes that were killed.
    pub processes: u32,
    /// Files, folders, mounts, cgroups, namespaces and containers that were removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

/// Kinds of [`SandboxError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SandboxErrorKind {
    /// The spec asks for what this factory cannot do.
    Unsupported,
    /// The zygote that the spec names is not there, or not any more.
    NoZygote,
    /// The machine or engine refused: no memory, no descriptors, no engine.
    Resources,
    /// The function's code failed before it asked for its first event.
    Init,
    /// It did not ask for its first event in time.
    InitTimeout,
    /// All slots are busy.
    Busy,
    /// The instance is paused.
    Paused,
    /// The handler raised.
    Function,
    /// The handler's reply breaks the protocol.
    BadReply,
    /// The request is not what the function takes: a body that is not JSON where JSON is needed.
    BadRequest,
    /// The request asks for a WebSocket, and the function's code takes none.
    NoWebSocket,
    /// The request's body is larger than the sandbox passes on.
    BodyTooLarge,
    /// The request's body broke off before it was complete.
    BodyLost,
    /// The instance ended.
    Exited,
    /// It ran out of memory.
    OutOfMemory,
}

/// What went wrong in a sandbox.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct SandboxError {
    /// The kind.
    pub kind: SandboxErrorKind,
    /// For a person.
    pub message: String,
    /// Whether the handler may have seen the invocation.
    pub started: Started,
    /// Whether the instance can take another invocation.
    pub reusable: bool,
    /// How long the handler ran, when it did.
    pub run: Duration,
    /// What the handler said, for [`SandboxErrorKind::Function`] and [`SandboxErrorKind::Init`].
    pub function_error: Option<Box<FunctionError>>,
    /// What caused it.
    #[source]
    pub source: Option<crate::invocation::BoxError>,
}

impl From<io::Error> for SandboxError {
    /// What the machine refuses: [`SandboxErrorKind::Resources`].
    fn from(error: io::Error) -> Self {
        let message = "the machine refuses what the sandbox needs";
        SandboxError::new(SandboxErrorKind::Resources, message).with_source(error)
    }
}

impl SandboxError {
    /// An error of this kind with the kind's usual values.
    pub fn new(kind: SandboxErrorKind, message: impl Into<String>) -> Self {
        use SandboxErrorKind as K;
        SandboxError {
            kind,
            message: message.into(),
            started: match kind {
                K::Function | K::BadReply | K::Exited | K::OutOfMemory => Started::Yes,
                _ => Started::No,
            },
            reusable: matches!(
                kind,
                K::Busy
                    | K::Paused
                    | K::Function
                    | K::BadReply
                    | K::BadRequest
                    | K::NoWebSocket
                    | K::BodyTooLarge
                    | K::BodyLost
            ),
            run: Duration::ZERO,
            function_error: None,
            source: None,
        }
    }

    /// The error of an instance whose code raised this before it asked for its first event.
    pub fn init(error: FunctionError) -> Self {
        let message = format!("{}: {}", error.kind, error.message);
        SandboxError::new(SandboxErrorKind::Init, message).with_function_error(error)
    }

    /// The error of a call whose handler raised this.
    pub fn raised(error: FunctionError) -> Self {
        let message = format!("{}: {}", error.kind, error.message);
        SandboxError::new(SandboxErrorKind::Function, message).with_function_error(error)
    }

    /// The error of a call to an instance that has ended so.
    pub fn ended(exit: &Exit, started: Started) -> Self {
        let kind = match exit {
            Exit::OutOfMemory => SandboxErrorKind::OutOfMemory,
            _ => SandboxErrorKind::Exited,
        };
        let message = format!("the instance {exit}");
        SandboxError { started, ..SandboxError::new(kind, message) }
    }

    /// The same with its cause.
    pub fn with_source(mut self, source: impl Into<crate::invocation::BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same with what the handler said.
    pub fn with_function_error(mut self, error: FunctionError) -> Self {
        self.function_error = Some(Box::new(error));
        self
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Failure {
        use SandboxErrorKind as K;
        let kind = match error.kind {
            K::Unsupported | K::NoZygote | K::Resources => FailureKind::StartFailed,
            K::Init | K::InitTimeout => FailureKind::InitError,
            K::Busy | K::Paused => FailureKind::Internal,
            K::Function => FailureKind::FunctionError,
            K::BadReply => FailureKind::BadReply,
            K::NoWebSocket => FailureKind::NoWebSocket,
            K::BodyTooLarge => FailureKind::BodyTooLarge,
            K::BadRequest | K::BodyLost => FailureKind::BadRequest,
            K::Exited => FailureKind::SandboxCrashed,
            K::OutOfMemory => FailureKind::OutOfMemory,
        };
        let culprit = match error.kind {
            K::Exited | K::OutOfMemory => Culprit::Function,
            _ => kind.usual_culprit(),
        };
        let message = crate::failure::chain(&error);
        Failure {
            culprit,
            started: error.started,
            function_error: error.function_error,
            ..Failure::new(kind, message)
        }
    }
}
