//! One connection that a [`Door`](super::Door) let in, and who is at its other end: [`Caller`].

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::departure::{Departure, Phase};
use super::flushing::Flush;
use super::identity::Greeting;
use super::{Identity, Patient, Principal, Stream};

/// A client's connection, to be read and written like any other. The [handshake](super::identity), if the
/// client begins with it, is answered with the first read; what is read comes after it.
#[derive(Debug)]
pub struct Caller {
    stream: Patient<Stream>,
    identity: Identity,
    greeting: Option<Box<Greeting>>,
    /// Where clients may stop sending and wait for the reply: by TCP.
    departure: Option<Box<Departure>>,
    /// Where a reply waits until everything is written.
    flush: Option<Flush>,
}

impl Caller {
    pub(super) fn new(
        stream: Patient<Stream>,
        identity: Identity,
        greeting: Option<Box<Greeting>>,
    ) -> Self {
        Caller { stream, identity, greeting, departure: None, flush: None }
    }

    /// From now on replies are told when they are written.
    pub(super) fn tell_written(&mut self, flush: Flush) {
        self.flush = Some(flush);
    }

    /// From now on the client, which has come by TCP, may stop sending without having left.
    pub(super) fn may_stop_sending(&mut self, phase: Phase) {
        self.departure = Some(Box::new(Departure::new(phase)));
    }

    /// The client's address, one of IPv4 as such whatever the listener. A client on a local socket has
    /// 127.0.0.1, without a port.
    pub fn peer(&self) -> SocketAddr {
        self.stream.peer()
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The connection itself.
    pub fn stream(&self) -> &Stream {
        self.stream.get_ref()
    }
}

impl Caller {
    /// Waits until it is known who the client is.
    fn poll_known(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(greeting) = &mut self.greeting {
            let proved = ready!(greeting.poll_write(&mut self.stream, cx))?;
            self.known(proved);
        }
        Poll::Ready(Ok(()))
    }

    fn known(&mut self, proved: bool) {
        self.greeting.take_if(|greeting| greeting.is_over());
        self.identity.tell(if proved { Principal::Cluster } else { Principal::Anyone });
    }
}

impl AsyncRead for Caller {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(greeting) = &mut this.greeting else {
            return Pin::new(&mut this.stream).poll_read(cx, buffer);
        };
        let proved = ready!(greeting.poll_read(&mut this.stream, cx, buffer))?;
        this.known(proved);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Caller {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_known(cx))?;
        if let Some(departure) = &mut self.departure {
            departure.written(bytes);
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_known(cx))?;
        if let Some(departure) = &mut self.departure {
            departure.written(bytes.first().map_or(&[], |first| first));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // A server flushes whenever it is polled.
        if let (Some(departure), Stream::Tcp(tcp)) = (&mut this.departure, this.stream.get_ref()) {
            departure.look(tcp, cx)?;
        }
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        if let Some(flush) = &this.flush {
            flush.written(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
