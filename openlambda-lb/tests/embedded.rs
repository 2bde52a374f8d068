//! A balancer and workers inside one program.

use std::path::Path;
use std::sync::Arc;

use openlambda_core::memory::{MemoryRegistry, MemorySandboxFactory};
use openlambda_core::serving::Serving;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_lb::policies::RoundRobin;
use openlambda_lb::proxy::{Proxy, ProxyConfig};

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
