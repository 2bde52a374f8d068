//! How workers are reached: the client for every request but a call whose body is in memory, and what it
//! shares with the connections for those calls.

use std::time::Duration;

use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use openlambda_core::invocation::Body;

/// A connection that was idle for longer is closed. Below the time after which a worker closes one:
/// a request that is sent at that very moment could not be told from one that had started.
pub(super) const MOST_IDLE: Duration = Duration::from_secs(5);

/// How long it may take until a worker accepts a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// The client for workers, for streams of events, probes, reservations, and calls whose body streams; for
/// the others see [`connections`](super::connections). Clones share its pool.
pub(crate) type HttpClient = Client<HttpConnector, Body>;

pub(crate) fn http_client() -> HttpClient {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(MOST_IDLE)
        .build(connector())
}

/// What connects to workers: to each address of a name, if need be.
pub(super) fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_LIMIT));
    connector
}
