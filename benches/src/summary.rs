//! What came of an experiment, in a few numbers.

use std::time::Duration;

use openlambda_core::invocation::{InvocationRecord, StartKind};
use serde::Serialize;

/// The result of one policy on one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The policy.
    pub name: String,
    /// Calls that were answered.
    pub invocations: u64,
    /// Calls that failed or were refused.
    pub failed: u64,
    /// The share of answered calls that were not warm, 0 to 1.
    pub cold_rate: f64,
    /// From arrival to answer: the mean.
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
}

/// Collects what [`Summary`] tells.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    latencies: Vec<u64>,
    waited_ns: u128,
    started_ns: u128,
    ran_ns: u128,
    cold: u64,
    failed: u64,
}

impl Tally {
    /// Counts one call that is over.
    pub fn add(&mut self, record: &InvocationRecord) {
        if record.outcome != "ok" {
            self.failed += 1;
            return;
        }
        let start = record.pull_ns + record.create_ns + record.init_ns;
        let wait = record.queue_ns + start;
        self.waited_ns += u128::from(wait);
        self.started_ns += u128::from(start);
        self.ran_ns += u128::from(record.run_ns);
        self.latencies.push(wait + record.run_ns);
        self.cold += u64::from(record.start != Some(StartKind::Warm));
    }

    /// The numbers.
    pub fn summary(mut self, name: &str) -> Summary {
        self.latencies.sort_unstable();
        let count = self.latencies.len();
        let per_call = |sum: f64| if count == 0 { 0.0 } else { sum / count as f64 };
        let total: u128 = self.latencies.iter().map(|ns| u128::from(*ns)).sum();
        Summary {
            name: name.to_owned(),
            invocations: count as u64,
            failed: self.failed,
            cold_rate: per_call(self.cold as f64),
            mean_ms: per_call(total as f64) / 1e6,
            p50_ms: ms(percentile(&self.latencies, 0.50)),
            p99_ms: ms(percentile(&self.latencies, 0.99)),
            mean_wait_ms: per_call(self.waited_ns as f64) / 1e6,
            // Of no calls, or of handlers that take no time, there is no share.
            cold_overhead: self.started_ns as f64 / self.ran_ns.max(1) as f64,
        }
    }
}

/// The nearest-rank percentile of sorted values; 0 of none.
pub(crate) fn percentile(sorted: &[u64], share: f64) -> u64 {
    let rank = libm::ceil(share * sorted.len() as f64) as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

fn ms(nanoseconds: u64) -> f64 {
    Duration::from_nanos(nanoseconds).as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let values: Vec<u64> = (1..=100).collect();
        assert_eq!(percentile(&values, 0.50), 50);
        assert_eq!(percentile(&values, 0.99), 99);
        assert_eq!(percentile(&[7], 0.99), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }
}
