//! The event that a handler gets, and the meaning of what it returns: the manifest's `event` key.
//!
//! [`encode`] makes the event: the JSON body itself, or an event of a Lambda Function URL (payload
//! version 2.0). [`decode`] turns what the handler returned into the client's reply.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, SET_COOKIE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use openlambda_core::function::FunctionName;
use openlambda_core::invocation::{RequestHead, RequestId};
use openlambda_core::manifest::EventFormat;
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind};
use openlambda_core::wire;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value, json};

/// The event of one invocation, as JSON.
///
/// # Errors
///
/// [`SandboxErrorKind::BadRequest`] when the body must be JSON and is not.
pub fn encode(
    format: EventFormat,
    id: &RequestId,
    function: &FunctionName,
    head: &RequestHead,
    body: Bytes,
    unix_ms: u64,
) -> Result<Bytes, SandboxError> {
    match format {
        EventFormat::Body => json_body(body),
        EventFormat::Http => Ok(http_event(id, function, head, &body, unix_ms).to_string().into()),
    }
}

/// The head and body of the client's reply.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

/// The most headers of a function's reply: HTTP clients, and balancers, take 100 in all.
pub const MOST_HEADERS: usize = 80;
/// What they may take together, names and values, bytes.
pub const HEADERS_LIMIT: usize = 64 << 10;

/// Whether a reply's headers get through to the client. They would break the connection to the balancer
/// otherwise, which would be taken for the worker's fault.
///
/// # Errors
///
/// [`SandboxErrorKind::BadReply`] says which bound they are over.
pub fn check_headers<'a>(
    headers: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<(), SandboxError> {
    let (mut count, mut bytes) = (0, 0);
    for (name, value) in headers {
        count += 1;
        bytes += name.len() + value.len();
        if count > MOST_HEADERS || bytes > HEADERS_LIMIT {
            return Err(bad_reply(format!(
                "the reply's headers are over {MOST_HEADERS}, or over {} KiB together; send fewer, \
                 or put what they hold into the body",
                HEADERS_LIMIT >> 10
            )));
        }
    }
    Ok(())
}

/// The client's reply, from what the handler returned.
///
/// # Errors
///
/// [`SandboxErrorKind::BadReply`] says what is wrong with it.
pub fn decode(format: EventFormat, reply: Bytes) -> Result<Answer, SandboxError> {
    if format == EventFormat::Http {
        match from_json::<HttpReply>(&reply) {
            Ok(reply) => return reply.into_answer(),
            // Anything without a statusCode is a body in itself.
            Err(error) => {
                if from_json::<Value>(&reply).is_ok_and(|reply| reply.get("statusCode").is_some()) {
                    return Err(bad_reply(format!(
                        "the handler's HTTP reply is not valid: {error}"
                    )));
                }
            }
        }
    }
    // A bootstrap of the user's own may answer with anything, as on AWS.
    let media_type = match std::str::from_utf8(&reply) {
        Ok(text) if serde_json::from_str::<IgnoredAny>(text).is_ok() => "application/json",
        Ok(_) => "text/plain; charset=utf-8",
        Err(_) => "application/octet-stream",
    };
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media_type))]);
    Ok(Answer { status: StatusCode::OK, headers, body: reply })
}

/// The head of a streamed reply, from its prelude `{statusCode, headers, cookies}`.
///
/// # Errors
///
/// [`SandboxErrorKind::BadReply`] says what is wrong with it.
pub fn decode_prelude(prelude: &[u8]) -> Result<(StatusCode, HeaderMap), SandboxError> {
    let mut prelude: HttpReply = from_json(prelude).map_err(|error| {
        bad_reply(format!("the streamed reply's prelude is not valid: {error}"))
    })?;
    prelude.body = None;
    let answer = prelude.into_answer()?;
    Ok((answer.status, answer.headers))
}

/// JSON of the code's. It may name half of a surrogate pair, which no Rust string can hold: that
/// becomes U+FFFD, as in any other text that is not whole.
pub(crate) fn from_json<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(json)
        .or_else(|error| serde_json::from_slice(&mend_surrogates(json)).map_err(|_| error))
}

fn mend_surrogates(json: &[u8]) -> Vec<u8> {
    let escaped = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut mended = Vec::with_capacity(json.len());
    let mut at = 0;
    while at < json.len() {
        let length = match (escaped(at), escaped(at + 6)) {
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                mended.extend_from_slice(b"\\ufffd");
                at += 6;
                continue;
            }
            // The second of two backslashes begins no escape.
            _ if json[at] == b'\\' => 2.min(json.len() - at),
            _ => 1,
        };
        mended.extend_from_slice(&json[at..at + length]);
        at += length;
    }
    mended
}

fn json_body(body: Bytes) -> Result<Bytes, SandboxError> {
    if body.trim_ascii().is_empty() {
        return Ok(Bytes::from_static(b"null"));
    }
    let why = match std::str::from_utf8(&body) {
        Ok(text) => match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => return Ok(body),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    Err(SandboxError::new(
        SandboxErrorKind::BadRequest,
        format!(
            "the body is not JSON ({why}); send JSON, or set event = \"http\" in the function's \
             ol.toml to take any body"
        ),
    ))
}

fn http_event(
    id: &RequestId,
    function: &FunctionName,
    head: &RequestHead,
    body: &[u8],
    unix_ms: u64,
) -> Value {
    let text = |name: &HeaderName| {
        head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let mut headers = Map::new();
    let mut cookies = Vec::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if name == COOKIE {
            cookies.extend(value.split(';').map(|cookie| Value::from(cookie.trim())));
        } else {
            append(&mut headers, name.as_str(), &value);
        }
    }
    let mut parameters = Map::new();
    let query = head.query.as_deref().unwrap_or_default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        append(&mut parameters, &percent_decode(key), &percent_decode(value));
    }
    let forwarded = text(&HeaderName::from_static("x-forwarded-for")).unwrap_or_default();
    let source = forwarded.split(',').next().map(str::trim).filter(|ip| !ip.is_empty());
    let domain = text(&HOST).unwrap_or_else(|| "localhost".to_owned());
    let mut event = json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": head.path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": function.name(),
            "domainName": domain,
            "domainPrefix": domain.split('.').next(),
            "http": {
                "method": head.method.as_str(),
                "path": head.path,
                "protocol": "HTTP/1.1",
                "sourceIp": source.unwrap_or("127.0.0.1"),
                "userAgent": text(&USER_AGENT),
            },
            "requestId": id.as_str(),
            "routeKey": "$default",
            "stage": "$default",
            "time": log_time(unix_ms),
            "timeEpoch": unix_ms,
        },
    });
    if !cookies.is_empty() {
        event["cookies"] = cookies.into();
    }
    if !parameters.is_empty() {
        event["queryStringParameters"] = parameters.into();
    }
    let utf8 = std::str::from_utf8(body);
    if !body.is_empty() {
        event["body"] = utf8.map_or_else(|_| base64_encode(body), str::to_owned).into();
    }
    event["isBase64Encoded"] = utf8.is_err().into();
    event
}

/// Repeated headers and parameters are joined by commas.
fn append(map: &mut Map<String, Value>, key: &str, value: &str) {
    match map.get_mut(key) {
        Some(Value::String(before)) => {
            before.push(',');
            before.push_str(value);
        }
        _ => {
            map.insert(key.to_owned(), value.into());
        }
    }
}

/// A handler's HTTP reply.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpReply {
    status_code: Value,
    #[serde(default)]
    headers: Option<Map<String, Value>>,
    #[serde(default)]
    cookies: Option<Vec<String>>,
    #[serde(default)]
    body: Option<Value>,
    #[serde(default)]
    is_base64_encoded: Option<bool>,
}

impl HttpReply {
    fn into_answer(self) -> Result<Answer, SandboxError> {
        let number = match &self.status_code {
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        };
        let status = number
            .and_then(|number| StatusCode::from_u16(u16::try_from(number).ok()?).ok())
            .filter(|status| status.as_u16() >= 200)
            .ok_or_else(|| {
                bad_reply(format!(
                    "statusCode {} is no HTTP status; use 200 to 999",
                    self.status_code
                ))
            })?;
        let mut headers = HeaderMap::new();
        let text = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let given = self.headers.unwrap_or_default().into_iter();
        let given: Vec<_> = given.map(|(name, value)| (name, text(value))).collect();
        let cookies = self.cookies.unwrap_or_default();
        // Before they are taken apart: there may be more than a map holds.
        check_headers(
            given
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_bytes()))
                .chain(cookies.iter().map(|cookie| (SET_COOKIE.as_str(), cookie.as_bytes()))),
        )?;
        for (name, text) in given {
            match (name.parse::<HeaderName>(), HeaderValue::from_bytes(text.as_bytes())) {
                (Ok(name), Ok(value)) => headers.append(name, value),
                _ => return Err(bad_reply(format!("the reply's header \"{name}\" is not valid"))),
            };
        }
        for cookie in cookies {
            let value = HeaderValue::from_bytes(cookie.as_bytes());
            let value = value.map_err(|_| bad_reply("a cookie of the reply is not valid"))?;
            headers.append(SET_COOKIE, value);
        }
        // How the reply is framed on its way is not the function's business.
        wire::remove_hop_by_hop(&mut headers);
        headers.remove(CONTENT_LENGTH);
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        let body = match self.body {
            None | Some(Value::Null) => Bytes::new(),
            Some(Value::String(text)) if self.is_base64_encoded == Some(true) => {
                base64_decode(&text)
                    .ok_or_else(|| {
                        bad_reply("isBase64Encoded is true, but the body is not base64")
                    })?
                    .into()
            }
            Some(Value::String(text)) => text.into(),
            Some(other) => other.to_string().into(),
        };
        Ok(Answer { status, headers, body })
    }
}

fn bad_reply(message: impl Into<String>) -> SandboxError {
    SandboxError::new(SandboxErrorKind::BadReply, message)
}

/// `+` is a space and `%41` is `A`; anything that is not well-formed stays as it is.
fn percent_decode(text: &str) -> String {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) => decoded.push(b' '),
            (byte, ..) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |n: usize| u32::from(group.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..4 {
            let sign = BASE64[(bits >> (18 - 6 * n)) as usize & 63];
            text.push(if n <= group.len() { char::from(sign) } else { '=' });
        }
    }
    text
}

/// `None` when it is not base64. Takes it with or without padding.
pub(crate) fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0;
        for n in 0..4 {
            let value = match group.get(n) {
                Some(sign) => BASE64.iter().position(|known| known == sign)?,
                None => 0,
            };
            bits = bits << 6 | value as u32;
        }
        match group.len() {
            1 => return None,
            count => bytes.extend_from_slice(&bits.to_be_bytes()[1..count]),
        }
    }
    Some(bytes)
}

/// `29/Feb/2024:23:59:59 +0000`, as in an access log.
fn log_time(unix_ms: u64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = unix_ms / 1000;
    // Years are counted from March, so that a leap day is the last of its year; the 400 years of
    // the Gregorian calendar have 146,097 days, and 719,468 lie between year 0 and 1970.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = year + era * 400 + u64::from(month >= 10);
    let month = MONTHS[(month as usize + 2) % 12];
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} +0000")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id() -> RequestId {
        "r1".parse().unwrap()
    }

    fn event(format: EventFormat, head: &RequestHead, body: &[u8]) -> Result<Value, SandboxError> {
        let body = Bytes::copy_from_slice(body);
        let event = encode(format, &id(), &"f".parse().unwrap(), head, body, 1_709_251_199_000)?;
        Ok(serde_json::from_slice(&event).unwrap())
    }

    #[test]
    fn a_json_body_is_the_event_and_an_empty_one_is_null() {
        let head = RequestHead::default();
        let body = |text: &str| event(EventFormat::Body, &head, text.as_bytes());
        assert_eq!(body("{\"a\": 1}").unwrap(), json!({"a": 1}));
        assert_eq!(body("").unwrap(), Value::Null);
        assert_eq!(body(" \n").unwrap(), Value::Null);
        for bad in ["{", "NaN", "{} {}", "'a'"] {
            let error = body(bad).unwrap_err();
            assert_eq!(error.kind, SandboxErrorKind::BadRequest);
            assert!(error.message.contains("event = \"http\""), "{error}");
        }
        let latin1 = event(EventFormat::Body, &head, b"\"\xe9\"").unwrap_err();
        assert_eq!(latin1.kind, SandboxErrorKind::BadRequest);
    }

    #[test]
    fn an_http_event_has_the_shape_of_a_function_url_s() {
        let mut head = RequestHead {
            method: http::Method::PUT,
            path: "/a/b".to_owned(),
            query: Some("x=1&x=2&y=a%20b+c&z".to_owned()),
            ..RequestHead::default()
        };
        for (name, value) in [("cookie", "a=1; b=2"), ("accept", "x"), ("accept", "y")] {
            head.headers.append(name, value.parse().unwrap());
        }
        let made = event(EventFormat::Http, &head, b"text").unwrap();
        assert_eq!(made["rawPath"], "/a/b");
        assert_eq!(made["queryStringParameters"], json!({"x": "1,2", "y": "a b c", "z": ""}));
        assert_eq!(made["cookies"], json!(["a=1", "b=2"]));
        assert_eq!(made["headers"], json!({"accept": "x,y"}));
        assert_eq!(made["requestContext"]["http"]["method"], "PUT");
        assert_eq!(made["requestContext"]["time"], "29/Feb/2024:23:59:59 +0000");
        assert_eq!((&made["body"], &made["isBase64Encoded"]), (&json!("text"), &json!(false)));
        let made = event(EventFormat::Http, &head, &[0xff, 0xfe]).unwrap();
        assert_eq!((&made["body"], &made["isBase64Encoded"]), (&json!("//4="), &json!(true)));
    }

    #[test]
    fn an_http_reply_sets_status_headers_cookies_and_body() {
        let reply = json!({
            "statusCode": 418, "headers": {"X-A": "1", "x-n": 2, "Connection": "close"},
            "cookies": ["a=1", "b=2"], "body": "//4=", "isBase64Encoded": true,
        });
        let answer = decode(EventFormat::Http, reply.to_string().into()).unwrap();
        assert_eq!(answer.status, 418);
        assert_eq!(
            (&answer.headers["x-a"], &answer.headers["x-n"]),
            (&"1".parse().unwrap(), &"2".parse().unwrap())
        );
        assert_eq!(answer.headers.get_all(SET_COOKIE).iter().count(), 2);
        assert!(!answer.headers.contains_key("connection"));
        assert_eq!(&*answer.body, [0xff, 0xfe]);

        let plain = decode(EventFormat::Http, "{\"a\": 1}".into()).unwrap();
        assert_eq!((plain.status, &*plain.body), (StatusCode::OK, &b"{\"a\": 1}"[..]));
        for bad in [
            json!({"statusCode": 99}),
            json!({"statusCode": "x"}),
            json!({"statusCode": 200, "headers": {"a b": "c"}}),
            json!({"statusCode": 200, "headers": {"a": "c\nd"}}),
            json!({"statusCode": 200, "body": "!", "isBase64Encoded": true}),
            json!({"statusCode": 200, "headers": ["a"]}),
            json!({"statusCode": 200, "cookies": "a"}),
            json!({"statusCode": 200, "headers": {"a": "b".repeat(1 << 20)}}),
            json!({"statusCode": 200, "cookies": vec!["a=b"; 100_000]}),
            json!({"statusCode": 200, "headers":
                (0..50_000).map(|n| (format!("h{n}"), "")).collect::<std::collections::BTreeMap<_, _>>()}),
        ] {
            let error = decode(EventFormat::Http, bad.to_string().into()).unwrap_err();
            assert_eq!(error.kind, SandboxErrorKind::BadReply, "{bad}");
        }
    }

    #[test]
    fn a_body_reply_is_passed_on_as_it_is_and_labelled() {
        for (reply, media_type) in [
            (&b"{\"statusCode\": 500}"[..], "application/json"),
            (b"hello", "text/plain; charset=utf-8"),
            (b"\xff", "application/octet-stream"),
        ] {
            let answer = decode(EventFormat::Body, Bytes::from_static(reply)).unwrap();
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.headers[CONTENT_TYPE], media_type);
            assert_eq!(&*answer.body, reply);
        }
    }

    #[test]
    fn halves_of_surrogate_pairs_are_replaced_and_nothing_else() {
        for (json, text) in [
            (r#""\ud800""#, "\u{fffd}"),
            (r#""a\udc00\ud83e\udd80\ud83eb""#, "a\u{fffd}🦀\u{fffd}b"),
            (r#""\\ud800 \ud800\u0041\n""#, "\\ud800 \u{fffd}A\n"),
        ] {
            assert_eq!(from_json::<String>(json.as_bytes()).unwrap(), text, "{json}");
        }
        assert!(from_json::<String>(br#""\ud8"#).is_err() && from_json::<String>(b"\\").is_err());
        let reply = Bytes::from_static(br#"{"statusCode": 404, "body": "\ud800"}"#);
        assert_eq!(decode(EventFormat::Http, reply).unwrap().status, 404);
    }

    proptest! {
        #[test]
        fn base64_survives_a_round_trip(bytes: Vec<u8>) {
            prop_assert_eq!(base64_decode(&base64_encode(&bytes)), Some(bytes));
        }
    }
}
