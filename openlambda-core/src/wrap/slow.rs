//! Operations that wait.

use std::time::Duration;

use async_trait::async_trait;

use super::disturbance::{Disturbance, Operation, Permit, Trouble};
use super::draws::Draws;

/// Makes operations wait before they begin.
#[derive(Debug)]
pub struct Slow {
    delay: Delay,
    draws: Draws,
}

/// How long an operation waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delay {
    /// Always this time.
    Fixed(Duration),
    /// Anything from `least` to `most`.
    Uniform {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// Exponentially distributed: mostly short, now and then long.
    Exponential {
        /// The mean.
        mean: Duration,
    },
}

impl Slow {
    /// Waits as `delay` says, with draws of `seed`.
    pub fn by(delay: Delay, seed: u64) -> Self {
        Slow { delay, draws: Draws::new("slow", seed) }
    }

    fn next(&self, operation: Operation) -> Duration {
        let mut rng = self.draws.next(operation);
        match self.delay {
            Delay::Fixed(delay) => delay,
            Delay::Uniform { least, most } => {
                least + most.saturating_sub(least).mul_f64(rng.unit())
            }
            Delay::Exponential { mean } => rng.exponential(mean),
        }
    }
}

#[async_trait]
impl Disturbance for Slow {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        tokio::time::sleep(self.next(operation)).await;
        Ok(Permit::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_follow_from_the_seed_and_keep_their_bounds() {
        let (least, most) = (Duration::from_millis(3), Duration::from_millis(5));
        let draw = |delay, seed| {
            let slow = Slow::by(delay, seed);
            (0..1000).map(|_| slow.next(Operation::Fetch)).collect::<Vec<_>>()
        };
        assert!(draw(Delay::Fixed(least), 1).iter().all(|delay| *delay == least));
        let uniform = draw(Delay::Uniform { least, most }, 1);
        assert!(uniform.iter().all(|delay| (least..=most).contains(delay)));
        assert_eq!(draw(Delay::Uniform { least, most }, 1), uniform);
        assert_ne!(draw(Delay::Uniform { least, most }, 2), uniform);
        let exponential = draw(Delay::Exponential { mean: most }, 1);
        let mean = exponential.iter().sum::<Duration>() / 1000;
        assert!((least..2 * most).contains(&mean), "{mean:?}");
    }
}
