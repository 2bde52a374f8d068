//! The registry over HTTP, as OpenLambda has it: list, upload, delete, for scripts that have no `ol`.
//!
//! | request | answer |
//! |---|---|
//! | `GET /registry/` | the functions' names, a JSON array |
//! | `POST /registry/<fn>`, a tar, plain or gzipped | 201 `{"name", "version", "digest", "new"}` |
//! | `GET /registry/<fn>` | `{"name", "version", "digest", "manifest"}` |
//! | `GET /registry/<fn>/config` | the manifest |
//! | `DELETE /registry/<fn>` | 200 `{"name"}` |
//!
//! `<fn>` may name a version or an alias where it is read. In a namespace, all of it is below
//! `/ns/<namespace>`. Failures are those of calls. What was uploaded is checked as every bundle is,
//! takes effect at the next call, and leaves nothing behind when it is refused.
//!
//! # Who may
//!
//! [`Admin`] says whether anybody but this machine may. In any case a browser may not on behalf of a
//! page: not of another origin (cross-site request forgery), not one whose name was pointed to this
//! machine after it was loaded (DNS rebinding), and not one that a function served from this very
//! port. Browsers say that a page asks, in `Origin` or `Sec-Fetch-Site`, and by whose name, in `Host`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream;
use http::header::{HOST, HeaderMap};
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use openlambda_core::failure::{Failure, FailureKind, chain};
use openlambda_core::function::{FunctionName, FunctionRef, Qualifier};
use openlambda_core::invocation::{Body, BoxError};
use openlambda_core::registry::BundleStream;
use openlambda_core::wire::{self, RegistryPath};
use serde::Deserialize;
use serde_json::json;

use crate::proxy::Proxy;

/// How long a client may take to send the next part of a bundle.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who may read and change the registry over HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Admin {
    /// Nobody.
    Off,
    /// Clients on this machine. One whose request has come through another proxy is not.
    #[default]
    Loopback,
    /// Whoever reaches the balancer.
    Any,
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Admin::Off => "off",
            Admin::Loopback => "loopback",
            Admin::Any => "any",
        })
    }
}

impl FromStr for Admin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Admin::Off),
            "loopback" => Ok(Admin::Loopback),
            "any" => Ok(Admin::Any),
            _ => Err("use off, loopback (clients on this machine) or any".to_owned()),
        }
    }
}

impl Admin {
    /// Whether a request may pass.
    fn admit(self, peer: IpAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
        let forbidden = |message: &str| Err(Failure::new(FailureKind::Forbidden, message));
        match self {
            Admin::Off => {
                return forbidden(
                    "the registry is closed here; use `ol deploy`, or start the \
                                  balancer with --admin loopback",
                );
            }
            Admin::Loopback => {
                if !peer.to_canonical().is_loopback() || wire::is_relayed(headers) {
                    return forbidden(
                        "the registry is open to clients on the balancer's own \
                                      machine; start it with --admin any to open it to all",
                    );
                }
                // A name that leads here and is not this machine's own: somebody rebound it.
                if !by_address(uri, headers) {
                    return forbidden(
                        "the registry is reached by this machine's address; use \
                                      127.0.0.1 or localhost",
                    );
                }
            }
            Admin::Any => {}
        }
        wire::refuse_pages(headers)
    }
}

/// Whether the client got here by an address: no name server had a say in who this is. One that does
/// not say is no browser.
fn by_address(uri: &Uri, headers: &HeaderMap) -> bool {
    let hosts = headers.get_all(HOST).iter();
    let hosts = hosts.map(|host| host.to_str().ok()?.parse::<Authority>().ok());
    hosts.chain(uri.authority().cloned().map(Some)).all(|host| {
        host.is_some_and(|host| {
            let host = host.host();
            let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            host.eq_ignore_ascii_case("localhost") || bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        })
    })
}

impl Proxy {
    /// Answers a request to the registry's paths.
    pub(crate) async fn administer(
        &self,
        path: Result<RegistryPath, Failure>,
        request: Request<Body>,
        peer: SocketAddr,
    ) -> Result<Response<Body>, Failure> {
        self.config.admin.admit(peer.ip(), request.uri(), request.headers())?;
        let path = path?;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match (path.function, path.config) {
            (None, _) if reads => self.list(&path.namespace).await,
            (Some(function), config) if reads => self.describe(&function, config).await,
            (Some(function), false) if request.method() == Method::POST => {
                self.upload(whole(function, "uploaded")?, request).await
            }
            (Some(function), false) if request.method() == Method::DELETE => {
                self.delete(whole(function, "deleted")?).await
            }
            (Some(_), false) => Err(not_allowed("GET, HEAD, POST, DELETE")),
            _ => Err(not_allowed("GET, HEAD")),
        }
    }

    async fn list(&self, namespace: &str) -> Result<Response<Body>, Failure> {
        let functions = self.registry.list().await?;
        let here = functions.iter().filter(|listing| listing.name.namespace() == namespace);
        Ok(wire::json_response(&here.map(|listing| listing.name.name()).collect::<Vec<_>>()))
    }

    async fn describe(
        &self,
        function: &FunctionRef,
        config: bool,
    ) -> Result<Response<Body>, Failure> {
        let resolved = self.registry.resolve(function).await?;
        Ok(match config {
            true => wire::json_response(&resolved.manifest),
            false => wire::json_response(&resolved),
        })
    }

    async fn upload(
        &self,
        name: FunctionName,
        request: Request<Body>,
    ) -> Result<Response<Body>, Failure> {
        let limit = self.config.bundle_limit;
        if wire::declares_more_than(request.headers(), limit) {
            return Err(too_large(limit));
        }
        let surplus = Arc::new(AtomicBool::new(false));
        let bundle = bounded(request.into_body(), limit, Arc::clone(&surplus));
        let published =
            self.registry.publish(&name, bundle).await.map_err(|error| match error {
                _ if surplus.load(Ordering::SeqCst) => too_large(limit),
                error => Failure::from(error),
            })?;
        // The reply promises that the next call gets this version.
        self.resolver.refresh(&name.clone().into()).await.map_err(|mut failure| {
            failure.message = format!(
                "version {} of {name} is published, but the balancer cannot look it up yet: {}; \
                 calls get it in a moment",
                published.version, failure.message
            );
            failure
        })?;
        let mut response = wire::json_response(&json!({
            "name": name,
            "version": published.version,
            "digest": published.digest,
            "new": published.new,
        }));
        *response.status_mut() = StatusCode::CREATED;
        Ok(response)
    }

    async fn delete(&self, name: FunctionName) -> Result<Response<Body>, Failure> {
        self.registry.delete(&name).await?;
        match self.resolver.refresh(&name.clone().into()).await {
            Ok(_) => {}
            // Right so.
            Err(failure) if failure.kind == FailureKind::NotFound => {}
            Err(failure) => return Err(failure),
        }
        Ok(wire::json_response(&json!({ "name": name })))
    }
}

/// The name of a function that is changed as a whole.
fn whole(function: FunctionRef, what: &str) -> Result<FunctionName, Failure> {
    if function.qualifier == Qualifier::Latest {
        return Ok(function.name);
    }
    let message = format!("one version cannot be {what}; name the function alone");
    Err(Failure::new(FailureKind::BadRequest, message))
}

fn not_allowed(methods: &str) -> Failure {
    let message = format!("this path does not answer this method; use {methods}");
    let mut failure = Failure::new(FailureKind::MethodNotAllowed, message);
    failure.allow = Some(methods.into());
    failure
}

fn too_large(limit: u64) -> Failure {
    let message = format!(
        "the bundle is larger than the limit of {limit} bytes; leave out what \
                           the function does not need, or publish it with `ol deploy`"
    );
    Failure::new(FailureKind::BodyTooLarge, message)
}

/// A request's body as a bundle, which breaks off when there is more of it than may be, or when its
/// client sends nothing for too long.
fn bounded(body: Body, limit: u64, surplus: Arc<AtomicBool>) -> BundleStream {
    let broken = |error: BoxError| std::io::Error::other(chain(&*error));
    Box::pin(stream::try_unfold((body, 0), move |(mut body, mut taken)| {
        let surplus = Arc::clone(&surplus);
        async move {
            loop {
                let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| {
                    std::io::Error::other(format!("nothing came for {PATIENCE:?}; send it faster"))
                })?;
                let Some(frame) = frame.transpose().map_err(broken)? else { return Ok(None) };
                // Trailers say nothing about a bundle.
                let Ok(data) = frame.into_data() else { continue };
                taken += data.len() as u64;
                if taken > limit {
                    surplus.store(true, Ordering::SeqCst);
                    return Err(std::io::Error::other("it is too large"));
                }
                return Ok::<_, std::io::Error>(Some((data, (body, taken))));
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(admin: Admin, peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        admin.admit(peer.parse().unwrap(), &Uri::from_static("/registry/"), &map).is_ok()
    }

    #[test]
    fn who_is_who_is_told_by_the_connection() {
        let host = [("host", "127.0.0.1:8080")];
        for (admin, here, there) in
            [(Admin::Off, false, false), (Admin::Loopback, true, false), (Admin::Any, true, true)]
        {
            for (peer, may) in [
                ("127.0.0.1", here),
                ("::1", here),
                ("::ffff:127.0.0.1", here),
                ("10.0.0.7", there),
            ] {
                assert_eq!(admits(admin, peer, &host), may, "{admin} {peer}");
            }
            assert_eq!(admin.to_string().parse(), Ok(admin));
        }
        // Through a proxy on this machine: whoever it comes from.
        for header in ["x-forwarded-for", "forwarded"] {
            assert!(!admits(Admin::Loopback, "127.0.0.1", &[host[0], (header, "127.0.0.1")]));
        }
        assert!("all".parse::<Admin>().is_err());
    }

    #[test]
    fn pages_of_others_may_not() {
        let may = |admin, host: &str, more: &[(&'static str, &str)]| {
            let headers: Vec<_> =
                [("host", host)].into_iter().chain(more.iter().copied()).collect();
            admits(admin, "127.0.0.1", &headers)
        };
        for admin in [Admin::Loopback, Admin::Any] {
            for host in ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "LOCALHOST"] {
                assert!(may(admin, host, &[]), "{host}");
                // Typed into the address bar.
                assert!(may(admin, host, &[("sec-fetch-site", "none")]));
                let own = format!("http://{host}");
                for origin in ["https://evil.org", "http://localhost:3000", "null", "", &own] {
                    assert!(!may(admin, host, &[("origin", origin)]), "{host} {origin}");
                }
                for site in ["cross-site", "same-site", "same-origin"] {
                    assert!(!may(admin, host, &[("sec-fetch-site", site)]), "{host} {site}");
                }
            }
            // Rebinding: the page's own name leads here.
            assert!(!may(admin, "evil.org:8080", &[("origin", "http://evil.org:8080")]));
        }
        for host in ["evil.org:8080", "evil org", "127.0.0.1@evil.org", "127.0.0.1.evil.org", ""] {
            assert!(!may(Admin::Loopback, host, &[]), "{host}");
        }
        assert!(!may(Admin::Loopback, "127.0.0.1", &[("host", "evil.org")]));
        assert!(admits(Admin::Loopback, "127.0.0.1", &[]), "HTTP/1.0 needs no host");
        // Another machine reaches this one by its name.
        assert!(may(Admin::Any, "balancer.lan:8080", &[]));
        // A target in absolute form goes before the header.
        let mut headers = HeaderMap::new();
        headers.insert(HOST, "127.0.0.1".parse().unwrap());
        let uri = Uri::from_static("http://evil.org/registry/");
        assert!(Admin::Loopback.admit([127, 0, 0, 1].into(), &uri, &headers).is_err());
    }

    #[tokio::test]
    async fn a_bundle_that_is_too_large_breaks_off() {
        use futures_util::StreamExt;
        use openlambda_core::invocation::full_body;
        for (limit, fits) in [(4, true), (3, false)] {
            let surplus = Arc::new(AtomicBool::new(false));
            let mut bundle = bounded(full_body("1234"), limit, Arc::clone(&surplus));
            let first = bundle.next().await.unwrap();
            assert_eq!(first.is_ok(), fits);
            assert_eq!(surplus.load(Ordering::SeqCst), !fits);
            if fits {
                assert!(bundle.next().await.is_none());
            }
        }
    }
}
