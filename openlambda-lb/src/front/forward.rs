//! One attempt at one worker: send the call, wait for the head of the reply.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{TRAILER, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use openlambda_core::failure::{Culprit, Failure, FailureKind, Started, chain};
use openlambda_core::invocation::{Body, RequestId};
use openlambda_core::wire;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::body::{CallBody, StreamedBody};
use super::decode::Call;
use super::limits::SLOWEST;
use super::resolver::Resolution;
use crate::workers::{Peer, SendError};

/// The largest reply that is read to see why a worker refused, and how long it may take.
const LARGEST_REFUSAL: usize = 64 << 10;
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// Sends the call to a worker, and names the reservation that it may have there. The reply's body streams.
///
/// # Errors
///
/// With what is known of its start: a refusal by the worker, that it cannot be reached, that the
/// connection broke, that it is silent for too long, that the client's own body is at fault.
pub(super) async fn forward(
    call: &Call,
    function: &Resolution,
    worker: &Peer,
    reservation: Option<&HeaderValue>,
    id: &RequestId,
) -> Result<Response<Body>, Failure> {
    let mut headers = call.headers.clone();
    if let Some(reservation) = reservation {
        headers.insert(wire::RESERVATION, reservation.clone());
    }
    let limit = call.limit.saturating_add(function.timeout);
    let uri = Uri::from(call.path.clone());
    match &call.body {
        CallBody::Kept(bytes) => {
            let request = request(&call.method, uri, headers, Full::new(bytes.clone()));
            let reply = timeout(limit, worker.send(request)).await;
            let reply = reply.map_err(|_| silent(limit, worker, id))?;
            refusal(reply.map_err(|error| explain(error, worker))?, worker).await
        }
        CallBody::Stream(body) => {
            let request = request(&call.method, uri, headers, body.next());
            let reply = in_time(limit, worker.stream(request), body).await;
            let reply = reply.map_err(|_| match body.awaited() {
                true => slow(limit),
                false => silent(limit, worker, id),
            })?;
            let explained = |error| body.failure().unwrap_or_else(|| explain(error, worker));
            refusal(reply.map_err(explained)?, worker).await
        }
        CallBody::WebSocket(from_client) => {
            // Of a GET the client to the worker takes for granted that it has no body.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            headers.insert(TRAILER, HeaderValue::from_static(wire::CLOSE_TRAILER));
            headers.insert(wire::WEBSOCKET, HeaderValue::from_static("1"));
            let request = request(&call.method, uri, headers, from_client.next());
            let reply = timeout(limit, worker.stream(request)).await;
            let reply = reply.map_err(|_| silent(limit, worker, id))?;
            refusal(reply.map_err(|error| explain(error, worker))?, worker).await
        }
    }
}

fn request<B>(method: &Method, uri: Uri, headers: HeaderMap, body: B) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

/// The worker's answer to a body that is on its way. As long as that comes steadily, the worker cannot have
/// answered, and has its time from then on.
async fn in_time<T>(
    limit: Duration,
    reply: impl Future<Output = T>,
    body: &StreamedBody,
) -> Result<T, Elapsed> {
    let mut reply = pin!(reply);
    let steady = SLOWEST.saturating_mul(limit.as_secs());
    loop {
        let before = body.came();
        let late = match timeout(limit, &mut reply).await {
            Ok(reply) => return Ok(reply),
            Err(late) => late,
        };
        if body.came() - before <= steady {
            return Err(late);
        }
    }
}

/// The client has not sent its body.
fn slow(limit: Duration) -> Failure {
    let message = format!("the body did not arrive within {limit:?}; send it faster");
    Failure::new(FailureKind::BadRequest, message).started(Started::Maybe)
}

/// The worker has not answered.
fn silent(limit: Duration, worker: &Peer, id: &RequestId) -> Failure {
    let message = format!(
        "worker {} did not answer within {limit:?}; see its log for request {id}",
        worker.name
    );
    Failure::new(FailureKind::Timeout, message).blame(Culprit::Worker).started(Started::Maybe)
}

/// Why there is no reply. Whether the call can have started is what matters.
fn explain(error: SendError, worker: &Peer) -> Failure {
    match error {
        SendError::Connect(error) | SendError::Unsent(error) => unreached(worker, chain(&*error)),
        SendError::Broken(error) => broken(worker, chain(&*error)),
    }
}

fn unreached(worker: &Peer, cause: String) -> Failure {
    let message = format!("worker {} cannot be reached: {cause}", worker.name);
    Failure::new(FailureKind::NoWorker, message).blame(Culprit::Worker)
}

fn broken(worker: &Peer, cause: String) -> Failure {
    let message = format!("the connection to worker {} broke: {cause}", worker.name);
    Failure::new(FailureKind::WorkerDied, message)
}

/// Turns a reply that says that the call has not started into its failure; other replies pass unchanged.
async fn refusal<B>(reply: Response<B>, worker: &Peer) -> Result<Response<Body>, Failure>
where
    B: http_body::Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    let worth_reading =
        matches!(reply.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            && reply.headers().get(wire::STARTED).is_some_and(|value| value == "no");
    if !worth_reading {
        return Ok(reply.map(|body| body.map_err(Into::into).boxed_unsync()));
    }
    let (parts, body) = reply.into_parts();
    let body = Limited::new(body, LARGEST_REFUSAL).collect();
    let body = timeout(REFUSAL_PATIENCE, body).await;
    let failure = match body {
        Ok(Ok(body)) => wire::read_failure(&parts.headers, &body.to_bytes()),
        // Too large, broken off, never at an end. That it has not started is known all the same.
        _ => None,
    };
    Err(failure.unwrap_or_else(|| {
        let kind = match parts.status {
            StatusCode::TOO_MANY_REQUESTS => FailureKind::QueueFull,
            _ => FailureKind::NoWorker,
        };
        let message = format!("worker {} refused the call ({})", worker.name, parts.status);
        Failure::new(kind, message).blame(Culprit::Worker)
    }))
}
