//! The configuration of a workload, and the functions that are drawn from it.

use std::time::Duration;

use openlambda_core::random::Rng;
use serde::Serialize;

use super::mix::FunctionMix;
use super::service::Service;

/// The calls of an experiment: random arrivals (Poisson, or in bursts) and timers, over functions of
/// unequal popularity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorkloadConfig {
    /// Calls a second, over all functions.
    pub rate: f64,
    /// How many functions there are.
    pub functions: u32,
    /// The exponent of Zipf's law for their popularity: 0 makes all equal, 1 is the classic.
    pub zipf: f64,
    /// How long handlers run.
    pub service: Service,
    /// How many calls there are.
    pub invocations: u64,
    /// How functions differ.
    pub mix: FunctionMix,
}

/// The properties of one function of a workload.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Profile {
    /// Calls a second, on average.
    pub rate: f64,
    /// A timer calls it, at equal intervals.
    pub timer: bool,
    /// How long its handler runs.
    pub service: Service,
    /// What an instance takes, bytes, when the workload says.
    pub memory: Option<u64>,
    /// What a cold start takes, when the workload says.
    pub cold_start: Option<Duration>,
    /// The package that it needs, `0..packages`, when the workload says.
    pub package: Option<u32>,
}

impl WorkloadConfig {
    /// The same workload at the rate at which its handlers keep `busy` processors busy on average. Where
    /// functions differ, the rate is another one under each seed.
    #[must_use]
    pub fn with_busy(mut self, busy: f64, seed: u64) -> Self {
        let seconds_of = |profile: &Profile| profile.rate * profile.service.mean().as_secs_f64();
        let now: f64 = self.profiles(seed).iter().map(seconds_of).sum();
        self.rate *= busy / now;
        self
    }

    /// The functions under `seed`, `0..functions`. Each property has a stream of its own, so a mix
    /// with one distribution more draws the same for the others.
    pub fn profiles(&self, seed: u64) -> Vec<Profile> {
        let mix = &self.mix;
        let stream = |label| Rng::from_seed_and_label(seed, label);
        let (mut popularity, mut timers) = (stream("popularity"), stream("timers"));
        let (mut service, mut memory) = (stream("service means"), stream("memory"));
        let (mut cold_start, mut package) = (stream("cold starts"), stream("packages"));
        let millis = |value: f64| Duration::from_secs_f64(value / 1e3);
        let mut profiles: Vec<Profile> = (1..=self.functions)
            .map(|rank| Profile {
                rate: match mix.popularity {
                    Some(distribution) => distribution.draw(&mut popularity),
                    None => libm::pow(f64::from(rank), -self.zipf),
                },
                timer: timers.chance(mix.timers),
                service: match mix.service_ms {
                    Some(means) => self.service.with_mean(millis(means.draw(&mut service))),
                    None => self.service,
                },
                memory: mix.memory_mb.map(|mb| (mb.draw(&mut memory) * 1048576.0) as u64),
                cold_start: mix.cold_start_ms.map(|ms| millis(ms.draw(&mut cold_start))),
                package: mix.packages.map(|count| draw_by_rank(count, &mut package)),
            })
            .collect();
        let total: f64 = profiles.iter().map(|profile| profile.rate).sum();
        for profile in &mut profiles {
            profile.rate *= self.rate / total;
        }
        profiles
    }
}

impl Default for WorkloadConfig {
    /// 100,000 calls at 100 a second, 50 ms each in the mean, of 100 functions by the classic law.
    fn default() -> Self {
        WorkloadConfig {
            mix: FunctionMix::default(),
            rate: 100.0,
            functions: 100,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(50)),
            invocations: 100_000,
        }
    }
}

/// One of `0..count` by Zipf's law with the exponent 1; 0 when there is only that.
fn draw_by_rank(count: u32, rng: &mut Rng) -> u32 {
    let weights = || (1..=count).map(|rank| 1.0 / f64::from(rank));
    let mut left = rng.unit() * weights().sum::<f64>();
    let before = weights().take_while(|weight| {
        left -= weight;
        left >= 0.0
    });
    (before.count() as u32).min(count.saturating_sub(1))
}
