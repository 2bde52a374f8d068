//! What balancers do here: the driver around each pure balancer, and how it follows the workers.

use std::collections::BTreeMap;
use std::time::Duration;

use openlambda_core::balancing::retry::{FailedAttempt, GiveUp, Verdict};
use openlambda_core::balancing::{Decision, FunctionId, Ticket, WorkerId, WorkerInfo, WorkerLoad};
use openlambda_core::failure::Started;
use openlambda_core::function::Version;
use openlambda_core::time::Time;
use openlambda_core::wire::{Reservation, ReservationKey, WorkerEvent};
use openlambda_lb::balancer::{Balancer, BalancerOutput};

use super::workers::{WorkerNode, balancer_name, name_of};
use super::world::{
    Attempt, Event, FUNCTIONS, Node, Reply, Tag, ToBalancer, ToWorker, World, digest_of, function,
    index_of,
};

const PROBE_LIMIT: Duration = Duration::from_millis(50);
const RESERVATION_LIMIT: Duration = Duration::from_secs(2);
/// A worker that was not reached for so long has left for good.
const GIVE_UP: Duration = Duration::from_secs(1);

pub(crate) struct BalancerNode {
    pub(crate) node: Node,
    pub(crate) balancer: Balancer,
    functions: Vec<FunctionId>,
    open: BTreeMap<Ticket, Open>,
    /// Who is followed, by the worker's place.
    members: BTreeMap<usize, Member>,
    peers: BTreeMap<WorkerId, Node>,
    probes: BTreeMap<u64, (WorkerId, Option<Ticket>)>,
}

/// A request that is not over.
#[derive(Debug)]
struct Open {
    call: usize,
    /// The policy holds it, until then.
    held: Option<Time>,
    /// Some worker was asked to keep a place.
    reserved: bool,
    /// How workers know of it already.
    key: Option<ReservationKey>,
    /// The worker that may hold a slot for it.
    place: Option<WorkerId>,
    /// The probes that it waits for, and which round of them.
    probes: usize,
    round: u64,
    attempt: Option<usize>,
}

/// A worker that is followed.
#[derive(Debug)]
struct Member {
    node: Node,
    id: Option<WorkerId>,
    stream: Option<Tag>,
    alive: Time,
}

impl BalancerNode {
    pub(crate) fn check(&self, attempts: &[Attempt]) {
        let balancer = &self.balancer;
        assert_eq!(balancer.defects().0, 0, "{:?}", balancer.defects());
        assert_eq!(balancer.tickets(), self.open.len());
        let held = self.open.values().filter(|open| open.held.is_some()).count();
        assert_eq!(balancer.held(), held);
        let mut sent: BTreeMap<WorkerId, u32> = BTreeMap::new();
        for open in self.open.values() {
            let Some(attempt) = open.attempt else { continue };
            assert!(attempts[attempt].open && open.held.is_none());
            // One that has left, and come again, has a new id.
            if self.peers.contains_key(&attempts[attempt].id) {
                *sent.entry(attempts[attempt].id).or_default() += 1;
            }
        }
        let view = balancer.view();
        for (id, worker) in view.workers() {
            let known = sent.get(&id).copied().unwrap_or(0);
            assert_eq!(worker.in_flight(), known, "{:?} at {id:?}", self.node);
        }
        assert_eq!(view.in_flight_total(), sent.values().map(|n| u64::from(*n)).sum::<u64>());
    }

    /// Nothing is left, and it sees what the workers have.
    pub(crate) fn check_quiet(&self, workers: &[Option<WorkerNode>]) {
        let view = self.balancer.view();
        assert!(self.open.is_empty(), "{:?}", self.open);
        assert_eq!((self.balancer.tickets(), self.balancer.held()), (0, 0));
        assert_eq!(view.in_flight_total(), 0);
        assert_eq!(view.ready().len(), workers.len(), "{:?} sees all workers", self.node);
        for worker in workers.iter().flatten() {
            let id = view.named(&name_of(worker.node.at)).expect("it has joined");
            assert_eq!(self.peers[&id], worker.node);
            // The latency that it expects changes with time.
            let seen = WorkerLoad { latency_ns: 0, ..view.worker(id).unwrap().load() };
            assert_eq!(seen, WorkerLoad { latency_ns: 0, ..worker.core.load(Time::ZERO) });
            let idle: BTreeMap<_, _> = worker.core.idle().into_iter().collect();
            for (n, function_id) in self.functions.iter().enumerate() {
                let expected = idle.get(&function(n)).copied().unwrap_or(0);
                assert_eq!(view.idle(id, *function_id), expected, "f{n} at {:?}", worker.node);
            }
        }
    }
}

impl World {
    pub(crate) fn start_balancer(&mut self, at: usize) {
        let node = Node { at, incarnation: self.next_incarnation() };
        let mut balancer = Balancer::new(self.make_policy(), self.rng.next_u64());
        let functions = (0..FUNCTIONS).map(|n| balancer.function(&function(n))).collect();
        self.balancers[at] = Some(BalancerNode {
            node,
            balancer,
            functions,
            open: BTreeMap::new(),
            members: BTreeMap::new(),
            peers: BTreeMap::new(),
            probes: BTreeMap::new(),
        });
    }

    /// All at once. Its clients see their connections break, and so do the workers.
    pub(crate) fn kill_balancer(&mut self, at: usize) {
        let Some(balancer) = self.balancers[at].take() else { return };
        let node = balancer.node;
        for open in balancer.open.into_values() {
            self.answered(open.call);
            if let Some(attempt) = open.attempt {
                self.hang_up(attempt);
            }
        }
        for member in balancer.members.into_values() {
            if let Some(tag) = member.stream {
                self.connect_to_worker(node, member.node, ToWorker::StreamEnded { tag });
            }
        }
    }

    /// The balancer waits for the attempt no longer; its worker sees that.
    fn hang_up(&mut self, attempt: usize) {
        let Attempt { balancer, worker, .. } = self.attempts[attempt];
        self.attempts[attempt].open = false;
        self.connect_to_worker(balancer, worker, ToWorker::HangUp { attempt });
    }

    pub(crate) fn balancer_timeout(&mut self, at: usize) {
        let now = self.now;
        let balancer = self.balancers[at].as_mut().unwrap();
        let node = balancer.node;
        balancer.balancer.handle_timeout(now);
        let next = balancer.balancer.poll_timeout();
        assert!(next.is_none_or(|next| next > now), "a timer that has passed is set");
        self.balancer_outputs(node);
    }

    // Requests.

    pub(crate) fn arrives(&mut self, node: Node, call: usize) {
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let ticket = balancer.balancer.arrived(balancer.functions[self.calls[call].function]);
        let open = Open {
            call,
            held: None,
            reserved: false,
            key: None,
            place: None,
            probes: 0,
            round: 0,
            attempt: None,
        };
        let old = balancer.open.insert(ticket, open);
        assert!(old.is_none(), "a ticket was given twice");
        self.calls[call].home = Some((node, ticket));
        self.select(node, ticket);
    }

    fn select(&mut self, node: Node, ticket: Ticket) {
        let now = self.now;
        let round = self.number();
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let decision = balancer.balancer.select(now, ticket);
        let open = balancer.open.get_mut(&ticket).unwrap();
        match decision {
            Decision::To(worker, _) => self.dispatch(node, ticket, worker),
            Decision::Hold { until } => {
                (open.held, open.reserved) = (Some(until), false);
                self.saw("a call is held");
            }
            Decision::Probe(set) => {
                (open.probes, open.round) = (set.as_slice().len(), round);
                for worker in set.as_slice() {
                    self.probe(node, *worker, Some(ticket));
                }
                self.at(PROBE_LIMIT, Event::ProbesAreOver { balancer: node, ticket, round });
            }
            Decision::Refuse(_) => self.over(node, ticket),
        }
        self.balancer_outputs(node);
    }

    pub(crate) fn probes_are_over(&mut self, node: Node, ticket: Ticket, round: u64) {
        if !self.is_balancer(node) {
            return;
        }
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let open = balancer.open.get_mut(&ticket);
        if let Some(open) = open.filter(|open| open.round == round) {
            open.round = 0;
            self.select(node, ticket);
        }
    }

    fn probe(&mut self, node: Node, worker: WorkerId, ticket: Option<Ticket>) {
        let id = self.number();
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let Some(peer) = balancer.peers.get(&worker).copied() else { return };
        balancer.probes.insert(id, (worker, ticket));
        self.tell_worker(node, peer, ToWorker::Probe { id });
    }

    fn dispatch(&mut self, node: Node, ticket: Ticket, worker: WorkerId) {
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let peer = balancer.peers[&worker];
        let open = balancer.open.get_mut(&ticket).unwrap();
        let attempt = self.attempts.len();
        assert_eq!(open.attempt.replace(attempt), None, "two attempts at once");
        let key = open.key.clone();
        let call = open.call;
        assert_eq!(self.calls[call].runs, 0, "what has run is tried again");
        let others = self.attempts.iter().filter(|other| other.call == call && other.may_run);
        assert_eq!(others.count(), 0, "what may run is tried again");
        self.attempts.push(Attempt {
            call,
            balancer: node,
            ticket,
            worker: peer,
            id: worker,
            open: true,
            may_run: true,
        });
        self.connect_to_worker(node, peer, ToWorker::Call { attempt, key });
    }

    fn balancer_outputs(&mut self, node: Node) {
        let now = self.now;
        loop {
            let balancer = self.balancers[node.at].as_mut().unwrap();
            let Some(output) = balancer.balancer.poll_output() else { break };
            match output {
                BalancerOutput::Bound { ticket, worker, .. } => {
                    let open = balancer.open.get_mut(&ticket).expect("it is held");
                    assert!(open.held.take().is_some(), "bound what is not held");
                    if open.reserved {
                        open.key = Some(key_of(node, ticket));
                        open.place = Some(worker);
                    }
                    self.dispatch(node, ticket, worker);
                }
                BalancerOutput::Refused { ticket, .. } => {
                    let open = balancer.open.get_mut(&ticket).expect("it is held");
                    assert!(open.held.take().is_some(), "refused what is not held");
                    self.over(node, ticket);
                }
                BalancerOutput::Probe { worker } => self.probe(node, worker, None),
                BalancerOutput::Reserve { ticket, worker } => {
                    let peer = balancer.peers[&worker];
                    let open = balancer.open.get_mut(&ticket).expect("it is held");
                    let until = open.held.expect("it is held");
                    open.reserved = true;
                    let call = &self.calls[open.call];
                    let version = Version(call.version);
                    let reservation = Reservation {
                        balancer: balancer_name(node),
                        ticket: ticket.0,
                        function: function(call.function),
                        version,
                        digest: digest_of(call.function, version),
                        deadline_ms: u64::try_from(until.since(now).as_millis()).unwrap(),
                    };
                    let came = self.tell_worker(node, peer, ToWorker::Reserve(reservation));
                    let said = came.map_or(RESERVATION_LIMIT, |came| came + self.ms(0, 5));
                    let event = Event::ReservationSaid { balancer: node, ticket, worker, peer };
                    self.at(said, event);
                }
                BalancerOutput::Cancel { ticket, worker } => {
                    if let Some(peer) = balancer.peers.get(&worker).copied() {
                        self.tell_worker(node, peer, ToWorker::Unreserve(key_of(node, ticket)));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A cancellation may have overtaken it.
    pub(crate) fn reservation_said(
        &mut self,
        node: Node,
        ticket: Ticket,
        worker: WorkerId,
        peer: Node,
    ) {
        if !self.is_balancer(node) {
            return;
        }
        let balancer = self.balancers[node.at].as_ref().unwrap();
        if !balancer.balancer.expects(ticket, worker) {
            self.tell_worker(node, peer, ToWorker::Unreserve(key_of(node, ticket)));
        }
    }

    /// The call may never have come to the worker that holds a slot for it.
    fn give_back(&mut self, node: Node, ticket: Ticket) {
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let place = balancer.open.get_mut(&ticket).and_then(|open| open.place.take());
        if let Some(peer) = place.and_then(|worker| balancer.peers.get(&worker).copied()) {
            self.tell_worker(node, peer, ToWorker::Unreserve(key_of(node, ticket)));
        }
    }

    fn replied(&mut self, node: Node, attempt: usize, reply: Reply, idle: bool) {
        let now = self.now;
        let Attempt { ticket, call, open, id, .. } = self.attempts[attempt];
        if !open {
            return;
        }
        self.attempts[attempt].open = false;
        let body_at_hand = self.chance(0.9);
        let function = self.calls[call].function;
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let open = balancer.open.get_mut(&ticket).expect("an attempt belongs to a request");
        assert_eq!(open.attempt.take(), Some(attempt));
        match reply {
            Reply::Ok(start) => {
                if idle {
                    balancer.balancer.worker_idle(now, id, balancer.functions[function]);
                }
                open.place = None;
                balancer.balancer.completed(now, ticket, Some(start), true);
                self.over(node, ticket);
            }
            Reply::Failed(kind, started) => {
                self.give_back(node, ticket);
                if started == Started::Maybe {
                    // The connection is broken for its worker, too.
                    self.hang_up(attempt);
                }
                let failed = FailedAttempt { kind, started, body_at_hand };
                let balancer = self.balancers[node.at].as_mut().unwrap();
                match balancer.balancer.failed(now, ticket, &failed) {
                    Verdict::Retry => {
                        assert_eq!(started, Started::No, "{kind} is tried again");
                        self.saw("a call is tried again");
                        self.balancer_outputs(node);
                        self.select(node, ticket);
                    }
                    Verdict::GiveUp(why) => {
                        assert_eq!(why == GiveUp::NotSafe, started != Started::No);
                        self.over(node, ticket);
                    }
                }
            }
        }
        self.balancer_outputs(node);
    }

    /// The client has its answer.
    fn over(&mut self, node: Node, ticket: Ticket) {
        let now = self.now;
        self.give_back(node, ticket);
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let open = balancer.open.remove(&ticket).unwrap();
        balancer.balancer.finish(now, ticket);
        if let Some(attempt) = open.attempt {
            self.hang_up(attempt);
        }
        self.answered(open.call);
        self.balancer_outputs(node);
    }

    pub(crate) fn client_leaves(&mut self, call: usize) {
        if let Some((node, ticket)) = self.calls[call].home {
            self.saw("a client leaves");
            self.over(node, ticket);
        }
    }

    // Workers.

    pub(crate) fn at_balancer(&mut self, to: Node, from: Node, message: ToBalancer) {
        if let ToBalancer::Reply { attempt, reply, idle } = message {
            let lost =
                self.cut.contains(&from.at) && !matches!(reply, Reply::Failed(_, Started::Maybe));
            let never_came =
                matches!(reply, Reply::Failed(_, Started::No)) && !self.attempts[attempt].may_run;
            if self.is_balancer(to) && lost && !never_came {
                self.saw("a reply is lost");
                return self.replied(
                    to,
                    attempt,
                    Reply::Failed(
                        openlambda_core::failure::FailureKind::WorkerDied,
                        Started::Maybe,
                    ),
                    false,
                );
            }
            if self.is_balancer(to) {
                self.replied(to, attempt, reply, idle);
            }
            return;
        }
        let end = matches!(message, ToBalancer::StreamBroke { .. });
        if !self.is_balancer(to) || (self.cut.contains(&from.at) && !end) {
            return;
        }
        let now = self.now;
        let balancer = self.balancers[to.at].as_mut().unwrap();
        match message {
            ToBalancer::Reply { .. } => unreachable!("it is handled above"),
            ToBalancer::Probed { id, load } => {
                let Some((worker, ticket)) = balancer.probes.remove(&id) else { return };
                balancer.balancer.probed(now, worker, load);
                let open = ticket.and_then(|ticket| balancer.open.get_mut(&ticket));
                let all = open.is_some_and(|open| {
                    open.probes = open.probes.saturating_sub(1);
                    open.probes == 0 && open.round > 0
                });
                self.balancer_outputs(to);
                if all {
                    let ticket = ticket.unwrap();
                    let balancer = self.balancers[to.at].as_mut().unwrap();
                    let round = balancer.open.get(&ticket).map_or(0, |open| open.round);
                    if round > 0 {
                        self.probes_are_over(to, ticket, round);
                    }
                }
            }
            ToBalancer::Announced { worker } => self.announced(to, worker),
            ToBalancer::Event { tag, event } => self.told(to, from, tag, event),
            ToBalancer::StreamBroke { tag } => self.stream_broke(to, from, tag),
        }
        if self.is_balancer(to) {
            self.balancer_outputs(to);
        }
    }

    fn announced(&mut self, node: Node, worker: Node) {
        let now = self.now;
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let known = balancer.members.get(&worker.at);
        if known.is_some_and(|member| member.node == worker) {
            if known.is_some_and(|member| member.stream.is_none()) {
                self.connect(node, worker.at);
            }
            return;
        }
        if let Some(old) = balancer.members.remove(&worker.at) {
            self.saw("a worker is replaced");
            self.leaves(node, &old);
        }
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let member = Member { node: worker, id: None, stream: None, alive: now };
        balancer.members.insert(worker.at, member);
        self.connect(node, worker.at);
    }

    fn leaves(&mut self, node: Node, member: &Member) {
        let now = self.now;
        let balancer = self.balancers[node.at].as_mut().unwrap();
        if let Some(id) = member.id {
            balancer.peers.remove(&id);
            balancer.balancer.leave(now, id);
        }
        if let Some(tag) = member.stream {
            self.connect_to_worker(node, member.node, ToWorker::StreamEnded { tag });
        }
        self.balancer_outputs(node);
    }

    pub(crate) fn connect(&mut self, node: Node, worker: usize) {
        let tag = Tag(self.number());
        if !self.is_balancer(node) {
            return;
        }
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let member = balancer.members.get_mut(&worker).filter(|member| member.stream.is_none());
        if let Some(member) = member {
            member.stream = Some(tag);
            let peer = member.node;
            self.connect_to_worker(node, peer, ToWorker::Subscribe { tag });
        }
    }

    /// Whether the balancer reads this stream of the worker, or waits for its beginning.
    pub(crate) fn follows(&self, node: Node, worker: Node, tag: Tag) -> bool {
        let balancer = self.balancers[node.at].as_ref().filter(|balancer| balancer.node == node);
        let member = balancer.and_then(|balancer| balancer.members.get(&worker.at));
        member.is_some_and(|member| member.stream == Some(tag))
    }

    fn stream_broke(&mut self, node: Node, worker: Node, tag: Tag) {
        let now = self.now;
        let pause = self.ms(50, 400);
        let balancer = self.balancers[node.at].as_mut().unwrap();
        let member = balancer.members.get_mut(&worker.at);
        let Some(member) = member.filter(|member| member.stream == Some(tag)) else { return };
        member.stream = None;
        if let Some(id) = member.id {
            balancer.balancer.set_healthy(now, id, false);
        }
        if now.since(member.alive) > GIVE_UP {
            let member = balancer.members.remove(&worker.at).unwrap();
            self.saw("a worker has left");
            self.leaves(node, &member);
        } else {
            self.at(pause, Event::Reconnect { balancer: node, worker: worker.at });
        }
    }

    /// An event of a stream.
    fn told(&mut self, node: Node, from: Node, tag: Tag, event: WorkerEvent) {
        let now = self.now;
        let BalancerNode { balancer, functions, members, peers, .. } =
            self.balancers[node.at].as_mut().unwrap();
        let member = members.get_mut(&from.at);
        let Some(member) = member.filter(|member| member.stream == Some(tag)) else { return };
        member.alive = now;
        match (event, member.id) {
            (WorkerEvent::Snapshot { name, load, idle, draining, .. }, _) => {
                let id = *member.id.get_or_insert_with(|| {
                    let id = balancer.join(now, WorkerInfo::new(name.as_str(), 4));
                    peers.insert(id, from);
                    id
                });
                let idle = idle.iter().map(|(name, count)| (functions[index_of(name)], *count));
                let idle: Vec<_> = idle.collect();
                balancer.snapshot(now, id, load, idle);
                balancer.set_draining(now, id, draining);
                balancer.set_healthy(now, id, true);
            }
            (WorkerEvent::Idle { function }, Some(id)) => {
                balancer.worker_idle(now, id, functions[index_of(&function)]);
            }
            (WorkerEvent::Evicted { function }, Some(id)) => {
                balancer.worker_evicted(now, id, functions[index_of(&function)]);
            }
            (WorkerEvent::Offered { ticket }, Some(id)) => {
                balancer.offered(now, Ticket(ticket), id);
            }
            (WorkerEvent::Draining, Some(id)) => balancer.set_draining(now, id, true),
            _ => {}
        }
    }
}

fn key_of(node: Node, ticket: Ticket) -> ReservationKey {
    ReservationKey { balancer: balancer_name(node), ticket: ticket.0 }
}
