//! One instance's container, from its start to its removal.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bollard::models::ContainerUpdateBody;
use bollard::query_parameters::StatsOptions;
use futures_util::StreamExt;
use openlambda_core::sandbox::{Exit, SandboxError, Usage};
use parking_lot::Mutex;
use rustix::process::pidfd_send_signal;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use super::deaths::{Death, Deaths};
use super::engine::Engine;
use super::handshake::why_failed;
use crate::errors::resources;
use crate::kit::Vessel;
use crate::launch::{Folder, Program};
use crate::output::FunctionOutput;
use crate::sys::Signal;

/// An instance as a container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) id: String,
    pub(super) program: Program,
    /// What it was made of.
    pub(super) image: String,
    pub(super) engine: Engine,
    pub(super) deaths: Arc<Deaths>,
    pub(super) death: Death,
    /// Its first process, where it can be seen.
    pub(super) process: Option<AsyncFd<OwnedFd>>,
    pub(super) output: Arc<FunctionOutput>,
    /// Where `ol-init` says why the program cannot be run.
    pub(super) failed: Option<UnixStream>,
    pub(super) paused: AtomicBool,
    /// Kills and removes it.
    pub(super) removal: Mutex<Option<JoinHandle<()>>>,
    pub(super) folder: Mutex<Option<Folder>>,
}

impl Container {
    /// Begins its removal, once.
    fn remove(&self) -> Option<JoinHandle<()>> {
        let process = self.process.as_ref().and_then(|process| process.get_ref().try_clone().ok());
        let (id, engine) = (self.id.clone(), self.engine.clone());
        let deaths = Arc::clone(&self.deaths);
        Some(tokio::spawn(async move {
            let removed = engine.remove(&id).await;
            // Where we may, also what the engine has lost sight of.
            let killed = process.is_some_and(|p| pidfd_send_signal(p, Signal::KILL).is_ok());
            if let Err(error) = &removed {
                tracing::warn!(%error, container = id, "cannot remove a sandbox yet");
                deaths.remove_later(&id);
            }
            let exit = match removed.is_ok() || killed {
                true => Exit::Signal(Signal::KILL.as_raw()),
                false => Exit::Lost("the engine is away".to_owned()),
            };
            deaths.tell(&id, exit);
        }))
    }

    /// Resolves when its first process has ended; never where that cannot be seen.
    async fn process_ended(&self) {
        let Some(process) = &self.process else { return std::future::pending().await };
        let _ = process.readable().await;
    }
}

#[async_trait]
impl Vessel for Container {
    async fn ended(&self) -> Exit {
        tokio::select! {
            exit = self.death.wait() => exit,
            () = self.process_ended() => {
                // The engine knows how, and says so in a moment; unless it is away.
                let told = tokio::time::timeout(Duration::from_secs(10), self.death.wait()).await;
                let why = "the engine was away when it ended";
                told.unwrap_or_else(|_| Exit::Lost(why.to_owned()))
            }
        }
    }

    fn kill(&self) {
        let mut removal = self.removal.lock();
        if removal.is_none() {
            *removal = self.remove();
        }
    }

    async fn clean(&self) {
        self.kill();
        let removal = self.removal.lock().take();
        if let Some(removal) = removal {
            let _ = removal.await;
        }
        drop(self.folder.lock().take());
    }

    fn output(&self) -> Option<&FunctionOutput> {
        Some(&self.output)
    }

    fn explain_failed_start(&self) -> Option<SandboxError> {
        let why = why_failed(self.failed.as_ref()?)?;
        let why = why.strip_prefix("execute: ").unwrap_or(&why);
        let next = format!(
            "the image {} has to hold it: set OPENLAMBDA_DOCKER_IMAGE to one that does, or add this \
             machine's own with ol image build --with PATH",
            self.image
        );
        Some(self.program.cannot_run(&io::Error::other(why.to_owned()), &next))
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        let paused = self.engine.docker.pause_container(&self.id).await;
        paused.map_err(|error| self.engine.error("it cannot be paused", error))?;
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        if !self.paused.load(Ordering::SeqCst) {
            return Ok(());
        }
        let resumed = self.engine.docker.unpause_container(&self.id).await;
        resumed.map_err(|error| self.engine.error("it cannot be resumed", error))?;
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), SandboxError> {
        let memory = i64::try_from(bytes).unwrap_or(i64::MAX);
        let update = ContainerUpdateBody {
            memory: Some(memory),
            memory_swap: Some(memory),
            ..ContainerUpdateBody::default()
        };
        let updated = self.engine.docker.update_container(&self.id, update).await;
        updated.map_err(|error| {
            self.engine
                .error("the memory limit cannot be changed; it may be below what is in use", error)
        })
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        let options = StatsOptions { stream: false, one_shot: true };
        let mut stats = Box::pin(self.engine.docker.stats(&self.id, Some(options)));
        let stats = match stats.next().await {
            Some(Ok(stats)) => stats,
            Some(Err(error)) => return Err(self.engine.error("its use cannot be told", error)),
            None => {
                let error = io::Error::from(io::ErrorKind::UnexpectedEof);
                return Err(resources("its use cannot be told", error));
            }
        };
        let memory = stats.memory_stats.unwrap_or_default();
        let detail = memory.stats.unwrap_or_default();
        // Pages of files that can be dropped at any time are not what it uses.
        let files =
            ["total_inactive_file", "inactive_file"].iter().find_map(|key| detail.get(*key));
        let memory_bytes = memory.usage.unwrap_or(0).saturating_sub(*files.unwrap_or(&0));
        // Without `ol-init`.
        let processes = stats.pids_stats.and_then(|pids| pids.current).unwrap_or(0);
        let processes = processes.saturating_sub(1);
        Ok(Usage { memory_bytes, processes: u32::try_from(processes).unwrap_or(u32::MAX) })
    }
}
