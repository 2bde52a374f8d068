//! The worker's HTTP: decodes a request into a call, encodes the answer.
//!
//! | path | for |
//! |---|---|
//! | `/run/<fn>…` and its other forms | a call, from a balancer or straight from a client |
//! | `/status`, `/livez`, `/readyz`, `/stats`, `/metrics` | operation |
//! | `/internal/events`, `/internal/load`, `/internal/reservations` | balancers |

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, TRAILER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, LengthLimitError, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use serde::Serialize;
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::dispatch::{Answer, CompletionOf, Request as Called};
use super::events::line;
use crate::balancing::WorkerLoad;
use crate::failure::{Failure, FailureKind};
use crate::function::{Digest, Version};
use crate::invocation::{
    Body, BoxError, Completion, RequestHead, RequestId, empty_body, full_body,
};
use crate::scheduler::Counts;
use crate::serving::{Door, HttpConfig, HttpServer, Patient, SteadyBody, Stream};
use crate::wire::{self, Reservation, ReservationKey};
use crate::worker_core::StreamId;

/// Answers one request. These are the hops of a call through the worker.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    if let Err(failure) = refuse_strangers(&request) {
        return wire::failure_response(&failure, None);
    }
    let target = match wire::parse_target(request.uri().path()) {
        Some(target) => target,
        None if request.uri().path().starts_with(wire::RESERVATIONS_PATH) => {
            return match reservations(&shared, request).await {
                Ok(()) => no_content(),
                Err(failure) => wire::failure_response(&failure, None),
            };
        }
        None => return operate(&shared, &request),
    };
    let to_balancer = request.headers().contains_key(wire::BALANCER);
    let mut id = None;
    let called = async {
        let id = id.insert(match wire::request_id_of(request.headers())? {
            Some(id) => id,
            None => shared.request_ids.next(),
        });
        let call = async { decode(&shared, target?, id.clone(), request).await }.await;
        let call = call.inspect_err(|failure| shared.dispatcher.count_refused(failure))?;
        shared.dispatcher.call(call).answer().await
    };
    let mut response = match called.await.and_then(check_head) {
        Ok(answer) => encode(answer),
        Err(failure) => wire::failure_response(&failure, id.as_ref()),
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

/// What is between balancers and workers is not for clients that come through a proxy, and not for
/// pages in a browser on this machine.
fn refuse_strangers(request: &Request<Incoming>) -> Result<(), Failure> {
    let path = request.uri().path();
    if !path.starts_with(wire::INTERNAL) {
        return Ok(());
    }
    if wire::is_relayed(request.headers()) {
        return Err(no_such_path(path));
    }
    wire::refuse_pages(request.headers())
}

/// Decode: the headers say which bundle, or the registry does; the body is collected before the
/// call takes a slot, so a slow client cannot hold one.
async fn decode(
    shared: &Shared,
    target: wire::Target,
    id: RequestId,
    request: Request<Incoming>,
) -> Result<Called, Failure> {
    let limit = shared.config.body_limit;
    let (mut parts, body) = request.into_parts();
    if wire::declares_more_than(&parts.headers, limit) {
        return Err(wire::body_too_large(limit));
    }
    let (version, digest) = match digest_of(&parts.headers)? {
        Some(digest) => (version_of(&parts.headers)?, digest),
        None => {
            let resolved = shared.registry.resolve(&target.function).await?;
            resolved.manifest.admits(&parts.method)?;
            (Some(resolved.version), resolved.digest)
        }
    };
    let body = SteadyBody::new(body);
    let body = Limited::new(body, usize::try_from(limit).unwrap_or(usize::MAX)).collect().await;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            wire::body_too_large(limit)
        } else {
            Failure::new(FailureKind::BadRequest, format!("the body broke off: {error}"))
        }
    })?;
    let reservation = reservation_of(&parts.headers)?;
    let balancer = parts.headers.get(wire::BALANCER).cloned();
    wire::remove_hop_by_hop(&mut parts.headers);
    wire::remove_own(&mut parts.headers);
    Ok(Called {
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
        body: full_body(body.to_bytes()),
        reservation,
        balancer,
    })
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

/// Encode: the function's status and headers unchanged, and ours beside them. A reply that is still
/// on its way tells its run time in a trailer.
///
/// Headers that speak for the platform are not the function's to set, not even when it relays them
/// from another call: `started: no` would have the balancer run it again, and a length that is not
/// the body's would let the rest pass for the reply to somebody else's call.
fn encode(answer: Answer) -> Response<Body> {
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    let headers = response.headers_mut();
    wire::remove_hop_by_hop(headers);
    wire::remove_own(headers);
    headers.remove(CONTENT_LENGTH);
    headers.insert(wire::START, HeaderValue::from_static(answer.start.as_str()));
    if answer.idle {
        headers.insert(wire::IDLE, HeaderValue::from_static("1"));
    }
    let mut phases = answer.phases;
    let body = match answer.completion {
        CompletionOf::Known(completion) => {
            phases.run = completion.run;
            headers.append(wire::SERVER_TIMING, wire::server_timing(&phases, true));
            answer.body
        }
        CompletionOf::Streaming(completion) => {
            headers.append(wire::SERVER_TIMING, wire::server_timing(&phases, false));
            headers.insert(TRAILER, HeaderValue::from_static("server-timing"));
            streamed(answer.body, completion)
        }
    };
    response.map(|()| body)
}

/// A reply on its way: the function's data, then one frame of trailers with the run time. A handler
/// that fails midway breaks the body off, so that nobody takes the part for the whole.
fn streamed(body: Body, completion: oneshot::Receiver<Completion>) -> Body {
    let data = BodyStream::new(body).try_filter(|frame| std::future::ready(frame.is_data()));
    let last = stream::once(async move {
        let completion = completion.await?;
        if let Some(failure) = completion.failure {
            return Err(BoxError::from(failure));
        }
        let text = format!("run;dur={:.3}", completion.run.as_secs_f64() * 1e3);
        let mut trailers = HeaderMap::new();
        trailers.insert(wire::SERVER_TIMING, HeaderValue::from_str(&text)?);
        Ok(Frame::trailers(trailers))
    });
    // A connection is cut at once when its body breaks off: what came before has to be sent first.
    let frames = data.chain(last).then(|frame| async {
        if frame.is_err() {
            tokio::task::yield_now().await;
        }
        frame
    });
    StreamBody::new(frames).boxed_unsync()
}

/// The largest head of a request, bytes: what a balancer lets through, and what it adds.
const HEADER_LIMIT: usize = 80 << 10;

/// The largest body of a request between the project's own processes.
const INTERNAL_BODY: usize = 64 << 10;

/// A balancer has a place kept for a call, or gives it back.
async fn reservations(shared: &Shared, request: Request<Incoming>) -> Result<(), Failure> {
    let bad = |message: String| Failure::new(FailureKind::BadRequest, message);
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let below = path.strip_prefix(wire::RESERVATIONS_PATH).unwrap_or_default();
    match (parts.method, below.strip_prefix('/')) {
        (Method::POST, None) if below.is_empty() => {
            let body = Limited::new(body, INTERNAL_BODY).collect().await;
            let body = body.map_err(|error| bad(format!("the body cannot be read: {error}")))?;
            let reservation: Reservation = serde_json::from_slice(&body.to_bytes())
                .map_err(|error| bad(format!("this is no reservation: {error}")))?;
            shared.dispatcher.reserve(reservation)
        }
        (Method::DELETE, Some(key)) => {
            shared.dispatcher.cancel_reservation(key.parse()?);
            Ok(())
        }
        _ => Err(no_such_path(path)),
    }
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(empty_body());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Everything that is not a call.
fn operate(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return wire::failure_response(&no_such_path(request.uri().path()), None);
    }
    match request.uri().path() {
        "/status" => text("ready\n"),
        "/livez" => text("ok\n"),
        "/readyz" if shared.dispatcher.is_draining() => {
            let reasons = ["the worker is shutting down"];
            let mut response = wire::json_response(&json!({ "ready": false, "reasons": reasons }));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
        "/readyz" => wire::json_response(&json!({ "ready": true })),
        "/metrics" => wire::metrics_response(shared.dispatcher.metrics()),
        "/stats" => wire::json_response(&Stats {
            name: &shared.config.name,
            sandbox: shared.factory.kind(),
            load: shared.dispatcher.load(),
            counts: shared.dispatcher.counts(),
        }),
        wire::LOAD_PATH => wire::json_response(&shared.dispatcher.load()),
        wire::EVENTS_PATH => match balancer_of(request.uri().query()) {
            Ok(balancer) => events(shared.clone(), balancer),
            Err(failure) => wire::failure_response(&failure, None),
        },
        path => wire::failure_response(&no_such_path(path), None),
    }
}

fn no_such_path(path: &str) -> Failure {
    let path: String = path.chars().take(80).collect();
    let message = format!("there is nothing at {path}; call a function at /run/<function>");
    Failure::new(FailureKind::NotFound, message)
}

fn text(text: &'static str) -> Response<Body> {
    let mut response = Response::new(full_body(text));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[derive(Serialize)]
struct Stats<'a> {
    name: &'a str,
    sandbox: &'a str,
    load: WorkerLoad,
    counts: Counts,
}

/// The name by which a balancer subscribes, if it has one.
fn balancer_of(query: Option<&str>) -> Result<Option<String>, Failure> {
    let mut pairs = query.unwrap_or_default().split('&');
    let Some(name) = pairs.find_map(|pair| pair.strip_prefix("balancer=")) else {
        return Ok(None);
    };
    if wire::is_balancer_name(name) {
        return Ok(Some(name.to_owned()));
    }
    let message = "this cannot be a balancer's name; use up to 64 of A-Z a-z 0-9 . _ -";
    Err(Failure::new(FailureKind::BadRequest, message))
}

/// A stream of events, until it is dropped: then the balancer has gone, or has another one.
struct Subscription {
    shared: Arc<Shared>,
    stream: StreamId,
    told: mpsc::Receiver<Bytes>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.dispatcher.unsubscribe(self.stream);
    }
}

/// The stream of events for one balancer: a snapshot first and with every heartbeat, and what
/// happens between them.
fn events(shared: Arc<Shared>, balancer: Option<String>) -> Response<Body> {
    // Subscribed before the first snapshot: what happens between the two is told twice, not never.
    let (stream, told) = shared.dispatcher.subscribe(balancer);
    let beats = tokio::time::interval(shared.config.heartbeat);
    let subscription = Subscription { shared, stream, told };
    let lines = stream::unfold((subscription, beats), |(mut subscription, mut beats)| async move {
        let line = tokio::select! {
            line = subscription.told.recv() => gathered(line?, &mut subscription.told),
            _ = beats.tick() => snapshot(&subscription.shared),
        };
        Some((Ok(Frame::data(line)), (subscription, beats)))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    let json_lines = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(CONTENT_TYPE, json_lines);
    response
}

/// What else there is to tell by now goes with the line: under load, one write tells of many calls.
fn gathered(line: Bytes, told: &mut mpsc::Receiver<Bytes>) -> Bytes {
    let Ok(second) = told.try_recv() else { return line };
    let mut lines = BytesMut::from(line);
    lines.extend_from_slice(&second);
    while let Ok(line) = told.try_recv() {
        lines.extend_from_slice(&line);
    }
    lines.freeze()
}

fn snapshot(shared: &Shared) -> Bytes {
    line(&shared.dispatcher.snapshot(shared.incarnation))
}

/// Accepts connections until `over` resolves, then lets those that are open finish what they have
/// begun, within the worker's grace for replies.
pub(super) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    local: Option<UnixListener>,
    over: impl Future<Output = ()>,
) {
    let mut door = Door::new(listener, shared.config.patience.clone());
    if let Some(local) = local {
        door = door.and_local(local);
    }
    let (header_limit, drain) = (Some(HEADER_LIMIT), shared.config.reply_grace);
    let config = HttpConfig { header_limit, drain, ..HttpConfig::default() };
    let welcome = |_: &Patient<Stream>| {
        let shared = shared.clone();
        Ok(service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(answer(shared, request).await) }
        }))
    };
    HttpServer::new(door, config).run(welcome, over).await;
}
