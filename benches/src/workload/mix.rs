//! How functions differ: in popularity, timers, service times, memory, cold starts, packages and bursts.

use std::time::Duration;

use openlambda_core::random::Rng;
use serde::Serialize;

use crate::spacing::Spacing;

/// How functions differ. By default they differ in popularity alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FunctionMix {
    /// Their relative popularity; `None`: by Zipf's law.
    pub popularity: Option<LogNormal>,
    /// The share of functions that a timer calls, at equal intervals; the others are called at random
    /// times.
    pub timers: f64,
    /// The mean of a function's service times, milliseconds; `None`: that of
    /// [`WorkloadConfig::service`](super::WorkloadConfig::service).
    pub service_ms: Option<LogNormal>,
    /// What an instance takes, MiB; `None`: what the experiment says for all.
    pub memory_mb: Option<LogNormal>,
    /// What a cold start takes, milliseconds; `None`: what the experiment says for all.
    pub cold_start_ms: Option<LogNormal>,
    /// How many packages there are: each function needs one of them, drawn by Zipf's law with the
    /// exponent 1. What a worker pulls is the package, and functions that need the same share it.
    /// `None`: none, and each function's bundle is its own.
    pub packages: Option<u32>,
    /// Random calls come in bursts. `None`: each by itself.
    pub bursts: Option<Bursts>,
    /// Where in its minute a call falls. Anything but [`Spacing::AsDrawn`] holds a minute's calls in memory.
    pub spacing: Spacing,
}

/// Random calls that come in bursts of one function: bursts begin at random times (Poisson), and a
/// burst's calls follow each other at exponential intervals. The number of calls a second is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bursts {
    /// How many calls a burst has: the mean of a geometric distribution, at least 1.
    pub size: f64,
    /// The mean time between a burst's calls.
    pub gap: Duration,
}

impl Bursts {
    /// Whether the burst has one more call. Asked after each.
    pub(super) fn goes_on(self, rng: &mut Rng) -> bool {
        rng.chance(1.0 - 1.0 / self.size.max(1.0))
    }
}

impl FunctionMix {
    /// Functions as at a large provider (Shahrad et al., *Serverless in the Wild*, USENIX ATC 2020,
    /// on the Azure Functions trace of 2019), each an application of its own:
    ///
    /// * popularity: 45 % of functions are called at most once an hour, 81 % at most once a minute.
    ///   Cut off at 10,000 calls a day: what is called more often is warm under any policy;
    /// * 15.6 % are called by a timer;
    /// * service times: log-normal with μ = −0.38 and σ = 2.36 (of seconds), cut off at 10 s;
    /// * memory: half take at most 170 MiB, 90 % at most 400.
    ///
    /// The trace says nothing of cold starts. They are drawn around 1 s, 90 % between 0.2 and 5.2 s.
    pub fn azure() -> Self {
        FunctionMix {
            popularity: Some(LogNormal { median: 40.0, sigma: 4.08, least: 2.0, most: 10_000.0 }),
            timers: 0.156,
            service_ms: Some(LogNormal { median: 684.0, sigma: 2.36, least: 1.0, most: 10_000.0 }),
            memory_mb: Some(LogNormal { median: 170.0, sigma: 0.668, least: 32.0, most: 2048.0 }),
            cold_start_ms: Some(LogNormal {
                median: 1000.0,
                sigma: 1.0,
                least: 100.0,
                most: 20_000.0,
            }),
            packages: None,
            bursts: None,
            spacing: Spacing::AsDrawn,
        }
    }
}

/// A log-normal distribution, cut off at both ends: what falls outside counts as the end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LogNormal {
    /// Half of what is drawn is below.
    pub median: f64,
    /// The standard deviation of the logarithm.
    pub sigma: f64,
    /// The least that is drawn.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl LogNormal {
    pub(super) fn draw(self, rng: &mut Rng) -> f64 {
        (self.median * libm::exp(self.sigma * rng.normal())).clamp(self.least, self.most)
    }
}
