//! Makes a [`Call`] from a client's request: the first hop.

use std::time::Duration;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request};
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::invocation::{Body, RequestId, RequestIds};
use openlambda_core::wire::{self, Target};

use super::body::CallBody;
use super::forwarded::Origin;
use super::limits::{Limits, MOST_HEADERS};

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
    origin: Origin,
    limits: &Limits,
    ids: &RequestIds,
) -> (RequestId, Result<Call, Failure>) {
    let (id, given) = match wire::request_id_of(request.headers()) {
        Ok(Some(id)) => (id, Ok(())),
        Ok(None) => (ids.next(), Ok(())),
        Err(failure) => (ids.next(), Err(failure)),
    };
    let call = match given {
        Ok(()) => read(request, origin, limits, &id).await,
        Err(failure) => Err(failure),
    };
    (id, call)
}

async fn read(
    request: Request<Body>,
    origin: Origin,
    limits: &Limits,
    id: &RequestId,
) -> Result<Call, Failure> {
    let target = wire::parse_target(request.uri().path()).unwrap_or_else(|| {
        let uri = request.uri();
        let place = if uri.path().is_empty() { uri.to_string() } else { uri.path().to_owned() };
        let place = wire::shown(&place);
        let message = format!("there is nothing at {place}; call /run/<function>");
        Err(Failure::new(FailureKind::NotFound, message))
    })?;
    if request.method() == Method::CONNECT {
        let message =
            "CONNECT asks for a tunnel, and there is none; call functions with POST or GET";
        return Err(Failure::new(FailureKind::BadRequest, message));
    }
    if wire::declares_more_than(request.headers(), limits.body) {
        return Err(wire::body_too_large(limits.body));
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
    // The target's own host is the one that is meant (RFC 9112, 3.2.2). An empty one is none: the client to
    // the worker would write the worker's.
    let named = parts.uri.authority().map(|authority| {
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        HeaderValue::try_from(host).expect("an authority is text")
    });
    match named {
        Some(host) => drop(headers.insert(header::HOST, host)),
        None => drop(headers.entry(header::HOST).or_insert(HeaderValue::from_static(""))),
    }
    // Behind what `Connection` may have removed.
    origin.settle(&mut headers);
    headers.insert(wire::REQUEST_ID, wire::id_value(id));
    // The connection to the worker is ours, and we do take trailers.
    headers.insert(header::TE, HeaderValue::from_static("trailers"));

    let body = CallBody::read(body, limits.body).await?;
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
        limit: limits.silence,
    })
}
