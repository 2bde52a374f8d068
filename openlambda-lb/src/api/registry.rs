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
//! Those may who know the cluster's secret, where there is one, as far as [`Admin`] lets them.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use openlambda_core::audit::{Actor, AuditLog, Audited};
use openlambda_core::failure::{Failure, FailureKind, chain};
use openlambda_core::function::{FunctionName, FunctionRef, Qualifier};
use openlambda_core::invocation::{Body, BoxError, RequestIds};
use openlambda_core::registry::{BundleStream, Registry};
use openlambda_core::serving::Principal;
use openlambda_core::wire::{self, RegistryPath};
use serde_json::json;

use super::admin::Admin;
use crate::front::{ReplyBody, Resolver, recorded};
use crate::observe::{Subject, Telemetry};

/// How long a client may take to send the next part of a bundle.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers requests to the registry's paths.
#[derive(Debug)]
pub(crate) struct RegistryApi {
    pub(crate) admin: Admin,
    /// The largest bundle, bytes as they come.
    pub(crate) bundle_limit: u64,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) audit: Arc<OnceLock<AuditLog>>,
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) ids: Arc<RequestIds>,
    pub(crate) telemetry: Arc<Telemetry>,
}

impl RegistryApi {
    /// The answer, with what each answer carries.
    pub(crate) async fn answer(
        &self,
        path: Result<RegistryPath, Failure>,
        request: Request<Body>,
        (peer, client): (SocketAddr, IpAddr),
        user: Option<u32>,
        admitted: Result<Principal, Failure>,
    ) -> Response<Body> {
        let actor = match user {
            Some(user) => Actor { by: format!("uid {user}"), from: "a Unix socket".to_owned() },
            None => {
                let by = "an HTTP client".to_owned();
                match client == peer.ip() {
                    true => Actor { by, from: peer.to_string() },
                    false => Actor { by, from: format!("{client} through {peer}") },
                }
            }
        };
        let mut record = self.telemetry.begin(&request, client, Subject::Other);
        let id = wire::request_id_of(request.headers()).ok().flatten();
        let id = id.unwrap_or_else(|| self.ids.next());
        record.named(&id);
        let (method, target) = (request.method().clone(), request.uri().path().to_owned());
        let answer = self.administer(path, request, peer, actor, admitted).await;
        let outcome = answer.as_ref().map_or_else(|failure| failure.kind.code(), |_| "ok");
        let path = wire::shown(&target);
        match answer {
            Ok(_) if !matches!(method, Method::GET | Method::HEAD) => {
                tracing::info!(%method, path, %peer, "registry request");
            }
            // Strangers could fill the log with theirs.
            _ => tracing::debug!(%method, path, %peer, outcome, "registry request"),
        }
        let answer = answer.unwrap_or_else(|failure| wire::failure_response(&failure, Some(&id)));
        let mut answer = answer.map(ReplyBody::of);
        answer.headers_mut().insert(wire::REQUEST_ID, wire::id_value(&id));
        recorded(answer, record).map(BodyExt::boxed_unsync)
    }

    async fn administer(
        &self,
        path: Result<RegistryPath, Failure>,
        request: Request<Body>,
        peer: SocketAddr,
        actor: Actor,
        admitted: Result<Principal, Failure>,
    ) -> Result<Response<Body>, Failure> {
        admitted?;
        self.admin.admit(peer.ip(), request.headers())?;
        let path = path?;
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match (path.function, path.config) {
            (None, _) if reads => self.list(&path.namespace).await,
            (Some(function), config) if reads => self.describe(&function, config).await,
            (Some(function), false) if request.method() == Method::POST => {
                self.upload(whole(function, "uploaded")?, request, actor).await
            }
            (Some(function), false) if request.method() == Method::DELETE => {
                self.delete(whole(function, "deleted")?, actor).await
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
        actor: Actor,
    ) -> Result<Response<Body>, Failure> {
        let limit = self.bundle_limit;
        if wire::declares_more_than(request.headers(), limit) {
            return Err(too_large(limit));
        }
        let surplus = Arc::new(AtomicBool::new(false));
        let bundle = bounded(request.into_body(), limit, Arc::clone(&surplus));
        let published =
            self.changed_by(actor).publish(&name, bundle).await.map_err(|error| match error {
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

    /// The registry, as a client changes it.
    fn changed_by(&self, actor: Actor) -> Arc<dyn Registry> {
        let registry = Arc::clone(&self.registry);
        let Some(audit) = self.audit.get() else { return registry };
        Arc::new(Audited::new(registry, audit.clone(), actor))
    }

    async fn delete(&self, name: FunctionName, actor: Actor) -> Result<Response<Body>, Failure> {
        self.changed_by(actor).delete(&name).await?;
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
