//! The `x-openlambda-` headers, and which headers of others are forwarded.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::failure::{Detail, Failure, FailureKind};
use crate::invocation::RequestId;

/// The invocation's id, on requests (optional) and replies to clients (always).
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-openlambda-request-id");

/// `cold`, `zygote` or `warm`, on replies.
pub const START: HeaderName = HeaderName::from_static("x-openlambda-start");

/// The culprit of a failure, on replies.
pub const ERROR: HeaderName = HeaderName::from_static("x-openlambda-error");

/// Whether the handler may have started, on failures.
pub const STARTED: HeaderName = HeaderName::from_static("x-openlambda-started");

/// The code of a failure, as in its JSON, on replies: for clients that do not read bodies.
pub const FAILURE: HeaderName = HeaderName::from_static("x-openlambda-failure");

/// The bundle's digest, from balancer to worker.
pub const DIGEST: HeaderName = HeaderName::from_static("x-openlambda-digest");

/// The version's number, from balancer to worker, and on replies.
pub const VERSION: HeaderName = HeaderName::from_static("x-openlambda-version");

/// The worker's name, on replies to clients. Replies to a balancer have neither this nor the id, since the
/// balancer knows both.
pub const WORKER: HeaderName = HeaderName::from_static("x-openlambda-worker");

/// The call's reservation, a [`ReservationKey`](super::ReservationKey), from balancer to worker.
pub const RESERVATION: HeaderName = HeaderName::from_static("x-openlambda-reservation");

/// The balancer's name, as it subscribed to events, from balancer to worker.
pub const BALANCER: HeaderName = HeaderName::from_static("x-openlambda-balancer");

/// From worker to balancer, on a complete reply: an instance of the function is idle now. It replaces
/// [`WorkerEvent::Idle`](super::WorkerEvent::Idle), and saves a message.
pub const IDLE: HeaderName = HeaderName::from_static("x-openlambda-idle");

/// From a sandbox to its worker, on a reply: the length that the application has declared for it. (A
/// `Content-Length` there says nothing.)
pub const DECLARED_LENGTH: HeaderName = HeaderName::from_static("x-openlambda-declared-length");

/// From balancer to worker: the client asks for a WebSocket, and the request's body is what it will send over
/// it. From worker to balancer: it has one, and the reply's body is what it is sent. Between the two all stays
/// HTTP, so a worker's answer is a reply like any other until the client is told to switch.
pub const WEBSOCKET: HeaderName = HeaderName::from_static("x-openlambda-websocket");

/// A trailer of what a client sends over its WebSocket: nothing more is passed on, because who does so is
/// shutting down. Its value is the code to close the WebSocket with.
pub const CLOSE: HeaderName = HeaderName::from_static(CLOSE_TRAILER);

/// The name of [`CLOSE`], for a `Trailer` header.
pub const CLOSE_TRAILER: &str = "x-openlambda-close";

/// How much the caller is told of a failure, a [`Detail`], from balancer to worker; without it, everything.
pub const DETAIL: HeaderName = HeaderName::from_static("x-openlambda-detail");

/// Where the time went, on replies: <https://www.w3.org/TR/server-timing/>.
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// All our own headers start so; a balancer removes them from clients' requests.
pub const PREFIX: &str = "x-openlambda-";

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

/// Whether who sent these headers takes trailers after a reply's body (RFC 9110, section 10.1.4).
pub fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(http::header::TE).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// How much of a failure the caller is told, from a request's headers.
pub fn detail_of(headers: &HeaderMap) -> Detail {
    match headers.get(DETAIL) {
        Some(value) if value == "type" => Detail::Type,
        _ => Detail::Full,
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

/// Whether a request says that it has come through a proxy, which then stands for another client. Each
/// kind of proxy has its own way to say so.
pub fn is_relayed(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name == http::header::VIA || tells_origin(name))
}

/// Whether a header tells from where, or by which name, scheme and path, a proxy has got a request. So does
/// one with `_` in place of `-`: many readers take the two for one.
pub fn tells_origin(name: &HeaderName) -> bool {
    let name = name.as_str();
    if name.contains('_') {
        let name = name.replace('_', "-");
        return HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| tells_origin(&name));
    }
    match name.as_bytes().first() {
        Some(b'x') => matches!(
            name,
            "x-forwarded"
                | "x-forwarded-for"
                | "x-forwarded-proto"
                | "x-forwarded-host"
                | "x-forwarded-port"
                | "x-forwarded-prefix"
                | "x-forwarded-path"
                | "x-forwarded-uri"
                | "x-forwarded-by"
                | "x-forwarded-server"
                | "x-forwarded-scheme"
                | "x-forwarded-protocol"
                | "x-forwarded-ssl"
                | "x-real-ip"
                | "x-remote-ip"
                | "x-client-ip"
                | "x-cluster-client-ip"
                | "x-originating-ip"
                | "x-original-forwarded-for"
                | "x-original-host"
                | "x-original-url"
                | "x-rewrite-url"
                | "x-envoy-external-address"
                | "x-scheme"
                | "x-url-scheme"
                | "x-azure-clientip"
                | "x-azure-socketip"
                | "x-appengine-user-ip"
                | "x-proxyuser-ip"
        ),
        Some(b'f') => matches!(
            name,
            "forwarded"
                | "forwarded-for"
                | "fastly-client-ip"
                | "fly-client-ip"
                | "front-end-https"
        ),
        Some(b't') => name == "true-client-ip",
        Some(b'c') => matches!(
            name,
            "client-ip"
                | "cf-connecting-ip"
                | "cf-connecting-ipv6"
                | "cf-pseudo-ipv4"
                | "cf-visitor"
                | "cloudfront-viewer-address"
        ),
        Some(b'p') => name == "proxy-client-ip",
        Some(b'w') => name == "wl-proxy-client-ip",
        _ => false,
    }
}

/// Refuses requests that a browser makes on behalf of a page.
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

/// Refuses a request that two readers could understand differently: of two `Host` headers each may follow
/// another one (RFC 9112, 3.2), and a body in a transfer coding that is not `chunked`, once, ends where each
/// of them thinks that it does (6.1, 7). The server has to close the connection after the answer.
///
/// # Errors
///
/// [`FailureKind::BadRequest`].
pub fn refuse_ambiguous(headers: &HeaderMap) -> Result<(), Failure> {
    Frame::of(headers).refuse_ambiguous()
}

/// What of a request's head servers may understand differently. One pass finds it: to look a header up takes
/// as long as to pass by all that a request usually has.
struct Frame<'a> {
    host: Option<&'a HeaderValue>,
    hosts: usize,
    coding: Option<&'a HeaderValue>,
    codings: usize,
}

impl<'a> Frame<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let mut frame = Frame { host: None, hosts: 0, coding: None, codings: 0 };
        for (name, value) in headers {
            if *name == http::header::HOST {
                (frame.host, frame.hosts) = (Some(value), frame.hosts + 1);
            } else if *name == http::header::TRANSFER_ENCODING {
                (frame.coding, frame.codings) = (Some(value), frame.codings + 1);
            }
        }
        frame
    }

    fn refuse_ambiguous(&self) -> Result<(), Failure> {
        let chunked = |coding: &HeaderValue| {
            self.codings == 1 && coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked")
        };
        let message = match self.coding {
            _ if self.hosts > 1 => "the request has several Host headers; send one",
            Some(coding) if !chunked(coding) => {
                "the one transfer coding that is understood here is chunked, once; send the body as it is"
            }
            _ => return Ok(()),
        };
        Err(Failure::new(FailureKind::BadRequest, message))
    }
}

/// [`refuse_ambiguous`], and refuses a request that does not say by which name it means this server (RFC 9112,
/// 3.2): one of HTTP/1.1 without a `Host`, or any with one that is no name. The server has to close the connection after the answer.
///
/// # Errors
///
/// [`FailureKind::BadRequest`].
pub fn refuse_unclear(version: http::Version, headers: &HeaderMap) -> Result<(), Failure> {
    let frame = Frame::of(headers);
    frame.refuse_ambiguous()?;
    let message = match frame.host {
        None if version >= http::Version::HTTP_11 => {
            "the request has no Host header, which HTTP/1.1 asks for; send one"
        }
        Some(host) if !is_authority(host.as_bytes()) => {
            "the Host header is no name with or without a port; send one, as example.org:8080"
        }
        _ => return Ok(()),
    };
    Err(Failure::new(FailureKind::BadRequest, message))
}

/// Whether it can stand in a `Host`: nothing, or a name or address, and perhaps a port.
fn is_authority(host: &[u8]) -> bool {
    let (name, port) = match host.iter().rposition(|byte| *byte == b':') {
        Some(colon) => (&host[..colon], &host[colon + 1..]),
        None => (host, &b"0"[..]),
    };
    // As nearly all are.
    if name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        && !name.is_empty()
        && (1..5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit)
    {
        return true;
    }
    let authority = http::uri::Authority::try_from(host);
    host.is_empty() || authority.is_ok_and(|authority| !authority.as_str().contains('@'))
}

/// Whether `headers` declare a body of more than `limit` bytes.
pub fn declares_more_than(headers: &HeaderMap, limit: u64) -> bool {
    headers
        .get(http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .is_some_and(|length| length > limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_readers_could_understand_differently_is_refused() {
        for (lines, fits) in [
            (&[][..], true),
            (&[("host", "a")], true),
            (&[("host", "a"), ("host", "a")], false),
            (&[("host", "a"), ("host", "")], false),
            (&[("transfer-encoding", "chunked")], true),
            (&[("transfer-encoding", " CHUNKED\t")], true),
            (&[("transfer-encoding", "chunked, chunked")], false),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], false),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked;q=1")], false),
            (&[("transfer-encoding", "")], false),
            (&[("transfer-encoding", "identity")], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
            assert_eq!(refuse_ambiguous(&headers).is_ok(), fits, "{lines:?}");
        }
    }

    #[test]
    fn a_request_of_http_1_1_names_its_host() {
        for (version, host, fits) in [
            (http::Version::HTTP_11, None, false),
            (http::Version::HTTP_10, None, true),
            (http::Version::HTTP_11, Some(""), true),
            (http::Version::HTTP_11, Some("a_b.example:80"), true),
            (http::Version::HTTP_11, Some("[::1]:80"), true),
            (http::Version::HTTP_11, Some("a b"), false),
            (http::Version::HTTP_10, Some("a/b"), false),
            (http::Version::HTTP_11, Some("u@a"), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert("host", HeaderValue::from_str(host).unwrap());
            }
            assert_eq!(refuse_unclear(version, &headers).is_ok(), fits, "{version:?} {host:?}");
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
}
