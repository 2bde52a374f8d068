//! The worker alone, over HTTP, with sandboxes that are closures.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "worker/recording.rs"]
mod recording;
#[path = "worker/reservations.rs"]
mod reservations;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{HeaderMap, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use openlambda_core::failure::FunctionError;
use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::invocation::{
    BoxError, Completion, Invocation, InvocationRecord, Reply, StartKind, full_body,
};
use openlambda_core::keep_alive::{KeepAliveMaker, Ttl};
use openlambda_core::memory::{MemoryFunction, MemoryRegistry, MemorySandboxFactory};
use openlambda_core::registry::{Published, Registry};
use openlambda_core::sandbox::{
    Capabilities, Created, Exit, LogLine, LogStream, Report, Sandbox, SandboxError,
    SandboxErrorKind, SandboxFactory, SandboxSpec, Usage,
};
use openlambda_core::scheduler::PauseAfter;
use openlambda_core::time::{Clock, SystemClock};
use openlambda_core::wire::{self, WorkerEvent};
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_core::wrap::{
    Disturbance, Disturbed, DisturbedRegistry, Operation, Permit, Trouble,
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// A worker that serves, and its parts.
struct Rig {
    url: String,
    address: String,
    worker: Worker,
    functions: MemorySandboxFactory,
    registry: MemoryRegistry,
    fetches: Arc<Fetches>,
    client: Client<HttpConnector, Full<Bytes>>,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
    folder: tempfile::TempDir,
}

impl Rig {
    async fn start(change: impl FnOnce(&mut WorkerConfig)) -> Rig {
        let functions = MemorySandboxFactory::new();
        Rig::with(functions.clone(), Arc::new(functions), change).await
    }

    async fn odd(factory: Odd) -> Rig {
        Rig::with(MemorySandboxFactory::new(), Arc::new(factory), |_| {}).await
    }

    async fn with(
        functions: MemorySandboxFactory,
        factory: Arc<dyn SandboxFactory>,
        change: impl FnOnce(&mut WorkerConfig),
    ) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let mut config = WorkerConfig::new("worker-1", folder.path());
        config.records = Some(folder.path().join("records.jsonl"));
        change(&mut config);
        let registry = MemoryRegistry::new();
        let fetches = Arc::<Fetches>::default();
        let counting: DisturbedRegistry =
            Disturbed::new(Arc::new(registry.clone()), Arc::clone(&fetches));
        let clock = Arc::new(SystemClock::new());
        let worker = Worker::start(config, factory, Arc::new(counting), clock).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = {
            let worker = worker.clone();
            let stopped = stopped.map(|_| ());
            tokio::spawn(async move { worker.serve(listener, stopped).await.unwrap() })
        };
        Rig {
            url: format!("http://{address}"),
            address,
            worker,
            functions,
            registry,
            fetches,
            client: Client::builder(TokioExecutor::new()).build_http(),
            stop: Some(stop),
            served,
            folder,
        }
    }

    /// Publishes a bundle; `text` makes it differ from others.
    async fn publish(&self, name: &str, manifest: &str, text: &str) -> Published {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f.py"), format!("# {text}\n")).unwrap();
        std::fs::write(folder.path().join("ol.toml"), manifest).unwrap();
        self.registry.publish_dir(&name.parse().unwrap(), folder.path()).await.unwrap()
    }

    /// Publishes a function and says what it does.
    async fn function<F>(
        &self,
        name: &str,
        manifest: &str,
        handler: impl Fn(Bytes) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<Bytes, FunctionError>> + Send + 'static,
    {
        self.functions.register_async(name.parse().unwrap(), handler);
        self.publish(name, manifest, name).await;
    }

    fn call(&self, function: &str, body: &str) -> impl Future<Output = Answer> + Send + use<> {
        self.send(Request::post(format!("{}/run/{function}", self.url)), body)
    }

    fn send(
        &self,
        request: http::request::Builder,
        body: &str,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let client = self.client.clone();
        async move {
            let reply = client.request(request).await.unwrap();
            let (parts, body) = reply.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            Answer { status: parts.status.as_u16(), headers: parts.headers, body }
        }
    }

    /// Asks the worker to stop and waits until it has.
    async fn stop(&mut self) {
        self.stop.take();
        (&mut self.served).await.unwrap();
    }

    fn records(&self) -> Vec<InvocationRecord> {
        let text = std::fs::read_to_string(self.folder.path().join("records.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn code_folders(&self) -> usize {
        std::fs::read_dir(self.folder.path().join("code")).unwrap().count()
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["error"].as_str().unwrap_or_default().to_owned()
    }
}

/// Waits until something holds; a minute is for machines under load.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Holds handlers up until it is opened, and counts those that came.
#[derive(Clone)]
struct Gate {
    open: watch::Sender<bool>,
    came: Arc<AtomicUsize>,
}

impl Gate {
    fn new() -> Self {
        Gate { open: watch::channel(false).0, came: Arc::default() }
    }

    async fn pass(self) {
        self.came.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.subscribe();
        let _ = open.wait_for(|open| *open).await;
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.open.send_replace(true);
    }

    /// A handler that passes the gate and returns its body.
    fn handler(
        &self,
    ) -> impl Fn(Bytes) -> BoxFuture<'static, Result<Bytes, FunctionError>> + Send + Sync + 'static
    {
        let gate = self.clone();
        move |body| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Ok(body)
            }
            .boxed()
        }
    }
}

async fn echo(body: Bytes) -> Result<Bytes, FunctionError> {
    Ok(body)
}

/// Counts how often a bundle is fetched, and panics when it is told to.
#[derive(Debug, Default)]
struct Fetches {
    count: AtomicUsize,
    panics: AtomicBool,
}

impl Fetches {
    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Disturbance for Fetches {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        if operation == Operation::Fetch {
            self.count.fetch_add(1, Ordering::SeqCst);
            assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        }
        Ok(Permit::default())
    }
}

type Behaviour = Arc<
    dyn Fn(&SandboxSpec, Invocation) -> BoxFuture<'static, Result<Reply, SandboxError>>
        + Send
        + Sync,
>;

/// Sandboxes that see the whole invocation and answer with whole replies: for what closures over
/// bytes cannot show.
#[derive(Clone)]
struct Odd {
    behaviour: Behaviour,
    create: Arc<dyn Fn(&SandboxSpec) + Send + Sync>,
    /// What was done with them, in order.
    told: Arc<Mutex<Vec<String>>>,
}

impl std::fmt::Debug for Odd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Odd")
    }
}

impl Odd {
    fn new<F>(behaviour: impl Fn(&SandboxSpec, Invocation) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Reply, SandboxError>> + Send + 'static,
    {
        let behaviour: Behaviour = Arc::new(move |spec, event| behaviour(spec, event).boxed());
        Odd { behaviour, create: Arc::new(|_| ()), told: Arc::default() }
    }
}

#[async_trait]
impl SandboxFactory for Odd {
    fn kind(&self) -> &'static str {
        "odd"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::none()
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        (self.create)(&spec);
        let behaviour = self.behaviour.clone();
        let (ended, told) = (watch::channel(false).0, self.told.clone());
        let sandbox = Arc::new(OddSandbox { spec, behaviour, ended, told });
        let none = Duration::ZERO;
        Ok(Created { sandbox, start: StartKind::Cold, create: none, init: none })
    }

    async fn reclaim(&self) -> Report {
        Report::default()
    }

    async fn shutdown(&self) {}
}

struct OddSandbox {
    spec: SandboxSpec,
    behaviour: Behaviour,
    ended: watch::Sender<bool>,
    told: Arc<Mutex<Vec<String>>>,
}

impl OddSandbox {
    fn tell(&self, what: impl Into<String>) {
        self.told.lock().unwrap().push(what.into());
    }
}

impl std::fmt::Debug for OddSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OddSandbox")
    }
}

#[async_trait]
impl Sandbox for OddSandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        (self.behaviour)(&self.spec, invocation).await
    }

    async fn exited(&self) -> Exit {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
        Exit::Destroyed
    }

    fn slots(&self) -> u32 {
        self.spec.manifest.concurrency
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        self.tell("pause");
        Ok(())
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        self.tell("resume");
        Ok(())
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), SandboxError> {
        self.tell(format!("limit {} MiB", bytes >> 20));
        Ok(())
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        Ok(Usage { memory_bytes: 40 << 20, processes: 1 })
    }

    async fn destroy(&self) {
        self.ended.send_replace(true);
    }
}

fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers =
        headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let done = Completion { run: Duration::from_millis(7), reusable: true, failure: None };
    Reply {
        status: StatusCode::from_u16(status).unwrap(),
        headers: headers.collect(),
        body: full_body(body.to_owned()),
        done: async move { done }.boxed(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_is_cold_the_next_is_warm_and_both_say_where_their_time_went() {
    let rig = Rig::start(|_| {}).await;
    let init = || async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        Ok(())
    };
    let function = MemoryFunction::from_async(echo).with_init(init);
    rig.functions.register_function("echo".parse().unwrap(), function);
    rig.publish("echo", "", "").await;
    for start in ["cold", "warm"] {
        let answer = rig.call("echo", "hello").await;
        assert_eq!((answer.status, &*answer.body), (200, "hello"));
        assert_eq!(answer.header("x-openlambda-start"), start);
        assert_eq!(answer.header("x-openlambda-worker"), "worker-1");
        assert_eq!(answer.header("content-type"), "application/json");
        assert!(!answer.header("x-openlambda-request-id").is_empty());
        let phases = wire::parse_server_timing(answer.headers.get_all("server-timing"));
        assert!(phases.run > Duration::ZERO);
        let cold = start == "cold";
        assert_eq!((phases.init > Duration::ZERO, phases.pull > Duration::ZERO), (cold, cold));
    }
    let head = rig.send(Request::head(format!("{}/run/echo", rig.url)), "").await;
    assert_eq!((head.status, &*head.body), (200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_over_the_queues_bound_is_refused_at_once() {
    let rig = Rig::start(|_| {}).await;
    let gate = Gate::new();
    rig.function("slow", "max_instances = 1\nqueue = 2", gate.handler()).await;
    let first = tokio::spawn(rig.call("slow", "1"));
    eventually("it runs", || gate.came() == 1).await;
    let waiting: Vec<_> = (0..2).map(|_| tokio::spawn(rig.call("slow", "2"))).collect();
    eventually("two wait", || rig.worker.counts().waiting == 2).await;
    let refused = rig.call("slow", "3").await;
    assert_eq!((refused.status, &*refused.code()), (429, "queue_full"));
    assert_eq!(refused.header("x-openlambda-started"), "no");
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    gate.open();
    assert_eq!(first.await.unwrap().body, "1");
    for call in waiting {
        assert_eq!(call.await.unwrap().body, "2");
    }
    assert_eq!(gate.came(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_waits_for_too_long_is_refused() {
    let rig = Rig::start(|config| config.max_wait = Duration::from_millis(100)).await;
    let gate = Gate::new();
    rig.function("slow", "max_instances = 1", gate.handler()).await;
    let first = tokio::spawn(rig.call("slow", "1"));
    eventually("it runs", || gate.came() == 1).await;
    let late = rig.call("slow", "2").await;
    assert_eq!((late.status, late.header("x-openlambda-started")), (429, "no"));
    gate.open();
    assert_eq!(first.await.unwrap().body, "1");
    assert_eq!(gate.came(), 1, "what was refused never ran");
}

/// Counts the handlers that were dropped before their end.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_time_limit_only_that_sandbox_ends() {
    let mut rig = Rig::start(|_| {}).await;
    let ended = Arc::new(AtomicUsize::new(0));
    let handler = {
        let ended = ended.clone();
        move |body: Bytes| {
            let ended = ended.clone();
            async move {
                if &*body == b"hang" {
                    let _guard = Dropped(ended);
                    std::future::pending::<()>().await;
                }
                Ok(body)
            }
        }
    };
    rig.function("slow", "timeout_seconds = 0.3", handler).await;
    let late = rig.call("slow", "hang").await;
    assert_eq!((late.status, &*late.code()), (504, "timeout"));
    assert_eq!(late.header("x-openlambda-error"), "function");
    assert_eq!(late.header("x-openlambda-started"), "yes");
    eventually("the handler is ended", || ended.load(Ordering::SeqCst) == 1).await;
    eventually("the sandbox is gone", || rig.worker.counts().ending == 0).await;
    let next = rig.call("slow", "1").await;
    assert_eq!((next.status, next.header("x-openlambda-start")), (200, "cold"));
    rig.stop().await;
    let outcomes: Vec<String> = rig.records().into_iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, ["timeout", "ok"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_gets_the_request_without_what_is_not_its_business_and_a_deadline() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let factory = {
        let seen = seen.clone();
        Odd::new(move |_, event| {
            seen.lock().unwrap().push((event.id, event.deadline_unix_ms, event.head));
            async { Ok(reply(200, &[], "")) }
        })
    };
    let rig = Rig::odd(factory).await;
    rig.publish("f", "timeout_seconds = 20", "").await;
    let clock = SystemClock::new();
    let before = clock.unix_millis();
    let request = Request::put(format!("{}/run/f/a%20b/c?x=1", rig.url))
        .header("x-openlambda-request-id", "mine")
        .header("x-openlambda-start", "warm")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("x-kept", "2");
    assert_eq!(rig.send(request, "").await.status, 200);
    let after = clock.unix_millis();
    let (id, deadline, head) = seen.lock().unwrap().pop().unwrap();
    assert_eq!(id.as_str(), "mine");
    assert!((before + 20_000..=after + 20_000).contains(&deadline));
    assert_eq!((head.method.as_str(), &*head.path), ("PUT", "/a%20b/c"));
    assert_eq!(head.query.as_deref(), Some("x=1"));
    assert_eq!(head.headers["x-kept"], "2");
    for gone in ["x-openlambda-request-id", "x-openlambda-start", "connection", "x-private"] {
        assert!(!head.headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_reuse_every_call_gets_a_fresh_sandbox() {
    let rig = Rig::start(|_| {}).await;
    rig.function("fresh", "reuse = false", echo).await;
    for _ in 0..3 {
        let answer = rig.call("fresh", "1").await;
        assert_eq!((answer.status, answer.header("x-openlambda-start")), (200, "cold"));
    }
    eventually("all are gone", || {
        let counts = rig.worker.counts();
        counts.idle + counts.busy + counts.ending == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_of_one_instance_run_at_once() {
    let rig = Rig::start(|_| {}).await;
    let gate = Gate::new();
    rig.function("slots", "max_instances = 1\nconcurrency = 3", gate.handler()).await;
    let calls: Vec<_> = (0..4).map(|n| tokio::spawn(rig.call("slots", &n.to_string()))).collect();
    eventually("three run", || gate.came() == 3).await;
    eventually("one waits", || rig.worker.counts().waiting == 1).await;
    let counts = rig.worker.counts();
    assert_eq!((counts.busy, counts.running), (1, 3));
    gate.open();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().body, n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_never_more_instances_than_the_manifest_allows() {
    let rig = Rig::start(|_| {}).await;
    let gate = Gate::new();
    rig.function("few", "max_instances = 2", gate.handler()).await;
    let calls: Vec<_> = (0..5).map(|n| tokio::spawn(rig.call("few", &n.to_string()))).collect();
    eventually("two run", || gate.came() == 2).await;
    eventually("three wait", || rig.worker.counts().waiting == 3).await;
    assert_eq!((rig.worker.counts().busy, rig.worker.counts().starting), (2, 0));
    gate.open();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap().body, n.to_string());
    }
    assert!(rig.worker.counts().idle <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_version_takes_the_older_ones_place() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let factory = {
        let seen = seen.clone();
        Odd::new(|spec, _| {
            let digest = spec.digest.to_string();
            async move { Ok(reply(200, &[], &digest)) }
        })
        .on_create(move |spec| seen.lock().unwrap().push(spec.version.unwrap().0))
    };
    let rig = Rig::odd(factory).await;
    let one = rig.publish("f", "", "one").await;
    assert_eq!(rig.call("f", "").await.body, one.digest.to_string());
    let two = rig.publish("f", "", "two").await;
    assert_eq!(rig.call("f", "").await.body, two.digest.to_string());
    eventually("the first one's instance is gone", || {
        let counts = rig.worker.counts();
        (counts.idle, counts.ending) == (1, 0)
    })
    .await;
    // By its number the old one is still served, and does not push out the new one.
    assert_eq!(rig.call("f:1", "").await.body, one.digest.to_string());
    let new = rig.call("f", "").await;
    assert_eq!(new.body, two.digest.to_string());
    assert_eq!(new.header("x-openlambda-start"), "warm");
    // The same bytes once more are a new version, and instances are told its number.
    let three = rig.publish("f", "", "one").await;
    assert_eq!((three.digest, three.version), (one.digest, Version(3)));
    rig.publish("other", "", "other").await;
    assert_eq!(rig.call("f", "").await.body, one.digest.to_string());
    eventually("the second one's instance is gone", || {
        let counts = rig.worker.counts();
        (counts.idle, counts.ending) == (1, 0)
    })
    .await;
    assert_eq!(*seen.lock().unwrap(), [1, 2, 1]);
}

impl Odd {
    fn on_create(mut self, create: impl Fn(&SandboxSpec) + Send + Sync + 'static) -> Self {
        self.create = Arc::new(create);
        self
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_are_told_the_version_that_they_are_called_by() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let factory = {
        let seen = seen.clone();
        Odd::new(|_, _| async { Ok(reply(200, &[], "")) })
            .on_create(move |spec| seen.lock().unwrap().push(spec.version.unwrap().0))
    };
    let rig = Rig::odd(factory).await;
    for text in ["one", "two", "one"] {
        rig.publish("f", "reuse = false", text).await;
        assert_eq!(rig.call("f", "").await.status, 200);
    }
    assert_eq!(*seen.lock().unwrap(), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_instance_holds_what_it_uses_and_has_its_limit_back_before_it_runs() {
    let factory = Odd::new(|_, _| async { Ok(reply(200, &[], "")) });
    let told = factory.told.clone();
    let rig = Rig::with(MemorySandboxFactory::new(), Arc::new(factory), |config| {
        config.pause_after = Some(PauseAfter::After(Duration::from_millis(1)));
        config.scheduler.memory = 200 << 20;
    })
    .await;
    // The last one has no more than it uses, so there is nothing to lower.
    let manifests = [("f", "memory_mb = 100"), ("g", "memory_mb = 100"), ("h", "memory_mb = 45")];
    for (name, manifest) in manifests {
        rig.publish(name, manifest, name).await;
    }
    // MiB that are taken when all are paused again: nothing is lowered while there is enough.
    for (name, all, taken) in
        [("f", 1, 100), ("f", 1, 100), ("g", 2, 200), ("h", 3, 190), ("f", 3, 190)]
    {
        assert_eq!(rig.call(name, "").await.status, 200);
        eventually("it is paused, and so much is taken", || {
            let (paused, used) = (rig.worker.counts().paused, rig.worker.load().memory_used);
            paused == all && used == taken << 20
        })
        .await;
    }
    let expected = [
        "pause",
        "resume",
        "pause",
        "pause",
        // Of f, for h.
        "limit 45 MiB",
        "pause",
        // Of g, for f.
        "limit 45 MiB",
        "limit 100 MiB",
        "resume",
        "pause",
    ];
    eventually("all is told", || told.lock().unwrap().len() == expected.len()).await;
    assert_eq!(*told.lock().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_call_out_of_the_queue_but_not_out_of_its_slot() {
    let rig = Rig::start(|_| {}).await;
    let gate = Gate::new();
    rig.function("slow", "max_instances = 1", gate.handler()).await;
    let mut clients = Vec::new();
    for n in 0..3 {
        let mut stream = TcpStream::connect(&rig.address).await.unwrap();
        let head = "POST /run/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1";
        stream.write_all(head.as_bytes()).await.unwrap();
        clients.push(stream);
        if n == 0 {
            eventually("one runs", || gate.came() == 1).await;
        }
    }
    eventually("two wait", || rig.worker.counts().waiting == 2).await;
    drop(clients);
    eventually("nothing waits", || rig.worker.counts().waiting == 0).await;
    assert_eq!(rig.worker.counts().running, 1, "the handler keeps its slot");
    gate.open();
    eventually("it is over", || rig.worker.counts().running == 0).await;
    assert_eq!(rig.call("slow", "2").await.header("x-openlambda-start"), "warm");
    assert_eq!(gate.came(), 2, "what was cancelled never ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_under_load_drops_no_call_that_was_accepted() {
    let mut rig = Rig::start(|_| {}).await;
    let done = Arc::new(AtomicUsize::new(0));
    let handler = {
        let done = done.clone();
        move |body: Bytes| {
            let done = done.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(3)).await;
                done.fetch_add(1, Ordering::SeqCst);
                Ok(body)
            }
        }
    };
    rig.function("f", "max_instances = 4", handler).await;
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let (client, url) = (rig.client.clone(), format!("{}/run/f", rig.url));
            tokio::spawn(async move {
                let (mut served, mut refused) = (0, 0);
                // It ends when the worker does not listen any more.
                loop {
                    let request = Request::post(&url).body(Full::new(Bytes::from("1"))).unwrap();
                    let Ok(reply) = client.request(request).await else { return (served, refused) };
                    match reply.status().as_u16() {
                        200 => {
                            let body = reply.into_body().collect().await.unwrap().to_bytes();
                            assert_eq!(&*body, b"1");
                            served += 1;
                        }
                        503 => {
                            assert_eq!(reply.headers()["x-openlambda-started"], "no");
                            refused += 1;
                        }
                        other => panic!("status {other}"),
                    }
                }
            })
        })
        .collect();
    eventually("there is load", || done.load(Ordering::SeqCst) > 50).await;
    rig.stop().await;
    let mut served = 0;
    for caller in callers {
        served += caller.await.unwrap().0;
    }
    assert_eq!(served, done.load(Ordering::SeqCst), "every handler that ran was heard");
    assert_eq!(rig.worker.counts(), Default::default());
    let records = rig.records();
    let ok = records.iter().filter(|record| record.outcome == "ok").count();
    assert_eq!(ok, served, "every record is written when the worker has stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_runs_at_the_end_of_the_grace_is_ended_and_told_so() {
    let mut rig = Rig::start(|config| config.drain_grace = Duration::from_millis(200)).await;
    let gate = Gate::new();
    rig.function("slow", "", gate.handler()).await;
    let call = tokio::spawn(rig.call("slow", "1"));
    eventually("it runs", || gate.came() == 1).await;
    rig.stop().await;
    let answer = call.await.unwrap();
    assert_eq!((answer.status, &*answer.code()), (502, "worker_died"));
    assert_eq!(answer.header("x-openlambda-error"), "worker");
    assert_eq!(answer.header("x-openlambda-started"), "yes");
}

/// One message less for each warm call. The leases of idle instances still go to each balancer in turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_tells_its_balancer_of_the_idle_instance() {
    let rig = Rig::start(|config| config.heartbeat = Duration::from_secs(3600)).await;
    rig.function("f", "", echo).await;
    let call = async |balancer: &str| {
        let request = Request::post(format!("{}/run/f", rig.url));
        let answer = rig.send(request.header("x-openlambda-balancer", balancer), "1").await;
        assert_eq!((answer.status, &*answer.body), (200, "1"));
        answer.header("x-openlambda-idle") == "1"
    };
    let idle = Some(WorkerEvent::Idle { function: "f".parse().unwrap() });
    let mut one = Events::of(&rig, "one").await;
    for _ in 0..3 {
        assert!(call("one").await);
        // Nobody subscribes by that name.
        assert!(!call("two").await);
        assert_eq!(one.next().await, idle);
    }
    let mut two = Events::of(&rig, "two").await;
    let mut told = 0;
    for _ in 0..4 {
        match call("one").await {
            true => told += 1,
            false => assert_eq!(two.next().await, idle),
        }
    }
    assert_eq!(told, 2, "each has its turn");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_hears_of_an_idle_instance_whose_client_has_left() {
    let rig = Rig::start(|config| config.heartbeat = Duration::from_secs(3600)).await;
    let mut one = Events::of(&rig, "one").await;
    // Nothing tells when the worker has noticed, so it gets ever more time to.
    for (n, time) in [100, 1_000, 10_000].into_iter().enumerate() {
        let (name, gate) = (format!("slow{n}"), Gate::new());
        rig.function(&name, "", gate.handler()).await;
        let request = Request::post(format!("{}/run/{name}", rig.url));
        let left = tokio::spawn(rig.send(request.header("x-openlambda-balancer", "one"), "1"));
        eventually("it runs", || gate.came() == 1).await;
        left.abort();
        let _ = left.await;
        tokio::time::sleep(Duration::from_millis(time)).await;
        gate.open();
        let told = tokio::time::timeout(Duration::from_secs(1), one.next()).await;
        if told == Ok(Some(WorkerEvent::Idle { function: name.parse().unwrap() })) {
            return;
        }
    }
    panic!("never told");
}

#[tokio::test(flavor = "multi_thread")]
async fn balancers_are_told_what_the_worker_holds() {
    let mut rig = Rig::start(|config| {
        config.heartbeat = Duration::from_secs(3600);
        config.keep_alive = KeepAliveMaker::new("ttl,seconds=0.3", || {
            Box::new(Ttl::new(Duration::from_millis(300)))
        });
    })
    .await;
    rig.function("f", "", echo).await;
    let mut stream = TcpStream::connect(&rig.address).await.unwrap();
    let head = "GET /internal/events HTTP/1.0\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    while lines.next_line().await.unwrap().unwrap() != "" {}
    let mut next = async || {
        let line = lines.next_line().await.unwrap()?;
        Some(serde_json::from_str::<WorkerEvent>(&line).unwrap())
    };
    let Some(WorkerEvent::Snapshot { name, idle, draining, load, .. }) = next().await else {
        panic!("a snapshot is first");
    };
    assert_eq!((&*name, idle.len(), draining, load.idle), ("worker-1", 0, false, 0));
    assert_eq!(load.memory_total, 4 << 30);
    assert_eq!(rig.call("f", "").await.status, 200);
    let function: FunctionName = "f".parse().unwrap();
    assert_eq!(next().await, Some(WorkerEvent::Idle { function: function.clone() }));
    assert_eq!(next().await, Some(WorkerEvent::Evicted { function: function.clone() }));
    assert_eq!(rig.call("f", "").await.header("x-openlambda-start"), "cold");
    assert_eq!(next().await, Some(WorkerEvent::Idle { function: function.clone() }));
    rig.stop().await;
    let rest = [next().await, next().await, next().await];
    // Its time may have been up just before.
    assert!(rest.contains(&Some(WorkerEvent::Draining)), "{rest:?}");
    assert!(rest.contains(&Some(WorkerEvent::Evicted { function })), "{rest:?}");
    assert_eq!(rest[2], None, "the stream ends with the worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_recorded_and_every_line_logged_under_its_request() {
    let factory = Odd::new(|spec, event| {
        let log = spec.log.clone();
        async move {
            let id = event.id.as_str();
            log.line(LogLine::new(&event.function, Some(id), LogStream::Stdout, "printed"));
            if event.head.path == "/raise" {
                return Err(SandboxError::new(SandboxErrorKind::Function, "raised"));
            }
            Ok(reply(200, &[], ""))
        }
    });
    let mut rig = Rig::odd(factory).await;
    let published = rig.publish("team/f", "", "").await;
    for (path, id, status) in [("", "one", 200), ("/x", "two", 200), ("/raise", "three", 500)] {
        let request = Request::post(format!("{}/ns/team/run/f{path}", rig.url))
            .header("x-openlambda-request-id", id);
        assert_eq!(rig.send(request, "").await.status, status);
    }
    rig.stop().await;
    let records = rig.records();
    let ids: Vec<&str> = records.iter().map(|record| record.request_id.as_str()).collect();
    assert_eq!(ids, ["one", "two", "three"]);
    let outcomes: Vec<&str> = records.iter().map(|record| &*record.outcome).collect();
    assert_eq!(outcomes, ["ok", "ok", "function_error"]);
    assert!(records.iter().all(|record| record.digest == Some(published.digest)));
    assert!(records.iter().all(|record| record.worker == "worker-1"));
    let starts: Vec<_> = records.iter().map(|record| record.start.unwrap()).collect();
    assert_eq!(starts, [StartKind::Cold, StartKind::Warm, StartKind::Warm]);
    assert_eq!(records[0].run_ns, 7_000_000);
    assert!(records.is_sorted_by_key(|record| record.arrived_ns));
    let text = std::fs::read_to_string(rig.folder.path().join("logs/team/f.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = lines.iter().map(|line| line["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one", "two", "three", "three"]);
    let (why, printed) = lines.split_last().unwrap();
    assert!(printed.iter().all(|line| line["text"] == "printed" && line["stream"] == "stdout"));
    assert_eq!(why["stream"], "platform");
    assert!(why["text"].as_str().unwrap().starts_with("function_error: "), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn code_over_the_budget_is_removed_and_fetched_again_when_it_is_needed() {
    let rig = Rig::start(|config| config.code_budget = 1).await;
    for name in ["a", "b", "c"] {
        rig.function(name, "reuse = false", echo).await;
    }
    for round in 1..=3 {
        for name in ["a", "b", "c"] {
            assert_eq!(rig.call(name, name).await.body, name);
        }
        eventually("nothing is left", || rig.code_folders() == 0).await;
        assert_eq!(rig.fetches.count(), 3 * round);
    }
    // Within the budget it stays.
    let rig = Rig::start(|_| {}).await;
    rig.function("a", "reuse = false", echo).await;
    for _ in 0..3 {
        assert_eq!(rig.call("a", "1").await.status, 200);
    }
    assert_eq!((rig.fetches.count(), rig.code_folders()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deleted_in_the_registry_leaves_the_worker() {
    let rig = Rig::start(|_| {}).await;
    let gate = Gate::new();
    let name = |name: &str| name.parse::<FunctionName>().unwrap();
    rig.function("a", "", echo).await;
    rig.function("b", "", gate.handler()).await;
    rig.function("c", "", echo).await;
    // The same bytes as a's.
    rig.functions.register_async(name("twin"), echo);
    rig.publish("twin", "", "a").await;
    for function in ["a", "c", "twin"] {
        assert_eq!(rig.call(function, "1").await.body, "1");
    }
    let busy = tokio::spawn(rig.call("b", "2"));
    eventually("it runs", || gate.came() == 1).await;
    assert_eq!(rig.code_folders(), 3);
    for function in ["a", "b", "c"] {
        rig.registry.delete(&name(function)).await.unwrap();
    }
    eventually("idle instances end", || rig.worker.counts().idle == 1).await;
    eventually("code goes", || rig.code_folders() == 2).await;
    // What was accepted is served, and then its instance ends too.
    gate.open();
    assert_eq!(busy.await.unwrap().body, "2");
    eventually("the code of the busy one goes", || rig.code_folders() == 1).await;
    let counts = rig.worker.counts();
    assert_eq!((counts.idle, counts.busy), (1, 0));
    let before = rig.fetches.count();
    assert_eq!(rig.call("twin", "3").await.header("x-openlambda-start"), "warm");
    assert_eq!(rig.call("c", "1").await.status, 404);
    assert_eq!(rig.fetches.count(), before);
    // It may be deployed again, with the same bytes.
    for _ in 0..3 {
        rig.publish("c", "", "c").await;
        assert_eq!(rig.call("c", "4").await.body, "4");
        rig.registry.delete(&name("c")).await.unwrap();
        eventually("it goes again", || rig.code_folders() == 1).await;
    }
}

/// Code that something waits for is not removed: it would only be fetched again, and again.
#[tokio::test(flavor = "multi_thread")]
async fn code_that_waits_for_memory_is_fetched_once() {
    let rig = Rig::start(|config| {
        config.code_budget = 1;
        config.scheduler.memory = 128 << 20;
    })
    .await;
    let gate = Gate::new();
    rig.function("a", "", gate.handler()).await;
    rig.function("b", "", echo).await;
    let first = tokio::spawn(rig.call("a", "1"));
    eventually("it runs", || gate.came() == 1).await;
    let second = tokio::spawn(rig.call("b", "2"));
    eventually("the code is there", || rig.code_folders() == 2).await;
    eventually("it waits", || rig.worker.counts().waiting == 1).await;
    // Whatever happens meanwhile.
    for _ in 0..20 {
        assert_eq!(rig.call("nothing", "").await.status, 404);
        let other = format!("sha256:{}", "0".repeat(64));
        let unknown =
            Request::post(format!("{}/run/c", rig.url)).header("x-openlambda-digest", other);
        assert_eq!(rig.send(unknown, "").await.status, 404);
    }
    gate.open();
    assert_eq!(first.await.unwrap().body, "1");
    assert_eq!(second.await.unwrap().body, "2");
    assert_eq!(rig.fetches.count() - 20, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_panics_ends_one_call_only() {
    let creates = Arc::new(AtomicUsize::new(0));
    let factory = Odd::new(|_, event| {
        assert!(event.head.path != "/panic", "told to panic");
        async move {
            assert!(event.head.path != "/later", "told to panic");
            Ok(reply(200, &[], "fine"))
        }
    })
    .on_create(move |_| {
        assert!(creates.fetch_add(1, Ordering::SeqCst) > 0, "told to panic");
    });
    let mut rig = Rig::odd(factory).await;
    rig.publish("f", "max_instances = 1\ntimeout_seconds = 600", "").await;
    let created = rig.call("f", "").await;
    assert_eq!((created.status, created.header("x-openlambda-started")), (500, "no"));
    for path in ["/panic", "/later"] {
        let answer = rig.call(&format!("f{path}"), "").await;
        assert_eq!((answer.status, &*answer.code()), (500, "internal"), "{path}");
        assert_eq!(answer.header("x-openlambda-started"), "maybe");
        // With one instance at most: the broken one has made room.
        assert_eq!(rig.call("f", "").await.body, "fine");
    }
    let digest = Digest::from_bytes([13; 32]).to_string();
    rig.fetches.panics.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        let request = Request::post(format!("{}/run/g", rig.url));
        let answer = rig.send(request.header("x-openlambda-digest", &digest), "").await;
        assert_eq!((answer.status, &*answer.code()), (500, "internal"));
    }
    rig.stop().await;
    assert_eq!(rig.worker.counts(), Default::default());
}

/// A reply is written after its call is over; who reads it slowly has the worker's grace for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_is_sent_to_its_end_while_a_worker_stops_as_long_as_it_may_take() {
    const SIZE: usize = 64 << 20;
    for (grace, whole) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
        let mut rig = Rig::start(|config| config.reply_grace = grace).await;
        rig.function("big", "", |_| async { Ok(vec![b'1'; SIZE].into()) }).await;
        let mut stream = TcpStream::connect(&rig.address).await.unwrap();
        let request = b"POST /run/big HTTP/1.1\r\nhost: t\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut begin = [0; 1000];
        stream.read_exact(&mut begin).await.unwrap();
        rig.stop.take();
        if !whole {
            rig.stop().await;
        }
        let refused = async || TcpStream::connect(&rig.address).await.is_err();
        while !refused().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut rest = Vec::new();
        // A connection that is cut is at its end.
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(rest.len() > SIZE - 1000, whole, "{} bytes", rest.len());
        if whole {
            rig.stop().await;
        }
    }
}

/// A function may relay the answer of another one; its headers must not speak for this call.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_cannot_speak_for_the_platform() {
    let factory = Odd::new(|_, _| async {
        let headers = [
            ("x-openlambda-started", "no"),
            ("x-openlambda-error", "worker"),
            ("x-openlambda-version", "7"),
            ("content-length", "5"),
            ("connection", "x-private"),
            ("x-private", "1"),
            ("x-own", "2"),
        ];
        Ok(reply(503, &headers, "0123456789"))
    });
    let rig = Rig::odd(factory).await;
    rig.publish("f", "", "").await;
    let answer = rig.call("f", "").await;
    assert_eq!((answer.status, &*answer.body), (503, "0123456789"));
    assert_eq!((answer.header("content-length"), answer.header("x-own")), ("10", "2"));
    for gone in ["started", "error", "version"] {
        assert_eq!(answer.header(&format!("x-openlambda-{gone}")), "", "{gone}");
    }
    assert_eq!((answer.header("x-private"), answer.header("connection")), ("", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_http_cannot_carry_is_the_functions_fault() {
    let factory = Odd::new(|_, event| async move {
        let mut reply = reply(if event.head.path == "/status" { 101 } else { 200 }, &[], "");
        for n in 0..if event.head.path == "/headers" { 120 } else { 80 } {
            reply.headers.append("x-many", n.into());
        }
        Ok(reply)
    });
    let rig = Rig::odd(factory).await;
    rig.publish("f", "", "").await;
    for path in ["/status", "/headers"] {
        let answer = rig.call(&format!("f{path}"), "").await;
        assert_eq!((answer.status, &*answer.code()), (502, "bad_reply"), "{path}");
        assert_eq!(answer.header("x-openlambda-error"), "function");
        assert_eq!(answer.header("x-openlambda-started"), "yes");
    }
    let answer = rig.call("f/fine", "").await;
    assert_eq!((answer.status, answer.headers.get_all("x-many").iter().count()), (200, 80));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_reply_ends_with_its_run_time_or_breaks_off() {
    let factory = Odd::new(|_, event| async move {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        tokio::spawn(async move {
            for part in ["one ", "two"] {
                let _ = sender.send(part.into()).await;
            }
        });
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
            let part = receiver.recv().await?;
            Some((Ok::<_, BoxError>(Frame::data(part)), receiver))
        });
        let failed = event.head.path == "/fail";
        let failure = failed.then(|| SandboxError::new(SandboxErrorKind::Exited, "gone").into());
        let done = Completion { run: Duration::from_millis(9), reusable: !failed, failure };
        Ok(Reply {
            status: StatusCode::OK,
            // Not what follows: only the worker knows how it sends the body.
            headers: HeaderMap::from_iter([(http::header::CONTENT_LENGTH, "3".parse().unwrap())]),
            body: StreamBody::new(frames).boxed_unsync(),
            done: async move { done }.boxed(),
        })
    });
    let rig = Rig::odd(factory).await;
    rig.publish("f", "", "").await;
    let mut answers = BTreeMap::new();
    for (path, trailers) in
        [("/", "TE: trailers\r\n"), ("/fail", "TE: trailers\r\n"), ("/fail ", "")]
    {
        let mut stream = TcpStream::connect(&rig.address).await.unwrap();
        let head = format!(
            "GET /run/f{} HTTP/1.1\r\nHost: x\r\n{trailers}Connection: close\r\n\r\n",
            path.trim()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        answers.insert(path, text.to_ascii_lowercase());
    }
    let good = &answers["/"];
    assert!(good.contains("one ") && good.contains("two"), "{good}");
    assert!(good.ends_with("0\r\nserver-timing: run;dur=9.000\r\n\r\n"), "{good}");
    let told = &answers["/fail"];
    assert!(told.contains("one ") && told.contains("0\r\nx-openlambda-error: function"), "{told}");
    assert!(told.ends_with("x-openlambda-failure: sandbox_crashed\r\n\r\n"), "{told}");
    let bad = &answers["/fail "];
    assert!(bad.contains("one ") && !bad.contains("\r\n0\r\n"), "{bad}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_functions_share_a_pool_that_holds_few() {
    let rig = Rig::start(|config| config.scheduler.memory = 3 * (128 << 20)).await;
    for n in 0..8 {
        rig.function(&format!("f{n}"), "", echo).await;
    }
    let calls = (0..200).map(|n| {
        let call = rig.call(&format!("f{}", n % 8), &n.to_string());
        async move { (n, call.await) }
    });
    for (n, answer) in join_all(calls).await {
        assert_eq!((answer.status, answer.body), (200, n.to_string()));
    }
    eventually("it settles", || {
        let counts = rig.worker.counts();
        counts.running + counts.waiting + counts.busy + counts.starting + counts.ending == 0
    })
    .await;
    assert!(rig.worker.counts().idle <= 3);
}

/// A balancer's stream of events, without snapshots.
struct Events {
    lines: tokio::io::Lines<BufReader<TcpStream>>,
}

impl Events {
    async fn of(rig: &Rig, balancer: &str) -> Events {
        let mut stream = TcpStream::connect(&rig.address).await.unwrap();
        let head = format!("GET /internal/events?balancer={balancer} HTTP/1.0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        while lines.next_line().await.unwrap().unwrap() != "" {}
        Events { lines }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<WorkerEvent> {
        while let Some(line) = self.lines.next_line().await.unwrap() {
            match serde_json::from_str(&line).unwrap() {
                WorkerEvent::Snapshot { .. } => {}
                event => return Some(event),
            }
        }
        None
    }

    /// The next offer's ticket; `None` at the end of the stream.
    async fn offer(&mut self) -> Option<u64> {
        while let Some(event) = self.next().await {
            if let WorkerEvent::Offered { ticket } = event {
                return Some(ticket);
            }
        }
        None
    }
}
