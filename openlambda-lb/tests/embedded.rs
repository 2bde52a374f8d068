//! A balancer and workers inside one program.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use openlambda_core::balancing::{
    BalancingPolicy, Change, ClusterEvent, ClusterView, Decision, Member, PolicyContext,
    PolicyEvent, RequestInfo, WorkerInfo,
};
use openlambda_core::invocation::full_body;
use openlambda_core::memory::{MemoryRegistry, MemorySandboxFactory};
use openlambda_core::serving::Serving;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_lb::policies::RoundRobin;
use openlambda_lb::proxy::{Proxy, ProxyConfig};
use openlambda_lb::workers::membership::{Follower, Source};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

/// A registry with the function `echo`, and sandboxes that know it.
async fn echo() -> (Arc<MemoryRegistry>, Arc<MemorySandboxFactory>) {
    let (registry, factory) = (MemoryRegistry::new(), MemorySandboxFactory::new());
    let code = tempfile::tempdir().unwrap();
    std::fs::write(code.path().join("f.py"), "").unwrap();
    let name = "echo".parse().unwrap();
    registry.publish_dir(&name, code.path()).await.unwrap();
    factory.register_async(name, |event| async { Ok(event) });
    (Arc::new(registry), Arc::new(factory))
}

fn proxy(policy: impl BalancingPolicy + 'static, registry: Arc<MemoryRegistry>) -> Arc<Proxy> {
    let (config, clock) = (ProxyConfig::default(), Arc::new(SystemClock::new()));
    Proxy::new(config, "round-robin", Box::new(policy), registry, clock)
}

/// A worker that serves, and announces itself to the balancer if there is one.
async fn worker(
    name: &str,
    folder: &Path,
    balancer: Option<&str>,
    (registry, factory): (Arc<MemoryRegistry>, Arc<MemorySandboxFactory>),
) -> Serving<std::io::Result<()>> {
    let mut config = WorkerConfig::new(name, folder.join(name));
    config.balancers.extend(balancer.map(str::to_owned));
    let clock = Arc::new(SystemClock::new());
    let worker = Worker::start(config, factory, registry, clock).await.unwrap();
    Serving::start(async move |listener, stop| worker.serve(listener, stop).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_tells_when_its_workers_are_ready() {
    let (registry, factory) = echo().await;
    let proxy = proxy(RoundRobin::new(), registry.clone());
    let serving = Arc::clone(&proxy);
    let balancer = Serving::start(|listener, stop| serving.serve(listener, stop)).unwrap();
    proxy.ready(0).await;

    let (mut workers, folder) = (Vec::new(), tempfile::tempdir().unwrap());
    for n in 1..=3 {
        let (name, parts) = (format!("worker-{n}"), (registry.clone(), factory.clone()));
        workers.push(worker(&name, folder.path(), Some(balancer.url()), parts).await);
        proxy.ready(n).await;
    }
    for worker in workers {
        worker.stop().await.unwrap();
    }
    balancer.stop().await;
}

/// A worker says where its local socket is, and the balancer's calls go there.
#[tokio::test(flavor = "multi_thread")]
async fn calls_go_to_a_worker_on_the_same_machine_by_a_local_socket() {
    let (registry, factory) = echo().await;
    let proxy = proxy(RoundRobin::new(), registry.clone());
    let serving = Arc::clone(&proxy);
    let balancer = Serving::start(|listener, stop| serving.serve(listener, stop)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let worker = worker("worker", folder.path(), Some(balancer.url()), (registry, factory)).await;
    proxy.ready(1).await;

    let port = worker.url().rsplit(':').next().unwrap().to_owned();
    assert_eq!(local_sockets(&port), 1, "it listens");
    for _ in 0..3 {
        assert_eq!(call(balancer.url(), "echo", "{}").await, "{}");
    }
    assert_eq!(local_sockets(&port), 2, "one connection is used again and again");
    // The balancer's connection may end a moment later.
    worker.stop().await.unwrap();
    balancer.stop().await;
    let gone = async {
        while local_sockets(&port) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("no socket is left");
}

/// Workers that this program knows of by itself.
#[derive(Debug)]
struct Known(Vec<Arc<Member>>);

#[async_trait]
impl Source for Known {
    async fn run(self: Box<Self>, follower: Arc<dyn Follower>) {
        for worker in self.0 {
            follower.apply(ClusterEvent::new(worker, Change::Joined));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_calls_the_balancer_inside_of_it_without_a_server() {
    let (registry, factory) = echo().await;
    let folder = tempfile::tempdir().unwrap();
    let worker = worker("worker", folder.path(), None, (registry.clone(), factory)).await;

    let proxy = proxy(RoundRobin::new(), registry);
    let address = worker.url().strip_prefix("http://").unwrap().parse().unwrap();
    let member = Member::new(WorkerInfo::new("worker", 4), 1, address);
    proxy.follow(Known(vec![Arc::new(member)]));
    let runs = Arc::clone(&proxy);
    let runs = tokio::spawn(async move { runs.run().await });
    proxy.ready(1).await;

    let call = async |function: &str, event: &'static str| {
        let request = Request::post(format!("/run/{function}")).body(full_body(event)).unwrap();
        let (parts, body) = proxy.call(request, ([127, 0, 0, 1], 1).into()).await.into_parts();
        let by = parts.headers.get("x-openlambda-worker").cloned();
        (parts.status, by, body.collect().await.unwrap().to_bytes())
    };
    for start in ["cold", "warm"] {
        let (status, by, reply) = call("echo", r#"{"one": 1}"#).await;
        assert_eq!((status, &reply[..]), (StatusCode::OK, &br#"{"one": 1}"#[..]), "{start}");
        assert_eq!(by.unwrap(), "worker");
    }
    assert_eq!(call("nothing", "").await.0, StatusCode::NOT_FOUND);
    runs.abort();
    worker.stop().await.unwrap();
}

/// A source that says what it is told to say.
#[derive(Debug)]
struct Says(mpsc::UnboundedReceiver<(ClusterEvent, oneshot::Sender<()>)>);

#[async_trait]
impl Source for Says {
    async fn run(mut self: Box<Self>, follower: Arc<dyn Follower>) {
        while let Some((event, said)) = self.0.recv().await {
            follower.apply(event);
            said.send(()).unwrap();
        }
    }
}

/// Round robin that writes down who comes and goes.
#[derive(Debug)]
struct Seen(RoundRobin, Arc<Mutex<Vec<&'static str>>>);

impl BalancingPolicy for Seen {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        self.0.select(request, view, cx)
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        self.1.lock().unwrap().push(match event {
            PolicyEvent::Joined { .. } => "joined",
            PolicyEvent::Left { .. } => "left",
            PolicyEvent::ReadyChanged { ready: true, .. } => "ready",
            PolicyEvent::ReadyChanged { ready: false, .. } => "not ready",
            _ => "something else",
        });
        self.0.observe(event, view, cx);
    }
}

/// Two names in DNS, say, lead to one worker, and one of them forgets it.
#[tokio::test]
async fn a_worker_is_there_until_every_source_that_told_of_it_takes_its_word_back() {
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let policy = Seen(RoundRobin::new(), Arc::clone(&seen));
    let proxy = proxy(policy, Arc::new(MemoryRegistry::new()));
    let sources = [(); 2].map(|()| {
        let (says, said) = mpsc::unbounded_channel();
        proxy.follow(Says(said));
        says
    });
    let runs = Arc::clone(&proxy);
    let runs = tokio::spawn(async move { runs.run().await });
    let member = |incarnation, weight| {
        let mut info = WorkerInfo::new("worker", 4);
        info.weight = weight;
        Arc::new(Member::new(info, incarnation, "127.0.0.1:1".parse().unwrap()))
    };
    // What the policy sees of it.
    let say = async |source: usize, worker: &Arc<Member>, change| {
        let (said, heard) = oneshot::channel();
        let event = ClusterEvent::new(Arc::clone(worker), change);
        sources[source].send((event, said)).unwrap();
        heard.await.unwrap();
        std::mem::take(&mut *seen.lock().unwrap())
    };
    let (old, heavier, new) = (member(1, 1.0), member(1, 2.0), member(2, 1.0));
    assert_eq!(say(0, &old, Change::Joined).await, ["joined"]);
    assert_eq!(say(0, &old, Change::Joined).await, [""; 0], "that is known");
    assert_eq!(say(1, &old, Change::Joined).await, [""; 0], "the other one knows it as well");
    assert_eq!(say(0, &old, Change::Left).await, [""; 0], "the other one's word stands");
    assert_eq!(say(0, &old, Change::Left).await, [""; 0], "it has no more to take back");
    assert_eq!(say(1, &old, Change::Unhealthy).await, ["not ready"]);
    assert_eq!(say(0, &old, Change::Joined).await, [""; 0], "only a report makes it healthy");
    assert_eq!(say(0, &heavier, Change::Joined).await, ["left", "joined"], "that is news");
    assert_eq!(say(1, &old, Change::Left).await, [""; 0], "the other one's word stands");
    assert_eq!(say(1, &new, Change::Joined).await, ["left", "joined"], "it was started again");
    assert_eq!(say(0, &heavier, Change::Left).await, [""; 0], "of the start before");
    assert_eq!(say(1, &new, Change::Left).await, ["left"]);
    runs.abort();
}

/// How many sockets there are at the name of the worker with this port.
fn local_sockets(port: &str) -> usize {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    sockets.lines().filter(|line| line.contains(&format!("@openlambda/{port}/"))).count()
}

async fn call(url: &str, function: &str, event: &str) -> String {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!("POST /run/{function} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    let request = format!("{head}content-length: {}\r\n\r\n{event}", event.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{reply}");
    body.to_owned()
}
