//! The results of an experiment in a few numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use openlambda_core::invocation::{InvocationRecord, StartKind};
use openlambda_core::metrics::Outcome;
use serde::Serialize;

use crate::sim::{SimulatedCall, Usage};

/// The result of one policy on one workload. Times and shares are those of the calls that were answered:
/// where many fail, the rest may well be fast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The policy.
    pub name: String,
    /// Calls that were answered.
    pub invocations: u64,
    /// Calls that failed or were refused.
    pub failed: u64,
    /// How many of those for which reason, by the failure's code.
    pub failures: BTreeMap<String, u64>,
    /// The share of answered calls that were not warm, 0 to 1.
    pub cold_rate: f64,
    /// From arrival to answer, the network's hops among it: the mean.
    pub mean_ms: f64,
    /// Its median.
    pub p50_ms: f64,
    /// Its 99th percentile.
    pub p99_ms: f64,
    /// From arrival to the start of the handler: the mean.
    pub mean_wait_ms: f64,
    /// Time that answered calls waited for pulls and starts, as a share of the time that their
    /// handlers ran: how much longer cold starts made all calls together.
    pub cold_overhead: f64,
    /// Answered calls a second, when it is known how long the experiment took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// What all instances took of the workers' memory pools, MiB: the mean over time, when it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_memory_mb: Option<f64>,
}

impl Summary {
    /// The same, with what the experiment took.
    #[must_use]
    pub fn with_usage(mut self, usage: &Usage) -> Self {
        // An experiment without calls takes no time.
        let seconds = if usage.seconds > 0.0 { usage.seconds } else { 1.0 };
        self.per_second = Some(self.invocations as f64 / seconds);
        self.mean_memory_mb = Some(usage.mean_memory / f64::from(1 << 20));
        self
    }
}

/// Collects the values of [`Summary`], in memory that does not grow with the calls.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    latencies: Percentiles,
    latency_ns: u128,
    waited_ns: u128,
    started_ns: u128,
    ran_ns: u128,
    cold: u64,
    failures: BTreeMap<&'static str, u64>,
    other_failures: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts one call that is over.
    pub fn add(&mut self, call: &SimulatedCall<'_>) {
        if let Outcome::Ok = call.outcome {
            let phases = &call.phases;
            let start = ns(phases.pull) + ns(phases.create) + ns(phases.init);
            let run = ns(phases.run);
            self.answered(ns(call.latency()), run, start, ns(call.network), call.start);
        } else {
            *self.failures.entry(call.outcome.as_str()).or_default() += 1;
        }
    }

    /// The same of a call that a live worker has recorded.
    pub fn add_record(&mut self, record: &InvocationRecord) {
        if record.outcome != "ok" {
            *self.other_failures.entry(record.outcome.clone()).or_default() += 1;
            return;
        }
        let start = record.pull_ns + record.create_ns + record.init_ns;
        let latency = record.queue_ns + start + record.run_ns + record.network_ns;
        self.answered(latency, record.run_ns, start, record.network_ns, record.start);
    }

    /// `started`: pull, create and init together.
    fn answered(
        &mut self,
        latency: u64,
        ran: u64,
        started: u64,
        network: u64,
        start: Option<StartKind>,
    ) {
        self.latencies.add(latency);
        self.latency_ns += u128::from(latency);
        self.ran_ns += u128::from(ran);
        self.started_ns += u128::from(started);
        // The way back is after the handler.
        self.waited_ns += u128::from((latency - ran).saturating_sub(network / 2));
        self.cold += u64::from(start != Some(StartKind::Warm));
    }

    /// The numbers.
    pub fn summary(self, name: &str) -> Summary {
        let count = self.latencies.count;
        let per_call = |sum: f64| if count == 0 { 0.0 } else { sum / count as f64 };
        let mut failures = self.other_failures;
        for (code, count) in self.failures {
            *failures.entry(code.to_owned()).or_default() += count;
        }
        Summary {
            name: name.to_owned(),
            invocations: count,
            failed: failures.values().sum(),
            failures,
            cold_rate: per_call(self.cold as f64),
            mean_ms: per_call(self.latency_ns as f64) / 1e6,
            p50_ms: ms(self.latencies.at(0.50)),
            p99_ms: ms(self.latencies.at(0.99)),
            mean_wait_ms: per_call(self.waited_ns as f64) / 1e6,
            // Of no calls, or of handlers that take no time, there is no share.
            cold_overhead: self.started_ns as f64 / self.ran_ns.max(1) as f64,
            per_second: None,
            mean_memory_mb: None,
        }
    }
}

/// How many values are alike: a histogram whose steps are a thousandth of the value, as HdrHistogram's
/// (Tene), and what the values of each step are on average: where all are the same, it is exact. At most
/// some hundred KiB.
#[derive(Clone, Debug, Default)]
struct Percentiles {
    steps: Vec<Step>,
    count: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Step {
    count: u64,
    /// By how much its values are above its first one, together.
    above: u64,
}

/// Steps between a power of two and the next.
const STEPS: u64 = 1024;

impl Percentiles {
    fn add(&mut self, value: u64) {
        let at = step_of(value);
        if at >= self.steps.len() {
            self.steps.resize(at + 1, Step::default());
        }
        let step = &mut self.steps[at];
        step.count += 1;
        step.above = step.above.saturating_add(value - first_of(at));
        self.count += 1;
    }

    /// The nearest-rank percentile, or rather the mean of the step that it is in; 0 of none.
    fn at(&self, share: f64) -> u64 {
        let rank = (libm::ceil(share * self.count as f64) as u64).max(1);
        let mut below = 0;
        for (at, step) in self.steps.iter().enumerate() {
            below += step.count;
            if below >= rank {
                return first_of(at) + step.above / step.count;
            }
        }
        0
    }
}

/// The place of a value: linear up to `STEPS`, then as many steps for each power of two.
fn step_of(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = value.ilog2() - STEPS.ilog2();
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The first value of a step.
fn first_of(step: usize) -> u64 {
    let step = step as u64;
    if step < STEPS {
        return step;
    }
    let shift = step / STEPS - 1;
    (step - shift * STEPS) << shift
}

/// The nearest-rank percentile of sorted values; 0 of none.
pub(crate) fn percentile(sorted: &[u64], share: f64) -> u64 {
    let rank = libm::ceil(share * sorted.len() as f64) as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn ms(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use openlambda_core::random::Rng;

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&values, 0.50), 50);
        assert_eq!(percentile(&values, 0.99), 99);
        assert_eq!(percentile(&[7], 0.99), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }

    #[test]
    fn percentiles_that_stream_are_within_a_thousandth() {
        let mut rng = Rng::from_seed(5);
        for scale in [100.0, 1e6, 1e12] {
            let (mut streamed, mut all) = (Percentiles::default(), Vec::new());
            assert_eq!(streamed.at(0.5), 0);
            for _ in 0..20_000 {
                let value = (rng.unit() * rng.unit() * scale) as u64;
                streamed.add(value);
                all.push(value);
            }
            all.sort_unstable();
            for share in [0.001, 0.5, 0.99, 1.0] {
                let (got, wanted) = (streamed.at(share), percentile(&all, share));
                assert!(got.abs_diff(wanted) * 1000 <= wanted, "{share}: {got} {wanted}");
            }
        }
        for value in [0, 1, 1023, 1024, 1025, 2047, 2048, 123_456_789, u64::MAX] {
            let (step, mut one) = (step_of(value), Percentiles::default());
            assert!(first_of(step) <= value, "{value}");
            assert!(step == step_of(u64::MAX) || value < first_of(step + 1), "{value}");
            one.add(value);
            assert_eq!(one.at(0.5), value);
        }
    }
}
