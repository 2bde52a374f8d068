//! Clients that stop sending: whether they have left, or only have nothing more to say.
//!
//! A client may shut down its sending side after a request and wait for the reply (RFC 9112, 9.6). From here
//! that looks like one that has closed its connection, whose call should give up its place. What tells them
//! apart is only how the other end takes what it is sent: one that is gone resets the connection. So a
//! client of HTTP/1.1 whose reply takes long is sent `100 Continue`, which says nothing and which every client
//! should take (RFC 9110, 15.2).
//!
//! One of HTTP/1.0 takes none. If it is a proxy, which says so in the request's headers, it is taken for one
//! that has left: proxies close the connection when their own client leaves, and do not stop sending before.
//! Others of HTTP/1.0 keep their places until the reply.
//!
//! Once the reply has begun there is nothing that could be sent between its parts: a client that stops
//! sending then has left. One that had stopped before has left if it resets the connection when the reply
//! reaches it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Version};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::wire;

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
/// The same, and it is a proxy.
const RELAYED_CALL_OF_1_0: u8 = 3;
const REPLY: u8 = 4;
/// The connection has left HTTP, and what goes on with it looks after the client.
const OVER: u8 = 5;

impl Phase {
    /// A call is under way.
    pub(super) fn call<B>(&self, request: &Request<B>) {
        let phase = match request.version() >= Version::HTTP_11 {
            true => CALL,
            false if wire::is_relayed(request.headers()) => RELAYED_CALL_OF_1_0,
            false => CALL_OF_1_0,
        };
        self.0.store(phase, Ordering::Relaxed);
    }

    /// The connection goes on in another protocol.
    pub(super) fn over(&self) {
        self.0.store(OVER, Ordering::Relaxed);
    }
}

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
    /// In this call.
    asked: bool,
}

impl Departure {
    pub(super) fn new(phase: Phase) -> Self {
        Departure { phase, silent: None, spoke: false }
    }

    /// Something is written to the client: the reply, unless it is told to go on.
    pub(super) fn written(&mut self, bytes: &[u8]) {
        if !bytes.starts_with(b"HTTP/1.1 100 ") && self.phase.0.load(Ordering::Relaxed) != OVER {
            self.phase.0.store(REPLY, Ordering::Relaxed);
            if let Some(silent) = &mut self.silent {
                silent.asked = false;
            }
        }
    }

    /// Looks after the client, each time that the connection is polled.
    ///
    /// # Errors
    ///
    /// The client has left.
    pub(super) fn look(&mut self, tcp: &TcpStream, cx: &mut Context<'_>) -> io::Result<()> {
        let phase = self.phase.0.load(Ordering::Relaxed);
        if matches!(phase, NO_REQUEST | OVER) {
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
                Poll::Ready(Ok(0)) if phase == RELAYED_CALL_OF_1_0 || (phase == REPLY && spoke) => {
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const REPLY_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

    /// A connection whose client's call is under way: its watch, our end, and the client's.
    async fn watched() -> (Departure, TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        ours.writable().await.unwrap();
        let departure = Departure::new(Phase::default());
        departure.phase.0.store(CALL, Ordering::Relaxed);
        (departure, ours, theirs)
    }

    /// Looks after the client until it has left.
    async fn left(departure: &mut Departure, ours: &TcpStream) -> io::Error {
        let looks = poll_fn(|cx| match departure.look(ours, cx) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(error),
        });
        let found = tokio::time::timeout(Duration::from_secs(60), looks).await;
        found.expect("it is found out that it has left")
    }

    #[tokio::test]
    async fn a_client_that_has_left_is_found_out_when_its_reply_has_begun_meanwhile() {
        let (mut departure, ours, theirs) = watched().await;
        drop(theirs);
        poll_fn(|cx| {
            departure.look(&ours, cx).unwrap();
            if departure.silent.is_some() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        departure.written(REPLY_HEAD);
        ours.try_write(REPLY_HEAD).unwrap();
        left(&mut departure, &ours).await;
    }

    #[tokio::test]
    async fn a_client_that_stops_sending_is_asked_in_each_of_its_calls() {
        let (mut departure, ours, mut theirs) = watched().await;
        theirs.shutdown().await.unwrap();
        for _ in 0..2 {
            let mut question = [0; 25];
            tokio::select! {
                error = left(&mut departure, &ours) => panic!("it is there: {error}"),
                read = theirs.read_exact(&mut question) => assert_eq!(read.unwrap(), 25),
            }
            assert_eq!(&question, b"HTTP/1.1 100 Continue\r\n\r\n");
            departure.written(REPLY_HEAD);
            departure.phase.0.store(CALL, Ordering::Relaxed);
        }
        drop(theirs);
        left(&mut departure, &ours).await;
    }
}
