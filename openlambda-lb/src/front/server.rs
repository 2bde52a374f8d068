//! The balancer's HTTP server: which part answers which path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use openlambda_core::failure::Failure;
use openlambda_core::invocation::Body;
use openlambda_core::serving::{Access, Caller, HttpServer, Identity, LingeringBody, Resource};
use openlambda_core::wire::{self, RegistryPath};

use super::call::Front;
use crate::api::{Internal, Operate, RegistryApi, Report};

/// All that answers.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) access: Arc<Access>,
    pub(crate) front: Front,
    pub(crate) operate: Operate,
    pub(crate) registry: RegistryApi,
    pub(crate) internal: Internal,
}

impl Server {
    /// Answers clients until `stop` resolves and the calls in flight have ended.
    pub(crate) async fn serve(self: &Arc<Self>, http: HttpServer, stop: impl Future<Output = ()>) {
        let welcome = |caller: &Caller| {
            let (server, peer) = (Arc::clone(self), caller.peer());
            let identity = caller.identity().clone();
            Ok(service_fn(move |request: Request<Incoming>| {
                let (server, identity) = (Arc::clone(&server), identity.clone());
                async move { Ok::<_, Infallible>(server.route(request, peer, &identity).await) }
            }))
        };
        http.run(welcome, stop).await;
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        identity: &Identity,
    ) -> Response<Body> {
        let (path, uri, headers) = (request.uri().path(), request.uri(), request.headers());
        if let Err(failure) = wire::refuse_unclear(request.version(), headers) {
            return wire::closing(wire::failure_response(&failure, None));
        }
        let part = Part::of(path);
        let (caller, resource) = (identity.principal(), part.resource());
        let admitted = self.access.admit(caller, peer.ip(), uri, headers, resource);
        // Boxed, as below: what is rare is not to make the futures of calls larger.
        match (part, admitted) {
            (Part::Registry(path), admitted) => {
                let (request, user) = (steady(request), identity.user());
                let client = self.front.proxies.origin(request.headers(), peer).client();
                self.registry.answer(path, request, (peer, client), user, admitted).boxed().await
            }
            (_, Err(failure)) => wire::failure_response(&failure, None),
            (Part::Internal, Ok(_)) => self.internal.answer(request, peer).boxed().await,
            (Part::Operate(answer), Ok(_)) => self.operate.answer(request.method(), answer),
            (Part::Call, Ok(_)) => self.front.call(steady(request), peer).await,
        }
    }
}

fn steady(request: Request<Incoming>) -> Request<Body> {
    LingeringBody::of(request).map(|body| body.map_err(Into::into).boxed_unsync())
}

/// What a path belongs to.
#[derive(Debug)]
enum Part {
    Internal,
    Operate(Report),
    Registry(Result<RegistryPath, Failure>),
    /// All the rest, where there is nothing but calls.
    Call,
}

impl Part {
    fn of(path: &str) -> Part {
        if path.starts_with(wire::INTERNAL) {
            return Part::Internal;
        }
        if let Some(report) = Report::at(path) {
            return Part::Operate(report);
        }
        wire::parse_registry_path(path).map_or(Part::Call, Part::Registry)
    }

    fn resource(&self) -> Resource {
        match self {
            Part::Call => Resource::Call,
            Part::Operate(Report::Live | Report::Ready) => Resource::Health,
            Part::Internal => Resource::Internal,
            Part::Operate(_) | Part::Registry(_) => Resource::Control,
        }
    }
}
