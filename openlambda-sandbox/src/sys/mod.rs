//! Processes as the platform needs them: children that never outlive their parent, and descendants that
//! can always be found.
//!
//! [`Spawner`] starts children, [`Child`] waits for them and signals them, and [`kill_marked`] finds
//! those that escaped: a descendant that made a new session still carries the [`MARK`] variable in its
//! environment.
//!
//! ```text
//! Spawner::start() ──one thread──▶ fork ─▶ setsid, death signal, limits ─▶ exec
//!        │                                                                  │
//!        └── spawn(CommandSpec) ─▶ Child ── pidfd readable ─▶ kill the group, then reap
//! ```
//!
//! A parent-death signal fires when the *thread* that forked ends, and an async runtime's threads
//! come and go. So one thread forks all children, and lives as long as the spawner or one of them.
//!
//! All unsafe code of the project is in this module.

#![allow(unsafe_code, reason = "this module is where the project keeps it")]

mod heap;
mod mark;
#[cfg(feature = "sock")]
pub mod nursery;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;

pub use rustix::process::{Pid, Resource, Signal};
use rustix::process::{
    PidfdFlags, Rlimit, WaitId, WaitIdOptions, WaitOptions, getpid, getppid, kill_process_group,
    pidfd_open, pidfd_send_signal, set_parent_process_death_signal, setrlimit, setsid, waitid,
    waitpid,
};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

pub use heap::give_back_freed_memory;
#[cfg(feature = "sock")]
pub(crate) use mark::covers;
pub use mark::{
    MARK, MarkedProcess, kill_all_marked, kill_marked, marked_processes, processes_with_mark,
};

/// Starts child processes from one thread that lives as long as they do.
///
/// Shared between tasks; spawns one child at a time, about a millisecond each.
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

struct Request {
    spec: CommandSpec,
    reply: oneshot::Sender<Result<Spawned, SpawnError>>,
}

/// What to run.
#[derive(Debug)]
#[non_exhaustive]
pub struct CommandSpec {
    /// The program: a path, or a name that is looked up in our own PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Environment variables; they replace inherited ones.
    pub env: BTreeMap<OsString, OsString>,
    /// Whether it inherits our environment. `false`: it gets `env` alone.
    pub inherit_env: bool,
    /// Its working folder; ours when absent.
    pub cwd: Option<PathBuf>,
    /// The signal that it gets when this process dies. KILL unless changed; `None`: it survives.
    pub parent_death: Option<Signal>,
    /// Its standard output.
    pub stdout: Output,
    /// Its standard error.
    pub stderr: Output,
    /// Limits, soft and hard.
    pub limits: Vec<(Resource, u64)>,
    /// Descriptors that it gets beside its standard ones, under the numbers that they have here.
    pub descriptors: Vec<OwnedFd>,
}

/// Where a child's output goes.
#[derive(Debug, Default)]
pub enum Output {
    /// Nowhere.
    #[default]
    Null,
    /// Into a pipe: [`Child::take_stdout`], [`Child::take_stderr`].
    Pipe,
    /// To the same place as this process's output.
    Inherit,
    /// Into an open file.
    File(File),
}

impl CommandSpec {
    /// Runs `program` without arguments, with an empty environment, killed when we die.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        CommandSpec {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            inherit_env: false,
            cwd: None,
            parent_death: Some(Signal::KILL),
            stdout: Output::Null,
            stderr: Output::Null,
            limits: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// The same with one more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// The same with an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(key.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }
}

/// A child that could not be started.
#[derive(Debug, Error)]
#[error("cannot start {}{hint}", program.display())]
pub struct SpawnError {
    program: PathBuf,
    hint: String,
    #[source]
    source: io::Error,
}

impl SpawnError {
    /// The kernel's error.
    pub fn io(&self) -> &io::Error {
        &self.source
    }
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system has no more threads.
    pub fn start() -> io::Result<Arc<Spawner>> {
        let (requests, incoming) = mpsc::channel::<Request>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for Request { spec, reply } in incoming {
                // When nobody waits any more, dropping the result kills the child.
                let _ = reply.send(spawn_here(spec));
            }
        })?;
        Ok(Arc::new(Spawner { requests }))
    }

    /// Starts a child in a session and process group of its own, with no descriptors of ours but
    /// its three standard ones and with standard input empty.
    ///
    /// Must be called within a tokio runtime with I/O; dropping the future kills the child.
    ///
    /// # Errors
    ///
    /// [`SpawnError`] names the program and what the kernel said.
    pub async fn spawn(&self, spec: CommandSpec) -> Result<Child, SpawnError> {
        let program = spec.program.clone();
        let lost = |source| SpawnError { program, hint: String::new(), source };
        let (reply, spawned) = oneshot::channel();
        if self.requests.send(Request { spec, reply }).is_err() {
            return Err(lost(io::Error::other("the spawner's thread is gone")));
        }
        let mut spawned = match spawned.await {
            Ok(spawned) => spawned?,
            Err(_) => return Err(lost(io::Error::other("the spawner's thread is gone"))),
        };
        let notifier = spawned.pidfd.try_clone().and_then(watch_readable).map_err(lost)?;
        let pipes = (spawned.stdout.take(), spawned.stderr.take());
        let (ended, status) = watch::channel(None);
        let shared = Arc::new(Shared {
            spawned: Mutex::new(spawned),
            status,
            _thread: self.requests.clone(),
        });
        tokio::spawn(reap(Arc::clone(&shared), notifier, ended));
        Ok(Child { shared, stdout: pipes.0, stderr: pipes.1 })
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawner")
    }
}

/// A child process.
///
/// **Drop** kills its process group; it is reaped in the background.
#[derive(Debug)]
pub struct Child {
    shared: Arc<Shared>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    spawned: Mutex<Spawned>,
    status: watch::Receiver<Option<ExitStatus>>,
    /// Keeps the thread alive whose end would fire the parent-death signal.
    _thread: mpsc::Sender<Request>,
}

impl Child {
    /// Its process id, which is its process group's and session's too. Stale once it has ended.
    pub fn pid(&self) -> Pid {
        self.shared.spawned.lock().pid
    }

    /// Waits until the process has ended. Any number of tasks may wait, now or later.
    pub async fn wait(&self) -> ExitStatus {
        let mut status = self.shared.status.clone();
        match status.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_default(),
            // The runtime that reaps is shutting down; Drop kills the child.
            Err(_) => ExitStatus::from_raw(Signal::KILL.as_raw()),
        }
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.shared.status.borrow()
    }

    /// Signals the process alone. Does nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        let spawned = self.shared.spawned.lock();
        if !spawned.reaped {
            let _ = pidfd_send_signal(&spawned.pidfd, signal);
        }
    }

    /// Signals its process group. Nothing happens when it has ended: the rest of a group is killed
    /// with its leader.
    pub fn signal_group(&self, signal: Signal) {
        self.shared.spawned.lock().signal_group(signal);
    }

    /// Kills its process group.
    pub fn kill_group(&self) {
        self.signal_group(Signal::KILL);
    }

    /// Detaches it: from now on neither Drop nor the end of this process kills it, if it was spawned
    /// without a parent-death signal.
    pub fn release(self) {
        // Nobody may reap or signal it any more; the system's init reaps what we leave behind.
        self.shared.spawned.lock().reaped = true;
    }

    /// The reading end of its standard output, once, when it was spawned with [`Output::Pipe`].
    pub fn take_stdout(&mut self) -> Option<OwnedFd> {
        self.stdout.take()
    }

    /// The reading end of its standard error, likewise.
    pub fn take_stderr(&mut self) -> Option<OwnedFd> {
        self.stderr.take()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// Waits for the end of a child and reaps it.
async fn reap(
    shared: Arc<Shared>,
    notifier: AsyncFd<OwnedFd>,
    ended: watch::Sender<Option<ExitStatus>>,
) {
    loop {
        let Ok(mut ready) = notifier.readable().await else { return };
        if shared.spawned.lock().has_ended() {
            break;
        }
        ready.clear_ready();
    }
    let status = shared.spawned.lock().finish();
    ended.send_replace(Some(status));
}

/// A child that runs, with the right to reap it.
#[derive(Debug)]
struct Spawned {
    pid: Pid,
    pidfd: OwnedFd,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    reaped: bool,
}

impl Spawned {
    fn signal_group(&self, signal: Signal) {
        // A group's id is free for others once its leader is reaped, so this is checked under the
        // lock that reaping takes.
        if !self.reaped {
            let _ = kill_process_group(self.pid, signal);
        }
    }

    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Ok(None))
    }

    /// Kills what is left of the group while its leader, a zombie, still holds the id; then reaps.
    fn finish(&mut self) -> ExitStatus {
        self.signal_group(Signal::KILL);
        let status = waitpid(Some(self.pid), WaitOptions::empty());
        self.reaped = true;
        match status {
            Ok(Some((_, status))) => ExitStatus::from_raw(status.as_raw()),
            _ => ExitStatus::default(),
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if !self.reaped {
            self.finish();
        }
    }
}

/// Forks and execs on the calling thread.
fn spawn_here(spec: CommandSpec) -> Result<Spawned, SpawnError> {
    let CommandSpec { program, args, env, inherit_env, cwd, parent_death, limits, .. } = spec;
    let mut command = Command::new(&program);
    command.args(args).stdin(Stdio::null()).stdout(spec.stdout).stderr(spec.stderr);
    if !inherit_env {
        command.env_clear();
    }
    command.envs(env);
    if let Some(cwd) = &cwd {
        command.current_dir(cwd);
    }
    let parent = getpid();
    let kept: Vec<RawFd> = spec.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let in_child = move || {
        setsid()?;
        set_parent_process_death_signal(parent_death)?;
        // Had the parent died before the line above, no signal would ever come.
        if parent_death.is_some() && getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        for (resource, limit) in &limits {
            setrlimit(*resource, Rlimit { current: Some(*limit), maximum: Some(*limit) })?;
        }
        // SAFETY: the call takes three integers and touches no memory. It marks descriptors that
        // some library opened without close-on-exec; a kernel without it (before 5.11) refuses,
        // and std's own are marked anyway.
        unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        }
        for fd in &kept {
            // SAFETY: the parent holds the descriptors until we have been started.
            let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes plain system calls only; it neither allocates
    // nor takes locks, and what it captured was made before the fork.
    unsafe {
        command.pre_exec(in_child);
    }
    let failed = |source: io::Error| {
        let hint = match (&cwd, source.kind()) {
            (Some(cwd), _) if !cwd.is_dir() => {
                format!(": its working folder {} is missing", cwd.display())
            }
            (_, io::ErrorKind::NotFound) => {
                ": there is no such program, or the interpreter that its first line names"
                    .to_owned()
            }
            (_, io::ErrorKind::PermissionDenied) => {
                format!(": it is not executable; try chmod +x {}", program.display())
            }
            _ => String::new(),
        };
        SpawnError { program: program.clone(), hint, source }
    };
    let mut child = command.spawn().map_err(&failed)?;
    let pid = Pid::from_child(&child);
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Spawned {
            pid,
            pidfd,
            stdout: child.stdout.take().map(OwnedFd::from),
            stderr: child.stderr.take().map(OwnedFd::from),
            reaped: false,
        }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let mut error = failed(error.into());
            error.hint = ": the kernel gives no descriptor for it; Linux 5.3 is needed".to_owned();
            Err(error)
        }
    }
}

/// Lets the runtime tell when `fd` is readable.
///
/// # Errors
///
/// That the system has no room for it, or that it cannot be polled.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    watch(fd, Interest::READABLE)
}

fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the registration owns the descriptor, an `OwnedFd` names the same open one for its
    // whole life, and nobody takes it out before the registration is undone.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

impl From<Output> for Stdio {
    fn from(output: Output) -> Stdio {
        match output {
            Output::Null => Stdio::null(),
            Output::Pipe => Stdio::piped(),
            Output::Inherit => Stdio::inherit(),
            Output::File(file) => file.into(),
        }
    }
}

/// The time that a process of this machine has had of cores, all its threads together, nanoseconds. It
/// stays the same for as long as none of them runs.
pub(crate) fn time_of_cores(pid: i32) -> Option<u64> {
    // Of linux/posix-timers_types.h: the number of a clock that says how long a process has run.
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    let clock = (!pid << 3) | CPUCLOCK_SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes a time to where there is room for one, or fails.
    let told = unsafe { libc::clock_gettime(clock, &raw mut time) };
    let nanoseconds = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
    (told == 0).then_some(nanoseconds)
}

#[cfg(test)]
mod tests;
