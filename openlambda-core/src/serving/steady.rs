//! Connections whose task is not woken by what it does itself: [`Steady`] and [`SteadyBody`].
//!
//! When the last piece of a body is taken, hyper wakes the task that reads the connection, for there
//! is room for another piece now. But there is no other, and the task that is woken is mostly the one
//! that takes: once it has written the call's next message it would be polled again, for nothing, while
//! whoever is to read the message may wait for this very processor.
//!
//! So a connection's future gets a waker of ours, in [`Steady`], and a body that is taken as a
//! [`SteadyBody`] keeps such a wake to itself if it has no more pieces.

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
        match WAKES.take() {
            Wakes::Keep => WAKES.set(Wakes::Kept(self)),
            others => {
                WAKES.set(others);
                self.0.wake();
            }
        }
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

/// A body whose last piece wakes nobody. Outside of a [`Steady`] future it is like any other.
#[derive(Debug)]
pub struct SteadyBody<B>(B);

impl<B: Body + Unpin> SteadyBody<B> {
    /// `body` must be hyper's own: no poll of it may wake anybody but its sender.
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

    /// Wakes whoever polls it for each piece that it gives, as a channel wakes its sender.
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
