//! Means over independent runs, with their confidence intervals.

use serde::Serialize;

/// A mean and the half-width of its 95 % confidence interval, by independent replications.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The mean over the runs.
    pub mean: f64,
    /// The interval is `mean` ± this; infinite for a single run, which has no spread.
    pub half_width: f64,
}

impl Interval {
    /// Of one value per run (Student's t). Without runs all values are 0.
    pub fn of(runs: &[f64]) -> Self {
        let n = runs.len() as f64;
        if runs.is_empty() {
            return Interval { mean: 0.0, half_width: 0.0 };
        }
        let mean = runs.iter().sum::<f64>() / n;
        if runs.len() == 1 {
            return Interval { mean, half_width: f64::INFINITY };
        }
        let variance = runs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
        Interval { mean, half_width: students_t(runs.len() - 1) * libm::sqrt(variance / n) }
    }

    /// Of the differences `worse − better` of paired runs: both played the same calls, so the randomness of
    /// the calls cancels out.
    ///
    /// # Panics
    ///
    /// When the runs are not paired.
    pub fn of_differences(worse: &[f64], better: &[f64]) -> Self {
        assert_eq!(worse.len(), better.len(), "each run needs its counterpart");
        let differences: Vec<f64> = worse.iter().zip(better).map(|(w, b)| w - b).collect();
        Interval::of(&differences)
    }

    /// The mean's sign, according to the interval: `None` when the interval holds 0, so that the sign is not
    /// decided.
    pub fn sign(&self) -> Option<bool> {
        let decided = self.mean.abs() > self.half_width;
        decided.then_some(self.mean > 0.0)
    }
}

/// The 97.5 % point of Student's distribution.
fn students_t(degrees: usize) -> f64 {
    const T: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    match T.get(degrees.saturating_sub(1)) {
        Some(t) => *t,
        // Within a thousandth (Abramowitz & Stegun, 26.7.5, first terms).
        None => 1.96 + 2.372 / degrees as f64 + 2.82 / (degrees * degrees) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openlambda_core::random::Rng;

    #[test]
    fn an_interval_is_as_in_the_books() {
        let interval = Interval::of(&[10.0, 12.0, 14.0]);
        assert_eq!(interval.mean, 12.0);
        assert!((interval.half_width - 4.303 * 2.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(Interval::of(&[7.0]).sign(), None);
        assert_eq!(Interval::of(&[]).half_width, 0.0);
        assert!((students_t(40) - 2.021).abs() < 0.001 && (students_t(120) - 1.980).abs() < 0.001);
        let difference = Interval::of_differences(&[3.0, 5.0, 9.0], &[2.0, 4.0, 8.0]);
        assert_eq!((difference.mean, difference.sign()), (1.0, Some(true)));
        assert_eq!(Interval::of(&[-1.0, 1.0, 0.1]).sign(), None);
    }

    #[test]
    fn nineteen_of_twenty_intervals_hold_the_mean() {
        let mut rng = Rng::from_seed(11);
        let held = (0..2_000)
            .filter(|_| {
                let runs: Vec<f64> = (0..6).map(|_| 5.0 + rng.normal()).collect();
                let interval = Interval::of(&runs);
                (interval.mean - 5.0).abs() <= interval.half_width
            })
            .count();
        assert!((1_860..=1_940).contains(&held), "{held} of 2000");
    }
}
