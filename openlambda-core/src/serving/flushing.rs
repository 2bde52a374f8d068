//! Replies that break off, after what came before has been sent: [`Flushing`].
//!
//! When a body fails, hyper cuts the connection at once, and with it what it has not written yet. So the
//! failure waits until the connection has written everything.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// Between a connection and the reply on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Flush(Arc<AtomicU8>);

const NOT_ASKED: u8 = 0;
const ASKED: u8 = 1;
const WRITTEN: u8 = 2;

impl Flush {
    /// The connection has written all that it was given.
    pub(super) fn written(&self, cx: &Context<'_>) {
        if self.0.load(Ordering::Relaxed) == ASKED {
            self.0.store(WRITTEN, Ordering::Relaxed);
            cx.waker().wake_by_ref();
        }
    }
}

pin_project! {
    /// A reply's future, whose body is [`Flushing`].
    pub(super) struct Answering<F> {
        #[pin]
        pub(super) reply: F,
        pub(super) flush: Flush,
    }
}

impl<F, B, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Result<Response<Flushing<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // Not by closures: a reply is large, and each of them moves it.
        match this.reply.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(reply)) => {
                let (head, body) = reply.into_parts();
                let body = Flushing { body, broken: None, flush: this.flush.clone() };
                Poll::Ready(Ok(Response::from_parts(head, body)))
            }
        }
    }
}

pin_project! {
    /// A reply's body.
    pub(super) struct Flushing<B: Body> {
        #[pin]
        body: B,
        broken: Option<B::Error>,
        flush: Flush,
    }
}

impl<B: Body> Body for Flushing<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        if this.broken.is_none() {
            match this.body.poll_frame(cx) {
                Poll::Ready(Some(Err(error))) => *this.broken = Some(error),
                other => return other,
            }
            this.flush.0.store(ASKED, Ordering::Relaxed);
            cx.waker().wake_by_ref();
        }
        match this.flush.0.load(Ordering::Relaxed) {
            WRITTEN => {
                this.flush.0.store(NOT_ASKED, Ordering::Relaxed);
                Poll::Ready(this.broken.take().map(Err))
            }
            _ => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
