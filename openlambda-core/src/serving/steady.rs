//! Connections whose task does not wake itself: [`Steady`] and [`SteadyBody`].
//!
//! When the last piece of a body is taken, hyper wakes the task that reads the connection, because there
//! is room for another piece now. But there is no other piece, and the woken task is mostly the one that
//! took the last: after writing the call's next message it would be polled again for nothing, while the
//! reader of that message may wait for this very processor.
//!
//! So [`Steady`] gives a connection's future its own waker, and a [`SteadyBody`] suppresses such a wake
//! if the body has no more pieces.
//!
//! Why no task needs the wake: hyper knows the body's length (if not, the end of the body is not known
//! and the wake passes), lets go of the body when it has read the last byte, and waits for what comes
//! next in the same poll. The first wake while such a body is polled comes from its sender, because a
//! poll wakes no other task.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};

thread_local! {
    /// What this thread does with the wakes of such futures.
    static WAKES: Cell<Wakes> = const { Cell::new(Wakes::Pass) };
}

#[derive(Default)]
enum Wakes {
    /// Nothing special.
    #[default]
    Pass,
    /// A body is polled: keeps the first one.
    Keep,
    /// This one was kept.
    Kept(Arc<Gate>),
}

/// Between a future and the waker of its task.
#[derive(Debug, Default)]
struct Gate(AtomicWaker);

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        // A thread that ends may wake others when this is gone already.
        let wakes = WAKES.try_with(Cell::take).unwrap_or_default();
        if let Wakes::Keep = wakes {
            WAKES.set(Wakes::Kept(self));
            return;
        }
        let _ = WAKES.try_with(|now| now.set(wakes));
        self.0.wake();
    }
}

/// A future that takes [`SteadyBody`]s: a connection.
#[derive(Debug)]
pub struct Steady<F> {
    future: Pin<Box<F>>,
    gate: Arc<Gate>,
    waker: Waker,
}

impl<F> Steady<F> {
    /// Where `future` is polled, the bodies that it takes are steady.
    pub fn new(future: F) -> Self {
        let gate = Arc::new(Gate::default());
        Steady { future: Box::pin(future), waker: Waker::from(Arc::clone(&gate)), gate }
    }
}

impl<F: Future> Future for Steady<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.gate.0.register(cx.waker());
        this.future.as_mut().poll(&mut Context::from_waker(&this.waker))
    }
}

/// A body whose last piece wakes no task. Outside of a [`Steady`] future it is like any other.
#[derive(Debug)]
pub struct SteadyBody<B>(B);

impl<B: Body + Unpin> SteadyBody<B> {
    /// `body` must be hyper's own body of an HTTP/1 connection: a poll of it may wake no task but its
    /// sender's.
    pub fn new(body: B) -> Self {
        SteadyBody(body)
    }
}

impl<B: Body + Unpin> Body for SteadyBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let keeping = Keeping::begin();
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        if let Wakes::Kept(gate) = keeping.end()
            && !self.0.is_end_stream()
        {
            gate.0.wake();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// While it lives, this thread keeps a wake.
struct Keeping;

impl Keeping {
    fn begin() -> Self {
        WAKES.set(Wakes::Keep);
        Keeping
    }

    fn end(self) -> Wakes {
        WAKES.take()
    }
}

impl Drop for Keeping {
    /// Also when a poll panics: other connections go on.
    fn drop(&mut self) {
        if let Wakes::Kept(gate) = WAKES.take() {
            gate.0.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::atomic::{AtomicU32, Ordering};

    use bytes::Bytes;
    use http_body_util::BodyExt;

    use super::*;

    /// Counts wakes.
    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Wakes the task that polls it for each piece that it gives, as a channel wakes its sender.
    struct Pieces {
        left: VecDeque<Bytes>,
        panics: bool,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            cx.waker().wake_by_ref();
            assert!(!self.panics, "as it should");
            Poll::Ready(self.left.pop_front().map(|piece| Ok(Frame::data(piece))))
        }

        fn is_end_stream(&self) -> bool {
            self.left.is_empty()
        }
    }

    fn pieces(count: usize) -> Pieces {
        Pieces { left: vec![Bytes::from_static(b"x"); count].into(), panics: false }
    }

    /// Polls what `future` makes once, as a task does, and returns the wakes that it came to.
    fn wakes_of<F: Future>(future: F) -> u32 {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let polled = pin!(Steady::new(future)).poll(&mut Context::from_waker(&waker));
        assert!(polled.is_ready());
        count.0.load(Ordering::SeqCst)
    }

    #[test]
    fn the_last_piece_of_a_body_wakes_nobody_and_others_do() {
        assert_eq!(wakes_of(async { SteadyBody::new(pieces(1)).frame().await }), 0);
        assert_eq!(wakes_of(async { SteadyBody::new(pieces(2)).frame().await }), 1);
        // Another body's wake, and any other, passes.
        assert_eq!(wakes_of(async { pieces(1).frame().await }), 1);
        let both = async {
            SteadyBody::new(pieces(1)).frame().await;
            poll_fn(|cx| {
                cx.waker().wake_by_ref();
                Poll::Ready(())
            })
            .await;
        };
        assert_eq!(wakes_of(both), 1);
    }

    #[test]
    fn a_poll_that_panics_keeps_no_later_wake() {
        let polled = std::panic::catch_unwind(|| {
            wakes_of(async {
                let panics = Pieces { panics: true, ..pieces(1) };
                SteadyBody::new(panics).frame().await
            })
        });
        polled.unwrap_err();
        assert_eq!(wakes_of(async { pieces(1).frame().await }), 1);
    }
}

/// What hyper does is hyper's, and may change.
#[cfg(test)]
#[cfg(feature = "worker")]
mod with_hyper {
    use std::convert::Infallible;
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum How {
        Plain,
        Steady,
        /// The body is read in another task.
        Apart,
    }

    async fn echo(how: How, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = request.into_body();
        let collected = match how {
            How::Plain => body.collect().await,
            How::Steady => SteadyBody::new(body).collect().await,
            How::Apart => tokio::spawn(SteadyBody::new(body).collect()).await.unwrap(),
        };
        Response::new(Full::new(collected.unwrap().to_bytes()))
    }

    /// Sends a request in these pieces, twice over one connection. Returns how often the connection
    /// was polled for the second.
    async fn polls(how: How, pieces: &[&str]) -> u32 {
        let (mut client, server) = tokio::io::duplex(64 << 10);
        let service =
            service_fn(move |request| async move { Ok::<_, Infallible>(echo(how, request).await) });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(server), service);
        let mut connection: Pin<Box<dyn Future<Output = _> + Send>> = match how {
            How::Plain => Box::pin(connection),
            How::Steady | How::Apart => Box::pin(Steady::new(connection)),
        };
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::SeqCst);
            connection.as_mut().poll(cx).map(|ended| ended.unwrap())
        }));
        let rest = async || {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        };
        for _ in 0..2 {
            count.store(0, Ordering::SeqCst);
            for piece in pieces {
                client.write_all(piece.as_bytes()).await.unwrap();
                rest().await;
            }
            let mut reply = Vec::new();
            while !reply.ends_with(b"body") {
                let more = client.read_buf(&mut reply);
                let more = tokio::time::timeout(Duration::from_secs(10), more).await;
                assert_ne!(more.expect("the connection goes on").unwrap(), 0);
            }
            rest().await;
        }
        count.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn a_request_in_one_piece_is_one_poll_and_others_are_answered_as_ever() {
        let head = "POST / HTTP/1.1\r\nhost: test\r\n";
        let whole = format!("{head}content-length: 4\r\n\r\nbody");
        assert_eq!(polls(How::Steady, &[&whole]).await, 1);
        assert_eq!(polls(How::Plain, &[&whole]).await, 2, "hyper wakes for the last piece no more");

        let length = format!("{head}content-length: 4\r\n\r\n");
        let expect = format!("{head}expect: 100-continue\r\ncontent-length: 4\r\n\r\n");
        let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n");
        let chunks = format!("{chunked}2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n");
        let cases: [&[&str]; 6] = [
            &[&whole],
            &[&length, "body"],
            &[&length, "b", "o", "dy"],
            &[&expect, "bo", "dy"],
            &[&chunks],
            &[&chunked, "2\r\nbo\r\n", "2\r\ndy\r\n0\r\nx: 1\r\n\r\n"],
        ];
        for pieces in cases {
            for how in [How::Plain, How::Steady, How::Apart] {
                polls(how, pieces).await;
            }
        }
    }
}
