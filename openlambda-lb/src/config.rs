//! How a balancer behaves: [`ProxyConfig`].

use std::time::Duration;

use openlambda_core::balancing::retry::RetryConfig;
use openlambda_core::serving::{HttpConfig, Patience};
use openlambda_core::wire::DEFAULT_BODY_LIMIT;
use serde::Deserialize;

use crate::api::Admin;
use crate::front::Limits;

/// How a [`Proxy`](crate::proxy::Proxy) behaves. Every field has a default.
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
        patience.head = seconds(self.header_seconds);
        patience.write = seconds(self.write_seconds);
        patience
    }

    pub(crate) fn http(&self) -> HttpConfig {
        let mut http = HttpConfig::default();
        http.header_limit = Some(self.header_limit);
        http.drain = seconds(self.drain_seconds);
        http
    }

    pub(crate) fn limits(&self) -> Limits {
        let silence = seconds(self.timeout_grace_seconds + self.start_allowance_seconds);
        Limits { body: self.body_limit, silence }
    }

    pub(crate) fn retries(&self) -> RetryConfig {
        let (share, reserve) = (self.retry_share, self.retry_reserve);
        RetryConfig { most: self.retries, share, reserve }
    }

    /// How long a worker may say nothing.
    pub(crate) fn silence(&self) -> Duration {
        seconds(self.silence_seconds)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
