//! The body of a reply on its way to the client: [`ReplyBody`].

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use openlambda_core::invocation::{Body, BoxError, StartKind};
use openlambda_core::metrics::Outcome;
use openlambda_core::wire;
use tokio::time::Sleep;

use crate::observe::Record;
use crate::workers::Route;

/// A reply's body, which ends the call when it ends.
pub(crate) struct ReplyBody {
    body: Body,
    start: Option<StartKind>,
    ok: bool,
    /// Its client takes trailers.
    trailers: bool,
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
        let (start, silence, route, record) = (None, None, None, None);
        let (ok, trailers, limit) = (true, false, Duration::MAX);
        ReplyBody { body, start, ok, trailers, limit, silence, route, record }
    }

    /// A worker's, which may be silent for `limit` in the middle. Its end is the end of the call, by
    /// `start` and `ok`.
    pub(super) fn from_worker(
        body: Body,
        route: Route,
        limit: Duration,
        start: Option<StartKind>,
        ok: bool,
    ) -> Self {
        let mut reply = ReplyBody::of(body);
        (reply.start, reply.ok, reply.limit, reply.route) = (start, ok, limit, Some(route));
        reply
    }

    /// Its client takes trailers: in them it is told of a failure midway, and else by a broken transfer.
    pub(super) fn takes_trailers(&mut self, takes: bool) {
        self.trailers = takes;
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
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.silence = None;
                let failed = frame.as_ref().and_then(|frame| {
                    let trailers = frame.as_ref().ok()?.trailers_ref()?;
                    wire::failure_kind_of(trailers)
                });
                if let Some(kind) = failed {
                    this.end(Outcome::BrokenOff);
                    if !this.trailers {
                        let why = format!("the call failed in the middle of its reply ({kind})");
                        return Poll::Ready(Some(Err(why.into())));
                    }
                }
                match &frame {
                    None => this.end(Outcome::Ok),
                    Some(Err(_)) => this.end(Outcome::BrokenOff),
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

/// The record goes with the reply until it is at its end.
pub(crate) fn recorded(
    mut response: Response<ReplyBody>,
    mut record: Record,
) -> Response<ReplyBody> {
    record.replied(&response);
    response.body_mut().record = Some(record);
    response
}
