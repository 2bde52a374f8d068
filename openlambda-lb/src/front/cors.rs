//! Calls from pages of other origins: the answers to their preflights, and the headers that let a
//! page read a reply or a failure. <https://fetch.spec.whatwg.org/#http-cors-protocol>
//!
//! A function's replies have such headers only if its manifest has `[cors]`. A failure before the
//! function is known (404, say) has none.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN,
    VARY,
};
use http::{Method, Request, Response, StatusCode, Uri};
use openlambda_core::function::FunctionRef;
use openlambda_core::invocation::{Body, empty_body};
use openlambda_core::manifest::Manifest;
use openlambda_core::wire;

/// The page that a request comes from, if it comes from one.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// Its origin, and what it calls.
    page: Option<(HeaderValue, Uri)>,
    /// What it would do, if this is a preflight: the method, and the headers it would set.
    would: Option<(HeaderValue, Option<HeaderValue>)>,
}

impl Caller {
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let Some(origin) = headers.get(ORIGIN) else { return Caller::default() };
        let method = headers.get(ACCESS_CONTROL_REQUEST_METHOD);
        let would = method
            .filter(|_| request.method() == Method::OPTIONS)
            .map(|method| (method.clone(), headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned()));
        Caller { page: Some((origin.clone(), request.uri().clone())), would }
    }

    /// The function that a page calls; `None` when it is not a page that calls.
    pub(crate) fn calls(&self) -> Option<FunctionRef> {
        let (_, uri) = self.page.as_ref()?;
        Some(wire::parse_target(uri.path())?.ok()?.function)
    }
}

/// What a manifest says in `[cors]`, as headers.
#[derive(Debug)]
pub(crate) struct Cors {
    /// `None`: any.
    origins: Option<Vec<String>>,
    /// `None`: what is asked for.
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    credentials: bool,
}

impl Cors {
    pub(crate) fn new(manifest: &Manifest) -> Option<Self> {
        let cors = manifest.cors.as_ref()?;
        // A manifest is checked before it is stored; what is no header in spite of that is left out.
        let list = |names: &[String]| HeaderValue::from_str(&names.join(", ")).ok();
        let unless_any = |names: Option<&Vec<String>>| {
            names
                .filter(|names| !names.iter().any(|name| name == "*"))
                .and_then(|names| list(names))
        };
        let any = cors.allow_origins.iter().any(|origin| origin == "*");
        Some(Cors {
            origins: (!any).then(|| cors.allow_origins.clone()),
            methods: unless_any(cors.allow_methods.as_ref().or(manifest.methods.as_ref())),
            headers: unless_any(cors.allow_headers.as_ref()),
            expose: list(&cors.expose_headers).filter(|value| !value.is_empty()),
            max_age: cors.max_age_seconds.map(HeaderValue::from),
            credentials: cors.allow_credentials && !any,
        })
    }

    /// The answer to a preflight, without what [`allow`](Self::allow) adds; `None` when the request
    /// is none.
    pub(crate) fn preflight(&self, caller: &Caller) -> Option<Response<Body>> {
        let (method, wanted) = caller.would.as_ref()?;
        let mut response = Response::new(empty_body());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        let asked = "access-control-request-method, access-control-request-headers";
        headers.append(VARY, HeaderValue::from_static(asked));
        if self.origin(caller).is_some() {
            let methods = self.methods.as_ref().unwrap_or(method);
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
            if let Some(names) = self.headers.as_ref().or(wanted.as_ref()) {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
            }
            if let Some(max_age) = &self.max_age {
                headers.insert(ACCESS_CONTROL_MAX_AGE, max_age.clone());
            }
        }
        Some(response)
    }

    /// Lets the caller's page read a reply, if it may, whatever the function itself says of it: two
    /// answers to the same question would be none.
    pub(crate) fn allow(&self, caller: &Caller, headers: &mut HeaderMap) {
        for ours in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(ours);
        }
        headers.append(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = self.origin(caller) else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        if let Some(names) = &self.expose {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, names.clone());
        }
    }

    /// Whether the caller's page may do without asking what a preflight asks for.
    pub(crate) fn admits(&self, caller: &Caller) -> bool {
        self.origin(caller).is_some()
    }

    /// What to say that the origin is, if it is allowed.
    fn origin(&self, caller: &Caller) -> Option<HeaderValue> {
        let Some(origins) = &self.origins else { return Some(HeaderValue::from_static("*")) };
        let (origin, _) = caller.page.as_ref()?;
        origins
            .iter()
            .any(|allowed| allowed.as_bytes() == origin.as_bytes())
            .then(|| origin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cors(text: &str) -> Option<Cors> {
        Cors::new(&Manifest::parse(text).unwrap())
    }

    fn caller(method: Method, headers: &[(&str, &str)]) -> Caller {
        let mut request = Request::builder().method(method).uri("/run/echo:live/x");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Caller::of(&request.body(()).unwrap())
    }

    fn said(headers: &HeaderMap) -> Vec<(String, String)> {
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        let mut said: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        said.sort();
        said
    }

    fn preflight(cors: &Cors, caller: &Caller) -> Vec<(String, String)> {
        let mut response = cors.preflight(caller).unwrap();
        assert_eq!(response.status(), 204);
        cors.allow(caller, response.headers_mut());
        response.headers_mut().remove(VARY);
        said(response.headers())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const ASKS: [(&str, &str); 3] = [
        ("origin", "https://a.org"),
        ("access-control-request-method", "PUT"),
        ("access-control-request-headers", "x-one,content-type"),
    ];

    #[test]
    fn without_cors_in_the_manifest_there_is_nothing() {
        assert!(cors("").is_none());
    }

    #[test]
    fn a_preflight_gets_what_it_asks_for_unless_the_manifest_says_which() {
        let asks = caller(Method::OPTIONS, &ASKS);
        let any = cors("cors = { allow_origins = [\"*\"] }").unwrap();
        let expected = [
            ("access-control-allow-headers", "x-one,content-type"),
            ("access-control-allow-methods", "PUT"),
            ("access-control-allow-origin", "*"),
        ];
        assert_eq!(preflight(&any, &asks), pairs(&expected));
        let methods = "methods = [\"GET\", \"POST\"]\ncors = { allow_origins = [\"*\"] }";
        let said = preflight(&cors(methods).unwrap(), &asks);
        assert!(said.contains(&pairs(&[("access-control-allow-methods", "GET, POST")])[0]));
        let exact = "[cors]\nallow_origins = [\"https://b.org\", \"https://a.org\"]\n\
                     allow_methods = [\"DELETE\"]\nallow_headers = [\"x-two\"]\n\
                     max_age_seconds = 60\nallow_credentials = true";
        let expected = [
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-headers", "x-two"),
            ("access-control-allow-methods", "DELETE"),
            ("access-control-allow-origin", "https://a.org"),
            ("access-control-max-age", "60"),
        ];
        assert_eq!(preflight(&cors(exact).unwrap(), &asks), pairs(&expected));
    }

    #[test]
    fn another_origin_gets_nothing() {
        let one = cors("cors = { allow_origins = [\"https://b.org\"] }").unwrap();
        assert_eq!(preflight(&one, &caller(Method::OPTIONS, &ASKS)), []);
        for origin in ["https://b.org.evil.org", "https://b.org:8443", "http://b.org", "null", "*"]
        {
            let mut headers = HeaderMap::new();
            one.allow(&caller(Method::GET, &[("origin", origin)]), &mut headers);
            assert_eq!(said(&headers), pairs(&[("vary", "origin")]), "{origin}");
        }
    }

    #[test]
    fn a_page_from_a_file_may_call_what_anybody_may() {
        let any = cors("cors = { allow_origins = [\"*\"] }").unwrap();
        let mut headers = HeaderMap::new();
        any.allow(&caller(Method::POST, &[("origin", "null")]), &mut headers);
        let expected = [("access-control-allow-origin", "*"), ("vary", "origin")];
        assert_eq!(said(&headers), pairs(&expected));
    }

    #[test]
    fn the_functions_own_answer_is_replaced_and_its_vary_kept() {
        let text =
            "cors = { allow_origins = [\"https://a.org\"], expose_headers = [\"x-a\", \"x-b\"] }";
        let mut headers = HeaderMap::new();
        for value in ["*", "https://evil.org"] {
            headers.append(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(value));
        }
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(VARY, HeaderValue::from_static("accept"));
        cors(text).unwrap().allow(&caller(Method::GET, &ASKS), &mut headers);
        let expected = [
            ("access-control-allow-origin", "https://a.org"),
            ("access-control-expose-headers", "x-a, x-b"),
            ("vary", "accept"),
            ("vary", "origin"),
        ];
        assert_eq!(said(&headers), pairs(&expected));
    }

    #[test]
    fn only_a_preflight_is_one() {
        let any = cors("cors = { allow_origins = [\"*\"] }").unwrap();
        for (method, headers) in [
            (Method::POST, &ASKS[..]),
            (Method::OPTIONS, &ASKS[..1]),
            (Method::OPTIONS, &ASKS[1..]),
        ] {
            assert!(any.preflight(&caller(method, headers)).is_none());
        }
        let page = caller(Method::GET, &ASKS);
        assert_eq!(page.calls().unwrap().to_string(), "echo:live");
        assert!(caller(Method::GET, &[]).calls().is_none());
    }
}
