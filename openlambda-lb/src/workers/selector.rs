//! The pure balancer in a live process: one short lock, a timer, probes, and who waits for a bind.
//!
//! What is said to workers about probes and reservations is said by tasks of their own. Nobody waits
//! for reservations: one that does not get through is not there, and the policy binds without it; a
//! cancellation that does not get through costs the worker one offer that is cancelled again, or
//! times out; one that comes first is repeated.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use http::header::HeaderValue;
use http::uri::Authority;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Limited};
use openlambda_core::balancing::retry::{FailedAttempt, RetryConfig, RetryCounts, Verdict};
use openlambda_core::balancing::{
    BalancingPolicy, Decision, FunctionId, Refusal, Ticket, WorkerId, WorkerInfo, WorkerLoad,
};
use openlambda_core::failure::{Culprit, Failure, chain};
use openlambda_core::function::FunctionName;
use openlambda_core::invocation::{BoxError, StartKind, empty_body, full_body};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_core::wire::{self, BalancerStatus, Reservation, ReservationKey, WorkerStatus};
use tokio::sync::{Notify, oneshot};

use super::connections::Connections;
use super::deployed::Deployed;
use crate::balancer::{Balancer, BalancerOutput};
use crate::proxy::HttpClient;

/// A worker that has not answered a probe by then is decided about without it.
const PROBE_LIMIT: Duration = Duration::from_millis(50);

/// A reservation or its cancellation that a worker has not taken by then is given up.
const RESERVATION_LIMIT: Duration = Duration::from_secs(2);

/// The balancer's state, shared by all calls.
#[derive(Debug)]
pub(crate) struct Selector {
    /// What workers call this balancer.
    name: String,
    header: HeaderValue,
    state: Mutex<State>,
    clock: Arc<SystemClock>,
    client: HttpClient,
    /// The next timeout is earlier than the timer believes.
    earlier: Notify,
    /// What the policy decided, in the order of [`DECISIONS`].
    decisions: [AtomicU64; DECISIONS.len()],
}

/// A policy's decisions as a label: a worker, to hold the call, to probe workers first, to refuse it.
const DECISIONS: [&str; 4] = ["worker", "hold", "probe", "refuse"];

#[derive(Debug)]
struct State {
    balancer: Balancer,
    /// By slot.
    peers: Vec<Option<Arc<Peer>>>,
    waiting: BTreeMap<Ticket, Waiting>,
    /// When the timer will fire by itself.
    timer: Time,
}

/// A call that the policy holds.
#[derive(Debug)]
struct Waiting {
    bound: oneshot::Sender<Result<Bound, Refusal>>,
    function: Arc<Deployed>,
    until: Time,
    /// Some worker was asked for a reservation.
    reserved: bool,
}

#[derive(Debug)]
struct Bound {
    peer: Arc<Peer>,
    reserved: bool,
}

/// What is to be said to a worker.
enum Message {
    Probe,
    Reserve(Reservation),
    Cancel(ReservationKey),
}

/// A worker and where it is.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: WorkerId,
    pub(crate) name: Arc<str>,
    /// The name as a header's value.
    pub(crate) header: HeaderValue,
    pub(crate) connections: Arc<Connections>,
}

impl Peer {
    /// Where it listens.
    pub(crate) fn authority(&self) -> &Authority {
        self.connections.authority()
    }
}

impl Selector {
    pub(crate) fn new(
        policy: Box<dyn BalancingPolicy>,
        seed: u64,
        retries: RetryConfig,
        name: String,
        client: HttpClient,
        clock: Arc<SystemClock>,
    ) -> Arc<Self> {
        let state = State {
            balancer: Balancer::new(policy, seed).with_retries(retries),
            peers: Vec::new(),
            waiting: BTreeMap::new(),
            timer: Time::MAX,
        };
        let state = Mutex::new(state);
        let (earlier, decisions) = (Notify::new(), Default::default());
        let header = HeaderValue::from_str(&name).expect("a name is letters and digits");
        Arc::new(Selector { name, header, state, clock, client, earlier, decisions })
    }

    /// What workers call this balancer.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name as a header's value.
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// A call came in.
    pub(crate) fn arrive(self: &Arc<Self>, function: &Arc<Deployed>) -> Route {
        let ticket = self.with(|state, _| {
            let id = *function.id.get_or_init(|| {
                let id = state.balancer.function(&function.resolved.name);
                state.balancer.describe(id, &function.resolved.manifest);
                id
            });
            state.balancer.arrived(id)
        });
        let function = Arc::clone(function);
        let (selector, reservation, place) = (Arc::clone(self), None, None);
        Route { selector, ticket, function, reservation, place, over: false }
    }

    /// Changes the state under the lock, then passes on what the policy decided meanwhile.
    fn with<R>(self: &Arc<Self>, change: impl FnOnce(&mut State, Time) -> R) -> R {
        let mut messages = Vec::new();
        // A panic in a policy of somebody's own must not end every later call. The balancer's counts
        // may be off by the one call then.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let result = change(&mut state, now);
        while let Some(output) = state.balancer.poll_output() {
            match output {
                BalancerOutput::Bound { ticket, worker, .. } => {
                    let peer = state.peer(worker);
                    if let (Some(waiting), Some(peer)) = (state.waiting.remove(&ticket), peer) {
                        // Nobody there any more: the route's destructor ends the ticket.
                        let reserved = waiting.reserved;
                        let _ = waiting.bound.send(Ok(Bound { peer, reserved }));
                    }
                }
                BalancerOutput::Refused { ticket, refusal } => {
                    if let Some(waiting) = state.waiting.remove(&ticket) {
                        let _ = waiting.bound.send(Err(refusal));
                    }
                }
                BalancerOutput::Probe { worker } => {
                    messages.extend(state.peer(worker).map(|peer| (peer, Message::Probe)));
                }
                BalancerOutput::Reserve { ticket, worker } => {
                    let peer = state.peer(worker);
                    if let (Some(waiting), Some(peer)) = (state.waiting.get_mut(&ticket), peer) {
                        waiting.reserved = true;
                        let reservation = waiting.reservation(&self.name, ticket, now);
                        messages.push((peer, Message::Reserve(reservation)));
                    }
                }
                BalancerOutput::Cancel { ticket, worker } => {
                    let key = self.key(ticket);
                    messages.extend(state.peer(worker).map(|peer| (peer, Message::Cancel(key))));
                }
                _ => {}
            }
        }
        let timeout = state.balancer.poll_timeout().unwrap_or(Time::MAX);
        if timeout < state.timer {
            state.timer = timeout;
            self.earlier.notify_one();
        }
        drop(state);
        for (peer, message) in messages {
            let selector = Arc::clone(self);
            tokio::spawn(async move { selector.say(&peer, message).await });
        }
        result
    }

    async fn say(self: &Arc<Self>, peer: &Peer, message: Message) {
        match message {
            Message::Probe => self.probe(peer).await,
            Message::Reserve(reservation) => {
                let ticket = Ticket(reservation.ticket);
                let body = serde_json::to_vec(&reservation).unwrap_or_default();
                self.tell(peer, Method::POST, wire::RESERVATIONS_PATH.to_owned(), body).await;
                // A cancellation may have gone by another connection, and have come first.
                if !self.with(|state, _| state.balancer.expects(ticket, peer.id)) {
                    self.cancel(peer, self.key(ticket)).await;
                }
            }
            Message::Cancel(key) => self.cancel(peer, key).await,
        }
    }

    async fn cancel(&self, peer: &Peer, key: ReservationKey) {
        let path = format!("{}/{key}", wire::RESERVATIONS_PATH);
        self.tell(peer, Method::DELETE, path, Vec::new()).await;
    }

    /// Tells a worker something. What does not get through is not repeated.
    async fn tell(&self, peer: &Peer, method: Method, path: String, body: Vec<u8>) {
        let said = self.request(peer, method, path, body);
        if let Ok(Err(error)) = tokio::time::timeout(RESERVATION_LIMIT, said).await {
            tracing::debug!(worker = %peer.name, error = chain(&*error), "no reservation");
        }
    }

    /// Reads that it was heard, so that the connection can be used again.
    async fn request(
        &self,
        peer: &Peer,
        method: Method,
        path: String,
        body: Vec<u8>,
    ) -> Result<(), BoxError> {
        let uri = Uri::builder().scheme("http").authority(peer.authority().clone());
        let uri = uri.path_and_query(path).build()?;
        let request = Request::builder().method(method).uri(uri).body(full_body(body))?;
        let reply = self.client.request(request).await?;
        let status = reply.status();
        Limited::new(reply.into_body(), 64 << 10).collect().await?;
        if status.is_success() { Ok(()) } else { Err(format!("it answered {status}").into()) }
    }

    fn key(&self, ticket: Ticket) -> ReservationKey {
        ReservationKey { balancer: self.name.clone(), ticket: ticket.0 }
    }

    /// Fires the balancer's timeouts; runs as long as the proxy serves.
    pub(crate) async fn run_timer(self: Arc<Self>) {
        loop {
            let at = self.with(|state, _| {
                state.timer = state.balancer.poll_timeout().unwrap_or(Time::MAX);
                state.timer
            });
            tokio::select! {
                () = tokio::time::sleep_until(self.clock.instant(at).into()) => {
                    self.with(|state, now| state.balancer.handle_timeout(now));
                }
                () = self.earlier.notified() => {}
            }
        }
    }

    async fn probe(self: &Arc<Self>, peer: &Peer) {
        if let Ok(Some(load)) = tokio::time::timeout(PROBE_LIMIT, self.ask_load(peer)).await {
            self.with(|state, now| state.balancer.probed(now, peer.id, load));
        }
    }

    async fn ask_load(&self, peer: &Peer) -> Option<WorkerLoad> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(peer.authority().clone())
            .path_and_query(wire::LOAD_PATH)
            .build()
            .ok()?;
        let mut request = Request::new(empty_body());
        *request.uri_mut() = uri;
        let reply = self.client.request(request).await.ok()?;
        let body = Limited::new(reply.into_body(), 64 << 10).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }
}

/// What membership tells.
impl Selector {
    pub(crate) fn join(
        self: &Arc<Self>,
        info: WorkerInfo,
        header: HeaderValue,
        authority: Authority,
        incarnation: u64,
    ) -> WorkerId {
        self.with(|state, now| {
            let name = Arc::clone(&info.name);
            let id = state.balancer.join(now, info);
            if id.index() >= state.peers.len() {
                state.peers.resize(id.index() + 1, None);
            }
            let clock = Arc::<SystemClock>::clone(&self.clock);
            let connections = Connections::new(authority, incarnation, clock);
            state.peers[id.index()] = Some(Arc::new(Peer { id, name, header, connections }));
            id
        })
    }

    pub(crate) fn leave(self: &Arc<Self>, worker: WorkerId) {
        let _peer = self.with(|state, now| state.leave(now, worker));
    }

    pub(crate) fn leave_by_name(self: &Arc<Self>, name: &str) {
        let _peer = self.with(|state, now| {
            let worker = state.balancer.view().named(name)?;
            state.leave(now, worker)
        });
    }

    pub(crate) fn set_healthy(self: &Arc<Self>, worker: WorkerId, healthy: bool) {
        let peer = self.with(|state, now| {
            state.balancer.set_healthy(now, worker, healthy);
            state.peer(worker)
        });
        if let Some(peer) = peer.filter(|_| !healthy) {
            peer.connections.close_idle();
        }
    }

    pub(crate) fn set_draining(self: &Arc<Self>, worker: WorkerId, draining: bool) {
        self.with(|state, now| state.balancer.set_draining(now, worker, draining));
    }

    pub(crate) fn idle(self: &Arc<Self>, worker: WorkerId, function: &FunctionName) {
        self.with(|state, now| {
            let function = state.balancer.function(function);
            state.balancer.worker_idle(now, worker, function);
        });
    }

    pub(crate) fn evicted(self: &Arc<Self>, worker: WorkerId, function: &FunctionName) {
        self.with(|state, now| {
            let function = state.balancer.function(function);
            state.balancer.worker_evicted(now, worker, function);
        });
    }

    /// A slot is held for the call of this number.
    pub(crate) fn offered(self: &Arc<Self>, worker: WorkerId, ticket: u64) {
        self.with(|state, now| state.balancer.offered(now, Ticket(ticket), worker));
    }

    pub(crate) fn snapshot(
        self: &Arc<Self>,
        worker: WorkerId,
        load: WorkerLoad,
        idle: &[(FunctionName, u32)],
    ) {
        let peer = self.with(|state, now| {
            let idle: Vec<(FunctionId, u32)> =
                idle.iter().map(|(name, count)| (state.balancer.function(name), *count)).collect();
            state.balancer.snapshot(now, worker, load, idle);
            state.peer(worker)
        });
        if let Some(peer) = peer {
            peer.connections.sweep();
        }
    }

    /// Whether the worker is joined, under any id.
    pub(crate) fn knows(self: &Arc<Self>, name: &str) -> bool {
        self.with(|state, _| state.balancer.view().named(name).is_some())
    }
}

/// What status reports ask.
impl Selector {
    pub(crate) fn status(self: &Arc<Self>, policy: &str) -> BalancerStatus {
        self.with(|state, _| {
            let view = state.balancer.view();
            let workers = view.workers().map(|(id, worker)| WorkerStatus {
                name: worker.name().to_owned(),
                url: state
                    .peer(id)
                    .map(|peer| format!("http://{}", peer.authority()))
                    .unwrap_or_default(),
                state: match (worker.healthy(), worker.draining()) {
                    (false, _) => "unhealthy",
                    (true, true) => "draining",
                    (true, false) => "ready",
                }
                .to_owned(),
                in_flight: worker.in_flight(),
                load: worker.load(),
            });
            BalancerStatus { policy: policy.to_owned(), workers: workers.collect() }
        })
    }

    /// How often the policy decided what.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.decisions.iter().map(|count| count.load(Ordering::Relaxed));
        DECISIONS.into_iter().zip(counts)
    }

    /// What became of attempts that failed.
    pub(crate) fn retries(self: &Arc<Self>) -> RetryCounts {
        self.with(|state, _| state.balancer.retries())
    }

    /// Ready workers, all workers, calls in flight, calls held, tickets, the policy's defects.
    pub(crate) fn counts(self: &Arc<Self>) -> [u64; 6] {
        self.with(|state, _| {
            let view = state.balancer.view();
            [
                view.ready().len() as u64,
                view.workers().count() as u64,
                view.in_flight_total(),
                state.balancer.held() as u64,
                state.balancer.tickets() as u64,
                state.balancer.defects().0,
            ]
        })
    }
}

impl State {
    /// Returns what was known of the worker: with it go its connections, better without the lock.
    fn leave(&mut self, now: Time, worker: WorkerId) -> Option<Arc<Peer>> {
        self.balancer.leave(now, worker);
        self.peers.get_mut(worker.index())?.take_if(|peer| peer.id == worker)
    }

    fn peer(&self, worker: WorkerId) -> Option<Arc<Peer>> {
        self.peers.get(worker.index())?.clone().filter(|peer| peer.id == worker)
    }
}

impl Waiting {
    fn reservation(&self, balancer: &str, ticket: Ticket, now: Time) -> Reservation {
        let resolved = &self.function.resolved;
        let rest = self.until.since(now).as_millis();
        Reservation {
            balancer: balancer.to_owned(),
            ticket: ticket.0,
            function: resolved.name.clone(),
            version: resolved.version,
            digest: resolved.digest,
            deadline_ms: u64::try_from(rest).unwrap_or(u64::MAX),
        }
    }
}

/// A call's ticket: one attempt after another, and its end when dropped.
#[derive(Debug)]
pub(crate) struct Route {
    selector: Arc<Selector>,
    ticket: Ticket,
    function: Arc<Deployed>,
    /// How workers know of the call already. Also for a retry: its worker may have a reservation
    /// whose cancellation is on its way.
    reservation: Option<HeaderValue>,
    /// The worker that may hold a slot for the call, until it is known that the call has come there.
    place: Option<Arc<Peer>>,
    /// The balancer knows that the call is over.
    over: bool,
}

enum Step {
    Go(Arc<Peer>),
    Wait(oneshot::Receiver<Result<Bound, Refusal>>),
    Probe(Vec<Arc<Peer>>),
    Refused(Refusal),
}

impl Route {
    /// The worker for the next attempt; may wait for one as long as the policy holds the call.
    pub(crate) async fn select(&mut self) -> Result<Arc<Peer>, Failure> {
        loop {
            let step =
                self.selector.with(|state, now| match state.balancer.select(now, self.ticket) {
                    Decision::To(worker, _) => match state.peer(worker) {
                        Some(peer) => Step::Go(peer),
                        None => Step::Refused(Refusal::NoWorker),
                    },
                    Decision::Hold { until } => {
                        let (bound, waits) = oneshot::channel();
                        let function = Arc::clone(&self.function);
                        let waiting = Waiting { bound, function, until, reserved: false };
                        state.waiting.insert(self.ticket, waiting);
                        Step::Wait(waits)
                    }
                    Decision::Probe(set) => {
                        Step::Probe(set.as_slice().iter().filter_map(|w| state.peer(*w)).collect())
                    }
                    Decision::Refuse(refusal) => Step::Refused(refusal),
                });
            let decision = match &step {
                Step::Go(_) => 0,
                Step::Wait(_) => 1,
                Step::Probe(_) => 2,
                Step::Refused(_) => 3,
            };
            self.selector.decisions[decision].fetch_add(1, Ordering::Relaxed);
            let refusal = match step {
                Step::Go(peer) => return Ok(peer),
                Step::Wait(waits) => match waits.await {
                    Ok(Ok(Bound { peer, reserved })) => {
                        if reserved {
                            let key = self.selector.key(self.ticket).to_string();
                            self.reservation = HeaderValue::from_str(&key).ok();
                            self.place = Some(Arc::clone(&peer));
                        }
                        return Ok(peer);
                    }
                    Ok(Err(refusal)) => refusal,
                    Err(_) => Refusal::NoWorker,
                },
                Step::Probe(peers) => {
                    join_all(peers.iter().map(|peer| self.selector.probe(peer))).await;
                    continue;
                }
                Step::Refused(refusal) => refusal,
            };
            return Err(refused(refusal));
        }
    }

    /// The header that names the call's reservation to the worker that was selected.
    pub(crate) fn reservation(&self) -> Option<&HeaderValue> {
        self.reservation.as_ref()
    }

    /// The attempt at the worker that was selected failed. Whether to select another one.
    pub(crate) fn failed(&mut self, attempt: &FailedAttempt) -> Verdict {
        self.give_back();
        self.selector.with(|state, now| state.balancer.failed(now, self.ticket, attempt))
    }

    /// The worker told with the call's reply that an instance of the function is idle.
    pub(crate) fn idle(&self, worker: &Peer) {
        if let Some(function) = self.function.id.get() {
            self.selector.with(|state, now| state.balancer.worker_idle(now, worker.id, *function));
        }
    }

    /// The call is over.
    pub(crate) fn completed(mut self, start: Option<StartKind>, ok: bool) {
        self.place = None;
        self.selector.with(|state, now| {
            state.balancer.completed(now, self.ticket, start, ok);
            state.balancer.finish(now, self.ticket);
        });
        self.over = true;
    }
}

impl Route {
    /// The call may never have come to the worker that holds a slot for it: its client has left at
    /// that moment, or its body broke off. If it has come, nothing happens.
    fn give_back(&mut self) {
        if let Some(peer) = self.place.take() {
            let (selector, key) = (Arc::clone(&self.selector), self.selector.key(self.ticket));
            tokio::spawn(async move { selector.say(&peer, Message::Cancel(key)).await });
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.give_back();
        self.selector.with(|state, now| {
            state.waiting.remove(&self.ticket);
            state.balancer.finish(now, self.ticket);
        });
    }
}

fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::NoWorker => Failure::new(
            refusal.kind(),
            "no worker is ready; `ol status` shows them, try again in a moment",
        ),
        _ => Failure::new(
            refusal.kind(),
            "all workers are too busy; try again in a moment or add workers",
        )
        .blame(Culprit::Balancer),
    }
}
