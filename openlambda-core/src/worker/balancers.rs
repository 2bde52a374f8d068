//! What balancers request of a worker beside calls: reservations, and a stream of its events.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::events::line;
use super::shared::Shared;
use crate::failure::{Failure, FailureKind};
use crate::invocation::Body;
use crate::wire::{self, Reservation};
use crate::worker_core::StreamId;

/// The largest body of a request between the project's own processes.
const INTERNAL_BODY: usize = 64 << 10;

/// A balancer has a place kept for a call, or gives it back.
pub(super) async fn reservations(
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<(), Failure> {
    let bad = |message: String| Failure::new(FailureKind::BadRequest, message);
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let below = path.strip_prefix(wire::RESERVATIONS_PATH).unwrap_or_default();
    match (parts.method, below.strip_prefix('/')) {
        (Method::POST, None) if below.is_empty() => {
            let body = Limited::new(body, INTERNAL_BODY).collect().await;
            let body = body.map_err(|error| bad(format!("the body cannot be read: {error}")))?;
            let reservation: Reservation = serde_json::from_slice(&body.to_bytes())
                .map_err(|error| bad(format!("this is not a reservation: {error}")))?;
            shared.dispatcher.reserve(reservation)
        }
        (Method::DELETE, Some(key)) => {
            shared.dispatcher.cancel_reservation(key.parse()?);
            Ok(())
        }
        _ => Err(no_such_path(path)),
    }
}

/// The stream of events for one balancer: a snapshot first and with every heartbeat, and what
/// happens between them.
pub(super) fn events(shared: Arc<Shared>, balancer: Option<String>) -> Response<Body> {
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

/// The name by which a balancer subscribes, if it has one.
pub(super) fn balancer_of(query: Option<&str>) -> Result<Option<String>, Failure> {
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

/// There is nothing at this path.
pub(super) fn no_such_path(path: &str) -> Failure {
    let path = wire::shown(path);
    let message = format!("there is nothing at {path}; call a function at /run/<function>");
    Failure::new(FailureKind::NotFound, message)
}
