//! Replies that worker and balancer make themselves.

use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;

use crate::invocation::{Body, full_body};
use crate::json_lines;

/// The largest request and reply body, unless configured otherwise: Lambda's 6 MiB.
pub const DEFAULT_BODY_LIMIT: u64 = 6 << 20;

/// JSON as a reply with status 200.
pub fn json_response(value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(full_body(json_lines::line(value)));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Metrics as a reply.
pub fn metrics_response(text: String) -> Response<Body> {
    let mut response = Response::new(full_body(text));
    let kind = HeaderValue::from_static(crate::metrics::CONTENT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
