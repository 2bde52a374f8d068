//! A whole cluster inside one program: a balancer and two workers, which run Python functions as
//! child processes, around a registry in memory.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use openlambda_core::invocation::full_body;
use openlambda_core::memory::MemoryRegistry;
use openlambda_core::serving::Serving;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_lb::policies::LeastOutstanding;
use openlambda_lb::proxy::{Proxy, ProxyConfig};
use openlambda_sandbox::process::{ProcessConfig, ProcessFactory};
use openlambda_sandbox::sys::Spawner;

async fn echo(event: &'static str) -> Result<Bytes, Box<dyn Error>> {
    let (clock, spawner) = (Arc::new(SystemClock::new()), Spawner::start()?);
    let folder = tempfile::tempdir()?;
    let registry = Arc::new(MemoryRegistry::new());
    let code = Path::new(env!("CARGO_MANIFEST_DIR")).join("functions/echo");
    registry.publish_dir(&"echo".parse()?, &code).await?;

    let (config, policy) = (ProxyConfig::default(), Box::new(LeastOutstanding::new()));
    let proxy = Proxy::new(config, "least-outstanding", policy, registry.clone(), clock.clone());
    let balancer = Serving::start(|listener, stop| proxy.clone().serve(listener, stop))?;

    let mut workers = Vec::new();
    for name in ["worker-1", "worker-2"] {
        let dir = folder.path().join(name);
        // Processes that the worker starts can be found by this mark, also after a crash.
        let mark = format!("embedded-{}-{name}", std::process::id());
        let config = ProcessConfig::new(&dir, mark, spawner.clone(), clock.clone());
        let factory = Arc::new(ProcessFactory::new(config)?);
        let mut config = WorkerConfig::new(name, dir);
        config.balancers.push(balancer.url().to_owned());
        let worker = Worker::start(config, factory, registry.clone(), clock.clone()).await?;
        workers
            .push(Serving::start(async move |listener, stop| worker.serve(listener, stop).await)?);
    }
    proxy.ready(2).await;

    // The same call as clients make over HTTP, without HTTP.
    let request = Request::post("/run/echo").body(full_body(event))?;
    let reply = proxy.call(request, ([127, 0, 0, 1], 0).into()).await;
    assert!(reply.status().is_success(), "{reply:?}");
    let reply = reply.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();

    for worker in workers {
        worker.stop().await?;
    }
    balancer.stop().await;
    Ok(reply)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let reply = echo(r#"{"one": 1}"#).await?;
    println!("{}", String::from_utf8_lossy(&reply));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_event_comes_back() {
        assert_eq!(echo(r#"{"one": 1}"#).await.unwrap(), r#"{"one": 1}"#);
    }
}
