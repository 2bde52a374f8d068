//! What a simulated cluster is asked to do: which function is called when, and how long it runs.
//!
//! A [`Workload`] is drawn from a seed alone, in streams with labels of their own, so every policy
//! under comparison sees the very same calls.

use std::time::Duration;

use openlambda_core::random::Rng;
use openlambda_core::time::Time;
use serde::Serialize;

/// How long handlers run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Service {
    /// Exponentially distributed with this mean: the "M" of queueing theory's M/M/1.
    Exponential(Duration),
    /// Always the same.
    Fixed(Duration),
}

impl Service {
    fn draw(self, rng: &mut Rng) -> Duration {
        match self {
            Service::Exponential(mean) => rng.exponential(mean),
            Service::Fixed(time) => time,
        }
    }
}

/// The calls of an experiment: Poisson arrivals over functions of unequal popularity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorkloadConfig {
    /// Calls a second, over all functions.
    pub rate: f64,
    /// How many functions there are.
    pub functions: u32,
    /// The exponent of Zipf's law for their popularity: 0 makes all alike, 1 is the classic.
    pub zipf: f64,
    /// How long handlers run.
    pub service: Service,
    /// How many calls there are.
    pub invocations: u64,
}

impl Default for WorkloadConfig {
    /// 100,000 calls at 100 a second, 50 ms each in the mean, of 100 functions by the classic law.
    fn default() -> Self {
        WorkloadConfig {
            rate: 100.0,
            functions: 100,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(50)),
            invocations: 100_000,
        }
    }
}

/// One call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// When.
    pub at: Time,
    /// Which function, `0..functions`.
    pub function: u32,
    /// How long its handler will run.
    pub service: Duration,
}

/// The calls, in order of time. An iterator, so that a long experiment needs no memory for them.
#[derive(Debug)]
pub struct Workload {
    config: WorkloadConfig,
    /// The popularity of functions `0..=i`, up to 1.
    cumulative: Vec<f64>,
    left: u64,
    at: Time,
    arrivals: Rng,
    functions: Rng,
    services: Rng,
}

impl Workload {
    /// The calls of `config` under `seed`.
    ///
    /// # Panics
    ///
    /// When the rate is not positive or there is no function.
    pub fn new(config: WorkloadConfig, seed: u64) -> Self {
        assert!(config.rate > 0.0 && config.functions > 0, "a workload needs calls and functions");
        let weights = (1..=config.functions).map(|rank| libm::pow(f64::from(rank), -config.zipf));
        let weights: Vec<f64> = weights.collect();
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let cumulative = weights.iter().map(|weight| {
            sum += weight / total;
            sum
        });
        Workload {
            cumulative: cumulative.collect(),
            left: config.invocations,
            at: Time::ZERO,
            arrivals: Rng::from_seed_and_label(seed, "arrivals"),
            functions: Rng::from_seed_and_label(seed, "functions"),
            services: Rng::from_seed_and_label(seed, "services"),
            config,
        }
    }
}

impl Iterator for Workload {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        self.left = self.left.checked_sub(1)?;
        self.at += self.arrivals.exponential(Duration::from_secs_f64(1.0 / self.config.rate));
        let draw = self.functions.unit();
        let function = self.cumulative.partition_point(|sum| *sum <= draw);
        Some(Arrival {
            at: self.at,
            function: (function as u32).min(self.config.functions - 1),
            service: self.config.service.draw(&mut self.services),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_popularity_are_as_asked() {
        let config = WorkloadConfig {
            rate: 100.0,
            functions: 10,
            zipf: 1.0,
            service: Service::Exponential(Duration::from_millis(10)),
            invocations: 100_000,
        };
        let calls: Vec<Arrival> = Workload::new(config, 3).collect();
        assert_eq!(calls.len(), 100_000);
        let seconds = calls.last().unwrap().at.as_secs_f64();
        assert!((seconds - 1000.0).abs() < 20.0, "{seconds}");
        let of = |function| calls.iter().filter(|call| call.function == function).count() as f64;
        assert!((of(0) / of(1) - 2.0).abs() < 0.1, "{} {}", of(0), of(1));
        let mean = calls.iter().map(|call| call.service.as_secs_f64()).sum::<f64>() / 1e5;
        assert!((mean - 0.010).abs() < 0.0002, "{mean}");
    }
}
