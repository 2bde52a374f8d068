//! Where in its minute a call falls: [`Spacing`].
//!
//! The public traces of functions (Azure Functions 2019, for example) say how often each function was
//! called in each minute, but not when. A replay has to choose, and the choice decides how many calls of a
//! function run at once: two calls that follow each other need one instance, two at the same moment need
//! two (docs/keep-alive.md shows the consequences). [`Spacing::offsets`] makes the choice, for calls of any
//! origin.

use std::collections::BTreeMap;
use std::time::Duration;

use openlambda_core::random::Rng;
use serde::Serialize;

/// What counts are taken over.
pub const MINUTE: Duration = Duration::from_secs(60);

/// Where in its minute a call falls. Each but the first keeps nothing of a call's time but the minute, as a trace
/// of counts does; how often a function is called in each minute is the same in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spacing {
    /// Where the workload put it: calls by chance are uniform over their minute and independent of each other
    /// (Poisson), timers keep equal intervals over all minutes, bursts stay together.
    #[default]
    AsDrawn,
    /// Anywhere in the minute, uniform and independent of all others. For calls by chance that is another draw of
    /// the same; timers lose their intervals, and bursts are spread over a minute.
    Uniform,
    /// The `n` calls of a function fall at 0, 60/n, 2 × 60/n, … seconds of the minute, as FaasCache's generator has
    /// them (Fuerst and Sharma, ASPLOS 2021; `trace_split_funcs.py` of its simulator). So every function that
    /// is called in a minute is called at its very start, and all of them at once.
    Even,
    /// The same intervals, but the first call of each function falls anywhere in the first of them, drawn for each
    /// minute: functions do not know of each other.
    EvenShifted,
    /// All at the minute's start: the most that can run at once.
    Start,
}

impl Spacing {
    /// Where the calls of one minute fall: for each, given by its function, the time from the minute's start, below
    /// a [`MINUTE`]. Of a function, calls that are given later do not fall earlier, unless they are uniform. `None`: where
    /// they were. `rng` is drawn from only for what is random.
    pub fn offsets(self, functions: &[u32], rng: &mut Rng) -> Option<Vec<Duration>> {
        let minute = MINUTE.as_nanos() as u64;
        // Rounding must not reach the end.
        let part = |of: u64, rng: &mut Rng| ((rng.unit() * of as f64) as u64).min(of - 1);
        let at: Vec<u64> = match self {
            Spacing::AsDrawn => return None,
            Spacing::Uniform => functions.iter().map(|_| part(minute, rng)).collect(),
            Spacing::Start => vec![0; functions.len()],
            Spacing::Even | Spacing::EvenShifted => {
                let mut rows: BTreeMap<u32, Row> = BTreeMap::new();
                for function in functions {
                    rows.entry(*function).or_default().calls += 1;
                }
                if self == Spacing::EvenShifted {
                    for row in rows.values_mut() {
                        row.begins = part((minute / row.calls).max(1), rng);
                    }
                }
                let next = |function| rows.get_mut(function).map_or(0, |row| row.next(minute));
                functions.iter().map(next).collect()
            }
        };
        Some(at.into_iter().map(Duration::from_nanos).collect())
    }
}

/// The calls of one function in a minute, at equal intervals.
#[derive(Debug, Default)]
struct Row {
    calls: u64,
    /// When the first one is, nanoseconds.
    begins: u64,
    /// How many have their place.
    placed: u64,
}

impl Row {
    /// The place of the next one. Each is rounded down by itself, so that errors do not add up.
    fn next(&mut self, minute: u64) -> u64 {
        let after = u128::from(minute) * u128::from(self.placed) / u128::from(self.calls);
        self.placed += 1;
        self.begins + after as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Nanoseconds.
    fn offsets(functions: &[u32], spacing: Spacing, seed: u64) -> Vec<u64> {
        let offsets = spacing.offsets(functions, &mut Rng::from_seed(seed)).unwrap();
        offsets.iter().map(|offset| offset.as_nanos() as u64).collect()
    }

    #[test]
    fn even_calls_are_where_faascaches_generator_puts_them() {
        // Three of 7, one of 2, two of 5.
        let seconds = [0, 0, 0, 20, 30, 40].map(|seconds| seconds * SECOND);
        assert_eq!(offsets(&[7, 2, 5, 7, 5, 7], Spacing::Even, 1), seconds);
        // A seventh of a minute is no whole number of nanoseconds.
        let sevenths = offsets(&[1; 7], Spacing::Even, 1);
        assert_eq!((sevenths[1], sevenths[6]), (8_571_428_571, 51_428_571_428));
    }

    #[test]
    fn shifted_calls_have_the_same_intervals_from_another_beginning() {
        // 2 begins at 0.6574 of the minute, 5 at 0.6510 of 30 s, 7 at 0.4377 of 20 s.
        assert_eq!(
            offsets(&[7, 2, 5, 7, 5, 7], Spacing::EvenShifted, 1),
            [
                8_753_743_032,
                39_441_600_545,
                19_531_223_951,
                28_753_743_032,
                49_531_223_951,
                48_753_743_032,
            ]
        );
    }

    #[test]
    fn uniform_calls_are_drawn_from_the_seed() {
        let drawn = [39_441_600_545, 39_062_447_903, 26_261_229_098];
        assert_eq!(offsets(&[7, 2, 7], Spacing::Uniform, 1), drawn);
        let many = offsets(&[3; 60_000], Spacing::Uniform, 2);
        for second in 0..60 {
            let count = many.iter().filter(|at| **at / SECOND == second).count();
            assert!((850..1150).contains(&count), "second {second}: {count}");
        }
    }

    #[test]
    fn all_calls_fall_at_the_start_or_stay() {
        assert_eq!(offsets(&[7, 2, 7], Spacing::Start, 1), [0; 3]);
        assert_eq!(Spacing::AsDrawn.offsets(&[7, 2, 7], &mut Rng::from_seed(1)), None);
        assert_eq!(Spacing::default(), Spacing::AsDrawn);
    }
}
