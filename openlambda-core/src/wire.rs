//! Every header name and HTTP encoding between client, balancer and worker, in one place.
//!
//! # Late binding
//!
//! A balancer that has not chosen a worker yet may ask several for a place in their queues:
//!
//! ```text
//! balancer                                            worker
//!    │── GET /internal/events?balancer=B ──────────────▶│ one stream, kept open
//!    │── POST /internal/reservations {B, ticket, …} ───▶│ the place waits like a call
//!    │◀─ {"event": "offered", "ticket"} on B's stream ──│ a slot is held, for a short time
//!    │── /run/… with x-openlambda-reservation: B/ticket ▶│ runs in it
//!    │   or DELETE /internal/reservations/B/ticket ────▶│ the slot goes to the next
//! ```
//!
//! A call that names a reservation which is over, or never was, is a call like any other. All of it
//! may get lost: a reservation ends at its deadline, a held slot after the worker's time-out, and
//! both when the balancer's last stream of events ends.

use std::fmt::{self, Write as _};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::balancing::WorkerLoad;
use crate::failure::{Culprit, Failure, FailureKind, FunctionError, Started};
use crate::function::{DEFAULT_NAMESPACE, Digest, FunctionName, FunctionRef, Qualifier, Version};
use crate::invocation::{Body, Phases, RequestId, full_body};

/// The invocation's id, on requests (optional) and replies to clients (always).
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-openlambda-request-id");
/// `cold`, `zygote` or `warm`, on replies.
pub const START: HeaderName = HeaderName::from_static("x-openlambda-start");
/// The culprit of a failure, on replies.
pub const ERROR: HeaderName = HeaderName::from_static("x-openlambda-error");
/// Whether the handler may have started, on failures.
pub const STARTED: HeaderName = HeaderName::from_static("x-openlambda-started");
/// The code of a failure, as in its JSON, on replies: for those who do not read bodies.
pub const FAILURE: HeaderName = HeaderName::from_static("x-openlambda-failure");
/// The bundle's digest, from balancer to worker.
pub const DIGEST: HeaderName = HeaderName::from_static("x-openlambda-digest");
/// The version's number, from balancer to worker, and on replies.
pub const VERSION: HeaderName = HeaderName::from_static("x-openlambda-version");
/// The worker's name, on replies to clients. To a balancer, which knows both, a worker tells neither
/// this nor the id.
pub const WORKER: HeaderName = HeaderName::from_static("x-openlambda-worker");
/// The call's reservation, a [`ReservationKey`], from balancer to worker.
pub const RESERVATION: HeaderName = HeaderName::from_static("x-openlambda-reservation");
/// The balancer's name, as it subscribed to events, from balancer to worker.
pub const BALANCER: HeaderName = HeaderName::from_static("x-openlambda-balancer");
/// From worker to balancer, on a reply that is whole: an instance of the function is idle now. It is
/// the notice that would have come as [`WorkerEvent::Idle`], without a message of its own.
pub const IDLE: HeaderName = HeaderName::from_static("x-openlambda-idle");
/// Where the time went, on replies: <https://www.w3.org/TR/server-timing/>.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// All our own headers start so; a balancer removes them from clients' requests.
pub const PREFIX: &str = "x-openlambda-";

/// The largest request and reply body, unless configured otherwise: Lambda's 6 MiB.
pub const DEFAULT_BODY_LIMIT: u64 = 6 << 20;

/// Paths below this are between the project's own processes and are not forwarded.
pub const INTERNAL: &str = "/internal/";
/// On a balancer: POST an [`Announcement`].
pub const ANNOUNCE_PATH: &str = "/internal/workers";
/// On a worker: GET the stream of [`WorkerEvent`]s as JSON lines. With the query `balancer=` and a
/// name of `[A-Za-z0-9._-]`, up to 64 characters, the stream is that balancer's: it may make
/// reservations, and is told of offers.
pub const EVENTS_PATH: &str = "/internal/events";
/// On a worker: POST a [`Reservation`]; DELETE a [`ReservationKey`] below it. Both answer 204.
pub const RESERVATIONS_PATH: &str = "/internal/reservations";
/// On a worker: GET a [`WorkerLoad`].
pub const LOAD_PATH: &str = "/internal/load";
/// On a balancer: POST with a [`FunctionRef`] as text; it is resolved afresh before the reply.
pub const REFRESH_PATH: &str = "/internal/refresh";
/// On a balancer: GET a [`BalancerStatus`].
pub const CLUSTER_PATH: &str = "/internal/cluster";

/// Whether it is one of the hop-by-hop headers of RFC 9110, section 7.6.1, beside those that
/// `Connection` names.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    // By their text: to compare nine names with each of a head's is a tenth of what it takes to read.
    matches!(
        name.as_str(),
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

/// Removes the hop-by-hop headers and those that `Connection` names.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // To look is cheaper than to remove what is not there.
    let hop_by_hop = |name: &&HeaderName| is_hop_by_hop(name) || named.contains(name);
    let there: Vec<HeaderName> = headers.keys().filter(hop_by_hop).cloned().collect();
    for name in there {
        headers.remove(name);
    }
}

/// Removes our own headers, which a client must not set.
pub fn remove_own(headers: &mut HeaderMap) {
    let own: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(PREFIX)).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// An invocation's address in a URL's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The function and version.
    pub function: FunctionRef,
    /// The path to the function, without a `/` at its end; not decoded.
    pub root: String,
    /// The path below the function, with a leading `/`; not decoded.
    pub path: String,
}

/// Reads `/run/<fn>[/path]`, `/runLambda/<fn>[/path]` and `/ns/<namespace>/run/<fn>[/path]`.
///
/// `None` when the path is none of them.
///
/// # Errors
///
/// [`FailureKind::BadRequest`] for a name that is not valid.
pub fn parse_target(path: &str) -> Option<Result<Target, Failure>> {
    let (namespace, rest) = split_namespace(path)?;
    let rest = match rest.split_once('/') {
        Some(("run" | "runLambda", rest)) => rest,
        None if rest == "run" || rest == "runLambda" => "",
        _ => return None,
    };
    let (function, below) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let root = path.strip_suffix(below).unwrap_or(path);
    let parse = || {
        if function.is_empty() {
            let message = "no function is named; call /run/<function>";
            return Err(Failure::new(FailureKind::BadRequest, message));
        }
        let function = reference(namespace, function)?;
        let below = if below.is_empty() { "/" } else { below };
        Ok(Target { function, root: root.to_owned(), path: below.to_owned() })
    };
    Some(parse())
}

/// The path that invokes `function`: the reverse of [`parse_target`].
pub fn run_path(function: &FunctionRef) -> String {
    let local = FunctionRef {
        name: FunctionName::new(DEFAULT_NAMESPACE, function.name.name())
            .expect("it is part of a valid name"),
        qualifier: function.qualifier.clone(),
    };
    match function.name.namespace() {
        DEFAULT_NAMESPACE => format!("/run/{local}"),
        namespace => format!("/ns/{namespace}/run/{local}"),
    }
}

/// A path of the registry over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryPath {
    /// The namespace.
    pub namespace: String,
    /// The function; `None`: all of the namespace.
    pub function: Option<FunctionRef>,
    /// Its manifest alone is meant.
    pub config: bool,
}

/// Reads `/registry`, `/registry/`, `/registry/<fn>`, `/registry/<fn>/config`, and the same below
/// `/ns/<namespace>`.
///
/// `None` when the path is none of the registry's.
///
/// # Errors
///
/// [`FailureKind::BadRequest`] for a name that is not valid, [`FailureKind::NotFound`] for a path
/// below a function that leads nowhere.
pub fn parse_registry_path(path: &str) -> Option<Result<RegistryPath, Failure>> {
    let (namespace, rest) = split_namespace(path)?;
    let rest = match rest.strip_prefix("registry")? {
        "" => "",
        rest => rest.strip_prefix('/')?,
    };
    let (function, config) = match rest.split_once('/') {
        None => (rest, false),
        Some((function, "config")) => (function, true),
        Some(_) => {
            let message = "there is nothing here; ask for /registry/<function>/config";
            return Some(Err(Failure::new(FailureKind::NotFound, message)));
        }
    };
    let function = match function {
        "" if config => Err(Failure::new(FailureKind::BadRequest, "no function is named")),
        // The namespace alone has to be valid too.
        "" => FunctionName::new(namespace, "all").map(|_| None).map_err(bad_name),
        function => reference(namespace, function).map(Some),
    };
    let namespace = namespace.to_owned();
    Some(function.map(|function| RegistryPath { namespace, function, config }))
}

/// A path's namespace and what comes after it, without a leading `/`.
fn split_namespace(path: &str) -> Option<(&str, &str)> {
    match path.strip_prefix("/ns/") {
        Some(rest) => rest.split_once('/'),
        None => Some((DEFAULT_NAMESPACE, path.strip_prefix('/')?)),
    }
}

/// A function as it stands in a path.
fn reference(namespace: &str, function: &str) -> Result<FunctionRef, Failure> {
    // Only a digest's @ and a qualifier's : are ever percent-encoded in a valid reference.
    let decoded = function
        .contains('%')
        .then(|| function.replace("%3A", ":").replace("%3a", ":").replace("%40", "@"));
    let function = decoded.as_deref().unwrap_or(function);
    FunctionRef::parse_in(namespace, function).map_err(bad_name)
}

fn bad_name(error: crate::function::NameError) -> Failure {
    Failure::new(FailureKind::BadRequest, error.to_string())
}

/// The one table that turns failures into HTTP.
pub const fn status_of(kind: FailureKind) -> StatusCode {
    match kind {
        FailureKind::BadRequest => StatusCode::BAD_REQUEST,
        FailureKind::Forbidden => StatusCode::FORBIDDEN,
        FailureKind::NotFound => StatusCode::NOT_FOUND,
        FailureKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        FailureKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        FailureKind::QueueFull => StatusCode::TOO_MANY_REQUESTS,
        FailureKind::FunctionError | FailureKind::InitError | FailureKind::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        FailureKind::SandboxCrashed
        | FailureKind::OutOfMemory
        | FailureKind::BadReply
        | FailureKind::WorkerDied => StatusCode::BAD_GATEWAY,
        FailureKind::NoWorker
        | FailureKind::Draining
        | FailureKind::RegistryUnavailable
        | FailureKind::StartFailed => StatusCode::SERVICE_UNAVAILABLE,
        FailureKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The JSON of a failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailureBody {
    /// The kind's code.
    pub error: FailureKind,
    /// For a person.
    pub message: String,
    /// The invocation's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
    /// The exception's type, when the function raised.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Its stack, outermost first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack_trace: Option<Vec<String>>,
}

/// A failure as the reply that a client, or a balancer, gets.
pub fn failure_response(failure: &Failure, request_id: Option<&RequestId>) -> Response<Body> {
    let function_error = failure.function_error.as_deref();
    let body = FailureBody {
        error: failure.kind,
        message: failure.message.clone(),
        request_id: request_id.cloned(),
        kind: function_error.map(|error| error.kind.clone()),
        stack_trace: function_error.map(|error| error.stack_trace.clone()),
    };
    let mut text = serde_json::to_vec(&body).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(full_body(text));
    *response.status_mut() = status_of(failure.kind);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ERROR, HeaderValue::from_static(lower(failure.culprit)));
    headers.insert(FAILURE, HeaderValue::from_static(failure.kind.code()));
    let started = match failure.started {
        Started::No => "no",
        Started::Maybe => "maybe",
        Started::Yes => "yes",
    };
    headers.insert(STARTED, HeaderValue::from_static(started));
    if let Some(id) = request_id {
        headers.insert(REQUEST_ID, id_value(id));
    }
    if let Some(after) = failure.retry_after.or_else(|| usual_retry_after(failure.kind)) {
        // Whole seconds; never 0, which clients read as "at once".
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    if let Some(allow) = failure.allow.as_deref().and_then(|allow| allow.parse().ok()) {
        headers.insert(ALLOW, allow);
    }
    response
}

/// Statuses that promise a `Retry-After` get one even when nobody knows better.
fn usual_retry_after(kind: FailureKind) -> Option<Duration> {
    matches!(status_of(kind), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
        .then_some(Duration::from_secs(1))
}

/// Reads a failure back from a reply. `None` when it is not one of ours.
pub fn read_failure(headers: &HeaderMap, body: &[u8]) -> Option<Failure> {
    let culprit: Culprit = from_word(headers.get(ERROR)?)?;
    let started: Started = from_word(headers.get(STARTED)?)?;
    let body: FailureBody = serde_json::from_slice(body).ok()?;
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let function_error = body.kind.map(|kind| {
        Box::new(FunctionError {
            message: body.message.clone(),
            kind,
            stack_trace: body.stack_trace.unwrap_or_default(),
        })
    });
    Some(Failure {
        kind: body.error,
        culprit,
        started,
        message: body.message,
        function_error,
        retry_after: seconds.map(Duration::from_secs),
        allow: headers.get(ALLOW).and_then(|value| Some(value.to_str().ok()?.into())),
    })
}

/// What kind of failure a reply is, by its headers alone. `None` when it is the function's own reply.
pub fn failure_kind_of(headers: &HeaderMap) -> Option<FailureKind> {
    let culprit: Culprit = from_word(headers.get(ERROR)?)?;
    let usual = match culprit {
        Culprit::Client => FailureKind::BadRequest,
        Culprit::Function => FailureKind::FunctionError,
        Culprit::Sandbox => FailureKind::SandboxCrashed,
        Culprit::Worker | Culprit::Balancer => FailureKind::Internal,
    };
    Some(headers.get(FAILURE).and_then(from_word).unwrap_or(usual))
}

fn from_word<T: for<'de> Deserialize<'de>>(value: &HeaderValue) -> Option<T> {
    let word =
        serde::de::value::StrDeserializer::<serde::de::value::Error>::new(value.to_str().ok()?);
    T::deserialize(word).ok()
}

const fn lower(culprit: Culprit) -> &'static str {
    match culprit {
        Culprit::Client => "client",
        Culprit::Function => "function",
        Culprit::Sandbox => "sandbox",
        Culprit::Worker => "worker",
        Culprit::Balancer => "balancer",
    }
}

/// A request id as a header's value.
pub fn id_value(id: &RequestId) -> HeaderValue {
    HeaderValue::from_str(id.as_str()).expect("a request id has only header characters")
}

/// The request's id, when it carries a valid one.
///
/// # Errors
///
/// [`FailureKind::BadRequest`] when it carries one that is not valid.
pub fn request_id_of(headers: &HeaderMap) -> Result<Option<RequestId>, Failure> {
    let Some(value) = headers.get(REQUEST_ID) else { return Ok(None) };
    value.to_str().unwrap_or_default().parse().map(Some)
}

/// `queue;dur=0.1, pull;dur=0, …` in milliseconds, with `run` only when it is known.
pub fn server_timing(phases: &Phases, with_run: bool) -> HeaderValue {
    let all = [
        ("queue;dur=", phases.queue),
        (", pull;dur=", phases.pull),
        (", create;dur=", phases.create),
        (", init;dur=", phases.init),
        (", run;dur=", phases.run),
    ];
    let told = if with_run { &all[..] } else { &all[..4] };
    let mut text = String::with_capacity(96);
    for (name, duration) in told {
        text.push_str(name);
        push_ms(&mut text, *duration);
    }
    HeaderValue::from_maybe_shared(Bytes::from(text)).expect("digits and names are for headers")
}

/// Milliseconds with three digits after the point. Integers alone: each reply has five of these, and
/// to print a float takes as long as all else that is written of it.
fn push_ms(text: &mut String, duration: Duration) {
    let micros = duration.saturating_add(Duration::from_nanos(500)).as_micros();
    if micros == 0 {
        text.push_str("0.000");
        return;
    }
    let _ = write!(text, "{}.{:03}", micros / 1000, micros % 1000);
}

/// Reads what [`server_timing`] wrote, in a header, a trailer or both.
pub fn parse_server_timing<'a>(values: impl IntoIterator<Item = &'a HeaderValue>) -> Phases {
    let mut phases = Phases::default();
    for value in values {
        for entry in value.to_str().unwrap_or_default().split(',') {
            let Some((name, ms)) = entry.trim().split_once(";dur=") else { continue };
            let Ok(ms) = ms.parse::<f64>() else { continue };
            let Ok(duration) = Duration::try_from_secs_f64(ms / 1e3) else { continue };
            match name {
                "queue" => phases.queue = duration,
                "pull" => phases.pull = duration,
                "create" => phases.create = duration,
                "init" => phases.init = duration,
                "run" => phases.run = duration,
                _ => {}
            }
        }
    }
    phases
}

/// A worker tells a balancer where it is, when it starts and from time to time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Its stable name.
    pub name: String,
    /// Differs at every start of the worker, so that a restart is told from a repetition.
    pub incarnation: u64,
    /// Its address, `http://host:port`.
    pub url: String,
    /// Its share of the load.
    pub weight: f64,
    /// How many invocations it can run at once.
    pub capacity: u32,
}

/// Which reservation: its balancer's name, and the ticket by which that balancer knows the call. As
/// text `<balancer>/<ticket>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReservationKey {
    /// The balancer's name, as it subscribed to events.
    pub balancer: String,
    /// Its number for the call.
    pub ticket: u64,
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.balancer, self.ticket)
    }
}

impl FromStr for ReservationKey {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let parts = text.split_once('/').filter(|(balancer, _)| is_balancer_name(balancer));
        let key = parts.and_then(|(balancer, ticket)| {
            Some(ReservationKey { balancer: balancer.to_owned(), ticket: ticket.parse().ok()? })
        });
        key.ok_or_else(|| {
            let message = "this is no reservation; write <balancer>/<ticket>";
            Failure::new(FailureKind::BadRequest, message)
        })
    }
}

/// A balancer asks a worker to keep a place for a call that it may send later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The balancer's name, as it subscribed to events.
    pub balancer: String,
    /// Its number for the call.
    pub ticket: u64,
    /// What the call will ask for.
    pub function: FunctionName,
    /// The version's number.
    pub version: Version,
    /// The version's bundle.
    pub digest: Digest,
    /// For how long from now the place is kept, milliseconds.
    pub deadline_ms: u64,
}

/// Whether a request has come through a proxy, which then stands for somebody else.
pub fn is_relayed(headers: &HeaderMap) -> bool {
    headers.contains_key("x-forwarded-for") || headers.contains_key(http::header::FORWARDED)
}

/// Refuses what a browser asks on behalf of a page.
///
/// # Errors
///
/// [`FailureKind::Forbidden`]. Browsers say that a page asks in `Origin` or `Sec-Fetch-Site`.
pub fn refuse_pages(headers: &HeaderMap) -> Result<(), Failure> {
    let site = headers.get("sec-fetch-site").is_none_or(|site| site == "none");
    if site && !headers.contains_key(http::header::ORIGIN) {
        return Ok(());
    }
    let message = "a page in a browser cannot do this; use curl, or `ol` from a terminal";
    Err(Failure::new(FailureKind::Forbidden, message))
}

/// Whether a balancer may be called so towards workers.
pub fn is_balancer_name(name: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(valid)
}

/// What a worker tells each of its balancers, one JSON object a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum WorkerEvent {
    /// The state as a whole: first on every stream, and from time to time as a repair and a sign of
    /// life.
    Snapshot {
        /// The worker's name.
        name: String,
        /// See [`Announcement::incarnation`].
        incarnation: u64,
        /// The load.
        load: WorkerLoad,
        /// Functions with idle instances, and how many.
        idle: Vec<(FunctionName, u32)>,
        /// It takes no new invocations.
        draining: bool,
    },
    /// An instance became idle. Only one balancer is told.
    Idle {
        /// The function.
        function: FunctionName,
    },
    /// An instance is gone.
    Evicted {
        /// The function.
        function: FunctionName,
    },
    /// A slot is held for a reservation of the balancer whose stream this is; nobody else is told.
    Offered {
        /// The balancer's number for the call.
        ticket: u64,
    },
    /// It takes no new invocations from now on.
    Draining,
}

/// What a balancer says of itself and its workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BalancerStatus {
    /// The policy's name.
    pub policy: String,
    /// Its workers, by name.
    pub workers: Vec<WorkerStatus>,
}

/// What a balancer knows of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its stable name.
    pub name: String,
    /// Its address.
    pub url: String,
    /// `ready`, `unhealthy` or `draining`.
    pub state: String,
    /// Requests of this balancer in flight there.
    pub in_flight: u32,
    /// Its last report.
    pub load: WorkerLoad,
}

/// Whether `headers` declare a body of more than `limit` bytes.
pub fn declares_more_than(headers: &HeaderMap, limit: u64) -> bool {
    headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .is_some_and(|length| length > limit)
}

/// The failure for a body over `limit`.
pub fn body_too_large(limit: u64) -> Failure {
    Failure::new(
        FailureKind::BodyTooLarge,
        format!("the body is larger than the limit of {limit} bytes; pass large data by reference"),
    )
}

/// Whether a reference's meaning can change.
pub fn is_mutable(reference: &FunctionRef) -> bool {
    matches!(reference.qualifier, Qualifier::Latest | Qualifier::Alias(_))
}

/// JSON as a reply with status 200.
pub fn json_response(value: &impl Serialize) -> Response<Body> {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(full_body(Bytes::from(text)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_and_print() {
        let parse =
            |path: &str| parse_target(path).map(|r| r.map(|t| (t.function.to_string(), t.path)));
        let ok = |name: &str, path: &str| Some(Ok((name.to_owned(), path.to_owned())));
        assert_eq!(parse("/run/echo"), ok("echo", "/"));
        assert_eq!(parse("/runLambda/echo/a/b"), ok("echo", "/a/b"));
        assert_eq!(parse("/run/echo:3/"), ok("echo:3", "/"));
        assert_eq!(parse("/ns/team/run/echo%3Alive/x"), ok("team/echo:live", "/x"));
        assert_eq!(parse("/status"), None);
        assert_eq!(parse("/runner/echo"), None);
        assert!(parse("/run").unwrap().is_err());
        assert!(parse("/run/").unwrap().is_err());
        assert!(parse("/run/a%20b").unwrap().is_err());
        assert!(parse("/ns/../run/a").unwrap().is_err());
        for (path, root) in [
            ("/run/echo", "/run/echo"),
            ("/run/echo/", "/run/echo"),
            ("/ns/team/run/echo%3Alive/run/echo", "/ns/team/run/echo%3Alive"),
        ] {
            assert_eq!(parse_target(path).unwrap().unwrap().root, root);
        }
        for name in ["echo", "team/echo:live", "echo:3"] {
            let target = parse_target(&run_path(&name.parse().unwrap())).unwrap().unwrap();
            assert_eq!(target.function.to_string(), name);
        }
    }

    #[test]
    fn the_registrys_paths_parse() {
        let parse = |path: &str| {
            parse_registry_path(path).map(|parsed| {
                let of = |parsed: RegistryPath| {
                    let function = parsed.function.map(|function| function.to_string());
                    (parsed.namespace, function.unwrap_or_default(), parsed.config)
                };
                parsed.map(of).map_err(|failure| failure.kind)
            })
        };
        let ok = |namespace: &str, function: &str, config| {
            Some(Ok((namespace.to_owned(), function.to_owned(), config)))
        };
        assert_eq!(parse("/registry"), ok("default", "", false));
        assert_eq!(parse("/registry/"), ok("default", "", false));
        assert_eq!(parse("/registry/echo"), ok("default", "echo", false));
        assert_eq!(parse("/registry/echo:3/config"), ok("default", "echo:3", true));
        assert_eq!(parse("/ns/team/registry/echo%3Alive"), ok("team", "team/echo:live", false));
        assert_eq!(parse("/ns/team/registry/"), ok("team", "", false));
        for other in ["/registrynot", "/run/registry", "/ns/registry", "registry/"] {
            assert_eq!(parse(other), None, "{other}");
        }
        for bad in ["/registry//config", "/registry/a%20b", "/ns/../registry/", "/registry/."] {
            assert_eq!(parse(bad), Some(Err(FailureKind::BadRequest)), "{bad}");
        }
        for nowhere in ["/registry/echo/", "/registry/echo/config/", "/registry/echo/code"] {
            assert_eq!(parse(nowhere), Some(Err(FailureKind::NotFound)), "{nowhere}");
        }
    }

    #[test]
    fn every_failure_survives_the_wire() {
        for kind in FailureKind::ALL {
            let mut failure = Failure::new(kind, "why").blame(Culprit::Worker);
            failure.started = Started::Maybe;
            let id: RequestId = "r1".parse().unwrap();
            let response = failure_response(&failure, Some(&id));
            assert_eq!(response.status(), status_of(kind));
            assert_eq!(response.headers()[REQUEST_ID], "r1");
            assert_eq!(failure_kind_of(response.headers()), Some(kind));
            let text = format!(r#"{{"error":"{kind}","message":"why","request_id":"r1"}}"#);
            let mut read = read_failure(response.headers(), text.as_bytes()).unwrap();
            read.retry_after = None;
            assert_eq!(read, failure);
        }
    }

    #[test]
    fn reservations_are_named_and_read_back() {
        let key = ReservationKey { balancer: "b-1.x".to_owned(), ticket: u64::MAX };
        assert_eq!(key.to_string().parse::<ReservationKey>().unwrap(), key);
        for bad in ["", "/", "b", "b/", "/1", "b/x", "b/1/2", "b/-1", "b b/1"] {
            assert!(bad.parse::<ReservationKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hop_by_hop_headers_go_with_those_that_connection_names() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, X-Private"), ("x-private", "1"), ("te", "trailers"), ("a", "b")]
        {
            headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn server_timing_survives_a_round_trip() {
        let ms = Duration::from_millis;
        let phases = Phases { queue: ms(1), pull: ms(2), create: ms(3), init: ms(4), run: ms(5) };
        assert_eq!(parse_server_timing([&server_timing(&phases, true)]), phases);
    }
}
