//! Sockets within one machine, for servers whose callers are often there: a message takes a third of
//! the time that TCP needs for it.
//!
//! They are Unix sockets in Linux's abstract namespace: no file, so nothing is left of a server that
//! was killed, and reached from where a port of 127.0.0.1 is reached, the same network namespace; what
//! filters packets or addresses does not see them. A server [listens](listen) under a name of its own,
//! beside its port, and tells it to its callers; where the name leads nowhere, the port is still there.
//!
//! Elsewhere than on Linux there are none.

use std::io;
use std::os::unix::net::SocketAddr;

use tokio::net::{UnixListener, UnixStream};

use super::Quiet;

/// What all names begin with. Nobody who is told a name must be led to another program's socket.
const PREFIX: &str = "openlambda/";

/// The longest name.
const LONGEST: usize = 100;

/// A name for the server at this port, of which `incarnation` tells one start from another.
pub fn name(port: u16, incarnation: u64) -> String {
    format!("{PREFIX}{port}/{incarnation:016x}")
}

/// Listens under a name. Must be called within a tokio runtime with I/O.
///
/// # Errors
///
/// The name is not one of [`name`]'s, or in use, or the system is not Linux.
pub fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&address(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Connects to who listens under a name.
///
/// # Errors
///
/// Nobody does, or too many wait already, or it is another user than root and our own, who may have
/// taken the name of a server that died; or there are no such sockets here.
pub async fn connect(name: &str) -> io::Result<Quiet> {
    let stream = UnixStream::connect_addr(&address(name)?.into()).await?;
    let user = stream.peer_cred()?.uid();
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        let message = format!("user {user} listens at {name:?}; this is not trusted");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Quiet::new(stream)
}

#[cfg(target_os = "linux")]
fn address(name: &str) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;

    if !name.starts_with(PREFIX) || name.len() > LONGEST {
        let message = format!("{name:?} is no name of a local socket of OpenLambda's");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn address(_name: &str) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_is_told_the_name_reaches_the_server_while_it_listens() {
        let name = name(1, u64::from(std::process::id()));
        assert_eq!(connect(&name).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen(&name).unwrap();
        assert_eq!(listen(&name).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let mut client = connect(&name).await.unwrap();
        let (mut served, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        drop(listener);
        assert_eq!(connect(&name).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_name_leads_to_no_other_programs_socket() {
        for name in ["", "containerd", "/run/docker.sock", &format!("{PREFIX}{:0100}", 1)] {
            assert_eq!(connect(name).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
