//! The worker's metrics: what it counts itself and what its core knows, in Prometheus' text format.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::failure::Failure;
use crate::function::FunctionName;
use crate::metrics::{CallMetrics, FunctionCalls, Histogram, Kind, Outcome, Text};
use crate::time::Time;
use crate::worker_core::{CallRecord, WorkerCore};

/// Counters that are fed by records and by what was carried out.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    calls: CallMetrics,
    pub(super) pull: Histogram,
    pub(super) create: Histogram,
    pub(super) init: Histogram,
    pub(super) started: AtomicU64,
    pub(super) start_failed: AtomicU64,
    pub(super) fetch_failed: AtomicU64,
}

/// Where the calls of each version are counted, by the version's number.
#[derive(Debug, Default)]
pub(super) struct Counted(Vec<Option<(FunctionName, Arc<FunctionCalls>)>>);

impl Metrics {
    /// Counts a call that is over.
    pub(super) fn count(
        &self,
        counted: &mut Counted,
        record: &CallRecord,
        function: &FunctionName,
        now: Time,
    ) {
        let at = record.version.0 as usize;
        if at >= counted.0.len() {
            counted.0.resize_with(at + 1, || None);
        }
        let place = &mut counted.0[at];
        // A version's number may have been another one's.
        if place.as_ref().is_none_or(|(name, _)| name != function) {
            *place = Some((function.clone(), self.calls.of(function, now)));
        }
        if let Some((_, calls)) = place {
            let took = now.since(record.arrived);
            self.calls.record(calls, record.outcome, record.start, took, now);
        }
    }

    /// Counts a call that was refused before it was known what it calls.
    pub(super) fn count_refused(&self, failure: &Failure, now: Time) {
        let outcome = Outcome::Failed(failure.kind);
        self.calls.record(self.calls.unresolved(), outcome, None, Duration::ZERO, now);
    }

    /// Everything that is counted. `lines_dropped`: of the functions' output; `bodies`: what requests'
    /// bodies take, bytes.
    pub(super) fn text(
        &self,
        core: Snapshot,
        lines_dropped: u64,
        bodies: u64,
        now: Time,
    ) -> String {
        let mut text = Text::of("worker");
        self.calls.write(&mut text, now);
        let help = "How long a start took: fetching code, making the sandbox, its runtime.";
        let mut phases = text.family("ol_sandbox_start_duration_seconds", Kind::Histogram, help);
        for (phase, histogram) in
            [("pull", &self.pull), ("create", &self.create), ("init", &self.init)]
        {
            phases.histogram(&[("phase", phase)], histogram);
        }
        let mut starts =
            text.family("ol_sandbox_starts_total", Kind::Counter, "Sandboxes that were started.");
        for (outcome, count) in [("ok", &self.started), ("failed", &self.start_failed)] {
            starts.sample(&[("outcome", outcome)], count.load(Ordering::Relaxed));
        }
        let counts = core.counts;
        let mut sandboxes = text.family("ol_sandboxes", Kind::Gauge, "Sandboxes, by state.");
        for (state, count) in [
            ("starting", counts.starting),
            ("busy", counts.busy),
            ("idle", counts.idle.saturating_sub(counts.paused)),
            ("paused", counts.paused),
            ("ending", counts.ending),
        ] {
            sandboxes.sample(&[("state", state)], count);
        }
        let help = "Invocations that wait for a slot.";
        text.gauge("ol_invocations_queued", help, counts.waiting.into());
        let help = "Invocations that run.";
        text.gauge("ol_invocations_running", help, counts.running.into());
        let help = "Places kept for invocations that may come (late binding).";
        let mut reservations = text.family("ol_reservations", Kind::Gauge, help);
        for (state, count) in [("queued", counts.reserved), ("offered", counts.offered)] {
            reservations.sample(&[("state", state)], count);
        }
        text.gauge("ol_memory_pool_bytes", "The size of the memory pool.", core.memory_total);
        text.gauge("ol_memory_pool_used_bytes", "What instances take of it.", core.memory_used);
        text.gauge("ol_request_body_bytes", "What the bodies of requests take.", bodies);
        text.gauge("ol_code_cache_bytes", "Unpacked bundles on the disk.", core.code_bytes);
        let failed = self.fetch_failed.load(Ordering::Relaxed);
        text.counter("ol_code_fetch_failures_total", "Bundles that could not be fetched.", failed);
        let help = "Lines that functions printed faster than they could be written.";
        text.counter("ol_log_lines_dropped_total", help, lines_dropped);
        text.gauge("ol_draining", "1 while the worker is shutting down.", core.draining.into());
        text.finish()
    }
}

/// What the core knows at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot {
    counts: crate::scheduler::Counts,
    memory_used: u64,
    memory_total: u64,
    code_bytes: u64,
    draining: bool,
}

impl Snapshot {
    pub(super) fn of(core: &WorkerCore) -> Self {
        let pool = core.memory();
        Snapshot {
            counts: core.counts(),
            memory_used: pool.used(),
            memory_total: pool.total(),
            code_bytes: core.code_bytes(),
            draining: core.is_draining(),
        }
    }
}
