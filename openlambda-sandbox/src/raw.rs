//! Requests without an envelope, for code that asks for them: the bootstrap of web applications does.
//!
//! Code that sends the header [`RAW`] with its `next` gets the request's body unchanged, and the rest of
//! the request in the header [`HEAD`], as JSON in which each byte is the character with its number:
//!
//! ```json
//! {"method": "GET", "root": "/run/blog", "path": "/a%20b", "query": "x=1",
//!  "headers": [["accept", "*/*"], ["x-a", "1"], ["x-a", "2"]]}
//! ```
//!
//! Such code may use two requests that Lambda's runtimes do not have:
//!
//! * `GET …/invocation/departed` is a long poll. It answers with the id of an invocation whose client
//!   has left in the middle of its streamed reply ([`DEPARTED`]); the code may then give it up.
//! * Code that sends the header [`WEBSOCKET`] with its `next` may get requests for a WebSocket, whose [`HEAD`] has
//!   `"websocket": true`. It may refuse as it would any other request. To accept it posts a streamed reply of
//!   status 101, with the headers of RFC 6455's handshake but `Upgrade` and `Connection`. That post is answered
//!   at once: the answer's body is what the client sends, the post's what it is sent, frames as they are in RFC
//!   6455. The former ends when the client has closed or left, or the call is over; if `TE: trailers` was
//!   sent, the trailer `X-OpenLambda-Close` says that nothing more is passed on and with which code to close.
//!   The call is over when the post ends.
//! * Code that sends the header [`FAREWELL`] with its `next` gets 410 in answer to a `next` when its idle
//!   instance is to end, and a moment to end by itself.
//!
//! The code posts its reply, buffered or streamed, with a [`HEAD`] of `status` and `headers`; the body is
//! the client's. A `Content-Length` among the headers is what the client is told, also in answer to `HEAD`; a
//! streamed reply that turns out shorter breaks off. Since headers carry both heads, bodies need no envelope: they are streamed unchanged,
//! without a copy.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use openlambda_core::invocation::RequestHead;
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind};
use openlambda_core::wire;
use serde::{Deserialize, Serialize};

use crate::event;

/// With a `next`: the code asks for requests without an envelope.
pub const RAW: HeaderName = HeaderName::from_static("openlambda-raw");

/// With a `next`: this code has something to do before its end.
pub const FAREWELL: HeaderName = HeaderName::from_static("openlambda-farewell");

/// With a `next`: this code takes requests for WebSockets.
pub const WEBSOCKET: HeaderName = HeaderName::from_static("openlambda-websocket");

/// The path, below `invocation/`, of the poll that answers with calls whose clients have left.
pub const DEPARTED: &str = "departed";

/// With what `next` answers and with a `response`: the head of the client's request or reply.
pub const HEAD: HeaderName = HeaderName::from_static("openlambda-head");

#[derive(Serialize)]
struct Request<'a> {
    method: &'a str,
    root: &'a str,
    path: &'a str,
    query: Option<&'a str>,
    headers: Vec<(&'a str, String)>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    websocket: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
}

/// The head of a request, for a `websocket` or not, as a [`HEAD`].
pub fn encode(head: &RequestHead, websocket: bool) -> HeaderValue {
    let latin1 = |value: &HeaderValue| value.as_bytes().iter().copied().map(char::from).collect();
    let request = Request {
        method: head.method.as_str(),
        root: &head.root,
        path: &head.path,
        query: head.query.as_deref(),
        headers: head.headers.iter().map(|(name, value)| (name.as_str(), latin1(value))).collect(),
        websocket,
    };
    let json = serde_json::to_string(&request).expect("it has nothing but text");
    // JSON leaves this one control character as it is, and headers do not.
    let json = json.replace('\x7f', "\\u007f");
    HeaderValue::try_from(json).expect("JSON in one line has no control characters")
}

/// The head of a reply, from its [`HEAD`]; one to a request for a `websocket` may have status 101.
///
/// # Errors
///
/// [`SandboxErrorKind::BadReply`] says what is wrong with it.
pub fn decode(
    head: &HeaderValue,
    websocket: bool,
) -> Result<(StatusCode, HeaderMap), SandboxError> {
    let reply: Reply = serde_json::from_slice(head.as_bytes())
        .map_err(|error| bad(format!("the reply's head is not valid: {error}")))?;
    let final_or_101 = |status: &StatusCode| {
        !status.is_informational() || (websocket && *status == StatusCode::SWITCHING_PROTOCOLS)
    };
    let status = StatusCode::from_u16(reply.status).ok().filter(final_or_101);
    let status =
        status.ok_or_else(|| bad(format!("{} is no HTTP status; use 200 to 999", reply.status)))?;
    let given = reply.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    event::check_headers(given)?;
    let mut headers = HeaderMap::with_capacity(reply.headers.len());
    for (name, value) in reply.headers {
        let bytes: Result<Vec<u8>, _> = value.chars().map(u8::try_from).collect();
        let value = bytes.ok().and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
        match (name.parse::<HeaderName>(), value) {
            (Ok(name), Some(value)) => headers.append(name, value),
            _ => return Err(bad(format!("the reply's header \"{name}\" is not valid"))),
        };
    }
    // How the reply is framed on its way is not the function's business.
    wire::remove_hop_by_hop(&mut headers);
    keep_one_length(&mut headers);
    Ok((status, headers))
}

/// The length that the body is to have stays: one number, or none at all.
fn keep_one_length(headers: &mut HeaderMap) {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let one = lengths.next().cloned().filter(|one| lengths.all(|other| other == one));
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(wire::DECLARED_LENGTH);
    let digits = |value: &HeaderValue| {
        value
            .to_str()
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?
            .parse::<u64>()
            .ok()
    };
    if let Some(length) = one.as_ref().and_then(digits) {
        headers.insert(wire::DECLARED_LENGTH, HeaderValue::from(length));
    }
}

fn bad(message: String) -> SandboxError {
    SandboxError::new(SandboxErrorKind::BadReply, message)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_s_head_has_every_byte_of_every_header() {
        let mut head = RequestHead {
            method: http::Method::PATCH,
            root: "/run/blog:live".to_owned(),
            path: "/a%20b/ü\x7f".to_owned(),
            query: Some("x=1&y".to_owned()),
            ..RequestHead::default()
        };
        for (name, value) in [("x-a", &b"1"[..]), ("cookie", b"a=\"b\\\""), ("x-a", b"\xff\tz")] {
            let value = HeaderValue::from_bytes(value).unwrap();
            head.headers.append(HeaderName::from_static(name), value);
        }
        let encoded = encode(&head, false);
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(encoded.as_bytes()).unwrap(),
            json!({
                "method": "PATCH", "root": "/run/blog:live", "path": "/a%20b/ü\u{7f}",
                "query": "x=1&y",
                "headers": [["x-a", "1"], ["x-a", "ÿ\tz"], ["cookie", "a=\"b\\\""]],
            })
        );
        let websocket = encode(&head, true);
        let websocket: serde_json::Value = serde_json::from_slice(websocket.as_bytes()).unwrap();
        assert_eq!(websocket["websocket"], true);
    }

    #[test]
    fn a_reply_s_head_keeps_repeated_headers_and_loses_how_it_is_framed() {
        let head = r#"{"status": 404, "headers": [["Set-Cookie", "a=1"], ["set-cookie", "b=ÿ"],
            ["Content-Length", "7"], ["connection", "x-b"], ["x-b", "1"], ["x-c", ""]]}"#;
        let head = HeaderValue::try_from(head.replace('\n', "")).unwrap();
        let (status, headers) = decode(&head, false).unwrap();
        assert_eq!(status, 404);
        let cookies: Vec<_> =
            headers.get_all("set-cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(cookies, [&b"a=1"[..], b"b=\xff"]);
        assert!(headers.len() == 4 && headers["x-c"].is_empty(), "{headers:?}");
        for (lengths, kept) in [
            (r#"["content-length", "7"]"#, Some("7")),
            (r#"["content-length", "7"], ["Content-Length", "7"]"#, Some("7")),
            (r#"["content-length", "7"], ["content-length", "8"]"#, None),
            (r#"["content-length", "+7"]"#, None),
            (r#"["content-length", "7, 7"]"#, None),
            (r#"["content-length", ""]"#, None),
        ] {
            let head = format!(r#"{{"status": 200, "headers": [{lengths}]}}"#);
            let (_, headers) = decode(&HeaderValue::try_from(head).unwrap(), false).unwrap();
            let length = headers.get(wire::DECLARED_LENGTH).map(|value| value.to_str().unwrap());
            assert_eq!(length, kept, "{lengths}");
        }
    }

    #[test]
    fn only_a_request_for_a_websocket_is_answered_with_101() {
        let head = HeaderValue::from_static(r#"{"status": 101, "headers": [["upgrade", "x"]]}"#);
        let (status, headers) = decode(&head, true).unwrap();
        assert!(status == StatusCode::SWITCHING_PROTOCOLS && headers.is_empty(), "{headers:?}");
        assert!(decode(&head, false).is_err());
        let early = HeaderValue::from_static(r#"{"status": 103, "headers": []}"#);
        assert!(decode(&early, true).is_err());
    }

    #[test]
    fn a_head_that_is_none_is_refused_with_the_reason() {
        for (head, why) in [
            ("", "head is not valid"),
            (r#"{"status": 200}"#, "headers"),
            (r#"{"status": 101, "headers": []}"#, "101 is no HTTP status"),
            (r#"{"status": 2000, "headers": []}"#, "2000 is no HTTP status"),
            (r#"{"status": 200, "headers": [["a b", "c"]]}"#, "\"a b\" is not valid"),
            (r#"{"status": 200, "headers": [["a", "b\nc"]]}"#, "\"a\" is not valid"),
            (r#"{"status": 200, "headers": [["a", "€"]]}"#, "\"a\" is not valid"),
        ] {
            let error = decode(&HeaderValue::try_from(head).unwrap(), false).unwrap_err();
            assert_eq!(error.kind, SandboxErrorKind::BadReply);
            assert!(error.message.contains(why), "{head}: {error}");
        }
        let many: Vec<_> = (0..40_000).map(|n| (format!("h{n}"), "")).collect();
        for headers in [json!([["a", "b".repeat(70_000)]]), json!(many)] {
            let head = json!({ "status": 200, "headers": headers }).to_string();
            let error = decode(&HeaderValue::try_from(head).unwrap(), false).unwrap_err();
            assert!(error.message.contains("64 KiB together"), "{error}");
        }
    }
}
