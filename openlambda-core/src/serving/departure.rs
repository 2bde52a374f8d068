//! Clients that stop sending: whether they have left, or only have nothing more to say.
//!
//! A client may shut down its sending side after a request and wait for the reply (RFC 9112, 9.6). From here
//! that looks like one that has closed its connection, whose call should give up its place. What tells them
//! apart is only how the other end takes what it is sent: one that is gone resets the connection. So a
//! client of HTTP/1.1 whose reply takes long is sent `100 Continue`, which says nothing and which every client
//! has to take (RFC 9110, 15.2).
//!
//! Once the reply has begun there is nothing that could be sent between its parts: a client that stops
//! sending then has left.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::flushing::{Answering, Flush, Flushing};

/// How long after a client's last word it is asked, and how long it may take to reset the connection.
const ASK_AFTER: Duration = Duration::from_secs(1);
const LOOK_AFTER: Duration = Duration::from_millis(200);

/// What is going on with a connection's request.
#[derive(Clone, Debug, Default)]
pub(super) struct Phase(Arc<AtomicU8>);

const NO_REQUEST: u8 = 0;
/// A call is under way, and its client takes interim replies.
const CALL: u8 = 1;
/// The same, and it takes none.
const CALL_OF_1_0: u8 = 2;
const REPLY: u8 = 3;

/// Watches one connection.
#[derive(Debug)]
pub(super) struct Departure {
    phase: Phase,
    /// The client has sent its last byte while its call was under way.
    silent: Option<Silent>,
    /// It had not yet when the reply had begun.
    spoke: bool,
}

#[derive(Debug)]
struct Silent {
    timer: Pin<Box<Sleep>>,
    asked: bool,
}

impl Departure {
    pub(super) fn new(phase: Phase) -> Self {
        Departure { phase, silent: None, spoke: false }
    }

    /// Something is written to the client: the reply, unless it is told to go on.
    pub(super) fn written(&self, bytes: &[u8]) {
        if !bytes.starts_with(b"HTTP/1.1 100 ") {
            self.phase.0.store(REPLY, Ordering::Relaxed);
        }
    }

    /// Looks after the client, each time that the connection is polled.
    ///
    /// # Errors
    ///
    /// The client has left.
    pub(super) fn look(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> io::Result<()> {
        let phase = self.phase.0.load(Ordering::Relaxed);
        if phase == NO_REQUEST || (phase == REPLY && self.silent.is_some()) {
            return Ok(());
        }
        let spoke = std::mem::replace(&mut self.spoke, false);
        loop {
            if let Some(silent) = &mut self.silent {
                if silent.timer.as_mut().poll(cx).is_pending() {
                    return Ok(());
                }
                let ask = !silent.asked && phase == CALL;
                if ask && tcp.try_write(b"HTTP/1.1 100 Continue\r\n\r\n").is_err() {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                silent.asked |= ask;
                let next = if ask { LOOK_AFTER } else { ASK_AFTER };
                silent.timer.as_mut().reset(Instant::now() + next);
                if ask {
                    continue;
                }
                // A read tells of the end before it tells of a reset.
                if let Some(error) = tcp.take_error()? {
                    return Err(error);
                }
            }
            let mut byte = [0];
            match tcp.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
                Poll::Pending | Poll::Ready(Ok(1..)) => {
                    self.spoke = phase == REPLY;
                    return Ok(());
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Ready(Ok(0)) if phase == REPLY && spoke => {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Poll::Ready(Ok(0)) if self.silent.is_none() => {
                    let timer = Box::pin(tokio::time::sleep(ASK_AFTER));
                    self.silent = Some(Silent { timer, asked: false });
                }
                Poll::Ready(Ok(0)) => {}
            }
        }
    }
}

/// A connection's service, which tells what is going on.
#[derive(Debug)]
pub(super) struct Told<S> {
    pub(super) service: S,
    pub(super) phase: Phase,
    pub(super) flush: Flush,
}

impl<S, B> Service<Request<Incoming>> for Told<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    B: Body,
{
    type Response = Response<Flushing<B>>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let phase = if request.version() >= Version::HTTP_11 { CALL } else { CALL_OF_1_0 };
        self.phase.0.store(phase, Ordering::Relaxed);
        Answering { reply: self.service.call(request), flush: self.flush.clone() }
    }
}
