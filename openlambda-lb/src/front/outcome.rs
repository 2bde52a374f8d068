//! From a worker's reply, or a failure, to what the client gets: the last hop.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body as _, Frame, SizeHint};
use openlambda_core::failure::Failure;
use openlambda_core::invocation::{Body, BoxError, RequestId, StartKind};
use openlambda_core::metrics::Outcome;
use openlambda_core::wire;
use tokio::time::Sleep;

use super::resolver::Resolution;
use crate::observe::telemetry::Record;
use crate::proxy::Stats;
use crate::workers::selector::{Peer, Route};

/// The reply on its way to the client. The call counts as in flight until its body ended.
pub(crate) fn stream(
    reply: Response<Body>,
    route: Route,
    limit: Duration,
    function: &Resolution,
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
    let body = ReplyBody {
        body,
        start,
        broken: None,
        ok: !parts.headers.contains_key(wire::ERROR),
        limit: limit + function.timeout,
        silence: None,
        route: Some(route),
        record: None,
    };
    Response::from_parts(parts, body)
}

/// The answer to the client, with what each answer carries.
pub(crate) fn answer(
    result: Result<Response<ReplyBody>, Failure>,
    id: &RequestId,
    worker: Option<&Peer>,
    stats: &Stats,
) -> Response<ReplyBody> {
    stats.calls.fetch_add(1, Ordering::Relaxed);
    let mut response = match result {
        Ok(response) => response,
        Err(failure) => {
            stats.failed(&failure);
            tracing::info!(request = %id, kind = %failure.kind, %failure, "call failed");
            wire::failure_response(&failure, Some(id)).map(ReplyBody::of)
        }
    };
    let headers = response.headers_mut();
    headers.insert(wire::REQUEST_ID, wire::id_value(id));
    if let Some(worker) = worker {
        headers.insert(wire::WORKER, worker.header.clone());
    }
    response
}

/// The record goes with the reply until it is at its end.
pub(crate) fn recorded(
    mut response: Response<ReplyBody>,
    mut record: Record,
) -> Response<ReplyBody> {
    record.replied(&response);
    response.body_mut().record = Some(record);
    response
}

/// A reply's body, which ends the call when it ends.
pub(crate) struct ReplyBody {
    body: Body,
    start: Option<StartKind>,
    ok: bool,
    /// Why it broke off, which the server is told when it has sent what came before: it cuts the
    /// connection at once.
    broken: Option<BoxError>,
    /// How long the worker may be silent in the middle.
    limit: Duration,
    /// Runs while the next frame is awaited.
    silence: Option<Pin<Box<Sleep>>>,
    /// Gone when the call is over. Dropping it counts the call as failed.
    route: Option<Route>,
    record: Option<Record>,
}

impl ReplyBody {
    /// One that no worker sends.
    pub(crate) fn of(body: Body) -> Self {
        let (start, broken, silence, route, record) = (None, None, None, None, None);
        ReplyBody { body, start, ok: true, broken, limit: Duration::MAX, silence, route, record }
    }

    fn end(&mut self, how: Outcome) {
        if let Some(route) = self.route.take() {
            route.completed(self.start, how == Outcome::Ok && self.ok);
        }
        if let Some(record) = self.record.take() {
            record.ended(how);
        }
    }
}

impl http_body::Body for ReplyBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Some(error) = this.broken.take() {
            this.end(Outcome::BrokenOff);
            return Poll::Ready(Some(Err(error)));
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.silence = None;
                match &frame {
                    None => this.end(Outcome::Ok),
                    Some(Err(_)) => {
                        this.broken = frame.and_then(Result::err);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Some(Ok(frame)) => {
                        if let Some(record) = &mut this.record {
                            record.sent(frame.data_ref().map_or(0, Bytes::len));
                            frame.trailers_ref().inspect(|trailers| record.trailers(trailers));
                        }
                        // A server does not ask for what comes after them.
                        if frame.is_trailers() {
                            this.end(Outcome::Ok);
                        }
                    }
                }
                Poll::Ready(frame)
            }
            Poll::Pending => {
                let limit = this.limit;
                if this.route.is_none() {
                    return Poll::Pending;
                }
                let silence =
                    this.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                std::task::ready!(silence.as_mut().poll(cx));
                this.end(Outcome::BrokenOff);
                let message =
                    format!("the worker was silent for {limit:?} in the middle of a reply");
                Poll::Ready(Some(Err(message.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        // A server does not ask for the end of a body whose length it knows.
        let ended = self.body.is_end_stream();
        self.end(if ended { Outcome::Ok } else { Outcome::Cancelled });
    }
}
