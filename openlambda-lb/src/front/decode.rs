//! From a client's request to a [`Call`]: the first hop.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use openlambda_core::failure::{Failure, FailureKind, Started};
use openlambda_core::invocation::{Body, BoxError, RequestId, RequestIds};
use openlambda_core::wire::{self, Target};

use crate::proxy::ProxyConfig;

/// A body of a known length up to this is read before the worker is chosen, and can be sent again.
const KEPT_BODY: u64 = 64 << 10;

/// How long the client may take to send such a body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// The most headers of a request. A worker takes 100, and some are added on the way.
const MOST_HEADERS: usize = 90;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// An invocation as the later hops need it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) target: Target,
    pub(crate) method: Method,
    pub(crate) path: PathAndQuery,
    /// End-to-end headers, and those that go to the worker in any case.
    pub(crate) headers: HeaderMap,
    pub(crate) body: CallBody,
    /// How long the worker may be silent, beside the function's own time limit.
    pub(crate) limit: Duration,
}

/// Reads a client's request. The id is there even when the rest is not valid.
pub(crate) async fn decode(
    request: Request<Body>,
    peer: SocketAddr,
    config: &ProxyConfig,
    ids: &RequestIds,
) -> (RequestId, Result<Call, Failure>) {
    let (id, given) = match wire::request_id_of(request.headers()) {
        Ok(Some(id)) => (id, Ok(())),
        Ok(None) => (ids.next(), Ok(())),
        Err(failure) => (ids.next(), Err(failure)),
    };
    let call = match given {
        Ok(()) => read(request, peer, config, &id).await,
        Err(failure) => Err(failure),
    };
    (id, call)
}

async fn read(
    request: Request<Body>,
    peer: SocketAddr,
    config: &ProxyConfig,
    id: &RequestId,
) -> Result<Call, Failure> {
    let target = wire::parse_target(request.uri().path()).unwrap_or_else(|| {
        let message = format!("there is nothing at {}; call /run/<function>", request.uri().path());
        Err(Failure::new(FailureKind::NotFound, message))
    })?;
    if request.method() == Method::CONNECT {
        let message =
            "CONNECT asks for a tunnel, and there is none; call functions with POST or GET";
        return Err(Failure::new(FailureKind::BadRequest, message));
    }
    if wire::declares_more_than(request.headers(), config.body_limit) {
        return Err(wire::body_too_large(config.body_limit));
    }
    if request.headers().len() > MOST_HEADERS {
        let message = format!("there are more than {MOST_HEADERS} headers; send fewer");
        return Err(Failure::new(FailureKind::BadRequest, message));
    }
    let (parts, body) = request.into_parts();
    let mut headers = parts.headers;
    // At once, for all that is added below and where the worker is known.
    headers.reserve(8);
    let trailer = headers.remove(header::TRAILER);
    wire::remove_hop_by_hop(&mut headers);
    wire::remove_own(&mut headers);
    // The server has told the client to go on already.
    headers.remove(header::EXPECT);
    append_forwarded_for(&mut headers, peer);
    headers.insert(wire::REQUEST_ID, wire::id_value(id));
    // The connection to the worker is ours, and we do take trailers.
    headers.insert(header::TE, HeaderValue::from_static("trailers"));

    let body = CallBody::read(body, config.body_limit).await?;
    if let (CallBody::Stream(_), Some(trailer)) = (&body, trailer) {
        headers.insert(header::TRAILER, trailer);
    }
    let path = parts.uri.path_and_query().cloned();
    Ok(Call {
        target,
        method: parts.method,
        path: path.unwrap_or_else(|| PathAndQuery::from_static("/")),
        headers,
        body,
        limit: config.silence_limit(),
    })
}

fn append_forwarded_for(headers: &mut HeaderMap, peer: SocketAddr) {
    let mut text = String::with_capacity(48);
    for value in headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok()) {
        text.push_str(value);
        text.push_str(", ");
    }
    let _ = write!(text, "{}", peer.ip().to_canonical());
    let value = HeaderValue::from_maybe_shared(Bytes::from(text)).expect("text and an address");
    headers.insert(FORWARDED_FOR, value);
}

/// The body of a call, for one attempt after another.
#[derive(Debug)]
pub(crate) enum CallBody {
    /// At hand: each attempt gets all of it.
    Kept(Bytes),
    /// On its way: an attempt gets it only if no other one has taken any of it.
    Stream(StreamedBody),
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
    async fn read(body: Body, limit: u64) -> Result<Self, Failure> {
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
        match tokio::time::timeout(BODY_PATIENCE, body.collect()).await {
            Ok(Ok(collected)) => Ok(CallBody::Kept(collected.to_bytes())),
            Ok(Err(error)) => Err(broken_off(error)),
            Err(_) => Err(Failure::new(
                FailureKind::BadRequest,
                format!("the body did not arrive within {BODY_PATIENCE:?}; send it faster"),
            )),
        }
    }

    /// How much of it came, also later.
    pub(crate) fn taken(&self) -> BytesTaken {
        match self {
            CallBody::Kept(bytes) => BytesTaken { known: bytes.len() as u64, stream: None },
            CallBody::Stream(stream) => BytesTaken { known: 0, stream: Some(stream.clone()) },
        }
    }

    /// Whether another attempt would get all of it.
    pub(crate) fn can_be_sent_again(&self) -> bool {
        match self {
            CallBody::Kept(_) => true,
            CallBody::Stream(stream) => !stream.lock().begun,
        }
    }
}

/// A body on its way, shared by the attempts at sending it.
#[derive(Clone, Debug)]
pub(crate) struct StreamedBody(Arc<Mutex<Stream>>);

impl StreamedBody {
    /// The body for the next attempt.
    pub(crate) fn next(&self) -> Body {
        let mut stream = self.lock();
        stream.attempt += 1;
        let size = stream.body.size_hint();
        Handle { attempt: stream.attempt, size, stream: self.clone() }.boxed_unsync()
    }

    /// Whether the client is late with it.
    pub(crate) fn awaited(&self) -> bool {
        self.lock().awaited
    }

    /// What was wrong with the client's body, if that is why an attempt failed.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    /// No code panics while it holds this lock, and nothing in it could be half done.
    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.stream.as_ref().map_or(self.known, |stream| stream.lock().taken)
    }
}

fn broken_off(error: BoxError) -> Failure {
    let cause = openlambda_core::failure::chain(&*error);
    Failure::new(FailureKind::BadRequest, format!("the body broke off: {cause}"))
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
        let mut stream = self.stream.lock();
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
        self.stream.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}
