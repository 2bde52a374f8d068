//! The worker's HTTP: decodes a request into a call, encodes the answer.
//!
//! | path | for |
//! |---|---|
//! | `/run/<fn>…` and its other forms | a call, from a balancer or straight from a client |
//! | `/status`, `/livez`, `/readyz`, `/stats`, `/metrics` | operation |
//! | `/internal/events`, `/internal/load`, `/internal/reservations` | balancers |
//!
//! Where the cluster has a secret, all but `/livez` and `/readyz` is for those who know it.

use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_LENGTH, EXPECT, HOST, HeaderValue, TRAILER};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::balancers::reservations;
use super::config::WorkerConfig;
use super::dispatch::{Answer, CompletionOf, Request as Called};
use super::operate::operate;
use super::shared::Shared;
use super::websocket::{FromClient, from_client};
use crate::failure::{Failure, FailureKind};
use crate::function::{Digest, Version};
use crate::invocation::{
    Body, BoxError, Completion, RequestHead, RequestId, empty_body, full_body,
};
use crate::serving::identity::Host;
use crate::serving::{Caller, Door, HttpConfig, HttpServer, Principal, Resource};
use crate::wire::{self, ReservationKey};

/// Answers one request. These are the hops of a call through the worker.
async fn answer(
    shared: Arc<Shared>,
    mut request: Request<Incoming>,
    (caller, peer): (Principal, IpAddr),
) -> Response<Body> {
    if let Err(failure) = wire::refuse_ambiguous(request.headers()) {
        return wire::closing(wire::failure_response(&failure, None));
    }
    let target = wire::parse_target(request.uri().path());
    if caller != Principal::Cluster {
        let resource = match request.uri().path() {
            "/livez" | "/readyz" => Resource::Health,
            // Without a secret, a balancer is as anyone.
            _ if target.is_some() && !shared.access.has_secret() => Resource::Call,
            path if path.starts_with(wire::INTERNAL) => Resource::Internal,
            _ => Resource::Control,
        };
        let (uri, headers) = (request.uri(), request.headers());
        if let Err(failure) = shared.access.admit(caller, peer, uri, headers, resource) {
            return wire::failure_response(&failure, None);
        }
        shared.access.withhold(request.headers_mut());
    }
    let target = match target {
        Some(target) => target,
        None if request.uri().path().starts_with(wire::RESERVATIONS_PATH) => {
            return match reservations(&shared, request).await {
                Ok(()) => no_content(),
                Err(failure) => wire::failure_response(&failure, None),
            };
        }
        None => return operate(&shared, &request),
    };
    let (detail, trailers) =
        (wire::detail_of(request.headers()), wire::takes_trailers(request.headers()));
    let to_balancer = request.headers().contains_key(wire::BALANCER);
    let asks_head = request.method() == Method::HEAD;
    let mut id = None;
    let called = async {
        let id = id.insert(match wire::request_id_of(request.headers())? {
            Some(id) => id,
            None => shared.request_ids.next(),
        });
        let call = async { decode(&shared, target?, id.clone(), request).await }.await;
        let (call, left) = call.inspect_err(|failure| shared.dispatcher.count_refused(failure))?;
        let answer = shared.dispatcher.call(call).answer();
        match left {
            None => answer.await.and_then(check_head),
            Some(left) => websocket(answer, left).await,
        }
    };
    let mut response = match called.await {
        Ok(answer) => encode(answer, trailers, asks_head),
        Err(failure) => wire::failure_response(&failure.told(detail), id.as_ref()),
    };
    if to_balancer {
        // It knows which call it is and where it sent it, and tells its client.
        return response;
    }
    let headers = response.headers_mut();
    if let Some(id) = &id {
        headers.insert(wire::REQUEST_ID, wire::id_value(id));
    }
    if let Ok(name) = HeaderValue::from_str(&shared.config.name) {
        headers.insert(wire::WORKER, name);
    }
    response
}

/// Decode: the headers say which bundle, or the registry does; the body is collected before the
/// call takes a slot, so a slow client cannot hold one. That of a WebSocket has no end that could be waited for; who
/// waits for its answer gets to know when its client has left.
async fn decode(
    shared: &Shared,
    target: wire::Target,
    id: RequestId,
    request: Request<Incoming>,
) -> Result<(Called, Option<CancellationToken>), Failure> {
    let (mut parts, body) = request.into_parts();
    let (version, digest) = match digest_of(&parts.headers)? {
        Some(digest) => (version_of(&parts.headers)?, digest),
        None => {
            let resolved = shared.registry.resolve(&target.function).await?;
            resolved.manifest.admits(&parts.method)?;
            (Some(resolved.version), resolved.digest)
        }
    };
    let asks_first = parts.headers.contains_key(EXPECT);
    let (name, allow) = (&target.function.name, &shared.config.allow);
    // Only balancers say so, and remove it from what clients send. Nearly every other body has a length.
    let is_websocket =
        body.size_hint().exact().is_none() && parts.headers.contains_key(wire::WEBSOCKET);
    let (body, websocket, left) = if is_websocket {
        let FromClient { body, left } = from_client(body, shared.draining.clone());
        (empty_body(), Some(body), Some(left))
    } else {
        let body = shared.bodies.read(body, asks_first, name, allow).await?;
        (full_body(body), None, None)
    };
    let reservation = reservation_of(&parts.headers)?;
    let balancer = parts.headers.get(wire::BALANCER).cloned();
    wire::remove_hop_by_hop(&mut parts.headers);
    wire::remove_own(&mut parts.headers);
    // A balancer's word for none, of a client that named no host.
    if parts.headers.get(HOST).is_some_and(HeaderValue::is_empty) {
        parts.headers.remove(HOST);
    }
    let call = Called {
        id,
        function: target.function.name,
        version,
        digest,
        head: RequestHead {
            method: parts.method,
            root: target.root,
            path: target.path,
            query: parts.uri.query().map(str::to_owned),
            headers: parts.headers,
        },
        body,
        websocket,
        reservation,
        balancer,
    };
    Ok((call, left))
}

fn digest_of(headers: &HeaderMap) -> Result<Option<Digest>, Failure> {
    let Some(value) = headers.get(wire::DIGEST) else { return Ok(None) };
    let parsed = value.to_str().unwrap_or_default().parse();
    let bad = |error: crate::function::NameError| {
        Failure::new(FailureKind::BadRequest, error.to_string())
    };
    parsed.map(Some).map_err(bad)
}

fn version_of(headers: &HeaderMap) -> Result<Option<Version>, Failure> {
    let Some(value) = headers.get(wire::VERSION) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    let bad = || Failure::new(FailureKind::BadRequest, "the version header is not a number");
    number.map(|number| Some(Version(number))).ok_or_else(bad)
}

fn reservation_of(headers: &HeaderMap) -> Result<Option<ReservationKey>, Failure> {
    let Some(value) = headers.get(wire::RESERVATION) else { return Ok(None) };
    value.to_str().unwrap_or_default().parse().map(Some)
}

/// The most headers of a reply. Clients, the balancer among them, take 100, and some are added.
const MOST_HEADERS: usize = 90;

/// What cannot be sent on: a status below 200 is not the end of a call, and a reply with too many
/// headers would look like a broken connection.
fn check_head(answer: Answer) -> Result<Answer, Failure> {
    let bad = |message| Err(Failure::new(FailureKind::BadReply, message));
    if answer.status.is_informational() {
        return bad(format!("the function answered with {}; use 200 to 599", answer.status));
    }
    if answer.headers.len() > MOST_HEADERS {
        return bad(format!("the function's reply has over {MOST_HEADERS} headers; send fewer"));
    }
    Ok(answer)
}

/// The answer to a call whose client asks for a WebSocket: that it has one, with what it is sent as the body, or
/// any other.
async fn websocket(
    answer: impl Future<Output = Result<Answer, Failure>>,
    left: CancellationToken,
) -> Result<Answer, Failure> {
    let mut answer = tokio::select! {
        answer = answer => answer?,
        () = left.cancelled() => {
            // Nobody reads it.
            return Err(Failure::new(FailureKind::Internal, "the client has left"));
        }
    };
    if answer.status != StatusCode::SWITCHING_PROTOCOLS {
        return check_head(answer);
    }
    // To the balancer it is a reply like any other; its client is told to switch by the balancer.
    answer.status = StatusCode::OK;
    answer.headers.remove(wire::DECLARED_LENGTH);
    let mut answer = check_head(answer)?;
    answer.is_websocket = true;
    Ok(answer)
}

/// Encode: the function's status and headers unchanged, and ours beside them. A reply that is still
/// on its way tells its run time in a trailer.
///
/// Headers that speak for the platform are not the function's to set, not even when it relays them
/// from another call: `started: no` would have the balancer run it again, and a length that is not
/// the body's would let the rest pass for the reply to somebody else's call.
///
/// A length that the function has declared counts for what follows: a reply to `HEAD` tells it, and a body that
/// is on its way is held to it.
fn encode(answer: Answer, trailers: bool, asks_head: bool) -> Response<Body> {
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    let headers = response.headers_mut();
    wire::remove_hop_by_hop(headers);
    let declared = headers.remove(wire::DECLARED_LENGTH);
    let declared = declared.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    wire::remove_own(headers);
    headers.remove(CONTENT_LENGTH);
    headers.insert(wire::START, HeaderValue::from_static(answer.start.as_str()));
    if answer.is_websocket {
        headers.insert(wire::WEBSOCKET, HeaderValue::from_static("1"));
    }
    if answer.idle {
        headers.insert(wire::IDLE, HeaderValue::from_static("1"));
    }
    let mut phases = answer.phases;
    let body = match answer.completion {
        CompletionOf::Known(completion) => {
            phases.run = completion.run;
            headers.append(wire::SERVER_TIMING, wire::server_timing(&phases, true));
            if let Some(length) = declared.filter(|_| asks_head) {
                headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            answer.body
        }
        CompletionOf::Streaming(completion) => {
            headers.append(wire::SERVER_TIMING, wire::server_timing(&phases, false));
            if let Some(left) = declared {
                return response.map(|()| Declared { body: answer.body, left }.boxed_unsync());
            }
            headers.insert(TRAILER, HeaderValue::from_static(wire::TRAILERS));
            streamed(answer.body, completion, trailers)
        }
    };
    response.map(|()| body)
}

/// A reply on its way whose length the function has declared. What comes beyond it is not sent, and what ends
/// before it breaks off.
struct Declared {
    body: Body,
    left: u64,
}

impl http_body::Body for Declared {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        while self.left > 0 {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let why = format!("{} bytes of its Content-Length were not sent", self.left);
                    return Poll::Ready(Some(Err(why.into())));
                }
            };
            let Ok(mut data) = frame.into_data() else { continue };
            data.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= data.len() as u64;
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// A reply on its way: the function's data, then one frame of trailers with the run time. Of a handler that
/// fails midway they tell who is to blame; for a client that takes none the body breaks off, so that it does
/// not take the part for the whole.
fn streamed(body: Body, completion: oneshot::Receiver<Completion>, trailers: bool) -> Body {
    let data = BodyStream::new(body).try_filter(|frame| std::future::ready(frame.is_data()));
    let frames = stream::unfold(Some((data, completion)), move |state| async move {
        let (mut data, completion) = state?;
        let broke = match data.next().await {
            Some(Ok(frame)) => return Some((Ok(frame), Some((data, completion)))),
            Some(Err(error)) => Some(error),
            None => None,
        };
        Some((last_frame(completion.await, broke, trailers), None))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// What ends a streamed reply: `broke` is why its data did.
fn last_frame(
    completion: Result<Completion, oneshot::error::RecvError>,
    broke: Option<BoxError>,
    trailers: bool,
) -> Result<Frame<Bytes>, BoxError> {
    let Completion { run, failure, .. } = completion?;
    let broke = broke.map(|error| Failure::new(FailureKind::BadReply, error.to_string()));
    match failure.or(broke) {
        Some(failure) if trailers => Ok(Frame::trailers(wire::failure_trailers(&failure))),
        Some(failure) => Err(failure.into()),
        None => {
            let text = format!("run;dur={:.3}", run.as_secs_f64() * 1e3);
            let mut trailers = HeaderMap::new();
            trailers.insert(wire::SERVER_TIMING, HeaderValue::from_str(&text)?);
            Ok(Frame::trailers(trailers))
        }
    }
}

/// The largest head of a request, bytes: what a balancer lets through, and what it adds.
const HEADER_LIMIT: usize = 80 << 10;

fn no_content() -> Response<Body> {
    let mut response = Response::new(empty_body());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The names by which the worker is called.
pub(super) fn hosts(config: &WorkerConfig) -> Vec<Host> {
    let advertised = config.advertise.as_deref().and_then(|url| url.parse::<Uri>().ok());
    let advertised = advertised.and_then(|url| url.authority()?.as_str().parse().ok());
    config.hosts.iter().cloned().chain(advertised).collect()
}

/// Accepts connections until `over` resolves, then lets those that are open finish what they have
/// begun, within the worker's grace for replies.
pub(super) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    local: Option<UnixListener>,
    over: impl Future<Output = ()>,
) {
    let door = Door::new(listener, shared.config.patience.clone());
    let mut door = door.and_secret(shared.config.secret.clone(), hosts(&shared.config));
    if let Some(local) = local {
        door = door.and_local(local);
    }
    let (header_limit, drain) = (Some(HEADER_LIMIT), shared.config.reply_grace);
    let config = HttpConfig { header_limit, drain, ..HttpConfig::default() };
    let welcome = |caller: &Caller| {
        let (shared, identity) = (shared.clone(), caller.identity().clone());
        let peer = caller.peer().ip();
        Ok(service_fn(move |request| {
            let (shared, caller) = (shared.clone(), (identity.principal(), peer));
            async move { Ok::<_, Infallible>(answer(shared, request, caller).await) }
        }))
    };
    HttpServer::new(door, config).run(welcome, over).await;
}
