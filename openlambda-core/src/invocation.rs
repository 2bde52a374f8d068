//! One call of a function: its request, its reply, and its record.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind};
use crate::format::FormatNumber;
use crate::function::{Digest, FunctionName, HEX_DIGITS, is_name_byte};
use crate::hash::mix;
use crate::time::Time;

/// The error of a body that breaks off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A streamed body, of a request or a reply. Data frames, then at most one frame of trailers.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is complete and in memory.
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body without bytes.
pub fn empty_body() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Names one invocation in every log, header and record: 1 to 64 of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RequestId(Box<str>);

impl RequestId {
    /// How long one may be, bytes.
    pub const LONGEST: usize = 64;

    /// An id in the form of a UUID (version 8: our own bits), from 128 bits.
    pub fn from_bits(high: u64, low: u64) -> Self {
        let bits = u128::from(high) << 64 | u128::from(low);
        // The version, 8, and the variant: the two bits 10.
        let bits = bits & !(0xf << 76) & !(3 << 62) | 8 << 76 | 2 << 62;
        let mut text = [b'-'; 36];
        let mut at = 0;
        for (n, byte) in bits.to_be_bytes().into_iter().enumerate() {
            at += usize::from(matches!(n, 4 | 6 | 8 | 10));
            text[at] = HEX_DIGITS[usize::from(byte >> 4)];
            text[at + 1] = HEX_DIGITS[usize::from(byte & 15)];
            at += 2;
        }
        RequestId(std::str::from_utf8(&text).expect("digits are ASCII").into())
    }

    /// The text form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Makes [`RequestId`]s that differ within a process and, by the seed, between processes.
#[derive(Debug)]
pub struct RequestIds {
    seed: u64,
    next: std::sync::atomic::AtomicU64,
}

impl RequestIds {
    /// Ids from `seed`: the same seed gives the same ids in the same order.
    pub fn new(seed: u64) -> Self {
        RequestIds { seed, next: std::sync::atomic::AtomicU64::new(0) }
    }

    /// The next id.
    pub fn next(&self) -> RequestId {
        let n = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        RequestId::from_bits(mix(self.seed, n), mix(n, self.seed))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RequestId {
    type Err = Failure;
    fn from_str(text: &str) -> Result<Self, Failure> {
        let valid =
            (1..=RequestId::LONGEST).contains(&text.len()) && text.bytes().all(is_name_byte);
        if valid {
            return Ok(RequestId(text.into()));
        }
        Err(Failure::new(
            FailureKind::BadRequest,
            "a request id is 1 to 64 letters, digits, dots, underscores and hyphens; leave the \
             header out to get one",
        ))
    }
}

impl TryFrom<String> for RequestId {
    type Error = Failure;
    fn try_from(text: String) -> Result<Self, Failure> {
        text.parse()
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> String {
        id.0.into()
    }
}

/// One call of a function, as a sandbox gets it.
pub struct Invocation {
    /// Its id.
    pub id: RequestId,
    /// The function, for the event and the log.
    pub function: FunctionName,
    /// When the handler must have answered, on the worker's clock.
    pub deadline: Time,
    /// The same moment in milliseconds since 1970, for the Runtime API's `Deadline-Ms`.
    pub deadline_unix_ms: u64,
    /// The client's request without the path to the function.
    pub head: RequestHead,
    /// The client's body. Its size was bounded before the invocation came to a sandbox.
    pub body: Body,
    /// The client asks for a WebSocket, and this is what it will send over it: frames of RFC 6455, unchecked
    /// and without a bound, until it closes or leaves. Trailers at its end have [`wire::CLOSE`].
    ///
    /// A sandbox that takes it answers with status 101 and the handshake's headers (`Upgrade` and
    /// `Connection` apart), and a body of frames for the client. One that ignores it answers like any other call,
    /// and the client's connection stays HTTP.
    ///
    /// [`wire::CLOSE`]: crate::wire::CLOSE
    pub websocket: Option<Body>,
}

impl Invocation {
    /// A call without a deadline, whose request is a body alone.
    pub fn new(id: RequestId, function: FunctionName, body: impl Into<Bytes>) -> Self {
        Invocation {
            id,
            function,
            deadline: Time::MAX,
            deadline_unix_ms: u64::MAX,
            head: RequestHead { path: "/".to_owned(), ..RequestHead::default() },
            body: full_body(body),
            websocket: None,
        }
    }
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invocation")
            .field("id", &self.id)
            .field("function", &self.function)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

/// The head of a client's request, relative to the function.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The path to the function, as `/run/blog`, without a `/` at its end: what a web application
    /// has to put before the paths of its links. Not decoded.
    pub root: String,
    /// The path below the function, with a leading `/`.
    pub path: String,
    /// The query string without `?`.
    pub query: Option<String>,
    /// End-to-end headers; hop-by-hop ones and our own are removed.
    pub headers: HeaderMap,
}

/// What a sandbox answers: the head, a body that may still be on its way, and when it is over.
pub struct Reply {
    /// The status that the client gets.
    pub status: StatusCode,
    /// The function's own headers.
    pub headers: HeaderMap,
    /// The body. Dropping it does not stop the handler.
    pub body: Body,
    /// Resolves when the handler has finished this invocation and the slot is free again, whether or not
    /// the body is read. Must be polled or kept; it needs no polling to make progress.
    pub done: BoxFuture<'static, Completion>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("status", &self.status).finish_non_exhaustive()
    }
}

/// How a handler finished an invocation.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// From the handing over of the event to the end of the reply.
    pub run: Duration,
    /// Whether the instance can take another invocation. `false` when it is broken or gone.
    pub reusable: bool,
    /// The failure, when the reply broke off.
    pub failure: Option<Failure>,
}

/// How warm the instance was that an invocation ran in. Sent as `x-openlambda-start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartKind {
    /// It waited for a sandbox that was made from nothing.
    Cold,
    /// It waited for a sandbox that was forked from a zygote.
    Zygote,
    /// The instance was there.
    Warm,
}

impl StartKind {
    /// The lower-case name.
    pub const fn as_str(self) -> &'static str {
        match self {
            StartKind::Cold => "cold",
            StartKind::Zygote => "zygote",
            StartKind::Warm => "warm",
        }
    }
}

impl FromStr for StartKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "cold" => Ok(StartKind::Cold),
            "zygote" => Ok(StartKind::Zygote),
            "warm" => Ok(StartKind::Warm),
            _ => Err(()),
        }
    }
}

/// Where an invocation's time went. Sent as `Server-Timing`, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Waiting for a slot: all time from arrival to the run that belongs to no other phase.
    pub queue: Duration,
    /// Fetching and unpacking the bundle.
    pub pull: Duration,
    /// Making the sandbox.
    pub create: Duration,
    /// From the start of the runtime until it asked for its first event.
    pub init: Duration,
    /// The handler.
    pub run: Duration,
}

/// One invocation, as one line of JSON: the same from a live and a simulated run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvocationRecord {
    /// The format of the line. The first key, so that a later one is refused for that and not for a key
    /// that is not known here.
    #[serde(default)]
    pub v: FormatNumber<1>,
    /// Its id.
    pub request_id: RequestId,
    /// The function.
    pub function: FunctionName,
    /// The bundle that ran, when it came so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The worker's name.
    pub worker: String,
    /// Nanoseconds on the recorder's clock when it arrived.
    pub arrived_ns: u64,
    /// How warm the instance was; absent when it never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<StartKind>,
    /// Nanoseconds of each phase.
    pub queue_ns: u64,
    /// See [`Phases::pull`].
    pub pull_ns: u64,
    /// See [`Phases::create`].
    pub create_ns: u64,
    /// See [`Phases::init`].
    pub init_ns: u64,
    /// See [`Phases::run`].
    pub run_ns: u64,
    /// On the way between balancer and worker, there and back, where the recorder knows: a simulator
    /// does, a worker does not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub network_ns: u64,
    /// `ok`, the failure's code, or `cancelled` when the client left before it ran.
    pub outcome: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_valid_and_differ() {
        let ids = RequestIds::new(7);
        let (a, b) = (ids.next(), ids.next());
        assert_ne!(a, b);
        assert_eq!(a.as_str().len(), 36);
        let from = RequestId::from_bits(0x0123_4567_89ab_cdef, 0x3edc_ba98_7654_3210);
        assert_eq!(from.as_str(), "01234567-89ab-8def-bedc-ba9876543210");
        assert_eq!(a.as_str().parse::<RequestId>().unwrap(), a);
        for bad in ["", "a b", "a\n", "é", &"a".repeat(65)] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
