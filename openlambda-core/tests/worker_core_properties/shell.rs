//! The shell of the test: does what the core wants, well or badly, now or later, and keeps its own,
//! naive picture of calls, places, instances, bundles and streams, which the core's outputs are held to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openlambda_core::allow::Allow;
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::invocation::{Phases, StartKind};
use openlambda_core::keep_alive;
use openlambda_core::manifest::Manifest;
use openlambda_core::metrics::Outcome;
use openlambda_core::queue;
use openlambda_core::scheduler::{
    EvictReason, InstanceId, InvocationId, SchedulerConfig, VersionId,
};
use openlambda_core::time::Time;
use openlambda_core::wire::{Reservation, ReservationKey};
use openlambda_core::worker_core::{
    Call, CallRecord, CoreConfig, Input, Notice, Output, StreamId, WorkerCore,
};

pub(crate) const MB: u64 = 1 << 20;
pub(crate) const MAX_STARTING: usize = 3;
pub(crate) const MAX_WAIT: Duration = Duration::from_millis(400);
pub(crate) const OFFER_TIMEOUT: Duration = Duration::from_millis(30);
/// About two of the bundles below.
pub(crate) const CODE_BUDGET: u64 = 25;
pub(crate) const BUNDLES: u64 = 6;
/// The quota of waiting calls, where there is one.
const MOST_WAITING: u32 = 4;

pub(crate) fn function(n: usize) -> FunctionName {
    format!("f{n}").parse().unwrap()
}

/// Versions never change. Functions share bundles, and the same bytes are published again.
pub(crate) fn digest_of(function: usize, number: u64) -> Digest {
    Digest::from_bytes([((function as u64 + number) % BUNDLES) as u8; 32])
}

/// What a bundle's files take.
fn bytes_of(digest: &Digest) -> u64 {
    10 + u64::from(digest.as_bytes()[0])
}

fn manifest_of(digest: &Digest) -> Manifest {
    let base = Manifest {
        memory_mb: 100,
        concurrency: 1,
        max_instances: 4,
        queue: 6,
        timeout_seconds: 0.5,
        ..Manifest::default()
    };
    match digest.as_bytes()[0] {
        0 | 5 => base,
        1 => Manifest { concurrency: 3, memory_mb: 200, max_instances: 2, ..base },
        2 => Manifest { reuse: false, memory_mb: 50, ..base },
        3 => Manifest { memory_mb: 450, max_instances: 1, queue: 0, ..base },
        _ => Manifest { memory_mb: 5000, ..base },
    }
}

/// A call, from its arrival to its record.
#[derive(Clone, Debug)]
pub(crate) struct CallState {
    pub(crate) version: VersionId,
    pub(crate) digest: Digest,
    pub(crate) key: Option<ReservationKey>,
    /// Who sent it, for as long as that one has listened without a break.
    pub(crate) balancer: Option<String>,
    pub(crate) called: Time,
    /// When its place may have been reserved.
    pub(crate) reserved: Vec<Time>,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    Waiting {
        deadline: Time,
    },
    Running {
        instance: InstanceId,
        since: Time,
        expires: Time,
        start: StartKind,
        phases: Phases,
    },
    /// It was told that it took too long, and runs on.
    Expired {
        instance: InstanceId,
        since: Time,
        start: StartKind,
        phases: Phases,
    },
    /// It was told why it does not run; its record comes next.
    Refused(Option<FailureKind>),
}

/// A place that is kept, as far as anybody but the core can know: it may be over before.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) function: usize,
    pub(crate) number: u64,
    /// When it was asked for. What is over, and nobody knows, begins anew.
    pub(crate) since: Vec<Time>,
    /// It is over then in any case.
    pub(crate) until: Time,
    pub(crate) offered: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) version: VersionId,
    pub(crate) digest: Digest,
    pub(crate) at: At,
    pub(crate) runs: BTreeSet<InvocationId>,
    /// Its memory limit as it is.
    pub(crate) limit: u64,
    /// What it takes from the worker's memory.
    pub(crate) takes: u64,
    made: (StartKind, Duration, Duration),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum At {
    Starting,
    Cancelling,
    Up,
    Pausing,
    Paused,
    Resuming,
    Ending,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Folder {
    Fetching,
    Held,
    Removing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Duty {
    Fetch(Digest),
    Remove(Digest),
    Create(InstanceId),
    Destroy(InstanceId),
    Pause(InstanceId),
    SetLimit(InstanceId, u64),
    Resume(InstanceId),
    Finish(InvocationId),
}

/// What the core is being told, where that matters for what it may say.
#[derive(Clone, Debug, PartialEq)]
enum Cause {
    Called(InvocationId),
    Cancelled(InvocationId),
    Finished {
        invocation: InvocationId,
        replies: bool,
        failure: Option<FailureKind>,
        run: Duration,
    },
    ReplyLost,
    LimitSet(InstanceId),
    StartFailed(Failure),
    FetchFailed(Digest, Failure),
    Other,
}

pub(crate) struct Shell {
    pub(crate) core: WorkerCore,
    pub(crate) log: Vec<(Time, Output)>,
    pub(crate) now: Time,
    pub(crate) calls: BTreeMap<InvocationId, CallState>,
    /// Numbers of calls that are over.
    pub(crate) past: Vec<InvocationId>,
    pub(crate) kept: BTreeMap<ReservationKey, Kept>,
    /// The last call that named a reservation: one that comes after its call is none.
    latest: BTreeMap<ReservationKey, InvocationId>,
    pub(crate) instances: BTreeMap<InstanceId, Place>,
    pub(crate) gone: Vec<InstanceId>,
    pub(crate) folders: BTreeMap<Digest, Folder>,
    pub(crate) duties: BTreeSet<Duty>,
    /// Streams of events in the order of their beginnings, and the one that was told last.
    pub(crate) streams: Vec<(StreamId, Option<String>)>,
    last_told: Option<StreamId>,
    next_stream: u64,
    /// Versions as the core numbers them.
    versions: BTreeMap<VersionId, (FunctionName, Digest)>,
    /// The newest number that each function was called by, and its bundle.
    newest: BTreeMap<FunctionName, (u64, Digest)>,
    /// Versions that were called since their function was deleted last.
    alive: BTreeSet<(FunctionName, Digest)>,
    /// Versions whose place a newer one has taken, or whose function is deleted, and that nobody has
    /// called since.
    superseded: BTreeSet<(FunctionName, Digest)>,
    /// Bundles for which instances were wished ahead.
    expected: BTreeSet<Digest>,
    /// Instances may be wished for by the keep-alive policy, too.
    clairvoyant: bool,
    pub(crate) until: Option<Time>,
    pub(crate) drained: Option<bool>,
    cause: Cause,
    /// An idle notice has gone with the reply of [`Cause::Finished`].
    noticed: Option<VersionId>,
    /// The call that was over last.
    last_over: Option<(InvocationId, CallState)>,
    failures: u64,
    /// The operator has set quotas.
    quotas: bool,
}

impl Shell {
    pub(crate) fn new(pause: bool, keep_alive: &str, quotas: bool) -> Self {
        let mut allow = Allow::default();
        if quotas {
            allow.all.waiting_calls = Some(MOST_WAITING);
            allow.all.calls_per_second = Some(30.0);
        }
        let scheduler = SchedulerConfig {
            memory: 500 * MB,
            max_starting: MAX_STARTING as u32,
            pause_after: pause.then_some(Duration::from_millis(50)),
            fairness: Duration::from_millis(100),
            offer_timeout: OFFER_TIMEOUT,
            ..SchedulerConfig::default()
        };
        let config = CoreConfig { scheduler, max_wait: MAX_WAIT, code_budget: CODE_BUDGET, allow };
        let choice = keep_alive::or_ttl(keep_alive.parse().unwrap(), Duration::from_secs(2));
        let policy = keep_alive::standard().build(&choice).unwrap();
        Shell {
            core: WorkerCore::new(config, queue::default().make(), policy),
            log: Vec::new(),
            now: Time::ZERO,
            calls: BTreeMap::new(),
            past: Vec::new(),
            kept: BTreeMap::new(),
            latest: BTreeMap::new(),
            instances: BTreeMap::new(),
            gone: Vec::new(),
            folders: BTreeMap::new(),
            duties: BTreeSet::new(),
            streams: Vec::new(),
            last_told: None,
            next_stream: 0,
            versions: BTreeMap::new(),
            newest: BTreeMap::new(),
            alive: BTreeSet::new(),
            superseded: BTreeSet::new(),
            expected: BTreeSet::new(),
            clairvoyant: keep_alive.starts_with("histogram"),
            until: None,
            drained: None,
            cause: Cause::Other,
            noticed: None,
            last_over: None,
            failures: 0,
            quotas,
        }
    }

    // What happens.

    pub(crate) fn tell(&mut self, input: Input<'_>) {
        self.tell_as(Cause::Other, input);
    }

    fn tell_as(&mut self, cause: Cause, input: Input<'_>) {
        self.cause = cause;
        self.core.handle(self.now, input);
        self.carry_out_all();
    }

    fn carry_out_all(&mut self) {
        let first = self.log.len();
        while let Some(output) = self.core.poll_output() {
            self.log.push((self.now, output.clone()));
            self.carry_out(first, output);
        }
        self.cause = Cause::Other;
        self.noticed = None;
        self.check();
    }

    pub(crate) fn call(
        &mut self,
        of: usize,
        number: u64,
        numbered: bool,
        balancer: Option<&str>,
        key: Option<ReservationKey>,
    ) -> InvocationId {
        let (name, digest) = (function(of), digest_of(of, number));
        let sender = balancer.filter(|name| self.listens(name)).map(str::to_owned);
        let kept = key.as_ref().and_then(|key| self.kept.remove(key));
        let same = kept.as_ref().is_some_and(|kept| {
            kept.function == of && digest_of(kept.function, kept.number) == digest
        });
        self.named(of, numbered.then_some(number), digest);
        let version = numbered.then_some(Version(number));
        let call =
            Call { function: name.clone(), version, digest, balancer, reservation: key.clone() };
        let offered = self.core.counts().offered;
        let accepted = self.core.call(self.now, call);
        self.latest.extend(key.clone().map(|key| (key, accepted.invocation)));
        let state = CallState {
            version: accepted.version,
            digest,
            key,
            balancer: sender,
            called: self.now,
            reserved: kept.filter(|_| same).map_or_else(Vec::new, |kept| kept.since),
            state: State::Waiting { deadline: self.now + MAX_WAIT },
        };
        let old = self.calls.insert(accepted.invocation, state);
        assert!(old.is_none(), "a number was given before its call was over");
        self.knows(accepted.version, name, digest);
        self.cause = Cause::Called(accepted.invocation);
        let offered = offered - self.core.counts().offered.min(offered);
        self.carry_out_all();
        if same && offered > 0 {
            let call = self.calls.get(&accepted.invocation);
            let runs = call.is_some_and(|call| matches!(call.state, State::Running { .. }));
            // A namespace's calls a second are counted also where a slot is held.
            let refused = self.quotas && call.is_none();
            assert!(runs || refused, "a slot was held for the call, and it did not get it");
        }
        accepted.invocation
    }

    /// Somebody names a version: the newest is another one, perhaps.
    fn named(&mut self, of: usize, number: Option<u64>, digest: Digest) {
        let name = function(of);
        if let Some(number) = number {
            let known = self.newest.get(&name).copied();
            if known.is_none_or(|(known, _)| known < number) {
                self.newest.insert(name.clone(), (number, digest));
                let older = known.filter(|(_, older)| *older != digest);
                self.superseded.extend(older.map(|(_, older)| (name.clone(), older)));
            }
        }
        self.superseded.remove(&(name.clone(), digest));
        self.alive.insert((name, digest));
    }

    fn knows(&mut self, version: VersionId, name: FunctionName, digest: Digest) {
        let known = self.versions.insert(version, (name.clone(), digest));
        let known = known.unwrap_or_else(|| (name.clone(), digest));
        assert_eq!(known, (name, digest), "{version:?} is two versions");
    }

    pub(crate) fn cancel(&mut self, invocation: InvocationId) {
        let before = self.calls.get(&invocation).cloned();
        self.tell_as(Cause::Cancelled(invocation), Input::Cancelled { invocation });
        let Some(before) = before else { return };
        match (before.state, self.calls.get(&invocation)) {
            (State::Waiting { .. }, after) => assert!(after.is_none(), "a cancel unanswered"),
            (state, after) => assert_eq!(after.map(|call| call.state), Some(state)),
        }
    }

    /// Whoever repeats a reservation says the same.
    pub(crate) fn reserve(&mut self, key: ReservationKey, of: usize, number: u64, patience: u64) {
        let called = self.latest.get(&key).is_some_and(|id| self.calls.contains_key(id));
        if self.listens(&key.balancer) && !called {
            let until = self.now + Duration::from_millis(patience).min(MAX_WAIT);
            let fresh = Kept { function: of, number, since: Vec::new(), until, offered: false };
            let kept = self.kept.entry(key.clone()).or_insert(fresh);
            kept.since.push(self.now);
            (kept.until, kept.offered) = (kept.until.max(until), false);
            self.named(of, Some(number), digest_of(of, number));
        }
        self.tell(Input::Reserved(Reservation {
            balancer: key.balancer,
            ticket: key.ticket,
            function: function(of),
            version: Version(number),
            digest: digest_of(of, number),
            deadline_ms: patience,
        }));
    }

    pub(crate) fn unreserve(&mut self, key: ReservationKey) {
        self.kept.remove(&key);
        let its = |call: &&CallState| call.key.as_ref() == Some(&key);
        let before = self.calls.values().filter(its).count();
        self.tell(Input::ReservationCancelled { key: key.clone() });
        let its = |call: &&CallState| call.key.as_ref() == Some(&key);
        assert_eq!(self.calls.values().filter(its).count(), before, "the call itself was ended");
    }

    pub(crate) fn subscribe(&mut self, balancer: Option<&str>) -> StreamId {
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        if self.streams.is_empty() {
            self.last_told = Some(stream);
        }
        self.streams.push((stream, balancer.map(str::to_owned)));
        self.tell(Input::Subscribed { stream, balancer: balancer.map(str::to_owned) });
        stream
    }

    pub(crate) fn unsubscribe(&mut self, stream: StreamId) {
        let at = self.streams.iter().position(|(id, _)| *id == stream).unwrap();
        if self.last_told == Some(stream) {
            // Who is next stays next.
            let before = (at + self.streams.len() - 1) % self.streams.len();
            self.last_told = Some(self.streams[before].0);
        }
        let (_, balancer) = self.streams.remove(at);
        if let Some(name) = balancer.filter(|name| !self.listens(name)) {
            self.kept.retain(|key, _| key.balancer != name);
            for call in self.calls.values_mut() {
                call.balancer.take_if(|sender| *sender == name);
            }
        }
        self.tell(Input::Unsubscribed { stream });
    }

    fn listens(&self, balancer: &str) -> bool {
        self.streams.iter().any(|(_, name)| name.as_deref() == Some(balancer))
    }

    /// Whose turn it is to hear of an idle instance.
    fn next_told(&self) -> Option<(StreamId, Option<String>)> {
        let last = self.streams.iter().position(|(id, _)| Some(*id) == self.last_told)?;
        Some(self.streams[(last + 1) % self.streams.len()].clone())
    }

    pub(crate) fn exit(&mut self, instance: InstanceId) {
        self.tell(Input::Exited { instance });
        if let Some(place) = self.instances.get(&instance) {
            let ends = matches!(place.at, At::Ending | At::Cancelling);
            assert!(ends, "an instance that has exited is {place:?}");
        }
    }

    pub(crate) fn delete(&mut self, functions: Vec<FunctionName>) {
        self.alive.retain(|(name, _)| !functions.contains(name));
        let its = self.versions.values().filter(|(name, _)| functions.contains(name));
        self.superseded.extend(its.cloned());
        self.tell(Input::Deleted { functions });
    }

    pub(crate) fn prewarm(&mut self, of: usize, instances: u32) {
        let newest = self.newest.get(&function(of));
        self.expected.extend(newest.map(|(_, digest)| *digest));
        self.tell(Input::Prewarm { function: function(of), instances });
    }

    pub(crate) fn drain(&mut self, grace: Duration) {
        let until = self.now + grace;
        self.until.get_or_insert(until);
        self.kept.clear();
        self.tell(Input::Drain { until });
        self.timeouts(self.now);
    }

    pub(crate) fn advance(&mut self, by: Duration) {
        let until = self.now + by;
        self.timeouts(until);
        self.now = until;
    }

    fn timeouts(&mut self, until: Time) {
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.kept.retain(|_, kept| kept.until > at);
            self.tell(Input::Timeout);
            let next = self.core.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "a timer that has passed is set");
        }
        self.kept.retain(|_, kept| kept.until > until);
    }

    /// Does one of the things that the core wants, well or badly.
    pub(crate) fn fulfil(&mut self, choice: usize, well: bool) {
        if self.duties.is_empty() {
            return;
        }
        let duty = *self.duties.iter().nth(choice % self.duties.len()).unwrap();
        self.duties.remove(&duty);
        let odd = choice / 7 % 2 == 1;
        match duty {
            Duty::Fetch(digest) if well => {
                self.folders.insert(digest, Folder::Held);
                let manifest = Arc::new(manifest_of(&digest));
                self.tell(Input::Fetched { digest, bytes: bytes_of(&digest), manifest });
            }
            Duty::Fetch(digest) => {
                self.folders.remove(&digest);
                let failure = self.failure(FailureKind::RegistryUnavailable);
                let cause = Cause::FetchFailed(digest, failure.clone());
                self.tell_as(cause, Input::FetchFailed { digest, failure });
            }
            Duty::Remove(digest) => {
                self.folders.remove(&digest);
                self.tell(Input::Removed { digest });
            }
            Duty::Create(instance) => self.create(instance, well, odd),
            Duty::Destroy(instance) => {
                if odd {
                    // It ends, and is there still.
                    self.duties.insert(duty);
                    self.tell(Input::Exited { instance });
                    self.duties.remove(&duty);
                }
                self.instances.remove(&instance);
                self.gone.push(instance);
                self.tell(Input::Destroyed { instance });
                if !odd {
                    self.tell(Input::Exited { instance });
                }
            }
            Duty::Pause(instance) if well => self.pause(instance, choice),
            Duty::SetLimit(instance, bytes) => {
                if let Some(place) = self.instances.get_mut(&instance).filter(|_| well) {
                    place.limit = bytes;
                    if place.at == At::Paused {
                        place.takes = bytes;
                    }
                }
                let bytes = well.then_some(bytes);
                self.tell_as(Cause::LimitSet(instance), Input::LimitSet { instance, bytes });
            }
            Duty::Resume(instance) if well => {
                if let Some(place) = self.instances.get_mut(&instance) {
                    place.limit = manifest_of(&place.digest).memory_bytes();
                    if place.at == At::Resuming {
                        place.at = At::Up;
                    }
                }
                self.tell(Input::Resumed { instance });
            }
            Duty::Pause(instance) | Duty::Resume(instance) => self.exit(instance),
            Duty::Finish(invocation) => self.finish_run(invocation, choice, well),
        }
    }

    fn failure(&mut self, kind: FailureKind) -> Failure {
        self.failures += 1;
        Failure::new(kind, format!("failure {}", self.failures))
    }

    fn create(&mut self, instance: InstanceId, well: bool, odd: bool) {
        let place = self.instances.get_mut(&instance).unwrap();
        let cancelling = place.at == At::Cancelling;
        let (start, create, init) = place.made;
        if well && !(cancelling && odd) {
            if !cancelling {
                place.at = At::Up;
            }
            self.tell(Input::Started { instance, start, create, init });
            let place = self.instances.get(&instance).unwrap();
            assert!(!cancelling || place.at == At::Ending, "{place:?} started too late");
            return;
        }
        self.instances.remove(&instance);
        self.gone.push(instance);
        if cancelling && odd {
            self.tell(Input::Destroyed { instance });
        } else {
            let failure = self.failure(FailureKind::StartFailed);
            let cause = Cause::StartFailed(failure.clone());
            self.tell_as(cause, Input::StartFailed { instance, failure });
        }
    }

    fn pause(&mut self, instance: InstanceId, choice: usize) {
        let mut full = 0;
        if let Some(place) = self.instances.get_mut(&instance) {
            full = manifest_of(&place.digest).memory_bytes();
            if place.at == At::Pausing {
                place.at = At::Paused;
            }
        }
        // All, a half, a quarter …, or nobody knows.
        let used = (!choice.is_multiple_of(5)).then(|| full >> (choice % 5 - 1));
        self.tell(Input::Paused { instance, used });
    }

    fn finish_run(&mut self, invocation: InvocationId, choice: usize, well: bool) {
        let call = &self.calls[&invocation];
        let (State::Running { since, instance, .. } | State::Expired { since, instance, .. }) =
            call.state
        else {
            panic!("{call:?} does not run");
        };
        let run = self.now.since(since) / (1 + choice as u32 % 2);
        let kinds = [FailureKind::FunctionError, FailureKind::SandboxCrashed];
        let ends = self.instances.get(&instance).is_none_or(|place| place.at == At::Ending);
        let failure = (!well || ends).then(|| kinds[choice % 2]);
        // A handler that raises leaves an instance behind that can go on.
        let reusable = well || choice.is_multiple_of(3);
        let expired = matches!(call.state, State::Expired { .. });
        let replies = failure.is_none() && !expired && !choice.is_multiple_of(4);
        if let Some(place) = self.instances.get_mut(&instance) {
            place.runs.remove(&invocation);
        }
        let cause = Cause::Finished { invocation, replies, failure, run };
        let finished = Input::Finished { invocation, run, reusable, failure, replies };
        let first = self.log.len();
        self.tell_as(cause, finished);
        assert!(!self.calls.contains_key(&invocation), "{invocation:?} has no record");
        // The client may have left at the last moment; then somebody else hears of the instance.
        let with_reply = self.log[first..].iter().find_map(|(_, output)| match output {
            Output::IdleWithReply { version, .. } => Some(*version),
            _ => None,
        });
        if let Some(version) = with_reply.filter(|_| choice % 8 == 3) {
            let first = self.log.len();
            let told = self.next_told().map(|(stream, _)| stream);
            self.tell_as(Cause::ReplyLost, Input::ReplyLost { version });
            let said: Vec<_> = self.log[first..].iter().map(|(_, said)| said.clone()).collect();
            let notice = Notice::Idle { version };
            let expected: Vec<_> =
                told.into_iter().map(|stream| Output::Tell { stream, notice }).collect();
            assert_eq!(said, expected);
        }
    }

    // What the core wants.

    fn carry_out(&mut self, first: usize, output: Output) {
        match output {
            Output::Fetch { digest } => {
                let old = self.folders.insert(digest, Folder::Fetching);
                assert_eq!(old, None, "fetched what is there, or twice at once");
                self.duties.insert(Duty::Fetch(digest));
            }
            Output::Remove { digest } => {
                let old = self.folders.insert(digest, Folder::Removing);
                assert_eq!(old, Some(Folder::Held), "removed what is not there");
                let used = self.instances.values().any(|place| place.digest == digest);
                assert!(!used, "removed what an instance uses");
                self.duties.insert(Duty::Remove(digest));
            }
            Output::Create { instance, version } => {
                // One that was reserved, and not called yet, is heard of only now.
                let (name, _, digest, _) = self.core.version(version);
                let name = name.clone();
                self.knows(version, name, digest);
                assert_eq!(self.folders.get(&digest), Some(&Folder::Held), "no code to start from");
                let memory = manifest_of(&digest).memory_bytes();
                let ms = Duration::from_millis;
                let made = match instance.0 % 3 {
                    0 => (StartKind::Zygote, ms(1), ms(0)),
                    n => (StartKind::Cold, ms(10 * n), ms(7)),
                };
                let (at, runs, limit, takes) = (At::Starting, BTreeSet::new(), memory, memory);
                let place = Place { version, digest, at, runs, limit, takes, made };
                let old = self.instances.insert(instance, place);
                assert!(old.is_none(), "an instance's number was given twice");
                self.duties.insert(Duty::Create(instance));
            }
            Output::Cancel { instance } => self.goes(instance, &[At::Starting], At::Cancelling),
            Output::Run { invocation, instance, version, start, phases } => {
                self.run(invocation, instance, version, start, phases);
            }
            Output::Pause { instance } => {
                self.goes(instance, &[At::Up], At::Pausing);
                assert!(self.instances[&instance].runs.is_empty(), "paused while a call runs");
                self.duties.insert(Duty::Pause(instance));
            }
            Output::SetLimit { instance, bytes } => {
                let place = &self.instances[&instance];
                let full = manifest_of(&place.digest).memory_bytes();
                assert_eq!((place.at, place.limit), (At::Paused, full), "lowered at a bad time");
                assert!(bytes < full);
                self.duties.insert(Duty::SetLimit(instance, bytes));
            }
            Output::Resume { instance, raise } => {
                self.goes(instance, &[At::Paused], At::Resuming);
                let pending = self.duties.iter().any(|duty| is_limit_of(duty, instance));
                assert!(!pending, "resumed before its limit was set");
                let place = self.instances.get_mut(&instance).unwrap();
                let full = manifest_of(&place.digest).memory_bytes();
                assert_eq!(raise, (place.limit < full).then_some(full), "resumed with a limit");
                place.takes = full;
                self.duties.insert(Duty::Resume(instance));
            }
            Output::Destroy { instance, why } => {
                let from = [At::Up, At::Pausing, At::Paused, At::Resuming, At::Cancelling];
                self.goes(instance, &from, At::Ending);
                let place = &self.instances[&instance];
                let forced = matches!(why, EvictReason::Broken | EvictReason::TimedOut);
                assert!(forced || place.runs.is_empty(), "destroyed for {why:?}: {place:?}");
                self.duties.insert(Duty::Destroy(instance));
            }
            Output::Answer { invocation, failure } => self.answer(invocation, &failure),
            Output::IdleWithReply { invocation, version } => {
                let Cause::Finished { invocation: replied, replies: true, .. } = self.cause else {
                    panic!("an idle notice goes with a reply, but none is about to be sent");
                };
                assert_eq!(replied, invocation);
                assert_eq!(self.noticed, None, "two notices with one reply");
                self.noticed = Some(version);
                // Its record came before.
                let call = self.last_over.clone().expect("a call is over").1;
                assert_eq!(call.version, version);
                self.rests(version);
                let (stream, told) = self.next_told().expect("somebody listens");
                assert!(told.is_some() && told == call.balancer, "{told:?} is next: {call:?}");
                self.last_told = Some(stream);
            }
            Output::Tell { stream, notice } => self.told(stream, notice),
            Output::TellAll { notice: Notice::Evicted { version } } => {
                let before = self.log[first..].iter().rev().nth(1).map(|(_, output)| output);
                let Some(Output::Destroy { instance, .. }) = before else {
                    panic!("nothing was evicted, but {before:?}");
                };
                let place = &self.instances[instance];
                assert!(place.version == version && place.runs.is_empty(), "{place:?}");
            }
            Output::TellAll { notice: Notice::Draining } => {
                assert!(self.until.is_some() && self.drained.is_none());
                let told = |(_, said): &&(Time, Output)| {
                    matches!(said, Output::TellAll { notice: Notice::Draining })
                };
                assert_eq!(self.log.iter().filter(told).count(), 1, "told twice");
            }
            Output::TellAll { notice } => panic!("{notice:?} is not for all"),
            Output::Record(record) => self.record(&record),
            Output::Drained { in_time } => {
                assert_eq!(self.drained, None, "drained twice");
                let until = self.until.expect("it drains");
                match in_time {
                    true => assert!(self.calls.is_empty() && self.instances.is_empty()),
                    false => assert!(until <= self.now, "gave up too early"),
                }
                self.drained = Some(in_time);
            }
            other => panic!("{other:?}"),
        }
    }

    fn goes(&mut self, id: InstanceId, from: &[At], to: At) {
        let place = self.instances.get_mut(&id).expect("acted on an instance that is gone");
        assert!(from.contains(&place.at), "{id:?} went from {:?} to {to:?}", place.at);
        place.at = to;
    }

    fn run(
        &mut self,
        invocation: InvocationId,
        instance: InstanceId,
        version: VersionId,
        start: StartKind,
        phases: Phases,
    ) {
        let call = self.calls.get_mut(&invocation).expect("a call that runs has arrived");
        let State::Waiting { deadline } = call.state else { panic!("{call:?} runs") };
        assert!(self.now <= deadline, "ran after it had waited for too long");
        let place = self.instances.get_mut(&instance).expect("it runs in an instance");
        let manifest = manifest_of(&place.digest);
        assert_eq!((place.version, call.version), (version, version), "ran in another version");
        assert_eq!((place.at, place.limit), (At::Up, manifest.memory_bytes()), "ran in {place:?}");
        place.runs.insert(invocation);
        assert!(place.runs.len() <= manifest.concurrency as usize, "more calls than slots");
        // Where its time went.
        let (kind, create, init) = place.made;
        let waited = phases.queue + phases.pull + phases.create + phases.init;
        let mut arrived = call.reserved.iter().chain([&call.called]);
        assert!(arrived.any(|at| waited == self.now - *at), "{phases:?} of {call:?}");
        assert_eq!(phases.run, Duration::ZERO);
        if start == StartKind::Warm {
            assert_eq!(phases.queue, waited, "a warm start only queues");
        } else {
            assert_eq!(start, kind);
            assert!(phases.create <= create && phases.init <= init);
        }
        let expires = self.now + manifest.timeout();
        call.state = State::Running { instance, since: self.now, expires, start, phases };
        self.duties.insert(Duty::Finish(invocation));
    }

    fn answer(&mut self, invocation: InvocationId, failure: &Failure) {
        let waiting = |version| {
            let its = |call: &&CallState| {
                call.version == version && matches!(call.state, State::Waiting { .. })
            };
            self.calls.values().filter(its).cloned().collect::<Vec<_>>()
        };
        let call = self.calls.get(&invocation).expect("answered what is over").clone();
        let manifest = manifest_of(&call.digest);
        let deadline = match call.state {
            State::Running { instance, since, expires, start, phases } => {
                assert_eq!(failure.kind, FailureKind::Timeout, "{failure:?} of what runs");
                assert!(expires <= self.now, "expired too early");
                let state = State::Expired { instance, since, start, phases };
                self.calls.get_mut(&invocation).unwrap().state = state;
                return;
            }
            State::Waiting { deadline } => deadline,
            _ => panic!("answered twice: {call:?}"),
        };
        let its_call = self.cause == Cause::Called(invocation);
        let mut cancelled = false;
        match failure.kind {
            FailureKind::QueueFull if failure.message.starts_with("no instance") => {
                assert!(deadline <= self.now, "{failure}: {call:?}");
            }
            FailureKind::QueueFull if failure.message.contains("in [allow])") => {
                assert!(self.quotas && its_call, "{failure}: {call:?}");
                let waits = |call: &&CallState| matches!(call.state, State::Waiting { .. });
                let others = self.calls.values().filter(waits).count() as u32 - 1;
                let over_rate = failure.retry_after.is_some();
                assert!(over_rate || others >= MOST_WAITING, "{failure}: {call:?} beside {others}");
            }
            FailureKind::QueueFull => {
                let name = self.versions[&call.version].0.clone();
                let kept = self.kept.values().filter(|kept| {
                    function(kept.function) == name
                        && digest_of(kept.function, kept.number) == call.digest
                });
                let others = waiting(call.version).len() - 1 + kept.count();
                assert!(others >= manifest.queue as usize, "{failure}: {call:?} beside {others}");
            }
            FailureKind::Draining => assert!(self.until.is_some() && its_call, "{call:?}"),
            FailureKind::RegistryUnavailable => {
                assert_eq!(self.cause, Cause::FetchFailed(call.digest, failure.clone()));
            }
            FailureKind::StartFailed if failure.message.starts_with("an instance takes") => {
                assert!(manifest.memory_bytes() > 500 * MB);
            }
            FailureKind::StartFailed => {
                assert_eq!(self.cause, Cause::StartFailed(failure.clone()));
                // It was started for the one that waits for longest.
                let first = waiting(call.version).into_iter().filter(|call| call.key.is_none());
                let first = first.map(|call| call.called).min();
                assert!(call.key.is_some() || first == Some(call.called), "{call:?} was not first");
                // One failure, one call.
                self.cause = Cause::Other;
            }
            FailureKind::Internal => {
                assert_eq!(self.cause, Cause::Cancelled(invocation), "{failure}: {call:?}");
                cancelled = true;
            }
            other => panic!("{other}: {failure} of {call:?}"),
        }
        let state = State::Refused((!cancelled).then_some(failure.kind));
        self.calls.get_mut(&invocation).unwrap().state = state;
    }

    fn record(&mut self, record: &CallRecord) {
        let call = self.calls.remove(&record.invocation).expect("a call has one record");
        assert_eq!(record.version, call.version);
        let known = call.called == record.arrived || call.reserved.contains(&record.arrived);
        assert!(known, "{record:?} of {call:?}");
        let Phases { queue, pull, create, init, run } = record.phases;
        assert!(queue + pull + create + init + run <= self.now - record.arrived, "{record:?}");
        match call.state {
            State::Waiting { .. } => panic!("no answer before the record of {call:?}"),
            State::Refused(kind) => {
                assert_eq!((record.start, record.phases.queue), (None, self.now - record.arrived));
                let expected = kind.map_or(Outcome::Cancelled, Outcome::Failed);
                assert_eq!(record.outcome, expected);
            }
            State::Running { start, phases, .. } | State::Expired { start, phases, .. } => {
                let Cause::Finished { invocation, failure, run, .. } = self.cause else {
                    panic!("{call:?} is over");
                };
                assert_eq!(invocation, record.invocation);
                assert_eq!((record.start, record.phases), (Some(start), Phases { run, ..phases }));
                let expected = match (call.state, failure) {
                    (State::Expired { .. }, _) => Outcome::Failed(FailureKind::Timeout),
                    (_, Some(kind)) => Outcome::Failed(kind),
                    (_, None) => Outcome::Ok,
                };
                assert_eq!(record.outcome, expected);
            }
        }
        self.past.push(record.invocation);
        self.last_over = Some((record.invocation, call));
    }

    /// An instance of the version does nothing.
    fn rests(&self, version: VersionId) {
        let rests =
            |place: &Place| place.version == version && place.at == At::Up && place.runs.is_empty();
        assert!(self.instances.values().any(rests), "no instance of {version:?} is idle");
    }

    fn told(&mut self, stream: StreamId, notice: Notice) {
        let at = self.streams.iter().position(|(id, _)| *id == stream);
        let at = at.expect("told a stream that is over");
        match notice {
            Notice::Idle { version } => {
                if self.cause != Cause::ReplyLost {
                    self.rests(version);
                }
                let (next, balancer) = self.next_told().unwrap();
                assert_eq!(stream, next, "it is another one's turn");
                self.last_told = Some(stream);
                if let Cause::Finished { replies: true, .. } = self.cause {
                    let call = &self.last_over.as_ref().expect("a call is over").1;
                    let could = call.version == version
                        && balancer.is_some()
                        && balancer == call.balancer
                        && self.noticed.is_none();
                    assert!(!could, "the reply could have told {balancer:?}");
                }
            }
            Notice::Offered { ticket } => {
                let balancer = self.streams[at].1.clone().expect("offers are for somebody");
                let newest = self.streams.iter().rev();
                let newest = newest.into_iter().find(|(_, name)| name.as_ref() == Some(&balancer));
                assert_eq!(newest.map(|(id, _)| *id), Some(stream), "offered on an older stream");
                let key = ReservationKey { balancer, ticket };
                let kept = self.kept.get_mut(&key).expect("offered what is over");
                assert!(!kept.offered, "offered twice");
                assert!(self.now < kept.until, "offered too late");
                kept.offered = true;
                kept.until = kept.until.min(self.now + OFFER_TIMEOUT);
            }
            other => panic!("{other:?} is for all"),
        }
    }

    // What always holds.

    fn check(&self) {
        let load = self.core.load(self.now);
        let counts = self.core.counts();
        let takes: u64 = self.instances.values().map(|place| place.takes).sum();
        assert_eq!(takes, load.memory_used, "the memory pool's books are wrong");
        assert!(takes <= load.memory_total);
        let starting = self.instances.values().filter(|place| place.at == At::Starting);
        assert!(starting.count() <= MAX_STARTING);
        for place in self.instances.values() {
            assert_eq!(self.folders.get(&place.digest), Some(&Folder::Held), "{place:?}");
        }
        let (mut waiting, mut running) = (0, 0);
        for (id, call) in &self.calls {
            match call.state {
                State::Waiting { deadline } => {
                    assert!(self.now < deadline, "{id:?} waits past its deadline");
                    waiting += 1;
                }
                State::Running { expires, .. } => {
                    assert!(self.now < expires, "{id:?} runs past its time limit");
                    running += 1;
                }
                State::Expired { .. } => running += 1,
                State::Refused(_) => panic!("{id:?} was answered and has no record"),
            }
        }
        assert_eq!((counts.waiting, counts.running), (waiting, running));
        assert!(!self.quotas || waiting <= MOST_WAITING, "{waiting} wait");
        let kept = self.kept.values().filter(|kept| kept.until > self.now).count() as u32;
        let open = counts.reserved + counts.offered;
        assert!(open <= kept, "{open} places are kept, but at most {kept} were asked for");
        if self.duties.is_empty() && counts.offered == 0 {
            let forgotten = counts.waiting + counts.reserved;
            assert_eq!(forgotten, 0, "calls wait, and nothing is being done for them");
        }
        self.check_folders();
        if self.until.is_some() && self.calls.is_empty() && self.instances.is_empty() {
            assert!(self.drained.is_some(), "all is over, and the drain is not");
        }
    }

    fn check_folders(&self) {
        let held = || self.folders.iter().filter(|(_, folder)| **folder == Folder::Held);
        let bytes: u64 = held().map(|(digest, _)| bytes_of(digest)).sum();
        let on_disk = self.folders.iter().filter(|(_, folder)| **folder != Folder::Fetching);
        assert_eq!(
            on_disk.map(|(digest, _)| bytes_of(digest)).sum::<u64>(),
            self.core.code_bytes()
        );
        let used = |digest: &Digest| self.instances.values().any(|place| place.digest == *digest);
        for (digest, _) in held().filter(|(digest, _)| !used(digest)) {
            let its_call = |call: &CallState| {
                call.digest == *digest && matches!(call.state, State::Waiting { .. })
            };
            let its_place = |kept: &Kept| digest_of(kept.function, kept.number) == *digest;
            let soon = self.calls.values().any(its_call) || self.kept.values().any(its_place);
            let alive = self.alive.iter().any(|(_, its)| its == digest);
            assert!(alive || soon, "{digest} is of functions that are deleted");
            let ahead = self.clairvoyant || self.expected.contains(digest);
            assert!(bytes <= CODE_BUDGET || soon || ahead, "{digest} is needed by nobody");
        }
    }

    // The end.

    /// Does everything, and waits until nothing waits.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            if !self.duties.is_empty() {
                self.fulfil(0, true);
            } else if self.calls.is_empty() && self.kept.is_empty() {
                break;
            } else {
                self.advance(Duration::from_millis(10));
            }
        }
        assert!(self.duties.is_empty() && self.calls.is_empty(), "something goes on for ever");
        let counts = self.core.counts();
        let busy = [counts.reserved, counts.offered, counts.starting, counts.busy, counts.ending];
        assert_eq!(busy, [0; 5], "{counts:?}");
        for place in self.instances.values() {
            let version = &self.versions[&place.version];
            assert!(!self.superseded.contains(version), "{version:?} is superseded: {place:?}");
        }
    }

    pub(crate) fn finish(&mut self, patient: bool) {
        if patient {
            self.settle();
            self.drain(Duration::from_secs(10));
            self.settle();
        } else {
            self.drain(Duration::from_millis(700));
            let open = !(self.calls.is_empty() && self.instances.is_empty());
            self.advance(self.until.unwrap() - self.now);
            // Calls that waited may have left meanwhile, and the drain been over by that.
            let open = open && !(self.calls.is_empty() && self.instances.is_empty());
            assert!(self.drained.is_some() && (!open || self.drained == Some(false)));
            self.settle();
        }
        assert!(self.drained.is_some(), "the drain did not end: {:?}", self.core);
        assert!(self.instances.is_empty(), "instances are left: {:?}", self.instances);
        assert_eq!(self.core.memory().used(), 0);
        assert_eq!(self.core.counts(), Default::default());
        let drained = self.drained;
        let late = self.call(0, 1, true, Some("a"), None);
        assert!(!self.calls.contains_key(&late), "took a call after the drain");
        let key = ReservationKey { balancer: "a".to_owned(), ticket: u64::MAX };
        self.reserve(key, 0, 1, 1000);
        assert_eq!(self.core.counts(), Default::default(), "kept a place after the drain");
        assert_eq!((self.drained, self.duties.len()), (drained, 0));
    }
}

fn is_limit_of(duty: &Duty, instance: InstanceId) -> bool {
    matches!(duty, Duty::SetLimit(of, _) if *of == instance)
}
