//! One attempt at one worker: send the call, wait for the head of the reply.

use std::error::Error;
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use openlambda_core::failure::{Culprit, Failure, FailureKind, Started};
use openlambda_core::invocation::{Body, RequestId};
use openlambda_core::wire;

use super::HttpClient;
use super::decode::Call;
use super::resolver::Resolution;
use super::select::Peer;

/// The largest reply that is read to see why a worker refused, and how long it may take.
const LARGEST_REFUSAL: usize = 64 << 10;
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

/// Sends the call to a worker, and names the reservation that it may have there. The reply's body streams.
///
/// # Errors
///
/// With what is known of its start: a refusal by the worker, that it cannot be reached, that the
/// connection broke, that it is silent for too long, that the client's own body is at fault.
pub(crate) async fn forward(
    client: &HttpClient,
    call: &mut Call,
    function: &Resolution,
    worker: &Peer,
    reservation: Option<&HeaderValue>,
    id: &RequestId,
) -> Result<Response<Body>, Failure> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(worker.authority.clone())
        .path_and_query(call.path.clone())
        .build()
        .map_err(|error| Failure::new(FailureKind::BadRequest, format!("bad URL: {error}")))?;
    let mut request = Request::new(call.body.next());
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().insert(wire::DIGEST, function.digest.clone());
    request.headers_mut().insert(wire::VERSION, function.version.clone());
    if let Some(reservation) = reservation {
        request.headers_mut().insert(wire::RESERVATION, reservation.clone());
    }

    let limit = call.limit + function.timeout;
    let reply = match tokio::time::timeout(limit, client.request(request)).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(error)) => {
            return Err(call.body.failure().unwrap_or_else(|| explain(&error, worker)));
        }
        Err(_) if call.body.awaited() => {
            let message = format!("the body did not arrive within {limit:?}; send it faster");
            let failure = Failure::new(FailureKind::BadRequest, message);
            return Err(failure.started(Started::Maybe));
        }
        Err(_) => {
            let message = format!(
                "worker {} did not answer within {limit:?}; see its log for request {id}",
                worker.name
            );
            let failure = Failure::new(FailureKind::Timeout, message).blame(Culprit::Worker);
            return Err(failure.started(Started::Maybe));
        }
    };
    refusal(reply, worker).await
}

/// A connection's failure. Whether the call can have started is what matters.
fn explain(error: &hyper_util::client::legacy::Error, worker: &Peer) -> Failure {
    let cause = openlambda_core::failure::chain(error);
    let never_written = error
        .source()
        .and_then(|cause| cause.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_canceled);
    if error.is_connect() || never_written {
        let message = format!("worker {} cannot be reached: {cause}", worker.name);
        return Failure::new(FailureKind::NoWorker, message).blame(Culprit::Worker);
    }
    let message = format!("the connection to worker {} broke: {cause}", worker.name);
    Failure::new(FailureKind::WorkerDied, message)
}

/// Takes apart a reply that says that the call has not started; all others pass as they are.
async fn refusal(reply: Response<Incoming>, worker: &Peer) -> Result<Response<Body>, Failure> {
    let worth_reading =
        matches!(reply.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            && reply.headers().get(wire::STARTED).is_some_and(|value| value == "no");
    let (parts, body) = reply.into_parts();
    if !worth_reading {
        return Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()));
    }
    let body = Limited::new(body, LARGEST_REFUSAL).collect();
    let body = tokio::time::timeout(REFUSAL_PATIENCE, body).await;
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
