//! The code's end of the conversation as HTTP/1.1: connections, paths, refusals.

use std::convert::Infallible;
use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use openlambda_core::serving::{Door, HttpConfig, HttpServer, Patient, Stream};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::answer::read_error;
use super::{NEXT, Shared};
use crate::raw;

const MODE: HeaderName = HeaderName::from_static("lambda-runtime-function-response-mode");

/// Serves the code, until this is dropped.
pub(super) async fn serve(shared: Arc<Shared>, door: Door) {
    let mut config = HttpConfig::default();
    // Clients have a clock, and each line of a head is one to take apart.
    config.date = false;
    // When the code is gone, nobody is left to be answered.
    config.drain = Duration::ZERO;
    let welcome = |client: &Patient<Stream>| {
        let peer = Arc::new(Peer(client.get_ref().as_fd().try_clone_to_owned()?));
        let shared = Arc::clone(&shared);
        Ok(service_fn(move |request| {
            let (shared, peer) = (Arc::clone(&shared), Arc::clone(&peer));
            async move {
                let answer = route(shared, &peer, request).await;
                Ok::<_, Infallible>(answer.unwrap_or_else(Refusal::into_response))
            }
        }))
    };
    // A connection that breaks off is told by what it leaves unanswered.
    HttpServer::new(door, config).run(welcome, pending()).await;
}

/// The other end of a connection.
pub(super) struct Peer(OwnedFd);

impl Peer {
    /// Whether it has closed the connection, which the runtime may be about to tell us.
    pub(super) fn is_gone(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&self.0, &mut [0; 1], flags) {
            Ok((_, count)) => count == 0,
            Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }
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
    fn into_response(self) -> Response<Full<Bytes>> {
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

fn json_response(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    // Exactly this: with anything more, clients hand raw bytes to handlers.
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn accepted() -> Response<Full<Bytes>> {
    json_response(StatusCode::ACCEPTED, r#"{"status":"OK"}"#)
}

async fn route(
    shared: Arc<Shared>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let path = path.strip_prefix("/2018-06-01/runtime/").ok_or(Refusal::NotFound)?;
    let only = |method: Method, name| {
        if head.method == method { Ok(()) } else { Err(Refusal::NotAllowed(name)) }
    };
    if path == "invocation/next" {
        only(Method::GET, "GET")?;
        if head.headers.contains_key(raw::RAW) {
            shared.takes_raw.store(true, Ordering::SeqCst);
        }
        if head.headers.contains_key(raw::FAREWELL) {
            shared.says_farewell.store(true, Ordering::SeqCst);
        }
        return Ok(shared.next(peer).await?.into_response());
    }
    if path.strip_prefix("invocation/") == Some(raw::DEPARTED) {
        only(Method::GET, "GET")?;
        let id = serde_json::json!({ "id": shared.departed().await });
        return Ok(json_response(StatusCode::OK, id.to_string()));
    }
    if path == "init/error" {
        only(Method::POST, "POST")?;
        let error = read_error(&head.headers, body).await?;
        shared.init_failed(error)?;
        return Ok(accepted());
    }
    let (id, what) = path
        .strip_prefix("invocation/")
        .and_then(|path| path.split_once('/'))
        .ok_or(Refusal::NotFound)?;
    match what {
        "response" | "error" => only(Method::POST, "POST")?,
        _ => return Err(Refusal::NotFound),
    }
    let claim = shared.claim(id)?;
    if what == "error" {
        return claim.error(&head.headers, body).await;
    }
    let streams = head.headers.get(MODE).is_some_and(|mode| mode.as_bytes() == b"streaming");
    if streams {
        return claim.stream(&head.headers, body).await;
    }
    claim.response(&head.headers, body).await?;
    if head.headers.contains_key(NEXT) {
        return Ok(shared.next(peer).await?.into_response());
    }
    Ok(accepted())
}
