//! The proxy's HTTP server: connections, paths that are no invocations, shutdown.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use openlambda_core::balancing::retry::GiveUp;
use openlambda_core::failure::{Culprit, Failure, FailureKind, Started};
use openlambda_core::function::FunctionRef;
use openlambda_core::invocation::{Body, BoxError, full_body};
use openlambda_core::metrics::{Kind, Text};
use openlambda_core::serving::{Door, HttpServer, Patient, SteadyBody, Stream};
use openlambda_core::wire::{self, Announcement, RegistryPath};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower::load_shed::error::Overloaded;
use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt};

use super::cors::Caller;
use super::reply::{ReplyBody, recorded};
use crate::observe::{AccessLog, Record, Subject};
use crate::proxy::Proxy;
use crate::workers::membership::HEARTBEAT;

/// The largest body of a request between the project's own processes.
const INTERNAL_BODY: usize = 64 << 10;

/// An invocation behind the layers that guard it.
type Invocations =
    BoxCloneSyncService<(Request<Body>, SocketAddr, Record), Response<Body>, BoxError>;

impl Proxy {
    /// Serves until `shutdown` resolves; then takes no more connections, lets the calls in flight
    /// end, for at most [`drain_seconds`](crate::proxy::ProxyConfig::drain_seconds), and returns.
    ///
    /// Call it once: it also runs the balancer's timer and follows workers and the registry.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let mut background = JoinSet::new();
        background.spawn(Arc::clone(&self.selector).run_timer());
        let proxy = Arc::clone(&self);
        background.spawn(async move { proxy.resolver.follow().await });
        background.spawn(Arc::clone(&self).follow_sources());

        let invocations = self.invocations();
        let welcome = |client: &Patient<Stream>| {
            let (proxy, invocations, peer) =
                (Arc::clone(&self), invocations.clone(), client.peer());
            Ok(service_fn(move |request: Request<Incoming>| {
                let (proxy, invocations) = (Arc::clone(&proxy), invocations.clone());
                async move { Ok::<_, Infallible>(proxy.route(request, peer, invocations).await) }
            }))
        };
        let door = Door::new(listener, self.config.patience());
        HttpServer::new(door, self.config.http()).run(welcome, shutdown).await;
        background.shutdown().await;
        let flushed = tokio::task::spawn_blocking(move || {
            if let Some(log) = self.telemetry.log.get() {
                log.flush();
            }
        });
        let _ = flushed.await;
    }

    /// Resolves when at least `workers` workers are ready: for programs that start a cluster and then
    /// call it. Never resolves while nobody [serves](Self::serve).
    pub async fn ready(&self, workers: u64) {
        // Asked again and again: this is for the moment of a start, and calls pay nothing for it.
        while self.selector.counts().ready < workers {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn invocations(self: &Arc<Self>) -> Invocations {
        let proxy = Arc::clone(self);
        let service = ServiceBuilder::new()
            // Above the limit, so that a call too many is refused at once instead of queued here.
            .load_shed()
            // One count for all connections. Only invocations: the checks must answer when it is full.
            .layer(tower::limit::GlobalConcurrencyLimitLayer::new(self.config.most_calls))
            // Innermost: a panic, say in a policy of the user's own, ends one call only.
            .service_fn(move |(request, peer, record): (Request<Body>, SocketAddr, Record)| {
                let proxy = Arc::clone(&proxy);
                async move {
                    let call = proxy.recorded(request, peer, record);
                    let call = AssertUnwindSafe(call).catch_unwind();
                    call.await.map_err(|_| "a part of the balancer panicked; its log says where")
                }
            });
        BoxCloneSyncService::new(service)
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
        invocations: Invocations,
    ) -> Response<Body> {
        let path = request.uri().path();
        // Boxed, as below: what is rare is not to make the futures of calls larger.
        if path.starts_with(wire::INTERNAL) {
            return self.internal(request, peer).boxed().await;
        }
        match (request.method(), path) {
            (&Method::GET | &Method::HEAD, "/status" | "/livez") => text("ready\n"),
            (&Method::GET | &Method::HEAD, "/readyz") => self.readiness(),
            (&Method::GET | &Method::HEAD, "/stats") => wire::json_response(&self.counts()),
            (&Method::GET | &Method::HEAD, "/metrics") => wire::metrics_response(self.metrics()),
            _ => {
                let request =
                    request.map(|body| SteadyBody::new(body).map_err(Into::into).boxed_unsync());
                if let Some(path) = wire::parse_registry_path(request.uri().path()) {
                    return self.registry_request(path, request, peer).boxed().await;
                }
                self.call(invocations, request, peer).await
            }
        }
    }

    /// One invocation. Whatever the layers say becomes an answer, not a closed connection.
    async fn call(
        &self,
        invocations: Invocations,
        request: Request<Body>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let caller = Caller::of(&request);
        let mut record = self.telemetry.begin(&request, peer, Subject::Call);
        record.refused_unless_taken();
        // Boxed, for the compiler cannot tell that so deep a future is Send.
        let answered = invocations.oneshot((request, peer, record)).boxed();
        match answered.await {
            Ok(answer) => answer,
            Err(error) => {
                let mut answer = unanswered(&error);
                // It asks nobody: this may be the one call too many.
                let function = caller.calls().and_then(|called| self.resolver.known(&called));
                if let Some(cors) = function.as_ref().and_then(|function| function.cors.as_ref()) {
                    cors.allow(&caller, answer.headers_mut());
                }
                answer
            }
        }
    }

    fn readiness(&self) -> Response<Body> {
        let counts = self.selector.counts();
        if counts.ready > 0 {
            return wire::json_response(&json!({ "ready": true, "workers": counts.ready }));
        }
        let reason = match counts.workers {
            0 => "no worker has announced itself; start one, or see `ol status`".to_owned(),
            n => format!("none of the {n} workers is ready; `ol status` shows them"),
        };
        let mut response = wire::json_response(&json!({ "ready": false, "reasons": [reason] }));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    }

    fn counts(&self) -> serde_json::Value {
        let counts = self.selector.counts();
        let failures: serde_json::Map<_, _> = FailureKind::ALL
            .iter()
            .zip(&self.stats.failures)
            .map(|(kind, count)| (kind.code().to_owned(), count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .map(|(code, count)| (code, count.into()))
            .collect();
        json!({
            "policy": self.policy,
            "calls": self.stats.calls.load(Ordering::Relaxed),
            "retries": self.selector.retries().retries,
            "failures": failures,
            "in_flight": counts.in_flight,
            "held": counts.held,
            "tickets": counts.tickets,
            "workers": counts.workers,
            "workers_ready": counts.ready,
            "policy_defects": counts.defects,
        })
    }

    /// A request to the registry, with what each answer carries.
    async fn registry_request(
        &self,
        path: Result<RegistryPath, Failure>,
        request: Request<Body>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let mut record = self.telemetry.begin(&request, peer, Subject::Other);
        let id = wire::request_id_of(request.headers()).ok().flatten();
        let id = id.unwrap_or_else(|| self.ids.next());
        record.named(&id);
        let (method, target) = (request.method().clone(), request.uri().path().to_owned());
        let answer = self.administer(path, request, peer).await;
        if !matches!(method, Method::GET | Method::HEAD) {
            let outcome = answer.as_ref().map_or_else(|failure| failure.kind.code(), |_| "ok");
            tracing::info!(%method, path = target, %peer, outcome, "registry request");
        }
        let answer = answer.unwrap_or_else(|failure| wire::failure_response(&failure, Some(&id)));
        let mut answer = answer.map(ReplyBody::of);
        answer.headers_mut().insert(wire::REQUEST_ID, wire::id_value(&id));
        recorded(answer, record).map(BodyExt::boxed_unsync)
    }

    /// Everything that is counted, in Prometheus' text format.
    fn metrics(&self) -> String {
        let counts = self.selector.counts();
        let mut text = Text::of("balancer");
        self.telemetry.calls.write(&mut text, self.telemetry.now());
        let help = "Invocations that were sent to a worker and are not over.";
        text.gauge("ol_invocations_in_flight", help, counts.in_flight);
        let help = "Invocations that the policy has not sent to a worker yet.";
        text.gauge("ol_invocations_held", help, counts.held);
        let help = "Attempts at another worker, for calls that had not started.";
        let retries = self.selector.retries();
        text.counter("ol_retries_total", help, retries.retries);
        let help = "Calls that failed at a worker and were not tried at another one, and why.";
        let mut given_up = text.family("ol_retries_refused_total", Kind::Counter, help);
        for why in GiveUp::ALL {
            given_up.sample(&[("reason", why.as_str())], retries.given_up(why));
        }
        let status = self.selector.status(&self.policy);
        let mut workers = text.family("ol_workers", Kind::Gauge, "Workers that are known.");
        for state in ["ready", "unhealthy", "draining"] {
            let count = status.workers.iter().filter(|worker| worker.state == state).count();
            workers.sample(&[("state", state)], count);
        }
        let help = "What the policy decided about invocations and retries.";
        let mut decisions = text.family("ol_policy_decisions_total", Kind::Counter, help);
        for (decision, count) in self.selector.decisions() {
            decisions.sample(&[("policy", &self.policy), ("decision", decision)], count);
        }
        let help = "How often the policy broke its contract.";
        text.counter("ol_policy_defects_total", help, counts.defects);
        let dropped = self.telemetry.log.get().map_or(0, AccessLog::dropped);
        let help = "Lines of the access log that could not be written.";
        text.counter("ol_access_log_dropped_total", help, dropped);
        text.finish()
    }

    /// Between the project's own processes. For clients on other machines there is nothing here.
    async fn internal(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<Body> {
        let nothing = || {
            let message = "there is nothing here; call /run/<function>";
            wire::failure_response(&Failure::new(FailureKind::NotFound, message), None)
        };
        let (parts, body) = request.into_parts();
        if !peer.ip().to_canonical().is_loopback() || wire::is_relayed(&parts.headers) {
            return nothing();
        }
        if let Err(failure) = wire::refuse_pages(&parts.headers) {
            return wire::failure_response(&failure, None);
        }
        let path = parts.uri.path();
        if parts.method == Method::GET && path == wire::CLUSTER_PATH {
            return wire::json_response(&self.selector.status(&self.policy));
        }
        if parts.method != Method::POST
            || ![wire::ANNOUNCE_PATH, wire::REFRESH_PATH].contains(&path)
        {
            return nothing();
        }
        let answer = async {
            let body = Limited::new(body, INTERNAL_BODY).collect().await;
            let body = body.map_err(|error| bad(format!("the body cannot be read: {error}")))?;
            let body = body.to_bytes();
            if path == wire::ANNOUNCE_PATH {
                let announcement: Announcement = serde_json::from_slice(&body)
                    .map_err(|error| bad(format!("this is no announcement: {error}")))?;
                self.announcements.take(announcement)?;
                let seconds = HEARTBEAT.as_secs_f64();
                return Ok(wire::json_response(&json!({ "heartbeat_seconds": seconds })));
            }
            let text = std::str::from_utf8(&body).unwrap_or_default().trim();
            let reference: FunctionRef = text.parse().map_err(|error| bad(format!("{error}")))?;
            let resolution = self.resolver.refresh(&reference).await?;
            Ok(wire::json_response(resolution.resolved()))
        };
        answer.await.unwrap_or_else(|failure: Failure| wire::failure_response(&failure, None))
    }
}

fn bad(message: String) -> Failure {
    Failure::new(FailureKind::BadRequest, message)
}

fn text(text: &'static str) -> Response<Body> {
    let mut response = Response::new(full_body(text));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

/// The answer for a call that got none.
fn unanswered(error: &BoxError) -> Response<Body> {
    let failure = if error.is::<Overloaded>() {
        let message = "the balancer has too many calls at once; try again in a moment";
        Failure::new(FailureKind::NoWorker, message)
    } else {
        Failure::new(FailureKind::Internal, error.to_string())
            .blame(Culprit::Balancer)
            .started(Started::Maybe)
    };
    wire::failure_response(&failure, None)
}
