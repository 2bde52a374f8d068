//! Which policy beats which, according to their authors and according to the simulator.
//!
//! Each [`Comparison`] is a pair of policies from a paper, on a workload after the paper's
//! description, with what the authors measured. Their traces and machines are not available, so a
//! workload is drawn with the marginals that they give. Where a number had to be chosen, it brings the
//! *worse* policy to the authors' figure, never the better one.
//!
//! `benches/tests/orderings.rs` asserts the directions, and `docs/orderings.md` shows the table.

use std::time::Duration;

use openlambda_core::config::ConfigError;
use openlambda_core::invocation::StartKind;
use openlambda_core::keep_alive::{KeepAliveMaker, Lru};
use openlambda_core::scheduler::{Limits, SchedulerConfig};
use openlambda_lb::policies::PolicyCatalog;

use crate::sim::{SimConfig, SimError, Users, simulate};
use crate::summary::percentile;
use crate::workload::{Bursts, FunctionMix, LogNormal, Service, Workload, WorkloadConfig};

/// One published claim: a policy does better than another.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    /// Who says so, and where.
    pub source: &'static str,
    /// The policy that does better by its authors, with parameters.
    pub better: &'static str,
    /// The one that it is compared to.
    pub worse: &'static str,
    /// In what.
    pub measure: Measure,
    /// What the authors found.
    pub authors: &'static str,
    /// The setting's name in the table.
    pub workload: &'static str,
    /// What is simulated, from a seed.
    pub setting: fn(u64) -> SimConfig,
    /// Why the simulator does not show what the authors found, where it does not.
    pub otherwise: Option<&'static str>,
}

/// What is compared. Less is better in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// From arrival to answer: the mean, milliseconds.
    Latency,
    /// Its 80th percentile, milliseconds.
    LatencyP80,
    /// From arrival to the start of the handler: the mean, milliseconds.
    Wait,
    /// Calls that started cold, %.
    ColdStarts,
    /// From arrival to answer, divided by the time that the handler would take alone (slowdown): the mean.
    Slowdown,
    /// The 99th percentile of the same.
    SlowdownP99,
    /// The whole time divided by the number of calls, milliseconds: the inverse of throughput. It is of use
    /// in a closed loop only.
    TimePerCall,
}

impl Measure {
    /// As a table names it.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Latency => "mean latency, ms",
            Measure::LatencyP80 => "80th percentile of latency, ms",
            Measure::Wait => "mean wait, ms",
            Measure::ColdStarts => "cold starts, %",
            Measure::Slowdown => "mean slowdown",
            Measure::SlowdownP99 => "99th percentile of slowdown",
            Measure::TimePerCall => "time per call (throughput), ms",
        }
    }
}

/// Runs one policy in a setting; every call must be answered.
///
/// # Errors
///
/// [`SimError`], and a policy that is not known.
///
/// # Panics
///
/// When a call failed: then means over those that did not compare nothing. When slowdown is asked for
/// in a closed loop: there the calls depend on the policy.
pub fn measure(config: &SimConfig, policy: &str, measure: Measure) -> Result<f64, OrderingError> {
    let built = PolicyCatalog::standard().build(&policy.parse()?)?;
    let slowdown = matches!(measure, Measure::Slowdown | Measure::SlowdownP99);
    assert!(!slowdown || config.users.is_none(), "slowdown is measured in an open system");
    // How long each handler would take alone; records tell how long it took among others.
    // Calls have their numbers in the order in which the workload has them.
    let calls = slowdown.then(|| Workload::new(config.workload, config.seed));
    let alone: Vec<u64> =
        calls.into_iter().flatten().map(|call| call.service.as_nanos() as u64).collect();
    let (mut values, mut cold) = (Vec::new(), 0);
    let usage = simulate(config, built, |call| {
        assert!(call.is_ok(), "{policy}: {call:?}");
        let latency = call.latency();
        cold += u64::from(call.start != Some(StartKind::Warm));
        values.push(match measure {
            Measure::Wait => (latency - call.phases.run).as_nanos() as u64,
            _ if slowdown => {
                let alone = alone[call.number as usize];
                // In thousandths. What takes no time has no slowdown.
                (1e3 * latency.as_nanos() as f64 / alone.max(1_000) as f64) as u64
            }
            _ => latency.as_nanos() as u64,
        });
    })?;
    values.sort_unstable();
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| *value as f64).sum::<f64>() / count;
    Ok(match measure {
        Measure::Latency | Measure::Wait => mean / 1e6,
        Measure::LatencyP80 => percentile(&values, 0.80) as f64 / 1e6,
        Measure::ColdStarts => 100.0 * cold as f64 / count,
        Measure::Slowdown => mean / 1e3,
        Measure::SlowdownP99 => percentile(&values, 0.99) as f64 / 1e3,
        Measure::TimePerCall => 1e3 * usage.seconds / count,
    })
}

/// A comparison that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderingError {
    /// A policy is not known, or a parameter of it is not valid.
    #[error(transparent)]
    Policy(#[from] ConfigError),
    /// The setting cannot be simulated.
    #[error(transparent)]
    Sim(#[from] SimError),
}

/// The published orderings.
pub const COMPARISONS: &[Comparison] = &[
    Comparison {
        source: "Mitzenmacher, TPDS 2001",
        better: "power-of-two",
        worse: "random",
        measure: Measure::Latency,
        authors: "10 → 2.61 service times at load 0.9",
        workload: "one slot each",
        setting: single_servers,
        otherwise: None,
    },
    Comparison {
        source: "Lu et al., Performance Evaluation 2011",
        better: "join-idle-queue",
        worse: "power-of-two",
        measure: Measure::Wait,
        authors: "up to 30 × less queueing",
        workload: "one slot each",
        setting: single_servers,
        otherwise: None,
    },
    Comparison {
        source: "Akbari & Hauswirth (Hiku), CCGrid 2025",
        better: "hiku",
        worse: "bounded-load",
        measure: Measure::Latency,
        authors: "−14.9 % (1.18 ×)",
        workload: "five workers",
        setting: five_workers,
        otherwise: None,
    },
    Comparison {
        source: "Akbari & Hauswirth (Hiku), CCGrid 2025",
        better: "hiku",
        worse: "least-outstanding",
        measure: Measure::ColdStarts,
        authors: "43 → 30 %",
        workload: "five workers",
        setting: five_workers,
        otherwise: None,
    },
    Comparison {
        source: "Akbari & Hauswirth (Hiku), CCGrid 2025",
        better: "hiku",
        worse: "least-outstanding",
        measure: Measure::Latency,
        authors: "lower",
        workload: "five workers",
        setting: five_workers,
        otherwise: None,
    },
    Comparison {
        source: "Akbari & Hauswirth (Hiku), CCGrid 2025",
        better: "hiku",
        worse: "bounded-load",
        measure: Measure::TimePerCall,
        authors: "throughput +8.3 % (1.08 ×)",
        workload: "the same, closed loop",
        setting: hundred_users,
        otherwise: None,
    },
    Comparison {
        source: "Aumala et al. (PASch), CCGrid 2019",
        better: "package-aware",
        worse: "least-outstanding",
        measure: Measure::Latency,
        authors: "1.29 × faster",
        workload: "packages",
        setting: packages,
        otherwise: None,
    },
    Comparison {
        source: "Aumala et al. (PASch), CCGrid 2019",
        better: "package-aware",
        worse: "least-outstanding",
        measure: Measure::LatencyP80,
        authors: "23 × faster",
        workload: "packages",
        setting: packages,
        otherwise: None,
    },
    Comparison {
        source: "Fuerst & Sharma (CH-RLU), HPDC 2022",
        better: "ch-rlu",
        worse: "bounded-load",
        measure: Measure::Latency,
        authors: "over 2 × lower",
        workload: "Azure, in bursts",
        setting: azure_in_bursts,
        otherwise: Some(CH_RLU_BURSTS),
    },
    Comparison {
        source: "Fuerst & Sharma (CH-RLU), HPDC 2022",
        better: "ch-rlu",
        worse: "openwhisk",
        measure: Measure::Latency,
        authors: "over 2 × lower",
        workload: "Azure, in bursts",
        setting: azure_in_bursts,
        otherwise: Some(CH_RLU_BURSTS),
    },
    Comparison {
        source: "Fuerst & Sharma (CH-RLU), HPDC 2022",
        better: "ch-rlu",
        worse: "bounded-load",
        measure: Measure::ColdStarts,
        authors: "more warm starts",
        workload: "Azure, by chance",
        setting: azure_on_eight,
        otherwise: None,
    },
    Comparison {
        source: "Fuerst & Sharma (CH-RLU), HPDC 2022",
        better: "ch-rlu",
        worse: "bounded-load",
        measure: Measure::Latency,
        authors: "over 2 × lower",
        workload: "Azure, by chance",
        setting: azure_on_eight,
        otherwise: Some(CH_RLU_SLOWED),
    },
    Comparison {
        source: "Fuerst & Sharma (CH-RLU), HPDC 2022",
        better: "ch-rlu",
        worse: "openwhisk",
        measure: Measure::Latency,
        authors: "over 2 × lower",
        workload: "Azure, by chance",
        setting: azure_on_eight,
        otherwise: Some(CH_RLU_NO_STAKE),
    },
    Comparison {
        source: "Fuerst & Sharma (CH-RLU), HPDC 2022",
        better: "ch-rlu",
        worse: "openwhisk",
        measure: Measure::Latency,
        authors: "over 2 × lower",
        workload: "short runs, long cold starts",
        setting: short_runs,
        otherwise: None,
    },
    Comparison {
        source: "Kaffes et al. (Hermod), SoCC 2022",
        better: "hermod",
        worse: "least-outstanding",
        measure: Measure::Slowdown,
        authors: "up to 85 % lower",
        workload: "Azure, 12 processors each",
        setting: azure_on_cores,
        otherwise: None,
    },
    Comparison {
        source: "Kaffes et al. (Hermod), SoCC 2022",
        better: "hermod",
        worse: "central-queue,wait=3600",
        measure: Measure::Slowdown,
        authors: "lower: no call waits behind a long one",
        workload: "Azure, 12 processors each",
        setting: azure_on_cores,
        otherwise: None,
    },
];

const CH_RLU_BURSTS: &str = "A burst loads all workers of the chain over the bound, and what fits nowhere goes \
    home, as in the authors' code. Calls run for 3 s and start cold in 1 s here, so that to wait at home \
    costs more than a cold start elsewhere. Where cold starts are what matters, it is ahead: see the row \
    of short runs and long cold starts.";

const CH_RLU_SLOWED: &str = "Calls come by chance here, not in bursts. CH-RLU does start cold less often, but \
    it fills the workers of popular functions up to 1.2 calls per processor, where calls slow each \
    other down, while bounded-load keeps every worker within 1.25 of the mean, which is below one \
    call per processor at this load. With `ch-rlu,bound=1` the two are equal.";

const CH_RLU_NO_STAKE: &str = "Calls come by chance here, not in bursts. A call runs for 3 s on average and \
    about one in twenty starts cold, for about 1 s: locality is worth little in this workload, and \
    which of the two is ahead depends on the seed.";

/// 100 workers that run one call at a time, at 0.9 of what they can do, exponential times of 10 ms,
/// and nothing but queueing.
fn single_servers(seed: u64) -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 9_000.0,
            functions: 1,
            zipf: 0.0,
            service: Service::Exponential(Duration::from_millis(10)),
            invocations: 60_000,
            mix: FunctionMix::default(),
        },
        workers: 100,
        scheduler: SchedulerConfig { memory: 128 << 20, ..SchedulerConfig::default() },
        limits: Limits { max_instances: 1, ..patient() },
        hop: Duration::ZERO,
        pull: Duration::ZERO,
        cold_start: Duration::ZERO,
        ..base(seed)
    }
}

/// Five workers with four processors each at 0.6 of what they can do, 40 functions with exponential
/// times of 200 ms, cold starts of 300 ms. Memory is chosen so that least connections starts cold as
/// often as Hiku's authors saw it.
fn five_workers(seed: u64) -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 60.0,
            functions: 40,
            zipf: 0.5,
            service: Service::Exponential(Duration::from_millis(200)),
            invocations: 30_000,
            mix: FunctionMix::default(),
        },
        workers: 5,
        processors: Some(4),
        scheduler: SchedulerConfig { memory: 24 * (128 << 20), ..SchedulerConfig::default() },
        pull: Duration::ZERO,
        cold_start: Duration::from_millis(300),
        ..base(seed)
    }
}

/// The same workers and functions in a closed loop: 100 users who think for a second.
fn hundred_users(seed: u64) -> SimConfig {
    let users = Users { count: 100, think: Duration::from_secs(1) };
    SimConfig { users: Some(users), ..five_workers(seed) }
}

/// Ten workers with four processors each, and a sandbox for each call, as OpenLambda had it then. A
/// function needs one of 100 packages; a worker has room for a tenth of them, and to install one
/// takes ten times as long as a call.
fn packages(seed: u64) -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 40.0,
            functions: 1_000,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(100)),
            invocations: 30_000,
            mix: FunctionMix { packages: Some(100), ..FunctionMix::default() },
        },
        workers: 10,
        processors: Some(4),
        scheduler: SchedulerConfig { memory: 64 << 30, ..SchedulerConfig::default() },
        limits: Limits { reuse: false, max_instances: 64, ..patient() },
        code_budget: 10,
        bundle_bytes: 1,
        pull: Duration::from_secs(1),
        cold_start: Duration::from_millis(10),
        ..base(seed)
    }
}

/// Eight workers with 16 processors at 0.7 of what they can do, and room for about 50 instances each;
/// 200 functions as in the Azure trace.
fn azure_on_eight(seed: u64) -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 1.0,
            functions: 200,
            zipf: 0.0,
            service: Service::Exponential(Duration::ZERO),
            invocations: 40_000,
            mix: FunctionMix::azure(),
        }
        .with_busy(0.7 * 8.0 * 16.0, seed),
        workers: 8,
        processors: Some(16),
        scheduler: SchedulerConfig { memory: 8 << 30, ..SchedulerConfig::default() },
        ..base(seed)
    }
}

/// The same, where calls by chance come in bursts of 30, each 50 ms after the last: what the paper's
/// traces have, and what its policy is for. A burst makes queues, and cold starts, one after the
/// other.
fn azure_in_bursts(seed: u64) -> SimConfig {
    let mut config = azure_on_eight(seed);
    config.workload.mix.bursts = Some(Bursts { size: 30.0, gap: Duration::from_millis(50) });
    config
}

/// Eight workers with 16 processors at half of what they can do, and 200 functions by Zipf's law whose calls
/// take 200 ms and start cold in 2 s, about as the traces that CH-RLU's authors use: a cold start is what
/// matters.
fn short_runs(seed: u64) -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 320.0,
            functions: 200,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(200)),
            invocations: 50_000,
            mix: FunctionMix::default(),
        },
        workers: 8,
        processors: Some(16),
        scheduler: SchedulerConfig { memory: 16 << 30, ..SchedulerConfig::default() },
        cold_start: Duration::from_secs(2),
        ..base(seed)
    }
}

/// Eight workers with twelve processors each; functions as in the Azure trace.
fn azure_on_cores(seed: u64) -> SimConfig {
    SimConfig {
        workload: WorkloadConfig {
            rate: 30.0,
            functions: 50,
            zipf: 0.0,
            service: Service::Exponential(Duration::ZERO),
            invocations: 40_000,
            mix: FunctionMix {
                cold_start_ms: Some(LogNormal {
                    median: 300.0,
                    sigma: 0.5,
                    least: 100.0,
                    most: 2_000.0,
                }),
                ..FunctionMix::azure()
            },
        }
        .with_busy(0.6 * 8.0 * 12.0, seed),
        workers: 8,
        processors: Some(12),
        scheduler: SchedulerConfig { memory: 6 << 30, ..SchedulerConfig::default() },
        ..base(seed)
    }
}

fn base(seed: u64) -> SimConfig {
    SimConfig {
        keep_alive: KeepAliveMaker::new("lru", || Box::new(Lru::default())),
        limits: patient(),
        max_wait: Duration::from_secs(86_400),
        seed,
        ..SimConfig::default()
    }
}

/// Limits under which no call is refused for having waited.
fn patient() -> Limits {
    Limits {
        memory: 128 << 20,
        slots: 1,
        max_instances: 256,
        queue: u32::MAX / 2,
        timeout: Duration::from_secs(86_400),
        reuse: true,
        pause_after: None,
    }
}
