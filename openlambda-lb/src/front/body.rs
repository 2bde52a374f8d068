//! The body of a call, which several attempts may send: [`CallBody`].

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use openlambda_core::failure::{Failure, FailureKind, Started, chain};
use openlambda_core::invocation::{Body, BoxError};
use openlambda_core::wire;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::limits::{BODY_PATIENCE, KEPT_BODY, SLOWEST};

/// The body of a call, for one attempt after another.
#[derive(Debug)]
pub(crate) enum CallBody {
    /// In memory: each attempt gets all of it.
    Kept(Bytes),
    /// On its way: an attempt gets it only if no other one has taken any of it.
    Stream(StreamedBody),
    /// What the client will send over the WebSocket that it asks for. Nothing, before it has one.
    WebSocket(FromClient),
}

/// A body that streams through, within its limit.
struct Stream {
    body: Body,
    limit: u64,
    taken: u64,
    begun: bool,
    /// The worker wants more of it and the client has not sent it yet.
    awaited: bool,
    /// The attempt that may take from it; handles of earlier ones find it closed.
    attempt: u32,
    /// What is wrong with it, once something is.
    failure: Option<Failure>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl CallBody {
    /// Reads the body if it is small, and else lets it stream; up to `limit` bytes.
    ///
    /// # Errors
    ///
    /// A small one broke off, or did not come in time.
    pub(super) async fn read(body: Body, limit: u64) -> Result<Self, Failure> {
        if body.size_hint().exact().is_none_or(|length| length > KEPT_BODY) {
            let stream = Stream {
                body,
                limit,
                taken: 0,
                begun: false,
                awaited: false,
                attempt: 0,
                failure: None,
            };
            return Ok(CallBody::Stream(StreamedBody(Arc::new(Mutex::new(stream)))));
        }
        read_small(body).await.map(CallBody::Kept)
    }

    /// How much of it came, also later.
    pub(crate) fn taken(&self) -> BytesTaken {
        match self {
            CallBody::Kept(bytes) => BytesTaken { known: bytes.len() as u64, stream: None },
            CallBody::Stream(stream) => BytesTaken { known: 0, stream: Some(stream.clone()) },
            CallBody::WebSocket(_) => BytesTaken::default(),
        }
    }

    /// Whether another attempt would get all of it.
    pub(crate) fn can_be_sent_again(&self) -> bool {
        match self {
            CallBody::Kept(_) | CallBody::WebSocket(_) => true,
            CallBody::Stream(stream) => !stream.0.lock().begun,
        }
    }
}

/// All of a small body. Mostly it is there already.
async fn read_small(mut body: Body) -> Result<Bytes, Failure> {
    let Some(first) = next_data(&mut body, BODY_PATIENCE).await? else { return Ok(Bytes::new()) };
    if body.is_end_stream() {
        return Ok(first);
    }
    let began = Instant::now();
    let mut whole = Vec::from(first);
    loop {
        let patience = BODY_PATIENCE + Duration::from_secs(whole.len() as u64 / SLOWEST);
        let left = patience.saturating_sub(began.elapsed());
        match next_data(&mut body, left).await? {
            Some(data) => whole.extend_from_slice(&data),
            None => return Ok(whole.into()),
        }
    }
}

/// What comes next of a body, if not its end.
async fn next_data(body: &mut Body, patience: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = tokio::time::timeout(patience, body.frame()).await.map_err(|_| {
            let message = format!(
                "the body did not arrive within {BODY_PATIENCE:?} and a second for each {SLOWEST} bytes; \
                 send it faster"
            );
            Failure::new(FailureKind::BadRequest, message)
        })?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => return Err(broken_off(error)),
            // Trailers say nothing to a function.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A body on its way, shared by the attempts at sending it.
#[derive(Clone, Debug)]
pub(crate) struct StreamedBody(Arc<Mutex<Stream>>);

impl StreamedBody {
    /// The body for the next attempt.
    pub(crate) fn next(&self) -> Body {
        let mut stream = self.0.lock();
        stream.attempt += 1;
        let size = stream.body.size_hint();
        Handle { attempt: stream.attempt, size, stream: self.clone() }.boxed_unsync()
    }

    /// How much of it came so far, bytes.
    pub(crate) fn came(&self) -> u64 {
        self.0.lock().taken
    }

    /// Whether the client is late with it.
    pub(crate) fn awaited(&self) -> bool {
        self.0.lock().awaited
    }

    /// What was wrong with the client's body, if that is why an attempt failed.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.0.lock().failure.clone()
    }
}

/// What a client sends over its WebSocket, as the body of the request to one worker after another.
#[derive(Clone, Debug, Default)]
pub(crate) struct FromClient(Arc<Mutex<Option<ToWorker>>>);

/// Where the frames of such a body come from; `None` is its end.
pub(super) type ToWorker = mpsc::Sender<Option<Frame<Bytes>>>;

impl FromClient {
    /// The body for the next attempt. It breaks off if that does not come to a WebSocket.
    pub(super) fn next(&self) -> Body {
        let (sender, mut receiver) = mpsc::channel::<Option<Frame<Bytes>>>(1);
        *self.0.lock() = Some(sender);
        let mut ended = false;
        let frames = stream::poll_fn(move |cx| {
            if ended {
                return Poll::Ready(None);
            }
            let frame = std::task::ready!(receiver.poll_recv(cx));
            ended =
                frame.as_ref().is_none_or(|frame| frame.as_ref().is_none_or(Frame::is_trailers));
            Poll::Ready(match frame {
                Some(frame) => frame.map(Ok),
                None => Some(Err::<_, BoxError>("there is no WebSocket any more".into())),
            })
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// Where those of the last attempt come from, once.
    pub(super) fn sender(&self) -> Option<ToWorker> {
        self.0.lock().take()
    }
}

/// How many bytes of a body came.
#[derive(Clone, Debug, Default)]
pub(crate) struct BytesTaken {
    known: u64,
    stream: Option<StreamedBody>,
}

impl BytesTaken {
    pub(crate) fn get(&self) -> u64 {
        self.stream.as_ref().map_or(self.known, |stream| stream.0.lock().taken)
    }
}

fn broken_off(error: BoxError) -> Failure {
    Failure::new(FailureKind::BadRequest, format!("the body broke off: {}", chain(&*error)))
}

/// One attempt's access to the client's body.
struct Handle {
    attempt: u32,
    size: SizeHint,
    stream: StreamedBody,
}

impl http_body::Body for Handle {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut stream = self.stream.0.lock();
        if stream.attempt != self.attempt {
            return Poll::Ready(Some(Err("another attempt has the body".into())));
        }
        let frame = Pin::new(&mut stream.body).poll_frame(cx);
        stream.awaited = frame.is_pending();
        let frame = std::task::ready!(frame);
        stream.begun = true;
        let failure = match &frame {
            None => return Poll::Ready(None),
            Some(Ok(frame)) => {
                stream.taken += frame.data_ref().map_or(0, |data| data.len() as u64);
                (stream.taken > stream.limit).then(|| wire::body_too_large(stream.limit))
            }
            Some(Err(error)) => {
                Some(Failure::new(FailureKind::BadRequest, format!("the body broke off: {error}")))
            }
        };
        match failure {
            None => Poll::Ready(frame),
            Some(failure) => {
                // The worker may have begun with what it got so far.
                let failure = failure.started(Started::Maybe);
                stream.failure = Some(failure.clone());
                Poll::Ready(Some(Err(failure.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.0.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of as many bytes, one piece a second.
    fn evenly(pieces: usize, bytes: usize) -> Body {
        let frames = stream::unfold(0, move |sent| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let frame = Ok(Frame::data(Bytes::from(vec![0; bytes])));
            (sent < pieces).then_some((frame, sent + 1))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_steadily_is_waited_for() {
        assert_eq!(read_small(evenly(40, 1500)).await.unwrap().len(), 60_000);
        assert_eq!(read_small(evenly(0, 0)).await.unwrap().len(), 0);
        let began = Instant::now();
        let error = read_small(evenly(usize::MAX, 1)).await.unwrap_err();
        assert!(error.message.contains("send it faster"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(40));
    }
}
