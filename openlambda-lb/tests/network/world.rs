//! The world of the harness: time, the network between nodes, clients, and what goes wrong.
//!
//! Everything that is to happen stands in one queue by its time. The network gives each message a delay
//! of its own, so messages overtake each other; it loses and repeats what may be lost and repeated. A call
//! and its reply go over a connection: when they do not come through, its balancer sees the connection
//! break, and does not know whether the call has run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openlambda_core::balancing::{BalancingPolicy, Ticket, WorkerId, WorkerLoad};
use openlambda_core::failure::{FailureKind, Started};
use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::hash::stable_hash;
use openlambda_core::invocation::StartKind;
use openlambda_core::random::Rng;
use openlambda_core::scheduler::{InstanceId, InvocationId};
use openlambda_core::time::Time;
use openlambda_core::wire::{Reservation, ReservationKey, WorkerEvent};

use super::balancers::BalancerNode;
use super::workers::WorkerNode;

pub(crate) const FUNCTIONS: usize = 3;
/// How long a worker's snapshot and announcement are apart.
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);
/// For so long clients call and things go wrong; after that it gets quiet.
const STORM: Duration = Duration::from_secs(6);
/// After the storm its calls may wait for so long until they are sent: as long as a policy holds one.
const WAIT: Duration = Duration::from_secs(30);
/// Longer than anything that was begun may take: the longest run, and a worker's way back.
const QUIET: Duration = Duration::from_secs(12);

/// A process: the place of a worker or balancer, and how often it was started there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Node {
    pub(crate) at: usize,
    pub(crate) incarnation: u64,
}

/// A stream of events, as its balancer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tag(pub(crate) u64);

/// What was sent to a worker.
#[derive(Clone, Debug)]
pub(crate) enum ToWorker {
    Call {
        attempt: usize,
        key: Option<ReservationKey>,
    },
    /// The connection of a call is closed.
    HangUp {
        attempt: usize,
    },
    Reserve(Reservation),
    Unreserve(ReservationKey),
    Probe {
        id: u64,
    },
    Subscribe {
        tag: Tag,
    },
    StreamEnded {
        tag: Tag,
    },
}

/// What was sent to a balancer.
#[derive(Clone, Debug)]
pub(crate) enum ToBalancer {
    Reply { attempt: usize, reply: Reply, idle: bool },
    Probed { id: u64, load: WorkerLoad },
    Announced { worker: Node },
    Event { tag: Tag, event: WorkerEvent },
    StreamBroke { tag: Tag },
}

/// How an attempt came out, as its balancer sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Reply {
    Ok(StartKind),
    Failed(FailureKind, Started),
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Client {
        function: usize,
    },
    ClientLeaves {
        call: usize,
    },
    AtWorker {
        to: Node,
        from: Node,
        message: ToWorker,
    },
    AtBalancer {
        to: Node,
        from: Node,
        message: ToBalancer,
    },
    /// A worker is through with something.
    Fetched {
        worker: Node,
        digest: Digest,
    },
    Removed {
        worker: Node,
        digest: Digest,
    },
    Created {
        worker: Node,
        instance: InstanceId,
    },
    Destroyed {
        worker: Node,
        instance: InstanceId,
    },
    Paused {
        worker: Node,
        instance: InstanceId,
    },
    LimitSet {
        worker: Node,
        instance: InstanceId,
        bytes: u64,
    },
    Resumed {
        worker: Node,
        instance: InstanceId,
    },
    Exits {
        worker: Node,
        instance: InstanceId,
    },
    RunEnds {
        worker: Node,
        invocation: InvocationId,
    },
    Beat {
        worker: Node,
    },
    /// A balancer goes on with something.
    ProbesAreOver {
        balancer: Node,
        ticket: Ticket,
        round: u64,
    },
    ReservationSaid {
        balancer: Node,
        ticket: Ticket,
        worker: WorkerId,
        peer: Node,
    },
    Reconnect {
        balancer: Node,
        worker: usize,
    },
    /// What goes wrong, and is mended.
    Fault,
    Mend(Mend),
    Publish {
        function: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Mend {
    Worker(usize),
    Balancer(usize),
    Network(usize),
}

/// A client's call.
#[derive(Debug)]
pub(crate) struct ClientCall {
    pub(crate) function: usize,
    pub(crate) version: u64,
    pub(crate) home: Option<(Node, Ticket)>,
    pub(crate) answers: u32,
    pub(crate) runs: u32,
}

/// One try of a call at one worker.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) call: usize,
    pub(crate) balancer: Node,
    pub(crate) ticket: Ticket,
    pub(crate) worker: Node,
    /// How its balancer names that worker.
    pub(crate) id: WorkerId,
    /// Its balancer waits for its outcome.
    pub(crate) open: bool,
    /// It has run, or is at a worker where it may.
    pub(crate) may_run: bool,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    queue: BTreeMap<(Time, u64), Event>,
    sent: u64,
    pub(crate) workers: Vec<Option<WorkerNode>>,
    pub(crate) balancers: Vec<Option<BalancerNode>>,
    pub(crate) incarnations: u64,
    policy: fn(&str) -> Box<dyn BalancingPolicy>,
    policy_name: &'static str,
    /// Workers that nothing reaches.
    pub(crate) cut: BTreeSet<usize>,
    /// The newest version of each function.
    pub(crate) published: [u64; FUNCTIONS],
    pub(crate) calls: Vec<ClientCall>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) numbers: u64,
    stormy: bool,
    /// A digest of everything that has happened.
    history: u64,
    pub(crate) seen: BTreeMap<&'static str, u64>,
}

pub(crate) fn function(n: usize) -> FunctionName {
    format!("f{n}").parse().unwrap()
}

pub(crate) fn index_of(function: &FunctionName) -> usize {
    function.name()[1..].parse().unwrap()
}

pub(crate) fn digest_of(function: usize, version: Version) -> Digest {
    // Each second version has the same bytes as the one before.
    Digest::from_bytes([(function * 64) as u8 + (version.0 / 2 % 64) as u8; 32])
}

impl World {
    pub(crate) fn new(
        seed: u64,
        policy: fn(&str) -> Box<dyn BalancingPolicy>,
        policy_name: &'static str,
    ) -> Self {
        let mut rng = Rng::from_seed_and_label(seed, "network");
        let (workers, balancers) = (1 + rng.below(4), 1 + rng.below(3));
        let mut world = World {
            now: Time::ZERO,
            rng,
            queue: BTreeMap::new(),
            sent: 0,
            workers: (0..workers).map(|_| None).collect(),
            balancers: (0..balancers).map(|_| None).collect(),
            incarnations: 0,
            policy,
            policy_name,
            cut: BTreeSet::new(),
            published: [1; FUNCTIONS],
            calls: Vec::new(),
            attempts: Vec::new(),
            numbers: 0,
            stormy: true,
            history: 0,
            seen: BTreeMap::new(),
        };
        (0..balancers).for_each(|at| world.start_balancer(at));
        (0..workers).for_each(|at| world.start_worker(at));
        world
    }

    /// A storm, then quiet, then the end. Returns what tells this history from others.
    pub(crate) fn run(&mut self) -> u64 {
        let mut at = Duration::ZERO;
        let busy = Duration::from_millis([4, 15, 40][self.rng.below(3)]);
        while at < STORM {
            let function = self.rng.below(FUNCTIONS);
            self.at(at, Event::Client { function });
            at += self.rng.exponential(busy);
        }
        let mut at = self.rng.exponential(Duration::from_millis(300));
        while at < STORM {
            self.at(at, Event::Fault);
            at += self.rng.exponential(Duration::from_millis(300));
        }
        self.run_until(Time::ZERO + STORM);
        self.stormy = false;
        self.mend_all();
        // A few slots may need longer for what came in the storm than anything else takes.
        let until = self.now + WAIT;
        while self.now < until && self.calls.iter().any(|call| call.answers == 0) {
            self.run_until(self.now + HEARTBEAT);
        }
        self.run_until(self.now + QUIET);
        self.check_quiet();
        self.end_all();
        self.history
    }

    /// Something happens after this time.
    pub(crate) fn at(&mut self, after: Duration, event: Event) {
        self.sent += 1;
        self.queue.insert((self.now + after, self.sent), event);
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn chance(&mut self, p: f64) -> bool {
        self.rng.chance(p)
    }

    /// Uniform between two numbers of milliseconds.
    pub(crate) fn ms(&mut self, from: u64, to: u64) -> Duration {
        let span = (to - from) * 1_000;
        Duration::from_micros(from * 1_000 + self.rng.below(span as usize + 1) as u64)
    }

    /// Notes that something happened which a harness must see to be worth anything.
    pub(crate) fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn run_until(&mut self, until: Time) {
        loop {
            let queued = self.queue.first_key_value().map(|((at, _), _)| *at);
            let timer = self.next_timer();
            let next = queued.into_iter().chain(timer.map(|(at, _)| at)).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            match timer {
                // A timer first: what has been too late must not be saved by what comes at that time.
                Some((at, node)) if queued.is_none_or(|queued| at <= queued) => match node {
                    Timer::Worker(at) => self.worker_timeout(at),
                    Timer::Balancer(at) => self.balancer_timeout(at),
                },
                _ => {
                    let (_, event) = self.queue.pop_first().unwrap();
                    let text = format!("{:?} {event:?}", self.now);
                    self.history = stable_hash(self.history, text.as_bytes());
                    if std::env::var_os("NETWORK_TRACE").is_some() {
                        eprintln!("{text}");
                    }
                    self.happens(event);
                }
            }
            self.check();
        }
        self.now = until;
    }

    fn next_timer(&mut self) -> Option<(Time, Timer)> {
        let mut next = None;
        let mut offer = |at: Option<Time>, timer| {
            if let Some(at) = at
                && next.is_none_or(|(earliest, _)| at < earliest)
            {
                next = Some((at, timer));
            }
        };
        for (at, node) in self.workers.iter_mut().enumerate() {
            offer(node.as_mut().and_then(|node| node.core.poll_timeout()), Timer::Worker(at));
        }
        for (at, node) in self.balancers.iter_mut().enumerate() {
            offer(node.as_mut().and_then(|node| node.balancer.poll_timeout()), Timer::Balancer(at));
        }
        next
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Client { function } => self.client(function),
            Event::ClientLeaves { call } => self.client_leaves(call),
            Event::AtWorker { to, from, message } => self.at_worker(to, from, message),
            Event::AtBalancer { to, from, message } => self.at_balancer(to, from, message),
            Event::ProbesAreOver { balancer, ticket, round } => {
                self.probes_are_over(balancer, ticket, round);
            }
            Event::ReservationSaid { balancer, ticket, worker, peer } => {
                self.reservation_said(balancer, ticket, worker, peer);
            }
            Event::Reconnect { balancer, worker } => self.connect(balancer, worker),
            Event::Fault => self.fault(),
            Event::Mend(mend) => self.mend(mend),
            Event::Publish { function } => self.published[function] += 1,
            Event::Beat { worker } => self.beat(worker),
            other => self.worker_is_through(other),
        }
    }

    // The network.

    fn delay(&mut self) -> Duration {
        match self.chance(0.9) || !self.stormy {
            true => self.ms(0, 4),
            false => self.ms(5, 300),
        }
    }

    /// Sends what need not arrive. Returns when it arrives first, if it does.
    pub(crate) fn tell_worker(
        &mut self,
        from: Node,
        to: Node,
        message: ToWorker,
    ) -> Option<Duration> {
        let copies = self.copies();
        let delays: Vec<Duration> = (0..copies).map(|_| self.delay()).collect();
        for delay in &delays {
            self.at(*delay, Event::AtWorker { to, from, message: message.clone() });
        }
        delays.into_iter().min()
    }

    pub(crate) fn tell_balancer(&mut self, from: Node, to: Node, message: ToBalancer) {
        for _ in 0..self.copies() {
            let delay = self.delay();
            self.at(delay, Event::AtBalancer { to, from, message: message.clone() });
        }
    }

    fn copies(&mut self) -> usize {
        match self.rng.below(100) {
            _ if !self.stormy => 1,
            0..7 => 0,
            7..11 => 2,
            _ => 1,
        }
    }

    /// Sends over a connection: it comes once, or the connection breaks.
    pub(crate) fn connect_to_worker(&mut self, from: Node, to: Node, message: ToWorker) {
        let delay = self.delay();
        self.at(delay, Event::AtWorker { to, from, message });
    }

    pub(crate) fn answer_balancer(&mut self, from: Node, to: Node, message: ToBalancer) {
        let delay = self.delay();
        self.at(delay, Event::AtBalancer { to, from, message });
    }

    /// The way of an attempt is broken; its balancer sees that.
    pub(crate) fn breaks(&mut self, attempt: usize, started: Started) {
        let Attempt { balancer, worker, .. } = self.attempts[attempt];
        let kind = match started {
            Started::No => FailureKind::NoWorker,
            _ => FailureKind::WorkerDied,
        };
        let reply = Reply::Failed(kind, started);
        self.answer_balancer(worker, balancer, ToBalancer::Reply { attempt, reply, idle: false });
    }

    pub(crate) fn reaches(&self, worker: Node) -> bool {
        self.is_worker(worker) && !self.cut.contains(&worker.at)
    }

    pub(crate) fn is_worker(&self, node: Node) -> bool {
        self.workers[node.at].as_ref().is_some_and(|worker| worker.node == node)
    }

    pub(crate) fn is_balancer(&self, node: Node) -> bool {
        self.balancers[node.at].as_ref().is_some_and(|balancer| balancer.node == node)
    }

    // Clients.

    fn client(&mut self, function: usize) {
        let up: Vec<_> = self.balancers.iter().flatten().map(|balancer| balancer.node).collect();
        if up.is_empty() {
            return;
        }
        let node = up[self.rng.below(up.len())];
        let call = self.calls.len();
        let version = self.published[function];
        self.calls.push(ClientCall { function, version, home: None, answers: 0, runs: 0 });
        if self.chance(0.04) {
            let patience = self.ms(0, 120);
            self.at(patience, Event::ClientLeaves { call });
        }
        self.arrives(node, call);
    }

    pub(crate) fn answered(&mut self, call: usize) {
        let call = &mut self.calls[call];
        call.answers += 1;
        call.home = None;
        assert_eq!(call.answers, 1, "answered twice: {call:?}");
    }

    // What goes wrong.

    fn fault(&mut self) {
        let worker = self.rng.below(self.workers.len());
        let balancer = self.rng.below(self.balancers.len());
        match self.rng.below(12) {
            0..2 if self.workers[worker].is_some() => {
                self.saw("a worker is killed");
                self.kill_worker(worker);
                let pause = self.ms(10, 1500);
                self.at(pause, Event::Mend(Mend::Worker(worker)));
            }
            2..4 => self.drain_worker(worker),
            4 if self.balancers[balancer].is_some() => {
                self.saw("a balancer is killed");
                self.kill_balancer(balancer);
                let pause = self.ms(10, 1000);
                self.at(pause, Event::Mend(Mend::Balancer(balancer)));
            }
            5..7 if !self.cut.contains(&worker) => {
                self.saw("a worker is cut off");
                self.cut_off(worker);
                let pause = self.ms(10, 1500);
                self.at(pause, Event::Mend(Mend::Network(worker)));
            }
            7 => self.exits(worker),
            8 => self.memory_pressure(worker),
            9 => self.prewarm(worker),
            10 => self.deleted(worker),
            _ => {
                let function = self.rng.below(FUNCTIONS);
                let pause = self.ms(0, 50);
                self.at(pause, Event::Publish { function });
            }
        }
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Worker(at) if self.workers[at].is_none() => self.start_worker(at),
            Mend::Balancer(at) if self.balancers[at].is_none() => self.start_balancer(at),
            Mend::Network(at) => {
                self.cut.remove(&at);
            }
            _ => {}
        }
    }

    fn mend_all(&mut self) {
        for at in 0..self.workers.len() {
            self.mend(Mend::Worker(at));
            self.mend(Mend::Network(at));
        }
        (0..self.balancers.len()).for_each(|at| self.mend(Mend::Balancer(at)));
    }

    /// Nothing goes to or from the worker, until that is mended. Its streams break, and each side sees that
    /// at its own time.
    fn cut_off(&mut self, at: usize) {
        self.cut.insert(at);
        let Some(worker) = &self.workers[at] else { return };
        let node = worker.node;
        let streams: Vec<_> = worker.streams.values().copied().collect();
        for (balancer, tag) in streams {
            let (there, here) = (self.ms(0, 800), self.ms(0, 800));
            let message = ToBalancer::StreamBroke { tag };
            self.at(there, Event::AtBalancer { to: balancer, from: node, message });
            let message = ToWorker::StreamEnded { tag };
            self.at(here, Event::AtWorker { to: node, from: balancer, message });
        }
        for attempt in 0..self.attempts.len() {
            let its = &self.attempts[attempt];
            if its.open && its.worker == node && self.chance(0.5) {
                self.breaks(attempt, Started::Maybe);
            }
        }
    }

    // What holds.

    fn check(&mut self) {
        for worker in self.workers.iter().flatten() {
            worker.check();
        }
        for balancer in self.balancers.iter().flatten() {
            balancer.check(&self.attempts);
        }
    }

    /// All is over, and what balancers see is what workers have.
    fn check_quiet(&mut self) {
        for (n, call) in self.calls.iter().enumerate() {
            assert_eq!(call.answers, 1, "call {n} got no answer: {call:?}");
            assert!(call.runs <= 1, "call {n} has run twice: {call:?}");
        }
        assert!(self.attempts.iter().all(|attempt| !attempt.open));
        for at in 0..self.workers.len() {
            self.snapshot_for_all(at);
        }
        for worker in self.workers.iter().flatten() {
            worker.check_quiet();
        }
        for balancer in self.balancers.iter().flatten() {
            balancer.check_quiet(&self.workers);
        }
    }

    /// Every worker drains, in time.
    fn end_all(&mut self) {
        for at in 0..self.workers.len() {
            self.drain_for_good(at);
        }
        let until = self.now + Duration::from_secs(5);
        self.run_until(until);
        for worker in self.workers.iter().flatten() {
            worker.check_drained();
        }
    }

    pub(crate) fn make_policy(&self) -> Box<dyn BalancingPolicy> {
        (self.policy)(self.policy_name)
    }

    pub(crate) fn next_incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }
}

#[derive(Clone, Copy)]
enum Timer {
    Worker(usize),
    Balancer(usize),
}
