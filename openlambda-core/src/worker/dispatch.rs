//! Acquire, invoke, release: a call's way through the worker, and the live shell of its core.
//!
//! [`Dispatcher::call`] hands a call to the [core](crate::worker_core) and returns at once with a
//! receiver for its answer. Each thing that happens is an [`Input`] to the core, under one short lock;
//! each thing that the core wants is an [`Output`], which a task carries out. This file decides nothing.
//! The call belongs to those tasks, never to the client's connection: when a client leaves, its waiting
//! call leaves the queue, but a running handler keeps its slot until it has answered.

use std::fs::File;
use std::io::{self, BufWriter};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::code::{CodeStore, Fetched};
use super::compile;
use super::events::Streams;
use super::guarded::guarded;
use super::instances::{Instances, Shell};
use super::log::LogWriter;
use super::metrics::{Counted, Metrics, Snapshot};
use crate::arena::Owned;
use crate::balancing::WorkerLoad;
use crate::failure::{Failure, FailureKind};
use crate::function::{Digest, FunctionName, Version};
use crate::invocation::{Body, Completion, Invocation, Phases, RequestHead, RequestId, StartKind};
use crate::manifest::Runtime;
use crate::sandbox::{Sandbox, SandboxFactory, SandboxSpec};
use crate::scheduler::{Counts, InvocationId, VersionId};
use crate::time::{Clock, SystemClock, Time};
use crate::wire::{self, Reservation, ReservationKey, WorkerEvent};
use crate::worker_core::recording::Recording;
use crate::worker_core::{Accepted, Call, CallRecord, Input, Notice, Output, StreamId, WorkerCore};

/// A call, decoded.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: RequestId,
    pub(super) function: FunctionName,
    pub(super) version: Option<Version>,
    pub(super) digest: Digest,
    pub(super) head: RequestHead,
    pub(super) body: Body,
    /// What its client sends over the WebSocket that it asks for.
    pub(super) websocket: Option<Body>,
    /// The place that was kept for it, if its balancer asked for one.
    pub(super) reservation: Option<ReservationKey>,
    /// Which balancer sent it, if it says so.
    pub(super) balancer: Option<HeaderValue>,
}

/// The answer to a call.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    pub(super) start: StartKind,
    /// All phases but `run`, which is known only when `completion` is.
    pub(super) phases: Phases,
    pub(super) completion: CompletionOf,
    /// It tells the balancer of an idle instance.
    pub(super) idle: bool,
    /// The client gets the WebSocket that it asked for, and the body is what goes over it.
    pub(super) is_websocket: bool,
}

/// When a reply is over, seen from the one who writes it.
#[derive(Debug)]
pub(super) enum CompletionOf {
    /// It is over: the reply was at hand as a whole.
    Known(Completion),
    /// It is still on its way.
    Streaming(oneshot::Receiver<Completion>),
}

/// The receiver of a call's answer. Dropping it says that the client does not want the answer any more.
#[derive(Debug)]
pub(super) struct Pending {
    dispatcher: Arc<Dispatcher>,
    invocation: InvocationId,
    answer: oneshot::Receiver<Result<Answer, Failure>>,
    answered: bool,
}

impl Pending {
    pub(super) async fn answer(mut self) -> Result<Answer, Failure> {
        let answer = (&mut self.answer).await;
        self.answered = true;
        answer.unwrap_or_else(|_| {
            Err(Failure::new(FailureKind::Internal, "the call's task ended without an answer"))
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.answered {
            self.dispatcher.handle(Input::Cancelled { invocation: self.invocation });
        }
    }
}

/// The shell around the core.
#[derive(Debug)]
pub(super) struct Dispatcher {
    state: Mutex<State>,
    name: String,
    code: CodeStore,
    /// Makes sandboxes that compile bundles, if this kind can.
    compiler: Option<Arc<dyn SandboxFactory>>,
    log: Arc<LogWriter>,
    metrics: Arc<Metrics>,
    clock: Arc<SystemClock>,
    /// Wakes the task that keeps the core's timer when the next time-out came nearer.
    timer_changed: Notify,
    /// Whether the drain was over in time, once it is over.
    drained: watch::Sender<Option<bool>>,
}

/// The core, and what belongs to its calls, instances and streams here.
#[derive(Debug)]
struct State {
    core: WorkerCore,
    calls: Owned<Carried>,
    instances: Instances,
    streams: Streams,
    counted: Counted,
    timer: Option<Time>,
    /// Where all inputs are written, if they are.
    inputs: Option<Recording<BufWriter<File>>>,
    /// The reply that is about to be sent tells of an idle instance of this version.
    idle_with: Option<(InvocationId, VersionId)>,
}

/// What belongs to a call.
#[derive(Debug)]
struct Carried {
    id: RequestId,
    version: VersionId,
    request: Option<(RequestHead, Body, Option<Body>)>,
    answer: Option<oneshot::Sender<Result<Answer, Failure>>>,
    /// Its function's log says why it failed.
    explained: bool,
}

impl Dispatcher {
    pub(super) fn new(
        name: String,
        core: WorkerCore,
        inputs: Option<Recording<BufWriter<File>>>,
        factory: Arc<dyn SandboxFactory>,
        code: CodeStore,
        log: Arc<LogWriter>,
        clock: Arc<SystemClock>,
    ) -> Arc<Self> {
        let metrics = Arc::new(Metrics::default());
        let compiler = factory.capabilities().compiles.then(|| factory.clone());
        let state = State {
            core,
            calls: Owned::default(),
            instances: Instances::new(factory, code.lives(), log.clone(), metrics.clone()),
            streams: Streams::default(),
            counted: Counted::default(),
            timer: None,
            inputs,
            idle_with: None,
        };
        let dispatcher = Arc::new(Dispatcher {
            state: Mutex::new(state),
            name,
            code,
            compiler,
            log,
            metrics,
            clock,
            timer_changed: Notify::new(),
            drained: watch::Sender::new(None),
        });
        tokio::spawn(keep_timer(Arc::downgrade(&dispatcher)));
        dispatcher
    }

    /// Acquire: the core gets the call, and says later where and when it runs.
    pub(super) fn call(self: &Arc<Self>, request: Request) -> Pending {
        let Request { id, function, version, digest, head, body, websocket, reservation, balancer } =
            request;
        let (answer, receiver) = oneshot::channel();
        let balancer = balancer.as_ref().and_then(|name| name.to_str().ok());
        let balancer = balancer.filter(|name| wire::is_balancer_name(name));
        let call = Call { function, version, digest, balancer, reservation };
        let mut state = self.state.lock();
        let now = self.clock.now();
        let call = match &mut state.inputs {
            None => call,
            Some(inputs) => {
                let input = Input::Called(call);
                written(inputs.input(now, &input, Some(&id)));
                let Input::Called(call) = input else { unreachable!("it is what it was") };
                call
            }
        };
        let Accepted { invocation, version } = state.core.call(now, call);
        let request = Some((head, body, websocket));
        let carried = Carried { id, version, request, answer: Some(answer), explained: false };
        state.calls.insert(invocation.0, carried);
        self.carry_out_all(&mut state);
        drop(state);
        Pending { dispatcher: self.clone(), invocation, answer: receiver, answered: false }
    }

    /// Invoke: the handler gets the event, the client the head of the reply; the slot is released
    /// when the handler is through.
    async fn invoke(
        self: Arc<Self>,
        sandbox: Arc<dyn Sandbox>,
        invocation: InvocationId,
        event: Invocation,
        start: StartKind,
        phases: Phases,
    ) {
        let began = self.clock.now();
        let invoked = guarded("a sandbox", async { sandbox.invoke(event).await }).await;
        let (completion, last) = match invoked {
            Ok(Ok(reply)) => {
                // A reply of known size is at hand: its head can say how long it took.
                let at_hand = reply.body.size_hint().exact().is_some();
                let (sender, receiver) = oneshot::channel();
                let answer = |completion| Answer {
                    status: reply.status,
                    headers: reply.headers,
                    body: reply.body,
                    start,
                    phases,
                    completion,
                    idle: false,
                    is_websocket: false,
                };
                let done = async {
                    let done = guarded("a sandbox", reply.done).await;
                    done.unwrap_or_else(|failure| self.broke(began, failure))
                };
                if at_hand {
                    let completion = self.blamed(invocation, done.await);
                    let answer = answer(CompletionOf::Known(completion.clone()));
                    (completion, Some(Ok(answer)))
                } else {
                    self.answer(invocation, Ok(answer(CompletionOf::Streaming(receiver))));
                    let completion = self.blamed(invocation, done.await);
                    let _ = sender.send(completion.clone());
                    (completion, None)
                }
            }
            Ok(Err(error)) => {
                let (run, reusable) = (self.clock.now().since(began), error.reusable);
                let completion = Completion { run, reusable, failure: Some(error.into()) };
                let completion = self.blamed(invocation, completion);
                let last = completion.failure.clone().map(Err);
                (completion, last)
            }
            Err(failure) => {
                let last = Some(Err(failure.clone()));
                (self.broke(began, failure), last)
            }
        };
        self.release(invocation, &completion, last);
    }

    /// What came of a call, with whose fault it is.
    fn blamed(&self, invocation: InvocationId, completion: Completion) -> Completion {
        let Some(failure) = completion.failure else { return completion };
        let state = self.state.lock();
        let version = state.calls.get(invocation.0).map(|carried| carried.version);
        let failure = Some(state.core.blamed(version, failure));
        Completion { failure, ..completion }
    }

    fn broke(&self, began: Time, failure: Failure) -> Completion {
        let run = self.clock.now().since(began);
        Completion { run, reusable: false, failure: Some(failure) }
    }

    fn answer(&self, invocation: InvocationId, answer: Result<Answer, Failure>) {
        if let Some(sender) = self.state.lock().answer_of(invocation) {
            let _ = sender.send(answer);
        }
    }

    /// Release: the slot is free again, or the instance is broken. Then the client gets its answer, if
    /// it has none yet: of the tasks that this wakes the last is first, and the balancer may wait a
    /// little longer for its events.
    fn release(
        self: &Arc<Self>,
        invocation: InvocationId,
        completion: &Completion,
        answer: Option<Result<Answer, Failure>>,
    ) {
        let mut state = self.state.lock();
        let sender = state.answer_of(invocation);
        let replies = sender.is_some() && matches!(answer, Some(Ok(_)));
        let (run, reusable) = (completion.run, completion.reusable);
        if let Some(failure) = &completion.failure {
            self.explain(&mut state, invocation, failure);
        }
        let failure = completion.failure.as_ref().map(|failure| failure.kind);
        let finished = Input::Finished { invocation, run, reusable, failure, replies };
        self.step(&mut state, finished);
        let idle = state.idle_with.take();
        let (Some(sender), Some(mut answer)) = (sender, answer) else { return };
        if let Ok(answer) = &mut answer {
            answer.idle = idle.is_some();
        }
        let sent = sender.send(answer).is_ok();
        if let Some((_, version)) = idle.filter(|_| !sent) {
            self.step(&mut state, Input::ReplyLost { version });
        }
    }

    /// Keeps a place for a call that may come. Its balancer is told when a slot is held for it.
    ///
    /// Whether there is room is not told: the call is refused or served like any other, then.
    ///
    /// # Errors
    ///
    /// The balancer has no stream of events, so it would not hear of an offer.
    pub(super) fn reserve(self: &Arc<Self>, reservation: Reservation) -> Result<(), Failure> {
        let mut state = self.state.lock();
        // Under the lock, so that the end of its stream cannot come in between.
        if !state.core.listens(&reservation.balancer) {
            let message = "this balancer has no stream of events here; subscribe first, by name";
            return Err(Failure::new(FailureKind::BadRequest, message));
        }
        self.step(&mut state, Input::Reserved(reservation));
        Ok(())
    }

    /// The place is not needed. Nothing happens when it is not there any more.
    pub(super) fn cancel_reservation(self: &Arc<Self>, key: ReservationKey) {
        self.handle(Input::ReservationCancelled { key });
    }

    /// A stream of events begins, of the balancer of this name if it has one.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        balancer: Option<String>,
    ) -> (StreamId, mpsc::Receiver<Bytes>) {
        let mut state = self.state.lock();
        let (stream, told) = state.streams.open();
        self.step(&mut state, Input::Subscribed { stream, balancer });
        (stream, told)
    }

    /// A stream of events has ended.
    pub(super) fn unsubscribe(self: &Arc<Self>, stream: StreamId) {
        let mut state = self.state.lock();
        state.streams.ended(stream);
        self.step(&mut state, Input::Unsubscribed { stream });
    }

    /// Sees that the inputs that were recorded are in their file.
    pub(super) fn flush_inputs(&self) {
        if let Some(inputs) = &mut self.state.lock().inputs {
            written(inputs.flush());
        }
    }

    /// Ends all streams of events.
    pub(super) fn close_streams(&self) {
        self.state.lock().streams.close();
    }

    /// These functions are deleted.
    pub(super) fn deleted(self: &Arc<Self>, is_deleted: impl Fn(&FunctionName) -> bool) {
        let mut state = self.state.lock();
        let deleted = state.core.functions().filter(|name| is_deleted(name));
        let functions: Vec<FunctionName> = deleted.cloned().collect();
        if !functions.is_empty() {
            self.step(&mut state, Input::Deleted { functions });
        }
    }

    /// Takes no more calls and waits until those that arrived are over and all instances gone, but
    /// not longer than `grace`. Returns whether that was long enough; if not, the caller ends what
    /// still runs.
    pub(super) async fn drain(self: &Arc<Self>, grace: Duration) -> bool {
        let mut drained = self.drained.subscribe();
        let until = self.clock.now() + grace;
        self.handle(Input::Drain { until });
        let over = drained.wait_for(Option::is_some).await;
        over.is_ok_and(|over| *over == Some(true))
    }

    /// Everything that happens comes through here.
    pub(super) fn handle(self: &Arc<Self>, input: Input<'_>) {
        self.step(&mut self.state.lock(), input);
    }

    /// One input, and all outputs that follow from it.
    fn step(self: &Arc<Self>, state: &mut State, input: Input<'_>) {
        let now = self.clock.now();
        if let Some(inputs) = &mut state.inputs {
            written(inputs.input(now, &input, None));
        }
        state.core.handle(now, input);
        self.carry_out_all(state);
    }

    fn carry_out_all(self: &Arc<Self>, state: &mut State) {
        while let Some(output) = state.core.poll_output() {
            self.carry_out(state, output);
        }
        let next = state.core.poll_timeout();
        let nearer = match (next, state.timer) {
            (Some(next), Some(set)) => next < set,
            (next, set) => next.is_some() && set.is_none(),
        };
        if nearer {
            state.timer = next;
            self.timer_changed.notify_one();
        }
    }

    fn carry_out(self: &Arc<Self>, state: &mut State, output: Output) {
        match output {
            Output::Fetch { digest } => {
                tokio::spawn(self.clone().fetch(digest));
            }
            Output::Remove { digest } => {
                let dispatcher = self.clone();
                tokio::spawn(async move {
                    dispatcher.code.remove(digest).await;
                    dispatcher.handle(Input::Removed { digest });
                });
            }
            Output::Compile { digest, version } => {
                let spec = self.spec(&state.core, version);
                tokio::spawn(self.clone().compile(digest, spec));
            }
            Output::Create { instance, version } => {
                let spec = self.spec(&state.core, version);
                state.instances.create(self, instance, spec);
            }
            Output::Cancel { instance } => state.instances.cancel_start(instance),
            Output::Run { invocation, instance, version, start, phases } => {
                let sandbox =
                    state.instances.sandbox(instance).expect("a call runs in what is ready");
                let event = self.event(state, invocation, version);
                tokio::spawn(self.clone().invoke(sandbox, invocation, event, start, phases));
            }
            Output::Pause { instance } => state.instances.pause(self, instance),
            Output::SetLimit { instance, bytes } => {
                state.instances.set_limit(self, instance, bytes);
            }
            Output::Resume { instance, raise } => state.instances.resume(self, instance, raise),
            Output::Destroy { instance, .. } => state.instances.destroy(self, instance),
            Output::Answer { invocation, failure } => {
                self.explain(state, invocation, &failure);
                if let Some(sender) = state.answer_of(invocation) {
                    let _ = sender.send(Err(*failure));
                }
            }
            Output::IdleWithReply { invocation, version } => {
                state.idle_with = Some((invocation, version));
            }
            Output::Tell { stream, notice } => {
                state.streams.tell(stream, &event_of(&state.core, notice));
            }
            Output::TellAll { notice } => state.streams.tell_all(&event_of(&state.core, notice)),
            Output::Record(record) => self.record(state, &record),
            Output::Drained { in_time } => {
                self.drained.send_replace(Some(in_time));
            }
        }
    }

    /// Which sandbox an instance of this version has.
    fn spec(&self, core: &WorkerCore, version: VersionId) -> SandboxSpec {
        let (function, number, digest, manifest) = core.version(version);
        let folder = self.code.folder(&digest);
        let log = self.log.clone();
        let mut spec = SandboxSpec::new(function.clone(), digest, folder, manifest.clone(), log);
        spec.version = number;
        spec
    }

    fn event(&self, state: &mut State, invocation: InvocationId, version: VersionId) -> Invocation {
        let carried = state.calls.get_mut(invocation.0).expect("a call that runs has arrived");
        let (head, body, websocket) = carried.request.take().expect("a call runs once");
        let (function, _, _, manifest) = state.core.version(version);
        let timeout = manifest.timeout();
        Invocation {
            id: carried.id.clone(),
            function: function.clone(),
            deadline: self.clock.now() + timeout,
            deadline_unix_ms: self.clock.unix_millis() + timeout.as_millis() as u64,
            head,
            body,
            websocket,
        }
    }

    async fn fetch(self: Arc<Self>, digest: Digest) {
        let began = self.clock.now();
        let fetched = guarded("the registry", self.code.fetch(digest)).await.flatten();
        match fetched {
            Ok(Fetched { manifest, bytes, sources }) => {
                self.metrics.pull.observe(self.clock.now().since(began));
                let is_python = manifest.runtime.is_some_and(Runtime::is_python);
                self.handle(Input::Fetched { digest, bytes, manifest: Arc::new(manifest) });
                if is_python && self.compiler.is_some() {
                    self.handle(Input::Compilable { digest, sources });
                }
            }
            Err(failure) => {
                self.metrics.fetch_failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%digest, %failure, "could not fetch a bundle");
                self.handle(Input::FetchFailed { digest, failure });
            }
        }
    }

    async fn compile(self: Arc<Self>, digest: Digest, spec: SandboxSpec) {
        let bytes = match &self.compiler {
            Some(factory) => {
                let work = compile::compile(&**factory, spec, &self.clock);
                guarded("compiling a bundle", work).await.unwrap_or_default()
            }
            None => 0,
        };
        self.handle(Input::Compiled { digest, bytes });
    }

    /// Why a call failed stands in its function's log, once.
    fn explain(&self, state: &mut State, invocation: InvocationId, failure: &Failure) {
        let Some(carried) = state.calls.get_mut(invocation.0) else { return };
        if !std::mem::replace(&mut carried.explained, true) {
            let (function, ..) = state.core.version(carried.version);
            self.log.failed(function, Some(&carried.id), failure);
        }
    }

    /// A call is over.
    fn record(&self, state: &mut State, record: &CallRecord) {
        let Some(carried) = state.calls.remove(record.invocation.0) else { return };
        let (function, ..) = state.core.version(record.version);
        self.metrics.count(&mut state.counted, record, function, self.clock.now());
        self.log.record(|| state.core.named(record, carried.id, &self.name));
    }

    // What others ask.

    /// Counts a call that was refused before it was known what it calls.
    pub(super) fn count_refused(&self, failure: &Failure) {
        self.metrics.count_refused(failure, self.clock.now());
    }

    pub(super) fn is_draining(&self) -> bool {
        self.state.lock().core.is_draining()
    }

    pub(super) fn counts(&self) -> Counts {
        self.state.lock().core.counts()
    }

    pub(super) fn load(&self) -> WorkerLoad {
        self.state.lock().core.load(self.clock.now())
    }

    /// The state as a whole, for balancers.
    pub(super) fn snapshot(&self, incarnation: u64) -> WorkerEvent {
        let state = self.state.lock();
        WorkerEvent::Snapshot {
            name: self.name.clone(),
            incarnation,
            load: state.core.load(self.clock.now()),
            idle: state.core.idle(),
            draining: state.core.is_draining(),
        }
    }

    /// Everything that is counted, in Prometheus' text format.
    /// `bodies`: what requests' bodies take, bytes.
    pub(super) fn metrics(&self, bodies: u64) -> String {
        let core = Snapshot::of(&self.state.lock().core);
        self.metrics.text(core, self.log.dropped(), bodies, self.clock.now())
    }
}

impl Shell for Dispatcher {
    fn tell(self: &Arc<Self>, happened: impl FnOnce(&mut Instances) -> Input<'static>) {
        let mut state = self.state.lock();
        let input = happened(&mut state.instances);
        self.step(&mut state, input);
    }
}

impl State {
    /// Where the answer goes, if none was given.
    fn answer_of(
        &mut self,
        invocation: InvocationId,
    ) -> Option<oneshot::Sender<Result<Answer, Failure>>> {
        self.calls.get_mut(invocation.0)?.answer.take()
    }
}

/// The end of a recording is logged once.
fn written(result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "cannot write the worker's inputs; the recording ends here");
    }
}

fn event_of(core: &WorkerCore, notice: Notice) -> WorkerEvent {
    let function = |version| core.version(version).0.clone();
    match notice {
        Notice::Idle { version } => WorkerEvent::Idle { function: function(version) },
        Notice::Evicted { version } => WorkerEvent::Evicted { function: function(version) },
        Notice::Offered { ticket } => WorkerEvent::Offered { ticket },
        Notice::Draining => WorkerEvent::Draining,
    }
}

/// Tells the core when the time has come that it named. Ends with the dispatcher.
async fn keep_timer(dispatcher: std::sync::Weak<Dispatcher>) {
    loop {
        let Some(strong) = dispatcher.upgrade() else { return };
        let next = {
            let mut state = strong.state.lock();
            state.timer = state.core.poll_timeout();
            state.timer
        };
        // Woken from time to time in any case, to notice that the dispatcher is gone.
        let longest = strong.clock.now() + Duration::from_secs(1);
        let until = tokio::time::Instant::from_std(
            strong.clock.instant(next.map_or(longest, |next| next.min(longest))),
        );
        tokio::select! {
            () = tokio::time::sleep_until(until) => {
                if next.is_some_and(|next| next <= strong.clock.now()) {
                    strong.handle(Input::Timeout);
                }
            }
            () = strong.timer_changed.notified() => {}
        }
    }
}
