//! For operators: whether the balancer lives and is ready, and what it counts.
//!
//! | path | answer |
//! |---|---|
//! | `/livez`, `/status` | `ready`: it answers |
//! | `/readyz` | whether there is a worker, and why not (503) |
//! | `/stats` | calls, failures, workers: JSON |
//! | `/metrics` | everything that is counted, in Prometheus' text format |

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode};
use openlambda_core::balancing::retry::GiveUp;
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::invocation::{Body, full_body};
use openlambda_core::metrics::{Kind, Text};
use openlambda_core::wire;
use serde_json::json;

use crate::observe::{AccessLog, Stats, Telemetry};
use crate::workers::Selector;

/// What operators ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Report {
    Live,
    Ready,
    Status,
    Stats,
    Metrics,
}

impl Report {
    /// What is at this path.
    pub(crate) fn at(path: &str) -> Option<Report> {
        match path {
            "/livez" => Some(Report::Live),
            "/readyz" => Some(Report::Ready),
            "/status" => Some(Report::Status),
            "/stats" => Some(Report::Stats),
            "/metrics" => Some(Report::Metrics),
            _ => None,
        }
    }
}

/// Answers operators.
#[derive(Debug)]
pub(crate) struct Operate {
    /// The policy's name.
    pub(crate) policy: Arc<str>,
    pub(crate) selector: Arc<Selector>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) stats: Arc<Stats>,
}

impl Operate {
    pub(crate) fn answer(&self, method: &Method, report: Report) -> Response<Body> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let message = "this path does not answer this method; use GET";
            let mut failure = Failure::new(FailureKind::MethodNotAllowed, message);
            failure.allow = Some("GET, HEAD".into());
            return wire::failure_response(&failure, None);
        }
        match report {
            Report::Live | Report::Status => text("ready\n"),
            Report::Ready => self.readiness(),
            Report::Stats => wire::json_response(&self.counts()),
            Report::Metrics => wire::metrics_response(self.metrics()),
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
        let failures: serde_json::Map<_, _> = self
            .stats
            .failures()
            .map(|(kind, count)| (kind.code().to_owned(), count.into()))
            .collect();
        json!({
            "policy": self.policy,
            "calls": self.stats.calls(),
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
            decisions.sample(&[("policy", &*self.policy), ("decision", decision)], count);
        }
        let help = "How often the policy broke its contract.";
        text.counter("ol_policy_defects_total", help, counts.defects);
        let dropped = self.telemetry.log.get().map_or(0, AccessLog::dropped);
        let help = "Lines of the access log that could not be written.";
        text.counter("ol_access_log_dropped_total", help, dropped);
        text.finish()
    }
}

fn text(text: &'static str) -> Response<Body> {
    let mut response = Response::new(full_body(text));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
