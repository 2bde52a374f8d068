//! A Unix socket that does not ask to be told when it can be written to: [`Quiet`].
//!
//! Linux tells whoever waits for a Unix socket to take more each time that the other end has read
//! something, even if nobody had to wait. The runtime waits for it always, so each event that we
//! send would wake us once more, just when the code has it. Here that is waited for only when a
//! write had no room.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, recv};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::sys::{watch_readable, watch_writable};

/// The size of the buffers with which hyper begins to read.
const SMALL: usize = 8 << 10;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Quiet {
    socket: AsyncFd<OwnedFd>,
    /// The same socket, while a write waits for room.
    room: Option<AsyncFd<OwnedFd>>,
}

impl Quiet {
    /// Must be called within a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// The system has no room to watch it.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        let socket = watch_readable(OwnedFd::from(stream.into_std()?))?;
        Ok(Quiet { socket, room: None })
    }

    fn poll_sent(
        &mut self,
        cx: &mut Context<'_>,
        send: impl Fn(&OwnedFd) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match send(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                sent => {
                    self.room = None;
                    return Poll::Ready(sent);
                }
            }
            if self.room.is_none() {
                self.room = Some(watch_writable(self.socket.get_ref().try_clone()?)?);
            }
            let Some(room) = &self.room else { continue };
            let mut there = ready!(room.poll_write_ready(cx))?;
            // If it is there no more when we look, another word of it will come.
            there.clear_ready();
        }
    }
}

impl AsFd for Quiet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.get_ref().as_fd()
    }
}

impl AsyncRead for Quiet {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let room = buffer.remaining();
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(cx))?;
            let socket = self.socket.get_ref();
            // What a call brings is mostly small: to copy it costs less than to clear the buffer.
            let received = if room <= SMALL {
                let mut small = [MaybeUninit::uninit(); SMALL];
                recv(socket, &mut small[..room], RecvFlags::empty()).map(|((filled, _), _)| {
                    buffer.put_slice(filled);
                    filled.len()
                })
            } else {
                recv(socket, buffer.initialize_unfilled(), RecvFlags::empty())
                    .map(|(count, _)| count)
                    .inspect(|count| buffer.advance(*count))
            };
            match received.map_err(io::Error::from) {
                Ok(count) => {
                    if 0 < count && count < room {
                        // That was all; to ask again for it to say so would be a system call.
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Quiet {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_sent(cx, |socket| Ok(rustix::io::write(socket, bytes)?))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_sent(cx, |socket| Ok(rustix::io::writev(socket, bytes)?))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = rustix::net::shutdown(self.socket.get_ref(), rustix::net::Shutdown::Write);
        Poll::Ready(ended.map_err(Into::into))
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
