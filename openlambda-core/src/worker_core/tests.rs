//! What a worker decides, one example each. Random histories are in `tests/worker_core_properties.rs`.

use super::*;
use crate::failure::Started;
use crate::keep_alive::Lru;
use crate::queue;
use crate::scheduler::EvictReason;

const MB: u64 = 1 << 20;

/// A core, and the outputs of the last thing that it was told.
struct Bench {
    core: WorkerCore,
    now: Time,
}

impl Bench {
    fn new() -> Self {
        Bench::allowing(Allow::default())
    }

    fn allowing(allow: Allow) -> Self {
        let scheduler = SchedulerConfig {
            memory: 1000 * MB,
            pause_after: Some(Duration::from_secs(1)),
            ..SchedulerConfig::default()
        };
        let max_wait = Duration::from_secs(10);
        let config = CoreConfig { scheduler, max_wait, code_budget: 1_000_000, allow };
        let keep_alive = Box::new(Lru::default());
        let core = WorkerCore::new(config, queue::default().make(), keep_alive);
        Bench { core, now: Time::ZERO }
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.core.poll_output()).collect()
    }

    fn tell(&mut self, input: Input<'_>) -> Vec<Output> {
        self.core.handle(self.now, input);
        self.outputs()
    }

    fn wait(&mut self, seconds: u64) -> Vec<Output> {
        self.now += Duration::from_secs(seconds);
        self.tell(Input::Timeout)
    }

    /// A call of a version, by its number, bundle and sender.
    fn call(&mut self, name: &str, number: u64, bundle: u8, from: Option<&str>) -> InvocationId {
        let call = self.call_of(name, number, bundle, from);
        self.core.call(self.now, call).invocation
    }

    fn call_of<'a>(&self, name: &str, n: u64, bundle: u8, from: Option<&'a str>) -> Call<'a> {
        let (function, version) = (name.parse().unwrap(), Some(Version(n)));
        Call { function, version, digest: digest(bundle), balancer: from, reservation: None }
    }

    /// Its function has a volume.
    fn fetched_with_volume(&mut self, bundle: u8) -> Vec<Output> {
        let volume = crate::manifest::Volume { name: "a".to_owned(), path: "/a".to_owned() };
        let manifest = Manifest { concurrency: 2, volumes: vec![volume], ..Manifest::default() };
        let manifest = Arc::new(manifest);
        self.tell(Input::Fetched { digest: digest(bundle), bytes: 1, manifest })
    }

    fn fetched(&mut self, bundle: u8) -> Vec<Output> {
        let manifest = Arc::new(Manifest { memory_mb: 100, ..Manifest::default() });
        self.tell(Input::Fetched { digest: digest(bundle), bytes: 1, manifest })
    }

    fn started(&mut self, instance: InstanceId) -> Vec<Output> {
        let (start, time) = (StartKind::Cold, Duration::from_millis(5));
        self.tell(Input::Started { instance, start, create: time, init: time })
    }

    /// The call is served by a new instance, and rests in `run`.
    fn cold(&mut self, name: &str, number: u64, bundle: u8) -> (InvocationId, InstanceId) {
        let invocation = self.call(name, number, bundle, None);
        let mut outputs = self.outputs();
        if outputs.contains(&Output::Fetch { digest: digest(bundle) }) {
            outputs = self.fetched(bundle);
        }
        let instance = created(&outputs)[0];
        assert_eq!(ran(&self.started(instance)), [(invocation, instance)]);
        (invocation, instance)
    }

    fn finish(&mut self, invocation: InvocationId) -> Vec<Output> {
        let run = Duration::ZERO;
        let (reusable, failure, replies) = (true, None, true);
        self.tell(Input::Finished { invocation, run, reusable, failure, replies })
    }

    fn subscribe(&mut self, stream: u64, balancer: &str) {
        let (stream, balancer) = (StreamId(stream), Some(balancer.to_owned()));
        assert_eq!(self.tell(Input::Subscribed { stream, balancer }), []);
    }

    fn deleted(&mut self, names: &[&str]) -> Vec<Output> {
        let functions = names.iter().map(|name| name.parse().unwrap()).collect();
        self.tell(Input::Deleted { functions })
    }

    fn reserve(&mut self, name: &str, number: u64, bundle: u8) -> ReservationKey {
        let key = ReservationKey { balancer: "a".to_owned(), ticket: 7 };
        self.core.handle(
            self.now,
            Input::Reserved(Reservation {
                balancer: key.balancer.clone(),
                ticket: key.ticket,
                function: name.parse().unwrap(),
                version: Version(number),
                digest: digest(bundle),
                deadline_ms: 5_000,
            }),
        );
        key
    }
}

fn digest(n: u8) -> Digest {
    Digest::from_bytes([n; 32])
}

fn created(outputs: &[Output]) -> Vec<InstanceId> {
    let created = outputs.iter().filter_map(|output| match output {
        Output::Create { instance, .. } => Some(*instance),
        _ => None,
    });
    created.collect()
}

fn ran(outputs: &[Output]) -> Vec<(InvocationId, InstanceId)> {
    let ran = outputs.iter().filter_map(|output| match output {
        Output::Run { invocation, instance, .. } => Some((*invocation, *instance)),
        _ => None,
    });
    ran.collect()
}

fn answered(outputs: &[Output]) -> Vec<(InvocationId, &str)> {
    let answered = outputs.iter().filter_map(|output| match output {
        Output::Answer { invocation, failure } => Some((*invocation, &*failure.message)),
        _ => None,
    });
    answered.collect()
}

/// Which stream or call was told of an idle instance.
fn told(outputs: &[Output]) -> Vec<Result<StreamId, InvocationId>> {
    let told = outputs.iter().filter_map(|output| match output {
        Output::Tell { stream, notice: Notice::Idle { .. } } => Some(Ok(*stream)),
        Output::IdleWithReply { invocation, .. } => Some(Err(*invocation)),
        _ => None,
    });
    told.collect()
}

// Limits of what is paused.

#[test]
fn an_instance_that_is_wanted_while_its_limit_is_lowered_has_it_back_before_it_runs() {
    let mut bench = Bench::new();
    let (first, instance) = bench.cold("f", 1, 1);
    bench.finish(first);
    assert_eq!(bench.wait(1), [Output::Pause { instance }]);
    // It uses 40 MiB; an eighth more is what it may hold.
    assert_eq!(bench.tell(Input::Paused { instance, used: Some(40 * MB) }), [], "there is enough");
    let bytes = 45 * MB;
    let short = bench.tell(Input::MemoryPressure { bytes: 1 });
    assert_eq!(short, [Output::SetLimit { instance, bytes }]);
    let second = bench.call("f", 1, 1, None);
    assert_eq!(bench.outputs(), [], "the limit is being set");
    let set = bench.tell(Input::LimitSet { instance, bytes: Some(bytes) });
    assert_eq!(set, [Output::Resume { instance, raise: Some(100 * MB) }]);
    assert_eq!(bench.core.memory().used(), 100 * MB, "its memory never went to others");
    assert_eq!(ran(&bench.tell(Input::Resumed { instance })), [(second, instance)]);
}

#[test]
fn a_lowered_instance_gives_its_memory_back_and_takes_it_again() {
    let mut bench = Bench::new();
    let (first, instance) = bench.cold("f", 1, 1);
    bench.finish(first);
    bench.wait(1);
    bench.tell(Input::Paused { instance, used: Some(40 * MB) });
    bench.tell(Input::MemoryPressure { bytes: 1 });
    bench.tell(Input::LimitSet { instance, bytes: Some(45 * MB) });
    assert_eq!(bench.core.memory().used(), 45 * MB);
    bench.call("f", 1, 1, None);
    assert_eq!(bench.outputs(), [Output::Resume { instance, raise: Some(100 * MB) }]);
    assert_eq!(bench.core.memory().used(), 100 * MB);
}

#[test]
fn where_a_limit_cannot_be_lowered_there_is_nothing_to_raise() {
    let mut bench = Bench::new();
    let (first, instance) = bench.cold("f", 1, 1);
    bench.finish(first);
    bench.wait(1);
    bench.tell(Input::Paused { instance, used: Some(40 * MB) });
    bench.tell(Input::MemoryPressure { bytes: 1 });
    bench.tell(Input::LimitSet { instance, bytes: None });
    assert_eq!(bench.core.memory().used(), 100 * MB);
    bench.call("f", 1, 1, None);
    assert_eq!(bench.outputs(), [Output::Resume { instance, raise: None }]);
}

#[test]
fn what_is_wanted_while_its_limit_is_lowered_and_ends_is_not_resumed() {
    let mut bench = Bench::new();
    let (first, instance) = bench.cold("f", 1, 1);
    bench.finish(first);
    bench.wait(1);
    bench.tell(Input::Paused { instance, used: Some(40 * MB) });
    bench.tell(Input::MemoryPressure { bytes: 1 });
    bench.call("f", 1, 1, None);
    let outputs = bench.tell(Input::Exited { instance });
    assert_eq!(outputs[0], Output::Destroy { instance, why: EvictReason::Broken });
    assert_eq!(created(&outputs).len(), 1, "another one is made for the call");
    assert_eq!(bench.tell(Input::LimitSet { instance, bytes: Some(45 * MB) }), []);
    assert_eq!(bench.core.memory().used(), 200 * MB);
    bench.tell(Input::Destroyed { instance });
    assert_eq!(bench.core.memory().used(), 100 * MB);
}

// Who hears of an idle instance.

#[test]
fn an_idle_notice_goes_with_the_reply_when_it_is_its_balancers_turn() {
    let mut bench = Bench::new();
    for (stream, balancer) in [(0, "a"), (1, "b")] {
        bench.subscribe(stream, balancer);
    }
    let (first, _) = bench.cold("f", 1, 1);
    // It came from nobody, so its reply tells nobody.
    assert_eq!(told(&bench.finish(first)), [Ok(StreamId(1))]);
    for (from, by_reply) in [("a", true), ("a", false), ("a", true), ("b", true), ("b", false)] {
        let invocation = bench.call("f", 1, 1, Some(from));
        assert_eq!(ran(&bench.outputs()).len(), 1);
        let other = if from == "a" { StreamId(1) } else { StreamId(0) };
        let expected = if by_reply { Err(invocation) } else { Ok(other) };
        assert_eq!(told(&bench.finish(invocation)), [expected], "{from}");
    }
    // The client has left, and the reply reaches nobody: the next one is told.
    let invocation = bench.call("f", 1, 1, Some("b"));
    bench.outputs();
    let outputs = bench.finish(invocation);
    let [Output::Record(record), Output::IdleWithReply { version, .. }] = outputs[..] else {
        panic!("{outputs:?}");
    };
    assert_eq!((record.invocation, record.version), (invocation, version));
    assert_eq!(told(&bench.tell(Input::ReplyLost { version })), [Ok(StreamId(0))]);
}

#[test]
fn a_balancer_that_came_again_is_not_told_with_the_reply_to_what_it_was() {
    let mut bench = Bench::new();
    bench.subscribe(0, "a");
    bench.cold("f", 1, 1);
    let invocation = bench.call("f", 1, 1, Some("a"));
    let instance = created(&bench.outputs())[0];
    bench.started(instance);
    bench.tell(Input::Unsubscribed { stream: StreamId(0) });
    bench.subscribe(1, "a");
    assert_eq!(told(&bench.finish(invocation)), [Ok(StreamId(1))]);
}

// Code.

#[test]
fn the_bundle_of_two_functions_goes_when_both_are_deleted() {
    let remove = Output::Remove { digest: digest(1) };
    for at_once in [true, false] {
        let mut bench = Bench::new();
        let (f, of_f) = bench.cold("f", 1, 1);
        let (g, of_g) = bench.cold("g", 1, 1);
        if at_once {
            assert_eq!(bench.deleted(&["f", "g"]), []);
        } else {
            assert_eq!(bench.deleted(&["f"]), []);
            assert_eq!(bench.deleted(&["g"]), []);
        }
        let why = EvictReason::Superseded;
        for (invocation, instance) in [(f, of_f), (g, of_g)] {
            assert_eq!(bench.finish(invocation)[1..], [Output::Destroy { instance, why }]);
        }
        assert_eq!(bench.tell(Input::Destroyed { instance: of_f }), [], "g's instance uses it");
        let gone = bench.tell(Input::Destroyed { instance: of_g });
        assert_eq!(gone, std::slice::from_ref(&remove), "deleted at once: {at_once}");
    }
}

/// A function with a volume is deleted, and another one with the same bytes is published under its name.
/// No instance of the first serves the second, whenever the word of the deletion comes.
#[test]
fn an_instance_of_a_deleted_function_serves_no_later_one_with_the_same_bytes() {
    for (busy, word) in [(true, "before"), (true, "late"), (false, "late"), (true, "never")] {
        let mut bench = Bench::new();
        let first = bench.call("f", 1, 1, None);
        bench.outputs();
        let old = created(&bench.fetched_with_volume(1))[0];
        assert_eq!(ran(&bench.started(old)), [(first, old)]);
        if !busy {
            bench.finish(first);
        }
        if word == "before" {
            bench.deleted(&["f"]);
        }
        // The old one has a free slot.
        let second = bench.call("f", 2, 1, None);
        let outputs = bench.outputs();
        assert_eq!(ran(&outputs), [], "{busy} {word}");
        let new = created(&outputs)[0];
        assert_eq!(ran(&bench.started(new)), [(second, new)]);
        bench.finish(second);
        // A call that was on its way for long belongs to nobody any more.
        let third = bench.call("f", 1, 1, None);
        assert_eq!(ran(&bench.outputs()), [(third, new)]);
        bench.finish(third);
        let destroyed = |outputs: &[Output], instance: InstanceId| {
            let is_it = |output: &Output| matches!(output, Output::Destroy { instance: of, .. } if *of == instance);
            outputs.iter().any(is_it)
        };
        if busy {
            assert!(destroyed(&bench.finish(first), old), "{word}");
        } else {
            assert!(destroyed(&outputs, old), "{word}");
        }
        if word == "late" {
            assert!(destroyed(&bench.deleted(&["f"]), new));
            bench.tell(Input::Destroyed { instance: new });
        }
        let fourth = bench.call("f", 2, 1, None);
        let outputs = bench.outputs();
        match word {
            "late" => assert_ne!(created(&outputs)[0], old),
            _ => assert_eq!(ran(&outputs), [(fourth, new)]),
        }
    }
}

#[test]
fn the_bundle_of_a_deleted_function_stays_for_the_other_that_has_it() {
    let mut bench = Bench::new();
    let (f, instance) = bench.cold("f", 1, 1);
    let (g, _) = bench.cold("g", 1, 1);
    bench.deleted(&["f"]);
    bench.finish(f);
    assert_eq!(bench.tell(Input::Destroyed { instance }), []);
    bench.finish(g);
    // It was deployed again before the other was deleted.
    bench.call("f", 1, 1, None);
    let instance = created(&bench.outputs())[0];
    assert!(!bench.deleted(&["g"]).contains(&Output::Remove { digest: digest(1) }));
    bench.started(instance);
    assert_eq!(bench.core.code_bytes(), 1);
}

#[test]
fn a_call_that_came_before_its_function_was_deleted_does_not_make_the_bundle_stay() {
    let mut bench = Bench::new();
    let others: Vec<_> = (0..10).map(|n| bench.cold("g", 1, 2 + n)).collect();
    assert_eq!(bench.core.memory().used(), 1000 * MB);
    // The code of f was here before.
    let first = bench.call("f", 1, 1, None);
    bench.outputs();
    bench.fetched(1);
    bench.tell(Input::Cancelled { invocation: first });
    let remove = Output::Remove { digest: digest(1) };
    assert_eq!(bench.deleted(&["f"]), std::slice::from_ref(&remove));
    bench.tell(Input::Removed { digest: digest(1) });
    // It is called again, and waits for memory behind another one when it is deleted again.
    bench.call("g", 1, 2, None);
    let second = bench.call("f", 1, 1, None);
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.deleted(&["f"]), []);
    let (call, _) = others[0];
    assert!(bench.finish(call).contains(&Output::Fetch { digest: digest(1) }));
    bench.fetched(1);
    let (call, instance) = others[1];
    bench.finish(call);
    let instance = created(&bench.tell(Input::Destroyed { instance }))[0];
    assert_eq!(ran(&bench.started(instance)), [(second, instance)]);
    bench.finish(second);
    assert_eq!(bench.tell(Input::Destroyed { instance }), [remove]);
}

/// However long ago they were called, and however many others came after them.
#[test]
fn the_bundles_of_deleted_functions_go_also_where_many_are_known() {
    const MANY: u8 = 255;
    let mut bench = Bench::new();
    let names: Vec<String> =
        (0..3).flat_map(|round| (0..MANY).map(move |n| format!("f{round}-{n}"))).collect();
    for (name, n) in names.iter().zip((0..MANY).cycle()) {
        let (invocation, instance) = bench.cold(name, 1, n);
        bench.finish(invocation);
        bench.tell(Input::MemoryPressure { bytes: 1 });
        bench.tell(Input::Destroyed { instance });
    }
    assert_eq!(bench.core.code_bytes(), u64::from(MANY));
    let known: Vec<_> = bench.core.functions().cloned().collect();
    assert!(known.len() < names.len(), "all are known");
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    assert_eq!(bench.deleted(&names).len(), usize::from(MANY));
}

#[test]
fn versions_of_which_nothing_is_left_are_forgotten() {
    let mut bench = Bench::new();
    let mut highest = 0;
    for n in 0..3_000 {
        let call = bench.call_of(&format!("f{n}"), 1, 1, None);
        let digest = Digest::from_bytes([(n % 251) as u8; 32]);
        let accepted = bench.core.call(bench.now, Call { digest, ..call });
        highest = highest.max(accepted.version.0);
        bench.outputs();
        let failure = Failure::new(FailureKind::NotFound, "there is no such bundle");
        assert_eq!(answered(&bench.tell(Input::FetchFailed { digest, failure })).len(), 1);
    }
    assert!(highest < 600, "{highest}");
    assert!(bench.core.functions().count() < 600);
}

// Places that are kept.

#[test]
fn a_call_of_another_version_than_was_reserved_gives_the_slot_back() {
    let mut bench = Bench::new();
    bench.subscribe(0, "a");
    let (first, instance) = bench.cold("f", 1, 1);
    let key = bench.reserve("f", 1, 1);
    let [Output::Create { instance: second, .. }] = bench.outputs()[..] else { panic!() };
    let offered = Output::Tell { stream: StreamId(0), notice: Notice::Offered { ticket: 7 } };
    assert_eq!(bench.started(second), [offered]);
    assert_eq!(bench.core.counts().offered, 1);
    // A newer version was published meanwhile.
    let call = Call { reservation: Some(key.clone()), ..bench.call_of("f", 2, 2, Some("a")) };
    bench.core.call(bench.now, call);
    let counts = bench.core.counts();
    assert_eq!((counts.reserved, counts.offered, counts.waiting), (0, 0, 1));
    let outputs = bench.outputs();
    let why = EvictReason::Superseded;
    assert_eq!(
        outputs,
        [Output::Destroy { instance: second, why }, Output::Fetch { digest: digest(2) }],
        "nobody is told that the old version's instance is idle"
    );
    // The place is not there any more, and the call is not it.
    assert_eq!(bench.tell(Input::ReservationCancelled { key }), []);
    assert_eq!(bench.core.counts().waiting, 1);
    assert_eq!(bench.finish(first)[1..], [Output::Destroy { instance, why }]);
}

#[test]
fn a_reservation_that_comes_after_its_call_is_none_until_the_call_is_over() {
    let mut bench = Bench::new();
    bench.subscribe(0, "a");
    let key = bench.reserve("f", 1, 1);
    let call = Call { reservation: Some(key), ..bench.call_of("f", 1, 1, Some("a")) };
    let invocation = bench.core.call(bench.now, call).invocation;
    bench.reserve("f", 1, 1);
    assert_eq!((bench.core.counts().waiting, bench.core.counts().reserved), (1, 0));
    bench.outputs();
    let instance = created(&bench.fetched(1))[0];
    assert_eq!(ran(&bench.started(instance)), [(invocation, instance)]);
    bench.finish(invocation);
    // The name is free again. A balancer gives it to one call only, but names must not pile up.
    bench.reserve("f", 1, 1);
    assert_eq!(bench.core.counts().offered, 1);
}

#[test]
fn places_end_with_the_last_stream_of_their_balancer() {
    let mut bench = Bench::new();
    for stream in [0, 1] {
        bench.subscribe(stream, "a");
    }
    bench.reserve("f", 1, 1);
    bench.outputs();
    bench.tell(Input::Unsubscribed { stream: StreamId(1) });
    assert_eq!(bench.core.counts().reserved, 1, "it listens still");
    bench.tell(Input::Unsubscribed { stream: StreamId(0) });
    assert_eq!(bench.core.counts().reserved, 0);
    bench.reserve("f", 1, 1);
    assert_eq!(bench.core.counts().reserved, 0, "it would not hear of an offer");
}

// Failures.

#[test]
fn a_start_that_fails_tells_the_call_that_it_was_started_for() {
    let mut bench = Bench::new();
    let [first, second] = [0, 1].map(|_| bench.call("f", 1, 1, None));
    bench.outputs();
    let [a, b] = created(&bench.fetched(1))[..] else { panic!("one instance for each") };
    let failed = |instance, message: &str| {
        let failure = Failure::new(FailureKind::StartFailed, message);
        Input::StartFailed { instance, failure }
    };
    assert_eq!(answered(&bench.tell(failed(b, "no disk"))), [(first, "no disk")]);
    assert_eq!(answered(&bench.tell(failed(a, "no luck"))), [(second, "no luck")]);
    assert_eq!(bench.core.counts(), Counts::default());
}

#[test]
fn a_sandbox_that_the_end_of_the_grace_ended_is_not_to_blame() {
    let mut bench = Bench::new();
    let crash = || Failure::new(FailureKind::SandboxCrashed, "it is gone").started(Started::Yes);
    let (_, _) = bench.cold("f", 1, 1);
    assert_eq!(bench.core.blamed(None, crash()), crash());
    bench.tell(Input::Drain { until: bench.now + Duration::from_secs(5) });
    assert_eq!(bench.core.blamed(None, crash()), crash(), "it may answer yet");
    assert!(bench.wait(5).contains(&Output::Drained { in_time: false }));
    let failure = bench.core.blamed(None, crash());
    assert_eq!((failure.kind, failure.started), (FailureKind::WorkerDied, Started::Yes));
    let own = Failure::new(FailureKind::FunctionError, "it raised");
    assert_eq!(bench.core.blamed(None, own.clone()), own);
}

#[test]
fn what_lacks_memory_is_told_its_limit() {
    let mut bench = Bench::new();
    bench.cold("f", 1, 1);
    let version = bench.core.version_id(&"f".parse().unwrap(), &digest(1));
    let failure = Failure::new(FailureKind::OutOfMemory, "it ran out of memory");
    let told = bench.core.blamed(version, failure.clone());
    assert!(told.message.contains("its memory_mb is 100; raise memory_mb"), "{told}");
    assert_eq!(bench.core.blamed(None, failure.clone()), failure);
}

#[test]
fn a_drain_is_over_once() {
    let mut bench = Bench::new();
    let (invocation, instance) = bench.cold("f", 1, 1);
    let until = bench.now + Duration::from_secs(5);
    let drains = bench.tell(Input::Drain { until });
    assert_eq!(drains, [Output::TellAll { notice: Notice::Draining }]);
    assert_eq!(bench.core.poll_timeout(), Some(until));
    bench.finish(invocation);
    assert_eq!(bench.tell(Input::Destroyed { instance }), [Output::Drained { in_time: true }]);
    assert_eq!(bench.core.poll_timeout(), None);
    assert_eq!(bench.wait(5), []);
    assert_eq!(bench.tell(Input::Drain { until }), []);
}

/// The registry may be another's, and the bundle older than the bound.
#[test]
fn what_asks_for_more_than_the_operator_allows_gets_no_sandbox() {
    let mut allow = Allow::default();
    let all = crate::allow::Bounds { memory_mb: Some(100), ..Default::default() };
    allow.namespace.insert("ok".to_owned(), all);
    allow.all.memory_mb = Some(99);
    let mut bench = Bench::allowing(allow);
    let refused = bench.call("a", 1, 1, None);
    bench.outputs();
    // Of the same bytes, in a namespace that may.
    let admitted = bench.call("ok/a", 1, 1, None);
    let outputs = bench.fetched(1);
    let answer = outputs.iter().find_map(|output| match output {
        Output::Answer { invocation, failure } if *invocation == refused => Some(failure),
        _ => None,
    });
    let failure = answer.expect("it is refused");
    assert_eq!((failure.kind, failure.started), (FailureKind::Forbidden, Started::No));
    assert_eq!(failure.culprit, crate::failure::Culprit::Function);
    let told = "a may not run here: memory_mb = 100, and the operator allows at most 99 (memory_mb in \
                [allow])";
    assert!(failure.message.starts_with(told), "{}", failure.message);
    let [instance] = created(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(ran(&bench.started(instance)), [(admitted, instance)]);
    // Its code is here now: it is refused at once, and nothing is fetched or made.
    let again = bench.call("a", 1, 1, None);
    let outputs = bench.outputs();
    assert_eq!(answered(&outputs).len(), 1, "{outputs:?}");
    assert_eq!(answered(&outputs)[0].0, again);
    assert!(created(&outputs).is_empty() && outputs.len() == 2, "{outputs:?}");
}

/// As a manifest is: a bundle that was published before there was a bound, and the same one in a namespace
/// that may have it.
#[test]
fn a_bundle_that_is_larger_than_the_operator_allows_gets_no_sandbox() {
    let mut allow = Allow::default();
    let all = crate::allow::Bounds { bundle_mb: Some(2), ..Default::default() };
    allow.namespace.insert("ok".to_owned(), all);
    allow.all.bundle_mb = Some(1);
    let mut bench = Bench::allowing(allow);
    let refused = bench.call("a", 1, 1, None);
    let admitted = bench.call("ok/a", 1, 1, None);
    bench.outputs();
    let manifest = Arc::new(Manifest::default());
    let outputs = bench.tell(Input::Fetched { digest: digest(1), bytes: (1 << 20) + 1, manifest });
    let answered = answered(&outputs);
    let [instance] = created(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(answered.len(), 1, "{outputs:?}");
    assert_eq!(answered[0].0, refused);
    let told = outputs.iter().find_map(|output| match output {
        Output::Answer { failure, .. } => Some(failure),
        _ => None,
    });
    let told = told.expect("it is refused");
    assert_eq!(told.kind, FailureKind::Forbidden);
    let why = "a may not run here: namespace default would have a bundle of 1.0 MiB unpacked, and the operator \
               allows at most 1 MiB (bundle_mb in [allow])";
    assert!(told.message.starts_with(why), "{}", told.message);
    assert_eq!(ran(&bench.started(instance)), [(admitted, instance)]);
    bench.call("a", 1, 1, None);
    assert!(created(&bench.outputs()).is_empty());
}

#[test]
fn a_bundle_is_compiled_once_after_its_first_start_one_at_a_time_and_stays_meanwhile() {
    let mut bench = Bench::new();
    let compilable = |bundle: u8, sources| Input::Compilable { digest: digest(bundle), sources };
    let compiled = |outputs: &[Output]| -> Vec<Digest> {
        let digest = |output: &Output| match output {
            Output::Compile { digest, .. } => Some(*digest),
            _ => None,
        };
        outputs.iter().filter_map(digest).collect()
    };
    // Until the first instance of each has started, or has failed to, nothing takes its time.
    let mut instances = Vec::new();
    for (name, bundle) in [("a", 1), ("b", 2), ("c", 3), ("d", 4)] {
        bench.call(name, 1, bundle, None);
        bench.outputs();
        instances.push(created(&bench.fetched(bundle))[0]);
        let sources = if name == "c" { 1000 } else { 1 << 20 };
        assert_eq!(bench.tell(compilable(bundle, sources)), []);
    }
    let failure = Failure::new(FailureKind::InitError, "it takes too long");
    let failed = bench.tell(Input::StartFailed { instance: instances[0], failure });
    assert_eq!(compiled(&failed), [digest(1)]);
    // The others wait; one with little source is not worth it.
    for instance in &instances[1..] {
        assert_eq!(compiled(&bench.started(*instance)), []);
    }
    // Its function is deleted, but the folder is being written to.
    let removal =
        |outputs: &[Output], bundle| outputs.contains(&Output::Remove { digest: digest(bundle) });
    assert!(!removal(&bench.deleted(&["a"]), 1));
    let over = bench.tell(Input::Compiled { digest: digest(1), bytes: 10 });
    assert!(removal(&over, 1) && compiled(&over) == [digest(2)], "{over:?}");
    assert_eq!(bench.core.code_bytes(), 1 + 10 + 3);
    bench.tell(Input::Removed { digest: digest(1) });
    assert_eq!(bench.core.code_bytes(), 3);
    // Whose turn comes when nothing is left of it is passed over, and each is compiled once.
    let over = bench.tell(Input::Compiled { digest: digest(2), bytes: 10 });
    assert_eq!(compiled(&over), [digest(4)]);
    assert_eq!(compiled(&bench.tell(Input::Compiled { digest: digest(4), bytes: 10 })), []);
    let (_, again) = bench.cold("d", 1, 4);
    assert!(instances[3] != again);
    assert_eq!(bench.core.code_bytes(), 23);
}

/// Quotas of a namespace are its functions' together, and nobody else's.
#[test]
fn calls_over_a_quota_are_refused_and_leave_nothing() {
    let mut allow = Allow::default();
    allow.namespace.insert(
        "n".to_owned(),
        crate::allow::Bounds {
            waiting_calls: Some(2),
            calls_per_second: Some(5.0),
            ..Default::default()
        },
    );
    let mut bench = Bench::allowing(allow);
    let (one, _) = bench.cold("n/f", 1, 1);
    // Two wait for the code of another function; a third does not, whatever it calls.
    let leaves = bench.call("n/g", 1, 2, None);
    bench.call("n/g", 1, 2, None);
    bench.outputs();
    let refused = bench.call("n/g", 1, 2, None);
    let outputs = bench.outputs();
    let told = "2 calls of namespace n wait here already, which is what the operator allows \
                (waiting_calls in [allow]); try again later";
    assert_eq!(answered(&outputs), [(refused, told)]);
    bench.finish(one);
    // What runs at once does not wait.
    let warm = bench.call("n/f", 1, 1, None);
    assert_eq!(ran(&bench.outputs()).len(), 1);
    bench.finish(warm);
    // The sixth within a second.
    let refused = bench.call("n/f", 1, 1, None);
    let outputs = bench.outputs();
    let failure = outputs.iter().find_map(|output| match output {
        Output::Answer { failure, .. } => Some(failure),
        _ => None,
    });
    let failure = failure.unwrap();
    assert_eq!(
        (failure.kind, failure.retry_after),
        (FailureKind::QueueFull, Some(Duration::from_millis(200)))
    );
    assert_eq!(answered(&outputs)[0].0, refused);
    assert!(failure.message.starts_with("namespace n has had the 5 calls a second"));
    // Others go on.
    for _ in 0..20 {
        bench.call("f", 1, 1, None);
    }
    assert!(answered(&bench.outputs()).is_empty());
    bench.wait(1);
    bench.tell(Input::Cancelled { invocation: leaves });
    bench.call("n/f", 1, 1, None);
    assert!(answered(&bench.outputs()).is_empty());
}

#[test]
fn an_instance_that_does_not_fit_into_its_namespace_s_share_is_refused() {
    let mut allow = Allow::default();
    let small = crate::allow::Bounds { memory_share: Some(0.05), ..Default::default() };
    allow.namespace.insert("n".to_owned(), small);
    let mut bench = Bench::allowing(allow);
    let refused = bench.call("n/f", 1, 1, None);
    let admitted = bench.call("f", 1, 1, None);
    bench.outputs();
    let outputs = bench.fetched(1);
    let told = "an instance takes 100 MiB and the worker has 50 MiB for its namespace; lower memory_mb \
                in the manifest or give the worker more";
    assert_eq!(answered(&outputs), [(refused, told)]);
    let [instance] = created(&outputs)[..] else { panic!("{outputs:?}") };
    assert_eq!(ran(&bench.started(instance)), [(admitted, instance)]);
}
