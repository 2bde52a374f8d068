//! Workers that the configuration lists, which never leave: [`Configured`].

use std::sync::Arc;

use async_trait::async_trait;
use tokio::task::JoinSet;

use super::source::{Follower, Source};
use super::watch::{Watched, Watcher, address_of};

/// What is assumed of a worker whose events do not tell how much it can take.
const CAPACITY: u32 = 64;

/// A source that has a list of addresses. It follows the worker at each address, by the name that the
/// worker reports, and never gives one up.
#[derive(Debug)]
pub(crate) struct Configured {
    workers: Vec<Arc<Watched>>,
    watcher: Watcher,
}

impl Configured {
    /// Workers at these URLs, `http://host:port`. Other texts are left out, and the log says so.
    pub(crate) fn new(urls: &[String], watcher: Watcher) -> Self {
        let mut workers: Vec<Arc<Watched>> = Vec::new();
        for url in urls {
            match address_of(url) {
                Ok(address) if workers.iter().any(|worker| *worker.address() == address) => {}
                Ok(address) => workers.push(Arc::new(Watched::at(address, 1.0, CAPACITY))),
                Err(failure) => tracing::error!(%failure, "a configured worker is left out"),
            }
        }
        Configured { workers, watcher }
    }

    /// Those that are followed, for other sources to leave to this one.
    pub(super) fn workers(&self) -> Vec<Arc<Watched>> {
        self.workers.clone()
    }
}

#[async_trait]
impl Source for Configured {
    async fn run(self: Box<Self>, follower: Arc<dyn Follower>) {
        let mut tasks = JoinSet::new();
        for worker in self.workers {
            let (watcher, follower) = (self.watcher.clone(), Arc::clone(&follower));
            tasks.spawn(async move { watcher.watch(&worker, &follower).await });
        }
        // They go on for as long as this is polled.
        while tasks.join_next().await.is_some() {}
    }
}
