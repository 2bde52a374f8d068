//! Keep-alive policies side by side on one worker, as FaasCache compares them.
//!
//! Fuerst and Sharma (*FaasCache: Keeping Serverless Computing Alive with Greedy-Dual Caching*,
//! ASPLOS 2021) replay a day of the Azure Functions trace of 2019, sampled to 392
//! functions of all popularities, on one server of varying memory. The trace is not available here:
//! [`day`] draws a day of as many functions with the trace's published marginals
//! ([`FunctionMix::azure`]). The trace counts calls per minute; [`FunctionMix::spacing`] says where in the
//! minute they fall, and decides which policy leads: see docs/keep-alive.md.

use std::sync::Arc;
use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, RequestInfo,
};
use openlambda_core::invocation::StartKind;
use openlambda_core::keep_alive::KeepAliveMaker;
use openlambda_core::scheduler::{Limits, SchedulerConfig};
use openlambda_lb::policies::Random;
use parking_lot::Mutex;

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
            pause_after: None,
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

/// Runs it and returns the results.
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

/// How instances were used, which [`run`] does not return.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Use {
    /// The share of calls that came while another call of their function was under way, 0 to 1: each of them
    /// needs one more instance.
    pub overlapping: f64,
    /// The share of calls that came so, and started cold.
    pub cold_overlapping: f64,
    /// The share of calls that came alone, and started cold: no instance of their function was left.
    pub cold_alone: f64,
    /// Bytes of spare instances, which are idle beside another one of their function: the mean over the day.
    pub spare: f64,
    /// How many functions have an instance: the mean over the day.
    pub functions: f64,
}

/// The same experiment as [`run`], where the worker is looked at every seven seconds.
///
/// # Errors
///
/// [`SimError`].
pub fn look(config: &SimConfig) -> Result<Use, SimError> {
    // Multiples of seven seconds fall on every second of a minute in turn.
    let config = SimConfig { heartbeat: Duration::from_secs(7), ..config.clone() };
    let of = |memory: Option<u64>| memory.unwrap_or(config.limits.memory);
    let profiles = config.workload.profiles(config.seed);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let onlooker = Onlooker {
        memory: profiles.iter().map(|profile| of(profile.memory)).collect(),
        under_way: vec![0; profiles.len()],
        seen: seen.clone(),
    };
    let mut calls = Vec::new();
    simulate(&config, Box::new(onlooker), |call| {
        let cold = call.start != Some(StartKind::Warm);
        calls.push((call.function, call.number, call.arrived, call.answered, cold));
    })?;
    calls.sort_unstable();
    let count = calls.len().max(1) as f64;
    let (mut overlapping, mut cold_overlapping, mut cold_alone) = (0, 0, 0);
    for of_one in calls.chunk_by(|(a, ..), (b, ..)| a == b) {
        let mut busy_until = None;
        for (_, _, arrived, answered, cold) in of_one {
            if busy_until.is_some_and(|until| until > *arrived) {
                overlapping += 1;
                cold_overlapping += u32::from(*cold);
            } else {
                cold_alone += u32::from(*cold);
            }
            busy_until = busy_until.max(Some(*answered));
        }
    }
    let seen = seen.lock();
    let looks = seen.looks.max(1) as f64;
    Ok(Use {
        overlapping: f64::from(overlapping) / count,
        cold_overlapping: f64::from(cold_overlapping) / count,
        cold_alone: f64::from(cold_alone) / count,
        spare: seen.spare as f64 / looks,
        functions: seen.functions as f64 / looks,
    })
}

/// Sums over all looks.
#[derive(Debug, Default)]
struct Seen {
    looks: u64,
    spare: u128,
    functions: u64,
}

/// A policy for one worker that counts what is there whenever the worker reports.
#[derive(Debug)]
struct Onlooker {
    /// What an instance of each function takes.
    memory: Vec<u64>,
    /// Calls of each function that are not answered.
    under_way: Vec<u32>,
    seen: Arc<Mutex<Seen>>,
}

impl BalancingPolicy for Onlooker {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        Random.select(request, view, cx)
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _cx: &mut PolicyContext<'_>,
    ) {
        match event {
            // The simulator's functions are known to its balancers by their numbers.
            PolicyEvent::Dispatched { function, .. } => self.under_way[function.0 as usize] += 1,
            PolicyEvent::Completed { function, .. } => self.under_way[function.0 as usize] -= 1,
            PolicyEvent::Load { worker, .. } => {
                let mut seen = self.seen.lock();
                seen.looks += 1;
                for ((function, memory), under_way) in (0..).zip(&self.memory).zip(&self.under_way)
                {
                    let idle = view.idle(*worker, FunctionId(function));
                    let spare = if *under_way > 0 { idle } else { idle.saturating_sub(1) };
                    seen.spare += u128::from(spare) * u128::from(*memory);
                    seen.functions += u64::from(idle > 0 || *under_way > 0);
                }
            }
            _ => {}
        }
    }
}
