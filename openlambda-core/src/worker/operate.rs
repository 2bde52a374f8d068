//! Answers operators' requests, and every other request that is not a call.

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::json;

use super::balancers::{balancer_of, events, no_such_path};
use super::shared::Shared;
use crate::balancing::WorkerLoad;
use crate::invocation::{Body, full_body};
use crate::scheduler::Counts;
use crate::wire;

/// Everything that is not a call.
pub(super) fn operate(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return wire::failure_response(&no_such_path(request.uri().path()), None);
    }
    match request.uri().path() {
        "/status" => text("ready\n"),
        "/livez" => text("ok\n"),
        "/readyz" if shared.dispatcher.is_draining() => {
            let reasons = ["the worker is shutting down"];
            let mut response = wire::json_response(&json!({ "ready": false, "reasons": reasons }));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
        "/readyz" => wire::json_response(&json!({ "ready": true })),
        "/metrics" => wire::metrics_response(shared.dispatcher.metrics(shared.bodies.held())),
        "/stats" => wire::json_response(&Stats {
            name: &shared.config.name,
            sandbox: shared.factory.kind(),
            load: shared.dispatcher.load(),
            counts: shared.dispatcher.counts(),
        }),
        wire::LOAD_PATH => wire::json_response(&shared.dispatcher.load()),
        wire::EVENTS_PATH => match balancer_of(request.uri().query()) {
            Ok(balancer) => events(shared.clone(), balancer),
            Err(failure) => wire::failure_response(&failure, None),
        },
        path => wire::failure_response(&no_such_path(path), None),
    }
}

fn text(text: &'static str) -> Response<Body> {
    let mut response = Response::new(full_body(text));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

#[derive(Serialize)]
struct Stats<'a> {
    name: &'a str,
    sandbox: &'a str,
    load: WorkerLoad,
    counts: Counts,
}
