//! The balancer as a server, or as a part of a program: [`Proxy`].
//!
//! [`Proxy::call`] is the only way of a call through the balancer: the HTTP server uses it, and so does a
//! program that embeds a balancer. `front` draws its hops, [`workers`](crate::workers) the cluster of
//! workers behind them.
//!
//! # Beside calls
//!
//! `/livez` and `/readyz` are for everybody, `/status`, `/stats` and `/metrics` for operators; [`Admin`] says who may
//! read and change the registry below `/registry/`; an [`AccessLog`] has a line for each request.
//!
//! # Workers
//!
//! Workers announce themselves below `/internal/`, which is open to those who know the cluster's
//! [secret](ProxyConfig::secret). Where there is none, it is open to clients on this machine only, and not to
//! requests that came through another proxy or from a page in a browser: workers on other machines are then
//! named in [`ProxyConfig::workers`], or come from a [`Source`] of your own.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{Request, Response};
use openlambda_core::audit::AuditLog;
use openlambda_core::balancing::BalancingPolicy;
use openlambda_core::invocation::{Body, RequestIds};
use openlambda_core::random::fresh_seed;
use openlambda_core::registry::Registry;
use openlambda_core::serving::{Access, Door, HttpServer};
use openlambda_core::time::SystemClock;
use parking_lot::Mutex;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

pub use crate::api::Admin;
use crate::api::{Internal, Operate, RegistryApi};
pub use crate::config::ProxyConfig;
pub use crate::front::Network;
use crate::front::{Front, Places, Resolver, Server, TrustedProxies};
pub use crate::observe::AccessLog;
use crate::observe::{Stats, Telemetry};
use crate::workers::membership::{Announced, Configured, Follower, Source, Watcher};
use crate::workers::{HttpClient, Selector, SelectorFollower};

/// A balancer. See the module's documentation.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    server: Arc<Server>,
    selector: Arc<Selector>,
    resolver: Arc<Resolver>,
    telemetry: Arc<Telemetry>,
    audit: Arc<OnceLock<AuditLog>>,
    /// By which clients of this machine come in, too.
    socket: Mutex<Option<UnixListener>>,
    /// Those that do not run yet.
    sources: Mutex<Vec<Box<dyn Source>>>,
}

impl Proxy {
    /// A balancer that asks `policy` and `registry`. `policy_name` is what status reports call it.
    ///
    /// It knows no worker before it [serves](Self::serve) or [runs](Self::run).
    pub fn new(
        config: ProxyConfig,
        policy_name: impl Into<String>,
        policy: Box<dyn BalancingPolicy>,
        registry: Arc<dyn Registry>,
        clock: Arc<SystemClock>,
    ) -> Arc<Proxy> {
        let client = HttpClient::new(config.secret.clone());
        let access = Arc::new(Access::new(config.secret.clone(), config.hosts.clone()));
        // Ids differ between runs even when the policy's choices do not.
        let run = fresh_seed();
        let seed = config.seed.unwrap_or(run);
        // Workers keep places by this name, so no two balancers may share it, not even two of one
        // process that began at the same time. It decides nothing.
        let name = format!("{:016x}", fresh_seed());

        let watcher = Watcher::new(client.clone(), clock.clone(), name.clone(), config.silence());
        let audit = Arc::<OnceLock<AuditLog>>::default();
        let configured = Configured::new(&config.workers, watcher.clone());
        let (announcements, announced) = Announced::new(&configured, watcher, Arc::clone(&audit));
        let sources: Vec<Box<dyn Source>> = vec![Box::new(configured), Box::new(announced)];

        let selector = Selector::new(policy, seed, config.retries(), name, client, clock.clone());
        let telemetry = Telemetry::new(clock.clone());
        let resolver = Resolver::new(Arc::clone(&registry), Arc::clone(&telemetry), clock);
        let (resolver, ids) = (Arc::new(resolver), Arc::new(RequestIds::new(run)));
        let (policy, stats) = (Arc::<str>::from(policy_name.into()), Arc::<Stats>::default());
        let front = Front {
            access: Arc::clone(&access),
            proxies: TrustedProxies::new(config.trusted_proxies.clone()),
            limits: config.limits(),
            places: Places::new(config.most_calls),
            ids: Arc::clone(&ids),
            resolver: Arc::clone(&resolver),
            selector: Arc::clone(&selector),
            telemetry: Arc::clone(&telemetry),
            stats: Arc::clone(&stats),
            detail: config.error_detail,
        };
        let operate = Operate {
            policy: Arc::clone(&policy),
            selector: Arc::clone(&selector),
            telemetry: Arc::clone(&telemetry),
            stats,
        };
        let registry = RegistryApi {
            admin: config.admin,
            bundle_limit: config.bundle_limit,
            registry,
            audit: Arc::clone(&audit),
            resolver: Arc::clone(&resolver),
            ids,
            telemetry: Arc::clone(&telemetry),
        };
        let internal = Internal {
            policy,
            selector: Arc::clone(&selector),
            announcements,
            resolver: Arc::clone(&resolver),
        };
        let server = Arc::new(Server { access, front, operate, registry, internal });
        let (socket, sources) = (Mutex::default(), Mutex::new(sources));
        Arc::new(Proxy { config, server, selector, resolver, telemetry, audit, socket, sources })
    }

    /// One call, from the client's request to the reply, whose body may still be on its way.
    ///
    /// The request's URI is a path as clients send it, `/run/<function>` or one of its other forms; `peer`
    /// is the client's address, for the access log and `x-forwarded-for`. Every failure is a response too:
    /// its status and headers say what went wrong, and whether the handler may have started.
    ///
    /// **Cancellation**: if the future is dropped before the reply, or the reply's body before its end, a
    /// call that has come to a worker goes on without a client.
    pub async fn call(&self, request: Request<Body>, peer: SocketAddr) -> Response<Body> {
        self.server.front.call(request, peer).await
    }

    /// Serves until `shutdown` resolves; then takes no more connections, lets the calls in flight
    /// end, for at most [`drain_seconds`](ProxyConfig::drain_seconds), and returns.
    ///
    /// Call it once: it also [runs](Self::run) the balancer.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        let proxy = Arc::clone(&self);
        let mut background = JoinSet::new();
        background.spawn(async move { proxy.run().await });
        let hosts = self.config.hosts.iter().cloned();
        let door = Door::new(listener, self.config.patience());
        let mut door = door.and_secret(self.config.secret.clone(), hosts);
        if let Some(socket) = self.socket.lock().take() {
            door = door.and_socket(socket);
        }
        let http = HttpServer::new(door, self.config.http());
        self.server.serve(http, shutdown).await;
        background.shutdown().await;
        let flushed = tokio::task::spawn_blocking(move || {
            if let Some(log) = self.telemetry.log.get() {
                log.flush();
            }
        });
        let _ = flushed.await;
    }

    /// Does what a balancer does beside calls, for as long as it is polled: follows workers and the
    /// registry, and wakes the policy.
    ///
    /// For a program that [calls](Self::call) an embedded balancer and needs no server. Call it once;
    /// [`serve`](Self::serve) does it as well.
    pub async fn run(&self) {
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&self.selector).run_timer());
        let resolver = Arc::clone(&self.resolver);
        tasks.spawn(async move { resolver.follow().await });
        let sources = std::mem::take(&mut *self.sources.lock());
        for (number, source) in sources.into_iter().enumerate() {
            let follower = SelectorFollower::new(Arc::clone(&self.selector), number);
            let follower: Arc<dyn Follower> = Arc::new(follower);
            tasks.spawn(async move { source.run(follower).await });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Takes clients by this Unix socket as well, which has a file. Those that this process's user runs, or
    /// root, belong to the cluster, and need not know its secret. Call it before the balancer serves.
    pub fn listen_at(&self, socket: UnixListener) {
        *self.socket.lock() = Some(socket);
    }

    /// Adds a source of workers. Call it before the balancer serves or runs.
    pub fn follow(&self, source: impl Source + 'static) {
        self.sources.lock().push(Box::new(source));
    }

    /// Resolves when at least `workers` workers are ready: for programs that start a cluster and then
    /// call it. Never resolves unless the balancer [serves](Self::serve) or [runs](Self::run).
    pub async fn ready(&self, workers: u64) {
        // Asked again and again: this is for the moment of a start, and calls pay nothing for it.
        while self.selector.counts().ready < workers {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Writes down in `log` from now on who changes the registry over HTTP, and which workers announce
    /// themselves. The first log that is given stays.
    pub fn write_audit_log(&self, log: AuditLog) {
        let _ = self.audit.set(log);
    }

    /// Writes a line for each request to `log` from now on. The first log that is given stays.
    pub fn write_access_log(&self, log: AccessLog) {
        let _ = self.telemetry.log.set(log);
    }
}
