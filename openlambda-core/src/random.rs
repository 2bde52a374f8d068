//! Randomness from a seed, with the same values on every machine.
//!
//! The generator is PCG XSL 128/64 (O'Neill 2014, `rand_pcg`). The distributions are written here, in a
//! few lines over `libm`, because a distribution crate may change its values between versions.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use rand_core::{Rng as _, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::hash::{mix, stable_hash};

/// A seed that nobody had before: another one at each call, in each process and on each machine. For
/// live shells alone, where what it decides is not to be repeated; a decider is given its seed.
pub fn fresh_seed() -> u64 {
    // The standard library asks the system once, and counts from there.
    RandomState::new().hash_one(0)
}

/// A seeded generator. Cloning it copies its state: both yield the same values from then on.
#[derive(Clone, Debug)]
pub struct Rng(Pcg64Mcg);

impl Rng {
    /// The generator of `seed`.
    pub fn from_seed(seed: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mix(seed, 1).to_le_bytes());
        bytes[8..].copy_from_slice(&mix(seed, 2).to_le_bytes());
        Rng(Pcg64Mcg::from_seed(bytes))
    }

    /// A generator for one purpose: streams with different labels are independent, so adding a
    /// consumer does not change what the others draw.
    pub fn from_seed_and_label(seed: u64, label: &str) -> Self {
        Rng::from_seed(stable_hash(seed, label.as_bytes()))
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform over `0..n`.
    ///
    /// # Panics
    ///
    /// When `n` is 0: there is nothing to choose from.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "cannot choose from nothing");
        // Lemire's multiply-shift ("Fast Random Integer Generation in an Interval", 2019) without
        // its rejection step: the bias is below n / 2^64.
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// Uniform over [0, 1), with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Exponentially distributed with the given mean.
    pub fn exponential(&mut self, mean: Duration) -> Duration {
        Duration::from_secs_f64(-libm::log(1.0 - self.unit()) * mean.as_secs_f64())
    }

    /// Standard normal, by the Box–Muller transform.
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.unit()));
        radius * libm::cos(2.0 * std::f64::consts::PI * self.unit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_pinned_values() {
        let mut rng = Rng::from_seed(1);
        let first = [rng.next_u64(), rng.next_u64()];
        let mut again = Rng::from_seed(1);
        assert_eq!(first, [again.next_u64(), again.next_u64()]);
        assert_ne!(first[0], Rng::from_seed(2).next_u64());
        assert_ne!(
            Rng::from_seed_and_label(1, "arrivals").next_u64(),
            Rng::from_seed_and_label(1, "service").next_u64()
        );
    }

    #[test]
    fn a_fresh_seed_is_another_one_each_time() {
        let seeds: std::collections::BTreeSet<u64> = (0..1000).map(|_| fresh_seed()).collect();
        assert_eq!(seeds.len(), 1000);
    }

    #[test]
    fn distributions_have_the_right_means() {
        let mut rng = Rng::from_seed(7);
        let n = 200_000;
        let mean_of =
            |draw: &mut dyn FnMut() -> f64| (0..n).map(|_| draw()).sum::<f64>() / n as f64;
        assert!((mean_of(&mut || rng.unit()) - 0.5).abs() < 0.005);
        assert!((mean_of(&mut || rng.below(10) as f64) - 4.5).abs() < 0.05);
        let second = Duration::from_secs(1);
        assert!((mean_of(&mut || rng.exponential(second).as_secs_f64()) - 1.0).abs() < 0.02);
        assert!(mean_of(&mut || rng.normal()).abs() < 0.02);
    }
}
