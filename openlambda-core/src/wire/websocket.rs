//! The handshake by which a client asks for a WebSocket (RFC 6455, section 4).

use http::header::{
    CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};

use super::headers::CLOSE;
use crate::failure::{Failure, FailureKind};

/// Whether a request asks to go on as a WebSocket. One that asks for another protocol, or in another way, is a
/// plain request: a server may ignore `Upgrade` (RFC 9110, section 7.8).
pub fn asks_for_websocket(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    *method == Method::GET
        && version == Version::HTTP_11
        && has_word(headers, UPGRADE, "websocket")
        && has_word(headers, CONNECTION, "upgrade")
}

fn has_word(headers: &HeaderMap, name: HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let mut words = values.flat_map(|value| value.split(','));
    words.any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// Refuses such a request if it is not as RFC 6455 has it.
///
/// # Errors
///
/// [`FailureKind::BadRequest`].
pub fn refuse_handshake(headers: &HeaderMap) -> Result<(), Failure> {
    let only = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(HeaderValue::as_bytes)
    };
    let length = headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
    let message = match (only(SEC_WEBSOCKET_VERSION), only(SEC_WEBSOCKET_KEY)) {
        _ if length || headers.contains_key(TRANSFER_ENCODING) => {
            "a request for a WebSocket has no body; send what you have to say over the WebSocket"
        }
        (Some(b"13"), Some(key)) if is_key(key) => return Ok(()),
        (Some(b"13"), _) => {
            "a request for a WebSocket has one Sec-WebSocket-Key, 16 random bytes in base64; send one"
        }
        _ => {
            "the version of WebSockets that is understood here is 13; send Sec-WebSocket-Version: 13"
        }
    };
    Err(Failure::new(FailureKind::BadRequest, message))
}

/// Whether it is the base64 of 16 bytes.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(digit)
}

/// The trailers that end what a client sends, when who passes it on is shutting down: RFC 6455's code 1001.
pub fn going_away() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert(CLOSE, HeaderValue::from_static("1001"));
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn headers(changed: &[(&str, Option<&str>)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in GOOD {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        for (name, value) in changed {
            let name: HeaderName = name.parse().unwrap();
            match value {
                Some(value) => drop(headers.insert(name, value.parse().unwrap())),
                None => drop(headers.remove(name)),
            }
        }
        headers
    }

    #[test]
    fn only_a_get_of_http_1_1_that_says_so_twice_asks_for_a_websocket() {
        let asks = |method, version, changed: &[_]| {
            asks_for_websocket(&method, version, &headers(changed))
        };
        assert!(asks(Method::GET, Version::HTTP_11, &[]));
        assert!(!asks(Method::POST, Version::HTTP_11, &[]));
        assert!(!asks(Method::GET, Version::HTTP_10, &[]));
        for changed in [
            ("connection", None),
            ("connection", Some("close")),
            ("upgrade", None),
            ("upgrade", Some("h2c")),
            ("upgrade", Some("websocket2")),
        ] {
            assert!(!asks(Method::GET, Version::HTTP_11, &[changed]), "{changed:?}");
        }
    }

    #[test]
    fn a_handshake_that_is_not_as_it_should_be_is_refused_with_the_reason() {
        assert!(refuse_handshake(&headers(&[])).is_ok());
        assert!(refuse_handshake(&headers(&[("content-length", Some("0"))])).is_ok());
        for (name, value, why) in [
            ("sec-websocket-version", None, "Sec-WebSocket-Version: 13"),
            ("sec-websocket-version", Some("8"), "Sec-WebSocket-Version: 13"),
            ("sec-websocket-key", None, "Sec-WebSocket-Key"),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZQ=="), "Sec-WebSocket-Key"),
            ("sec-websocket-key", Some("dGhlIHNhbXBsZSBub25jZQ=_"), "Sec-WebSocket-Key"),
            ("content-length", Some("3"), "no body"),
            ("transfer-encoding", Some("chunked"), "no body"),
        ] {
            let failure = refuse_handshake(&headers(&[(name, value)])).unwrap_err();
            assert!(failure.message.contains(why), "{name}: {failure}");
        }
        let mut twice = headers(&[]);
        twice.append("sec-websocket-key", HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(refuse_handshake(&twice).is_err());
    }
}
