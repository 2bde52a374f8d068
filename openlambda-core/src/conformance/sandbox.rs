//! What every kind of sandbox must do: [`suite`] demands exactly what its factory's
//! [`Capabilities`](crate::sandbox::Capabilities) declare.
//!
//! A kind brings a [`Fixture`], which has the scenarios' function in the form that the kind runs: a
//! closure, Python, a container's image. The function takes a command as its event:
//!
//! | event | what it does |
//! |---|---|
//! | `{"op": "sleep", "ms": 100}` | waits, then returns the event |
//! | `{"op": "raise", "message": "…"}` | raises an error with this message |
//! | `{"op": "exit"}` | ends its whole instance at once, without an answer |
//! | anything else | returns the event, byte for byte |
//!
//! Run the suite in a test binary of its own: it counts the process's descriptors and threads.

use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};

use super::times;
use crate::failure::Started;
use crate::invocation::{
    Body, BoxError, Completion, Invocation, RequestHead, RequestIds, StartKind, full_body,
};
use crate::manifest::{Manifest, Network, Runtime};
use crate::sandbox::{
    Exit, NoLog, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory, SandboxSpec, ZygoteId,
    ZygoteSpec,
};
use crate::time::Time;

/// What a kind of sandbox brings to the suite.
pub trait Fixture: Send + Sync {
    /// A fresh factory; the suite shuts it down. One is in use at a time.
    fn factory(&self) -> Arc<dyn SandboxFactory>;

    /// The spec of an instance that plays `scenario`.
    fn spec(&self, scenario: Scenario) -> SandboxSpec;

    /// What is left on the machine of all instances so far: names of processes, files, anything
    /// that only this kind can find. Empty when all is clean.
    fn leftovers(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the factory holds on the machine, counted by kind (mounts, cgroups, files …), beside this
    /// process's own children, descriptors and threads. Rounds of create and destroy must not add.
    fn holdings(&self) -> BTreeMap<String, usize> {
        BTreeMap::new()
    }

    /// How many rounds of create and destroy [`nothing_is_left`] does, [`times`] so many.
    fn rounds(&self) -> u64 {
        50
    }
}

/// What the function of a [`SandboxSpec`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scenario {
    /// It takes commands, one at a time.
    Commands,
    /// The same with `concurrency = 3`.
    ThreeSlots,
    /// Its initialisation raises an error with the message `no luck`.
    InitRaises,
    /// Its initialisation takes for ever; `init_timeout` is short.
    InitHangs,
}

/// Runs everything below.
///
/// # Panics
///
/// When the kind breaks the contract.
pub async fn suite(fixture: &dyn Fixture) {
    bodies_come_back(fixture).await;
    creates_run_at_once(fixture).await;
    slots_are_the_limit(fixture).await;
    a_dropped_call_keeps_its_slot(fixture).await;
    errors_of_the_handler_are_told(fixture).await;
    a_broken_body_frees_the_slot(fixture).await;
    a_crash_is_told(fixture).await;
    initialisation_can_fail(fixture).await;
    destroying_ends_everything(fixture).await;
    pausing_works_as_declared(fixture).await;
    networks_are_taken_as_declared(fixture).await;
    zygotes_fork_as_declared(fixture).await;
    shutdown_ends_everything(fixture).await;
    nothing_is_left(fixture).await;
}

/// Bodies up to 6 MiB pass unchanged, in one frame or many.
pub async fn bodies_come_back(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let sandbox = create(&*factory, fixture.spec(Scenario::Commands)).await;
    for size in [0, 1, 1000, 65_536, 1 << 20, (6 << 20) - 2] {
        let text: String = "aß中🦀 ".chars().cycle().take(size / 3).collect();
        let padding = "x".repeat((size).saturating_sub(text.len()));
        let body = Bytes::from(format!("\"{text}{padding}\""));
        let (reply, completion) =
            call(&*sandbox, full_body(body.clone())).await.expect("an answer");
        assert!(reply == body, "a body of {} bytes came back changed", body.len());
        assert!(completion.reusable && completion.failure.is_none());

        let frames: Vec<_> = body.chunks(10_000).map(Bytes::copy_from_slice).collect();
        let frames = frames.into_iter().map(|data| Ok(http_body::Frame::data(data)));
        let streamed: Body = StreamBody::new(stream::iter(frames)).boxed_unsync();
        let (reply, _) = call(&*sandbox, streamed).await.expect("an answer");
        assert!(reply == body, "a streamed body of {} bytes came back changed", body.len());
    }
    sandbox.destroy().await;
    factory.shutdown().await;
}

/// `create` may be called at once; each instance is one of its own.
pub async fn creates_run_at_once(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let creates = (0..8).map(|n| {
        let factory = &factory;
        async move {
            let sandbox = create(&**factory, fixture.spec(Scenario::Commands)).await;
            assert_eq!(echo(&*sandbox, n).await.expect("an answer"), n);
            sandbox
        }
    });
    let sandboxes = join_all(creates).await;
    join_all(sandboxes.iter().map(|sandbox| sandbox.destroy())).await;
    factory.shutdown().await;
}

/// As many calls at once as there are slots; one more is refused and harms none.
pub async fn slots_are_the_limit(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    for (scenario, slots) in [(Scenario::Commands, 1), (Scenario::ThreeSlots, 3)] {
        let sandbox = create(&*factory, fixture.spec(scenario)).await;
        assert_eq!(sandbox.slots(), slots);
        // More than once, so that slots are seen to come back.
        for _ in 0..3 {
            let calls = (0..=slots).map(|_| call(&*sandbox, sleep(500)));
            let results = join_all(calls).await;
            let (done, refused): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
            assert_eq!((done.len(), refused.len()), (slots as usize, 1));
            let error = refused.into_iter().next().and_then(Result::err).expect("one is refused");
            assert_eq!((error.kind, error.started), (SandboxErrorKind::Busy, Started::No));
            assert!(error.reusable);
        }
        sandbox.destroy().await;
    }
    factory.shutdown().await;
}

/// A slot is busy until the handler has answered, even if no client waits for the answer.
pub async fn a_dropped_call_keeps_its_slot(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let sandbox = create(&*factory, fixture.spec(Scenario::Commands)).await;
    let dropped = tokio::time::timeout(Duration::from_millis(500), call(&*sandbox, sleep(2000)));
    assert!(dropped.await.is_err(), "the handler did not sleep");
    let error = echo(&*sandbox, 1).await.expect_err("the slot is busy");
    assert_eq!(error.kind, SandboxErrorKind::Busy);
    eventually("the slot is free again", || async { echo(&*sandbox, 2).await.is_ok() }).await;
    // An unread reply is over too.
    let reply = sandbox.invoke(invocation(full_body("\"unread\""))).await.expect("an answer");
    let done = reply.done;
    drop(reply.body);
    assert!(done.await.reusable);
    assert_eq!(echo(&*sandbox, 3).await.expect("an answer"), 3);
    sandbox.destroy().await;
    factory.shutdown().await;
}

/// A handler that raises is told apart from everything else, and its instance lives on.
pub async fn errors_of_the_handler_are_told(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let sandbox = create(&*factory, fixture.spec(Scenario::Commands)).await;
    let raise = full_body(r#"{"op": "raise", "message": "quite wrong"}"#);
    let error = call(&*sandbox, raise).await.expect_err("it raises");
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Function, Started::Yes));
    assert!(error.reusable);
    let told = error.function_error.expect("what the handler said");
    assert_eq!(told.message, "quite wrong");
    assert!(!told.kind.is_empty());
    assert_eq!(echo(&*sandbox, 1).await.expect("an answer"), 1);
    sandbox.destroy().await;
    factory.shutdown().await;
}

/// A request's body that breaks off never reaches the handler.
pub async fn a_broken_body_frees_the_slot(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let sandbox = create(&*factory, fixture.spec(Scenario::Commands)).await;
    let frames: [Result<_, BoxError>; 2] =
        [Ok(http_body::Frame::data("\"begun".into())), Err("the client went away".into())];
    let broken: Body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    let error = call(&*sandbox, broken).await.expect_err("the body is not whole");
    assert_eq!((error.kind, error.started), (SandboxErrorKind::BodyLost, Started::No));
    assert_eq!(echo(&*sandbox, 1).await.expect("an answer"), 1);
    sandbox.destroy().await;
    factory.shutdown().await;
}

/// When an instance ends by itself, every task that waits for its end is told.
pub async fn a_crash_is_told(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let sandbox = create(&*factory, fixture.spec(Scenario::Commands)).await;
    let error = call(&*sandbox, full_body(r#"{"op": "exit"}"#)).await.expect_err("it is gone");
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::Yes));
    assert!(!error.reusable);
    assert_ne!(sandbox.exited().await, Exit::Destroyed);
    let error = echo(&*sandbox, 1).await.expect_err("it is gone");
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
    assert!(sandbox.usage().await.is_err() && sandbox.resume().await.is_err());
    sandbox.destroy().await;
    factory.shutdown().await;
}

/// A function that cannot start says why, and one that takes too long is ended.
pub async fn initialisation_can_fail(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let error = factory.create(fixture.spec(Scenario::InitRaises)).await.expect_err("it raises");
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Init, Started::No));
    let told = error.function_error.expect("what it said");
    assert!(told.message.contains("no luck"), "{}", told.message);
    let error = factory.create(fixture.spec(Scenario::InitHangs)).await.expect_err("it hangs");
    assert_eq!((error.kind, error.started), (SandboxErrorKind::InitTimeout, Started::No));
    assert_eq!(fixture.leftovers(), [""; 0], "a failed create left something");
    factory.shutdown().await;
}

/// `destroy` ends a call in the middle, and may come twice and at once.
pub async fn destroying_ends_everything(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let sandbox = create(&*factory, fixture.spec(Scenario::Commands)).await;
    let running = call(&*sandbox, sleep(600_000));
    let destroying = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        join_all([sandbox.destroy(), sandbox.destroy()]).await;
    };
    let (error, ()) = tokio::join!(running, destroying);
    let error = error.expect_err("it was killed");
    assert_eq!((error.kind, error.reusable), (SandboxErrorKind::Exited, false));
    assert_eq!(sandbox.exited().await, Exit::Destroyed);
    sandbox.destroy().await;
    assert_eq!(echo(&*sandbox, 1).await.expect_err("it is gone").kind, SandboxErrorKind::Exited);
    assert_eq!(fixture.leftovers(), [""; 0], "destroy resolved before all was gone");
    factory.shutdown().await;
}

/// Pausing is refused while busy, and a paused instance takes nothing.
pub async fn pausing_works_as_declared(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let sandbox = create(&*factory, fixture.spec(Scenario::Commands)).await;
    if factory.capabilities().pause {
        for _ in 0..3 {
            sandbox.pause().await.expect("it is idle");
            let error = echo(&*sandbox, 1).await.expect_err("it is paused");
            assert_eq!((error.kind, error.started), (SandboxErrorKind::Paused, Started::No));
            sandbox.resume().await.expect("it is there");
            sandbox.resume().await.expect("resuming a running instance does nothing");
            assert_eq!(echo(&*sandbox, 2).await.expect("an answer"), 2);
        }
        let pausing = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            sandbox.pause().await.expect_err("it is busy").kind
        };
        let (slept, kind) = tokio::join!(call(&*sandbox, sleep(1500)), pausing);
        assert_eq!(kind, SandboxErrorKind::Busy);
        slept.expect("an answer");
        sandbox.pause().await.expect("it is idle");
    } else {
        let error = sandbox.pause().await.expect_err("it cannot pause");
        assert_eq!(error.kind, SandboxErrorKind::Unsupported);
    }
    // A paused instance can be destroyed.
    sandbox.destroy().await;
    factory.shutdown().await;
}

/// The declared kinds of network are taken, the others refused.
pub async fn networks_are_taken_as_declared(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let declared = factory.capabilities().networks;
    for network in [Network::None, Network::Host, Network::Bridge] {
        let mut spec = fixture.spec(Scenario::Commands);
        spec.manifest = Arc::new(Manifest { network, ..(*spec.manifest).clone() });
        match factory.create(spec).await {
            Ok(created) => {
                assert!(declared.contains(&network), "{network:?} is taken, but not declared");
                created.sandbox.destroy().await;
            }
            Err(error) => {
                assert!(!declared.contains(&network), "{network:?} is declared: {error}");
                assert_eq!(error.kind, SandboxErrorKind::Unsupported);
            }
        }
    }
    factory.shutdown().await;
}

/// Instances and zygotes are forked from zygotes and outlive them; where that is not declared, both
/// are refused.
pub async fn zygotes_fork_as_declared(fixture: &dyn Fixture) {
    use SandboxErrorKind as K;
    let factory = fixture.factory();
    let runtime = fixture.spec(Scenario::Commands).manifest.runtime.unwrap_or(Runtime::Python);
    let zygote = |id, parent| {
        let spec = ZygoteSpec::new(ZygoteId(id), runtime, Vec::new(), Arc::new(NoLog));
        ZygoteSpec { parent, ..spec }
    };
    let fork_of = |id| {
        let spec = fixture.spec(Scenario::Commands);
        factory.create(SandboxSpec { zygote: Some(ZygoteId(id)), ..spec })
    };
    if !factory.capabilities().fork {
        let error = factory.create_zygote(zygote(1, None)).await.expect_err("it makes no zygotes");
        assert_eq!((error.kind, error.started), (K::Unsupported, Started::No));
        let error = fork_of(1).await.expect_err("it forks from no zygotes");
        assert_eq!((error.kind, error.started), (K::Unsupported, Started::No));
        factory.shutdown().await;
        return;
    }
    assert_eq!(fork_of(1).await.expect_err("it is not there").kind, K::NoZygote);
    let first = factory.create_zygote(zygote(1, None)).await.expect("a zygote").sandbox;
    assert_eq!(first.slots(), 0);
    assert_eq!(echo(&*first, 1).await.expect_err("it takes no calls").kind, K::Busy);
    let orphan = factory.create_zygote(zygote(2, Some(ZygoteId(9)))).await;
    assert_eq!(orphan.expect_err("its parent is not there").kind, K::NoZygote);
    let second = factory.create_zygote(zygote(3, Some(ZygoteId(1)))).await.expect("a zygote");
    let mut forks = Vec::new();
    for created in join_all([fork_of(1), fork_of(1), fork_of(3)]).await {
        let created = created.expect("a fork");
        assert_eq!(created.start, StartKind::Zygote);
        forks.push(created.sandbox);
    }
    call(&*forks[0], full_body(r#"{"op": "exit"}"#)).await.expect_err("it is gone");
    first.destroy().await;
    assert_eq!(first.exited().await, Exit::Destroyed);
    for fork in &forks[1..] {
        assert_eq!(echo(&**fork, 2).await.expect("a fork outlives others and its zygote"), 2);
    }
    assert_eq!(fork_of(1).await.expect_err("it is gone").kind, K::NoZygote);
    let last = fork_of(3).await.expect("its zygote outlives its parent").sandbox;
    assert_eq!(echo(&*last, 3).await.expect("an answer"), 3);
    factory.shutdown().await;
    assert_eq!(second.sandbox.exited().await, Exit::Destroyed);
    assert_eq!(fixture.leftovers(), [""; 0], "shutdown resolved before all was gone");
}

/// `shutdown` destroys every instance, and none is made afterwards.
pub async fn shutdown_ends_everything(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let one = create(&*factory, fixture.spec(Scenario::Commands)).await;
    let two = create(&*factory, fixture.spec(Scenario::Commands)).await;
    factory.shutdown().await;
    assert_eq!((one.exited().await, two.exited().await), (Exit::Destroyed, Exit::Destroyed));
    assert_eq!(fixture.leftovers(), [""; 0], "shutdown resolved before all was gone");
    let error = factory.create(fixture.spec(Scenario::Commands)).await.expect_err("it is over");
    assert_eq!(error.started, Started::No);
    factory.shutdown().await;
}

/// Rounds of create and destroy, create and Drop, and creates that are cancelled, leave processes,
/// descriptors, threads, files, and whatever else the kind holds, as they were.
///
/// A factory may keep things for the next instance. Such a pool grows to what was in use at once and
/// then no more, so it is filled first, by more instances at once than any round has; and what grows
/// must do so in each of three batches of rounds to be called a leak.
pub async fn nothing_is_left(fixture: &dyn Fixture) {
    let factory = fixture.factory();
    let clean = || async { fixture.leftovers().is_empty() };
    let round = |n: u64| {
        let factory = &factory;
        async move {
            let sandbox = create(&**factory, fixture.spec(Scenario::Commands)).await;
            assert_eq!(echo(&*sandbox, n).await.expect("an answer"), n);
            if n.is_multiple_of(2) {
                sandbox.destroy().await;
            }
            drop(sandbox);
            // Cancelled at a different moment in each round.
            let create = factory.create(fixture.spec(Scenario::Commands));
            let _ = tokio::time::timeout(Duration::from_millis(n % 25), create).await;
            eventually("a round is cleaned up", clean).await;
        }
    };
    let at_once = (0..8).map(|_| create(&*factory, fixture.spec(Scenario::Commands)));
    join_all(join_all(at_once).await.iter().map(|sandbox| sandbox.destroy())).await;
    // Lazily made things (threads of a pool, a compiled bootstrap) are no leak either.
    for n in 0..5 {
        round(n).await;
    }
    let rounds = fixture.rounds() * times();
    let mut grown = String::new();
    for _ in 0..3 {
        let before = Resources::now(fixture);
        for n in 0..rounds {
            round(n).await;
        }
        let settled = || async { Resources::now(fixture).within(&before) };
        if holds_in_time(settled).await {
            factory.shutdown().await;
            return;
        }
        grown = Resources::now(fixture).growth(&before);
    }
    panic!("each of 3 times {rounds} rounds leaves more than there was, the last one: {grown}");
}

/// What this process and the factory hold, counted: children, threads, descriptors by what they are
/// of, and the kind's own.
struct Resources {
    counts: BTreeMap<String, usize>,
    /// By what they lead to; a table of its own, for what is told of growth.
    descriptors: BTreeMap<String, usize>,
}

impl Resources {
    fn now(fixture: &dyn Fixture) -> Self {
        let entries = |path: &str| fs::read_dir(path).into_iter().flatten().flatten();
        let children = entries("/proc/self/task")
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .map(|children| children.split_whitespace().count())
            .sum();
        let mut descriptors = BTreeMap::new();
        for descriptor in entries("/proc/self/fd") {
            let Ok(leads_to) = fs::read_link(descriptor.path()) else { continue };
            // Without the number of a pipe, a socket, a namespace, a process.
            let leads_to = leads_to.display().to_string();
            let digits = |c: char| c.is_ascii_digit();
            let name: String = leads_to.split(digits).filter(|part| !part.is_empty()).collect();
            *descriptors.entry(name).or_default() += 1;
        }
        let mut counts = fixture.holdings();
        counts.insert("children".to_owned(), children);
        counts.insert("threads".to_owned(), entries("/proc/self/task").count());
        counts.insert("descriptors".to_owned(), descriptors.values().sum());
        Resources { counts, descriptors }
    }

    fn within(&self, before: &Resources) -> bool {
        let had = |name: &String| before.counts.get(name).copied().unwrap_or(0);
        self.counts.iter().all(|(name, count)| *count <= had(name))
    }

    fn growth(&self, before: &Resources) -> String {
        let grown = |now: &BTreeMap<String, usize>, then: &BTreeMap<String, usize>| {
            let had = |name: &String| then.get(name).copied().unwrap_or(0);
            let more = now.iter().filter(|(name, count)| **count > had(name));
            more.map(|(name, count)| format!("{name} {} → {count}", had(name))).collect::<Vec<_>>()
        };
        let counts = grown(&self.counts, &before.counts).join(", ");
        let descriptors = grown(&self.descriptors, &before.descriptors).join(", ");
        format!("{counts} (descriptors: {descriptors})")
    }
}

async fn create(factory: &dyn SandboxFactory, spec: SandboxSpec) -> Arc<dyn Sandbox> {
    match factory.create(spec).await {
        Ok(created) => created.sandbox,
        Err(error) => panic!("create failed: {}", crate::failure::chain(&error)),
    }
}

/// An invocation with this body and a fresh id.
fn invocation(body: Body) -> Invocation {
    static IDS: std::sync::LazyLock<RequestIds> = std::sync::LazyLock::new(|| RequestIds::new(1));
    Invocation {
        websocket: None,
        id: IDS.next(),
        function: "suite".parse().expect("it is a valid name"),
        deadline: Time::MAX,
        // 2100-01-01: later than any test runs.
        deadline_unix_ms: 4_102_444_800_000,
        head: RequestHead { path: "/".to_owned(), ..RequestHead::default() },
        body,
    }
}

async fn call(sandbox: &dyn Sandbox, body: Body) -> Result<(Bytes, Completion), SandboxError> {
    let reply = sandbox.invoke(invocation(body)).await?;
    assert_eq!(reply.status, 200);
    let body = reply.body.collect().await.expect("the reply is whole").to_bytes();
    Ok((body, reply.done.await))
}

async fn echo(sandbox: &dyn Sandbox, number: u64) -> Result<u64, SandboxError> {
    let (body, _) = call(sandbox, full_body(number.to_string())).await?;
    Ok(String::from_utf8_lossy(&body).parse().expect("the number that was sent"))
}

fn sleep(ms: u64) -> Body {
    full_body(format!(r#"{{"op": "sleep", "ms": {ms}}}"#))
}

async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) {
    assert!(holds_in_time(holds).await, "never happened: {what}");
}

/// Long enough for idle threads of a pool to end, which takes ten seconds.
async fn holds_in_time<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) -> bool {
    for _ in 0..1500 {
        if holds().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}
