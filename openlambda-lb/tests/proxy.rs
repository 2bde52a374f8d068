//! The proxy with real workers, and with workers that misbehave on the wire.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "proxy/fake.rs"]
mod fake;
#[path = "proxy/late_binding.rs"]
mod late_binding;
#[path = "proxy/requests.rs"]
mod requests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, Refusal,
    RequestInfo, Why,
};
use openlambda_core::failure::FunctionError;
use openlambda_core::hash::mix;
use openlambda_core::memory::{MemoryRegistry, MemorySandboxFactory};
use openlambda_core::registry::{Published, Registry};
use openlambda_core::time::SystemClock;
use openlambda_core::wire::{Announcement, BalancerStatus};
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_core::wrap::{
    Disturbance, Disturbed, DisturbedRegistry, Operation, Permit, Trouble,
};
use openlambda_lb::policies::LateBinding;
use openlambda_lb::proxy::{AccessLog, Proxy, ProxyConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use self::fake::{
    Act, BREAKS_OFF, DRAINS, Events, Fake, HALF_HEAD, OWN_503, REFUSES_AND_BREAKS,
    REFUSES_AND_HANGS,
};

/// A balancer that serves, and its parts.
struct Lb {
    url: String,
    address: String,
    registry: MemoryRegistry,
    faulty: Arc<Faulty>,
    functions: MemorySandboxFactory,
    policy: First,
    client: Client<HttpConnector, Full<Bytes>>,
    log: Lines,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
}

/// The access log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lb {
    async fn start() -> Lb {
        Lb::with(ProxyConfig::default()).await
    }

    async fn with(config: ProxyConfig) -> Lb {
        let policy = First::default();
        Lb::asking(Box::new(policy.clone()), policy, config).await
    }

    /// One that binds late: two reservations for a call, and after `patience` it does without.
    async fn late(patience: Duration) -> Lb {
        let policy = LateBinding::new(2, patience, Duration::from_secs(60));
        Lb::asking(Box::new(policy), First::default(), ProxyConfig::default()).await
    }

    async fn asking(asked: Box<dyn BalancingPolicy>, policy: First, config: ProxyConfig) -> Lb {
        let (registry, faulty) = (MemoryRegistry::new(), Arc::<Faulty>::default());
        let clock = Arc::new(SystemClock::new());
        let disturbed: DisturbedRegistry =
            Disturbed::new(Arc::new(registry.clone()), Arc::clone(&faulty));
        let proxy = Proxy::new(config, "first", asked, Arc::new(disturbed), clock);
        let log = Lines::default();
        proxy.write_access_log(AccessLog::to(log.clone()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(proxy.serve(listener, stopped.map(|_| ())));
        let lb = Lb {
            url: format!("http://{address}"),
            address,
            registry,
            faulty,
            functions: MemorySandboxFactory::new(),
            policy,
            client: Client::builder(TokioExecutor::new()).build_http(),
            log,
            stop: Some(stop),
            served,
        };
        lb.publish("echo", "", "").await;
        lb.functions.register_async("echo".parse().unwrap(), |body| async { Ok(body) });
        lb
    }

    async fn publish(&self, name: &str, manifest: &str, text: &str) -> Published {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f.py"), format!("# {text}\n")).unwrap();
        std::fs::write(folder.path().join("ol.toml"), manifest).unwrap();
        self.registry.publish_dir(&name.parse().unwrap(), folder.path()).await.unwrap()
    }

    /// A real worker that has joined.
    async fn worker(&self, name: &str) -> Real {
        let folder = tempfile::tempdir().unwrap();
        let mut config = WorkerConfig::new(name, folder.path());
        config.balancers = vec![self.url.clone()];
        config.heartbeat = Duration::from_millis(100);
        // No offer may be left without an answer, however slow the machine.
        config.scheduler.offer_timeout = Duration::from_secs(600);
        let factory = Arc::new(self.functions.clone());
        // Past the faults: they are the balancer's.
        let registry = Arc::new(self.registry.clone());
        let clock = Arc::new(SystemClock::new());
        let worker = Worker::start(config, factory, registry, clock).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = {
            let worker = worker.clone();
            let stopped = stopped.map(|_| ());
            tokio::spawn(async move { worker.serve(listener, stopped).await.unwrap() })
        };
        self.state(name, "ready").await;
        Real { worker, stop: Some(stop), served, _folder: folder }
    }

    /// A real worker that has joined and can be killed: its tasks and sockets are gone at once then.
    async fn doomed(&self, name: &str) -> tokio::runtime::Runtime {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut config = WorkerConfig::new(name, folder.path());
        config.balancers = vec![self.url.clone()];
        config.heartbeat = Duration::from_millis(100);
        // No offer may be left without an answer, however slow the machine.
        config.scheduler.offer_timeout = Duration::from_secs(600);
        let factory = Arc::new(self.functions.clone());
        let registry = Arc::new(self.registry.clone());
        runtime.spawn(async move {
            let clock = Arc::new(SystemClock::new());
            let worker = Worker::start(config, factory, registry, clock).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            worker.serve(listener, std::future::pending()).await.unwrap();
            drop(folder);
        });
        self.state(name, "ready").await;
        runtime
    }

    /// A function with one slot on each worker whose calls wait until the gate with the name in
    /// their body is opened.
    async fn gated(&self, name: &str) -> Gates {
        let gates = Gates::default();
        self.publish(name, "max_instances = 1", "").await;
        let of = gates.clone();
        self.functions.register_async(name.parse().unwrap(), move |body: Bytes| {
            let gates = of.clone();
            async move {
                let gate = gates.of(&String::from_utf8_lossy(&body));
                gate.send_modify(|gate| gate.came = true);
                let _ = gate.subscribe().wait_for(|gate| gate.open).await;
                Ok(body)
            }
        });
        gates
    }

    /// A fake worker that has joined.
    async fn fake(&self, name: &str, act: Act) -> Fake {
        let fake = Fake::start(name, 1, act).await;
        self.announce(&fake).await;
        self.state(name, "ready").await;
        fake
    }

    async fn announce(&self, fake: &Fake) {
        let announcement = Announcement {
            name: fake.name.clone(),
            incarnation: fake.incarnation,
            url: format!("http://{}", fake.address),
            weight: 1.0,
            capacity: 4,
        };
        let request = Request::post(format!("{}/internal/workers", self.url));
        let body = serde_json::to_string(&announcement).unwrap();
        assert_eq!(self.send(request, &body).await.status, 200);
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
            let (parts, body) = client.request(request).await.unwrap().into_parts();
            let body = body.collect().await.map(|body| body.to_bytes().to_vec());
            let broken = body.is_err();
            let body = String::from_utf8(body.unwrap_or_default()).unwrap();
            Answer { status: parts.status.as_u16(), headers: parts.headers, body, broken }
        }
    }

    /// Everything that comes back for these bytes, until the connection ends.
    async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        // It may be refused before all is sent.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn status(&self) -> BalancerStatus {
        let request = Request::get(format!("{}/internal/cluster", self.url));
        serde_json::from_str(&self.send(request, "").await.body).unwrap()
    }

    async fn stats(&self) -> Value {
        let request = Request::get(format!("{}/stats", self.url));
        serde_json::from_str(&self.send(request, "").await.body).unwrap()
    }

    /// Waits until the worker is in this state; `""`: until it is not known.
    async fn state(&self, name: &str, state: &str) {
        for _ in 0..6000 {
            let status = self.status().await;
            let worker = status.workers.iter().find(|worker| worker.name == name);
            if worker.map_or("", |worker| &worker.state) == state {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} never was {state:?}: {:?}", self.status().await);
    }

    /// The line of the access log for this request id, once it is there.
    async fn logged(&self, id: &str) -> Value {
        for _ in 0..6000 {
            let text = String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap();
            let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            if let Some(line) = lines.find(|line| line["request_id"] == id) {
                return line;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no line for {id}");
    }

    /// Waits until no call is on its way, and checks that nothing of one is left.
    async fn nothing_left(&self) {
        for _ in 0..6000 {
            let stats = self.stats().await;
            if ["in_flight", "held", "tickets"].iter().all(|key| stats[key] == 0) {
                assert_eq!(stats["policy_defects"], 0);
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("something is left: {}", self.stats().await);
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
    /// The body broke off.
    broken: bool,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Status, code, culprit, started: all that a client learns of a failure.
    fn failure(&self) -> (u16, String, &str, &str) {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let code = body["error"].as_str().unwrap_or_default().to_owned();
        let (error, started) = ("x-openlambda-error", "x-openlambda-started");
        (self.status, code, self.header(error), self.header(started))
    }
}

/// A gate by each name.
#[derive(Clone, Default)]
struct Gates(Arc<Mutex<BTreeMap<String, watch::Sender<Passage>>>>);

#[derive(Default)]
struct Passage {
    came: bool,
    open: bool,
}

impl Gates {
    fn of(&self, name: &str) -> watch::Sender<Passage> {
        self.0.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }

    async fn came(&self, name: &str) {
        self.of(name).subscribe().wait_for(|gate| gate.came).await.unwrap();
    }

    fn open(&self, name: &str) {
        self.of(name).send_modify(|gate| gate.open = true);
    }
}

struct Real {
    worker: Worker,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Real {
    /// Nothing of a call or a reservation is left.
    async fn at_rest(&self) {
        eventually("the worker is at rest", || {
            let counts = self.worker.counts();
            let calls = counts.running + counts.waiting + counts.reserved + counts.offered;
            calls + counts.busy + counts.starting == 0
        })
        .await;
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Chooses the first worker by name that has not failed the request; notes what it observes.
#[derive(Clone, Debug, Default)]
struct First {
    /// Idle instances of all functions, by worker, as the view showed them after each event.
    idle: Arc<Mutex<Vec<(String, u32)>>>,
    events: Arc<Mutex<Vec<String>>>,
    panics: Arc<AtomicBool>,
}

impl BalancingPolicy for First {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        _cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let ready = || view.workers().map(|(id, _)| id).filter(|id| view.is_ready(*id));
        let fresh = ready().find(|id| !request.excludes(*id));
        match fresh.or_else(|| ready().next()) {
            Some(worker) => Decision::To(worker, Why("first")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _cx: &mut PolicyContext<'_>,
    ) {
        assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
        let idle = view.workers().map(|(id, worker)| {
            (worker.name().to_owned(), (0..8).map(|n| view.idle(id, FunctionId(n))).sum())
        });
        *self.idle.lock().unwrap() = idle.collect();
        let name = match event {
            PolicyEvent::Idle { .. } => "idle",
            PolicyEvent::Evicted { .. } => "evicted",
            PolicyEvent::Load { .. } => "load",
            PolicyEvent::Completed { ok: true, .. } => "ok",
            PolicyEvent::Completed { ok: false, .. } => "failed",
            _ => return,
        };
        self.events.lock().unwrap().push(name.to_owned());
    }
}

/// Counts how often the registry is asked what a name means, and fails when it is told to.
#[derive(Debug)]
struct Faulty {
    resolves: AtomicUsize,
    down: AtomicBool,
    panics: AtomicBool,
    /// Resolving waits until it is open.
    gate: watch::Sender<bool>,
}

impl Default for Faulty {
    fn default() -> Self {
        Faulty {
            resolves: AtomicUsize::default(),
            down: AtomicBool::default(),
            panics: AtomicBool::default(),
            gate: watch::channel(true).0,
        }
    }
}

#[async_trait]
impl Disturbance for Faulty {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        if operation == Operation::Resolve {
            self.resolves.fetch_add(1, Ordering::SeqCst);
            let mut gate = self.gate.subscribe();
            let _ = gate.wait_for(|open| *open).await;
            assert!(!self.panics.load(Ordering::SeqCst), "told to panic");
            if self.down.load(Ordering::SeqCst) {
                return Err(Trouble::Fault(operation));
            }
        }
        Ok(Permit::default())
    }
}

// Retries.

/// The call fails over exactly when it cannot have started.
#[tokio::test(flavor = "multi_thread")]
async fn another_worker_is_tried_only_when_the_call_cannot_have_started() {
    let config = ProxyConfig {
        timeout_grace_seconds: 0.5,
        start_allowance_seconds: 0.2,
        ..ProxyConfig::default()
    };
    for act in [DRAINS, REFUSES_AND_BREAKS, REFUSES_AND_HANGS] {
        let lb = Lb::with(config.clone()).await;
        lb.publish("echo", "timeout_seconds = 1", "").await;
        let a = lb.fake("a", act).await;
        let _b = lb.worker("b").await;
        let answer = lb.call("echo", "1").await;
        assert_eq!((answer.status, &*answer.body), (200, "1"), "{act:?}: {answer:?}");
        assert_eq!((a.calls(), answer.header("x-openlambda-worker")), (1, "b"), "{act:?}");
        assert_eq!(lb.stats().await["retries"], 1);
        lb.nothing_left().await;
    }
    let died = (502, "worker_died".to_owned(), "worker", "maybe");
    let late = (504, "timeout".to_owned(), "worker", "maybe");
    for (act, failure) in [
        (Act::ReadAndClose, Some(died.clone())),
        (HALF_HEAD, Some(died)),
        (Act::Hang(""), Some(late.clone())),
        (Act::Hang("HTTP/1.1 200 OK\r\n"), Some(late)),
        (BREAKS_OFF, None),
        (OWN_503, None),
    ] {
        let lb = Lb::with(config.clone()).await;
        lb.publish("echo", "timeout_seconds = 0.2", "").await;
        let a = lb.fake("a", act).await;
        let b = lb.fake("b", act).await;
        let answer = lb.call("echo", "1").await;
        match failure {
            Some(failure) => assert_eq!(answer.failure(), failure, "{act:?}"),
            None if act == OWN_503 => assert_eq!((answer.status, &*answer.body), (503, "no")),
            None => assert!(answer.broken, "{answer:?}"),
        }
        assert_eq!((a.calls(), b.calls()), (1, 0), "{act:?}");
        assert_eq!(answer.header("x-openlambda-worker"), "a");
        lb.nothing_left().await;
    }
}

/// Whether the request was written at all is decided by the kernel here; both answers are right, but
/// not a third one.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_closes_without_reading_fails_the_call_or_another_one_gets_it() {
    let lb = Lb::start().await;
    let a = lb.fake("a", Act::CloseUnread).await;
    let b = lb.worker("b").await;
    for _ in 0..20 {
        let answer = lb.call("echo", "1").await;
        let died = answer.failure() == (502, "worker_died".to_owned(), "worker", "maybe");
        let served = answer.status == 200 && answer.header("x-openlambda-worker") == "b";
        assert!(died || served, "{answer:?}");
    }
    assert_eq!(a.calls(), 20);
    lb.nothing_left().await;
    assert_eq!(b.worker.counts().running, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_be_reached_is_passed_over_even_with_a_streamed_body() {
    let lb = Lb::start().await;
    let mut a = lb.fake("a", DRAINS).await;
    let _b = lb.worker("b").await;
    // While the stream of events stands, it counts as ready.
    a.refuse_connections().await;
    assert_eq!(lb.call("echo", "1").await.body, "1");
    let streamed = "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                    Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
    let answer = lb.raw(streamed.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("abcdef"), "{answer}");
    let stats = lb.stats().await;
    assert_eq!((&stats["retries"], &stats["workers_ready"]), (&2.into(), &2.into()));
    assert_eq!(a.calls(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_body_that_a_worker_has_taken_is_not_sent_to_another_one() {
    let lb = Lb::start().await;
    let a = lb.fake("a", DRAINS).await;
    let b = lb.fake("b", DRAINS).await;
    let streamed = "POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                    Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let answer = lb.raw(streamed.as_bytes()).await.to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 503"), "{answer}");
    assert!(answer.contains("x-openlambda-started: no"), "{answer}");
    assert_eq!((a.calls(), b.calls()), (1, 0));
    lb.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_bounded_and_each_goes_to_another_worker() {
    let lb = Lb::start().await;
    let mut fakes = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        fakes.push(lb.fake(name, DRAINS).await);
    }
    let answer = lb.call("echo", "1").await;
    assert_eq!(answer.failure(), (503, "draining".to_owned(), "worker", "no"));
    let calls: Vec<usize> = fakes.iter().map(Fake::calls).collect();
    assert_eq!(calls, [1, 1, 1, 0, 0]);
    // With fewer workers than tries, each is tried once.
    for fake in &fakes[1..] {
        fake.events.send_replace(Events::Drain);
        lb.state(&fake.name, "draining").await;
    }
    assert_eq!(lb.call("echo", "1").await.status, 503);
    let calls: Vec<usize> = fakes.iter().map(Fake::calls).collect();
    assert_eq!(calls, [2, 1, 1, 0, 0]);
    lb.nothing_left().await;
}

/// All calls have one budget, and what became of failed attempts can be read.
#[tokio::test(flavor = "multi_thread")]
async fn retries_are_a_share_of_the_traffic() {
    let config = "retry_share = 0.5\nretry_reserve = 1";
    let lb = Lb::with(toml::from_str(config).unwrap()).await;
    let (a, _c) = (lb.fake("a", DRAINS).await, lb.worker("c").await);
    // The reserve pays for one, and two calls for another.
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(lb.call("echo", "1").await.status);
    }
    assert_eq!((statuses, a.calls()), (vec![200, 200, 503, 200], 4));
    a.events.send_replace(Events::Drain);
    lb.state("a", "draining").await;
    let b = lb.fake("b", Act::ReadAndClose).await;
    assert_eq!((lb.call("echo", "1").await.status, b.calls()), (502, 1));
    let request = Request::get(format!("{}/metrics", lb.url));
    let text = lb.send(request, "").await.body;
    for line in [
        "ol_retries_total 3",
        "ol_retries_refused_total{reason=\"budget\"} 1",
        "ol_retries_refused_total{reason=\"not_safe\"} 1",
        "ol_retries_refused_total{reason=\"too_often\"} 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is missing: {text}");
    }
    lb.nothing_left().await;
}

#[test]
fn a_configuration_is_what_it_says_and_nothing_else() {
    let config: ProxyConfig = toml::from_str("").unwrap();
    assert_eq!(config, ProxyConfig::default());
    let text = "retries = 1\nretry_share = 0.2\nretry_reserve = 10\nbody_limit = 100";
    let config: ProxyConfig = toml::from_str(text).unwrap();
    let expected = ProxyConfig {
        retries: 1,
        retry_share: 0.2,
        retry_reserve: 10,
        body_limit: 100,
        ..ProxyConfig::default()
    };
    assert_eq!(config, expected);
    let error = toml::from_str::<ProxyConfig>("retry_shares = 0.2").unwrap_err();
    assert!(error.to_string().contains("retry_shares"), "{error}");
}

// Membership.

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_leaves_the_rotation_when_its_stream_breaks_and_may_come_back_elsewhere() {
    let lb = Lb::start().await;
    let mut a = lb.fake("a", DRAINS).await;
    let _b = lb.worker("b").await;
    // Nobody listens there any more, and the stream ends.
    a.refuse_connections().await;
    a.events.send_replace(Events::Broken);
    lb.state("a", "unhealthy").await;
    assert_eq!(lb.call("echo", "1").await.header("x-openlambda-worker"), "b");
    assert_eq!(lb.stats().await["retries"], 0, "it was not even tried");
    // Another start of it, under another address, takes its place.
    let hello = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    let again = Fake::start("a", 2, Act::Answer(hello)).await;
    lb.announce(&again).await;
    lb.state("a", "ready").await;
    let status = lb.status().await;
    assert_eq!(status.workers.len(), 2);
    assert_eq!(status.workers[0].url, format!("http://{}", again.address));
    let answer = lb.call("echo", "1").await;
    assert_eq!((answer.header("x-openlambda-worker"), &*answer.body), ("a", "hello"));
    assert_eq!((a.calls(), again.calls()), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_worker_that_is_gone_are_closed() {
    let lb = Lb::start().await;
    let hello = Act::Hang("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
    let old = lb.fake("a", hello).await;
    assert_eq!(lb.call("echo", "1").await.body, "hello");
    let closed = |fake: &Fake| fake.seen.closed.load(Ordering::SeqCst);
    assert_eq!(closed(&old), 0);
    // It was started again, elsewhere.
    let mut new = Fake::start("a", 2, hello).await;
    lb.announce(&new).await;
    eventually("the old connection is closed", || closed(&old) == 1).await;
    lb.state("a", "ready").await;
    assert_eq!(lb.call("echo", "1").await.body, "hello");
    new.refuse_connections().await;
    new.events.send_replace(Events::Broken);
    eventually("the new connection is closed", || closed(&new) == 1).await;
}

/// A worker that is configured here and announces itself too is followed once: of two streams each
/// would get half of the idle notices, and only one of them would count.
#[tokio::test(flavor = "multi_thread")]
async fn a_configured_worker_that_announces_itself_is_followed_once() {
    // It closes its connections, and says so: a call over one that is about to close may be lost.
    let hello = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello";
    let mut fake = Fake::start("a", 1, Act::Answer(hello)).await;
    let workers = vec![format!("http://{}", fake.address)];
    let lb = Lb::with(ProxyConfig { workers, ..ProxyConfig::default() }).await;
    lb.state("a", "ready").await;
    // The second start of it is announced before the balancer has it from a snapshot.
    for incarnation in [1, 2, 2] {
        fake.incarnation = incarnation;
        lb.announce(&fake).await;
        assert_eq!(lb.call("echo", "1").await.body, "hello");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(fake.seen.streams.load(Ordering::SeqCst), 1);
    assert_eq!(lb.status().await.workers.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_silent_is_left_alone_until_it_speaks_again() {
    let lb = Lb::with(ProxyConfig { silence_seconds: 0.4, ..ProxyConfig::default() }).await;
    let hello = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    let a = lb.fake("a", Act::Answer(hello)).await;
    a.events.send_replace(Events::Silent);
    lb.state("a", "unhealthy").await;
    let refused = lb.call("echo", "1").await;
    assert_eq!(refused.failure(), (503, "no_worker".to_owned(), "balancer", "no"));
    assert!(refused.header("retry-after").parse::<u64>().unwrap() >= 1);
    a.events.send_replace(Events::Beat);
    lb.state("a", "ready").await;
    assert_eq!(lb.call("echo", "1").await.body, "hello");
    assert_eq!(a.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_not_reached_again_has_left() {
    let (silence_seconds, forget_seconds) = (0.2, 0.5);
    let config = ProxyConfig { silence_seconds, forget_seconds, ..ProxyConfig::default() };
    let lb = Lb::with(config).await;
    let mut a = lb.fake("a", Act::Answer("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
    lb.state("a", "ready").await;
    a.refuse_connections().await;
    a.events.send_replace(Events::Broken);
    let left = async {
        while !lb.status().await.workers.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // By default it would take a minute.
    tokio::time::timeout(Duration::from_secs(30), left).await.expect("it is still known");
}

/// Counts handlers, and holds them up until it is opened.
#[derive(Clone)]
struct Gate {
    open: watch::Sender<bool>,
    came: Arc<AtomicUsize>,
}

impl Gate {
    fn on(lb: &Lb, name: &str) -> Gate {
        let gate = Gate { open: watch::channel(false).0, came: Arc::default() };
        let this = gate.clone();
        lb.functions.register_async(name.parse().unwrap(), move |body| {
            let this = this.clone();
            async move {
                this.came.fetch_add(1, Ordering::SeqCst);
                let mut open = this.open.subscribe();
                let _ = open.wait_for(|open| *open).await;
                Ok::<_, FunctionError>(body)
            }
        });
        gate
    }

    async fn came(&self, count: usize) {
        eventually("they came", || self.came.load(Ordering::SeqCst) == count).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_drains_finishes_its_calls_and_gets_no_more() {
    let lb = Lb::start().await;
    let mut a = lb.worker("a").await;
    let _b = lb.worker("b").await;
    lb.publish("slow", "", "").await;
    let gate = Gate::on(&lb, "slow");
    let call = tokio::spawn(lb.call("slow", "1"));
    gate.came(1).await;
    a.stop.take();
    lb.state("a", "draining").await;
    for _ in 0..10 {
        let answer = lb.call("echo", "2").await;
        assert_eq!((&*answer.body, answer.header("x-openlambda-worker")), ("2", "b"));
    }
    assert_eq!(lb.stats().await["retries"], 0);
    gate.open.send_replace(true);
    let answer = call.await.unwrap();
    assert_eq!((&*answer.body, answer.header("x-openlambda-worker")), ("1", "a"));
    a.served.await.unwrap();
    lb.state("a", "unhealthy").await;
    lb.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_see_what_workers_hold() {
    let lb = Lb::start().await;
    let a = lb.worker("a").await;
    let idle = || lb.policy.idle.lock().unwrap().clone();
    let is = |count: u32| vec![("a".to_owned(), count)];
    lb.publish("slow", "", "").await;
    let gate = Gate::on(&lb, "slow");
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(lb.call("slow", "1"))).collect();
    gate.came(3).await;
    assert_eq!(idle(), is(0));
    gate.open.send_replace(true);
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
    eventually("three are idle", || idle() == is(3)).await;
    // A version in its place: the old one's instances go.
    lb.publish("slow", "", "new").await;
    // Otherwise the registry's word of it may come after the call.
    let refresh = b"POST /internal/refresh HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                    Content-Length: 4\r\n\r\nslow";
    assert!(lb.raw(refresh).await.starts_with("HTTP/1.1 200"));
    let answer = lb.call("slow", "1").await;
    // The notice came with the reply, and is not the client's.
    assert_eq!((answer.status, answer.header("x-openlambda-idle")), (200, ""));
    eventually("one is idle", || idle() == is(1)).await;
    assert_eq!(a.worker.counts().idle, 1);
    let events = lb.policy.events.lock().unwrap().clone();
    let count = |name: &str| events.iter().filter(|event| **event == name).count();
    assert_eq!((count("idle"), count("evicted"), count("ok")), (4, 3, 4));
    assert!(count("load") > 0);
}

// The cache of what references mean.

#[tokio::test(flavor = "multi_thread")]
async fn what_is_deployed_is_called_and_what_is_deleted_is_gone() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    assert_eq!(lb.call("echo", "1").await.header("x-openlambda-version"), "1");
    let asked = lb.faulty.resolves.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(lb.call("echo", "1").await.status, 200);
    }
    assert_eq!(lb.faulty.resolves.load(Ordering::SeqCst), asked, "it is remembered");
    for version in 2..6 {
        lb.publish("echo", "", &version.to_string()).await;
        let refresh = Request::post(format!("{}/internal/refresh", lb.url));
        assert_eq!(lb.send(refresh, "echo").await.status, 200);
        let answer = lb.call("echo", "1").await;
        assert_eq!(answer.header("x-openlambda-version"), version.to_string());
    }
    assert_eq!(lb.call("echo:2", "1").await.header("x-openlambda-version"), "2");
    // Without being told, but for the registry's own word.
    lb.publish("echo", "", "6").await;
    let mut version = String::new();
    for _ in 0..1000 {
        version = lb.call("echo", "1").await.header("x-openlambda-version").to_owned();
        if version == "6" {
            break;
        }
    }
    assert_eq!(version, "6");
    lb.registry.delete(&"echo".parse().unwrap()).await.unwrap();
    let mut status = 0;
    for _ in 0..1000 {
        status = lb.call("echo", "1").await.status;
        if status == 404 {
            break;
        }
    }
    assert_eq!(status, 404);
    for _ in 0..5 {
        assert_eq!(lb.call("echo", "1").await.status, 404);
        assert_eq!(lb.call("echo:2", "1").await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_what_is_known_is_called() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    assert_eq!(lb.call("echo", "1").await.status, 200);
    lb.publish("other", "", "").await;
    lb.faulty.down.store(true, Ordering::SeqCst);
    // Its last word was that there is something new.
    lb.publish("echo", "", "new").await;
    for _ in 0..5 {
        let answer = lb.call("echo", "1").await;
        assert_eq!((answer.status, answer.header("x-openlambda-version")), (200, "1"));
    }
    let unknown = lb.call("other", "1").await;
    assert_eq!(unknown.failure(), (503, "registry_unavailable".to_owned(), "balancer", "no"));
    lb.faulty.down.store(false, Ordering::SeqCst);
    assert_eq!(lb.call("echo", "1").await.header("x-openlambda-version"), "2");
}

/// One that accepts connections and says nothing is worse than one that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_registry_does_not_answer_what_is_known_is_called() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    assert_eq!(lb.call("echo", "1").await.status, 200);
    lb.faulty.gate.send_replace(false);
    // Its last word was that there is something new.
    lb.publish("echo", "", "new").await;
    for _ in 0..5 {
        let answer = lb.call("echo", "1").await;
        assert_eq!((answer.status, answer.header("x-openlambda-version")), (200, "1"));
    }
    lb.faulty.gate.send_replace(true);
    // The request that is under way brings the news.
    for _ in 0..1000 {
        if lb.call("echo", "1").await.header("x-openlambda-version") == "2" {
            return;
        }
    }
    panic!("it is called as it was for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_that_miss_make_one_request() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    lb.faulty.gate.send_replace(false);
    let before = lb.faulty.resolves.load(Ordering::SeqCst);
    let mut calls: Vec<_> = (0..50).map(|_| tokio::spawn(lb.call("echo", "1"))).collect();
    eventually("it is asked", || lb.faulty.resolves.load(Ordering::SeqCst) > before).await;
    // The first one to leave does not take the others' answer along.
    calls.remove(0).abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    lb.faulty.gate.send_replace(true);
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
    assert_eq!(lb.faulty.resolves.load(Ordering::SeqCst), before + 1);
}

// Panics in parts of somebody's own.

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_panics_once_fails_one_request_only() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    lb.faulty.panics.store(true, Ordering::SeqCst);
    assert_eq!(lb.call("echo", "1").await.status, 500);
    lb.faulty.panics.store(false, Ordering::SeqCst);
    assert_eq!(lb.call("echo", "1").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_panics_does_not_take_the_balancer_down() {
    let lb = Lb::start().await;
    let _a = lb.worker("a").await;
    assert_eq!(lb.call("echo", "1").await.status, 200);
    lb.policy.panics.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(lb.call("echo", "1").await.body, "1", "observing is not deciding");
    }
    let b = lb.fake("b", DRAINS).await;
    b.events.send_replace(Events::Broken);
    lb.state("b", "unhealthy").await;
    assert!(lb.stats().await["policy_defects"].as_u64().unwrap() > 0);
    lb.policy.panics.store(false, Ordering::SeqCst);
    b.events.send_replace(Events::Beat);
    lb.state("b", "ready").await;
    lb.state("a", "ready").await;
    let stats = lb.stats().await;
    assert_eq!((&stats["in_flight"], &stats["tickets"]), (&0.into(), &0.into()));
}

// The end, and clients that leave.

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_the_calls_in_flight() {
    let mut lb = Lb::start().await;
    let _a = lb.worker("a").await;
    lb.publish("slow", "", "").await;
    let gate = Gate::on(&lb, "slow");
    let calls: Vec<_> = (0..5).map(|n| tokio::spawn(lb.call("slow", &n.to_string()))).collect();
    gate.came(5).await;
    lb.stop.take();
    let mut refused = false;
    for _ in 0..1000 {
        refused = TcpStream::connect(&lb.address).await.is_err();
        if refused {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(refused, "it takes no more connections");
    assert!(!lb.served.is_finished());
    gate.open.send_replace(true);
    for (n, call) in calls.into_iter().enumerate() {
        let answer = call.await.unwrap();
        assert_eq!((answer.status, answer.body), (200, n.to_string()));
    }
    lb.served.await.unwrap();
}

/// Clients leave at every moment that a call has.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_leave_leave_nothing_behind() {
    let lb = Lb::start().await;
    let workers = [lb.worker("a").await, lb.worker("b").await];
    lb.publish("work", "max_instances = 3", "").await;
    lb.functions.register_async("work".parse().unwrap(), |body: Bytes| async move {
        tokio::time::sleep(Duration::from_micros(u64::from(body[0]) * 20)).await;
        Ok(body)
    });
    let client = |n: u64| {
        let address = lb.address.clone();
        async move {
            let random = |what: u64, below: u64| mix(n, what) % below;
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let size = if random(1, 4) == 0 { 100_000 } else { 100 };
            let body = vec![random(2, 256) as u8; size];
            let head = match random(3, 2) {
                0 => format!("Content-Length: {size}\r\n\r\n"),
                _ => format!("Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n"),
            };
            let mut request =
                format!("POST /run/work HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}")
                    .into_bytes();
            let head = request.len();
            request.extend_from_slice(&body);
            if random(3, 2) == 1 {
                request.extend_from_slice(b"\r\n0\r\n\r\n");
            }
            let sent = match random(4, 5) {
                0 => random(5, head as u64) as usize,
                1 => head + random(5, size as u64) as usize,
                _ => request.len(),
            };
            let _ = stream.write_all(&request[..sent]).await;
            match random(6, 4) {
                0 => return false,
                1 => tokio::time::sleep(Duration::from_micros(random(7, 5000))).await,
                2 => {
                    let mut few = [0; 16];
                    let some = stream.read(&mut few);
                    let _ = tokio::time::timeout(Duration::from_millis(random(7, 8)), some).await;
                }
                _ if sent == request.len() => {
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer).await.unwrap();
                    assert!(answer.starts_with(b"HTTP/1.1 200"), "{n}: {size}");
                    assert!(answer.ends_with(&body));
                    return true;
                }
                _ => {}
            }
            false
        }
    };
    let mut served = 0;
    for round in 0..40 {
        let round = join_all((0..50).map(|n| tokio::spawn(client(round * 50 + n)))).await;
        served += round.into_iter().filter(|served| *served.as_ref().unwrap()).count();
    }
    assert!(served > 100, "{served}");
    lb.nothing_left().await;
    for real in &workers {
        real.at_rest().await;
    }
    assert_eq!(lb.call("work", "\u{1}").await.status, 200);
}
