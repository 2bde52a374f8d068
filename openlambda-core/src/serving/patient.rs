//! One connection of a server, with a bound on how slow its client may be: [`Patient`].

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

/// A connection that is counted while it lives. A read fails when the client has sent nothing at all for
/// too long after it connected, a write when the client reads nothing for too long.
///
/// While a client reads nothing, a server does not poll the rest of its reply. So a time-out of the reply
/// never fires, and without this bound the call would count as in flight for as long as the client
/// likes. After the first byte the protocol's own time-outs bound reads.
#[derive(Debug)]
pub(super) struct Patient<T> {
    stream: T,
    peer: SocketAddr,
    /// Runs until the first byte.
    greeting: Option<Pin<Box<Sleep>>>,
    limit: Duration,
    /// Runs while a write waits.
    waits: Option<Pin<Box<Sleep>>>,
    /// Given back by Drop.
    _place: Option<OwnedSemaphorePermit>,
}

impl<T> Patient<T> {
    /// `greeting`: how long the client may send nothing at first; `write`: how long it may read nothing;
    /// [`Duration::MAX`] means for ever. Must be called within a tokio runtime with time.
    pub(super) fn new(
        stream: T,
        peer: SocketAddr,
        greeting: Duration,
        write: Duration,
        place: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let greeting = (greeting < Duration::MAX).then(|| Box::pin(tokio::time::sleep(greeting)));
        Patient { stream, peer, greeting, limit: write, waits: None, _place: place }
    }

    /// The client's address. A client on a local socket has 127.0.0.1, without a port.
    pub(super) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The connection itself.
    pub(super) fn get_ref(&self) -> &T {
        &self.stream
    }

    fn bounded<R>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.waits = None;
            return written;
        }
        let limit = self.limit;
        if limit == Duration::MAX {
            return Poll::Pending;
        }
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(waits.as_mut().poll(cx));
        Poll::Ready(Err(timed_out(format!("the client read nothing for {limit:?}"))))
    }
}

fn timed_out(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, message)
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let Some(greeting) = &mut self.greeting else { return read };
        if read.is_ready() {
            self.greeting = None;
            return read;
        }
        ready!(greeting.as_mut().poll(cx));
        Poll::Ready(Err(timed_out("the client connected and sent nothing".to_owned())))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
