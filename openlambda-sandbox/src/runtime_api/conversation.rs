//! The state of the conversation, and the worker's end of it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use openlambda_core::failure::{Failure, FunctionError, Started};
use openlambda_core::function::{FunctionName, Version};
use openlambda_core::invocation::{Body, Completion, Invocation, Reply, RequestId};
use openlambda_core::manifest::EventFormat;
use openlambda_core::sandbox::{Exit, SandboxError, SandboxErrorKind, collect_body};
use openlambda_core::time::{Clock, Time};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use super::headers::{arn, next_headers};
use super::peer::Peer;
use super::refusal::Refusal;
use crate::event;
use crate::output::{FunctionOutput, Running};
use crate::raw;

/// The conversation with the code in one sandbox. Clones share it.
#[derive(Clone, Debug)]
pub struct RuntimeApi {
    pub(super) shared: Arc<Shared>,
}

/// What a [`RuntimeApi`] needs to know.
#[derive(Debug)]
pub struct RuntimeApiConfig {
    /// How many invocations run at once.
    pub slots: u32,
    /// What handlers get as their event.
    pub event: EventFormat,
    /// The manifest's templates of paths.
    pub routes: Vec<String>,
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

/// What both ends share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: RuntimeApiConfig,
    arn: HeaderValue,
    /// The code takes requests as they came: said with its first `next`, before any call.
    pub(super) takes_raw: AtomicBool,
    /// The code has something to do before its end.
    pub(super) says_farewell: AtomicBool,
    /// There is news in `State::departed`.
    departures: Notify,
    /// Whether the instance is of no use any more.
    is_spent: OnceLock<Check>,
    state: Mutex<State>,
    stage: watch::Sender<Stage>,
}

/// What is asked after a call that failed, until it says yes once.
struct Check {
    ask: Box<dyn Fn() -> bool + Send + Sync>,
    said_yes: Mutex<bool>,
}

impl Check {
    fn is_spent(&self) -> bool {
        // Of several that ask at once, one hears it first.
        let mut said_yes = self.said_yes.lock();
        *said_yes = *said_yes || (self.ask)();
        *said_yes
    }
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
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
    /// It has been answered already that the client has left; what is left of the reply is on its way.
    Left,
}

/// What `next` answers.
#[derive(Clone, Debug)]
pub(super) struct Event {
    wire_id: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Event {
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.headers_mut() = self.headers;
        response
    }
}

/// A reply's head, with the body that follows it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
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
            is_spent: OnceLock::new(),
            state: Mutex::default(),
            stage,
        };
        RuntimeApi { shared: Arc::new(shared) }
    }

    /// After each call that failed, also by a status of 500 or more, `check` is asked whether the instance
    /// is of no use any more; then it gets no other call, and `check` is not asked again. Only the first
    /// `check` counts.
    pub fn ask_after_failures(&self, check: impl Fn() -> bool + Send + Sync + 'static) {
        let check = Check { ask: Box::new(check), said_yes: Mutex::new(false) };
        let _ = self.shared.is_spent.set(check);
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
        let mut headers = next_headers(&self.shared.arn, &head, deadline_unix_ms);
        if self.shared.takes_raw.load(Ordering::SeqCst) {
            headers.insert(raw::HEAD, raw::encode(&head));
        } else {
            let now = config.clock.unix_millis();
            body = event::encode(config.event, &config.routes, &id, &function, &head, body, now)?;
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
    /// [`SandboxErrorKind::Busy`] when a slot is busy; the code is gone.
    pub fn pause(&self) -> Result<(), SandboxError> {
        let mut state = self.shared.state.lock();
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
    /// The code is gone.
    pub fn resume(&self) -> Result<(), SandboxError> {
        let mut state = self.shared.state.lock();
        self.shared.alive()?;
        state.paused = false;
        Ok(())
    }

    /// The instance is to end: asks the code to end by itself. Returns whether the code will do so in a
    /// moment; it will not when it is busy or has not sent [`raw::FAREWELL`].
    pub fn farewell(&self) -> bool {
        let mut state = self.shared.state.lock();
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
            let mut state = self.shared.state.lock();
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
                CallStage::Delivered | CallStage::Answering | CallStage::Left => Started::Yes,
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
}

impl Shared {
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
        let mut state = self.state.lock();
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

    pub(super) async fn next(self: &Arc<Self>, peer: &Peer) -> Result<Event, Refusal> {
        let receiver = {
            let mut state = self.state.lock();
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
            let runs =
                |call: &&Call| matches!(call.stage, CallStage::Delivered | CallStage::Answering);
            let delivered = state.calls.values().filter(runs).count();
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
            return Err(match self.state.lock().ending {
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

    /// The call's client has left in the middle of the reply. With `answered`, the code is told by an answer
    /// at once, and may ask for the next event before we have read the rest.
    pub(super) fn depart(&self, wire_id: &str, answered: bool) {
        let mut state = self.state.lock();
        state.departed.push_back(wire_id.to_owned());
        if let Some(call) = state.calls.get_mut(wire_id).filter(|_| answered) {
            call.stage = CallStage::Left;
        }
        drop(state);
        self.departures.notify_one();
    }

    /// The next call whose client has left.
    pub(super) async fn departed(&self) -> String {
        loop {
            let news = self.departures.notified();
            if let Some(id) = self.state.lock().departed.pop_front() {
                return id;
            }
            news.await;
        }
    }

    /// Queues an event again that no code has seen.
    fn take_back(&self, event: Event) {
        let mut state = self.state.lock();
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
    pub(super) fn claim(self: &Arc<Self>, wire_id: &str) -> Result<Claim, Refusal> {
        const AGAIN: Refusal = Refusal::InvalidState("the invocation is answered already");
        let mut state = self.state.lock();
        let again = state.over.iter().any(|over| over == wire_id);
        match state.calls.get_mut(wire_id).map(|call| &mut call.stage) {
            Some(stage @ CallStage::Delivered) => *stage = CallStage::Answering,
            Some(CallStage::Answering | CallStage::Left) => return Err(AGAIN),
            None if again => return Err(AGAIN),
            Some(CallStage::Queued(_)) | None => return Err(Refusal::InvalidRequestId),
        }
        Ok(Claim { shared: Arc::clone(self), wire_id: wire_id.to_owned(), over: false })
    }

    pub(super) fn init_failed(&self, error: FunctionError) -> Result<(), Refusal> {
        let _state = self.state.lock();
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

    /// Ends the call and frees its slot, then answers the caller. Does nothing when the call has ended
    /// already.
    fn end(
        &self,
        wire_id: &str,
        reusable: bool,
        outcome: Option<Result<Head, SandboxError>>,
        failure: Option<Failure>,
    ) {
        if !self.state.lock().calls.contains_key(wire_id) {
            return;
        }
        // What the handler printed is this invocation's as long as it runs.
        if let Some(output) = &self.config.output {
            output.settle();
        }
        let failed = failure.is_some()
            || match &outcome {
                Some(Ok(head)) => head.status.is_server_error(),
                Some(Err(_)) => true,
                None => false,
            };
        let is_spent = || self.is_spent.get().is_some_and(Check::is_spent);
        let reusable = reusable && !(failed && is_spent());
        let call = {
            let mut state = self.state.lock();
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
        let mut state = shared.state.lock();
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
            let mut state = self.shared.state.lock();
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
        let mut state = self.shared.state.lock();
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
pub(super) struct Claim {
    pub(super) shared: Arc<Shared>,
    pub(super) wire_id: String,
    pub(super) over: bool,
}

impl Claim {
    /// The caller that waits for the head of the reply, if there was no answer yet.
    pub(super) fn take_reply(&self) -> Option<oneshot::Sender<Result<Head, SandboxError>>> {
        self.shared.state.lock().calls.get_mut(&self.wire_id)?.reply.take()
    }

    pub(super) fn end(
        mut self,
        reusable: bool,
        outcome: Option<Result<Head, SandboxError>>,
        failure: Option<Failure>,
    ) {
        self.over = true;
        self.shared.end(&self.wire_id, reusable, outcome, failure);
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

/// `ValueError: the message`.
pub(super) fn describe(error: &FunctionError) -> String {
    match (&*error.kind, &*error.message) {
        ("", message) => message.to_owned(),
        (kind, "") => kind.to_owned(),
        (kind, message) => format!("{kind}: {message}"),
    }
}

/// The error of an invocation whose instance ended with `exit`.
fn ended(exit: &Exit, started: Started) -> SandboxError {
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

#[cfg(test)]
mod tests;
