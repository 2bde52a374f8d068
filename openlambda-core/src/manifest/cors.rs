//! Which pages in browsers may call the function: [`Cors`].

use http::HeaderName;
use http::uri::{Authority, Scheme};
use serde::{Deserialize, Serialize};

use super::ManifestError;
use super::lists::{is_short, short};

/// Which pages of other origins may call the function, and how: the headers of
/// [CORS](https://fetch.spec.whatwg.org/#http-cors-protocol). The balancer answers their preflights
/// itself and puts the headers on replies and failures; what the function says of it is replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cors {
    /// Origins that may call, as `https://example.org` or `http://localhost:3000`; or `*` alone: any,
    /// also `null`, which is what a page from a file has.
    pub allow_origins: Vec<String>,
    /// The methods they may use; `None`: [`Manifest::methods`](super::Manifest::methods), else whichever they ask for.
    #[serde(default)]
    pub allow_methods: Option<Vec<String>>,
    /// The headers they may set; `None`: whichever they ask for.
    #[serde(default)]
    pub allow_headers: Option<Vec<String>>,
    /// Headers of replies that a page may read, beside those that it always may.
    #[serde(default)]
    pub expose_headers: Vec<String>,
    /// For how long a browser may keep the answer to a preflight, up to 86,400; `None`: as long as
    /// it likes, which is 5 seconds.
    #[serde(default)]
    pub max_age_seconds: Option<u32>,
    /// Whether calls may carry cookies and other credentials. Not with the origin `*`.
    #[serde(default)]
    pub allow_credentials: bool,
}

impl Cors {
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Value(format!("[cors] {text}")));
        let any = self.allow_origins.iter().any(|origin| origin == "*");
        if self.allow_origins.is_empty() {
            return wrong(
                "allow_origins is empty; name the pages' origins, or \"*\" for any".into(),
            );
        }
        if any && self.allow_origins.len() > 1 {
            return wrong("allow_origins has \"*\" and others; \"*\" alone is any".into());
        }
        if any && self.allow_credentials {
            return wrong(
                "allow_credentials with the origin \"*\" would let every page on the web act for \
                 whoever is logged in, and browsers refuse it; name the origins"
                    .into(),
            );
        }
        for (key, list) in [
            ("allow_methods", self.allow_methods.as_deref().unwrap_or_default()),
            ("allow_headers", self.allow_headers.as_deref().unwrap_or_default()),
            ("expose_headers", &self.expose_headers),
        ] {
            if !is_short(list) {
                return wrong(format!("{key} is too long; use {}", short()));
            }
        }
        for origin in self.allow_origins.iter().filter(|origin| *origin != "*") {
            if let Err(why) = check_origin(origin) {
                return wrong(format!("origin \"{origin}\" is not valid; {why}"));
            }
        }
        for method in self.allow_methods.iter().flatten().filter(|method| *method != "*") {
            if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
                return wrong(format!("method \"{method}\" is not valid; write it as \"GET\""));
            }
        }
        if self.allow_credentials && self.expose_headers.iter().any(|name| name == "*") {
            let text = "expose_headers = [\"*\"] does nothing with allow_credentials; name them";
            return wrong(text.into());
        }
        let headers = self.allow_headers.iter().flatten().chain(&self.expose_headers);
        for header in headers.filter(|header| *header != "*") {
            if header.parse::<HeaderName>().is_err() {
                return wrong(format!(
                    "header \"{header}\" is not valid; write its name alone, as \"content-type\""
                ));
            }
        }
        match self.max_age_seconds {
            Some(age) if age > 86_400 => wrong(format!(
                "max_age_seconds = {age} is out of range; use 0 to 86400, no browser keeps it longer"
            )),
            _ => Ok(()),
        }
    }
}

/// Whether a browser may ever send this as `Origin`; if not, what to write.
fn check_origin(origin: &str) -> Result<(), String> {
    let form = "write scheme://host or scheme://host:port, without a path".to_owned();
    if origin == "null" {
        let why = "every sandboxed page has it; use \"*\" for pages from files";
        return Err(why.to_owned());
    }
    let (scheme, rest) = origin.split_once("://").ok_or_else(|| form.clone())?;
    let authority: Authority = rest.parse().map_err(|_| form.clone())?;
    let plain = !rest.contains(['@', '*', ',']) && scheme.parse::<Scheme>().is_ok();
    if !plain || (rest.contains(':') && !rest.ends_with(']') && authority.port().is_none()) {
        return Err(form);
    }
    if origin.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("browsers write it as {}", origin.to_ascii_lowercase()));
    }
    if matches!((scheme, authority.port_u16()), ("http", Some(80)) | ("https", Some(443))) {
        return Err(format!("browsers leave the usual port out: {scheme}://{}", authority.host()));
    }
    Ok(())
}
