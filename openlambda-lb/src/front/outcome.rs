//! Makes the client's response from a worker's reply or a failure: the last hop.

use std::time::Duration;

use http::{Response, header};
use openlambda_core::failure::{Culprit, Detail, Failure};
use openlambda_core::invocation::{Body, RequestId, StartKind};
use openlambda_core::wire;

use super::reply::ReplyBody;
use super::resolver::Resolution;
use crate::observe::Stats;
use crate::workers::{Peer, Route};

/// The reply on its way to the client, who may take `trailers`. The call counts as in flight until its body
/// ended.
pub(super) fn stream(
    reply: Response<Body>,
    route: Route,
    limit: Duration,
    function: &Resolution,
    trailers: bool,
) -> Response<ReplyBody> {
    let (mut parts, body) = reply.into_parts();
    let trailer = parts.headers.remove(header::TRAILER);
    wire::remove_hop_by_hop(&mut parts.headers);
    // Trailers need this announcement. The server leaves them out for a client that takes none.
    if let Some(trailer) = trailer {
        parts.headers.insert(header::TRAILER, trailer);
    }
    parts.headers.entry(wire::VERSION).or_insert_with(|| function.version.clone());
    let start: Option<StartKind> =
        parts.headers.get(wire::START).and_then(|value| value.to_str().ok()?.parse().ok());
    let ok = !parts.headers.contains_key(wire::ERROR);
    let mut body = ReplyBody::from_worker(body, route, limit + function.timeout, start, ok);
    body.takes_trailers(trailers);
    Response::from_parts(parts, body)
}

/// The answer to the client, with what each answer carries.
pub(super) fn answer(
    result: Result<Response<ReplyBody>, Failure>,
    id: &RequestId,
    worker: Option<&Peer>,
    detail: Detail,
    stats: &Stats,
) -> Response<ReplyBody> {
    stats.answered();
    let mut response = match result {
        Ok(response) => response,
        Err(failure) => {
            stats.failed(&failure);
            // What clients do wrong is theirs to know; they could fill the log with it.
            match failure.culprit {
                Culprit::Client => {
                    tracing::debug!(request = %id, kind = %failure.kind, %failure, "call refused");
                }
                _ => tracing::info!(request = %id, kind = %failure.kind, %failure, "call failed"),
            }
            wire::failure_response(&failure.told(detail), Some(id)).map(ReplyBody::of)
        }
    };
    let headers = response.headers_mut();
    headers.insert(wire::REQUEST_ID, wire::id_value(id));
    if let Some(worker) = worker {
        headers.insert(wire::WORKER, worker.header.clone());
    }
    response
}
