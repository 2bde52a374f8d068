//! Sockets within one machine, for servers whose callers are often on it: a message takes a third of
//! the time that it takes over TCP.
//!
//! They are Unix sockets in Linux's abstract namespace. They have no file, so a killed server leaves
//! nothing behind. They can be reached from the same network namespace, as a port of 127.0.0.1 can;
//! filters of packets or addresses do not apply to them. A server [listens](listen) beside its port
//! under a name made of the port and of its incarnation, which tells one start from another. So a
//! caller that knows both can derive the name; where no server answers by it, the port still does.
//!
//! Other systems than Linux have no such sockets.

use std::io;
use std::os::unix::net::SocketAddr;

use tokio::net::{UnixListener, UnixStream};

use super::Quiet;

/// Listens beside a port. Must be called within a tokio runtime with I/O.
///
/// # Errors
///
/// The name is in use, or the system is not Linux.
pub fn listen(port: u16, incarnation: u64) -> io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&address(port, incarnation)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

/// Connects to the server that listens beside a port.
///
/// # Errors
///
/// No server listens, or too many clients wait already, or the listener is another user than root and our
/// own, who may have taken the name first or after a server died; or the system has no such sockets.
pub async fn connect(port: u16, incarnation: u64) -> io::Result<Quiet> {
    let stream = UnixStream::connect_addr(&address(port, incarnation)?.into()).await?;
    let user = stream.peer_cred()?.uid();
    if user != 0 && user != rustix::process::geteuid().as_raw() {
        let message = format!("user {user} listens beside port {port}, and is not trusted");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Quiet::new(stream)
}

#[cfg(target_os = "linux")]
fn address(port: u16, incarnation: u64) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;

    SocketAddr::from_abstract_name(format!("openlambda/{port}/{incarnation:016x}"))
}

#[cfg(not(target_os = "linux"))]
fn address(_port: u16, _incarnation: u64) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_server_is_reached_while_it_listens_and_no_other_start_of_it() {
        let incarnation = u64::from(std::process::id());
        let refused = async |port, incarnation| {
            let error = connect(port, incarnation).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        };
        refused(1, incarnation).await;
        let listener = listen(1, incarnation).unwrap();
        assert_eq!(listen(1, incarnation).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        refused(1, incarnation + (1 << 32)).await;
        refused(2, incarnation).await;
        let mut client = connect(1, incarnation).await.unwrap();
        let (mut served, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        drop(listener);
        refused(1, incarnation).await;
    }
}
