//! The Lambda Runtime API of one sandbox: how the worker and the code inside speak.
//!
//! The code asks `next` for an event, a long poll, and posts `response` or `error`. A
//! [`RuntimeApi`] is the state of that conversation: [`RuntimeApi::invoke`] is the worker's end,
//! [`RuntimeApi::serve`] the code's, over any listener.
//!
//! ```text
//! invoke ─▶ queued ── next ──▶ delivered ── POST response ──▶ answering ─▶ over
//!             │                    │           or error           │
//!             └─ dropped ─▶ over   └────── close (it exited) ─────┴─▶ over
//! ```
//!
//! Each slot runs one call through these stages, and every post is checked against them: what
//! comes for an unknown id, twice or out of order is refused and harms nobody. A call is over only
//! when the code has answered or is gone, whoever still waits for it.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::mem;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use openlambda_core::failure::{Failure, FunctionError, Started};
use openlambda_core::function::{FunctionName, Version};
use openlambda_core::invocation::{
    Body, BoxError, Completion, Invocation, Reply, RequestHead, RequestId, full_body,
};
use openlambda_core::manifest::EventFormat;
use openlambda_core::sandbox::{Exit, SandboxError, SandboxErrorKind, collect_body};
use openlambda_core::time::{Clock, Time};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::event;
use crate::output::{FunctionOutput, Running};
use crate::raw;

/// The largest buffered reply: Lambda's 6 MiB and 100 bytes. Streamed ones have no limit.
pub const REPLY_LIMIT: usize = (6 << 20) + 100;

/// A reply over the limit is read so far before it is refused, so that the code gets to read why.
const DISCARD_LIMIT: usize = 64 << 20;

/// How much of a streamed reply may come before its prelude ends.
const PRELUDE_LIMIT: usize = 64 << 10;

/// How many frames of a streamed reply wait for the client before the handler has to.
const STREAM_FRAMES: usize = 16;

/// From our bootstraps with an error after which they end.
pub const EXITING: HeaderName = HeaderName::from_static("openlambda-exiting");

const MODE: HeaderName = HeaderName::from_static("lambda-runtime-function-response-mode");
const ERROR_TYPE: HeaderName = HeaderName::from_static("lambda-runtime-function-error-type");
const ERROR_BODY: HeaderName = HeaderName::from_static("lambda-runtime-function-error-body");
const HTTP_INTEGRATION: &str = "application/vnd.awslambda.http-integration-response";

/// The conversation with the code in one sandbox. Clones share it.
#[derive(Clone, Debug)]
pub struct RuntimeApi {
    shared: Arc<Shared>,
}

/// What a [`RuntimeApi`] needs to know.
#[derive(Debug)]
pub struct RuntimeApiConfig {
    /// How many invocations run at once.
    pub slots: u32,
    /// What handlers get as their event.
    pub event: EventFormat,
    /// The function.
    pub function: FunctionName,
    /// Its version, where it is known.
    pub version: Option<Version>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Kept up to date with what runs.
    pub running: Running,
    /// Settled when an invocation begins and ends.
    pub output: Option<Arc<FunctionOutput>>,
}

/// Where a [`RuntimeApi`] listens.
#[derive(Debug)]
pub enum Listener {
    /// On a Unix socket.
    Unix(UnixListener),
    /// On a port, of the loopback interface.
    Tcp(TcpListener),
}

/// Serves until dropped; then its connections are closed.
#[derive(Debug)]
pub struct Serving(JoinHandle<()>);

impl Serving {
    /// Ends it, and waits until nothing is accepted any more.
    pub async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug)]
struct Shared {
    config: RuntimeApiConfig,
    arn: HeaderValue,
    /// The code takes requests as they came: said with its first `next`, before any call.
    takes_raw: AtomicBool,
    /// The code has something to do before its end.
    says_farewell: AtomicBool,
    /// There is news in `State::departed`.
    departures: Notify,
    state: Mutex<State>,
    stage: watch::Sender<Stage>,
}

/// How far the code has come.
#[derive(Clone, Debug)]
enum Stage {
    Init,
    Ready,
    InitFailed(FunctionError),
    Closed(Exit),
}

#[derive(Debug, Default)]
struct State {
    paused: bool,
    /// Reserved slots, of calls at any stage and of bodies on their way in.
    busy: u32,
    /// By wire id, which is the request id unless two calls at once have the same.
    calls: BTreeMap<String, Call>,
    queued: VecDeque<String>,
    /// Polls of `next`. The newest is served first: an older one may be of a connection that is
    /// gone already.
    polls: Vec<oneshot::Sender<Event>>,
    /// The last that are over, to tell "again" from "unknown".
    over: VecDeque<String>,
    /// Calls whose clients have left, until the code is told or the call over.
    departed: VecDeque<String>,
    /// No more events: the code is to end by itself.
    ending: bool,
}

#[derive(Debug)]
struct Call {
    id: RequestId,
    stage: CallStage,
    delivered: Time,
    reply: Option<oneshot::Sender<Result<Head, SandboxError>>>,
    done: oneshot::Sender<Completion>,
}

#[derive(Debug)]
enum CallStage {
    Queued(Event),
    Delivered,
    Answering,
}

/// What `next` answers.
#[derive(Clone, Debug)]
struct Event {
    wire_id: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Event {
    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.headers_mut() = self.headers;
        response
    }
}

/// A reply's head, with the body that follows it.
#[derive(Debug)]
struct Head {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
}

impl RuntimeApi {
    /// A conversation that has not begun.
    pub fn new(config: RuntimeApiConfig) -> Self {
        let arn = arn(&config.function, config.version);
        let arn = HeaderValue::from_str(&arn).expect("names have only header characters");
        let (stage, _) = watch::channel(Stage::Init);
        let shared = Shared {
            config,
            arn,
            takes_raw: AtomicBool::new(false),
            says_farewell: AtomicBool::new(false),
            departures: Notify::new(),
            state: Mutex::default(),
            stage,
        };
        RuntimeApi { shared: Arc::new(shared) }
    }

    /// Resolves when the code has asked for its first event.
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Init`] with what it reported; [`SandboxErrorKind::Exited`] after
    /// [`close`](Self::close).
    pub async fn ready(&self) -> Result<(), SandboxError> {
        let mut stage = self.shared.stage.subscribe();
        let stage = stage.wait_for(|stage| !matches!(stage, Stage::Init)).await;
        match &*stage.expect("we hold the sender") {
            Stage::Init | Stage::Ready => Ok(()),
            Stage::InitFailed(error) => {
                let message = describe(error);
                let kind = SandboxErrorKind::Init;
                Err(SandboxError::new(kind, message).with_function_error(error.clone()))
            }
            Stage::Closed(exit) => Err(ended(exit, Started::No)),
        }
    }

    /// Hands the invocation to the code and waits for the head of its reply: the whole of
    /// [`Sandbox::invoke`](openlambda_core::sandbox::Sandbox::invoke), whose contract holds.
    ///
    /// A streamed reply's frames wait for the reader, and the handler with them, a few at a time;
    /// when the reader drops the body, the rest is read and thrown away.
    ///
    /// # Errors
    ///
    /// [`SandboxError`].
    pub async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        let config = &self.shared.config;
        let slot = self.shared.reserve()?;
        let Invocation { id, function, deadline_unix_ms, head, body, .. } = invocation;
        let mut body = collect_body(body).await?;
        let mut headers = self.shared.next_headers(&head, deadline_unix_ms);
        if self.shared.takes_raw.load(Ordering::SeqCst) {
            headers.insert(raw::HEAD, raw::encode(&head));
        } else {
            let now = config.clock.unix_millis();
            body = event::encode(config.event, &id, &function, &head, body, now)?;
        }
        // What was printed since the last invocation is not this one's.
        if let Some(output) = &config.output {
            output.settle();
        }
        let (mut waiting, head, done) = slot.queue(id, headers, body);
        let head = match head.await {
            Ok(head) => head,
            Err(_) => Err(ended(&Exit::Lost("its state is gone".to_owned()), Started::Maybe)),
        };
        waiting.answered = true;
        let Head { status, headers, body } = head?;
        let done = done.map(|completion| {
            completion.unwrap_or_else(|_| Completion {
                run: Duration::ZERO,
                reusable: false,
                failure: Some(ended(&Exit::Destroyed, Started::Yes).into()),
            })
        });
        Ok(Reply { status, headers, body, done: done.boxed() })
    }

    /// Refuses invocations until [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// [`SandboxErrorKind::Busy`] when a slot is busy; that the code is gone.
    pub fn pause(&self) -> Result<(), SandboxError> {
        let mut state = self.shared.lock();
        self.shared.alive()?;
        if state.busy > 0 {
            let message = "the instance is busy; pause it when its invocations are over";
            return Err(SandboxError::new(SandboxErrorKind::Busy, message));
        }
        state.paused = true;
        Ok(())
    }

    /// Takes invocations again.
    ///
    /// # Errors
    ///
    /// That the code is gone.
    pub fn resume(&self) -> Result<(), SandboxError> {
        let mut state = self.shared.lock();
        self.shared.alive()?;
        state.paused = false;
        Ok(())
    }

    /// The instance is to end: asks the code to end by itself. Returns whether it will, if it is given
    /// a moment; not when it has not said [`raw::FAREWELL`], or is busy.
    pub fn farewell(&self) -> bool {
        let mut state = self.shared.lock();
        let will = self.shared.says_farewell.load(Ordering::SeqCst)
            && state.busy == 0
            && self.shared.alive().is_ok();
        state.ending |= will;
        if will {
            state.polls.clear();
        }
        will
    }

    /// The code is gone: what it had not answered fails, and nothing more is taken.
    pub fn close(&self, exit: &Exit) {
        let now = self.shared.config.clock.now();
        let calls = {
            let mut state = self.shared.lock();
            self.shared.stage.send_if_modified(|stage| {
                // A failed initialisation says more than the exit that follows it.
                let says_more = matches!(stage, Stage::InitFailed(_));
                if !says_more {
                    *stage = Stage::Closed(exit.clone());
                }
                !says_more
            });
            state.busy = 0;
            state.queued.clear();
            state.polls.clear();
            mem::take(&mut state.calls)
        };
        for call in calls.into_values() {
            self.shared.config.running.remove(&call.id);
            let started = match call.stage {
                CallStage::Queued(_) => Started::No,
                CallStage::Delivered | CallStage::Answering => Started::Yes,
            };
            let run = match call.stage {
                CallStage::Queued(_) => Duration::ZERO,
                _ => now.since(call.delivered),
            };
            let error = || SandboxError { run, ..ended(exit, started) };
            let failure = Some(Failure::from(error()));
            let _ = call.done.send(Completion { run, reusable: false, failure });
            if let Some(reply) = call.reply {
                let _ = reply.send(Err(error()));
            }
        }
    }

    /// Serves the code on `listener`, until what is returned is dropped. Must be called within a
    /// tokio runtime.
    pub fn serve(&self, listener: Listener) -> Serving {
        // Each slot needs one connection; a few more are for clients that open one per request.
        let most = Arc::new(Semaphore::new(self.shared.config.slots as usize + 32));
        let shared = Arc::clone(&self.shared);
        let accept = async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok(permit) = Arc::clone(&most).acquire_owned().await else { return };
                let accepted = match &listener {
                    Listener::Unix(listener) => {
                        listener.accept().await.map(|(stream, _)| Either::Unix(stream))
                    }
                    Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                        let _ = stream.set_nodelay(true);
                        Either::Tcp(stream)
                    }),
                };
                let shared = Arc::clone(&shared);
                match accepted {
                    Ok(Either::Unix(stream)) => connections.spawn(async move {
                        let _permit = permit;
                        converse(shared, stream).await;
                    }),
                    Ok(Either::Tcp(stream)) => connections.spawn(async move {
                        let _permit = permit;
                        converse(shared, stream).await;
                    }),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection from a sandbox");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                };
                while connections.try_join_next().is_some() {}
            }
        };
        Serving(tokio::spawn(accept))
    }
}

/// `arn:aws:lambda:local:000000000000:function:<name>[:<version>]`, as clients expect one.
pub fn arn(function: &FunctionName, version: Option<Version>) -> String {
    let version = version.map_or_else(String::new, |version| format!(":{version}"));
    format!("arn:aws:lambda:local:000000000000:function:{}{version}", function.name())
}

enum Either {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

async fn converse<S>(shared: Arc<Shared>, stream: S)
where
    S: AsyncRead + AsyncWrite + AsFd + Unpin,
{
    let peer = match stream.as_fd().try_clone_to_owned() {
        Ok(fd) => Arc::new(Peer(fd)),
        Err(error) => {
            tracing::warn!(%error, "cannot serve a connection from a sandbox");
            return;
        }
    };
    let service = service_fn(|request| {
        let (shared, peer) = (Arc::clone(&shared), Arc::clone(&peer));
        async move {
            let answer = route(shared, &peer, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(Refusal::into_response))
        }
    });
    // No read limits: `next` is a long poll, and a handler may take its time to stream.
    let connection = http1::Builder::new()
        .header_read_timeout(None)
        // Clients have a clock, and each line of a head is one to take apart.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    // A connection that breaks off is told by what it leaves unanswered.
    let _ = connection.await;
}

/// The other end of a connection.
struct Peer(OwnedFd);

impl Peer {
    /// Whether it has closed the connection, which the runtime may be about to tell us.
    fn is_gone(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.0, &mut [0; 1], flags) {
            Ok((_, count)) => count == 0,
            Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }
}

/// Why a request of the code is refused.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    InvalidRequestId,
    InvalidState(&'static str),
    TooLarge,
    BodyLost,
    Ending,
    NotFound,
    NotAllowed(&'static str),
}

impl Refusal {
    fn into_response(self) -> Response<Full<Bytes>> {
        let (status, kind, message) = match self {
            Refusal::InvalidRequestId => (
                StatusCode::BAD_REQUEST,
                "InvalidRequestID",
                "no such invocation; use the Lambda-Runtime-Aws-Request-Id of the last next",
            ),
            Refusal::InvalidState(message) => {
                (StatusCode::FORBIDDEN, "InvalidStateTransition", message)
            }
            Refusal::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                "the reply is over 6 MiB; return less, or stream it",
            ),
            Refusal::BodyLost => {
                (StatusCode::BAD_REQUEST, "InvalidRequest", "the request's body broke off")
            }
            Refusal::Ending => {
                (StatusCode::GONE, "InstanceEnding", "there are no more invocations; end now")
            }
            Refusal::NotFound => {
                (StatusCode::NOT_FOUND, "NotFound", "the Runtime API 2018-06-01 has no such path")
            }
            Refusal::NotAllowed(_) => {
                (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "see the header Allow")
            }
        };
        let body = serde_json::json!({ "errorMessage": message, "errorType": kind });
        let mut response = json_response(status, body.to_string());
        if let Refusal::NotAllowed(allowed) = self {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

fn json_response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Exactly this: with anything more, clients hand raw bytes to handlers.
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn accepted() -> Response<Full<Bytes>> {
    json_response(StatusCode::ACCEPTED, r#"{"status":"OK"}"#)
}

async fn route(
    shared: Arc<Shared>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let path = path.strip_prefix("/2018-06-01/runtime/").ok_or(Refusal::NotFound)?;
    let only = |method: Method, name| {
        if head.method == method { Ok(()) } else { Err(Refusal::NotAllowed(name)) }
    };
    if path == "invocation/next" {
        only(Method::GET, "GET")?;
        if head.headers.contains_key(raw::RAW) {
            shared.takes_raw.store(true, Ordering::SeqCst);
        }
        if head.headers.contains_key(raw::FAREWELL) {
            shared.says_farewell.store(true, Ordering::SeqCst);
        }
        return Ok(shared.next(peer).await?.into_response());
    }
    if path.strip_prefix("invocation/") == Some(raw::DEPARTED) {
        only(Method::GET, "GET")?;
        let id = serde_json::json!({ "id": shared.departed().await });
        return Ok(json_response(StatusCode::OK, id.to_string()));
    }
    if path == "init/error" {
        only(Method::POST, "POST")?;
        let error = read_error(&head.headers, body).await?;
        shared.init_failed(error)?;
        return Ok(accepted());
    }
    let (id, what) = path
        .strip_prefix("invocation/")
        .and_then(|path| path.split_once('/'))
        .ok_or(Refusal::NotFound)?;
    match what {
        "response" | "error" => only(Method::POST, "POST")?,
        _ => return Err(Refusal::NotFound),
    }
    let claim = shared.claim(id)?;
    if what == "error" {
        return claim.error(&head.headers, body).await;
    }
    let streams = head.headers.get(MODE).is_some_and(|mode| mode.as_bytes() == b"streaming");
    if streams {
        return claim.stream(&head.headers, body).await;
    }
    claim.response(&head.headers, body).await?;
    if head.headers.contains_key(raw::NEXT) {
        return Ok(shared.next(peer).await?.into_response());
    }
    Ok(accepted())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> Result<(), SandboxError> {
        match &*self.stage.borrow() {
            Stage::Closed(exit) => Err(ended(exit, Started::No)),
            Stage::InitFailed(error) => {
                let error = SandboxError::new(SandboxErrorKind::Exited, describe(error));
                Err(SandboxError { started: Started::No, ..error })
            }
            Stage::Init | Stage::Ready => Ok(()),
        }
    }

    fn reserve(self: &Arc<Self>) -> Result<Slot, SandboxError> {
        let mut state = self.lock();
        self.alive()?;
        if state.ending {
            return Err(ended(&Exit::Destroyed, Started::No));
        }
        if state.paused {
            let message = "the instance is paused; resume it first";
            return Err(SandboxError::new(SandboxErrorKind::Paused, message));
        }
        if state.busy >= self.config.slots {
            let message = "all slots of the instance are busy; use another instance, or wait";
            return Err(SandboxError::new(SandboxErrorKind::Busy, message));
        }
        state.busy += 1;
        Ok(Slot { shared: Arc::clone(self), handed_over: false })
    }

    fn next_headers(&self, head: &RequestHead, deadline_unix_ms: u64) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(6);
        let mut add = |name, value| headers.insert(HeaderName::from_static(name), value);
        add("content-type", HeaderValue::from_static("application/json"));
        add("lambda-runtime-deadline-ms", HeaderValue::from(deadline_unix_ms));
        add("lambda-runtime-invoked-function-arn", self.arn.clone());
        if let Some(trace) = trace_id(&head.headers) {
            add("lambda-runtime-trace-id", trace);
        }
        let context = head.headers.get("x-amz-client-context").and_then(|value| {
            // Base64 between client and edge, plain JSON from here on.
            let json = event::base64_decode(value.to_str().ok()?)?;
            // A header holds no line breaks.
            let compact = || serde_json::from_slice::<serde_json::Value>(&json).ok();
            let value = HeaderValue::from_bytes(&json).ok();
            value.or_else(|| HeaderValue::try_from(compact()?.to_string()).ok())
        });
        if let Some(context) = context {
            add("lambda-runtime-client-context", context);
        }
        headers
    }

    /// Gives queued calls to waiting polls.
    fn dispatch(&self, state: &mut State) {
        while let Some(wire_id) = state.queued.front() {
            let Some(poll) = state.polls.pop() else { return };
            let Some(call) = state.calls.get_mut(wire_id) else {
                state.queued.pop_front();
                state.polls.push(poll);
                continue;
            };
            let CallStage::Queued(event) = mem::replace(&mut call.stage, CallStage::Delivered)
            else {
                unreachable!("what is in the queue is queued");
            };
            // Before the code can have the event: what it prints at once is this call's already.
            call.delivered = self.config.clock.now();
            self.config.running.add(&call.id);
            match poll.send(event) {
                Ok(()) => {
                    state.queued.pop_front();
                }
                Err(event) => {
                    self.config.running.remove(&call.id);
                    call.stage = CallStage::Queued(event);
                }
            }
        }
    }

    async fn next(self: &Arc<Self>, peer: &Peer) -> Result<Event, Refusal> {
        let receiver = {
            let mut state = self.lock();
            if state.ending {
                return Err(Refusal::Ending);
            }
            let stage = self.stage.borrow().clone();
            match stage {
                Stage::Init => {
                    self.stage.send_replace(Stage::Ready);
                }
                Stage::Ready => {}
                Stage::InitFailed(_) | Stage::Closed(_) => {
                    return Err(Refusal::InvalidState("the initialisation has failed"));
                }
            }
            let delivered = state.calls.len() - state.queued.len();
            if delivered >= self.config.slots as usize {
                return Err(Refusal::InvalidState("answer the last invocation first"));
            }
            let (sender, receiver) = oneshot::channel();
            state.polls.retain(|poll| !poll.is_closed());
            state.polls.push(sender);
            self.dispatch(&mut state);
            receiver
        };
        let mut poll = NextPoll { shared: Arc::clone(self), receiver };
        let Ok(event) = (&mut poll.receiver).await else {
            return Err(match self.lock().ending {
                true => Refusal::Ending,
                false => Refusal::InvalidState("the instance is ending"),
            });
        };
        // What is written to a connection that was closed a moment ago is lost without a word. Over
        // TCP the news may still be on its way; then the invocation runs into its deadline.
        if peer.is_gone() {
            self.take_back(event);
            return Err(Refusal::InvalidState("the connection is closed"));
        }
        Ok(event)
    }

    /// The call's client has left in the middle of the reply.
    fn depart(&self, wire_id: &str) {
        self.lock().departed.push_back(wire_id.to_owned());
        self.departures.notify_one();
    }

    /// The next call whose client has left.
    async fn departed(&self) -> String {
        loop {
            let news = self.departures.notified();
            if let Some(id) = self.lock().departed.pop_front() {
                return id;
            }
            news.await;
        }
    }

    /// Queues an event again that no code has seen.
    fn take_back(&self, event: Event) {
        let mut state = self.lock();
        let Some(call) = state.calls.get_mut(&event.wire_id) else { return };
        self.config.running.remove(&call.id);
        if call.reply.as_ref().is_some_and(oneshot::Sender::is_closed) {
            // Nobody waits for it any more either.
            state.calls.remove(&event.wire_id);
            state.busy = state.busy.saturating_sub(1);
            return;
        }
        let wire_id = event.wire_id.clone();
        call.stage = CallStage::Queued(event);
        state.queued.push_front(wire_id);
        self.dispatch(&mut state);
    }

    /// The call is the caller's to answer, if it can be answered now.
    fn claim(self: &Arc<Self>, wire_id: &str) -> Result<Claim, Refusal> {
        const AGAIN: Refusal = Refusal::InvalidState("the invocation is answered already");
        let mut state = self.lock();
        let again = state.over.iter().any(|over| over == wire_id);
        match state.calls.get_mut(wire_id).map(|call| &mut call.stage) {
            Some(stage @ CallStage::Delivered) => *stage = CallStage::Answering,
            Some(CallStage::Answering) => return Err(AGAIN),
            None if again => return Err(AGAIN),
            Some(CallStage::Queued(_)) | None => return Err(Refusal::InvalidRequestId),
        }
        Ok(Claim { shared: Arc::clone(self), wire_id: wire_id.to_owned(), over: false })
    }

    fn init_failed(&self, error: FunctionError) -> Result<(), Refusal> {
        let _state = self.lock();
        let mut failed = false;
        self.stage.send_if_modified(|stage| {
            failed = matches!(stage, Stage::Init);
            if failed {
                *stage = Stage::InitFailed(error);
            }
            failed
        });
        if failed { Ok(()) } else { Err(Refusal::InvalidState("the initialisation is over")) }
    }

    /// Ends the call and frees its slot; then tells whoever waits. Nothing happens when it has
    /// ended already.
    fn end(
        &self,
        wire_id: &str,
        reusable: bool,
        outcome: Option<Result<Head, SandboxError>>,
        failure: Option<Failure>,
    ) {
        // What the handler printed is this invocation's as long as it runs.
        if let Some(output) = &self.config.output {
            output.settle();
        }
        let call = {
            let mut state = self.lock();
            let Some(call) = state.calls.remove(wire_id) else { return };
            state.busy = state.busy.saturating_sub(1);
            state.departed.retain(|departed| departed != wire_id);
            if state.over.len() > self.config.slots as usize + 8 {
                state.over.pop_front();
            }
            state.over.push_back(wire_id.to_owned());
            call
        };
        self.config.running.remove(&call.id);
        let run = self.config.clock.now().since(call.delivered);
        let _ = call.done.send(Completion { run, reusable, failure });
        if let (Some(reply), Some(outcome)) = (call.reply, outcome) {
            let _ = reply.send(outcome.map_err(|error| SandboxError { run, reusable, ..error }));
        }
    }
}

/// One slot, reserved; freed by Drop unless a call has it.
struct Slot {
    shared: Arc<Shared>,
    handed_over: bool,
}

type HeadReceiver = oneshot::Receiver<Result<Head, SandboxError>>;

impl Slot {
    fn queue(
        mut self,
        id: RequestId,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> (Waiting, HeadReceiver, oneshot::Receiver<Completion>) {
        self.handed_over = true;
        let shared = Arc::clone(&self.shared);
        let ((reply, head), (done, completion)) = (oneshot::channel(), oneshot::channel());
        let mut state = shared.lock();
        // Clients choose request ids, so two calls at once may have the same.
        let mut wire_id = id.to_string();
        let mut copy = 1;
        while state.calls.contains_key(&wire_id) {
            copy += 1;
            wire_id = format!("{id}.{copy}");
        }
        state.over.retain(|over| *over != wire_id);
        let value = HeaderValue::from_str(&wire_id).expect("a request id is a header value");
        headers.insert("lambda-runtime-aws-request-id", value);
        let event = Event { wire_id: wire_id.clone(), headers, body };
        let stage = CallStage::Queued(event);
        let call = Call { id, stage, delivered: Time::ZERO, reply: Some(reply), done };
        if shared.alive().is_ok() {
            state.calls.insert(wire_id.clone(), call);
            state.queued.push_back(wire_id.clone());
            shared.dispatch(&mut state);
        } else if let (Err(error), Some(reply)) = (shared.alive(), call.reply) {
            let _ = reply.send(Err(error));
        }
        drop(state);
        (Waiting { shared, wire_id, answered: false }, head, completion)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.handed_over {
            let mut state = self.shared.lock();
            state.busy = state.busy.saturating_sub(1);
        }
    }
}

/// The worker's end of a call. Dropped before the answer, it takes back what the code has not seen.
struct Waiting {
    shared: Arc<Shared>,
    wire_id: String,
    answered: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let mut state = self.shared.lock();
        let call = state.calls.get(&self.wire_id);
        if call.is_some_and(|call| matches!(call.stage, CallStage::Queued(_))) {
            state.calls.remove(&self.wire_id);
            state.queued.retain(|queued| *queued != self.wire_id);
            state.busy = state.busy.saturating_sub(1);
        }
    }
}

/// A poll of `next`. When its connection breaks in the moment of delivery, the event goes to
/// another.
struct NextPoll {
    shared: Arc<Shared>,
    receiver: oneshot::Receiver<Event>,
}

impl Drop for NextPoll {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(event) = self.receiver.try_recv() {
            self.shared.take_back(event);
        }
    }
}

/// A call that the code is answering. Dropped before the end, the reply has broken off.
struct Claim {
    shared: Arc<Shared>,
    wire_id: String,
    over: bool,
}

impl Claim {
    fn end(
        mut self,
        reusable: bool,
        outcome: Option<Result<Head, SandboxError>>,
        failure: Option<Failure>,
    ) {
        self.over = true;
        self.shared.end(&self.wire_id, reusable, outcome, failure);
    }

    async fn response(self, headers: &HeaderMap, body: Incoming) -> Result<(), Refusal> {
        let body = match read_whole(body).await {
            Ok(body) => body,
            Err(Refusal::TooLarge) => {
                let message = "the handler's reply is over 6 MiB; return less, or stream it";
                let error = SandboxError::new(SandboxErrorKind::BadReply, message);
                self.end(true, Some(Err(error)), None);
                return Err(Refusal::TooLarge);
            }
            Err(refusal) => return Err(refusal),
        };
        let head = match headers.get(raw::HEAD) {
            Some(head) => raw::decode(head).map(|(status, headers)| (status, headers, body)),
            None => event::decode(self.shared.config.event, body)
                .map(|answer| (answer.status, answer.headers, answer.body)),
        };
        let head =
            head.map(|(status, headers, body)| Head { status, headers, body: full_body(body) });
        self.end(true, Some(head), None);
        Ok(())
    }

    async fn error(
        self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let reusable = !headers.contains_key(EXITING);
        let error = match read_error(headers, body).await {
            Ok(error) => error,
            Err(Refusal::TooLarge) => {
                let text = "the handler's error is over 6 MiB; raise one with a shorter message";
                let error = parse_error(headers, text.as_bytes());
                let error =
                    SandboxError::new(SandboxErrorKind::Function, text).with_function_error(error);
                self.end(reusable, Some(Err(error)), None);
                return Err(Refusal::TooLarge);
            }
            Err(refusal) => return Err(refusal),
        };
        let message = describe(&error);
        let error =
            SandboxError::new(SandboxErrorKind::Function, message).with_function_error(error);
        self.end(reusable, Some(Err(error)), None);
        Ok(accepted())
    }

    /// A streamed reply with which no client can do anything.
    async fn bad_head(self, error: SandboxError, body: &mut Incoming) -> Response<Full<Bytes>> {
        drain(body).await;
        self.end(true, Some(Err(error)), None);
        accepted()
    }

    async fn stream(
        self,
        headers: &HeaderMap,
        mut body: Incoming,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let media_type = headers.get(CONTENT_TYPE);
        let framed =
            media_type.is_some_and(|value| value.as_bytes() == HTTP_INTEGRATION.as_bytes());
        let mut first = BytesMut::new();
        let mut head = (StatusCode::OK, HeaderMap::new());
        if let Some(raw) = headers.get(raw::HEAD) {
            match raw::decode(raw) {
                Ok(decoded) => head = decoded,
                Err(error) => return Ok(self.bad_head(error, &mut body).await),
            }
        } else if framed {
            let end = loop {
                if let Some(end) = first.windows(8).position(|window| window == [0; 8]) {
                    break Some(end);
                }
                if first.len() > PRELUDE_LIMIT {
                    break None;
                }
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            first.extend_from_slice(&data);
                        }
                    }
                    Some(Err(_)) => return Err(Refusal::BodyLost),
                    None => break None,
                }
            };
            let decoded = match end {
                Some(end) => {
                    let prelude = first.split_to(end);
                    let _nul_bytes = first.split_to(8);
                    event::decode_prelude(&prelude)
                }
                None => Err(SandboxError::new(
                    SandboxErrorKind::BadReply,
                    "the streamed reply has no prelude; send its JSON and 8 NUL bytes first",
                )),
            };
            match decoded {
                Ok(decoded) => head = decoded,
                Err(error) => return Ok(self.bad_head(error, &mut body).await),
            }
        } else {
            let any = HeaderValue::from_static("application/octet-stream");
            head.1.insert(CONTENT_TYPE, media_type.cloned().unwrap_or(any));
        }
        let (sender, frames) = mpsc::channel(STREAM_FRAMES);
        let end = Arc::new(OnceLock::new());
        let reply = {
            let mut state = self.shared.lock();
            state.calls.get_mut(&self.wire_id).and_then(|call| call.reply.take())
        };
        if let Some(reply) = reply {
            let body = StreamedBody { frames, end: Arc::clone(&end), over: false }.boxed_unsync();
            let _ = reply.send(Ok(Head { status: head.0, headers: head.1, body }));
        }
        if !first.is_empty() {
            let _ = sender.send(first.freeze()).await;
        }
        let (mut trailers, mut departed) = (None, false);
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame,
                () = sender.closed(), if !departed => {
                    departed = true;
                    self.shared.depart(&self.wire_id);
                    continue;
                }
            };
            let Some(frame) = frame else { break };
            match frame.map(Frame::into_data) {
                // When nobody reads any more, the handler still gets to its end.
                Ok(Ok(data)) => drop(sender.send(data).await),
                Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
                Err(_) => return Err(Refusal::BodyLost),
            }
        }
        let error = trailers.as_ref().filter(|trailers| trailers.contains_key(ERROR_TYPE));
        let Some(trailers) = error else {
            let _ = end.set(Ok(()));
            self.end(true, None, None);
            return Ok(accepted());
        };
        let text = trailers.get(ERROR_BODY).map(HeaderValue::as_bytes).unwrap_or_default();
        // Clients send the error's JSON in base64, since a trailer holds no line breaks.
        let decoded = std::str::from_utf8(text).ok().and_then(event::base64_decode);
        let error = parse_error(trailers, decoded.as_deref().unwrap_or(text));
        let message = describe(&error);
        let failure: Failure = SandboxError::new(SandboxErrorKind::Function, message.clone())
            .with_function_error(error)
            .into();
        let _ = end.set(Err(message));
        self.end(!trailers.contains_key(EXITING), None, Some(failure));
        Ok(accepted())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let message = "the instance broke off its reply; see the function's log";
        let error = || SandboxError::new(SandboxErrorKind::Exited, message);
        self.shared.end(&self.wire_id, false, Some(Err(error())), Some(error().into()));
    }
}

/// The body of a streamed reply. It is complete only when its end was told.
struct StreamedBody {
    frames: mpsc::Receiver<Bytes>,
    /// Set before the sender of the frames goes.
    end: Arc<OnceLock<Result<(), String>>>,
    over: bool,
}

impl http_body::Body for StreamedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(data) = ready!(self.frames.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        self.over = true;
        Poll::Ready(match self.end.get() {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(Err(why.clone().into())),
            None => Some(Err("the instance ended in the middle of its reply".into())),
        })
    }
}

/// The whole body of a post of the code's, up to [`REPLY_LIMIT`].
async fn read_whole(mut body: Incoming) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyLost)?.into_data() else { continue };
        if whole.len() + data.len() > REPLY_LIMIT {
            drain(&mut body).await;
            return Err(Refusal::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

async fn drain(body: &mut Incoming) {
    let mut total = 0;
    while let Some(Ok(frame)) = body.frame().await {
        total += frame.data_ref().map_or(0, Bytes::len);
        if total > DISCARD_LIMIT {
            return;
        }
    }
}

async fn read_error(headers: &HeaderMap, body: Incoming) -> Result<FunctionError, Refusal> {
    let body = read_whole(body).await?;
    Ok(parse_error(headers, &body))
}

/// Runtimes differ in how they write an error, so everything is optional here.
fn parse_error(headers: &HeaderMap, body: &[u8]) -> FunctionError {
    let json: serde_json::Value = event::from_json(body).unwrap_or_default();
    let text = |key: &str| json.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let header = headers.get(ERROR_TYPE).and_then(|value| value.to_str().ok());
    let line = |value: &serde_json::Value| match value {
        serde_json::Value::String(line) => line.clone(),
        other => other.to_string(),
    };
    FunctionError {
        message: text("errorMessage")
            .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned()),
        kind: text("errorType").or(header.map(str::to_owned)).unwrap_or("Unknown".to_owned()),
        stack_trace: json
            .get("stackTrace")
            .or(json.get("trace"))
            .and_then(|trace| Some(trace.as_array()?.iter().map(line).collect()))
            .unwrap_or_default(),
    }
}

/// `ValueError: the message`.
fn describe(error: &FunctionError) -> String {
    match (&*error.kind, &*error.message) {
        ("", message) => message.to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    }
}

/// What an invocation gets from an instance that ended so.
pub(crate) fn ended(exit: &Exit, started: Started) -> SandboxError {
    let kind = match exit {
        Exit::OutOfMemory => SandboxErrorKind::OutOfMemory,
        _ => SandboxErrorKind::Exited,
    };
    let when = match started {
        Started::No => "before",
        Started::Maybe | Started::Yes => "in the middle of",
    };
    let message = format!("the instance {exit} {when} the invocation; see the function's log");
    SandboxError { started, ..SandboxError::new(kind, message) }
}

/// X-Ray's form of the caller's trace: its own header, or made from `traceparent`.
fn trace_id(headers: &HeaderMap) -> Option<HeaderValue> {
    if let Some(trace) = headers.get("x-amzn-trace-id") {
        return Some(trace.clone());
    }
    // 00-<32 hex: trace>-<16 hex: parent>-<2 hex: flags>
    let mut parts = headers.get("traceparent")?.to_str().ok()?.split('-').skip(1);
    let (trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    if !(hex(trace, 32) && hex(parent, 16) && hex(flags, 2)) {
        return None;
    }
    let (time, rest) = trace.split_at(8);
    let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
    HeaderValue::from_str(&format!("Root=1-{time}-{rest};Parent={parent};Sampled={sampled}")).ok()
}

#[cfg(test)]
mod tests;
