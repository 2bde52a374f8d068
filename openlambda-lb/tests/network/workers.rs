//! What workers do here: the shell around each pure core, and its ends.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openlambda_core::allow::Allow;
use openlambda_core::failure::{Failure, FailureKind, Started};
use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::invocation::StartKind;
use openlambda_core::keep_alive::Ttl;
use openlambda_core::manifest::Manifest;
use openlambda_core::queue;
use openlambda_core::scheduler::{Counts, InstanceId, InvocationId, SchedulerConfig};
use openlambda_core::time::Time;
use openlambda_core::wire::WorkerEvent;
use openlambda_core::worker_core::{Call, CoreConfig, Input, Notice, Output, StreamId, WorkerCore};

use super::world::{
    Attempt, Event, FUNCTIONS, HEARTBEAT, Mend, Node, Reply, Tag, ToBalancer, ToWorker, World,
    digest_of, function,
};

const MB: u64 = 1 << 20;
const MAX_WAIT: Duration = Duration::from_millis(800);

pub(crate) struct WorkerNode {
    pub(crate) node: Node,
    pub(crate) core: WorkerCore,
    /// Whose they are, and how that one names them.
    pub(crate) streams: BTreeMap<StreamId, (Node, Tag)>,
    runs: BTreeMap<InvocationId, Run>,
    instances: BTreeMap<InstanceId, Instance>,
    cancelled: BTreeSet<InstanceId>,
    drained: Option<bool>,
    draining: bool,
}

/// A call that is here.
#[derive(Debug)]
struct Run {
    attempt: usize,
    /// Nobody has been answered.
    answer: bool,
    instance: Option<InstanceId>,
    since: Time,
    start: Option<StartKind>,
}

/// What an instance holds of memory, and may.
#[derive(Debug)]
struct Instance {
    holds: u64,
    full: u64,
    paused: bool,
    ends: bool,
}

fn manifest_of(digest: &Digest) -> Manifest {
    let base = Manifest {
        memory_mb: 100,
        max_instances: 3,
        queue: 4,
        timeout_seconds: 0.5,
        ..Manifest::default()
    };
    match digest.as_bytes()[0] / 64 {
        0 => base,
        1 => Manifest { concurrency: 2, memory_mb: 200, ..base },
        _ => Manifest { reuse: false, memory_mb: 60, queue: 0, ..base },
    }
}

impl WorkerNode {
    /// The load, the idle instances and whether it drains.
    fn snapshot(&self, now: Time) -> WorkerEvent {
        WorkerEvent::Snapshot {
            name: name_of(self.node.at),
            incarnation: self.node.incarnation,
            load: self.core.load(now),
            idle: self.core.idle(),
            draining: self.core.is_draining(),
        }
    }

    pub(crate) fn check(&self) {
        let pool = self.core.memory();
        let holds: u64 = self.instances.values().map(|instance| instance.holds).sum();
        assert_eq!(holds, pool.used(), "{:?}: {:?}", self.node, self.instances);
        assert!(holds <= pool.total(), "{:?} has sold more memory than it has", self.node);
    }

    /// Nothing is here but what is idle.
    pub(crate) fn check_quiet(&self) {
        let counts = self.core.counts();
        let idle = Counts { idle: counts.idle, paused: counts.paused, ..Counts::default() };
        assert_eq!(counts, idle, "{:?}", self.node);
        assert!(self.runs.is_empty(), "{:?}", self.runs);
        assert_eq!(self.instances.len(), counts.idle as usize);
    }

    pub(crate) fn check_drained(&self) {
        assert_eq!(self.drained, Some(true), "{:?}: {:?}", self.node, self.core);
        assert!(self.instances.is_empty());
        assert_eq!((self.core.counts(), self.core.memory().used()), (Counts::default(), 0));
    }
}

pub(crate) fn name_of(worker: usize) -> String {
    format!("w{worker}")
}

impl World {
    pub(crate) fn start_worker(&mut self, at: usize) {
        let node = Node { at, incarnation: self.next_incarnation() };
        let scheduler = SchedulerConfig {
            memory: 500 * MB,
            max_starting: 3,
            pause_after: Some(Duration::from_millis(60)),
            offer_timeout: Duration::from_millis(30),
            ..SchedulerConfig::default()
        };
        let config =
            CoreConfig { scheduler, max_wait: MAX_WAIT, code_budget: 40, allow: Allow::default() };
        let keep_alive = Box::new(Ttl::new(Duration::from_secs(3)));
        self.workers[at] = Some(WorkerNode {
            node,
            core: WorkerCore::new(config, queue::default().make(), keep_alive),
            streams: BTreeMap::new(),
            runs: BTreeMap::new(),
            instances: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            drained: None,
            draining: false,
        });
        self.at(Duration::ZERO, Event::Beat { worker: node });
    }

    /// All at once: nothing of it answers any more.
    pub(crate) fn kill_worker(&mut self, at: usize) {
        let Some(worker) = self.workers[at].take() else { return };
        for (balancer, tag) in worker.streams.into_values() {
            self.answer_balancer(worker.node, balancer, ToBalancer::StreamBroke { tag });
        }
        for run in worker.runs.into_values().filter(|run| run.answer) {
            self.breaks(run.attempt, Started::Maybe);
        }
    }

    /// It finishes what it has, and is started anew.
    pub(crate) fn drain_worker(&mut self, at: usize) {
        let until = self.now + self.ms(0, 1200);
        let Some(worker) = self.workers[at].as_mut().filter(|worker| !worker.draining) else {
            return;
        };
        worker.draining = true;
        let node = worker.node;
        self.saw("a worker drains");
        self.input(node, Input::Drain { until });
    }

    pub(crate) fn drain_for_good(&mut self, at: usize) {
        let worker = self.workers[at].as_mut().unwrap();
        assert!(!worker.draining, "it was started anew");
        let node = worker.node;
        let until = self.now + Duration::from_secs(5);
        self.input(node, Input::Drain { until });
    }

    pub(crate) fn worker_timeout(&mut self, at: usize) {
        let node = self.workers[at].as_ref().unwrap().node;
        self.input(node, Input::Timeout);
    }

    /// Snapshots for those who listen, and a word to all balancers that it is there.
    pub(crate) fn beat(&mut self, node: Node) {
        if !self.is_worker(node) {
            return;
        }
        let worker = self.workers[node.at].as_ref().unwrap();
        let event = worker.snapshot(self.now);
        let streams: Vec<_> = worker.streams.values().copied().collect();
        for (balancer, tag) in streams {
            self.tell_balancer(node, balancer, ToBalancer::Event { tag, event: event.clone() });
        }
        let balancers: Vec<_> = self.balancers.iter().flatten().map(|it| it.node).collect();
        for balancer in balancers {
            self.tell_balancer(node, balancer, ToBalancer::Announced { worker: node });
        }
        self.at(HEARTBEAT, Event::Beat { worker: node });
    }

    /// One snapshot that gets through.
    pub(crate) fn snapshot_for_all(&mut self, at: usize) {
        let worker = self.workers[at].as_ref().expect("it was mended");
        let (node, event) = (worker.node, worker.snapshot(self.now));
        let listeners: BTreeMap<Node, Tag> = worker.streams.values().copied().collect();
        let up: Vec<_> = self.balancers.iter().flatten().map(|it| it.node).collect();
        assert_eq!(listeners.keys().copied().collect::<Vec<_>>(), up, "who listens");
        for (balancer, tag) in worker.streams.clone().into_values() {
            let message = ToBalancer::Event { tag, event: event.clone() };
            self.at_balancer(balancer, node, message);
        }
    }

    // What it is told.

    pub(crate) fn at_worker(&mut self, to: Node, from: Node, message: ToWorker) {
        if !self.reaches(to) {
            match message {
                ToWorker::Call { attempt, .. } => {
                    // Refused, or broken before anybody took it. Which of both is not known to all.
                    let started = [Started::No, Started::Maybe][self.rng.below(2)];
                    self.attempts[attempt].may_run = false;
                    self.breaks(attempt, started);
                }
                ToWorker::Subscribe { tag } => {
                    self.answer_balancer(to, from, ToBalancer::StreamBroke { tag });
                }
                // The end of a connection is seen in the end.
                ToWorker::HangUp { .. } | ToWorker::StreamEnded { .. } if self.is_worker(to) => {
                    let pause = self.ms(20, 60);
                    self.at(pause, Event::AtWorker { to, from, message });
                }
                _ => {}
            }
            return;
        }
        match message {
            ToWorker::Call { attempt, key } => self.call_came(to, attempt, key),
            ToWorker::HangUp { attempt } => {
                let worker = self.workers[to.at].as_mut().unwrap();
                let run = worker.runs.iter_mut().find(|(_, run)| run.attempt == attempt);
                if let Some((invocation, run)) = run.filter(|(_, run)| run.answer) {
                    run.answer = false;
                    let invocation = *invocation;
                    self.input(to, Input::Cancelled { invocation });
                }
            }
            ToWorker::Reserve(reservation) => {
                self.saw("a place is reserved");
                self.input(to, Input::Reserved(reservation));
            }
            ToWorker::Unreserve(key) => self.input(to, Input::ReservationCancelled { key }),
            ToWorker::Probe { id } => {
                let load = self.workers[to.at].as_ref().unwrap().core.load(self.now);
                self.tell_balancer(to, from, ToBalancer::Probed { id, load });
            }
            ToWorker::Subscribe { tag } => {
                // A connection's end does not overtake its beginning.
                if !self.follows(from, to, tag) {
                    return;
                }
                let stream = StreamId(self.number());
                let balancer = Some(balancer_name(from));
                self.workers[to.at].as_mut().unwrap().streams.insert(stream, (from, tag));
                self.input(to, Input::Subscribed { stream, balancer });
                let worker = self.workers[to.at].as_mut().unwrap();
                let event = worker.snapshot(self.now);
                self.tell_balancer(to, from, ToBalancer::Event { tag, event });
            }
            ToWorker::StreamEnded { tag } => {
                let worker = self.workers[to.at].as_mut().unwrap();
                let stream = worker.streams.iter().find(|(_, its)| **its == (from, tag));
                if let Some(stream) = stream.map(|(stream, _)| *stream) {
                    worker.streams.remove(&stream);
                    self.input(to, Input::Unsubscribed { stream });
                }
            }
        }
    }

    fn call_came(
        &mut self,
        to: Node,
        attempt: usize,
        key: Option<openlambda_core::wire::ReservationKey>,
    ) {
        let Attempt { call, balancer, .. } = self.attempts[attempt];
        let call = &self.calls[call];
        let (function, version) = (function(call.function), Version(call.version));
        let digest = digest_of(call.function, version);
        let balancer = balancer_name(balancer);
        let (named, now) = (key.is_some(), self.now);
        let worker = self.workers[to.at].as_mut().unwrap();
        let offered = worker.core.counts().offered;
        let call = Call {
            function,
            version: Some(version),
            digest,
            balancer: Some(&balancer),
            reservation: key,
        };
        let invocation = worker.core.call(now, call).invocation;
        let taken = named && worker.core.counts().offered < offered;
        let run = Run { attempt, answer: true, instance: None, since: now, start: None };
        let old = worker.runs.insert(invocation, run);
        assert!(old.is_none(), "a number was given before its call was over");
        if taken {
            self.saw("a call takes the slot that is held for it");
        }
        self.outputs(to);
        // The connection was closed when the call had just come.
        if !self.attempts[attempt].open && self.is_worker(to) {
            self.at_worker(to, to, ToWorker::HangUp { attempt });
        }
    }

    pub(crate) fn input(&mut self, to: Node, input: Input<'_>) {
        let now = self.now;
        // It may have come to its end by what it was told before.
        let Some(worker) = self.workers[to.at].as_mut().filter(|it| it.node == to) else { return };
        worker.core.handle(now, input);
        self.outputs(to);
    }

    // What it wants.

    fn outputs(&mut self, node: Node) {
        while self.is_worker(node) {
            let worker = self.workers[node.at].as_mut().unwrap();
            let Some(output) = worker.core.poll_output() else { break };
            self.carry_out(node, output);
        }
    }

    fn carry_out(&mut self, node: Node, output: Output) {
        let mut delay = self.ms(1, 30);
        let worker = self.workers[node.at].as_mut().unwrap();
        let event = match output {
            Output::Fetch { digest } => Event::Fetched { worker: node, digest },
            Output::Remove { digest } => Event::Removed { worker: node, digest },
            Output::Create { instance, version } => {
                let digest = worker.core.version(version).2;
                let full = manifest_of(&digest).memory_bytes();
                let place = Instance { holds: full, full, paused: false, ends: false };
                assert!(worker.instances.insert(instance, place).is_none());
                Event::Created { worker: node, instance }
            }
            Output::Cancel { instance } => {
                worker.cancelled.insert(instance);
                return;
            }
            Output::Run { invocation, instance, start, .. } => {
                let place = &worker.instances[&instance];
                assert!(!place.paused && !place.ends && place.holds == place.full, "{place:?}");
                let run = worker.runs.get_mut(&invocation).expect("a call that runs has come");
                assert_eq!(run.instance, None, "it runs already");
                (run.instance, run.since, run.start) = (Some(instance), self.now, Some(start));
                let call = self.attempts[run.attempt].call;
                self.calls[call].runs += 1;
                assert_eq!(self.calls[call].runs, 1, "run twice: {:?}", self.calls[call]);
                // Some never answer.
                delay = match self.chance(0.01) {
                    true => Duration::from_secs(3),
                    false => self.ms(1, 80),
                };
                Event::RunEnds { worker: node, invocation }
            }
            Output::Pause { instance } => {
                worker.instances.get_mut(&instance).unwrap().paused = true;
                Event::Paused { worker: node, instance }
            }
            Output::SetLimit { instance, bytes } => {
                Event::LimitSet { worker: node, instance, bytes }
            }
            Output::Resume { instance, .. } => {
                let place = worker.instances.get_mut(&instance).unwrap();
                assert!(!place.ends && place.paused);
                place.holds = place.full;
                Event::Resumed { worker: node, instance }
            }
            Output::Destroy { instance, .. } => {
                worker.instances.get_mut(&instance).unwrap().ends = true;
                Event::Destroyed { worker: node, instance }
            }
            Output::Answer { invocation, failure } => {
                let run = worker.runs.get_mut(&invocation).expect("answered what is not here");
                if std::mem::take(&mut run.answer) {
                    let attempt = run.attempt;
                    let never_ran = run.instance.is_none();
                    let started = failure.started;
                    assert_eq!(never_ran, started == Started::No, "{failure:?}");
                    if never_ran {
                        self.attempts[attempt].may_run = false;
                    }
                    let reply = Reply::Failed(failure.kind, started);
                    self.reply(node, attempt, reply, false);
                }
                return;
            }
            Output::IdleWithReply { .. } => panic!("nobody replies"),
            Output::Tell { stream, notice } => {
                let (balancer, tag) = worker.streams[&stream];
                if matches!(notice, Notice::Offered { .. }) {
                    self.saw("a slot is offered");
                }
                let event = event_of(&self.workers[node.at].as_ref().unwrap().core, notice);
                self.tell_balancer(node, balancer, ToBalancer::Event { tag, event });
                return;
            }
            Output::TellAll { notice } => {
                let event = event_of(&worker.core, notice);
                let streams: Vec<_> = worker.streams.values().copied().collect();
                for (balancer, tag) in streams {
                    let event = event.clone();
                    self.tell_balancer(node, balancer, ToBalancer::Event { tag, event });
                }
                return;
            }
            Output::Record(record) => {
                let run = worker.runs.remove(&record.invocation);
                let run = run.expect("a call has one record");
                assert!(!run.answer, "no answer before the record");
                return;
            }
            Output::Drained { in_time } => {
                assert_eq!(worker.drained, None, "drained twice");
                worker.drained = Some(in_time);
                if worker.draining {
                    self.saw(if in_time { "a drain is over in time" } else { "a drain is not" });
                    let at = node.at;
                    self.kill_worker(at);
                    let pause = self.ms(10, 300);
                    self.at(pause, Event::Mend(Mend::Worker(at)));
                }
                return;
            }
            other => panic!("{other:?}"),
        };
        self.at(delay, event);
    }

    /// The answer of an attempt goes over its connection, which may break.
    fn reply(&mut self, node: Node, attempt: usize, reply: Reply, idle: bool) {
        let balancer = self.attempts[attempt].balancer;
        if self.chance(0.01) {
            self.saw("a reply is lost");
            return self.breaks(attempt, Started::Maybe);
        }
        self.answer_balancer(node, balancer, ToBalancer::Reply { attempt, reply, idle });
    }

    /// What a task of the worker did is done.
    pub(crate) fn worker_is_through(&mut self, event: Event) {
        let (Event::Fetched { worker: node, .. }
        | Event::Removed { worker: node, .. }
        | Event::Created { worker: node, .. }
        | Event::Destroyed { worker: node, .. }
        | Event::Paused { worker: node, .. }
        | Event::LimitSet { worker: node, .. }
        | Event::Resumed { worker: node, .. }
        | Event::Exits { worker: node, .. }
        | Event::RunEnds { worker: node, .. }) = event
        else {
            panic!("{event:?}");
        };
        if !self.is_worker(node) {
            return;
        }
        let fails = self.chance(0.05);
        let worker = self.workers[node.at].as_mut().unwrap();
        match event {
            Event::Fetched { digest, .. } if fails => {
                let failure = Failure::new(FailureKind::RegistryUnavailable, "it is not there");
                self.input(node, Input::FetchFailed { digest, failure });
            }
            Event::Fetched { digest, .. } => {
                let manifest = Arc::new(manifest_of(&digest));
                self.input(node, Input::Fetched { digest, bytes: 10, manifest });
            }
            Event::Removed { digest, .. } => self.input(node, Input::Removed { digest }),
            Event::Created { instance, .. } => {
                let cancelled = worker.cancelled.remove(&instance);
                if cancelled || fails {
                    worker.instances.remove(&instance);
                }
                match (cancelled, fails) {
                    (true, _) => self.input(node, Input::Destroyed { instance }),
                    (false, true) => {
                        let failure = Failure::new(FailureKind::StartFailed, "no luck");
                        self.input(node, Input::StartFailed { instance, failure });
                    }
                    (false, false) => {
                        let (start, time) = (StartKind::Cold, Duration::from_millis(1));
                        let (create, init) = (time, time);
                        self.input(node, Input::Started { instance, start, create, init });
                    }
                }
            }
            Event::Destroyed { instance, .. } => {
                worker.instances.remove(&instance);
                self.input(node, Input::Destroyed { instance });
                self.input(node, Input::Exited { instance });
            }
            Event::Paused { instance, .. } if fails => {
                self.input(node, Input::Exited { instance });
            }
            Event::Paused { instance, .. } => {
                self.input(node, Input::Paused { instance, used: Some(20 * MB) });
            }
            Event::LimitSet { instance, .. } if fails => {
                self.input(node, Input::LimitSet { instance, bytes: None });
            }
            Event::LimitSet { instance, bytes, .. } => {
                // Where it is wanted meanwhile it is resumed at once, and holds all again.
                let place = worker.instances.get_mut(&instance).filter(|place| !place.ends);
                if let Some(place) = place {
                    place.holds = bytes;
                }
                self.saw("a limit is lowered");
                self.input(node, Input::LimitSet { instance, bytes: Some(bytes) });
            }
            Event::Resumed { instance, .. } if fails => {
                self.input(node, Input::Exited { instance });
            }
            Event::Resumed { instance, .. } => {
                if let Some(place) = worker.instances.get_mut(&instance) {
                    place.paused = false;
                }
                self.input(node, Input::Resumed { instance });
            }
            Event::Exits { instance, .. } => self.input(node, Input::Exited { instance }),
            Event::RunEnds { invocation, .. } => self.run_ends(node, invocation, fails),
            _ => unreachable!(),
        }
    }

    fn run_ends(&mut self, node: Node, invocation: InvocationId, fails: bool) {
        let now = self.now;
        let worker = self.workers[node.at].as_mut().unwrap();
        let run = worker.runs.get_mut(&invocation).expect("what runs has no record yet");
        let instance = run.instance.expect("it runs");
        let ends = worker.instances.get(&instance).is_none_or(|place| place.ends);
        let (attempt, start) = (run.attempt, run.start.expect("it runs"));
        let replies = std::mem::take(&mut run.answer);
        let failure = match (ends, fails) {
            (true, _) => Some(FailureKind::SandboxCrashed),
            (_, true) => Some(FailureKind::FunctionError),
            _ => None,
        };
        let reply = match failure {
            Some(kind) => Reply::Failed(kind, Started::Yes),
            None => Reply::Ok(start),
        };
        let (reusable, run) = (!ends, now.since(run.since));
        let tells = replies && failure.is_none();
        let finished = Input::Finished { invocation, run, reusable, failure, replies: tells };
        worker.core.handle(now, finished);
        // The notice that goes with the reply.
        let mut idle = None;
        while self.is_worker(node) {
            let worker = self.workers[node.at].as_mut().unwrap();
            match worker.core.poll_output() {
                Some(Output::IdleWithReply { invocation: to, version }) => {
                    assert!(tells && to == invocation && idle.is_none());
                    idle = Some(version);
                }
                Some(output) => self.carry_out(node, output),
                None => break,
            }
        }
        if !replies {
            return;
        }
        if let Some(version) = idle {
            self.saw("an idle notice goes with a reply");
            if self.chance(0.05) && self.is_worker(node) {
                self.saw("an idle notice goes with a reply that is lost");
                self.input(node, Input::ReplyLost { version });
                return self.breaks(attempt, Started::Maybe);
            }
        }
        self.reply(node, attempt, reply, idle.is_some());
    }

    // What happens to it.

    pub(crate) fn exits(&mut self, at: usize) {
        let Some(worker) = &self.workers[at] else { return };
        let (node, created) = (worker.node, worker.core.counts());
        let up: Vec<_> = worker.instances.keys().copied().collect();
        if up.is_empty() || created.starting > 0 {
            return;
        }
        let instance = up[self.rng.below(up.len())];
        self.at(Duration::ZERO, Event::Exits { worker: node, instance });
    }

    pub(crate) fn memory_pressure(&mut self, at: usize) {
        if let Some(worker) = &self.workers[at] {
            let node = worker.node;
            self.input(node, Input::MemoryPressure { bytes: 150 * MB });
        }
    }

    pub(crate) fn prewarm(&mut self, at: usize) {
        if let Some(worker) = &self.workers[at] {
            let node = worker.node;
            let function = function(self.rng.below(FUNCTIONS));
            self.input(node, Input::Prewarm { function, instances: 2 });
        }
    }

    pub(crate) fn deleted(&mut self, at: usize) {
        if let Some(worker) = &self.workers[at] {
            let node = worker.node;
            let functions: Vec<FunctionName> = vec![function(self.rng.below(FUNCTIONS))];
            self.input(node, Input::Deleted { functions });
        }
    }
}

pub(crate) fn balancer_name(node: Node) -> String {
    format!("b{}-{}", node.at, node.incarnation)
}

fn event_of(core: &WorkerCore, notice: Notice) -> WorkerEvent {
    let function = |version| core.version(version).0.clone();
    match notice {
        Notice::Idle { version } => WorkerEvent::Idle { function: function(version) },
        Notice::Evicted { version } => WorkerEvent::Evicted { function: function(version) },
        Notice::Offered { ticket } => WorkerEvent::Offered { ticket },
        Notice::Draining => WorkerEvent::Draining,
        other => panic!("{other:?}"),
    }
}
