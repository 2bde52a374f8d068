//! Whether the code at the other end is still connected.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::RecvFlags;

/// The other end of a connection.
pub(super) struct Peer(OwnedFd);

impl Peer {
    pub(super) fn of(connection: &impl AsFd) -> io::Result<Peer> {
        Ok(Peer(connection.as_fd().try_clone_to_owned()?))
    }

    /// Whether it has closed the connection, which the runtime may be about to tell us.
    pub(super) fn is_gone(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.0, &mut [0; 1], flags) {
            Ok((_, count)) => count == 0,
            Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }
}
