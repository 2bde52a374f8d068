//! Failures as HTTP statuses, headers and JSON, and back.

use std::time::Duration;

use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::headers::{ERROR, FAILURE, REQUEST_ID, STARTED, id_value};
use crate::failure::{Culprit, Failure, FailureKind, FunctionError, Started};
use crate::invocation::{Body, RequestId, full_body};
use crate::json_lines;

/// The one table that turns failures into HTTP.
pub const fn status_of(kind: FailureKind) -> StatusCode {
    match kind {
        FailureKind::BadRequest => StatusCode::BAD_REQUEST,
        FailureKind::Unauthorized => StatusCode::UNAUTHORIZED,
        FailureKind::Forbidden => StatusCode::FORBIDDEN,
        FailureKind::NotFound => StatusCode::NOT_FOUND,
        FailureKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        FailureKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        FailureKind::NoWebSocket => StatusCode::NOT_IMPLEMENTED,
        FailureKind::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        FailureKind::FunctionError | FailureKind::InitError | FailureKind::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        FailureKind::SandboxCrashed
        | FailureKind::OutOfMemory
        | FailureKind::BadReply
        | FailureKind::WorkerDied => StatusCode::BAD_GATEWAY,
        FailureKind::NoWorker
        | FailureKind::Draining
        | FailureKind::RegistryUnavailable
        | FailureKind::StartFailed => StatusCode::SERVICE_UNAVAILABLE,
        FailureKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The JSON of a failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailureBody {
    /// The kind's code.
    pub error: FailureKind,
    /// For a person.
    pub message: String,
    /// The invocation's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The exception's type, when the function raised.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its stack, outermost first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_trace: Option<Vec<String>>,
}

/// A failure as the reply that a client, or a balancer, gets.
pub fn failure_response(failure: &Failure, request_id: Option<&RequestId>) -> Response<Body> {
    let function_error = failure.function_error.as_deref();
    let body = FailureBody {
        error: failure.kind,
        message: failure.message.clone(),
        request_id: request_id.cloned(),
        kind: function_error.map(|error| error.kind.clone()),
        stack_trace: function_error.map(|error| error.stack_trace.clone()),
    };
    let mut response = Response::new(full_body(json_lines::line(&body)));
    *response.status_mut() = status_of(failure.kind);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ERROR, HeaderValue::from_static(lower(failure.culprit)));
    headers.insert(FAILURE, HeaderValue::from_static(failure.kind.code()));
    let started = match failure.started {
        Started::No => "no",
        Started::Maybe => "maybe",
        Started::Yes => "yes",
    };
    headers.insert(STARTED, HeaderValue::from_static(started));
    if let Some(id) = request_id {
        headers.insert(REQUEST_ID, id_value(id));
    }
    if let Some(after) = failure.retry_after.or_else(|| usual_retry_after(failure.kind)) {
        // Whole seconds; never 0, which clients read as "at once".
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    if failure.kind == FailureKind::Unauthorized {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"openlambda\""));
    }
    if let Some(allow) = failure.allow.as_deref().and_then(|allow| allow.parse().ok()) {
        headers.insert(ALLOW, allow);
    }
    response
}

/// The trailers that a streamed reply may have, for its `Trailer` header.
pub const TRAILERS: &str = "server-timing, x-openlambda-error, x-openlambda-failure";

/// The trailers that end a streamed reply which failed midway: the headers that its failure has otherwise.
pub fn failure_trailers(failure: &Failure) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(ERROR, HeaderValue::from_static(lower(failure.culprit)));
    trailers.insert(FAILURE, HeaderValue::from_static(failure.kind.code()));
    trailers
}

/// The same answer, after which the connection is closed.
pub fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Statuses that promise a `Retry-After` get a default one when no better time is known.
fn usual_retry_after(kind: FailureKind) -> Option<Duration> {
    matches!(status_of(kind), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
        .then_some(Duration::from_secs(1))
}

/// Reads a failure back from a reply. `None` when it is not one of ours.
pub fn read_failure(headers: &HeaderMap, body: &[u8]) -> Option<Failure> {
    let culprit: Culprit = from_word(headers.get(ERROR)?)?;
    let started: Started = from_word(headers.get(STARTED)?)?;
    let body: FailureBody = serde_json::from_slice(body).ok()?;
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let function_error = body.kind.map(|kind| {
        Box::new(FunctionError {
            message: body.message.clone(),
            kind,
            stack_trace: body.stack_trace.unwrap_or_default(),
        })
    });
    Some(Failure {
        kind: body.error,
        culprit,
        started,
        message: body.message,
        function_error,
        retry_after: seconds.map(Duration::from_secs),
        allow: headers.get(ALLOW).and_then(|value| Some(value.to_str().ok()?.into())),
    })
}

/// What kind of failure a reply is, by its headers alone. `None` when it is the function's own reply.
pub fn failure_kind_of(headers: &HeaderMap) -> Option<FailureKind> {
    let culprit: Culprit = from_word(headers.get(ERROR)?)?;
    let usual = match culprit {
        Culprit::Client => FailureKind::BadRequest,
        Culprit::Function => FailureKind::FunctionError,
        Culprit::Sandbox => FailureKind::SandboxCrashed,
        Culprit::Worker | Culprit::Balancer => FailureKind::Internal,
    };
    Some(headers.get(FAILURE).and_then(from_word).unwrap_or(usual))
}

fn from_word<T: for<'de> Deserialize<'de>>(value: &HeaderValue) -> Option<T> {
    let word =
        serde::de::value::StrDeserializer::<serde::de::value::Error>::new(value.to_str().ok()?);
    T::deserialize(word).ok()
}

const fn lower(culprit: Culprit) -> &'static str {
    match culprit {
        Culprit::Client => "client",
        Culprit::Function => "function",
        Culprit::Sandbox => "sandbox",
        Culprit::Worker => "worker",
        Culprit::Balancer => "balancer",
    }
}

/// The failure for a body over `limit`.
pub fn body_too_large(limit: u64) -> Failure {
    Failure::new(
        FailureKind::BodyTooLarge,
        format!("the body is larger than the limit of {limit} bytes; pass large data by reference"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_survives_the_wire() {
        for kind in FailureKind::ALL {
            let mut failure = Failure::new(kind, "why").blame(Culprit::Worker);
            failure.started = Started::Maybe;
            let id: RequestId = "r1".parse().unwrap();
            let response = failure_response(&failure, Some(&id));
            assert_eq!(response.status(), status_of(kind));
            assert_eq!(response.headers()[REQUEST_ID], "r1");
            assert_eq!(failure_kind_of(response.headers()), Some(kind));
            let text = format!(r#"{{"error":"{kind}","message":"why","request_id":"r1"}}"#);
            let mut read = read_failure(response.headers(), text.as_bytes()).unwrap();
            read.retry_after = None;
            assert_eq!(read, failure);
        }
    }
}
