//! Answers to the code: accepted, or the reason why not.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{Either, Full};
use openlambda_core::invocation::Body;

/// What the code is told: at once, or for as long as its client's WebSocket is open.
pub(super) type Told = Either<Full<Bytes>, Body>;

/// That is all.
pub(super) fn whole(response: Response<Full<Bytes>>) -> Response<Told> {
    response.map(Either::Left)
}

/// Why a request of the code is refused.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    InvalidRequestId,
    InvalidState(&'static str),
    TooLarge,
    BodyLost,
    Ending,
    NotFound,
    NotAllowed(&'static str),
}

impl Refusal {
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let (status, kind, message) = match self {
            Refusal::InvalidRequestId => (
                StatusCode::BAD_REQUEST,
                "InvalidRequestID",
                "no such invocation; use the Lambda-Runtime-Aws-Request-Id of the last next",
            ),
            Refusal::InvalidState(message) => {
                (StatusCode::FORBIDDEN, "InvalidStateTransition", message)
            }
            Refusal::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                "the reply is over 6 MiB; return less, or stream it",
            ),
            Refusal::BodyLost => {
                (StatusCode::BAD_REQUEST, "InvalidRequest", "the request's body broke off")
            }
            Refusal::Ending => {
                (StatusCode::GONE, "InstanceEnding", "there are no more invocations; end now")
            }
            Refusal::NotFound => {
                (StatusCode::NOT_FOUND, "NotFound", "the Runtime API 2018-06-01 has no such path")
            }
            Refusal::NotAllowed(_) => {
                (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "see the header Allow")
            }
        };
        let body = serde_json::json!({ "errorMessage": message, "errorType": kind });
        let mut response = json_response(status, body.to_string());
        if let Refusal::NotAllowed(allowed) = self {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

pub(super) fn json_response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Exactly this: with anything more, clients hand raw bytes to handlers.
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn accepted() -> Response<Full<Bytes>> {
    json_response(StatusCode::ACCEPTED, r#"{"status":"OK"}"#)
}
