//! How long to wait before a failed attempt is repeated: [`Backoff`].

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::random::Rng;

/// The pauses between attempts: each about twice as long as the one before, up to a longest, and
/// none quite as long as another's, so that those who lost the same server do not all come back to
/// it at the same moments.
///
/// This is "equal jitter" of M. Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog,
/// 2015): half of the exponential's step is kept, the other half is random. The article finds that
/// "full jitter" spreads a crowd a little better, and so does "decorrelated jitter"; but the one may
/// draw pauses near zero, several in a row, and the other's may stay short for long. Here a pause is
/// also the rest that a crashing daemon gets before the next start, and a number of attempts is a
/// promise to have waited for so long. So a pause needs a floor that grows, and equal jitter has it.
///
/// Pure: it draws from its seed, and others do the waiting.
///
/// ```
/// use std::time::Duration;
///
/// use openlambda_core::backoff::Backoff;
///
/// let (least, most) = (Duration::from_millis(50), Duration::from_secs(2));
/// let mut backoff = Backoff::new(least..=most, 1);
/// let first = backoff.pause();
/// assert!(least <= first && first <= 2 * least);
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    /// What the next pause is at least.
    floor: Duration,
    rng: Rng,
}

impl Backoff {
    /// Pauses from the least to the most that `bounds` name: the first is uniform from the least to
    /// twice the least, each later one over an interval twice as high, and from some number on all are
    /// from half of the most to the most. Where the most is below twice the least, they all are.
    pub fn new(bounds: RangeInclusive<Duration>, seed: u64) -> Self {
        let (least, most) = bounds.into_inner();
        let least = least.min(most / 2);
        Backoff { least, most, floor: least, rng: Rng::from_seed(seed) }
    }

    /// How long to wait now.
    pub fn pause(&mut self) -> Duration {
        let floor = self.floor;
        self.floor = (2 * floor).min(self.most / 2);
        floor.saturating_add(floor.mul_f64(self.rng.unit()))
    }

    /// An attempt succeeded: the next pause is a first one again.
    pub fn reset(&mut self) {
        self.floor = self.least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(50 * MS..=2000 * MS, seed);
            for _ in 0..2 {
                for floor in [50, 100, 200, 400, 800, 1000, 1000] {
                    let pause = backoff.pause();
                    assert!(floor * MS <= pause && pause <= 2 * floor * MS, "{pause:?}");
                }
                backoff.reset();
            }
        }
    }

    #[test]
    fn a_seed_repeats_them_and_another_does_not() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(50 * MS..=2000 * MS, seed);
            [(); 8].map(|()| backoff.pause())
        };
        assert_eq!(pauses(1), pauses(1));
        assert!(pauses(1).iter().zip(pauses(2)).all(|(one, two)| *one != two));
    }

    #[test]
    fn odd_bounds_are_kept() {
        let mut backoff = Backoff::new(300 * MS..=400 * MS, 1);
        assert!((0..100).map(|_| backoff.pause()).all(|p| 200 * MS <= p && p <= 400 * MS));
        let mut none = Backoff::new(Duration::ZERO..=Duration::ZERO, 1);
        assert_eq!(none.pause(), Duration::ZERO);
        let mut never = Backoff::new(Duration::MAX..=Duration::MAX, 1);
        assert!((0..100).map(|_| never.pause()).all(|pause| pause >= Duration::MAX / 2));
    }
}
