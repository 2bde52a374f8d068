//! The headers between the two ends of the conversation.

use http::{HeaderMap, HeaderName, HeaderValue};
use openlambda_core::function::{FunctionName, Version};
use openlambda_core::invocation::RequestHead;
use openlambda_core::wire::TraceParent;

use crate::event;

/// From our bootstraps with an error after which they end.
pub const EXITING: HeaderName = HeaderName::from_static("openlambda-exiting");

/// From our bootstraps with a buffered `response`: the next event, please, in answer to it, as if it
/// had been asked for. Both ends are woken once for a call then, not twice. Any status but 200 is the
/// answer to the `response`, or to a `next` at that time.
pub const NEXT: HeaderName = HeaderName::from_static("openlambda-next");

/// From our bootstraps with a streamed `response`: they look for an answer while they send. One that comes
/// before the end says that the client has left; the rest is read all the same, and the call is over when
/// the body is.
pub(super) const EARLY: HeaderName = HeaderName::from_static("openlambda-early");

/// What `next` answers with beside the event: all headers but the id.
pub(super) fn next_headers(
    arn: &HeaderValue,
    head: &RequestHead,
    deadline_unix_ms: u64,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(6);
    let mut add = |name, value| headers.insert(HeaderName::from_static(name), value);
    add("content-type", HeaderValue::from_static("application/json"));
    add("lambda-runtime-deadline-ms", HeaderValue::from(deadline_unix_ms));
    add("lambda-runtime-invoked-function-arn", arn.clone());
    if let Some(trace) = trace_id(&head.headers) {
        add("lambda-runtime-trace-id", trace);
    }
    let context = head.headers.get("x-amz-client-context").and_then(|value| {
        // Base64 between client and edge, plain JSON from here on.
        let json = event::base64_decode(value.to_str().ok()?)?;
        // A header holds no line breaks.
        let compact = || serde_json::from_slice::<serde_json::Value>(&json).ok();
        let value = HeaderValue::from_bytes(&json).ok();
        value.or_else(|| HeaderValue::try_from(compact()?.to_string()).ok())
    });
    if let Some(context) = context {
        add("lambda-runtime-client-context", context);
    }
    headers
}

/// `arn:aws:lambda:local:000000000000:function:<name>[:<version>]`, as clients expect one.
pub fn arn(function: &FunctionName, version: Option<Version>) -> String {
    let version = version.map_or_else(String::new, |version| format!(":{version}"));
    format!("arn:aws:lambda:local:000000000000:function:{}{version}", function.name())
}

/// X-Ray's form of the caller's trace: its own header, or made from `traceparent`.
fn trace_id(headers: &HeaderMap) -> Option<HeaderValue> {
    if let Some(trace) = headers.get("x-amzn-trace-id") {
        return Some(trace.clone());
    }
    let TraceParent { trace, parent, sampled } = TraceParent::of(headers)?;
    let ((time, rest), sampled) = (trace.split_at(8), u8::from(sampled));
    HeaderValue::from_str(&format!("Root=1-{time}-{rest};Parent={parent};Sampled={sampled}")).ok()
}
