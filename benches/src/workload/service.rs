//! How long handlers run.

use std::time::Duration;

use openlambda_core::random::Rng;
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
    /// A mixture of two exponential distributions with balanced means: mostly short times, and a few
    /// long ones. It is the usual choice for a variance above the exponential's.
    HyperExponential {
        /// The mean.
        mean: Duration,
        /// The squared coefficient of variation, at least 1 (which is the exponential's).
        scv: f64,
    },
    /// Log-normal, what handlers' times look like in production.
    LogNormal {
        /// The mean.
        mean: Duration,
        /// The standard deviation of the logarithm: the larger, the heavier the tail.
        sigma: f64,
    },
}

impl Service {
    /// The same kind with this mean.
    pub(super) fn with_mean(self, mean: Duration) -> Self {
        match self {
            Service::Exponential(_) => Service::Exponential(mean),
            Service::Fixed(_) => Service::Fixed(mean),
            Service::HyperExponential { scv, .. } => Service::HyperExponential { mean, scv },
            Service::LogNormal { sigma, .. } => Service::LogNormal { mean, sigma },
        }
    }

    /// The mean.
    pub fn mean(self) -> Duration {
        match self {
            Service::Exponential(mean)
            | Service::Fixed(mean)
            | Service::HyperExponential { mean, .. }
            | Service::LogNormal { mean, .. } => mean,
        }
    }

    pub(super) fn draw(self, rng: &mut Rng) -> Duration {
        match self {
            Service::Exponential(mean) => rng.exponential(mean),
            Service::Fixed(time) => time,
            Service::HyperExponential { mean, scv } => {
                // Each branch carries half of the mean: p₁ m₁ = p₂ m₂ = mean / 2.
                let scv = scv.max(1.0);
                let short = (1.0 + libm::sqrt((scv - 1.0) / (scv + 1.0))) / 2.0;
                let share = if rng.chance(short) { short } else { 1.0 - short };
                rng.exponential(mean.div_f64(2.0 * share))
            }
            Service::LogNormal { mean, sigma } => {
                mean.mul_f64(libm::exp(sigma * rng.normal() - sigma * sigma / 2.0))
            }
        }
    }
}
