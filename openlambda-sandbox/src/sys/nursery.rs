//! The worker's end of the nursery, the small process that makes sandboxes.
//!
//! [`Nursery::launch`] starts the program from memory (`nursery/main.rs` says why it is a program of its
//! own); [`Nursery::start`] makes a sandbox's first process, and [`Nursery::network`] a network namespace
//! with its listeners. When the worker ends, also by kill −9, the nursery ends, and every process that it
//! made.

#[allow(dead_code, reason = "each of the two programs writes what the other reads")]
mod message;

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use self::message::{Answer, Setup};
use super::{Child, CommandSpec, Output, Signal, SpawnError, Spawner};

/// The program, as `build.rs` compiled it.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nursery"));

/// The most descriptors beside one message.
const MOST_DESCRIPTORS: usize = 16;

/// The most bytes of one message: the room that the nursery has for it. One that is cut would end it,
/// and with it everybody else's sandboxes.
const MOST_BYTES: usize = 4 << 20;

/// The port of the Runtime API inside of each network namespace.
pub const API_PORT: u16 = 9001;
/// The abstract Unix socket of the same, as a bootstrap's variable names it.
pub const API_SOCKET: &str = "@openlambda-runtime";

/// Where programs look for their name servers; a mount's target may be this file.
pub const RESOLVER: &str = "/etc/resolv.conf";

/// A nursery that runs. Shared by all sandboxes of a factory.
#[derive(Debug)]
pub struct Nursery {
    id: u64,
    shared: Arc<Shared>,
    /// Held by the one who waits for a network.
    networks: tokio::sync::Mutex<AsyncFd<OwnedFd>>,
    process: Child,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    next_id: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    gone: bool,
    starting: BTreeMap<u64, oneshot::Sender<Result<Newborn, NurseryError>>>,
    /// By process id.
    living: BTreeMap<i32, watch::Sender<Option<ExitStatus>>>,
}

/// What a nursery is told at its start.
#[derive(Clone, Debug, Default)]
pub struct NurserySetup {
    /// Whether it must make a user namespace of its own, because we are an ordinary user.
    pub rootless: bool,
    /// Whether no cgroup bounds memory, so that none may be made that cannot be seen from outside.
    pub watched: bool,
    /// Folders of `/usr` in whose place sandboxes see empty ones: where Python packages are installed, say.
    pub hidden: Vec<String>,
    /// Files that all sandboxes find below `/var/runtime`: name, mode, content.
    pub runtime_files: Vec<(String, u32, Vec<u8>)>,
    /// The seccomp filter of all sandboxes, as an array of `struct sock_filter`.
    pub filter: Vec<u8>,
}

/// One sandbox: data that says what it is born with.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// Folders of the machine that it sees: source, absolute target, whether it may write. The target
    /// may be the file [`RESOLVER`], if the machine has it, and then the source is a file.
    pub mounts: Vec<(String, String, bool)>,
    /// The size of its `/tmp`, bytes.
    pub tmp_bytes: u64,
    /// The size of its `/dev/shm`, bytes.
    pub shm_bytes: u64,
    /// Who it is on the machine: a user and group of this number; 0 leaves it the nursery's own.
    pub outside_id: u32,
    /// Who it is to itself.
    pub inside_id: u32,
    /// Whether it gets a user namespace of its own.
    pub user_namespace: bool,
    /// Limits of each of its processes: resource (`RLIMIT_…`), value.
    pub limits: Vec<(u32, u64)>,
    /// Its working folder.
    pub folder: String,
    /// The program, as it sees it.
    pub program: String,
    /// The arguments, the program's name first.
    pub arguments: Vec<String>,
    /// The environment, `KEY=value`.
    pub environment: Vec<String>,
}

/// The descriptors that a newborn gets.
#[derive(Debug)]
pub struct Belongings<'a> {
    /// Its standard output.
    pub stdout: BorrowedFd<'a>,
    /// Its standard error.
    pub stderr: BorrowedFd<'a>,
    /// Where it writes the step that failed, before its program runs.
    pub errors: BorrowedFd<'a>,
    /// Its network namespace; `None`: the machine's own.
    pub network: Option<BorrowedFd<'a>>,
    /// The cgroup files to join: `tasks` of each hierarchy of version 1, or the one folder of version 2.
    pub cgroups: Vec<BorrowedFd<'a>>,
    /// Whether that is version 2.
    pub cgroup_v2: bool,
}

/// A process that was born; Drop kills it and all that is in its namespace.
#[derive(Debug)]
pub struct Newborn {
    pidfd: OwnedFd,
    pid: i32,
    ended: watch::Receiver<Option<ExitStatus>>,
}

/// A network namespace with the listeners of the Runtime API in it.
#[derive(Debug)]
pub struct NetworkNamespace {
    /// The namespace.
    pub namespace: OwnedFd,
    /// At `127.0.0.1:9001` in it; does not block.
    pub tcp: OwnedFd,
    /// At the abstract address [`API_SOCKET`] in it; does not block.
    pub unix: OwnedFd,
    /// Asks what waits in its sockets (sock_diag(7)).
    pub diag: OwnedFd,
}

/// How a network namespace is connected with the machine's: a pair of devices, and the machine as the
/// router between the sandbox and the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What the machine's end is called there; 15 bytes at most.
    pub name: String,
    /// The address of the machine's end.
    pub machine: Ipv4Addr,
    /// The address of the sandbox's end, `eth0`: the other one of the two in their /31.
    pub sandbox: Ipv4Addr,
}

/// What went wrong in a nursery.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NurseryError {
    /// Its program cannot be run.
    #[error("cannot start the nursery")]
    Spawn(#[source] SpawnError),
    /// It cannot be spoken with.
    #[error("the nursery is gone")]
    Gone(#[source] io::Error),
    /// The kernel refused a step.
    #[error("{step}: {}", io::Error::from_raw_os_error(*errno))]
    Refused {
        /// The step.
        step: String,
        /// What the kernel said.
        errno: i32,
    },
}

fn gone(why: impl Into<io::Error>) -> NurseryError {
    NurseryError::Gone(why.into())
}

fn too_long() -> NurseryError {
    refused(("pass arguments and environment".to_owned(), libc::E2BIG))
}

fn refused((step, errno): (String, i32)) -> NurseryError {
    NurseryError::Refused { step, errno }
}

impl Nursery {
    /// Starts a nursery and waits until it is ready. Must be called within a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// [`NurseryError::Refused`] names what this machine does not let it do.
    pub async fn launch(
        spawner: &Spawner,
        mark: &str,
        setup: NurserySetup,
    ) -> Result<Arc<Nursery>, NurseryError> {
        let pair = || {
            let flags = SocketFlags::CLOEXEC;
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(gone)
        };
        let ((ours, theirs), (our_networks, their_networks)) = (pair()?, pair()?);
        for socket in [&ours, &our_networks] {
            rustix::io::ioctl_fionbio(socket, true).map_err(gone)?;
        }
        for socket in [&ours, &theirs] {
            // A bundle's environment, or our bootstraps, are one message.
            let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, MOST_BYTES);
        }
        let program = program().map_err(gone)?;
        let mut command = CommandSpec::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg(theirs.as_raw_fd().to_string())
            .arg(their_networks.as_raw_fd().to_string())
            .env(super::MARK, format!("{mark}/nursery"));
        command.descriptors = vec![program, theirs, their_networks];
        command.stderr = Output::Inherit;
        let process = spawner.spawn(command).await.map_err(NurseryError::Spawn)?;
        let watch = |fd| super::watch(fd, Interest::READABLE | Interest::WRITABLE);
        let shared = Arc::new(Shared {
            socket: watch(ours).map_err(gone)?,
            next_id: AtomicU64::new(1),
            state: Mutex::default(),
        });
        let setup = Setup {
            rootless: setup.rootless,
            watched: setup.watched,
            hidden: setup.hidden,
            runtime_files: setup.runtime_files,
            filter: setup.filter,
        };
        send(&shared.socket, &setup.write(), &[]).await.map_err(gone)?;
        match receive(&shared.socket).await.map_err(gone)? {
            (Answer::Ready(ready), _) => ready.map_err(refused)?,
            _ => return Err(gone(io::ErrorKind::InvalidData)),
        }
        tokio::spawn(listen(Arc::clone(&shared)));
        let networks = tokio::sync::Mutex::new(watch(our_networks).map_err(gone)?);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Nursery { id, shared, networks, process }))
    }

    /// Tells it from every other nursery of this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Kills it, and with it all that was born there, and waits until its own processes are gone.
    pub async fn end(&self) {
        self.process.kill_group();
        self.process.wait().await;
        let networks = self.networks.lock().await;
        // The other end is the network maker's alone.
        while receive(&networks).await.is_ok() {}
    }

    /// Whether it lives.
    pub fn is_alive(&self) -> bool {
        !self.shared.state.lock().gone
    }

    /// Makes a newborn. Dropping the future kills it.
    ///
    /// # Errors
    ///
    /// [`NurseryError`]. What goes wrong after the clone is told through [`Belongings::errors`], and
    /// the newborn ends with status 125.
    pub async fn start(
        &self,
        recipe: Recipe,
        belongings: &Belongings<'_>,
    ) -> Result<Newborn, NurseryError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let start = message::Start {
            id,
            // What stands in /etc is a file, and is there.
            folders: recipe
                .mounts
                .iter()
                .map(|(_, target, _)| target.clone())
                .filter(|target| target != RESOLVER)
                .collect(),
            mounts: recipe.mounts,
            tmp_bytes: recipe.tmp_bytes,
            shm_bytes: recipe.shm_bytes,
            outside_id: recipe.outside_id,
            inside_id: recipe.inside_id,
            has_network: belongings.network.is_some(),
            cgroup_v2: belongings.cgroup_v2,
            user_namespace: recipe.user_namespace,
            limits: recipe.limits,
            folder: recipe.folder,
            program: recipe.program,
            arguments: recipe.arguments,
            environment: recipe.environment,
        };
        let message = start.write();
        if message.len() > MOST_BYTES {
            return Err(too_long());
        }
        let mut descriptors = vec![belongings.stdout, belongings.stderr, belongings.errors];
        descriptors.extend(belongings.network);
        descriptors.extend(&belongings.cgroups);
        let (sender, born) = oneshot::channel();
        {
            let mut state = self.shared.state.lock();
            if state.gone {
                return Err(gone(io::ErrorKind::BrokenPipe));
            }
            state.starting.insert(id, sender);
        }
        if let Err(error) = send(&self.shared.socket, &message, &descriptors).await {
            self.shared.state.lock().starting.remove(&id);
            return Err(match error.raw_os_error() {
                Some(libc::EMSGSIZE) => too_long(),
                _ => gone(error),
            });
        }
        born.await.unwrap_or_else(|_| Err(gone(io::ErrorKind::BrokenPipe)))
    }

    /// Makes a network namespace; one after another. A link takes the right to administer the machine's
    /// network, which an ordinary user has not.
    ///
    /// # Errors
    ///
    /// [`NurseryError`].
    pub async fn network(&self, link: Option<&Link>) -> Result<NetworkNamespace, NurseryError> {
        let networks = self.networks.lock().await;
        let link = link.map(|link| message::Link {
            name: link.name.clone(),
            machine: link.machine.octets(),
            sandbox: link.sandbox.octets(),
        });
        let request = message::NetworkRequest { link };
        send(&networks, &request.write(), &[]).await.map_err(gone)?;
        let (answer, descriptors) = receive(&networks).await.map_err(gone)?;
        let Answer::Network(made) = answer else { return Err(gone(io::ErrorKind::InvalidData)) };
        made.map_err(refused)?;
        let descriptors: Result<[OwnedFd; 4], _> = descriptors.try_into();
        let descriptors = descriptors.map_err(|_| gone(io::ErrorKind::InvalidData))?;
        let [namespace, tcp, unix, diag] = descriptors;
        Ok(NetworkNamespace { namespace, tcp, unix, diag })
    }
}

impl Newborn {
    /// Its process id on the machine. Stale once it has ended.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it and all in its process namespace have ended. `None`: the nursery is gone, so it
    /// is being killed, and its exit status is not known; wait for [`gone`](Self::gone).
    pub async fn wait(&self) -> Option<ExitStatus> {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await;
        status.ok().and_then(|status| *status)
    }

    /// Kills it and waits until it has ended, without its nursery.
    pub async fn gone(&self) -> ExitStatus {
        self.kill();
        if let Ok(ended) = self.pidfd.try_clone().and_then(super::watch_readable) {
            let _ = ended.readable().await;
        }
        ExitStatus::from_raw(Signal::KILL.as_raw())
    }

    /// It and all in its process namespace, whatever they have made of their environments. Reads
    /// `/proc`, so it blocks for a few milliseconds; needs the right to look at them.
    pub fn processes(&self) -> Vec<(Pid, OwnedFd)> {
        let place = |pid: Pid| {
            let place = format!("/proc/{}/ns/pid", pid.as_raw_nonzero());
            std::fs::metadata(place).ok().map(|metadata| metadata.ino())
        };
        let own = Pid::from_raw(self.pid).and_then(place);
        let Some(own) = own else {
            // For a moment, until its program runs, an ordinary user may not look into the first one.
            let pids = self.tree().into_iter().filter_map(Pid::from_raw);
            let open = |pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?));
            let found: Vec<_> = pids.filter_map(open).collect();
            return if self.lives() { found } else { Vec::new() };
        };
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        // What was read may be of others who had the ids by then, unless it lives still.
        if !self.lives() {
            return Vec::new();
        }
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let beside = |pid: Pid| {
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
            (place(pid)? == own).then_some((pid, pidfd))
        };
        let found: Vec<_> = pids.filter_map(Pid::from_raw).filter_map(beside).collect();
        if self.lives() { found } else { Vec::new() }
    }

    /// The process ids of it and its descendants, its orphans among them, who are its children. Reads
    /// little where the kernel lists children; else all of `/proc`.
    pub(crate) fn tree(&self) -> Vec<i32> {
        let mut tree = vec![self.pid];
        let mut next = 0;
        while let Some(pid) = tree.get(next).copied() {
            next += 1;
            let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for thread in threads.flatten() {
                match std::fs::read_to_string(thread.path().join("children")) {
                    Ok(children) => {
                        tree.extend(
                            children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()),
                        );
                    }
                    Err(error)
                        if error.kind() == io::ErrorKind::NotFound && thread.path().exists() =>
                    {
                        let all = self.processes();
                        return all.iter().map(|(pid, _)| pid.as_raw_nonzero().get()).collect();
                    }
                    Err(_) => {}
                }
            }
        }
        tree
    }

    /// How many threads its processes have, those that have ended and are not waited for as one each.
    pub(crate) fn tasks(&self) -> u32 {
        let threads =
            |pid| std::fs::read_dir(format!("/proc/{pid}/task")).map_or(1, Iterator::count);
        self.tree().into_iter().map(threads).sum::<usize>() as u32
    }

    /// Whether it has not ended.
    pub(crate) fn lives(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut ended, Some(&now)), Ok(0))
    }

    /// Kills it, and by the kernel's hand all in its process namespace.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Passes on what the nursery tells, until it is gone.
async fn listen(shared: Arc<Shared>) {
    loop {
        let (answer, mut descriptors) = match receive(&shared.socket).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "the nursery is gone");
                break;
            }
        };
        let mut state = shared.state.lock();
        match answer {
            Answer::Started { id, failed: Some(failed), .. } => {
                if let Some(waiting) = state.starting.remove(&id) {
                    let _ = waiting.send(Err(refused(failed)));
                }
            }
            Answer::Started { id, pid, failed: None } => {
                let Some(pidfd) = descriptors.pop() else { break };
                let (sender, ended) = watch::channel(None);
                state.living.insert(pid, sender);
                let newborn = Newborn { pidfd, pid, ended };
                // When nobody waits for it any more, Drop kills it.
                let waiting = state.starting.remove(&id);
                drop(waiting.map(|waiting| waiting.send(Ok(newborn))));
            }
            Answer::Ended { pid, status } => {
                if let Some(ended) = state.living.remove(&pid) {
                    ended.send_replace(Some(ExitStatus::from_raw(status)));
                }
            }
            Answer::Ready(_) | Answer::Network(_) => {}
        }
    }
    let mut state = shared.state.lock();
    state.gone = true;
    state.starting.clear();
    state.living.clear();
}

/// The program in a file that has no name.
fn program() -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag and let any such file be run.
    let memory = memfd_create("openlambda-nursery", flags | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("openlambda-nursery", flags))?;
    let mut rest = PROGRAM;
    while !rest.is_empty() {
        let count = rustix::io::write(&memory, rest)?;
        rest = &rest[count..];
    }
    // A function that names /proc/self/exe as a script's interpreter gets hold of the file.
    fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    // A program whose file is open for writing cannot be run.
    let read_only = rustix::fs::open(
        format!("/proc/self/fd/{}", memory.as_raw_fd()),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    Ok(read_only)
}

async fn send(
    socket: &AsyncFd<OwnedFd>,
    data: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        let sent = ready.try_io(|socket| {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let data = [IoSlice::new(data)];
            Ok(sendmsg(socket.as_fd(), &data, &mut control, SendFlags::NOSIGNAL)?)
        });
        match sent {
            Ok(sent) => return sent.map(drop),
            Err(_would_block) => {}
        }
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<(Answer, Vec<OwnedFd>)> {
    loop {
        let mut ready = socket.readable().await?;
        let received = ready.try_io(|socket| {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut data = [0; 1024];
            let received = recvmsg(
                socket.as_fd(),
                &mut [IoSliceMut::new(&mut data)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            let length = received.bytes;
            let descriptors: Vec<OwnedFd> = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                    _ => None,
                })
                .flatten()
                .collect();
            // Half of a message says something else.
            if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok((Answer::read(&data[..length])?, descriptors))
        });
        match received {
            Ok(received) => return received,
            Err(_would_block) => {}
        }
    }
}
