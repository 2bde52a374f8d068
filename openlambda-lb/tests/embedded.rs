//! A balancer and workers inside one program.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use openlambda_core::balancing::{Change, ClusterEvent, Member, WorkerInfo};
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

#[tokio::test(flavor = "multi_thread")]
async fn a_balancer_tells_when_its_workers_are_ready() {
    let clock = Arc::new(SystemClock::new());
    let registry = Arc::new(MemoryRegistry::new());
    let policy = Box::new(RoundRobin::new());
    let config = ProxyConfig::default();
    let proxy = Proxy::new(config, "round-robin", policy, registry.clone(), clock.clone());
    let serving = Arc::clone(&proxy);
    let balancer = Serving::start(|listener, stop| serving.serve(listener, stop)).unwrap();
    proxy.ready(0).await;

    let mut workers = Vec::new();
    for n in 1..=3 {
        let name = format!("worker-{n}");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("embedded").join(&name);
        let mut config = WorkerConfig::new(name, folder);
        config.balancers = vec![balancer.url().to_owned()];
        let factory = Arc::new(MemorySandboxFactory::new());
        let worker = Worker::start(config, factory, registry.clone(), clock.clone()).await.unwrap();
        let serving =
            Serving::start(async move |listener, stop| worker.serve(listener, stop).await);
        workers.push(serving.unwrap());
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
    let clock = Arc::new(SystemClock::new());
    let registry = Arc::new(MemoryRegistry::new());
    let code = tempfile::tempdir().unwrap();
    std::fs::write(code.path().join("f.py"), "").unwrap();
    let name = "echo".parse().unwrap();
    registry.publish_dir(&name, code.path()).await.unwrap();
    let factory = Arc::new(MemorySandboxFactory::new());
    factory.register_async(name, |event| async { Ok(event) });

    let policy = Box::new(RoundRobin::new());
    let config = ProxyConfig::default();
    let proxy = Proxy::new(config, "round-robin", policy, registry.clone(), clock.clone());
    let serving = Arc::clone(&proxy);
    let balancer = Serving::start(|listener, stop| serving.serve(listener, stop)).unwrap();
    let mut config = WorkerConfig::new("worker", code.path().join("worker"));
    config.balancers = vec![balancer.url().to_owned()];
    let worker = Worker::start(config, factory, registry, clock).await.unwrap();
    let worker = Serving::start(async move |listener, stop| worker.serve(listener, stop).await);
    let worker = worker.unwrap();
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
    let clock = Arc::new(SystemClock::new());
    let registry = Arc::new(MemoryRegistry::new());
    let code = tempfile::tempdir().unwrap();
    std::fs::write(code.path().join("f.py"), "").unwrap();
    let name = "echo".parse().unwrap();
    registry.publish_dir(&name, code.path()).await.unwrap();
    let factory = Arc::new(MemorySandboxFactory::new());
    factory.register_async(name, |event| async { Ok(event) });
    let config = WorkerConfig::new("worker", code.path().join("worker"));
    let worker = Worker::start(config, factory, registry.clone(), clock.clone()).await.unwrap();
    let worker = Serving::start(async move |listener, stop| worker.serve(listener, stop).await);
    let worker = worker.unwrap();

    let policy = Box::new(RoundRobin::new());
    let proxy = Proxy::new(ProxyConfig::default(), "round-robin", policy, registry, clock);
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
