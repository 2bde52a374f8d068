//! A call through a live cluster built from the crate's parts; then the same two policies in the
//! simulator, beside the platform's own.

use std::error::Error;
use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt;
use openlambda_core::invocation::full_body;
use openlambda_core::keep_alive;
use openlambda_core::memory::MemoryRegistry;
use openlambda_core::serving::Serving;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_lab::sim::{SimConfig, simulate};
use openlambda_lab::summary::Tally;
use openlambda_lb::policies::PolicyCatalog;
use openlambda_lb::proxy::{Proxy, ProxyConfig};
use outside::{Doubling, HomeWhileFree, tables};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    for event in [r#"{"op": "greet"}"#, r#"{"op": "unknown"}"#] {
        println!("{event} → {}", live(event).await?);
    }
    simulated()
}

/// The reply of one call through a balancer and two workers, which live as long as the call.
async fn live(event: &'static str) -> Result<String, Box<dyn Error>> {
    let clock = Arc::new(SystemClock::new());
    let folder = tempfile::tempdir()?;
    let code = folder.path().join("greeter");
    std::fs::create_dir(&code)?;
    std::fs::write(code.join("ol.toml"), "runtime = \"bootstrap\"\nhandler = \"table.txt\"\n")?;
    std::fs::write(code.join("table.txt"), "greet answer Hello from outside!\n")?;
    let registry = Arc::new(MemoryRegistry::new());
    registry.publish_dir(&"greeter".parse()?, &code).await?;

    let (config, policy) = (ProxyConfig::default(), Box::new(HomeWhileFree::new()));
    let proxy = Proxy::new(config, "home-while-free", policy, registry.clone(), clock.clone());
    let balancer = Serving::start(|listener, stop| proxy.clone().serve(listener, stop))?;

    let mut catalog = keep_alive::standard();
    catalog.register(Doubling::entry());
    let mut workers = Vec::new();
    for name in ["worker-1", "worker-2"] {
        let mut config = WorkerConfig::new(name, folder.path().join(name));
        config.balancers.push(balancer.url().to_owned());
        config.keep_alive = catalog.maker_of("doubling,seconds=60")?;
        let factory = Arc::new(tables());
        let worker = Worker::start(config, factory, registry.clone(), clock.clone()).await?;
        workers
            .push(Serving::start(async move |listener, stop| worker.serve(listener, stop).await)?);
    }
    proxy.ready(2).await;

    let request = Request::post("/run/greeter").body(full_body(event))?;
    let reply = proxy.call(request, ([127, 0, 0, 1], 0).into()).await;
    let status = reply.status();
    let body = reply.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    for worker in workers {
        worker.stop().await?;
    }
    balancer.stop().await;
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() { Ok(text) } else { Err(format!("{status}: {text}").into()) }
}

/// Every pair of balancing and keep-alive policies, on the same calls.
fn simulated() -> Result<(), Box<dyn Error>> {
    let (mut balancing, mut keeping) = (PolicyCatalog::standard(), keep_alive::standard());
    balancing.register(HomeWhileFree::entry());
    keeping.register(Doubling::entry());
    println!("| balancing | keep-alive | cold | mean ms |");
    println!("|---|---|---|---|");
    for policy in ["least-outstanding", "home-while-free"] {
        for keep in ["ttl", "doubling", "doubling,seconds=1"] {
            let keep_alive = keeping.maker_of(keep)?;
            let mut config = SimConfig { keep_alive, ..SimConfig::default() };
            config.workload.invocations = 5_000;
            let mut tally = Tally::default();
            simulate(&config, balancing.build(&policy.parse()?)?, |call| tally.add(call))?;
            let it = tally.summary(policy);
            let cold = 100.0 * it.cold_rate;
            println!("| `{policy}` | `{keep}` | {cold:.1} % | {:.1} |", it.mean_ms);
        }
    }
    Ok(())
}
