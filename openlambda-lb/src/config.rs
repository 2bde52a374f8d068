//! How a balancer behaves: [`ProxyConfig`].

use std::time::Duration;

use openlambda_core::balancing::retry::RetryConfig;
use openlambda_core::failure::Detail;
use openlambda_core::serving::identity::Host;
use openlambda_core::serving::{HttpConfig, Patience, Secret};
use openlambda_core::wire::DEFAULT_BODY_LIMIT;
use serde::{Deserialize, Deserializer};

use crate::api::Admin;
use crate::front::{Limits, Network};

/// How a [`Proxy`](crate::proxy::Proxy) behaves. Every field has a default.
///
/// A time of a century or more, infinity included, means for ever. A time below zero is refused where a
/// text is parsed, and counts as zero where a program sets it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Workers that never leave, as `http://host:port`. Others announce themselves.
    pub workers: Vec<String>,
    /// The largest request body, in bytes.
    pub body_limit: u64,
    /// How many more workers a call is tried on when it cannot have started.
    pub retries: u32,
    /// How much of a retry each call adds to the retry budget: 0.2 is one retry for every fifth call.
    /// With 1 a call pays for its first retry itself.
    pub retry_share: f64,
    /// How many retries the budget begins with, and the most that it saves up.
    pub retry_reserve: u32,
    /// How much longer than a function's own time limit the balancer waits for a worker.
    #[serde(deserialize_with = "time")]
    pub timeout_grace_seconds: f64,
    /// How much time the balancer adds for what comes before the handler: queueing, pulling, a cold start.
    #[serde(deserialize_with = "time")]
    pub start_allowance_seconds: f64,
    /// A worker is unhealthy when it has sent nothing for this time. Workers send every 0.5 s.
    #[serde(deserialize_with = "time")]
    pub silence_seconds: f64,
    /// A worker that announced itself and was not reached for this time has left for good.
    #[serde(deserialize_with = "time")]
    pub forget_seconds: f64,
    /// How long calls in flight may take to end after a shutdown was asked for.
    #[serde(deserialize_with = "time")]
    pub drain_seconds: f64,
    /// How long a client may take to send the head of a request, and how long a connection may be
    /// idle between two.
    #[serde(deserialize_with = "time")]
    pub header_seconds: f64,
    /// How long a client may take nothing of a reply that waits for it; then its connection is
    /// closed.
    #[serde(deserialize_with = "time")]
    pub write_seconds: f64,
    /// The largest head of a request, in bytes; then 431.
    pub header_limit: usize,
    /// Connections at once; one more waits, not accepted, until another ends.
    pub most_connections: usize,
    /// Calls that are answered at once; one more gets 503.
    pub most_calls: usize,
    /// The cluster's secret: only those who know it announce workers, read the balancer's state, and use the
    /// registry, and workers have to know it, too. Without one, [`admin`](Self::admin) and the client's
    /// address decide.
    #[serde(skip)]
    pub secret: Option<Secret>,
    /// The names, beside `localhost` and addresses, by which the balancer is called. What is no call of a
    /// function is refused by any other: whoever controls it may have pointed it here.
    pub hosts: Vec<Host>,
    /// Proxies in front of the balancer, whose word on where a request comes from is believed. What others
    /// say of it in `X-Forwarded-For` and its kin, or in `Forwarded`, no function sees.
    pub trusted_proxies: Vec<Network>,
    /// Who may read and change the registry over HTTP, of those who know the secret.
    pub admin: Admin,
    /// The largest bundle that is taken over HTTP, bytes as they come; then 413.
    pub bundle_limit: u64,
    /// How much callers are told of functions' failures, where a manifest does not say.
    pub error_detail: Detail,
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
            forget_seconds: 60.0,
            drain_seconds: 30.0,
            header_seconds: 75.0,
            write_seconds: 60.0,
            header_limit: 64 << 10,
            most_connections: 10_000,
            most_calls: 50_000,
            secret: None,
            hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            admin: Admin::Loopback,
            bundle_limit: 512 << 20,
            error_detail: Detail::Full,
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
        http.half_close = true;
        http
    }

    pub(crate) fn limits(&self) -> Limits {
        let (grace, start) = (self.timeout_grace_seconds, self.start_allowance_seconds);
        let silence = seconds(grace).saturating_add(seconds(start));
        Limits { body: self.body_limit, silence }
    }

    pub(crate) fn retries(&self) -> RetryConfig {
        let (share, reserve) = (self.retry_share, self.retry_reserve);
        RetryConfig { most: self.retries, share, reserve }
    }

    /// How long a worker may say nothing: until it is unhealthy, and until it has left.
    pub(crate) fn silence(&self) -> [Duration; 2] {
        [seconds(self.silence_seconds), seconds(self.forget_seconds)]
    }
}

/// Seconds; [`Duration::MAX`] means for ever.
fn seconds(seconds: f64) -> Duration {
    match seconds < CENTURY {
        true => Duration::from_secs_f64(seconds.max(0.0)),
        false => Duration::MAX,
    }
}

/// In seconds. Clocks and timers count further than that, but not as far as floating point does.
const CENTURY: f64 = 100.0 * 365.0 * 86_400.0;

/// A time as a person writes it.
fn time<'de, D: Deserializer<'de>>(text: D) -> Result<f64, D::Error> {
    let seconds = f64::deserialize(text)?;
    match seconds >= 0.0 {
        true => Ok(seconds),
        false => {
            let message = format!("{seconds} is not a time; use seconds, 0 or more");
            Err(serde::de::Error::custom(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_too_long_to_be_counted_is_for_ever() {
        assert_eq!(seconds(0.25), Duration::from_millis(250));
        assert_eq!(seconds(-1.0), Duration::ZERO);
        for long in [CENTURY, 1e20, f64::MAX, f64::INFINITY] {
            assert_eq!(seconds(long), Duration::MAX, "{long}");
        }
        let config = ProxyConfig { start_allowance_seconds: 1e30, ..ProxyConfig::default() };
        assert_eq!(config.limits().silence, Duration::MAX);
    }

    #[test]
    fn what_is_no_time_is_refused_where_it_is_read() {
        for text in ["drain_seconds = -1", "silence_seconds = nan", "header_seconds = -0.5"] {
            let error = toml::from_str::<ProxyConfig>(text).unwrap_err().to_string();
            assert!(error.contains("is not a time; use seconds, 0 or more"), "{error}");
        }
        let config: ProxyConfig = toml::from_str("drain_seconds = 3\nwrite_seconds = inf").unwrap();
        assert_eq!((config.drain_seconds, config.write_seconds), (3.0, f64::INFINITY));
    }
}
