//! A Unix socket that registers for events of reading alone, not of writing: [`Quiet`].

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// A Unix socket for messages in both directions.
///
/// Each time that the other end of a Unix socket has read something, Linux wakes every task that is
/// registered for writing, even if no write had to wait. tokio's own type is always registered, so each
/// message that we send would wake us once more, just when the other end has it. This type registers for
/// writing only when a write had no room, with a second descriptor for that time.
#[derive(Debug)]
pub struct Quiet {
    /// The socket, watched for reads alone, which no other type of tokio's is. It reads anything.
    socket: pipe::Receiver,
    /// The same socket, while a write waits for room.
    room: Option<pipe::Sender>,
}

impl Quiet {
    /// Must be called within a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// The system has no room to watch it.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        // Nothing to be checked: it is open for both, and does not block.
        let socket = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(stream.into_std()?))?;
        Ok(Quiet { socket, room: None })
    }

    fn poll_sent(
        &mut self,
        cx: &mut Context<'_>,
        send: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<usize>,
        wait: impl Fn(Pin<&mut pipe::Sender>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.room.is_none() {
            match rustix::io::retry_on_intr(|| send(self.socket.as_fd())) {
                Err(rustix::io::Errno::AGAIN) => {}
                sent => return Poll::Ready(sent.map_err(Into::into)),
            }
        }
        let room = match &mut self.room {
            Some(room) => room,
            none => {
                let socket = self.socket.as_fd().try_clone_to_owned()?;
                none.insert(pipe::Sender::from_owned_fd_unchecked(socket)?)
            }
        };
        let sent = ready!(wait(Pin::new(room), cx));
        self.room = None;
        Poll::Ready(sent)
    }
}

impl AsFd for Quiet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncRead for Quiet {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let send = |socket: BorrowedFd<'_>| rustix::io::write(socket, bytes);
        self.poll_sent(cx, send, |room, cx| room.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let send = |socket: BorrowedFd<'_>| rustix::io::writev(socket, bytes);
        self.poll_sent(cx, send, |room, cx| room.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&self.socket, Shutdown::Write).map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn pair() -> (Quiet, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Quiet::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn everything_arrives_both_ways_whatever_waits_for_whom() {
        let (ours, theirs) = pair();
        let sent: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (mut reads, mut writes) = tokio::io::split(ours);
        let (mut their_reads, mut their_writes) = tokio::io::split(theirs);
        // Far more than a socket holds, so that each side has to wait for the other.
        let (out, back) = (sent.clone(), sent.clone());
        let writer = tokio::spawn(async move {
            writes.write_all(&out).await.unwrap();
            writes.shutdown().await.unwrap();
        });
        let answerer = tokio::spawn(async move {
            their_writes.write_all(&back).await.unwrap();
            their_writes.shutdown().await.unwrap();
        });
        let (mut received, mut answered) = (Vec::new(), Vec::new());
        tokio::join!(async { their_reads.read_to_end(&mut received).await.unwrap() }, async {
            reads.read_to_end(&mut answered).await.unwrap()
        },);
        writer.await.unwrap();
        answerer.await.unwrap();
        assert!(received == sent && answered == sent);
    }

    #[tokio::test]
    async fn a_closed_end_is_seen_by_reads_and_writes() {
        let (mut ours, mut theirs) = pair();
        theirs.write_all(b"last").await.unwrap();
        drop(theirs);
        let mut rest = String::new();
        ours.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "last");
        assert_eq!(ours.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_write_that_waits_ends_with_the_other_end() {
        let (mut ours, theirs) = pair();
        let waits = tokio::spawn(async move { ours.write_all(&vec![0; 10_000_000]).await });
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        assert!(!waits.is_finished());
        drop(theirs);
        waits.await.unwrap().unwrap_err();
    }
}
