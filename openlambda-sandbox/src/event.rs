//! The event that a handler gets, and the meaning of what it returns: the manifest's `event` key.
//!
//! [`encode`] makes the event: the JSON body itself, an event of a Lambda Function URL (payload version
//! 2.0), or one of API Gateway (payload version 1.0). [`decode`] turns what the handler returned into the
//! client's reply.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, SET_COOKIE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use openlambda_core::function::FunctionName;
use openlambda_core::invocation::{RequestHead, RequestId};
use openlambda_core::manifest::{EventFormat, RouteMatch, match_route};
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind};
use openlambda_core::wire;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The event of one invocation, as JSON.
///
/// With [`EventFormat::HttpV1`], `routes` are the templates of the manifest.
///
/// # Errors
///
/// [`SandboxErrorKind::BadRequest`] when the body must be JSON and is not.
pub fn encode(
    format: EventFormat,
    routes: &[String],
    id: &RequestId,
    function: &FunctionName,
    head: &RequestHead,
    body: Bytes,
    unix_ms: u64,
) -> Result<Bytes, SandboxError> {
    match format {
        EventFormat::Body => json_body(body),
        EventFormat::Http => Ok(http_event(id, function, head, &body, unix_ms).to_string().into()),
        EventFormat::HttpV1 => {
            Ok(v1_event(routes, id, function, head, &body, unix_ms).to_string().into())
        }
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
/// With [`EventFormat::Http`] an object with a `statusCode` is a reply's head and body, and anything else is
/// a body in itself. With [`EventFormat::HttpV1`] there is nothing but such objects.
///
/// # Errors
///
/// [`SandboxErrorKind::BadReply`] says what is wrong with it.
pub fn decode(format: EventFormat, reply: Bytes) -> Result<Answer, SandboxError> {
    if format != EventFormat::Body {
        let is_object = reply.trim_ascii_start().first() == Some(&b'{');
        match is_object.then(|| serde_json::from_slice::<Parts<'_>>(&reply)) {
            Some(Ok(parts)) if parts.contains_key("statusCode") => {
                return HttpReply(parts).into_answer(format);
            }
            // Clients are not to take a head that cannot be read for a body.
            Some(Err(error)) if contains(&reply, b"\"statusCode\"") => {
                return Err(bad_reply(format!("the handler's HTTP reply is not valid: {error}")));
            }
            _ if format == EventFormat::HttpV1 => {
                return Err(bad_reply(
                    "the handler's reply has no statusCode, which event = \"http-v1\" needs; return \
                     {\"statusCode\": 200, \"body\": …}",
                ));
            }
            _ => {}
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
    let parts = serde_json::from_slice::<Parts<'_>>(prelude);
    let parts = parts.map_err(|error| error.to_string()).and_then(|mut parts| {
        parts.remove("body");
        match parts.contains_key("statusCode") {
            true => Ok(parts),
            false => Err("it has no statusCode".to_owned()),
        }
    });
    let parts = parts
        .map_err(|why| bad_reply(format!("the streamed reply's prelude is not valid: {why}")))?;
    let answer = HttpReply(parts).into_answer(EventFormat::Http)?;
    Ok((answer.status, answer.headers))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
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

/// An event of API Gateway's REST APIs, payload version 1.0. There is one resource for each path that is like
/// none of the templates.
fn v1_event(
    routes: &[String],
    id: &RequestId,
    function: &FunctionName,
    head: &RequestHead,
    body: &[u8],
    unix_ms: u64,
) -> Value {
    let mut headers = Lists::default();
    for (name, value) in &head.headers {
        headers.add(name.as_str(), String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    let mut parameters = Lists::default();
    let query = head.query.as_deref().unwrap_or_default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        parameters.add(&percent_decode(key), percent_decode(value));
    }
    let last = |name: &str| headers.last.get(name).and_then(Value::as_str).map(str::to_owned);
    let forwarded = last("x-forwarded-for").unwrap_or_default();
    let source = forwarded.split(',').next().map(str::trim).filter(|ip| !ip.is_empty());
    let domain = last("host").unwrap_or_else(|| "localhost".to_owned());
    let below = head.path.trim_start_matches('/');
    let (resource, path_parameters) = match match_route(routes, &head.path) {
        Some(RouteMatch { route, parameters }) => (route, parameters),
        None if below.is_empty() => (&*head.path, Vec::new()),
        None => (&*head.path, vec![("proxy", below)]),
    };
    let path_parameters: Map<_, _> =
        path_parameters.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let utf8 = std::str::from_utf8(body);
    let text = utf8.map_or_else(|_| base64_encode(body), str::to_owned);
    let user_agent = last("user-agent");
    json!({
        "version": "1.0",
        "resource": resource,
        "path": head.path,
        "httpMethod": head.method.as_str(),
        "headers": headers.last,
        "multiValueHeaders": headers.all,
        "queryStringParameters": parameters.last_or_null(),
        "multiValueQueryStringParameters": parameters.all_or_null(),
        "pathParameters": (!path_parameters.is_empty()).then_some(path_parameters),
        "stageVariables": null,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": function.name(),
            "domainName": domain,
            "domainPrefix": domain.split('.').next(),
            "extendedRequestId": id.as_str(),
            "httpMethod": head.method.as_str(),
            "identity": {
                "accessKey": null,
                "accountId": null,
                "apiKey": null,
                "caller": null,
                "cognitoAuthenticationProvider": null,
                "cognitoAuthenticationType": null,
                "cognitoIdentityId": null,
                "cognitoIdentityPoolId": null,
                "principalOrgId": null,
                "sourceIp": source.unwrap_or("127.0.0.1"),
                "user": null,
                "userAgent": user_agent,
                "userArn": null,
            },
            "path": format!("{}{}", head.root, head.path),
            "protocol": "HTTP/1.1",
            "requestId": id.as_str(),
            "requestTime": log_time(unix_ms),
            "requestTimeEpoch": unix_ms,
            "resourceId": "$default",
            "resourcePath": resource,
            "stage": "$default",
        },
        "body": (!body.is_empty()).then_some(text),
        "isBase64Encoded": utf8.is_err(),
    })
}

/// Names that may come several times: all values of each, and the last.
#[derive(Default)]
struct Lists {
    last: Map<String, Value>,
    all: Map<String, Value>,
}

impl Lists {
    fn add(&mut self, name: &str, value: String) {
        let value = Value::from(value);
        match self.all.get_mut(name) {
            Some(Value::Array(values)) => values.push(value.clone()),
            _ => drop(self.all.insert(name.to_owned(), vec![value.clone()].into())),
        }
        self.last.insert(name.to_owned(), value);
    }

    fn last_or_null(&self) -> Value {
        if self.last.is_empty() { Value::Null } else { self.last.clone().into() }
    }

    fn all_or_null(&self) -> Value {
        if self.all.is_empty() { Value::Null } else { self.all.clone().into() }
    }
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

/// The values of an object, as the handler wrote them: numbers keep their digits, and objects their order.
type Parts<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// A handler's HTTP reply: `statusCode`, and optionally `headers`, `cookies`, `body`, `isBase64Encoded`; in
/// version 1.0 `multiValueHeaders` and no `cookies`.
struct HttpReply<'a>(Parts<'a>);

impl HttpReply<'_> {
    /// A value that is there and not `null`.
    fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.get(key).copied().filter(|value| value.get() != "null")
    }

    fn into_answer(self, format: EventFormat) -> Result<Answer, SandboxError> {
        let status = self.status()?;
        let mut given = Vec::new();
        let headers = self.fields("headers")?;
        let (cookies, lists) = match format {
            EventFormat::HttpV1 => (Vec::new(), self.fields("multiValueHeaders")?),
            _ => (self.texts("cookies")?, Vec::new()),
        };
        // Where both name a header, it has the values of both, and none twice.
        let has = |name: &str, value: &String| {
            let mut same = lists.iter().filter(|(list, _)| list.eq_ignore_ascii_case(name));
            same.any(|(_, values)| values.contains(value))
        };
        for (place, (name, values)) in lists.iter().enumerate() {
            // Some repeat a header in other letters, for services that take one value for each spelling.
            let mut before =
                lists[..place].iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
            if !before.any(|(_, others)| others == values) {
                given.extend(values.iter().map(|value| (&**name, value)));
            }
        }
        for (name, values) in &headers {
            let values = values.iter().filter(|value| !has(name, value));
            given.extend(values.map(|value| (&**name, value)));
        }
        given.extend(cookies.iter().map(|cookie| (SET_COOKIE.as_str(), cookie)));
        // Before they are taken apart: there may be more than a map holds.
        check_headers(given.iter().map(|(name, value)| (*name, value.as_bytes())))?;
        let mut headers = HeaderMap::new();
        for (name, text) in given {
            match (name.parse::<HeaderName>(), HeaderValue::from_bytes(text.as_bytes())) {
                (Ok(name), Ok(value)) => headers.append(name, value),
                _ => return Err(bad_reply(format!("the reply's header \"{name}\" is not valid"))),
            };
        }
        // How the reply is framed on its way is not the function's business.
        wire::remove_hop_by_hop(&mut headers);
        headers.remove(CONTENT_LENGTH);
        if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
            return Ok(Answer { status, headers, body: Bytes::new() });
        }
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        Ok(Answer { status, headers, body: self.body()? })
    }

    fn status(&self) -> Result<StatusCode, SandboxError> {
        let written = self.0.get("statusCode").map_or("null", |value| value.get());
        // A text is read as the number in it. `200.0` is what some languages make of 200.
        let number: Option<f64> = written.trim_matches('"').parse().ok();
        let whole =
            number.filter(|number| number.fract() == 0.0 && (200.0..=999.0).contains(number));
        whole.and_then(|number| StatusCode::from_u16(number as u16).ok()).ok_or_else(|| {
            let written: String = written.chars().take(80).collect();
            bad_reply(format!("statusCode {written} is no HTTP status; use 200 to 999"))
        })
    }

    fn body(&self) -> Result<Bytes, SandboxError> {
        let Some(body) = self.get("body") else { return Ok(Bytes::new()) };
        let encoded = match self.get("isBase64Encoded").map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(bad_reply("isBase64Encoded is neither true nor false")),
        };
        if !body.get().starts_with('"') {
            return Ok(Bytes::copy_from_slice(body.get().as_bytes()));
        }
        let text = text(body)?;
        if !encoded {
            return Ok(text.into());
        }
        let decoded = base64_decode(&text);
        let wrong = || bad_reply("isBase64Encoded is true, but the body is not base64");
        decoded.map(Bytes::from).ok_or_else(wrong)
    }

    /// Names, and the values of each.
    fn fields(&self, key: &str) -> Result<Vec<(String, Vec<String>)>, SandboxError> {
        let Some(fields) = self.get(key) else { return Ok(Vec::new()) };
        let fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(fields.get()).map_err(|error| {
                bad_reply(format!("the reply's {key} are not an object of texts: {error}"))
            })?;
        let fields = fields.into_iter().map(|(name, value)| {
            let values = values(value).map_err(|why| {
                bad_reply(format!("the value of the reply's header \"{name}\" is {why}"))
            })?;
            Ok((name, values))
        });
        fields.collect()
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, SandboxError> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(list) if list.get().starts_with('[') => {
                values(list).map_err(|why| bad_reply(format!("one of the reply's {key} is {why}")))
            }
            Some(_) => Err(bad_reply(format!("the reply's {key} are not a list"))),
        }
    }
}

/// The values that a header has: one, each of a list, or none for `null`.
fn values(value: &RawValue) -> Result<Vec<String>, &'static str> {
    let one = |value: &RawValue| match value.get() {
        "null" => Ok(None),
        list if list.starts_with('[') => Err("a list in a list; use texts"),
        object if object.starts_with('{') => Err("an object; use a text or a list of texts"),
        _ => text(value).map(Some).map_err(|_| "no text"),
    };
    if !value.get().starts_with('[') {
        return Ok(one(value)?.into_iter().collect());
    }
    let list: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(|_| "no list")?;
    list.into_iter().filter_map(|value| one(value).transpose()).collect()
}

/// A text, or a number or truth value as it was written.
fn text(value: &RawValue) -> Result<String, SandboxError> {
    if !value.get().starts_with('"') {
        return Ok(value.get().to_owned());
    }
    from_json(value.get().as_bytes())
        .map_err(|error| bad_reply(format!("a text of the reply is not valid: {error}")))
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

/// `None` when it is not base64. Takes it with or without padding, and in lines, as MIME has it.
pub(crate) fn base64_decode(text: &str) -> Option<Vec<u8>> {
    let in_one_line: String;
    let text = match text.contains(['\r', '\n']) {
        true => {
            in_one_line = text.replace(['\r', '\n'], "");
            &in_one_line
        }
        false => text,
    };
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
        let event =
            encode(format, &[], &id(), &"f".parse().unwrap(), head, body, 1_709_251_199_000)?;
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
    fn a_list_is_a_body_and_what_cannot_be_read_is_no_body() {
        let http =
            |reply: &str| decode(EventFormat::Http, Bytes::copy_from_slice(reply.as_bytes()));
        for body in ["[404]", "[301, {\"location\": \"/x\"}]", "[{\"id\": 1}]", "\"text\"", "7"] {
            let answer = http(body).unwrap();
            assert_eq!((answer.status, &*answer.body), (StatusCode::OK, body.as_bytes()), "{body}");
            assert_eq!(answer.headers[CONTENT_TYPE], "application/json");
        }
        let own = r#"{"z": 1, "id": 12345678901234567890123, "a": 1e2, "f": 1.10, "e": 1e999}"#;
        let answer = http(&format!(r#"{{"statusCode": 200, "body": {own}}}"#)).unwrap();
        assert_eq!(&*answer.body, own.as_bytes());
        let deep = "[".repeat(5000) + &"]".repeat(5000);
        let answer = http(&format!(r#"{{"statusCode": 200, "body": {deep}}}"#)).unwrap();
        assert_eq!(&*answer.body, deep.as_bytes());
        for (reply, status) in [
            (r#"{"statusCode": 200.0}"#, 200),
            (r#"{"statusCode": "204"}"#, 204),
            (r#"{"statusCode": 2.01e2}"#, 201),
            (r#"{"statusCode": 500, "statusCode": 404}"#, 404),
            (r#"{"statusCode": 200, "headers": null, "cookies": null, "body": null}"#, 200),
        ] {
            assert_eq!(http(reply).unwrap().status, status, "{reply}");
        }
        for bad in [
            r#"{"statusCode": 200.5}"#,
            r#"{"statusCode": null}"#,
            r#"{"statusCode": [200]}"#,
            r#"{"statusCode": 1e9}"#,
            r#"{"statusCode": 200, "headers": [["a", "b"]]}"#,
            r#"{"statusCode": 200, "headers": {"a": {"b": "c"}}}"#,
            r#"{"statusCode": 200, "headers": {"a": [["b"]]}}"#,
            r#"{"statusCode": 200, "body": "x", "isBase64Encoded": 1}"#,
            r#"{"statusCode": 200, "body": NaN}"#,
            r#"{"statusCode": 200, "#,
        ] {
            assert_eq!(http(bad).unwrap_err().kind, SandboxErrorKind::BadReply, "{bad}");
        }
        let not_utf8 = Bytes::from_static(b"{\"statusCode\": 200, \"body\": \"\xff\"}");
        assert!(decode(EventFormat::Http, not_utf8).is_err());
    }

    #[test]
    fn headers_may_be_lists_numbers_or_null() {
        let reply = r#"{"statusCode": 200, "body": "aGVs\nbG8=\r\n", "isBase64Encoded": true, "headers":
            {"set-cookie": ["a=1", "b=2"], "x-n": 1.50, "x-t": true, "x-null": null, "x-l": [1, null]}}"#;
        let answer = decode(EventFormat::Http, reply.into()).unwrap();
        let all = |name: &str| {
            let values = answer.headers.get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("|")
        };
        assert_eq!((&*all("set-cookie"), &*all("x-n"), &*all("x-t")), ("a=1|b=2", "1.50", "true"));
        assert_eq!((&*all("x-null"), &*all("x-l")), ("", "1"));
        assert_eq!(&*answer.body, b"hello");
        for status in [204, 304] {
            let reply =
                json!({ "statusCode": status, "headers": {"etag": "x"}, "body": "not sent" });
            let answer = decode(EventFormat::Http, reply.to_string().into()).unwrap();
            assert!(!answer.headers.contains_key(CONTENT_TYPE) && answer.body.is_empty());
            assert_eq!(answer.headers["etag"], "x");
        }
    }

    #[test]
    fn version_1_has_lists_of_headers_and_parameters_both_ways() {
        let mut head = RequestHead {
            method: http::Method::PUT,
            root: "/run/f".to_owned(),
            path: "/a/b".to_owned(),
            query: Some("x=1&x=2&y=a%20b".to_owned()),
            ..RequestHead::default()
        };
        for (name, value) in
            [("cookie", "a=1"), ("x-forwarded-for", "192.0.2.1"), ("x", "1"), ("x", "2")]
        {
            head.headers.append(name, value.parse().unwrap());
        }
        let made = event(EventFormat::HttpV1, &head, b"text").unwrap();
        assert_eq!((&made["httpMethod"], &made["path"]), (&json!("PUT"), &json!("/a/b")));
        assert_eq!(
            (&made["headers"]["x"], &made["multiValueHeaders"]["x"]),
            (&json!("2"), &json!(["1", "2"]))
        );
        assert_eq!(made["headers"]["cookie"], "a=1");
        assert_eq!(made["queryStringParameters"], json!({"x": "2", "y": "a b"}));
        assert_eq!(made["multiValueQueryStringParameters"], json!({"x": ["1", "2"], "y": ["a b"]}));
        assert_eq!(made["pathParameters"], json!({"proxy": "a/b"}));
        let context = &made["requestContext"];
        assert_eq!(context["identity"]["sourceIp"], "192.0.2.1");
        assert_eq!(
            (&context["path"], &context["resourcePath"]),
            (&json!("/run/f/a/b"), &json!("/a/b"))
        );
        // Where there is no authorizer, as here, programs look whether there is one.
        assert_eq!(context.get("authorizer"), None);
        assert_eq!((&made["body"], &made["isBase64Encoded"]), (&json!("text"), &json!(false)));
        let routes = ["/a/{id}".to_owned(), "/".to_owned()];
        let id = "r".parse().unwrap();
        for (path, resource, parameters) in [
            ("/a/b%20c", "/a/{id}", json!({"id": "b%20c"})),
            ("/", "/", Value::Null),
            ("/other", "/other", json!({"proxy": "other"})),
        ] {
            head.path = path.to_owned();
            let made = v1_event(&routes, &id, &"f".parse().unwrap(), &head, b"", 0);
            assert_eq!((&made["path"], &made["resource"]), (&json!(path), &json!(resource)));
            assert_eq!(made["requestContext"]["resourcePath"], resource);
            assert_eq!(made["pathParameters"], parameters);
        }
        let nothing = event(EventFormat::HttpV1, &RequestHead::default(), b"").unwrap();
        for key in
            ["body", "queryStringParameters", "multiValueQueryStringParameters", "pathParameters"]
        {
            assert_eq!(nothing[key], Value::Null, "{key}");
        }

        let reply = json!({
            "statusCode": 200, "body": "b",
            "headers": {"X-A": "1", "x-b": "2"}, "multiValueHeaders": {"x-a": ["1", "3"], "Set-Cookie": ["a=1", "b=2"]},
        });
        let answer = decode(EventFormat::HttpV1, reply.to_string().into()).unwrap();
        let all = |name: &str| answer.headers.get_all(name).iter().count();
        assert_eq!((all("x-a"), all("x-b"), all("set-cookie")), (2, 1, 2));
        let cookies = json!(["a=1", "b=2"]);
        let reply = json!({
            "statusCode": 200,
            "multiValueHeaders": {"Set-Cookie": cookies, "set-cookie": cookies, "x-a": ["1", "1"], "X-A": ["2"]},
        });
        let answer = decode(EventFormat::HttpV1, reply.to_string().into()).unwrap();
        let all = |name: &str| answer.headers.get_all(name).iter().count();
        assert_eq!((all("set-cookie"), all("x-a")), (2, 3));
        for bad in ["null", "[]", "\"text\"", "{\"body\": \"x\"}"] {
            let error = decode(EventFormat::HttpV1, bad.into()).unwrap_err();
            assert!(error.message.contains("statusCode"), "{error}");
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
