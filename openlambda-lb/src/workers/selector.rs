//! The pure balancer in a live process: one short lock, a timer, and its messages to workers.
//!
//! Separate tasks send probes and reservations to workers, and no call waits for a reservation. If one
//! is lost, the policy binds without it. If a cancellation is lost, the worker makes one offer more,
//! which is cancelled again or times out. A cancellation that overtakes its reservation is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::HeaderValue;
use openlambda_core::balancing::retry::RetryConfig;
use openlambda_core::balancing::{BalancingPolicy, Decision, Member, Refusal, Ticket, WorkerId};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_core::wire::{Reservation, ReservationKey};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::client::HttpClient;
use super::deployed::Deployed;
use super::peer::Peer;
use crate::balancer::{Balancer, BalancerOutput};

/// A worker that has not answered a probe by then is decided about without it.
const PROBE_LIMIT: Duration = Duration::from_millis(50);

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

/// What is behind the lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) balancer: Balancer,
    /// By slot.
    places: Vec<Option<Place>>,
    pub(super) waiting: BTreeMap<Ticket, Waiting>,
    /// When the timer will fire by itself.
    timer: Time,
}

/// A worker that is there.
#[derive(Debug)]
struct Place {
    peer: Arc<Peer>,
    /// The sources that reported it and have not reported that it left.
    sources: BTreeSet<SourceId>,
}

/// Numbers the sources of membership.
pub(crate) type SourceId = usize;

/// A call that the policy holds.
#[derive(Debug)]
pub(super) struct Waiting {
    bound: oneshot::Sender<Result<Bound, Refusal>>,
    function: Arc<Deployed>,
    until: Time,
    /// Some worker was asked for a reservation.
    reserved: bool,
}

/// Where a call goes that the policy held.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) peer: Arc<Peer>,
    /// The worker may keep a place for it.
    pub(super) reserved: bool,
}

/// What is to be said to a worker.
enum Message {
    Probe,
    Reserve(Reservation),
    Cancel(ReservationKey),
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
            places: Vec::new(),
            waiting: BTreeMap::new(),
            timer: Time::MAX,
        };
        let state = Mutex::new(state);
        let (earlier, decisions) = (Notify::new(), Default::default());
        let header = HeaderValue::from_str(&name).expect("a name is letters and digits");
        Arc::new(Selector { name, header, state, clock, client, earlier, decisions })
    }

    /// What workers call this balancer, as a header's value.
    pub(crate) fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Changes the state under the lock, then passes on what the policy decided meanwhile.
    pub(super) fn with<R>(self: &Arc<Self>, change: impl FnOnce(&mut State, Time) -> R) -> R {
        let mut messages = Vec::new();
        // A panic in a policy from outside must not end every later call. The balancer's counts
        // may be off by the one call then.
        let mut state = self.state.lock();
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
                        let reservation = waiting.reservation(self.key(ticket), now);
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
                peer.reserve(&reservation).await;
                // A cancellation may have gone by another connection, and have come first.
                if !self.with(|state, _| state.balancer.expects(ticket, peer.id)) {
                    peer.cancel(&self.key(ticket)).await;
                }
            }
            Message::Cancel(key) => peer.cancel(&key).await,
        }
    }

    /// Asks a worker for its load, but not for long, and tells the policy.
    pub(super) async fn probe(self: &Arc<Self>, peer: &Peer) {
        if let Ok(Some(load)) = tokio::time::timeout(PROBE_LIMIT, peer.ask_load()).await {
            self.with(|state, now| state.balancer.probed(now, peer.id, load));
        }
    }

    /// The name by which workers know of the call.
    pub(super) fn key(&self, ticket: Ticket) -> ReservationKey {
        ReservationKey { balancer: self.name.clone(), ticket: ticket.0 }
    }

    /// Fires the balancer's timeouts, for as long as it is polled.
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

    /// Counts what the policy decided.
    pub(super) fn decided(&self, decision: &Decision) {
        let place = match decision {
            Decision::To(..) => 0,
            Decision::Hold { .. } => 1,
            Decision::Probe(_) => 2,
            Decision::Refuse(_) => 3,
        };
        self.decisions[place].fetch_add(1, Ordering::Relaxed);
    }

    /// How often the policy decided what.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.decisions.iter().map(|count| count.load(Ordering::Relaxed));
        DECISIONS.into_iter().zip(counts)
    }

    /// The way to a worker that joins as `id`.
    pub(super) fn peer_of(
        &self,
        id: WorkerId,
        member: &Arc<Member>,
        header: HeaderValue,
    ) -> Arc<Peer> {
        let clock = Arc::<SystemClock>::clone(&self.clock);
        Peer::new(id, Arc::clone(member), header, self.client.clone(), clock)
    }
}

impl State {
    /// The way to a worker that has not left.
    pub(super) fn peer(&self, worker: WorkerId) -> Option<Arc<Peer>> {
        let place = self.places.get(worker.index())?.as_ref()?;
        (place.peer.id == worker).then(|| Arc::clone(&place.peer))
    }

    /// The same, by its name.
    pub(super) fn named(&self, name: &str) -> Option<Arc<Peer>> {
        self.peer(self.balancer.view().named(name)?)
    }

    /// These sources tell of a worker that has joined.
    pub(super) fn enter(&mut self, peer: Arc<Peer>, sources: BTreeSet<SourceId>) {
        let slot = peer.id.index();
        if slot >= self.places.len() {
            self.places.resize_with(slot + 1, || None);
        }
        self.places[slot] = Some(Place { peer, sources });
    }

    /// The worker is gone. Returns the sources that reported it.
    pub(super) fn leave(&mut self, now: Time, worker: WorkerId) -> BTreeSet<SourceId> {
        self.balancer.leave(now, worker);
        let place = self.places.get_mut(worker.index());
        let place = place.and_then(|place| place.take_if(|place| place.peer.id == worker));
        place.map(|place| place.sources).unwrap_or_default()
    }

    /// Who tells of a worker that is there.
    pub(super) fn sources(&mut self, worker: WorkerId) -> Option<&mut BTreeSet<SourceId>> {
        let place = self.places.get_mut(worker.index())?.as_mut()?;
        (place.peer.id == worker).then_some(&mut place.sources)
    }

    /// The policy holds the call. What is returned resolves when it does no more.
    pub(super) fn hold(
        &mut self,
        ticket: Ticket,
        function: Arc<Deployed>,
        until: Time,
    ) -> oneshot::Receiver<Result<Bound, Refusal>> {
        let (bound, waits) = oneshot::channel();
        self.waiting.insert(ticket, Waiting { bound, function, until, reserved: false });
        waits
    }
}

impl Waiting {
    fn reservation(&self, key: ReservationKey, now: Time) -> Reservation {
        let resolved = &self.function.resolved;
        let rest = self.until.since(now).as_millis();
        Reservation {
            balancer: key.balancer,
            ticket: key.ticket,
            function: resolved.name.clone(),
            version: resolved.version,
            digest: resolved.digest,
            deadline_ms: u64::try_from(rest).unwrap_or(u64::MAX),
        }
    }
}
