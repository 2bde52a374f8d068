//! The HTTP reverse proxy: [`Proxy::invoke`] is the way of an invocation through the balancer.
//!
//! ```text
//! client ─▶ decode ─▶ resolve ─▶ select ─▶ forward ─▶ outcome ─▶ client
//!                                   ▲         │
//!                                   └─────────┘ again, only when the call cannot have started
//! ```
//!
//! Bodies stream both ways. The worker's name is chosen by a policy behind one short lock that is
//! never held over an await; everything else is per call.
//!
//! Whether a call that failed at a worker goes to another one is the pure balancer's decision:
//! [`retry`](openlambda_core::balancing::retry) has the rule, [`ProxyConfig`] its numbers. Here is what
//! it is told of:
//!
//! * the call has not started when the worker could not be reached, when the request was never written
//!   to it, or when it answered so; and
//! * the body can be sent again when it was small and is kept, or when not a byte of it was taken yet.
//!
//! # Beside calls
//!
//! `/status`, `/stats`, `/livez`, `/readyz` and `/metrics` are for operators; [`Admin`] says who may
//! read and change the registry below `/registry/`; an [`AccessLog`] has a line for each request.
//!
//! # Limits
//!
//! Paths below `/internal/` are answered to clients on this machine only, and not to what has come
//! through another proxy or is asked by a page in a browser; for others they do not exist. Workers on
//! other machines are named in [`ProxyConfig::workers`], or come from a [`Source`] of your own.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use openlambda_core::balancing::BalancingPolicy;
use openlambda_core::balancing::retry::{FailedAttempt, RetryConfig, Verdict};
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::invocation::{Body, RequestIds};
use openlambda_core::registry::Registry;
use openlambda_core::serving::{HttpConfig, Patience};
use openlambda_core::time::{Clock, SystemClock};
use openlambda_core::wire::{self, DEFAULT_BODY_LIMIT};
use serde::Deserialize;
use tokio::task::JoinSet;

pub use crate::api::Admin;
use crate::front::cors::Caller;
use crate::front::limits::Limits;
use crate::front::reply::{ReplyBody, recorded};
use crate::front::resolver::Resolver;
use crate::front::{decode, forward, outcome};
pub use crate::observe::AccessLog;
use crate::observe::{Record, Subject, Telemetry};
use crate::workers::membership::{Announced, Announcements, Configured, Follower, Source, Watcher};
use crate::workers::{Route, Selector, SelectorFollower, http_client};

/// The balancer as a server. See the module's documentation.
#[derive(Debug)]
pub struct Proxy {
    pub(crate) config: ProxyConfig,
    pub(crate) policy: String,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) resolver: Resolver,
    pub(crate) selector: Arc<Selector>,
    pub(crate) announcements: Announcements,
    /// Those that do not run yet.
    sources: Mutex<Vec<Box<dyn Source>>>,
    pub(crate) ids: RequestIds,
    pub(crate) stats: Stats,
}

impl Proxy {
    /// One invocation, from the client's request to the reply, whose body may still be on its way.
    pub async fn invoke(&self, request: Request<Body>, peer: SocketAddr) -> Response<Body> {
        let record = self.telemetry.begin(&request, peer, Subject::Call);
        self.recorded(request, peer, record).await
    }

    pub(crate) async fn recorded(
        &self,
        request: Request<Body>,
        peer: SocketAddr,
        mut record: Record,
    ) -> Response<Body> {
        record.taken();
        let caller = Caller::of(&request);
        let (id, call) = decode::decode(request, peer, &self.config.limits(), &self.ids).await;
        record.named(&id);
        let (mut resolved, mut worker) = (None, None);
        let answer = async {
            let mut call = call?;
            record.takes(call.body.taken());
            let function = resolved.insert(self.resolver.resolve(&call.target.function).await?);
            let preflight = function.cors.as_ref().and_then(|cors| cors.preflight(&caller));
            let meant = function.resolved();
            record.resolved(&meant.name, meant.version, &function.calls);
            if let Some(preflight) = preflight {
                record.was_preflight();
                return Ok(preflight.map(ReplyBody::of));
            }
            meant.manifest.admits(&call.method)?;
            call.headers.insert(wire::DIGEST, function.digest.clone());
            call.headers.insert(wire::VERSION, function.version.clone());
            // For the worker to tell us of what it tells one balancer alone.
            call.headers.insert(wire::BALANCER, self.selector.header().clone());
            let mut route = Route::begin(&self.selector, &function.function);
            loop {
                let chosen = worker.insert(route.select().await?);
                record.tried(&chosen.name);
                let place = route.reservation();
                let reply = forward::forward(&call, function, chosen, place, &id).await;
                match reply {
                    Ok(mut reply) => {
                        if reply.headers_mut().remove(wire::IDLE).is_some() {
                            route.idle(chosen);
                        }
                        return Ok(outcome::stream(reply, route, call.limit, function));
                    }
                    Err(failure) => {
                        let body = call.body.can_be_sent_again();
                        let verdict = route.failed(&FailedAttempt::of(&failure, body));
                        tracing::debug!(request = %id, worker = %chosen.name, %failure, ?verdict, "failed");
                        match verdict {
                            Verdict::Retry => record.retried(),
                            Verdict::GiveUp(_) => return Err(failure),
                        }
                    }
                }
            }
        };
        let answer = answer.await;
        if resolved.is_none()
            && answer.is_err()
            && let Some(called) = caller.calls()
        {
            // The request was refused before it was looked at which function it calls.
            resolved = self.resolver.resolve(&called).await.ok();
        }
        let mut answer = outcome::answer(answer, &id, worker.as_deref(), &self.stats);
        if let Some(cors) = resolved.as_ref().and_then(|function| function.cors.as_ref()) {
            cors.allow(&caller, answer.headers_mut());
        }
        recorded(answer, record).map(BodyExt::boxed_unsync)
    }

    /// A balancer that asks `policy` and `registry`. `policy_name` is what status reports call it.
    ///
    /// It does nothing before [`serve`](Self::serve).
    pub fn new(
        config: ProxyConfig,
        policy_name: impl Into<String>,
        policy: Box<dyn BalancingPolicy>,
        registry: Arc<dyn Registry>,
        clock: Arc<SystemClock>,
    ) -> Arc<Proxy> {
        let client = http_client();
        // Ids differ between runs even when the policy's choices do not.
        let run = openlambda_core::hash::mix(clock.unix_millis(), u64::from(std::process::id()));
        let seed = config.seed.unwrap_or(run);
        // Workers keep places by this name, so no two balancers may share it, not even two of one
        // process that began at the same time. It decides nothing.
        let name = format!("{:016x}", RandomState::new().hash_one(run));
        let silence = Duration::try_from_secs_f64(config.silence_seconds).unwrap_or_default();
        let watcher = Watcher::new(client.clone(), clock.clone(), name.clone(), silence);
        let configured = Configured::new(&config.workers, watcher.clone());
        let (announcements, announced) = Announced::new(&configured, watcher);
        let sources: Vec<Box<dyn Source>> = vec![Box::new(configured), Box::new(announced)];
        let selector = Selector::new(policy, seed, config.retries(), name, client, clock.clone());
        let telemetry = Telemetry::new(Arc::clone(&clock));
        Arc::new(Proxy {
            policy: policy_name.into(),
            resolver: Resolver::new(Arc::clone(&registry), Arc::clone(&telemetry), clock),
            registry,
            telemetry,
            selector,
            announcements,
            sources: Mutex::new(sources),
            ids: RequestIds::new(run),
            stats: Stats::default(),
            config,
        })
    }

    /// Follows the workers that `source` knows as well. Before the balancer serves.
    pub fn follow(&self, source: impl Source + 'static) {
        self.sources().push(Box::new(source));
    }

    /// Has all sources tell the balancer, for as long as it is polled.
    pub(crate) async fn follow_sources(self: Arc<Self>) {
        let follower: Arc<dyn Follower> = Arc::new(SelectorFollower::new(self.selector.clone()));
        let mut tasks = JoinSet::new();
        for source in std::mem::take(&mut *self.sources()) {
            let follower = Arc::clone(&follower);
            tasks.spawn(async move { source.run(follower).await });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// No code panics while it holds this lock.
    fn sources(&self) -> MutexGuard<'_, Vec<Box<dyn Source>>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a line for each request to `log` from now on. The first log that is given stays.
    pub fn write_access_log(&self, log: AccessLog) {
        let _ = self.telemetry.log.set(log);
    }
}

/// How a [`Proxy`] behaves. Every field has a default.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Workers that are there for good, as `http://host:port`. Others announce themselves.
    pub workers: Vec<String>,
    /// The largest request body, in bytes.
    pub body_limit: u64,
    /// How many more workers a call is tried on when it cannot have started.
    pub retries: u32,
    /// How much of a retry each call adds to the budget of all calls: 0.2 is a retry for every fifth.
    /// With 1 a call pays for its first retry itself.
    pub retry_share: f64,
    /// With how many retries the budget begins, and how many it saves up.
    pub retry_reserve: u32,
    /// How much longer than a function's own time limit the balancer waits for a worker.
    pub timeout_grace_seconds: f64,
    /// What it adds for the time before the handler starts: queueing, pulling, a cold start.
    pub start_allowance_seconds: f64,
    /// A worker that has said nothing for so long is unhealthy. Workers speak every 0.5 s.
    pub silence_seconds: f64,
    /// How long calls in flight may take to end after a shutdown was asked for.
    pub drain_seconds: f64,
    /// How long a client may take to send the head of a request, and how long a connection may be
    /// idle between two.
    pub header_seconds: f64,
    /// How long a client may take nothing of a reply that waits for it; then its connection is
    /// closed.
    pub write_seconds: f64,
    /// The largest head of a request, in bytes; then 431.
    pub header_limit: usize,
    /// Connections at once; one more waits, not accepted, until another ends.
    pub most_connections: usize,
    /// Calls that are answered at once; one more gets 503.
    pub most_calls: usize,
    /// Who may read and change the registry over HTTP.
    pub admin: Admin,
    /// The largest bundle that is taken over HTTP, bytes as they come; then 413.
    pub bundle_limit: u64,
    /// The seed of the policy's randomness; by default another one in each run.
    pub seed: Option<u64>,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        let retries = RetryConfig::default();
        ProxyConfig {
            workers: Vec::new(),
            body_limit: DEFAULT_BODY_LIMIT,
            retries: retries.most,
            retry_share: retries.share,
            retry_reserve: retries.reserve,
            timeout_grace_seconds: 5.0,
            start_allowance_seconds: 60.0,
            silence_seconds: 3.0,
            drain_seconds: 30.0,
            header_seconds: 30.0,
            write_seconds: 60.0,
            header_limit: 64 << 10,
            most_connections: 10_000,
            most_calls: 50_000,
            admin: Admin::Loopback,
            bundle_limit: 512 << 20,
            seed: None,
        }
    }
}

impl ProxyConfig {
    pub(crate) fn patience(&self) -> Patience {
        let mut patience = Patience::default();
        patience.most_connections = self.most_connections;
        patience.head = Duration::try_from_secs_f64(self.header_seconds).unwrap_or_default();
        patience.write = Duration::try_from_secs_f64(self.write_seconds).unwrap_or_default();
        patience
    }

    pub(crate) fn http(&self) -> HttpConfig {
        let mut http = HttpConfig::default();
        http.header_limit = Some(self.header_limit);
        http.drain = Duration::try_from_secs_f64(self.drain_seconds).unwrap_or_default();
        http
    }

    fn retries(&self) -> RetryConfig {
        let (share, reserve) = (self.retry_share, self.retry_reserve);
        RetryConfig { most: self.retries, share, reserve }
    }

    fn limits(&self) -> Limits {
        let seconds = self.timeout_grace_seconds + self.start_allowance_seconds;
        let silence = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Limits { body: self.body_limit, silence }
    }
}

/// What the balancer counts.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) calls: AtomicU64,
    /// In the order of [`FailureKind::ALL`].
    pub(crate) failures: [AtomicU64; FailureKind::ALL.len()],
}

impl Stats {
    pub(crate) fn failed(&self, failure: &Failure) {
        if let Some(place) = FailureKind::ALL.iter().position(|kind| *kind == failure.kind) {
            self.failures[place].fetch_add(1, Ordering::Relaxed);
        }
    }
}
