//! How far a balancer's view lags behind its workers: the time from the end of a call's handler until
//! the policy observes the instance as idle, which is when the `ClusterView` shows it.
//!
//! | scenario | load beside it |
//! |---|---|
//! | `quiet` | nothing |
//! | `32 clients` | as many connections that call another function without a pause |
//!
//! Balancer and worker speak over a TCP connection of this machine, as two processes would. Means
//! are criterion's; the percentiles over all events are printed after them.

#[allow(dead_code, reason = "the client of `warm` also knows Unix sockets")]
mod client;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use client::{Address, Client};
use criterion::{Criterion, criterion_group, criterion_main};
use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, RequestInfo,
};
use openlambda_core::memory::{MemoryRegistry, MemorySandboxFactory};
use openlambda_core::serving::Serving;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_lb::policies::LeastOutstanding;
use openlambda_lb::proxy::{Proxy, ProxyConfig};
use tokio::runtime::Runtime;

/// Clients at once, in the second scenario.
const CLIENTS: usize = 32;

/// An event that takes longer is lost, and ends the bench.
const LOST: Duration = Duration::from_secs(10);

fn lag(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (seen, observed) = mpsc::channel();
    let ended = Arc::new(Mutex::new(None));
    let (balancer, worker, folder) = runtime.block_on(serve(seen, ended.clone()));
    let address = Address::Tcp(balancer.url().to_owned());
    let mut probe = Client::connect(&address, "probe");

    // The first call is cold, and tells the policy which function to watch.
    let mut once = || {
        probe.call();
        let seen: Instant = observed.recv_timeout(LOST).expect("no event is lost here");
        let ended = ended.lock().expect("nothing panics").take().expect("the handler has ended");
        seen.saturating_duration_since(ended)
    };
    once();
    let mut lags = Vec::new();
    let mut group = c.benchmark_group("lag");
    let mut measure = |scenario: &str| {
        group.bench_function(scenario, |b| {
            b.iter_custom(|events| {
                let new: Vec<_> = (0..events).map(|_| once()).collect();
                lags.extend_from_slice(&new);
                new.iter().sum()
            });
        });
        report(scenario, &mut lags);
    };
    measure("quiet");
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let mut client = Client::connect(&address, "busy");
            let busy = &busy;
            scope.spawn(move || {
                while busy.load(Ordering::Relaxed) {
                    client.call();
                }
            });
        }
        measure(&format!("{CLIENTS} clients"));
        busy.store(false, Ordering::Relaxed);
    });
    group.finish();
    runtime.block_on(async {
        worker.stop().await.expect("the worker served");
        balancer.stop().await;
    });
    drop(folder);
}

/// A balancer whose policy tells when it observes the function `probe` as idle, and a worker whose
/// handler tells when it ends.
async fn serve(
    seen: mpsc::Sender<Instant>,
    ended: Arc<Mutex<Option<Instant>>>,
) -> (Serving, Serving<std::io::Result<()>>, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let code = folder.path().join("code");
    std::fs::create_dir(&code).expect("a folder");
    std::fs::write(code.join("f.py"), "def f(event):\n    return event\n").expect("a file");
    let registry = Arc::new(MemoryRegistry::new());
    let closures = MemorySandboxFactory::new();
    for name in ["probe", "busy"] {
        let ended = (name == "probe").then(|| ended.clone());
        let name = name.parse().expect("a name");
        registry.publish_dir(&name, &code).await.expect("a valid function");
        closures.register_async(name, move |event| {
            if let Some(ended) = &ended {
                *ended.lock().expect("nothing panics") = Some(now());
            }
            async { Ok(event) }
        });
    }

    let clock = Arc::new(SystemClock::new());
    let policy = Watched { policy: LeastOutstanding::new(), probe: None, seen };
    let config = ProxyConfig::default();
    let proxy = Proxy::new(config, "watched", Box::new(policy), registry.clone(), clock.clone());
    let balancer = Serving::start(|listener, stop| proxy.clone().serve(listener, stop));
    let balancer = balancer.expect("a port");
    let mut config = WorkerConfig::new("worker", folder.path().join("worker"));
    config.balancers.push(balancer.url().to_owned());
    let worker = Worker::start(config, Arc::new(closures), registry, clock).await;
    let worker = worker.expect("a writable folder");
    let worker = Serving::start(async move |listener, stop| worker.serve(listener, stop).await);
    proxy.ready(1).await;
    (balancer, worker.expect("a port"), folder)
}

/// A policy that tells when it observes that the first function it ever saw is idle.
#[derive(Debug)]
struct Watched {
    policy: LeastOutstanding,
    probe: Option<FunctionId>,
    seen: mpsc::Sender<Instant>,
}

impl BalancingPolicy for Watched {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        self.probe.get_or_insert(request.function);
        self.policy.select(request, view, cx)
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        if let PolicyEvent::Idle { function, .. } = event
            && Some(*function) == self.probe
        {
            let _ = self.seen.send(now());
        }
        self.policy.observe(event, view, cx);
    }
}

#[allow(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// Prints the percentiles of what was measured, and forgets it.
fn report(scenario: &str, lags: &mut Vec<Duration>) {
    lags.sort_unstable();
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
    println!(
        "lag/{scenario}: {} events, median {:.1?}, p99 {:.1?}, p99.9 {:.1?}, longest {:.1?}",
        lags.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    lags.clear();
}

criterion_group!(benches, lag);
criterion_main!(benches);
