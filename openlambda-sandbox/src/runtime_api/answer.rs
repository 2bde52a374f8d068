//! What the code posts for a call: a reply, whole or in pieces, or an error.

use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_TYPE, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, Either, Full, StreamBody};
use hyper::body::Incoming;
use openlambda_core::failure::{Failure, FunctionError};
use openlambda_core::invocation::{Body, BoxError, full_body};
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind};
use openlambda_core::serving::SteadyBody;
use openlambda_core::wire;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::conversation::{Claim, Head, describe};
use super::headers::{EARLY, EXITING};
use super::refusal::{Refusal, Told, accepted, json_response, whole};
use crate::{event, raw};

/// The largest buffered reply: Lambda's 6 MiB and 100 bytes. Streamed ones have no limit.
pub const REPLY_LIMIT: usize = (6 << 20) + 100;

/// A reply over the limit is read so far before it is refused, so that the code gets to read why.
const DISCARD_LIMIT: usize = 64 << 20;

/// How much of a streamed reply may come before its prelude ends.
pub(super) const PRELUDE_LIMIT: usize = 64 << 10;

/// How many frames of a streamed reply wait for the client before the handler has to.
const STREAM_FRAMES: usize = 16;

const ERROR_TYPE: HeaderName = HeaderName::from_static("lambda-runtime-function-error-type");
const ERROR_BODY: HeaderName = HeaderName::from_static("lambda-runtime-function-error-body");
const HTTP_INTEGRATION: &str = "application/vnd.awslambda.http-integration-response";

impl Claim {
    pub(super) async fn response(self, headers: &HeaderMap, body: Incoming) -> Result<(), Refusal> {
        let body = match read_whole(body).await {
            Ok(body) => body,
            Err(Refusal::TooLarge) => {
                let message = "the handler's reply is over 6 MiB; return less, or stream it";
                let error = SandboxError::new(SandboxErrorKind::BadReply, message);
                self.end(true, Some(Err(error)), None);
                return Err(Refusal::TooLarge);
            }
            Err(refusal) => return Err(refusal),
        };
        let head = match headers.get(raw::HEAD) {
            Some(head) => raw::decode(head, false).map(|(status, headers)| (status, headers, body)),
            None => event::decode(self.shared.config.event, body)
                .map(|answer| (answer.status, answer.headers, answer.body)),
        };
        let head =
            head.map(|(status, headers, body)| Head { status, headers, body: full_body(body) });
        self.end(true, Some(head), None);
        Ok(())
    }

    pub(super) async fn error(
        self,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Full<Bytes>>, Refusal> {
        let reusable = !headers.contains_key(EXITING);
        let error = match read_error(headers, body).await {
            Ok(error) => error,
            Err(Refusal::TooLarge) => {
                let text = "the handler's error is over 6 MiB; raise one with a shorter message";
                let error = parse_error(headers, text.as_bytes());
                let error =
                    SandboxError::new(SandboxErrorKind::Function, text).with_function_error(error);
                self.end(reusable, Some(Err(error)), None);
                return Err(Refusal::TooLarge);
            }
            Err(refusal) => return Err(refusal),
        };
        let message = describe(&error);
        let error =
            SandboxError::new(SandboxErrorKind::Function, message).with_function_error(error);
        self.end(reusable, Some(Err(error)), None);
        Ok(accepted())
    }

    /// A streamed reply with which no client can do anything.
    async fn bad_head(self, error: SandboxError, body: &mut Incoming) -> Response<Told> {
        drain(body).await;
        self.end(true, Some(Err(error)), None);
        whole(accepted())
    }

    pub(super) async fn stream(
        self,
        headers: &HeaderMap,
        mut body: Incoming,
    ) -> Result<Response<Told>, Refusal> {
        let media_type = headers.get(CONTENT_TYPE);
        let framed =
            media_type.is_some_and(|value| value.as_bytes() == HTTP_INTEGRATION.as_bytes());
        let mut first = BytesMut::new();
        let mut head = (StatusCode::OK, HeaderMap::new());
        if let Some(raw) = headers.get(raw::HEAD) {
            match raw::decode(raw, self.asks_for_websocket()) {
                Ok(decoded) => head = decoded,
                Err(error) => return Ok(self.bad_head(error, &mut body).await),
            }
        } else if framed {
            let end = loop {
                if let Some(end) = first.windows(8).position(|window| window == [0; 8]) {
                    break Some(end);
                }
                if first.len() > PRELUDE_LIMIT {
                    break None;
                }
                match body.frame().await {
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            first.extend_from_slice(&data);
                        }
                    }
                    Some(Err(_)) => return Err(Refusal::BodyLost),
                    None => break None,
                }
            };
            let decoded = match end {
                Some(end) => {
                    let prelude = first.split_to(end);
                    let _nul_bytes = first.split_to(8);
                    event::decode_prelude(&prelude)
                }
                None => Err(SandboxError::new(
                    SandboxErrorKind::BadReply,
                    "the streamed reply has no prelude; send its JSON and 8 NUL bytes first",
                )),
            };
            match decoded {
                Ok(decoded) => head = decoded,
                Err(error) => return Ok(self.bad_head(error, &mut body).await),
            }
        } else {
            let any = HeaderValue::from_static("application/octet-stream");
            let media_type = media_type.cloned().unwrap_or(any);
            let only = [(CONTENT_TYPE.as_str(), media_type.as_bytes())];
            if let Err(error) = event::check_headers(only.into_iter()) {
                return Ok(self.bad_head(error, &mut body).await);
            }
            head.1.insert(CONTENT_TYPE, media_type);
        }
        let (sender, frames) = mpsc::channel(STREAM_FRAMES);
        let end = Arc::new(OnceLock::new());
        if let Some(reply) = self.take_reply() {
            let body = StreamedBody { frames, end: Arc::clone(&end), over: false }.boxed_unsync();
            let _ = reply.send(Ok(Head { status: head.0, headers: head.1, body }));
        }
        if head.0 == StatusCode::SWITCHING_PROTOCOLS
            && let Some(from_client) = self.take_from_client()
        {
            return Ok(self.websocket(from_client, body, sender, end).map(Either::Right));
        }
        if !first.is_empty() {
            let _ = sender.send(first.freeze()).await;
        }
        let looks = headers.contains_key(EARLY);
        let trailers = tokio::select! {
            trailers = pass_on(&mut body, &sender) => trailers?,
            () = sender.closed() => {
                self.shared.depart(&self.wire_id, looks);
                if looks {
                    // Hyper goes on to read while it answers.
                    tokio::spawn(self.rest_of_stream(body, sender, end));
                    let left = r#"{"status":"the client has left"}"#;
                    return Ok(whole(json_response(StatusCode::ACCEPTED, left)));
                }
                pass_on(&mut body, &sender).await?
            }
        };
        self.end_of_stream(trailers, &end);
        Ok(whole(accepted()))
    }

    /// Both ways of a WebSocket at once: answers the post with what the client sends, and hands on what is posted.
    fn websocket(
        self,
        from_client: Body,
        body: Incoming,
        to_client: mpsc::Sender<Bytes>,
        end: StreamEnd,
    ) -> Response<Body> {
        let over = CancellationToken::new();
        let ends = over.clone().cancelled_owned();
        let (shared, wire_id) = (Arc::clone(&self.shared), self.wire_id.clone());
        tokio::spawn(async move {
            // What the client sends is at its end when it does not read any more, and when the call is over.
            let _over = over.clone().drop_guard();
            let client = to_client.clone();
            let mut rest = pin!(self.rest_of_stream(body, to_client, end));
            tokio::select! {
                () = rest.as_mut() => return,
                () = client.closed() => over.cancel(),
            }
            rest.await;
        });
        let frames = Box::pin(BodyStream::new(from_client).take_until(ends));
        let frames = stream::unfold(frames, move |mut frames| {
            let (shared, wire_id) = (Arc::clone(&shared), wire_id.clone());
            async move {
                let frame = frames.next().await;
                let goes_on =
                    |frame: &Result<Frame<_>, _>| frame.as_ref().is_ok_and(Frame::is_data);
                if !frame.as_ref().is_some_and(goes_on) {
                    shared.depart_told(&wire_id);
                }
                Some((frame?, frames))
            }
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(TRAILER, HeaderValue::from_static(wire::CLOSE_TRAILER));
        response
    }

    /// When nobody reads any more, the handler still gets to its end.
    async fn rest_of_stream(self, mut body: Incoming, sender: mpsc::Sender<Bytes>, end: StreamEnd) {
        if let Ok(trailers) = pass_on(&mut body, &sender).await {
            self.end_of_stream(trailers, &end);
        }
    }

    fn end_of_stream(self, trailers: Option<HeaderMap>, end: &StreamEnd) {
        let error = trailers.as_ref().filter(|trailers| trailers.contains_key(ERROR_TYPE));
        let Some(trailers) = error else {
            let _ = end.set(Ok(()));
            return self.end(true, None, None);
        };
        let text = trailers.get(ERROR_BODY).map(HeaderValue::as_bytes).unwrap_or_default();
        // Clients send the error's JSON in base64, since a trailer holds no line breaks.
        let decoded = std::str::from_utf8(text).ok().and_then(event::base64_decode);
        let error = parse_error(trailers, decoded.as_deref().unwrap_or(text));
        let message = describe(&error);
        let failure: Failure = SandboxError::new(SandboxErrorKind::Function, message.clone())
            .with_function_error(error)
            .into();
        let _ = end.set(Err(message));
        self.end(!trailers.contains_key(EXITING), None, Some(failure));
    }
}

/// How a streamed reply has ended; nothing as long as it has not.
type StreamEnd = Arc<OnceLock<Result<(), String>>>;

/// Hands on what comes, to the trailers. What was read and not handed on when this is dropped is lost.
async fn pass_on(
    body: &mut Incoming,
    sender: &mpsc::Sender<Bytes>,
) -> Result<Option<HeaderMap>, Refusal> {
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => drop(sender.send(data).await),
            Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
            Err(_) => return Err(Refusal::BodyLost),
        }
    }
    Ok(trailers)
}

/// The body of a streamed reply. It is complete only when its end was told.
struct StreamedBody {
    frames: mpsc::Receiver<Bytes>,
    /// Set before the sender of the frames goes.
    end: StreamEnd,
    over: bool,
}

impl http_body::Body for StreamedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(data) = ready!(self.frames.poll_recv(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        self.over = true;
        Poll::Ready(match self.end.get() {
            Some(Ok(())) => None,
            Some(Err(why)) => Some(Err(why.clone().into())),
            None => Some(Err("the instance ended in the middle of its reply".into())),
        })
    }
}

/// The whole body of a post of the code's, up to [`REPLY_LIMIT`].
async fn read_whole(body: Incoming) -> Result<Bytes, Refusal> {
    let mut body = SteadyBody::new(body);
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyLost)?.into_data() else { continue };
        if whole.len() + data.len() > REPLY_LIMIT {
            drain(&mut body).await;
            return Err(Refusal::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

async fn drain(body: &mut (impl http_body::Body<Data = Bytes> + Unpin)) {
    let mut total = 0;
    while let Some(Ok(frame)) = body.frame().await {
        total += frame.data_ref().map_or(0, Bytes::len);
        if total > DISCARD_LIMIT {
            return;
        }
    }
}

pub(super) async fn read_error(
    headers: &HeaderMap,
    body: Incoming,
) -> Result<FunctionError, Refusal> {
    let body = read_whole(body).await?;
    Ok(parse_error(headers, &body))
}

/// Runtimes differ in how they write an error, so everything is optional here.
fn parse_error(headers: &HeaderMap, body: &[u8]) -> FunctionError {
    let json: serde_json::Value = event::from_json(body).unwrap_or_default();
    let text = |key: &str| json.get(key).and_then(|value| value.as_str()).map(str::to_owned);
    let header = headers.get(ERROR_TYPE).and_then(|value| value.to_str().ok());
    let line = |value: &serde_json::Value| match value {
        serde_json::Value::String(line) => line.clone(),
        other => other.to_string(),
    };
    FunctionError {
        message: text("errorMessage")
            .unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned()),
        kind: text("errorType").or(header.map(str::to_owned)).unwrap_or("Unknown".to_owned()),
        stack_trace: json
            .get("stackTrace")
            .or(json.get("trace"))
            .and_then(|trace| Some(trace.as_array()?.iter().map(line).collect()))
            .unwrap_or_default(),
    }
}
