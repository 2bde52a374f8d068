//! Keep-alive policies side by side on one worker, as FaasCache compares them.
//!
//! Fuerst and Sharma (*FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching*,
//! ASPLOS 2021) replay a day of the Azure Functions trace of 2019, sampled to 392
//! functions of all popularities, on one server of varying memory. The trace is not at hand here:
//! [`day`] draws a day of as many functions with the trace's published marginals
//! ([`FunctionMix::azure`]).

use std::time::Duration;

use openlambda_core::balancing::BalancingPolicy;
use openlambda_core::keep_alive::KeepAliveMaker;
use openlambda_core::scheduler::{Limits, SchedulerConfig};
use openlambda_lb::policies::Random;

use crate::sim::{SimConfig, SimError, Usage, simulate};
use crate::summary::{Summary, Tally};
use crate::workload::{FunctionMix, Service, WorkloadConfig};

/// A day on one worker of `memory_gb` GiB.
pub fn day(keep_alive: &KeepAliveMaker, memory_gb: u64, seed: u64) -> SimConfig {
    let rate = 5.0;
    SimConfig {
        workload: WorkloadConfig {
            rate,
            functions: 392,
            zipf: 0.0,
            service: Service::Fixed(Duration::ZERO),
            invocations: (rate * 86_400.0) as u64,
            mix: FunctionMix::azure(),
        },
        workers: 1,
        scheduler: SchedulerConfig { memory: memory_gb << 30, ..SchedulerConfig::default() },
        keep_alive: keep_alive.clone(),
        code_budget: u64::MAX,
        bundle_bytes: 1 << 20,
        limits: Limits {
            memory: 128 << 20,
            slots: 1,
            max_instances: 64,
            queue: 1024,
            timeout: Duration::from_secs(60),
            reuse: true,
        },
        max_wait: Duration::from_secs(60),
        // Only starts count: all code is there, and the balancer is near.
        hop: Duration::ZERO,
        pull: Duration::ZERO,
        cold_start: Duration::from_secs(1),
        heartbeat: Duration::from_secs(60),
        seed,
        ..SimConfig::default()
    }
}

/// What comes of it.
///
/// # Errors
///
/// [`SimError`].
pub fn run(config: &SimConfig) -> Result<(Summary, Usage), SimError> {
    let only_worker: Box<dyn BalancingPolicy> = Box::new(Random);
    let mut tally = Tally::default();
    let usage = simulate(config, only_worker, |call| tally.add(call))?;
    Ok((tally.summary(config.keep_alive.text()), usage))
}
