//! The balancer's HTTP server: which part answers which path.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use openlambda_core::invocation::Body;
use openlambda_core::serving::{HttpServer, Patient, SteadyBody, Stream};
use openlambda_core::wire;

use super::call::Front;
use crate::api::{Internal, Operate, RegistryApi};

/// All that answers.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) front: Front,
    pub(crate) operate: Operate,
    pub(crate) registry: RegistryApi,
    pub(crate) internal: Internal,
}

impl Server {
    /// Answers clients until `stop` resolves and the calls in flight have ended.
    pub(crate) async fn serve(self: &Arc<Self>, http: HttpServer, stop: impl Future<Output = ()>) {
        let welcome = |client: &Patient<Stream>| {
            let (server, peer) = (Arc::clone(self), client.peer());
            Ok(service_fn(move |request: Request<Incoming>| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.route(request, peer).await) }
            }))
        };
        http.run(welcome, stop).await;
    }

    async fn route(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        let path = request.uri().path();
        // Boxed, as below: what is rare is not to make the futures of calls larger.
        if path.starts_with(wire::INTERNAL) {
            return self.internal.answer(request, peer).boxed().await;
        }
        if let Some(answer) = self.operate.answer(request.method(), path) {
            return answer;
        }
        let request = request.map(|body| SteadyBody::new(body).map_err(Into::into).boxed_unsync());
        if let Some(path) = wire::parse_registry_path(request.uri().path()) {
            return self.registry.answer(path, request, peer).boxed().await;
        }
        self.front.call(request, peer).await
    }
}
