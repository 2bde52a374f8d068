//! A worker from its start to the end of its drain.

use std::fs::File;
use std::future::Future;
use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::bodies::Bodies;
use super::code::CodeStore;
use super::config::WorkerConfig;
use super::dispatch::Dispatcher;
use super::log::LogWriter;
use super::shared::Shared;
use super::{deletions, events, load, server};
use crate::balancing::WorkerLoad;
use crate::format::FormatNumber;
use crate::invocation::RequestIds;
use crate::random::fresh_seed;
use crate::registry::Registry;
use crate::sandbox::SandboxFactory;
use crate::scheduler::Counts;
use crate::serving::{Access, Connector, local};
use crate::time::SystemClock;
use crate::wire;
use crate::worker_core::recording::{Header, Recording};
use crate::worker_core::{CoreConfig, WorkerCore};

/// How long it may take until a balancer accepts a connection.
const ANNOUNCE_LIMIT: Duration = Duration::from_secs(2);

/// A running worker. Cloning it makes another handle to the same one.
#[derive(Clone, Debug)]
pub struct Worker {
    shared: Arc<Shared>,
}

impl Worker {
    /// Assembles a worker and removes what an earlier one left in its folder. It takes calls from
    /// [`Worker::serve`] on.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub async fn start(
        config: WorkerConfig,
        factory: Arc<dyn SandboxFactory>,
        registry: Arc<dyn Registry>,
        clock: Arc<SystemClock>,
    ) -> Result<Worker, StartError> {
        let state_dir_error =
            |source| StartError::StateDir { path: config.state_dir.clone(), source };
        let code =
            CodeStore::open(&config.state_dir, registry.clone()).await.map_err(state_dir_error)?;
        let records = config.records.as_ref().map(|path| {
            let file = File::options().create(true).append(true).open(path);
            file.map_err(|source| StartError::Records { path: path.clone(), source })
        });
        let log = LogWriter::start(
            &config.state_dir,
            config.log_size,
            records.transpose()?,
            clock.clone(),
            config.allow.clone(),
        )
        .map_err(state_dir_error)?;
        let left = factory.reclaim().await;
        if left.processes > 0 || !left.removed.is_empty() {
            tracing::info!(processes = left.processes, removed = left.removed.len(), "reclaimed");
        }
        for failed in &left.failed {
            tracing::warn!(%failed, "could not reclaim");
        }
        // Differs between starts of the same worker; it is compared, never ordered.
        let incarnation = fresh_seed();
        let request_ids = RequestIds::new(incarnation);
        let mut scheduler = config.scheduler.clone();
        scheduler.pause_after = match config.pause_after {
            Some(after) => after.time(),
            None => factory.capabilities().pause_after,
        };
        let core = CoreConfig {
            scheduler,
            max_wait: config.max_wait,
            code_budget: config.code_budget,
            allow: config.allow.clone(),
        };
        let inputs = match &config.inputs {
            None => None,
            Some(path) => {
                let header = Header {
                    v: FormatNumber,
                    worker: config.name.clone(),
                    core: core.clone(),
                    keep_alive: config.keep_alive.text().to_owned(),
                    ttl: None,
                    queue: config.queue.text().to_owned(),
                };
                let started = File::create(path)
                    .and_then(|file| Recording::start(BufWriter::new(file), &header));
                let failed = |source| StartError::Inputs { path: path.clone(), source };
                Some(started.map_err(failed)?)
            }
        };
        let core = WorkerCore::new(core, config.queue.make(), config.keep_alive.make());
        let name = config.name.clone();
        let dispatcher =
            Dispatcher::new(name, core, inputs, factory.clone(), code, log.clone(), clock);
        let access = Access::new(config.secret.clone(), server::hosts(&config));
        let bodies = Bodies::new(config.body_budget, config.body_limit, config.patience.head);
        let shared = Shared {
            config,
            dispatcher,
            bodies,
            registry,
            factory,
            log,
            access,
            request_ids,
            incarnation,
            draining: CancellationToken::new(),
        };
        Ok(Worker { shared: Arc::new(shared) })
    }

    /// Answers HTTP on `listener` until `shutdown` resolves. Then takes no more calls, finishes
    /// those it has within [`WorkerConfig::drain_grace`], destroys all sandboxes, and sends what is left
    /// of their replies within [`WorkerConfig::reply_grace`].
    ///
    /// # Errors
    ///
    /// The listener's own address is not known.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let shared = &self.shared;
        let url = match &shared.config.advertise {
            Some(url) => url.clone(),
            None => format!("http://{}", listener.local_addr()?),
        };
        // Before it announces itself: balancers on this machine look there first.
        let local = local::listen(listener.local_addr()?.port(), shared.incarnation)
            .inspect_err(|error| tracing::debug!(%error, "balancers use the port alone"));
        let announcers = events::announce(
            shared.config.balancers.clone(),
            wire::Announcement {
                name: shared.config.name.clone(),
                incarnation: shared.incarnation,
                url,
                weight: shared.config.weight,
                capacity: self.capacity(),
            },
            shared.config.heartbeat,
            Connector::new(shared.config.secret.clone(), ANNOUNCE_LIMIT),
        );
        let mut background = tokio::task::JoinSet::new();
        background.spawn(deletions::follow(shared.registry.clone(), shared.dispatcher.clone()));
        if shared.config.scheduler.running.follows_the_load() {
            background.spawn(load::report(shared.dispatcher.clone()));
        }
        let drained = async {
            shutdown.await;
            tracing::info!("draining");
            // A balancer that still believes in this worker would send it calls.
            drop(announcers);
            shared.draining.cancel();
            if !shared.dispatcher.drain(shared.config.drain_grace).await {
                tracing::warn!("calls still ran at the end of the grace and are ended");
            }
            // While the connections are open: the calls that end by this are answered.
            shared.factory.shutdown().await;
            shared.dispatcher.close_streams();
        };
        server::serve(self.shared.clone(), listener, local.ok(), drained).await;
        background.shutdown().await;
        shared.log.flush().await;
        shared.dispatcher.flush_inputs();
        Ok(())
    }

    /// How many invocations it can run at once, if each instance has the default size.
    fn capacity(&self) -> u32 {
        let default = crate::manifest::Manifest::default().memory_bytes();
        u32::try_from(self.shared.config.scheduler.memory / default).unwrap_or(u32::MAX).max(1)
    }

    /// Counts of calls, instances and memory, for experiments and reports.
    pub fn counts(&self) -> Counts {
        self.shared.dispatcher.counts()
    }

    /// Its load, as balancers get it: calls, instances, bytes of the memory pool.
    pub fn load(&self) -> WorkerLoad {
        self.shared.dispatcher.load()
    }
}

/// Why a worker does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its folder cannot be made or written.
    #[error("cannot use the worker's folder {}", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file for its records cannot be written.
    #[error("cannot write records of calls to {}; name a file in a folder that is there", path.display())]
    Records {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file for its inputs cannot be made.
    #[error("cannot write the worker's inputs to {}; name a file in a folder that is there", path.display())]
    Inputs {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
