//! What a call leaves behind: a count in the metrics, and a line in the access log.
//!
//! A [`Record`] accompanies the call from its first byte to the last byte of its reply. It is counted
//! when it is dropped, wherever that happens, so every reply is counted.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use openlambda_core::failure::FailureKind;
use openlambda_core::function::{FunctionName, Version};
use openlambda_core::invocation::{RequestId, StartKind};
use openlambda_core::metrics::{CallMetrics, FunctionCalls, Outcome};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_core::wire;

use super::access_log::AccessLog;
use super::line::{Line, PhasesMs, shown};
use crate::front::body::BytesTaken;

/// Where records go.
#[derive(Debug)]
pub(crate) struct Telemetry {
    pub(crate) calls: CallMetrics,
    pub(crate) log: OnceLock<AccessLog>,
    clock: Arc<SystemClock>,
}

impl Telemetry {
    pub(crate) fn new(clock: Arc<SystemClock>) -> Arc<Self> {
        let (calls, log) = (CallMetrics::default(), OnceLock::new());
        Arc::new(Telemetry { calls, log, clock })
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// A request came.
    pub(crate) fn begin<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        client: IpAddr,
        subject: Subject,
    ) -> Record {
        let line = self.log.get().is_some().then(|| {
            let traceparent = wire::TraceParent::of(request.headers());
            Box::new(Line {
                time_ms: self.clock.unix_millis(),
                // One call too many is never looked at more closely.
                request_id: wire::request_id_of(request.headers()).ok().flatten(),
                trace_id: traceparent.map(|it| it.trace.to_owned()),
                client,
                method: request.method().to_string(),
                path: shown(request.uri().path()),
                function: None,
                version: None,
                worker: None,
                status: None,
                outcome: "",
                error: None,
                start: None,
                retries: 0,
                duration_ms: 0.0,
                reply_ms: None,
                phases_ms: None,
                request_bytes: 0,
                reply_bytes: 0,
            })
        });
        Record {
            telemetry: Arc::clone(self),
            began: self.now(),
            subject,
            function: None,
            failure: None,
            start: None,
            end: Outcome::Cancelled,
            request_bytes: BytesTaken::default(),
            reply_bytes: 0,
            line,
        }
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A function is to run.
    Call,
    /// Anything else: it is logged, and counts for no invocation.
    Other,
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Record {
    telemetry: Arc<Telemetry>,
    began: Time,
    subject: Subject,
    function: Option<Arc<FunctionCalls>>,
    /// The failure, when the reply is not the function's.
    failure: Option<FailureKind>,
    start: Option<StartKind>,
    /// How it came out, as far as is known, when it is no failure.
    end: Outcome,
    request_bytes: BytesTaken,
    reply_bytes: u64,
    line: Option<Box<Line>>,
}

impl Record {
    pub(crate) fn named(&mut self, id: &RequestId) {
        if let Some(line) = &mut self.line {
            line.request_id = Some(id.clone());
        }
    }

    /// The balancer has too many calls, and refuses this one.
    pub(crate) fn refused(mut self) {
        self.failure = Some(FailureKind::NoWorker);
        if let Some(line) = &mut self.line {
            line.status = Some(wire::status_of(FailureKind::NoWorker).as_u16());
            line.error = Some("balancer".to_owned());
        }
    }

    /// It is known which function it is, and where its calls are counted.
    pub(crate) fn resolved(
        &mut self,
        name: &FunctionName,
        version: Version,
        calls: &Arc<FunctionCalls>,
    ) {
        self.function = Some(Arc::clone(calls));
        if let Some(line) = &mut self.line {
            line.function = Some(name.clone());
            line.version = Some(version);
        }
    }

    /// It was not a call after all.
    pub(crate) fn was_preflight(&mut self) {
        self.subject = Subject::Other;
    }

    /// How to learn how much of the request's body came.
    pub(crate) fn takes(&mut self, bytes: BytesTaken) {
        if self.line.is_some() {
            self.request_bytes = bytes;
        }
    }

    pub(crate) fn retried(&mut self) {
        if let Some(line) = &mut self.line {
            line.retries += 1;
        }
    }

    pub(crate) fn tried(&mut self, worker: &str) {
        if let Some(line) = &mut self.line {
            line.worker = Some(worker.to_owned());
        }
    }

    /// The head of the reply is there.
    pub(crate) fn replied<B>(&mut self, response: &Response<B>) {
        let headers = response.headers();
        self.failure = wire::failure_kind_of(headers);
        self.start = headers.get(wire::START).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(line) = &mut self.line {
            let took = self.telemetry.now().since(self.began);
            line.status = Some(response.status().as_u16());
            line.reply_ms = Some(took.as_secs_f64() * 1e3);
            let culprit = headers.get(wire::ERROR).and_then(|value| value.to_str().ok());
            line.error = culprit.map(str::to_owned);
            line.phases_ms = self.start.map(|_| phases_of(headers));
        }
    }

    /// A part of the reply's body.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.reply_bytes += bytes as u64;
    }

    /// The reply's trailers: of a streamed reply, they tell how long the handler ran.
    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(phases) = self.line.as_mut().and_then(|line| line.phases_ms.as_mut()) {
            phases.run = phases_of(trailers).run;
        }
    }

    /// The reply is at its end.
    pub(crate) fn ended(mut self, end: Outcome) {
        self.end = end;
    }
}

fn phases_of(headers: &HeaderMap) -> PhasesMs {
    let phases = wire::parse_server_timing(headers.get_all(wire::SERVER_TIMING));
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    PhasesMs {
        queue: ms(phases.queue),
        pull: ms(phases.pull),
        create: ms(phases.create),
        init: ms(phases.init),
        run: ms(phases.run),
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let telemetry = &self.telemetry;
        let now = telemetry.now();
        let took = now.since(self.began);
        let outcome = match self.failure {
            // A part of the balancer, a policy perhaps, is broken.
            _ if std::thread::panicking() => Outcome::Failed(FailureKind::Internal),
            Some(kind) => Outcome::Failed(kind),
            None => self.end,
        };
        if self.subject == Subject::Call {
            let function = self.function.as_ref().unwrap_or(telemetry.calls.unresolved());
            telemetry.calls.record(function, outcome, self.start, took, now);
        }
        if let (Some(mut line), Some(log)) = (self.line.take(), telemetry.log.get()) {
            line.outcome = outcome.as_str();
            if std::thread::panicking() {
                let internal = FailureKind::Internal;
                line.status = Some(wire::status_of(internal).as_u16());
                line.error = Some("balancer".to_owned());
            }
            line.start = self.start.map(StartKind::as_str);
            line.duration_ms = took.as_secs_f64() * 1e3;
            line.request_bytes = self.request_bytes.get();
            line.reply_bytes = self.reply_bytes;
            log.write(&line);
        }
    }
}
