//! A call's way through the balancer: [`Front::call`] is the entry, and the function below it makes the
//! hops.
//!
//! The pure balancer decides whether a call that failed at a worker goes to another one; the rule is in
//! [`retry`](openlambda_core::balancing::retry). This file finds out what the rule asks for:
//!
//! * the call has not started when the worker could not be reached, when the request was never written
//!   to it, or when the worker's answer says so; and
//! * the body can be sent again when it is small and kept, or when none of it has been read yet.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use openlambda_core::balancing::retry::{FailedAttempt, Verdict};
use openlambda_core::failure::{Culprit, Detail, Failure, FailureKind, Started};
use openlambda_core::invocation::{Body, RequestIds};
use openlambda_core::serving::Access;
use openlambda_core::wire;

use super::body::CallBody;
use super::cors::Caller;
use super::decode::decode;
use super::forward::forward;
use super::forwarded::{Origin, TrustedProxies};
use super::limits::{Limits, Places};
use super::outcome;
use super::reply::{ReplyBody, recorded};
use super::resolver::Resolver;
use super::websocket::{self, Handshake};
use crate::observe::{Record, Stats, Subject, Telemetry};
use crate::workers::{Route, Selector};

/// What calls need.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) access: Arc<Access>,
    pub(crate) proxies: TrustedProxies,
    pub(crate) limits: Limits,
    pub(crate) places: Places,
    pub(crate) ids: Arc<RequestIds>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) selector: Arc<Selector>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) stats: Arc<Stats>,
    /// How much callers are told where a manifest does not say.
    pub(crate) detail: Detail,
}

impl Front {
    /// One call, from the client's request to the reply, whose body may still be on its way. Whatever goes
    /// wrong is an answer.
    pub(crate) async fn call(&self, request: Request<Body>, peer: SocketAddr) -> Response<Body> {
        let origin = self.proxies.origin(request.headers(), peer);
        let record = self.telemetry.begin(&request, origin.client(), Subject::Call);
        let caller = Caller::of(&request);
        // One count for all connections. Only calls: the checks must answer when it is full.
        let _place = match self.places.enter() {
            Ok(place) => place,
            Err(failure) => {
                record.refused();
                return self.unheard(&caller, &failure);
            }
        };
        // A panic, say in a policy of the user's own, ends one call only.
        let answer = AssertUnwindSafe(self.hops(request, origin, &caller, record)).catch_unwind();
        // Boxed, for the compiler cannot tell that so deep a future is Send.
        answer.boxed().await.unwrap_or_else(|_| {
            let message = "a part of the balancer panicked; its log says where";
            let failure = Failure::new(FailureKind::Internal, message);
            let failure = failure.blame(Culprit::Balancer).started(Started::Maybe);
            self.unheard(&caller, &failure)
        })
    }

    async fn hops(
        &self,
        request: Request<Body>,
        origin: Origin,
        caller: &Caller,
        mut record: Record,
    ) -> Response<Body> {
        let mut request = request;
        let trailers = wire::takes_trailers(request.headers());
        self.access.withhold(request.headers_mut());
        let mut handshake = Handshake::of(&mut request);
        let (id, call) = decode(request, origin, &self.limits, &self.ids).await;
        record.named(&id);
        let (mut resolved, mut worker) = (None, None);
        let mut detail = self.detail;
        let answer = async {
            let mut call = call?;
            record.takes(call.body.taken());
            let function = resolved.insert(self.resolver.resolve(&call.target.function).await?);
            let preflight = function.cors.as_ref().and_then(|cors| cors.preflight(caller));
            let meant = function.resolved();
            record.resolved(&meant.name, meant.version, &function.calls);
            if let Some(preflight) = preflight {
                record.was_preflight();
                return Ok(preflight.map(ReplyBody::of));
            }
            meant.manifest.admits(&call.method)?;
            if let Some(handshake) = &handshake {
                call.body = CallBody::WebSocket(handshake.body()?);
                handshake.refuse_strangers(caller, &call.headers, function)?;
            }
            call.headers.insert(wire::DIGEST, function.digest.clone());
            call.headers.insert(wire::VERSION, function.version.clone());
            detail = meant.manifest.errors.detail.unwrap_or(detail);
            if detail == Detail::Type {
                call.headers.insert(wire::DETAIL, HeaderValue::from_static("type"));
            }
            // For the worker to tell us of what it tells one balancer alone.
            call.headers.insert(wire::BALANCER, self.selector.header().clone());
            let mut route = Route::begin(&self.selector, &function.function);
            loop {
                let chosen = worker.insert(route.select().await?);
                record.tried(&chosen.name);
                match forward(&call, function, chosen, route.reservation(), &id).await {
                    Ok(mut reply) => {
                        if reply.headers_mut().remove(wire::IDLE).is_some() {
                            route.idle(chosen);
                        }
                        return Ok(outcome::stream(reply, route, call.limit, function, trailers));
                    }
                    Err(failure) => {
                        let body = call.body.can_be_sent_again();
                        let verdict = route.failed(&FailedAttempt::of(&failure, body));
                        tracing::debug!(request = %id, worker = %chosen.name, %failure, ?verdict, "failed");
                        match verdict {
                            Verdict::Retry => record.retried(),
                            Verdict::GiveUp(_) => return Err(failure),
                        }
                    }
                }
            }
        };
        let answer = answer.await;
        if resolved.is_none()
            && answer.is_err()
            && let Some(called) = caller.calls()
        {
            // The request was refused before it was looked at which function it calls.
            resolved = self.resolver.resolve(&called).await.ok();
        }
        let mut answer = outcome::answer(answer, &id, worker.as_deref(), detail, &self.stats);
        if let Some(cors) = resolved.as_ref().and_then(|function| function.cors.as_ref()) {
            cors.allow(caller, answer.headers_mut());
        }
        let Some(handshake) = handshake.take() else {
            return recorded(answer, record).map(BodyExt::boxed_unsync);
        };
        websocket::tell_version(&mut answer);
        match Handshake::is_accepted(&mut answer) {
            true => handshake.switch(recorded(answer, record)),
            false => {
                handshake.decline();
                recorded(answer, record).map(BodyExt::boxed_unsync)
            }
        }
    }

    /// The answer to a call that was not heard, or not to its end.
    fn unheard(&self, caller: &Caller, failure: &Failure) -> Response<Body> {
        let mut answer = wire::failure_response(failure, None);
        // Without a request to the registry: the balancer may be full.
        let function = caller.calls().and_then(|called| self.resolver.known(&called));
        if let Some(cors) = function.as_ref().and_then(|function| function.cors.as_ref()) {
            cors.allow(caller, answer.headers_mut());
        }
        answer
    }
}
