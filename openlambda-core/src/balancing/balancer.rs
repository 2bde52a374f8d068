//! The balancer as a pure state machine, which the live proxy and the simulator both drive.
//!
//! [`Balancer`] owns the [`Cluster`], the policy with its seeded generator, and the tickets of the
//! requests under way. Events go in through methods that take `now`. A decision that the policy does
//! not make at once (binding a held request, refusing it, a probe) comes out of
//! [`Balancer::poll_output`], and [`Balancer::poll_timeout`] says when to call
//! [`Balancer::handle_timeout`]. It does no I/O and reads no clock.
//!
//! ```text
//!   arrived ─▶ waiting ─ select ─ To ─────────────▶ dispatched ─ completed ─▶ waiting ─ finish ─▶ gone
//!                 ▲        │                             ▲     └─ failed ─▶ waiting: Retry, then select
//!                 │        ├─ Hold ─▶ held ─ bind ───────┘  output Bound       again, or GiveUp
//!                 │        │           ├─ until ─▶ waiting     output Refused
//!                 │        │           └─ reserve: offered ─▶ bind, or output Cancel
//!                 │        ├─ Probe ─▶ waiting: probed … then select again
//!                 └────────┴─ Refuse
//! ```
//!
//! A held request may have reservations at workers (late binding). When the request is no longer
//! held, an output `Cancel` ends each of them, except at the worker that it is bound to. Whatever the
//! policy does, the balancer answers an offer with `Bound` or `Cancel` before [`Balancer::offered`]
//! returns.
//!
//! `finish` may be called in every state: it abandons a held request and completes a dispatched one.
//! So a driver can call it in a destructor.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::retry::{FailedAttempt, GiveUp, RetryConfig, RetryCounts, RetryRule, Verdict};
use super::{
    BalancingPolicy, Cluster, ClusterView, ColourId, Decision, FunctionId, Output, PackageId,
    PolicyContext, PolicyEvent, Refusal, RequestInfo, Ticket, Why, WorkerId, WorkerInfo,
    WorkerLoad,
};
use crate::function::FunctionName;
use crate::invocation::StartKind;
use crate::manifest::Manifest;
use crate::random::Rng;
use crate::time::Time;

/// How often a policy may ask for probes for one attempt; then the request is refused. It keeps
/// a policy that never has enough from holding a request for ever.
const MOST_PROBE_ROUNDS: u8 = 4;

/// A policy that wants to be woken at a time that has passed is woken again after this.
const WAKEUP_FLOOR: Duration = Duration::from_millis(1);

/// The reducer, a policy and the requests' tickets. See the module's documentation.
///
/// Beside the policy's cost, a request costs O(1) and one look-up among the idle instances. In the steady
/// state nothing is allocated.
#[derive(Debug)]
pub struct Balancer {
    cluster: Cluster,
    policy: Box<dyn BalancingPolicy>,
    rng: Rng,
    entries: Vec<Entry>,
    free: Vec<u32>,
    facts: Vec<Facts>,
    /// Deadlines of held tickets; those of tickets that are held no more stay until they come up.
    deadlines: BinaryHeap<Reverse<(Time, Ticket)>>,
    held: usize,
    /// What the policy asked for during the call that runs.
    asked: Vec<Output>,
    outputs: VecDeque<BalancerOutput>,
    woken: Option<Time>,
    retries: RetryRule,
    defects: u64,
    last_defect: Option<Defect>,
}

/// What the driver has to do, beside the return values of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BalancerOutput {
    /// A held request goes to this worker; it counts as dispatched already. If the worker has a
    /// reservation for it, the request takes its place: the slot when it was offered, or else the
    /// place in the queue.
    Bound {
        /// The request.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
        /// The policy's reason.
        why: Why,
    },
    /// A held request is not served: its time was up.
    Refused {
        /// The request.
        ticket: Ticket,
        /// Why.
        refusal: Refusal,
    },
    /// Ask this worker for its load, then call [`Balancer::probed`].
    Probe {
        /// The worker.
        worker: WorkerId,
    },
    /// Put a reservation for the held request into this worker's queue. When it comes to the head,
    /// call [`Balancer::offered`]. A driver whose workers know no reservations ignores it.
    Reserve {
        /// The request. Its function is that of [`Balancer::function_of`].
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
    },
    /// Take the reservation out of this worker's queue, or give the offered slot to the next. For a
    /// worker that has no reservation of that ticket, or the request itself, nothing happens.
    Cancel {
        /// The request; it may be over.
        ticket: Ticket,
        /// The worker.
        worker: WorkerId,
    },
}

/// How a policy broke its contract. The balancer stays correct, and counts the defect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// It chose a worker that is not ready. The request was refused.
    ChoseUnready,
    /// It chose a worker that failed the request before, while another one was ready. The choice stands.
    ChoseExcluded,
    /// It refused with [`Refusal::NoWorker`] while a worker was ready. The refusal stands.
    RefusedWithoutReason,
    /// It asked for probes too many times for one request. The request was refused.
    ProbedForEver,
    /// It wanted to be woken at a time that has passed, again. It is woken a little later.
    WokeForEver,
    /// It panicked on an event or a wake-up, which is lost to it. (A panic in `select` is passed on, and
    /// ends the call.)
    Panicked,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    state: State,
    function: FunctionId,
    key: u64,
    attempt: u32,
    probe_rounds: u8,
    excluded: Vec<WorkerId>,
    /// Workers with a reservation; empty unless it is held.
    reserved: Vec<WorkerId>,
    size_estimate: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Waiting,
    Held { until: Time },
    Dispatched { worker: WorkerId, at: Time },
}

impl State {
    fn is_at(self, place: WorkerId) -> bool {
        matches!(self, State::Dispatched { worker, .. } if worker == place)
    }
}

/// What policies know of a function from its manifest.
#[derive(Debug, Default)]
struct Facts {
    key: u64,
    packages: Vec<PackageId>,
    colour: Option<ColourId>,
}

impl Balancer {
    /// A balancer without workers, which retries as [`RetryConfig::default`] says. The same seed and
    /// events give the same decisions.
    pub fn new(policy: Box<dyn BalancingPolicy>, seed: u64) -> Self {
        Balancer {
            cluster: Cluster::new(),
            policy,
            rng: Rng::from_seed_and_label(seed, "balancing policy"),
            entries: Vec::new(),
            free: Vec::new(),
            facts: Vec::new(),
            deadlines: BinaryHeap::new(),
            held: 0,
            asked: Vec::new(),
            outputs: VecDeque::new(),
            woken: None,
            retries: RetryRule::default(),
            defects: 0,
            last_defect: None,
        }
    }

    /// The same balancer with other retry settings. Call it before the first request: the budget begins anew.
    #[must_use]
    pub fn with_retries(mut self, config: RetryConfig) -> Self {
        self.retries = RetryRule::new(config);
        self
    }

    /// The same balancer with its own placement; see [`Cluster::with_placement`]. Call it before the first
    /// function and worker.
    #[must_use]
    pub fn with_placement(mut self, seed: u64) -> Self {
        debug_assert_eq!(self.cluster.view().slots(), 0, "workers have their places");
        self.cluster = Cluster::with_placement(seed);
        self
    }

    /// What is known of the workers.
    pub fn view(&self) -> ClusterView<'_> {
        self.cluster.view()
    }

    /// Tickets that are not finished.
    pub fn tickets(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Tickets that wait for a bind.
    pub fn held(&self) -> usize {
        self.held
    }

    /// How often the policy broke its contract, and the last defect.
    pub fn defects(&self) -> (u64, Option<Defect>) {
        (self.defects, self.last_defect)
    }

    /// How often [`failed`](Self::failed) has given each verdict.
    pub fn retries(&self) -> RetryCounts {
        self.retries.counts()
    }

    /// The id of a function, given at first sight. Events take ids, so that a driver looks a name up
    /// once and not per event.
    pub fn function(&mut self, name: &FunctionName) -> FunctionId {
        let (id, key) = self.cluster.function(name);
        if id.0 as usize == self.facts.len() {
            self.facts.push(Facts { key, ..Facts::default() });
        }
        id
    }

    /// The name of a function that has an id.
    pub fn function_name(&self, id: FunctionId) -> Option<&FunctionName> {
        self.cluster.function_name(id)
    }

    /// Stores what policies may know of a manifest: the packages and the colour.
    pub fn describe(&mut self, function: FunctionId, manifest: &Manifest) {
        let cluster = &mut self.cluster;
        let facts = &mut self.facts[function.0 as usize];
        facts.packages.clear();
        facts.packages.extend(manifest.packages.iter().map(|name| cluster.package(name)));
        let colour = &*manifest.colour;
        facts.colour = (!colour.is_empty()).then(|| cluster.colour(colour));
    }

    /// A worker joins, ready. A worker of the same name leaves first: it was restarted.
    pub fn join(&mut self, now: Time, info: WorkerInfo) -> WorkerId {
        if let Some(old) = self.cluster.view().named(&info.name) {
            self.leave(now, old);
        }
        let worker = self.cluster.join(info);
        self.observe(now, PolicyEvent::Joined { worker });
        self.settle(now);
        worker
    }

    /// A worker is gone for good. Requests that were sent to it are still completed by the driver,
    /// each once.
    pub fn leave(&mut self, now: Time, worker: WorkerId) {
        let left: Option<(Arc<str>, u64)> = self.cluster.leave(worker);
        if let Some((name, name_hash)) = left {
            self.observe(now, PolicyEvent::Left { worker, name: &name, name_hash });
            self.settle(now);
        }
    }

    /// A worker passes its health checks, or does not.
    pub fn set_healthy(&mut self, now: Time, worker: WorkerId, healthy: bool) {
        if let Some(ready) = self.cluster.set_healthy(worker, healthy) {
            self.observe(now, PolicyEvent::ReadyChanged { worker, ready });
            self.settle(now);
        }
    }

    /// A worker takes no new requests, or takes them again.
    pub fn set_draining(&mut self, now: Time, worker: WorkerId, draining: bool) {
        if let Some(ready) = self.cluster.set_draining(worker, draining) {
            self.observe(now, PolicyEvent::ReadyChanged { worker, ready });
            self.settle(now);
        }
    }

    /// An instance of the function became idle on the worker.
    pub fn worker_idle(&mut self, now: Time, worker: WorkerId, function: FunctionId) {
        if self.cluster.view().worker(worker).is_some() {
            self.cluster.idle(worker, function);
            self.observe(now, PolicyEvent::Idle { worker, function });
            self.settle(now);
        }
    }

    /// An instance of the function was evicted from the worker.
    pub fn worker_evicted(&mut self, now: Time, worker: WorkerId, function: FunctionId) {
        if self.cluster.view().worker(worker).is_some() {
            self.cluster.not_idle(worker, function);
            self.observe(now, PolicyEvent::Evicted { worker, function });
            self.settle(now);
        }
    }

    /// A worker's report of its load and of all its idle instances, which replaces what was known.
    pub fn snapshot(
        &mut self,
        now: Time,
        worker: WorkerId,
        load: WorkerLoad,
        idle: impl IntoIterator<Item = (FunctionId, u32)>,
    ) {
        if self.cluster.view().worker(worker).is_some() {
            self.cluster.set_load(worker, load);
            self.cluster.set_idle(worker, idle);
            self.observe(now, PolicyEvent::Load { worker, load });
            self.settle(now);
        }
    }

    /// A worker answered a probe.
    pub fn probed(&mut self, now: Time, worker: WorkerId, load: WorkerLoad) {
        if self.cluster.view().worker(worker).is_some() {
            self.cluster.set_load(worker, load);
            self.observe(now, PolicyEvent::Probed { worker, load });
            self.settle(now);
        }
    }

    /// A reservation came to the head of the worker's queue. The answer is an output, `Bound` or
    /// `Cancel`, for this ticket and worker. There is no answer when the request was bound to the worker
    /// before, and is on its way.
    pub fn offered(&mut self, now: Time, ticket: Ticket, worker: WorkerId) {
        if self.cluster.view().worker(worker).is_none() {
            return;
        }
        if self.entry(ticket).is_some_and(|entry| entry.reserved.contains(&worker)) {
            self.observe(now, PolicyEvent::Offered { ticket, worker });
            self.settle(now);
            self.cancel(ticket, worker);
        } else if !self.expects(ticket, worker) {
            // The request went elsewhere while the offer was on its way.
            self.outputs.push_back(BalancerOutput::Cancel { ticket, worker });
        }
    }

    /// Whether the request still needs its reservation at this worker: it waits for an offer from there, or
    /// was bound to it. A driver asks when a reservation may have reached a worker after its cancellation.
    pub fn expects(&self, ticket: Ticket, worker: WorkerId) -> bool {
        self.entry(ticket)
            .is_some_and(|entry| entry.reserved.contains(&worker) || entry.state.is_at(worker))
    }

    /// A request came in. Its ticket is valid until [`finish`](Self::finish).
    ///
    /// # Panics
    ///
    /// When the function's id is not from [`function`](Self::function) of this balancer.
    pub fn arrived(&mut self, function: FunctionId) -> Ticket {
        let key = self.facts[function.0 as usize].key;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(Entry {
                    generation: 0,
                    state: State::Free,
                    function,
                    key,
                    attempt: 0,
                    probe_rounds: 0,
                    // Room for what few requests need, lest they allocate one by one later.
                    excluded: Vec::with_capacity(4),
                    reserved: Vec::with_capacity(4),
                    size_estimate: None,
                });
                u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 requests at once")
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.state = State::Waiting;
        entry.function = function;
        entry.key = key;
        Ticket(u64::from(entry.generation) << 32 | u64::from(index))
    }

    /// The function of a request that is not finished.
    pub fn function_of(&self, ticket: Ticket) -> Option<FunctionId> {
        Some(self.entry(ticket)?.function)
    }

    /// Tells the policy how long the request may run, for drivers that know.
    pub fn set_size_estimate(&mut self, ticket: Ticket, estimate: Duration) {
        if let Some(entry) = self.entry_mut(ticket) {
            entry.size_estimate = Some(estimate);
        }
    }

    /// Asks the policy where the request goes.
    ///
    /// * `To`: it counts as dispatched; call [`completed`](Self::completed) when it is answered.
    /// * `Hold`: an output comes later, `Bound` or `Refused`.
    /// * `Probe`: ask these workers, call [`probed`](Self::probed) for each answer, then select
    ///   again, whether or not all answered.
    /// * `Refuse`: the driver answers the client.
    ///
    /// Only for a ticket that is neither held nor dispatched; for others it refuses.
    pub fn select(&mut self, now: Time, ticket: Ticket) -> Decision {
        let index = index_of(ticket);
        if self.entry(ticket).is_none_or(|entry| entry.state != State::Waiting) {
            debug_assert!(false, "select is for a ticket that is neither held nor dispatched");
            return Decision::Refuse(Refusal::NoWorker);
        }
        let entry = &self.entries[index];
        let facts = &self.facts[entry.function.0 as usize];
        let request = RequestInfo {
            ticket,
            function: entry.function,
            key: entry.key,
            attempt: entry.attempt,
            excluded: &entry.excluded,
            packages: &facts.packages,
            colour: facts.colour,
            size_estimate: entry.size_estimate,
        };
        let mut cx = PolicyContext::new(now, &mut self.rng, &mut self.asked);
        let mut decision = self.policy.select(&request, &self.cluster.view(), &mut cx);
        if let Some(refusal) = self.objection(ticket, &decision) {
            decision = Decision::Refuse(refusal);
        }
        match decision {
            Decision::To(worker, _) => self.dispatch(now, ticket, worker),
            Decision::Hold { until } => {
                self.entries[index].state = State::Held { until };
                self.held += 1;
                self.push_deadline(until, ticket);
            }
            Decision::Probe(_) => self.entries[index].probe_rounds += 1,
            Decision::Refuse(_) => {}
        }
        self.settle(now);
        decision
    }

    /// A dispatched request failed at its worker: completes the attempt, and decides whether another
    /// worker is tried. On [`Verdict::Retry`] select again: the policy will not choose a worker that
    /// failed before while another one is ready. On [`Verdict::GiveUp`] the failure is the answer.
    pub fn failed(&mut self, now: Time, ticket: Ticket, attempt: &FailedAttempt) -> Verdict {
        let Some(State::Dispatched { worker, .. }) = self.entry(ticket).map(|entry| entry.state)
        else {
            debug_assert!(false, "only what was dispatched can have failed at a worker");
            return Verdict::GiveUp(GiveUp::NotSafe);
        };
        let before = self.entries[index_of(ticket)].attempt;
        self.completed(now, ticket, None, false);
        self.exclude(ticket, worker);
        let alternative = self.has_alternative(ticket);
        self.retries.judge(attempt, before, alternative)
    }

    /// Another attempt must not go to this worker while another one is ready. For drivers that decide
    /// about retries themselves, as tests of policies do; others call [`failed`](Self::failed).
    pub fn exclude(&mut self, ticket: Ticket, worker: WorkerId) {
        if let Some(entry) = self.entry_mut(ticket) {
            entry.attempt += 1;
            entry.probe_rounds = 0;
            if !entry.excluded.contains(&worker) {
                entry.excluded.push(worker);
            }
        }
    }

    /// Whether a worker is ready that the request has not failed on.
    fn has_alternative(&self, ticket: Ticket) -> bool {
        let view = self.cluster.view();
        let excluded = self.entry(ticket).map_or(&[][..], |entry| &entry.excluded);
        let gone = excluded.iter().filter(|worker| view.is_ready(**worker)).count();
        view.ready().len() > gone
    }

    /// A dispatched request was answered, or is over otherwise. For one that failed at its worker, and
    /// may be tried on another, it is [`failed`](Self::failed).
    ///
    /// `start`: whether its start was cold or warm, if it ran. `ok`: whether it was answered.
    pub fn completed(&mut self, now: Time, ticket: Ticket, start: Option<StartKind>, ok: bool) {
        let Some(entry) = self.entry_mut(ticket) else { return };
        let State::Dispatched { worker, at } = entry.state else { return };
        entry.state = State::Waiting;
        let function = entry.function;
        if entry.attempt == 0 {
            self.retries.first_attempt_ended();
        }
        self.cluster.completed(worker);
        let latency = now.since(at);
        let event = PolicyEvent::Completed { ticket, function, worker, latency, start, ok };
        self.observe(now, event);
        self.settle(now);
    }

    /// A held request's client left.
    pub fn abandoned(&mut self, now: Time, ticket: Ticket) {
        let Some(entry) = self.entry_mut(ticket) else { return };
        if !matches!(entry.state, State::Held { .. }) {
            return;
        }
        entry.state = State::Waiting;
        self.held -= 1;
        self.end_reservations(ticket, None);
        self.observe(now, PolicyEvent::Abandoned { ticket });
        self.settle(now);
    }

    /// The request is over; its ticket is not valid any more. One that is held is abandoned, one
    /// that is dispatched is completed as failed.
    pub fn finish(&mut self, now: Time, ticket: Ticket) {
        let Some(entry) = self.entry(ticket) else { return };
        match entry.state {
            State::Held { .. } => self.abandoned(now, ticket),
            State::Dispatched { .. } => self.completed(now, ticket, None, false),
            State::Free | State::Waiting => {}
        }
        let entry = &mut self.entries[index_of(ticket)];
        entry.state = State::Free;
        entry.generation = entry.generation.wrapping_add(1);
        entry.attempt = 0;
        entry.probe_rounds = 0;
        entry.excluded.clear();
        entry.size_estimate = None;
        self.free.push(ticket.0 as u32);
    }

    /// The next thing that the driver has to do. After every other call, call this until it returns `None`.
    #[inline]
    pub fn poll_output(&mut self) -> Option<BalancerOutput> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout). Changes with every other call.
    pub fn poll_timeout(&mut self) -> Option<Time> {
        while let Some(Reverse((until, ticket))) = self.deadlines.peek()
            && !self.is_held(*ticket, *until)
        {
            self.deadlines.pop();
        }
        let held = self.deadlines.peek().map(|Reverse((until, _))| *until);
        let wakeup = self.next_wakeup();
        match (held, wakeup) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The time that `poll_timeout` named has come. A call before it changes nothing.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.next_wakeup().is_some_and(|at| at <= now) {
            self.woken = Some(now);
            let mut cx = PolicyContext::new(now, &mut self.rng, &mut self.asked);
            let view = self.cluster.view();
            if panics(|| self.policy.on_wakeup(&view, &mut cx)) {
                self.defect(Defect::Panicked);
            }
            if self.policy.next_wakeup().is_some_and(|at| at <= now) {
                self.defect(Defect::WokeForEver);
            }
            self.settle(now);
        }
        // After the wake-up, which may bind a request at the last moment.
        while let Some(Reverse((until, ticket))) = self.deadlines.peek().copied() {
            let held = self.is_held(ticket, until);
            if held && until > now {
                break;
            }
            self.deadlines.pop();
            if held {
                self.outputs
                    .push_back(BalancerOutput::Refused { ticket, refusal: Refusal::Overloaded });
                self.abandoned(now, ticket);
            }
        }
    }

    fn next_wakeup(&self) -> Option<Time> {
        let at = self.policy.next_wakeup()?;
        // A wake-up time that the last wake-up should have dealt with must not become a busy loop.
        Some(self.woken.map_or(at, |woken| if at > woken { at } else { woken + WAKEUP_FLOOR }))
    }

    /// Checks a decision against the policy's contract. Returns another decision where it must not stand.
    fn objection(&mut self, ticket: Ticket, decision: &Decision) -> Option<Refusal> {
        let view = self.cluster.view();
        let entry = &self.entries[index_of(ticket)];
        match *decision {
            Decision::To(worker, _) if !view.is_ready(worker) => {
                self.defect(Defect::ChoseUnready);
                Some(Refusal::NoWorker)
            }
            Decision::To(worker, _) if !entry.excluded.is_empty() => {
                if entry.excluded.contains(&worker) && self.has_alternative(ticket) {
                    self.defect(Defect::ChoseExcluded);
                }
                None
            }
            Decision::Probe(_) if entry.probe_rounds >= MOST_PROBE_ROUNDS => {
                self.defect(Defect::ProbedForEver);
                Some(Refusal::Overloaded)
            }
            Decision::Refuse(Refusal::NoWorker) if !view.ready().is_empty() => {
                self.defect(Defect::RefusedWithoutReason);
                None
            }
            _ => None,
        }
    }

    #[cold]
    fn defect(&mut self, defect: Defect) {
        self.defects += 1;
        self.last_defect = Some(defect);
    }

    fn dispatch(&mut self, now: Time, ticket: Ticket, worker: WorkerId) {
        let entry = &mut self.entries[index_of(ticket)];
        entry.state = State::Dispatched { worker, at: now };
        let function = entry.function;
        self.cluster.sent(worker, function);
        self.observe(now, PolicyEvent::Dispatched { ticket, function, worker });
    }

    fn observe(&mut self, now: Time, event: PolicyEvent<'_>) {
        let mut cx = PolicyContext::new(now, &mut self.rng, &mut self.asked);
        let view = self.cluster.view();
        // Events come from tasks that everybody needs, and from destructors, where a second panic
        // ends the process.
        if panics(|| self.policy.observe(&event, &view, &mut cx)) {
            self.defect(Defect::Panicked);
        }
    }

    /// Carries out what the policy asked for: mostly nothing.
    #[inline]
    fn settle(&mut self, now: Time) {
        if !self.asked.is_empty() {
            self.carry_out(now);
        }
    }

    /// Each bind ends a hold, so this ends.
    fn carry_out(&mut self, now: Time) {
        let mut next = 0;
        while let Some(output) = self.asked.get(next).copied() {
            next += 1;
            match output {
                Output::Bind { ticket, worker, why } => {
                    let held = self
                        .entry(ticket)
                        .is_some_and(|entry| matches!(entry.state, State::Held { .. }));
                    if !held || !self.cluster.view().is_ready(worker) {
                        continue;
                    }
                    if self.entries[index_of(ticket)].excluded.contains(&worker)
                        && self.has_alternative(ticket)
                    {
                        self.defect(Defect::ChoseExcluded);
                    }
                    self.held -= 1;
                    self.outputs.push_back(BalancerOutput::Bound { ticket, worker, why });
                    self.end_reservations(ticket, Some(worker));
                    self.dispatch(now, ticket, worker);
                }
                Output::Probe { worker } => {
                    if self.cluster.view().worker(worker).is_some() {
                        self.outputs.push_back(BalancerOutput::Probe { worker });
                    }
                }
                Output::Reserve { ticket, worker } => {
                    if self.cluster.view().is_ready(worker)
                        && let Some(entry) = self.entry_mut(ticket)
                        && matches!(entry.state, State::Held { .. })
                        && !entry.reserved.contains(&worker)
                    {
                        entry.reserved.push(worker);
                        self.outputs.push_back(BalancerOutput::Reserve { ticket, worker });
                    }
                }
                Output::Cancel { ticket, worker } => self.cancel(ticket, worker),
            }
        }
        self.asked.clear();
    }

    /// Ends one reservation, if there is one.
    fn cancel(&mut self, ticket: Ticket, worker: WorkerId) {
        let Some(entry) = self.entry_mut(ticket) else { return };
        if let Some(at) = entry.reserved.iter().position(|reserved| *reserved == worker) {
            entry.reserved.swap_remove(at);
            self.outputs.push_back(BalancerOutput::Cancel { ticket, worker });
        }
    }

    /// Ends all reservations of a request that is held no more, but for the worker that got it.
    fn end_reservations(&mut self, ticket: Ticket, bound: Option<WorkerId>) {
        let view = self.cluster.view();
        let reserved = &mut self.entries[index_of(ticket)].reserved;
        for worker in reserved.drain(..) {
            if Some(worker) != bound && view.worker(worker).is_some() {
                self.outputs.push_back(BalancerOutput::Cancel { ticket, worker });
            }
        }
    }

    fn push_deadline(&mut self, until: Time, ticket: Ticket) {
        // Deadlines of requests that were bound long ago must not pile up.
        if self.deadlines.len() > 64 + 4 * self.held {
            let mut deadlines = std::mem::take(&mut self.deadlines);
            deadlines.retain(|Reverse((until, ticket))| self.is_held(*ticket, *until));
            self.deadlines = deadlines;
        }
        self.deadlines.push(Reverse((until, ticket)));
    }

    fn is_held(&self, ticket: Ticket, until: Time) -> bool {
        self.entry(ticket).is_some_and(|entry| entry.state == State::Held { until })
    }

    fn entry(&self, ticket: Ticket) -> Option<&Entry> {
        let entry = self.entries.get(index_of(ticket))?;
        let valid = u64::from(entry.generation) == ticket.0 >> 32 && entry.state != State::Free;
        valid.then_some(entry)
    }

    fn entry_mut(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(index_of(ticket))?;
        let valid = u64::from(entry.generation) == ticket.0 >> 32 && entry.state != State::Free;
        valid.then_some(entry)
    }
}

/// A ticket is a slot in its low half and the slot's generation in its high half.
const fn index_of(ticket: Ticket) -> usize {
    ticket.0 as u32 as usize
}

/// Calls a policy, which may be code from outside, and catches its panic. The panic hook has said where
/// it was.
fn panics(call: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancing::{ProbeSet, WorkerInfo};

    /// Does what it is told; binds held tickets when an instance becomes idle.
    #[derive(Debug, Default)]
    struct Scripted {
        decisions: VecDeque<Decision>,
        held: Vec<Ticket>,
        wakeup: Option<Time>,
    }

    impl BalancingPolicy for Scripted {
        fn select(
            &mut self,
            request: &RequestInfo<'_>,
            _: &ClusterView<'_>,
            _: &mut PolicyContext<'_>,
        ) -> Decision {
            let decision = self.decisions.pop_front().unwrap();
            if matches!(decision, Decision::Hold { .. }) {
                self.held.push(request.ticket);
            }
            decision
        }

        fn observe(
            &mut self,
            event: &PolicyEvent<'_>,
            _: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) {
            if let PolicyEvent::Idle { worker, .. } = event {
                // All at once, and each twice: the second is passed over.
                for ticket in self.held.iter().chain(&self.held) {
                    cx.bind(*ticket, *worker, Why("idle"));
                }
                self.held.clear();
            }
        }

        fn next_wakeup(&self) -> Option<Time> {
            self.wakeup
        }
    }

    fn balancer(decisions: impl IntoIterator<Item = Decision>) -> Balancer {
        let decisions = decisions.into_iter().collect();
        Balancer::new(Box::new(Scripted { decisions, ..Scripted::default() }), 1)
    }

    fn hold(until: u64) -> Decision {
        Decision::Hold { until: Time(until) }
    }

    #[test]
    fn a_held_ticket_is_bound_once_and_only_while_held() {
        let mut b = balancer([hold(100), hold(100)]);
        let f = b.function(&"f".parse().unwrap());
        let w = b.join(Time(0), WorkerInfo::new("w", 1));
        let (first, second) = (b.arrived(f), b.arrived(f));
        assert_eq!(b.select(Time(1), first), hold(100));
        b.select(Time(1), second);
        assert_eq!((b.held(), b.poll_timeout()), (2, Some(Time(100))));
        b.abandoned(Time(2), second);
        b.worker_idle(Time(3), w, f);
        assert_eq!(
            b.poll_output(),
            Some(BalancerOutput::Bound { ticket: first, worker: w, why: Why("idle") })
        );
        assert_eq!(b.poll_output(), None);
        assert_eq!(b.view().in_flight(w), 1);
        assert_eq!(b.view().idle(w, f), 0, "the dispatch consumed the idle instance");
        assert_eq!(b.poll_timeout(), None);
        b.handle_timeout(Time(200));
        assert_eq!(b.poll_output(), None);
        b.finish(Time(201), first);
        b.finish(Time(201), second);
        assert_eq!((b.tickets(), b.held(), b.view().in_flight_total()), (0, 0, 0));
    }

    #[test]
    fn a_bind_to_a_worker_that_is_not_ready_is_passed_over() {
        let mut b = balancer([hold(100)]);
        let f = b.function(&"f".parse().unwrap());
        let w = b.join(Time(0), WorkerInfo::new("w", 1));
        let ticket = b.arrived(f);
        b.select(Time(1), ticket);
        b.set_draining(Time(1), w, true);
        b.worker_idle(Time(3), w, f);
        assert_eq!((b.poll_output(), b.held()), (None, 1));
        b.handle_timeout(Time(100));
        let refusal = Refusal::Overloaded;
        assert_eq!(b.poll_output(), Some(BalancerOutput::Refused { ticket, refusal }));
        assert_eq!(b.held(), 0);
    }

    #[test]
    fn a_policy_that_chooses_badly_is_refused_and_counted() {
        let mut cluster = Cluster::new();
        let w0 = cluster.join(WorkerInfo::new("a", 1));
        let w1 = cluster.join(WorkerInfo::new("b", 1));
        let to = |w| Decision::To(w, Why("script"));
        let mut b = balancer([to(w1), to(w0), to(w0)]);
        let f = b.function(&"f".parse().unwrap());
        b.join(Time(0), WorkerInfo::new("a", 1));
        let ticket = b.arrived(f);
        assert_eq!(b.select(Time(0), ticket), Decision::Refuse(Refusal::NoWorker));
        assert_eq!(b.defects(), (1, Some(Defect::ChoseUnready)));
        b.exclude(ticket, w0);
        assert!(!b.has_alternative(ticket));
        assert_eq!(b.select(Time(0), ticket), to(w0));
        b.completed(Time(1), ticket, None, false);
        b.join(Time(1), WorkerInfo::new("b", 1));
        b.select(Time(1), ticket);
        assert_eq!(b.defects(), (2, Some(Defect::ChoseExcluded)));
    }

    #[test]
    fn probing_ends() {
        let mut cluster = Cluster::new();
        let w = cluster.join(WorkerInfo::new("a", 1));
        let probe = Decision::Probe(ProbeSet::new(&[w]));
        let mut b = balancer(std::iter::repeat_n(probe, 100));
        let f = b.function(&"f".parse().unwrap());
        b.join(Time(0), WorkerInfo::new("a", 1));
        let ticket = b.arrived(f);
        let rounds = (0..100).take_while(|_| b.select(Time(0), ticket) == probe).count();
        assert_eq!(rounds, usize::from(MOST_PROBE_ROUNDS));
        assert_eq!(b.defects().1, Some(Defect::ProbedForEver));
    }

    #[test]
    fn a_wakeup_in_the_past_is_no_busy_loop() {
        let policy = Scripted { wakeup: Some(Time(5)), ..Scripted::default() };
        let mut b = Balancer::new(Box::new(policy), 1);
        assert_eq!(b.poll_timeout(), Some(Time(5)));
        b.handle_timeout(Time(7));
        assert_eq!(b.poll_timeout(), Some(Time(7) + WAKEUP_FLOOR));
        assert_eq!(b.defects().1, Some(Defect::WokeForEver));
    }

    #[test]
    fn a_worker_that_leaves_takes_its_count_but_not_its_completions() {
        let mut cluster = Cluster::new();
        let w = cluster.join(WorkerInfo::new("a", 1));
        let mut b = balancer([Decision::To(w, Why("script"))]);
        let f = b.function(&"f".parse().unwrap());
        b.join(Time(0), WorkerInfo::new("a", 1));
        let ticket = b.arrived(f);
        b.select(Time(0), ticket);
        let again = b.join(Time(1), WorkerInfo::new("a", 1));
        assert_eq!((b.view().in_flight_total(), again == w), (0, false));
        b.completed(Time(2), ticket, None, true);
        b.completed(Time(2), ticket, None, true);
        assert_eq!(b.view().in_flight(again), 0);
        b.finish(Time(2), ticket);
        b.finish(Time(2), ticket);
        assert_eq!(b.tickets(), 0);
    }

    /// Reserves two workers for each request and takes the offers that it likes.
    #[derive(Debug)]
    struct Late {
        takes_offers: bool,
    }

    impl BalancingPolicy for Late {
        fn select(
            &mut self,
            request: &RequestInfo<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) -> Decision {
            for worker in view.ready().iter().take(2) {
                cx.reserve(request.ticket, *worker);
                cx.reserve(request.ticket, *worker);
            }
            Decision::Hold { until: Time(100) }
        }

        fn observe(
            &mut self,
            event: &PolicyEvent<'_>,
            _: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) {
            if let PolicyEvent::Offered { ticket, worker } = *event
                && self.takes_offers
            {
                cx.bind(ticket, worker, Why("offered"));
            }
        }
    }

    fn outputs(b: &mut Balancer) -> Vec<BalancerOutput> {
        std::iter::from_fn(|| b.poll_output()).collect()
    }

    fn late(takes_offers: bool) -> (Balancer, FunctionId, [WorkerId; 2]) {
        let mut b = Balancer::new(Box::new(Late { takes_offers }), 1);
        let f = b.function(&"f".parse().unwrap());
        let workers = ["a", "b"].map(|name| b.join(Time(0), WorkerInfo::new(name, 1)));
        (b, f, workers)
    }

    #[test]
    fn the_first_offer_gets_the_request_and_the_others_are_cancelled() {
        let (mut b, f, [v, w]) = late(true);
        let ticket = b.arrived(f);
        b.select(Time(1), ticket);
        let reserve = |worker| BalancerOutput::Reserve { ticket, worker };
        let cancel = |worker| BalancerOutput::Cancel { ticket, worker };
        assert_eq!(outputs(&mut b), [reserve(v), reserve(w)], "each once");
        assert_eq!(b.function_of(ticket), Some(f));
        b.offered(Time(2), ticket, w);
        let bound = BalancerOutput::Bound { ticket, worker: w, why: Why("offered") };
        assert_eq!(outputs(&mut b), [bound, cancel(v)]);
        assert_eq!((b.held(), b.view().in_flight(w)), (0, 1));
        // The other's offer was on its way, and one is repeated.
        b.offered(Time(3), ticket, v);
        assert_eq!(outputs(&mut b), [cancel(v)]);
        b.offered(Time(3), ticket, w);
        assert_eq!(outputs(&mut b), [], "the request itself is the answer");
        b.finish(Time(4), ticket);
        b.offered(Time(5), ticket, w);
        assert_eq!(outputs(&mut b), [cancel(w)], "also when all is over");
        b.leave(Time(6), w);
        b.offered(Time(7), ticket, w);
        assert_eq!(outputs(&mut b), []);
    }

    #[test]
    fn an_offer_that_is_not_taken_is_cancelled_and_reservations_end_with_the_hold() {
        let (mut b, f, [v, w]) = late(false);
        let (first, second) = (b.arrived(f), b.arrived(f));
        b.select(Time(1), first);
        b.select(Time(1), second);
        outputs(&mut b);
        let cancel = |ticket, worker| BalancerOutput::Cancel { ticket, worker };
        b.offered(Time(2), first, v);
        assert_eq!(outputs(&mut b), [cancel(first, v)]);
        b.handle_timeout(Time(100));
        let refused = |ticket| BalancerOutput::Refused { ticket, refusal: Refusal::Overloaded };
        let ended = outputs(&mut b);
        for expected in [
            refused(first),
            cancel(first, w),
            refused(second),
            cancel(second, v),
            cancel(second, w),
        ] {
            assert!(ended.contains(&expected), "{ended:?}");
        }
        assert_eq!(ended.len(), 5);
        let third = b.arrived(f);
        b.select(Time(101), third);
        b.leave(Time(102), v);
        outputs(&mut b);
        b.finish(Time(103), third);
        assert_eq!(outputs(&mut b), [cancel(third, w)], "one that left needs no cancellation");
    }

    /// A model of workers with queues: each request runs exactly once, each offer is answered, and
    /// nothing is left.
    #[test]
    fn reservations_come_to_nothing_in_the_end() {
        for seed in 0..200 {
            let mut rng = Rng::from_seed_and_label(seed, "reservations");
            let mut b = Balancer::new(Box::new(Late { takes_offers: true }), seed);
            let f = b.function(&"f".parse().unwrap());
            let mut queues: std::collections::BTreeMap<WorkerId, VecDeque<Ticket>> = (0..3)
                .map(|i| b.join(Time(0), WorkerInfo::new(format!("{i}"), 1)))
                .map(|worker| (worker, VecDeque::new()))
                .collect();
            let workers: Vec<_> = queues.keys().copied().collect();
            let (mut held, mut running) = (Vec::new(), Vec::new());
            for step in 0..300 {
                let now = Time(step);
                let worker = workers[rng.below(workers.len())];
                let mut offer = None;
                match rng.below(if step < 200 { 5 } else { 3 }) {
                    0 => {
                        offer = queues.get_mut(&worker).and_then(VecDeque::pop_front);
                        if let Some(ticket) = offer {
                            b.offered(now, ticket, worker);
                        }
                    }
                    1 if !running.is_empty() => {
                        let ticket = running.swap_remove(rng.below(running.len()));
                        b.completed(now, ticket, None, true);
                        b.finish(now, ticket);
                    }
                    2 => {
                        b.set_draining(now, worker, step < 200 && rng.chance(0.3));
                        if b.poll_timeout().is_some_and(|at| at <= now) {
                            b.handle_timeout(now);
                        }
                    }
                    3 => {
                        let ticket = b.arrived(f);
                        b.select(now, ticket);
                        held.push(ticket);
                    }
                    4 if !held.is_empty() => {
                        let ticket = held.swap_remove(rng.below(held.len()));
                        b.finish(now, ticket);
                    }
                    _ => {}
                }
                let mut answers = 0;
                for output in outputs(&mut b) {
                    match output {
                        BalancerOutput::Reserve { ticket, worker } => {
                            queues.get_mut(&worker).unwrap().push_back(ticket);
                        }
                        BalancerOutput::Bound { ticket, worker: at, .. } => {
                            answers += usize::from(offer == Some(ticket) && at == worker);
                            held.retain(|other| *other != ticket);
                            running.push(ticket);
                        }
                        BalancerOutput::Cancel { ticket, worker: at } => {
                            answers += usize::from(offer == Some(ticket) && at == worker);
                            queues.get_mut(&at).unwrap().retain(|other| *other != ticket);
                        }
                        BalancerOutput::Refused { ticket, .. } => {
                            held.retain(|other| *other != ticket);
                            b.finish(now, ticket);
                        }
                        BalancerOutput::Probe { .. } => unreachable!(),
                    }
                }
                assert_eq!(answers, usize::from(offer.is_some()), "seed {seed}, step {step}");
                for (worker, queue) in &queues {
                    for ticket in queue {
                        let entry = b.entry(*ticket).unwrap();
                        assert!(entry.reserved.contains(worker), "seed {seed}: a dead reservation");
                    }
                }
            }
            for ticket in running.drain(..).chain(held.drain(..)) {
                b.finish(Time(1_000), ticket);
            }
            assert_eq!((b.tickets(), b.held(), b.view().in_flight_total()), (0, 0, 0));
            assert!(b.entries.iter().all(|entry| entry.reserved.is_empty()));
        }
    }

    #[test]
    fn deadlines_of_bound_tickets_do_not_pile_up() {
        let mut b = balancer(std::iter::repeat_n(hold(u64::MAX), 10_000));
        let f = b.function(&"f".parse().unwrap());
        for _ in 0..10_000 {
            let ticket = b.arrived(f);
            b.select(Time(0), ticket);
            b.finish(Time(0), ticket);
        }
        assert!(b.deadlines.len() < 200, "{}", b.deadlines.len());
    }
}
