//! Connects a new container to the worker: exchanges descriptors with `ol-init`, or opens a listener in
//! the container's network from outside.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// Where `ol-init` finds the Runtime API, or opens it.
pub(super) const API: &str = "127.0.0.1:9001";

/// Waits for `ol-init` of one container.
#[derive(Debug)]
pub(super) struct Handshake {
    listener: UnixListener,
    path: PathBuf,
}

/// What came of a handshake.
#[derive(Debug)]
pub(super) struct Greeting {
    /// The Runtime API's listener, if the container has opened one.
    pub(super) listener: Option<OwnedFd>,
    /// The container's first process, as the machine numbers it, if it can be told.
    pub(super) pid: Option<i32>,
    /// Says why the program could not be run; ends without a word when it could.
    pub(super) failed: std::os::unix::net::UnixStream,
}

impl Handshake {
    /// Listens in the container's folder.
    ///
    /// # Errors
    ///
    /// No socket can be made there.
    pub(super) fn prepare(folder: &Path) -> io::Result<Self> {
        Ok(Handshake { listener: listen_in(folder, "init.sock")?, path: folder.join("init.sock") })
    }

    /// Gives the first that comes its standard output and error. Only `ol-init` can be first:
    /// the function's own code does not run before.
    ///
    /// # Errors
    ///
    /// It broke off.
    pub(super) async fn greet(
        self,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
    ) -> io::Result<Greeting> {
        let (stream, _) = self.listener.accept().await?;
        let _ = fs::remove_file(&self.path);
        // A process of a namespace that we cannot see has no number.
        let pid = stream.peer_cred()?.pid().filter(|pid| *pid > 0);
        let listener = stream.async_io(Interest::READABLE, || receive(&stream)).await?;
        stream.async_io(Interest::WRITABLE, || send(&stream, &[stdout, stderr])).await?;
        Ok(Greeting { listener, pid, failed: stream.into_std()? })
    }
}

/// Why the program could not be run, if that has been said.
pub(super) fn why_failed(mut failed: &std::os::unix::net::UnixStream) -> Option<String> {
    let mut why = String::new();
    // It does not block: what has been said is there when the container has ended.
    let _ = failed.read_to_string(&mut why);
    (!why.is_empty()).then_some(why)
}

/// A socket that every process that sees the folder may connect to: only its container sees it.
pub(super) fn listen_in(folder: &Path, name: &str) -> io::Result<UnixListener> {
    // A socket's address has little room: bind through a descriptor of the folder.
    let opened = File::open(folder)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()))?;
    fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Opens the Runtime API's listener in the network of the process.
///
/// # Errors
///
/// Entering another network needs root.
pub(super) async fn listen_in_network_of(pid: i32) -> io::Result<OwnedFd> {
    let (done, opened) = tokio::sync::oneshot::channel();
    // A thread of its own, which ends there: it must do nothing else in that network.
    std::thread::Builder::new().name("network".to_owned()).spawn(move || {
        let open = || {
            let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpListener::bind(API)
        };
        let _ = done.send(open());
    })?;
    let listener = opened.await.map_err(io::Error::other)??;
    listener.set_nonblocking(true)?;
    Ok(listener.into())
}

fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    if let Some(listener) = &rights {
        rustix::io::ioctl_fionbio(listener, true)?;
    }
    Ok(rights)
}

fn send(stream: &UnixStream, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(descriptors));
    sendmsg(stream, &[IoSlice::new(b"1")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
