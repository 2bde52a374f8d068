//! One sandbox as the worker holds it: the process that the nursery made, its cell, and its output.

use std::fs;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use openlambda_core::sandbox::{Exit, SandboxError, SandboxErrorKind, Usage};
use parking_lot::Mutex;

use super::cell::{Cells, Network};
use super::cgroup::Cgroup;
use super::sockets::Sockets;
use super::watchdog::{self, Watchdog};
use crate::errors::{resources, unsupported};
use crate::kit::{Vessel, exit_of};
use crate::launch::{Folder, Program};
use crate::output::FunctionOutput;
use crate::sys::nursery::Newborn;
use crate::sys::{Pid, Signal};

/// An instance as a container.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) program: Program,
    pub(super) newborn: Newborn,
    pub(super) output: Arc<FunctionOutput>,
    /// Where it says which step failed, and its init which signal has ended its program.
    pub(super) told: io::PipeReader,
    /// What its cgroup's counter stood at before.
    pub(super) oom_kills: u64,
    /// Its manifest's, bytes.
    pub(super) memory: u64,
    /// Its manifest's.
    pub(super) processes: u32,
    /// So many threads the function has in any case.
    pub(super) slots: u32,
    /// Those of a network of its own.
    pub(super) sockets: Option<Sockets>,
    /// Bounds memory where no cgroup does.
    pub(super) watchdog: Option<Watchdog>,
    pub(super) paused: AtomicBool,
    pub(super) killed: AtomicBool,
    pub(super) cells: Arc<Cells>,
    pub(super) cell: Mutex<Cell>,
}

/// What goes back to the pool.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) cgroup: Option<Arc<Cgroup>>,
    pub(super) network: Option<Network>,
    pub(super) folder: Option<Folder>,
}

/// Processes of a sandbox that are not the function's, and for which its limit has room: the init.
pub(super) const INITS: u32 = 1;

/// What the init says of a program that a signal has ended.
const SIGNAL: &str = "signal: ";

impl Container {
    /// What it has told, if anything: once its first process has ended, or has begun its program.
    fn told(&self) -> Option<String> {
        let mut told = [0; 1024];
        let length = (&self.told).read(&mut told).ok().filter(|length| *length > 0)?;
        Some(String::from_utf8_lossy(&told[..length]).into_owned())
    }

    /// How the program has ended, from the end of the init, which passes it on in its way.
    fn exit_of_program(&self, exit: Exit) -> Exit {
        let Exit::Status(status @ 129..) = exit else { return exit };
        match self.told() {
            Some(told) if told.starts_with(SIGNAL) => Exit::Signal(status - 128),
            _ => exit,
        }
    }

    fn cgroup(&self) -> Option<Arc<Cgroup>> {
        self.cell.lock().cgroup.clone()
    }

    fn with_cgroup<T>(&self, use_it: impl FnOnce(&Cgroup) -> T) -> Option<T> {
        self.cgroup().map(|cgroup| use_it(&cgroup))
    }

    /// Stops everything in it and waits until it has stopped.
    async fn freeze(&self) -> io::Result<()> {
        // A kill may come at any moment. It says so before it thaws, and we look after freezing: one
        // of the two thaws last.
        let given_up = || self.killed.load(Ordering::SeqCst);
        if let Some(cgroup) = self.cgroup() {
            return cgroup.freeze(given_up).await;
        }
        // Without a cgroup: process by process, until all that there are have stopped.
        for _ in 0..1000 {
            let mut running = 0;
            for (pid, pidfd) in self.newborn.processes() {
                if !has_stopped(pid) {
                    running += 1;
                    let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::STOP);
                }
            }
            if given_up() {
                return Err(io::Error::other("it is being ended"));
            }
            if running == 0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "its processes do not stop"))
    }

    fn thaw(&self) -> io::Result<()> {
        if let Some(cgroup) = self.cgroup() {
            return cgroup.thaw();
        }
        for (_, pidfd) in self.newborn.processes() {
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::CONT);
        }
        Ok(())
    }
}

/// Whether a process is stopped, or dead.
fn has_stopped(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // The name, in parentheses, may hold anything.
    let state =
        stat.ok().and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| rest.trim().to_owned()));
    state.is_none_or(|state| state.starts_with(['T', 'Z', 'X']))
}

#[async_trait]
impl Vessel for Container {
    async fn ended(&self) -> Exit {
        let over = async {
            match &self.watchdog {
                Some(watchdog) => {
                    let sockets = self.sockets.as_ref();
                    watchdog.until_over(&self.newborn, sockets, &self.paused).await;
                }
                None => std::future::pending().await,
            }
        };
        // Of netlink no cgroup counts anything; of others, version 1 counts and does not bound.
        let sockets = || {
            let netlink = self.sockets.as_ref().map_or(0, |sockets| sockets.netlink().0);
            self.with_cgroup(|cgroup| cgroup.sockets().unwrap_or(0) + netlink)
        };
        let mut uncounted = false;
        let ended = tokio::select! {
            ended = self.newborn.wait() => ended,
            () = over => {
                self.kill();
                self.newborn.wait().await
            }
            () = watchdog::until_uncounted_is_over(
                &self.newborn,
                sockets,
                self.memory,
                &self.paused,
            ) => {
                uncounted = true;
                self.kill();
                self.newborn.wait().await
            }
        };
        let exit = exit_of(match ended {
            Some(status) => status,
            None => {
                // It may be frozen, which the kernel's own kill does not change.
                self.kill();
                self.newborn.gone().await
            }
        });
        let exit = self.exit_of_program(exit);
        let killed = uncounted
            || self.with_cgroup(Cgroup::oom_kills).is_some_and(|now| now > self.oom_kills)
            || self.watchdog.as_ref().is_some_and(Watchdog::has_bitten);
        if killed && exit != Exit::Status(0) { Exit::OutOfMemory } else { exit }
    }

    fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.newborn.kill();
        // What is frozen does not die in version 1.
        if self.paused.load(Ordering::SeqCst) {
            self.with_cgroup(Cgroup::thaw);
        }
    }

    async fn clean(&self) {
        let cell = {
            let mut cell = self.cell.lock();
            Cell {
                cgroup: cell.cgroup.take(),
                network: cell.network.take(),
                folder: cell.folder.take(),
            }
        };
        let Cell { cgroup, network, folder } = cell;
        if let Some(mut cgroup) = cgroup {
            // Somebody who asks for its use, or pauses it, may have it for a moment still.
            let alone = loop {
                match Arc::try_unwrap(cgroup) {
                    Ok(alone) => break alone,
                    Err(shared) => cgroup = shared,
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            self.cells.give_back_cgroup(alone).await;
        }
        if let Some(network) = network {
            self.cells.give_back_network(network);
        }
        drop(folder);
    }

    fn output(&self) -> Option<&FunctionOutput> {
        Some(&self.output)
    }

    fn is_exhausted(&self) -> bool {
        let counted = self.with_cgroup(Cgroup::tasks).and_then(Result::ok);
        let tasks = counted.unwrap_or_else(|| self.newborn.tasks());
        let tasks = tasks.saturating_sub(INITS);
        // One that was given no more than it runs in has not lost anything.
        let exhausted = tasks >= self.processes && tasks > self.slots;
        if exhausted {
            self.output.note(&format!(
                "after a call that failed all {} processes and threads that the function may have are in \
                 use, so it can start no other: the instance is ended, and the next call gets a new one; end \
                 children with the call that started them, or raise processes in ol.toml",
                self.processes
            ));
        }
        exhausted
    }

    fn explain_failed_start(&self) -> Option<SandboxError> {
        let why = self.told()?;
        if why.starts_with(SIGNAL) {
            return None;
        }
        if let Some(why) = why.strip_prefix("execute: ") {
            let next = "install it so that every user may run it, and start the worker again";
            return Some(self.program.cannot_run(&io::Error::other(why.to_owned()), next));
        }
        let message = format!("the sandbox cannot be made: {why}");
        Some(SandboxError::new(SandboxErrorKind::Resources, message))
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        self.paused.store(true, Ordering::SeqCst);
        self.freeze().await.map_err(|error| {
            let _ = self.thaw();
            self.paused.store(false, Ordering::SeqCst);
            resources("it cannot be paused", error)
        })
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        if !self.paused.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        self.thaw().map_err(|error| resources("it cannot be resumed", error))
    }

    async fn set_memory_limit(&self, bytes: u64) -> Result<(), SandboxError> {
        if let Some(watchdog) = &self.watchdog {
            watchdog.set_limit(bytes);
            return Ok(());
        }
        match self.with_cgroup(|cgroup| cgroup.set_memory(bytes)) {
            Some(set) => set.map_err(|error| {
                let message = "the memory limit cannot be changed; it may be below what is in use";
                SandboxError::new(SandboxErrorKind::Resources, message).with_source(error)
            }),
            None => Err(unsupported("there is no cgroup to bound memory with; see `ol doctor`")),
        }
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        if let Some(Ok((memory_bytes, processes))) = self.with_cgroup(Cgroup::usage) {
            return Ok(Usage { memory_bytes, processes: processes.saturating_sub(INITS) });
        }
        let processes = (self.newborn.tree().len() as u32).saturating_sub(INITS);
        let memory_bytes = watchdog::measure(&self.newborn, self.sockets.as_ref(), 0);
        Ok(Usage { memory_bytes, processes })
    }
}
