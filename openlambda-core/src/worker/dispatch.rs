//! Acquire, invoke, release: the way of a call through the worker, and the shell of the scheduler.
//!
//! [`Dispatcher::call`] hands a call to the scheduler and returns at once with the place where its
//! answer will come. Whatever happens is an [`Event`] for the scheduler, under one short lock;
//! whatever the scheduler wants is an [`Action`], carried out by a task of its own. The call
//! belongs to those tasks, never to the client's connection: a client that leaves takes a waiting
//! call out of the queue, but a running handler keeps its slot until it has answered.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Body as _;
use tokio::sync::{Notify, oneshot, watch};

use super::WorkerConfig;
use super::code::{CodeStore, Fetched};
use super::events::Subscribers;
use super::log::LogWriter;
use crate::balancing::WorkerLoad;
use crate::code_cache::{CodeCache, Lookup};
use crate::failure::{Failure, FailureKind, Started};
use crate::function::{Digest, FunctionName, Version};
use crate::invocation::{
    Body, Completion, Invocation, InvocationRecord, Phases, RequestHead, RequestId, StartKind,
};
use crate::manifest::Manifest;
use crate::metrics::{CallMetrics, FunctionCalls, Histogram, Kind, Outcome, Text};
use crate::sandbox::{
    Created, LogLine, LogSink, LogStream, Sandbox, SandboxError, SandboxFactory, SandboxSpec,
};
use crate::scheduler::{
    Action, Counts, Event, InstanceId, InvocationId, Limits, Rejection, Scheduler, VersionId,
};
use crate::time::{Clock, SystemClock, Time};
use crate::wire::{Reservation, ReservationKey, WorkerEvent};

/// A call, decoded.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: RequestId,
    pub(super) function: FunctionName,
    pub(super) version: Option<Version>,
    pub(super) digest: Digest,
    pub(super) head: RequestHead,
    pub(super) body: Body,
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
}

/// When a reply is over, seen from the one who writes it.
#[derive(Debug)]
pub(super) enum CompletionOf {
    /// It is over: the reply was at hand as a whole.
    Known(Completion),
    /// It is still on its way.
    Streaming(oneshot::Receiver<Completion>),
}

/// Where a call's answer comes. Dropping it says that nobody wants it any more.
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
            self.dispatcher.handle(Event::Cancelled { invocation: self.invocation });
        }
    }
}

/// The shell around the scheduler.
#[derive(Debug)]
pub(super) struct Dispatcher {
    state: Mutex<State>,
    name: String,
    max_wait: Duration,
    factory: Arc<dyn SandboxFactory>,
    code: CodeStore,
    log: Arc<LogWriter>,
    subscribers: Arc<Subscribers>,
    metrics: Metrics,
    clock: Arc<SystemClock>,
    /// Wakes the task that keeps the scheduler's timer when the next time-out came nearer.
    timer_changed: Notify,
    draining: AtomicBool,
    drained: watch::Sender<bool>,
    /// The drain took too long: what still runs is being ended.
    gave_up: AtomicBool,
}

/// Versions that are known before it is worth to look for those that can be forgotten.
const MANY_VERSIONS: usize = 256;

#[derive(Debug)]
struct State {
    scheduler: Scheduler,
    cache: CodeCache,
    versions: Vec<VersionState>,
    /// Places in `versions` that can be used again.
    free_versions: Vec<VersionId>,
    /// Look for versions that can be forgotten when there are so many.
    sweep_at: usize,
    version_ids: BTreeMap<(FunctionName, Digest), VersionId>,
    /// The newest version of each function that was called here.
    newest: BTreeMap<FunctionName, (Version, VersionId)>,
    /// Versions that wait for a bundle.
    fetching: BTreeMap<Digest, Vec<VersionId>>,
    calls: BTreeMap<InvocationId, CallState>,
    /// Reservations whose calls have not come.
    reserved: BTreeMap<InvocationId, Reserved>,
    /// By which name balancers know reservations, and calls that had one or name one: a reservation
    /// that comes after its call, on a slower way, is none.
    reservations: BTreeMap<ReservationKey, InvocationId>,
    instances: BTreeMap<InstanceId, InstanceState>,
    /// Why instances did not start, until the scheduler has named the call to tell.
    start_failures: BTreeMap<InstanceId, Failure>,
    next_invocation: u64,
    timer: Option<Time>,
    /// The reply that is about to be sent.
    replying: Option<Replying>,
}

/// A reply that can tell its balancer of an idle instance, without a message of its own.
#[derive(Debug)]
struct Replying {
    version: VersionId,
    balancer: HeaderValue,
    idle: bool,
}

/// What the worker counts beside what the scheduler knows.
#[derive(Debug, Default)]
struct Metrics {
    calls: CallMetrics,
    pull: Histogram,
    create: Histogram,
    init: Histogram,
    started: AtomicU64,
    start_failed: AtomicU64,
    fetch_failed: AtomicU64,
}

#[derive(Debug)]
struct VersionState {
    function: FunctionName,
    /// Where its calls are counted, once it has had one that is over.
    calls: Option<Arc<FunctionCalls>>,
    version: Option<Version>,
    digest: Digest,
    manifest: Arc<Manifest>,
    /// When the last fetch of its code began and ended.
    pulled: Option<(Time, Time)>,
    failure: Option<Failure>,
}

/// A call from its arrival until its handler is through.
#[derive(Debug)]
struct CallState {
    version: VersionId,
    arrived: Time,
    request: Option<(RequestId, RequestHead, Body)>,
    answer: Option<oneshot::Sender<Result<Answer, Failure>>>,
    id: RequestId,
    reservation: Option<ReservationKey>,
    balancer: Option<HeaderValue>,
    /// It ran over its time limit. What its handler says of its end is a consequence.
    expired: bool,
}

/// A place that is kept for a call.
#[derive(Debug)]
struct Reserved {
    key: ReservationKey,
    version: VersionId,
    since: Time,
}

#[derive(Debug)]
struct InstanceState {
    version: VersionId,
    sandbox: Option<Arc<dyn Sandbox>>,
    /// Its memory limit was lowered when it was paused.
    lowered: bool,
    cancel: Option<oneshot::Sender<()>>,
    create: Duration,
    init: Duration,
}

impl Dispatcher {
    pub(super) fn new(
        config: &WorkerConfig,
        scheduler: Scheduler,
        factory: Arc<dyn SandboxFactory>,
        code: CodeStore,
        log: Arc<LogWriter>,
        subscribers: Arc<Subscribers>,
        clock: Arc<SystemClock>,
    ) -> Arc<Self> {
        let dispatcher = Arc::new(Dispatcher {
            state: Mutex::new(State::new(scheduler, CodeCache::new(config.code_budget))),
            name: config.name.clone(),
            max_wait: config.max_wait,
            factory,
            code,
            log,
            subscribers,
            metrics: Metrics::default(),
            clock,
            timer_changed: Notify::new(),
            draining: AtomicBool::new(false),
            drained: watch::Sender::new(false),
            gave_up: AtomicBool::new(false),
        });
        tokio::spawn(keep_timer(Arc::downgrade(&dispatcher)));
        dispatcher
    }

    /// Acquire: the scheduler gets the call, and says later where and when it runs.
    pub(super) fn call(self: &Arc<Self>, call: Call) -> Pending {
        let now = self.clock.now();
        let (answer, receiver) = oneshot::channel();
        let mut state = self.lock();
        let (version, superseded) = state.version(call.function, call.version, call.digest);
        let reserved = call.reservation.as_ref().and_then(|key| state.reservations.get(key));
        let reserved = reserved.copied().filter(|id| state.reserved.contains_key(id));
        // It has waited since its place was kept, so its phases begin there.
        let (invocation, arrived) = match reserved {
            Some(reserved) if state.reserved[&reserved].version == version => {
                (reserved, state.reserved[&reserved].since)
            }
            _ => (state.new_invocation(), now),
        };
        if let Some(key) = &call.reservation {
            state.reservations.insert(key.clone(), invocation);
        }
        state.calls.insert(
            invocation,
            CallState {
                version,
                arrived,
                id: call.id.clone(),
                request: Some((call.id, call.head, call.body)),
                answer: Some(answer),
                reservation: call.reservation,
                balancer: call.balancer,
                expired: false,
            },
        );
        if let Some(version) = superseded {
            self.step(&mut state, Event::Superseded { version });
        }
        if let Some(other) = reserved.filter(|reserved| *reserved != invocation) {
            // Another version was reserved than is called now.
            self.step(&mut state, Event::ReservationCancelled { invocation: other });
        }
        let deadline = now + self.max_wait;
        self.step(&mut state, Event::Arrived { invocation, version, deadline });
        drop(state);
        Pending { dispatcher: self.clone(), invocation, answer: receiver, answered: false }
    }

    /// Keeps a place for a call that may come. Its balancer is told when a slot is held for it.
    ///
    /// Whether there is room is not told: the call is refused or served like any other, then.
    ///
    /// # Errors
    ///
    /// The balancer has no stream of events, so it would not hear of an offer.
    pub(super) fn reserve(self: &Arc<Self>, reservation: Reservation) -> Result<(), Failure> {
        let Reservation { balancer, ticket, function, version, digest, deadline_ms } = reservation;
        let now = self.clock.now();
        let mut state = self.lock();
        // Under the lock, so that the end of its stream cannot come in between.
        if !self.subscribers.listens(&balancer) {
            let message = "this balancer has no stream of events here; subscribe first, by name";
            return Err(Failure::new(FailureKind::BadRequest, message));
        }
        let key = ReservationKey { balancer, ticket };
        if state.reservations.contains_key(&key) {
            return Ok(());
        }
        let (version, superseded) = state.version(function, Some(version), digest);
        if let Some(version) = superseded {
            self.step(&mut state, Event::Superseded { version });
        }
        let invocation = state.new_invocation();
        state.reservations.insert(key.clone(), invocation);
        state.reserved.insert(invocation, Reserved { key, version, since: now });
        let deadline = now + Duration::from_millis(deadline_ms).min(self.max_wait);
        self.step(&mut state, Event::Reserved { invocation, version, deadline });
        Ok(())
    }

    /// The place is not needed. Nothing happens when it is not there any more.
    pub(super) fn cancel_reservation(self: &Arc<Self>, key: &ReservationKey) {
        let mut state = self.lock();
        if let Some(invocation) = state.reservations.get(key).copied() {
            self.step(&mut state, Event::ReservationCancelled { invocation });
        }
    }

    /// A stream of the balancer's has ended. If it was the last, nobody hears of offers any more.
    pub(super) fn stream_ended(self: &Arc<Self>, balancer: &str) {
        let mut state = self.lock();
        if self.subscribers.listens(balancer) {
            return;
        }
        let first = ReservationKey { balancer: balancer.to_owned(), ticket: 0 };
        let its = state.reservations.range(first..);
        let its = its.take_while(|(key, _)| key.balancer == balancer);
        for invocation in its.map(|(_, invocation)| *invocation).collect::<Vec<_>>() {
            self.step(&mut state, Event::ReservationCancelled { invocation });
        }
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
                };
                let done = async {
                    let done = guarded("a sandbox", reply.done).await;
                    done.unwrap_or_else(|failure| self.broke(began, failure))
                };
                if at_hand {
                    let completion = done.await;
                    let answer = answer(CompletionOf::Known(completion.clone()));
                    (completion, Some(Ok(answer)))
                } else {
                    self.answer(invocation, Ok(answer(CompletionOf::Streaming(receiver))));
                    let completion = done.await;
                    let _ = sender.send(completion.clone());
                    (completion, None)
                }
            }
            Ok(Err(error)) => {
                let run = self.clock.now().since(began);
                let reusable = error.reusable;
                let failure = self.blamed(error.into());
                let last = Some(Err(failure.clone()));
                (Completion { run, reusable, failure: Some(failure) }, last)
            }
            Err(failure) => {
                let last = Some(Err(failure.clone()));
                (self.broke(began, failure), last)
            }
        };
        self.release(invocation, start, phases, &completion, last);
    }

    fn broke(&self, began: Time, failure: Failure) -> Completion {
        let run = self.clock.now().since(began);
        Completion { run, reusable: false, failure: Some(failure) }
    }

    /// A sandbox that this worker ends because it ends itself is not the function's fault.
    fn blamed(&self, failure: Failure) -> Failure {
        if failure.kind != FailureKind::SandboxCrashed || !self.gave_up.load(Ordering::SeqCst) {
            return failure;
        }
        let message = "the worker was shut down before the function had answered";
        Failure::new(FailureKind::WorkerDied, message).started(failure.started)
    }

    /// Release: the slot is free again, or the instance is broken. Then the client gets its answer, if
    /// it has none yet: of the tasks that this wakes the last is first, and the balancer may wait a
    /// little longer for its events.
    fn release(
        self: &Arc<Self>,
        invocation: InvocationId,
        start: StartKind,
        phases: Phases,
        completion: &Completion,
        answer: Option<Result<Answer, Failure>>,
    ) {
        let mut state = self.lock();
        let mut call = state.calls.remove(&invocation);
        if let Some(call) = &call {
            state.forget_key(call.reservation.as_ref(), invocation);
            let outcome = match &completion.failure {
                _ if call.expired => Outcome::Failed(FailureKind::Timeout),
                Some(failure) => Outcome::Failed(failure.kind),
                None => Outcome::Ok,
            };
            let version = &mut state.versions[call.version.0 as usize];
            self.count(version, call, Some(start), outcome);
            self.log.record(|| {
                let phases = Phases { run: completion.run, ..phases };
                self.record_of(call, version, Some(start), phases, outcome.as_str())
            });
        }
        if let (Some(call), Some(Ok(_))) = (&mut call, &answer)
            && let Some(balancer) = call.balancer.take()
        {
            state.replying = Some(Replying { version: call.version, balancer, idle: false });
        }
        self.step(&mut state, Event::Finished { invocation, reusable: completion.reusable });
        let idle = state.replying.take().is_some_and(|replying| replying.idle);
        let (Some(mut call), Some(mut answer)) = (call, answer) else { return };
        if let Ok(answer) = &mut answer {
            answer.idle = idle;
        }
        let sent = call.finish(answer);
        if idle && !sent {
            self.tell_idle(&state, call.version);
        }
    }

    /// Tells one balancer of an idle instance.
    fn tell_idle(&self, state: &State, version: VersionId) {
        let function = &state.versions[version.0 as usize].function;
        self.subscribers.tell_one(|| WorkerEvent::Idle { function: function.clone() });
    }

    /// From now on snapshots say that the worker takes no more calls.
    pub(super) fn announce_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Takes no more calls and waits until those that arrived are over and all instances gone, but
    /// not longer than `grace`. Returns whether that was long enough; if not, the caller ends what
    /// still runs.
    pub(super) async fn drain(self: &Arc<Self>, grace: Duration) -> bool {
        self.announce_drain();
        let mut drained = self.drained.subscribe();
        self.handle(Event::Drain);
        let over = drained.wait_for(|drained| *drained);
        let in_time = tokio::time::timeout(grace, over).await.is_ok();
        self.gave_up.store(!in_time, Ordering::SeqCst);
        in_time
    }

    /// Everything that happens comes through here.
    fn handle(self: &Arc<Self>, event: Event) {
        let mut state = self.lock();
        self.step(&mut state, event);
    }

    /// One event, and all actions that follow from it.
    fn step(self: &Arc<Self>, state: &mut State, event: Event) {
        state.scheduler.handle(self.clock.now(), event);
        self.carry_out_all(state);
        self.remove_surplus_code(state);
        let next = state.scheduler.poll_timeout();
        let nearer = match (next, state.timer) {
            (Some(next), Some(set)) => next < set,
            (next, set) => next.is_some() && set.is_none(),
        };
        if nearer {
            state.timer = next;
            self.timer_changed.notify_one();
        }
    }

    fn carry_out_all(self: &Arc<Self>, state: &mut State) {
        while let Some(action) = state.scheduler.poll_action() {
            self.carry_out(state, action);
        }
    }

    fn carry_out(self: &Arc<Self>, state: &mut State, action: Action) {
        match action {
            Action::Fetch { version } => self.fetch(state, version),
            Action::Start { instance, version } => self.start(state, instance, version),
            Action::CancelStart { instance } => {
                let cancel = state.instances.get_mut(&instance).and_then(|i| i.cancel.take());
                // When nobody listens any more, its success or failure is on its way.
                let _ = cancel.map(|cancel| cancel.send(()));
            }
            Action::Run { invocation, instance, start } => {
                self.run(state, invocation, instance, start);
            }
            Action::Expire { invocation } => {
                let Some(call) = state.calls.get_mut(&invocation) else { return };
                let limit = state.versions[call.version.0 as usize].manifest.timeout_seconds;
                let message = format!(
                    "the function did not answer within its time limit of {limit} s; raise \
                     timeout_seconds in its manifest if it needs longer"
                );
                call.expired = true;
                let _ = call.finish(Err(Failure::new(FailureKind::Timeout, message)));
            }
            Action::Reject { invocation, why } => self.reject(state, invocation, why),
            Action::Pause { instance } => self.pause(state, instance, true),
            Action::Resume { instance } => self.pause(state, instance, false),
            Action::Evict { instance, .. } => self.destroy(state, instance),
            Action::Offer { invocation, .. } => {
                if let Some(Reserved { key, .. }) = state.reserved.get(&invocation) {
                    let event = WorkerEvent::Offered { ticket: key.ticket };
                    self.subscribers.tell_balancer(&key.balancer, &event);
                }
            }
            Action::ReservationOver { invocation, .. } => {
                if let Some(Reserved { key, .. }) = state.reserved.remove(&invocation)
                    && !state.calls.contains_key(&invocation)
                {
                    state.forget_key(Some(&key), invocation);
                }
            }
            Action::TellIdle { version } => match &mut state.replying {
                Some(replying)
                    if replying.version == version
                        && !replying.idle
                        && self.subscribers.takes_turn(replying.balancer.as_bytes()) =>
                {
                    replying.idle = true;
                }
                _ => self.tell_idle(state, version),
            },
            Action::TellEvicted { version } => {
                let function = state.versions[version.0 as usize].function.clone();
                self.subscribers.tell_all(&WorkerEvent::Evicted { function });
            }
            Action::Drained => {
                self.drained.send_replace(true);
            }
        }
    }

    fn run(
        self: &Arc<Self>,
        state: &mut State,
        invocation: InvocationId,
        instance: InstanceId,
        start: StartKind,
    ) {
        let now = self.clock.now();
        let call = state.calls.get_mut(&invocation).expect("a call that runs has arrived");
        let version = &state.versions[call.version.0 as usize];
        let place = &state.instances[&instance];
        let sandbox = place.sandbox.clone().expect("a call runs in a sandbox that is ready");
        let (id, head, body) = call.request.take().expect("a call runs once");
        let deadline = now + version.manifest.timeout();
        let event = Invocation {
            id,
            function: version.function.clone(),
            deadline,
            deadline_unix_ms: self.clock.unix_millis()
                + version.manifest.timeout().as_millis() as u64,
            head,
            body,
        };
        let phases = phases_of(call.arrived, now, start, version, place);
        tokio::spawn(self.clone().invoke(sandbox, invocation, event, start, phases));
    }

    fn reject(self: &Arc<Self>, state: &mut State, invocation: InvocationId, why: Rejection) {
        let Some(mut call) = state.calls.remove(&invocation) else { return };
        state.forget_key(call.reservation.as_ref(), invocation);
        let version = &mut state.versions[call.version.0 as usize];
        let cancelled = matches!(why, Rejection::Cancelled);
        let failure = match why {
            Rejection::QueueFull => Failure::new(
                FailureKind::QueueFull,
                format!(
                    "{} calls of {} wait here already; try again later, or raise queue or \
                     max_instances in its manifest",
                    version.manifest.queue, version.function
                ),
            ),
            Rejection::WaitedTooLong => Failure::new(
                FailureKind::QueueFull,
                format!(
                    "no instance of {} became free or ready within {} s; try again later, and see \
                     its log (`ol logs {}`) if none ever does",
                    version.function,
                    self.max_wait.as_secs_f64(),
                    version.function
                ),
            ),
            Rejection::Cancelled => Failure::new(FailureKind::Internal, "the client has left"),
            Rejection::Draining => {
                Failure::new(FailureKind::Draining, "the worker is shutting down; try another")
            }
            Rejection::CodeFailed => version.failure.clone().unwrap_or_else(|| {
                Failure::new(FailureKind::Internal, "the function's code cannot be had")
            }),
            Rejection::StartFailed(instance) => {
                state.start_failures.remove(&instance).unwrap_or_else(|| {
                    Failure::new(FailureKind::Internal, "the sandbox did not start")
                })
            }
            Rejection::TooLarge { needs, pool } => Failure::new(
                FailureKind::StartFailed,
                format!(
                    "an instance takes {} MiB and the worker has {} MiB; lower memory_mb in the \
                     manifest or give the worker more",
                    needs >> 20,
                    pool >> 20
                ),
            ),
        };
        let outcome = match cancelled {
            true => Outcome::Cancelled,
            false => Outcome::Failed(failure.kind),
        };
        self.count(version, &call, None, outcome);
        self.log.record(|| {
            let waited =
                Phases { queue: self.clock.now().since(call.arrived), ..Phases::default() };
            self.record_of(&call, version, None, waited, failure.kind.code())
        });
        call.finish(Err(failure));
    }

    /// Counts a call that is over.
    fn count(
        &self,
        version: &mut VersionState,
        call: &CallState,
        start: Option<StartKind>,
        outcome: Outcome,
    ) {
        let (now, metrics) = (self.clock.now(), &self.metrics.calls);
        let calls = version.calls.get_or_insert_with(|| metrics.of(&version.function, now));
        metrics.record(calls, outcome, start, now.since(call.arrived), now);
    }

    /// Counts a call that was refused before it was known what it calls.
    pub(super) fn count_refused(&self, failure: &Failure) {
        let (now, calls) = (self.clock.now(), &self.metrics.calls);
        let outcome = Outcome::Failed(failure.kind);
        calls.record(calls.unresolved(), outcome, None, Duration::ZERO, now);
    }

    fn answer(&self, invocation: InvocationId, answer: Result<Answer, Failure>) {
        if let Some(call) = self.lock().calls.get_mut(&invocation) {
            let _ = call.finish(answer);
        }
    }

    // Code.

    fn fetch(self: &Arc<Self>, state: &mut State, version: VersionId) {
        let digest = state.versions[version.0 as usize].digest;
        state.fetching.entry(digest).or_default().push(version);
        match state.cache.want(digest, self.clock.now()) {
            Lookup::Wait => {}
            Lookup::Fetch => {
                tokio::spawn(self.clone().fetch_code(digest));
            }
            Lookup::Held => {
                // Unpacked for another function with the same bytes: only the manifest is to read.
                tokio::spawn(self.clone().read_held_code(digest));
            }
        }
    }

    async fn fetch_code(self: Arc<Self>, digest: Digest) {
        let began = self.clock.now();
        let fetched = guarded("the registry", self.code.fetch(digest)).await.flatten();
        let mut state = self.lock();
        match &fetched {
            Ok(fetched) => {
                let now = self.clock.now();
                self.metrics.pull.observe(now.since(began));
                state.cache.fetched(digest, fetched.bytes, now);
            }
            Err(failure) => {
                self.metrics.fetch_failed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%digest, %failure, "could not fetch a bundle");
                state.cache.failed(digest);
            }
        }
        self.code_came(&mut state, digest, began, fetched.map(|Fetched { manifest, .. }| manifest));
    }

    async fn read_held_code(self: Arc<Self>, digest: Digest) {
        let began = self.clock.now();
        let folder = self.code.folder(&digest);
        let manifest = tokio::task::spawn_blocking(move || Manifest::load(&folder)).await;
        let manifest = manifest
            .map_err(|error| error.to_string())
            .and_then(|manifest| manifest.map_err(|error| crate::failure::chain(&error)));
        let manifest = manifest.map_err(|why| Failure::new(FailureKind::StartFailed, why));
        let mut state = self.lock();
        match state.cache.want(digest, self.clock.now()) {
            Lookup::Held => self.code_came(&mut state, digest, began, manifest),
            // Nothing waited for it for a moment, and it was removed in that moment: the end of the
            // next fetch tells those who wait now.
            Lookup::Wait => {}
            Lookup::Fetch => {
                tokio::spawn(self.clone().fetch_code(digest));
            }
        }
    }

    fn code_came(
        self: &Arc<Self>,
        state: &mut State,
        digest: Digest,
        began: Time,
        manifest: Result<Manifest, Failure>,
    ) {
        let manifest = manifest.map(Arc::new);
        for version in state.fetching.remove(&digest).unwrap_or_default() {
            let of = &mut state.versions[version.0 as usize];
            of.pulled = Some((began, self.clock.now()));
            let event = match &manifest {
                Ok(manifest) => {
                    of.manifest = manifest.clone();
                    of.failure = None;
                    Event::CodeReady { version, limits: limits_of(manifest) }
                }
                Err(failure) => {
                    of.failure = Some(failure.clone());
                    Event::CodeFailed { version }
                }
            };
            self.step(state, event);
        }
    }

    fn remove_surplus_code(self: &Arc<Self>, state: &mut State) {
        if !state.cache.has_surplus() {
            return;
        }
        let waiting = state.versions.iter().enumerate();
        let waiting = waiting.filter(|(n, _)| state.scheduler.waits(VersionId(*n as u32)));
        let wanted: BTreeSet<Digest> = waiting.map(|(_, version)| version.digest).collect();
        while let Some(digest) = state.cache.poll_removal(|digest| wanted.contains(digest)) {
            for version in 0..state.versions.len() {
                if state.versions[version].digest == digest {
                    let version = VersionId(version as u32);
                    state.scheduler.handle(self.clock.now(), Event::CodeGone { version });
                }
            }
            self.carry_out_all(state);
            let dispatcher = self.clone();
            tokio::spawn(async move {
                dispatcher.code.remove(digest).await;
                if dispatcher.lock().cache.removed(digest) {
                    dispatcher.fetch_code(digest).await;
                }
            });
        }
    }

    /// These functions are deleted: their instances end as soon as they are idle, and their code goes
    /// with the last one. A call that was accepted is served.
    pub(super) fn deleted(self: &Arc<Self>, is_deleted: impl Fn(&FunctionName) -> bool) {
        let mut state = self.lock();
        let known = state.version_ids.iter().map(|((name, digest), id)| (name, *digest, *id));
        let (gone, kept): (Vec<_>, Vec<_>) = known.partition(|(name, ..)| is_deleted(name));
        // Another function may have the same bytes.
        let kept: BTreeSet<Digest> = kept.into_iter().map(|(_, digest, _)| digest).collect();
        let gone: Vec<_> = gone.into_iter().map(|(_, digest, id)| (digest, id)).collect();
        for (digest, version) in gone {
            if !kept.contains(&digest) {
                state.cache.discard(digest);
            }
            self.step(&mut state, Event::Superseded { version });
        }
    }

    // Instances.

    fn start(self: &Arc<Self>, state: &mut State, instance: InstanceId, version: VersionId) {
        let of = &state.versions[version.0 as usize];
        let pinned = state.cache.pin(of.digest, self.clock.now());
        debug_assert!(pinned, "an instance starts from code that is held");
        let mut spec = SandboxSpec::new(
            of.function.clone(),
            of.digest,
            self.code.folder(&of.digest),
            of.manifest.clone(),
            self.log.clone(),
        );
        spec.version = of.version;
        let (cancel, cancelled) = oneshot::channel();
        state.instances.insert(
            instance,
            InstanceState {
                version,
                sandbox: None,
                lowered: false,
                cancel: Some(cancel),
                create: Duration::ZERO,
                init: Duration::ZERO,
            },
        );
        tokio::spawn(self.clone().create(instance, spec, cancelled));
    }

    async fn create(
        self: Arc<Self>,
        instance: InstanceId,
        spec: SandboxSpec,
        cancelled: oneshot::Receiver<()>,
    ) {
        let created = tokio::select! {
            created = guarded("making a sandbox", async { self.factory.create(spec).await }) => created,
            Ok(()) = cancelled => {
                let mut state = self.lock();
                self.forget(&mut state, instance);
                return self.step(&mut state, Event::Destroyed { instance });
            }
        };
        match created {
            Ok(Ok(created)) => {
                let sandbox = created.sandbox.clone();
                self.ready(instance, created);
                let _ = guarded("a sandbox", async { sandbox.exited().await }).await;
                self.handle(Event::Died { instance });
            }
            Ok(Err(error)) => self.start_failed(instance, error.into()),
            Err(failure) => self.start_failed(instance, failure.started(Started::No)),
        }
    }

    fn ready(self: &Arc<Self>, instance: InstanceId, created: Created) {
        let mut state = self.lock();
        let place = state.instances.get_mut(&instance).expect("it is being started");
        self.metrics.started.fetch_add(1, Ordering::Relaxed);
        self.metrics.create.observe(created.create);
        self.metrics.init.observe(created.init);
        place.cancel = None;
        place.create = created.create;
        place.init = created.init;
        place.sandbox = Some(created.sandbox);
        self.step(&mut state, Event::SandboxReady { instance, start: created.start });
    }

    fn start_failed(self: &Arc<Self>, instance: InstanceId, failure: Failure) {
        let mut state = self.lock();
        self.metrics.start_failed.fetch_add(1, Ordering::Relaxed);
        let version = state.instances[&instance].version;
        let function = state.versions[version.0 as usize].function.clone();
        let text = format!("an instance did not start: {failure}");
        self.log.line(LogLine::new(&function, None, LogStream::Platform, &text));
        self.forget(&mut state, instance);
        state.start_failures.insert(instance, failure);
        self.step(&mut state, Event::SandboxFailed { instance });
        state.start_failures.remove(&instance);
    }

    fn pause(self: &Arc<Self>, state: &mut State, instance: InstanceId, pause: bool) {
        let place = state.instances.get_mut(&instance).expect("it is there until it is destroyed");
        let Some(sandbox) = place.sandbox.clone() else { return };
        let full = state.versions[place.version.0 as usize].manifest.memory_bytes();
        let raise = std::mem::take(&mut place.lowered);
        let dispatcher = self.clone();
        tokio::spawn(async move {
            let done = async {
                if pause {
                    sandbox.pause().await?;
                    return Ok(lower(&*sandbox, full).await);
                }
                if raise {
                    sandbox.set_memory_limit(full).await?;
                }
                sandbox.resume().await.map(|()| None)
            };
            let done: Result<Result<_, SandboxError>, _> = guarded("a sandbox", done).await;
            let mut state = dispatcher.lock();
            let lowered = matches!(done, Ok(Ok(Some(_))));
            if let Some(place) = state.instances.get_mut(&instance) {
                place.lowered = lowered;
            }
            dispatcher.step(
                &mut state,
                match done {
                    Ok(Ok(_)) if pause => Event::Paused { instance },
                    Ok(Ok(_)) => Event::Resumed { instance },
                    _ => Event::Died { instance },
                },
            );
            if let Ok(Ok(Some(bytes))) = done {
                dispatcher.step(&mut state, Event::Lowered { instance, bytes });
            }
        });
    }

    fn destroy(self: &Arc<Self>, state: &mut State, instance: InstanceId) {
        let sandbox = state.instances.get_mut(&instance).and_then(|place| place.sandbox.take());
        let sandbox = sandbox.expect("an instance that is evicted was ready");
        let dispatcher = self.clone();
        tokio::spawn(async move {
            let _ = guarded("a sandbox", async { sandbox.destroy().await }).await;
            let mut state = dispatcher.lock();
            dispatcher.forget(&mut state, instance);
            dispatcher.step(&mut state, Event::Destroyed { instance });
        });
    }

    /// Nothing is left of an instance: its code may go too.
    fn forget(&self, state: &mut State, instance: InstanceId) {
        if let Some(place) = state.instances.remove(&instance) {
            let digest = state.versions[place.version.0 as usize].digest;
            state.cache.unpin(digest, self.clock.now());
        }
    }

    // What others ask.

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().scheduler.counts()
    }

    pub(super) fn load(&self) -> WorkerLoad {
        let state = self.lock();
        let (counts, pool) = (state.scheduler.counts(), state.scheduler.pool());
        WorkerLoad {
            running: counts.running,
            queued: counts.waiting,
            idle: counts.idle,
            memory_used: pool.used(),
            memory_total: pool.total(),
        }
    }

    /// Everything that is counted, in Prometheus' text format.
    pub(super) fn metrics(&self) -> String {
        let (counts, pool, code) = {
            let state = self.lock();
            let pool = (state.scheduler.pool().used(), state.scheduler.pool().total());
            (state.scheduler.counts(), pool, state.cache.on_disk())
        };
        let (metrics, mut text) = (&self.metrics, Text::of("worker"));
        metrics.calls.write(&mut text, self.clock.now());
        let help = "How long a start took: fetching code, making the sandbox, its runtime.";
        let mut phases = text.family("ol_sandbox_start_duration_seconds", Kind::Histogram, help);
        for (phase, histogram) in
            [("pull", &metrics.pull), ("create", &metrics.create), ("init", &metrics.init)]
        {
            phases.histogram(&[("phase", phase)], histogram);
        }
        let mut starts =
            text.family("ol_sandbox_starts_total", Kind::Counter, "Sandboxes that were started.");
        for (outcome, count) in [("ok", &metrics.started), ("failed", &metrics.start_failed)] {
            starts.sample(&[("outcome", outcome)], count.load(Ordering::Relaxed));
        }
        let mut sandboxes = text.family("ol_sandboxes", Kind::Gauge, "Sandboxes there are.");
        for (state, count) in [
            ("starting", counts.starting),
            ("busy", counts.busy),
            ("idle", counts.idle.saturating_sub(counts.paused)),
            ("paused", counts.paused),
            ("ending", counts.ending),
        ] {
            sandboxes.sample(&[("state", state)], count);
        }
        let help = "Invocations that wait for a slot.";
        text.gauge("ol_invocations_queued", help, counts.waiting.into());
        let help = "Invocations that run.";
        text.gauge("ol_invocations_running", help, counts.running.into());
        let help = "Places kept for invocations that may come (late binding).";
        let mut reservations = text.family("ol_reservations", Kind::Gauge, help);
        for (state, count) in [("queued", counts.reserved), ("offered", counts.offered)] {
            reservations.sample(&[("state", state)], count);
        }
        text.gauge("ol_memory_pool_bytes", "The size of the memory pool.", pool.1);
        text.gauge("ol_memory_pool_used_bytes", "What instances take of it.", pool.0);
        text.gauge("ol_code_cache_bytes", "Unpacked bundles on the disk.", code);
        let failed = metrics.fetch_failed.load(Ordering::Relaxed);
        text.counter("ol_code_fetch_failures_total", "Bundles that could not be had.", failed);
        let help = "Lines that functions printed faster than they could be written.";
        text.counter("ol_log_lines_dropped_total", help, self.log.dropped());
        let draining = u64::from(self.is_draining());
        text.gauge("ol_draining", "1 while the worker is shutting down.", draining);
        text.finish()
    }

    /// Functions with idle instances, and how many.
    pub(super) fn idle(&self) -> Vec<(FunctionName, u32)> {
        let state = self.lock();
        let mut idle = BTreeMap::<FunctionName, u32>::new();
        for (version, count) in state.scheduler.idle_by_version() {
            let function = &state.versions[version.0 as usize].function;
            *idle.entry(function.clone()).or_default() += count;
        }
        idle.into_iter().collect()
    }

    fn record_of(
        &self,
        call: &CallState,
        version: &VersionState,
        start: Option<StartKind>,
        phases: Phases,
        outcome: &str,
    ) -> InvocationRecord {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        InvocationRecord {
            request_id: call.id.clone(),
            function: version.function.clone(),
            digest: Some(version.digest),
            worker: self.name.clone(),
            arrived_ns: call.arrived.as_nanos(),
            start,
            queue_ns: ns(phases.queue),
            pull_ns: ns(phases.pull),
            create_ns: ns(phases.create),
            init_ns: ns(phases.init),
            run_ns: ns(phases.run),
            outcome: outcome.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a defect, but no reason to refuse all other calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(scheduler: Scheduler, cache: CodeCache) -> Self {
        State {
            scheduler,
            cache,
            versions: Vec::new(),
            free_versions: Vec::new(),
            sweep_at: MANY_VERSIONS,
            version_ids: BTreeMap::new(),
            newest: BTreeMap::new(),
            fetching: BTreeMap::new(),
            calls: BTreeMap::new(),
            reserved: BTreeMap::new(),
            reservations: BTreeMap::new(),
            instances: BTreeMap::new(),
            start_failures: BTreeMap::new(),
            next_invocation: 0,
            timer: None,
            replying: None,
        }
    }

    fn new_invocation(&mut self) -> InvocationId {
        self.next_invocation += 1;
        InvocationId(self.next_invocation - 1)
    }

    /// A reservation is over, or a call that named one.
    fn forget_key(&mut self, key: Option<&ReservationKey>, invocation: InvocationId) {
        if let Some(key) = key.filter(|key| self.reservations.get(*key) == Some(&invocation)) {
            self.reservations.remove(key);
        }
    }

    /// The id of a version, and the older version whose place it has just taken.
    fn version(
        &mut self,
        function: FunctionName,
        version: Option<Version>,
        digest: Digest,
    ) -> (VersionId, Option<VersionId>) {
        let key = (function.clone(), digest);
        let id = match self.version_ids.get(&key) {
            Some(id) => *id,
            None => {
                let id = self.new_version(&function, digest);
                self.version_ids.insert(key, id);
                id
            }
        };
        let Some(version) = version else { return (id, None) };
        // The same bytes may be published again, as another version.
        self.versions[id.0 as usize].version = Some(version);
        let superseded = match self.newest.get(&function) {
            Some((known, old)) if version > *known && *old != id => Some(*old),
            Some((known, _)) if version <= *known => return (id, None),
            _ => None,
        };
        self.newest.insert(function, (version, id));
        (id, superseded)
    }

    fn new_version(&mut self, function: &FunctionName, digest: Digest) -> VersionId {
        if self.free_versions.is_empty() && self.versions.len() >= self.sweep_at {
            self.forget_versions();
        }
        let version = VersionState {
            function: function.clone(),
            calls: None,
            version: None,
            digest,
            manifest: Arc::new(Manifest::default()),
            pulled: None,
            failure: None,
        };
        if let Some(id) = self.free_versions.pop() {
            self.versions[id.0 as usize] = version;
            return id;
        }
        self.versions.push(version);
        VersionId(self.versions.len() as u32 - 1)
    }

    /// Versions are published and called for as long as a worker lives: those of which nothing is
    /// left here make room for others. All in all O(1) for each new version.
    fn forget_versions(&mut self) {
        let used: BTreeSet<VersionId> = (self.calls.values().map(|call| call.version))
            .chain(self.instances.values().map(|instance| instance.version))
            .chain(self.fetching.values().flatten().copied())
            .collect();
        let (scheduler, newest) = (&mut self.scheduler, &mut self.newest);
        let free = &mut self.free_versions;
        self.version_ids.retain(|(function, _), id| {
            if used.contains(id) || !scheduler.forget(*id) {
                return true;
            }
            if newest.get(function).is_some_and(|(_, newest)| newest == id) {
                newest.remove(function);
            }
            free.push(*id);
            false
        });
        self.sweep_at = MANY_VERSIONS.max(2 * self.version_ids.len());
    }
}

/// Sandboxes and registries may be somebody's own: a panic in one ends one call, and the scheduler
/// hears of it as of any other failure.
async fn guarded<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| {
        let message = format!("{what} panicked; the worker's log says where");
        Failure::new(FailureKind::Internal, message)
    })
}

impl CallState {
    /// Gives the answer, unless it was given before. Whether somebody gets it.
    fn finish(&mut self, answer: Result<Answer, Failure>) -> bool {
        self.answer.take().is_some_and(|sender| sender.send(answer).is_ok())
    }
}

/// Lowers the memory limit of a sandbox that is paused to what it uses and some slack, where its kind
/// can tell the one and change the other. What the limit is then, if it is lower.
async fn lower(sandbox: &dyn Sandbox, full: u64) -> Option<u64> {
    // An eighth, for what the kernel still charges to it while nothing of it runs; but some pages.
    const LEAST_SLACK: u64 = 4 << 20;
    let used = sandbox.usage().await.ok()?.memory_bytes;
    let bytes = used + (used / 8).max(LEAST_SLACK);
    if bytes >= full {
        return None;
    }
    sandbox.set_memory_limit(bytes).await.ok().map(|()| bytes)
}

fn limits_of(manifest: &Manifest) -> Limits {
    Limits {
        memory: manifest.memory_bytes(),
        slots: manifest.concurrency,
        max_instances: manifest.max_instances,
        queue: manifest.queue,
        timeout: manifest.timeout(),
        reuse: manifest.reuse,
    }
}

/// Where the time between arrival and run went. A warm start only queued; another one also waited
/// for code, sandbox and runtime, each as far as it was in its way.
fn phases_of(
    arrived: Time,
    now: Time,
    start: StartKind,
    version: &VersionState,
    instance: &InstanceState,
) -> Phases {
    let mut phases = Phases::default();
    let mut rest = now.since(arrived);
    if start != StartKind::Warm {
        let pull =
            version.pulled.map_or(Duration::ZERO, |(began, ended)| ended.since(began.max(arrived)));
        for (phase, took) in [
            (&mut phases.init, instance.init),
            (&mut phases.create, instance.create),
            (&mut phases.pull, pull),
        ] {
            *phase = took.min(rest);
            rest -= *phase;
        }
    }
    phases.queue = rest;
    phases
}

/// Tells the scheduler when the time has come that it named. Ends with the dispatcher.
async fn keep_timer(dispatcher: std::sync::Weak<Dispatcher>) {
    loop {
        let Some(strong) = dispatcher.upgrade() else { return };
        let next = {
            let mut state = strong.lock();
            state.timer = state.scheduler.poll_timeout();
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
                    strong.handle(Event::Timeout);
                }
            }
            () = strong.timer_changed.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::SchedulerConfig;
    use crate::{keep_alive, queue};

    #[test]
    fn versions_of_which_nothing_is_left_make_room() {
        let scheduler = Scheduler::new(
            SchedulerConfig::default(),
            queue::by_name("fifo").unwrap(),
            keep_alive::by_name("ttl", Duration::from_secs(1)).unwrap(),
        );
        let mut state = State::new(scheduler, CodeCache::new(0));
        let digest = |n: u64| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            Digest::from_bytes(bytes)
        };
        let function = |n: u64| -> FunctionName { format!("f{}", n % 7).parse().unwrap() };
        // One version has a call that waits for its code.
        let (kept, _) = state.version(function(0), Some(Version(1)), digest(0));
        let (invocation, deadline) = (InvocationId(0), Time::MAX);
        state.scheduler.handle(Time(0), Event::Arrived { invocation, version: kept, deadline });
        for n in 1..100_000 {
            state.version(function(n), Some(Version(n)), digest(n));
        }
        assert!(state.versions.len() <= 2 * MANY_VERSIONS, "{}", state.versions.len());
        assert_eq!(state.version(function(0), Some(Version(1)), digest(0)).0, kept);
        // A version that was forgotten is known again when it is called again.
        let (old, _) = state.version(function(1), Some(Version(1)), digest(1));
        let place = &state.versions[old.0 as usize];
        assert_eq!((&place.function, place.digest), (&function(1), digest(1)));
    }
}
