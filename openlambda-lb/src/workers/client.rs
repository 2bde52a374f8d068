//! How workers are reached: [`HttpClient`], for every request but a call whose body is in memory, and what
//! it shares with the connections for those calls.

use std::time::Duration;

use http::Request;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use openlambda_core::invocation::Body;
use openlambda_core::serving::{Connector, Secret};

/// A connection that was idle for longer is closed. Below the time after which a worker closes one:
/// a request that is sent at that very moment could not be told from one that had started.
pub(super) const MOST_IDLE: Duration = Duration::from_secs(5);

/// How long it may take until a worker accepts a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// The client for workers, for streams of events, probes, reservations, and calls whose body streams; for
/// the others see [`connections`](super::connections). Clones share its pool.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient {
    pool: Client<Connector, Body>,
    connector: Connector,
}

impl HttpClient {
    /// For a cluster with this secret.
    pub(crate) fn new(secret: Option<Secret>) -> Self {
        let connector = Connector::new(secret, CONNECT_LIMIT);
        let mut pool = Client::builder(TokioExecutor::new());
        pool.pool_timer(TokioTimer::new()).pool_idle_timeout(MOST_IDLE);
        HttpClient { pool: pool.build(connector.clone()), connector }
    }

    pub(super) fn request(&self, request: Request<Body>) -> ResponseFuture {
        self.pool.request(request)
    }

    /// What connects to workers.
    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }
}
