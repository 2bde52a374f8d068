//! The expected latency of a call at a worker, given how many calls it has: [`LatencyByLoad`].

use std::time::Duration;

use crate::time::Time;

/// A worker's own estimate of its latency, by the number of requests that it has in flight (running
/// and queued, of all balancers: its RIF). The worker answers probes with it; `prequal` needs it.
///
/// A mean over all replies is not good enough. It lags behind the worker's queue by the length of the
/// queue: a worker that was fast looks fast until the late replies of the requests that it attracted come
/// back. Here a reply counts for the RIF that its call found on arrival, and the estimate is the one for
/// the present RIF, so it rises with the queue at once.
///
/// Algorithm: the estimate is the median of the latencies of *recent* calls that found a RIF *near*
/// the present one. A call that has ended has
///
/// * its latency, from its arrival at the worker to the end of its handler;
/// * the RIF that it found, itself not counted;
///
/// and is recent while it is among the last 16 of its level and ended within the last
/// [`RECENT`](Self::RECENT). A level is one RIF up to 15, and above that an eighth of an octave
/// (16 and 17, …, 32 to 35, …). When the present level has fewer than
/// [`ENOUGH`](Self::ENOUGH) recent calls, the newest of the next levels fill up to that many, the
/// nearest levels first, the lower one of two. Without any recent call there is no estimate, so that a
/// worker whose last calls were slow, for a cold start say, is tried again after a while.
///
/// The number of calls in the median decides how noisy the comparison of two workers is. With `prequal`, 50 workers, exponential times of 10 ms and load 0.5, 0.7, 0.9, the last call alone
/// gives 23, 29 and 35 ms, the median of the last 4 gives 17, 19 and 24, of 8: 16, 17 and 22, of 16: 15,
/// 16 and 21.
///
/// Cost: O(1) per call that ends, O(16) per estimate, and a look at each level, 240 at most, when few
/// calls are recent. 264 bytes for each level up to the highest one seen; nothing is allocated but for a
/// RIF that is higher than all before.
///
/// Source: B. Wydrowski, R. Kleinberg, S. M. Rumble, A. Archer, Load is not what you should balance:
/// Introducing Prequal, NSDI 2024, which does not define near and recent.
#[derive(Clone, Debug, Default)]
pub struct LatencyByLoad {
    levels: Vec<Level>,
}

/// The last calls of a level; the oldest is at `next` once it is full.
#[derive(Clone, Copy, Debug, Default)]
struct Level {
    calls: [Call; Level::MOST],
    len: u8,
    next: u8,
}

#[derive(Clone, Copy, Debug, Default)]
struct Call {
    ended: Time,
    latency_ns: u64,
}

impl LatencyByLoad {
    /// The age from which a call does not count any more.
    pub const RECENT: Duration = Duration::from_secs(10);
    /// Levels beside the present one are looked at for so many calls.
    pub const ENOUGH: usize = 4;

    /// Knows no calls.
    pub fn new() -> Self {
        LatencyByLoad::default()
    }

    /// A call ended that found `rif_at_arrival` others at the worker, and was there for `latency`.
    pub fn finished(&mut self, now: Time, rif_at_arrival: u32, latency: Duration) {
        let level = level_of(rif_at_arrival);
        if level >= self.levels.len() {
            self.levels.resize(level + 1, Level::default());
        }
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.levels[level].push(Call { ended: now, latency_ns });
    }

    /// How long a call would take that came now and found `rif` others; `None` when no call ended
    /// lately.
    pub fn estimate(&self, now: Time, rif: u32) -> Option<Duration> {
        let mut found = Few { latencies: [0; Level::MOST], len: 0 };
        let (near, levels) = (level_of(rif), self.levels.len());
        found.take(self.levels.get(near), now, Level::MOST);
        let mut away = 1;
        while found.len < Self::ENOUGH && (away <= near || near + away < levels) {
            let below = near.checked_sub(away).and_then(|level| self.levels.get(level));
            found.take(below, now, Self::ENOUGH);
            found.take(self.levels.get(near + away), now, Self::ENOUGH);
            away += 1;
        }
        found.median().map(Duration::from_nanos)
    }
}

impl Level {
    const MOST: usize = 16;

    fn push(&mut self, call: Call) {
        self.calls[usize::from(self.next)] = call;
        self.next = (self.next + 1) % Level::MOST as u8;
        self.len = (self.len + 1).min(Level::MOST as u8);
    }

    /// The newest first.
    fn iter(&self) -> impl Iterator<Item = Call> {
        let newest = usize::from(self.next) + Level::MOST - 1;
        (0..usize::from(self.len)).map(move |back| self.calls[(newest - back) % Level::MOST])
    }
}

/// The latencies that an estimate is made from.
struct Few {
    latencies: [u64; Level::MOST],
    len: usize,
}

impl Few {
    /// Adds recent calls of a level, the newest first, until there are `most` in all.
    fn take(&mut self, level: Option<&Level>, now: Time, most: usize) {
        let recent = |call: &Call| now.since(call.ended) < LatencyByLoad::RECENT;
        let calls = level.into_iter().flat_map(Level::iter).take_while(recent);
        for call in calls.take(most.saturating_sub(self.len)) {
            self.latencies[self.len] = call.latency_ns;
            self.len += 1;
        }
    }

    /// The lower one of two in the middle.
    fn median(&mut self) -> Option<u64> {
        let middle = self.len.checked_sub(1)? / 2;
        Some(*self.latencies[..self.len].select_nth_unstable(middle).1)
    }
}

fn level_of(rif: u32) -> usize {
    if rif < 16 {
        return rif as usize;
    }
    let octave = rif.ilog2();
    let eighth = (rif >> (octave - 3)) & 7;
    (16 + 8 * (octave - 4) + eighth) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn levels_are_single_to_fifteen_and_then_an_eighth_of_an_octave() {
        for rif in 0..16 {
            assert_eq!(level_of(rif), rif as usize);
        }
        let of = |rifs: [u32; 4]| rifs.map(level_of);
        assert_eq!(of([16, 17, 18, 19]), [16, 16, 17, 17]);
        assert_eq!(of([30, 31, 32, 35]), [23, 23, 24, 24]);
        assert_eq!(of([36, 63, 64, u32::MAX]), [25, 31, 32, 239]);
        assert!((0..100_000).map(level_of).is_sorted());
    }

    /// What a moving mean gets wrong: the estimate follows the queue, not the replies.
    #[test]
    fn the_estimate_is_the_median_of_what_calls_took_that_found_as_many() {
        let mut latency = LatencyByLoad::new();
        assert_eq!(latency.estimate(Time(0), 0), None);
        for (rif, took) in [(0, 10), (0, 12), (0, 90), (0, 11), (0, 13)] {
            latency.finished(Time(0), rif, millis(took));
        }
        for took in [50, 51, 52, 53, 54] {
            latency.finished(Time(0), 5, millis(took));
        }
        assert_eq!(latency.estimate(Time(1), 0), Some(millis(12)));
        assert_eq!(latency.estimate(Time(1), 5), Some(millis(52)));
    }

    #[test]
    fn near_levels_fill_up_the_nearest_first_and_the_lower_of_two() {
        let mut latency = LatencyByLoad::new();
        for (rif, took) in [(1, 1), (2, 2), (4, 4), (5, 5), (9, 9)] {
            latency.finished(Time(0), rif, millis(took));
        }
        let at = |latency: &LatencyByLoad, rif| latency.estimate(Time(0), rif).unwrap();
        // 2 and 4, then 1 and 5.
        assert_eq!(at(&latency, 3), millis(2));
        latency.finished(Time(0), 3, millis(3));
        // 3 itself, 2 and 4, then 1.
        assert_eq!(at(&latency, 3), millis(2));
        assert_eq!(at(&latency, 1_000_000), millis(4), "9, 5, 4, 3");
        assert_eq!(at(&latency, 0), millis(2), "1, 2, 3, 4");
        for _ in 0..4 {
            latency.finished(Time(0), 3, millis(7));
        }
        assert_eq!(at(&latency, 3), millis(7), "of its own there are enough");
    }

    #[test]
    fn what_is_not_among_the_last_or_is_old_counts_no_more() {
        let mut latency = LatencyByLoad::new();
        for took in 1..=100 {
            latency.finished(Time(took), 2, millis(took));
        }
        assert_eq!(latency.estimate(Time(100), 2), Some(millis(92)), "of 85 to 100");
        let old = Time(92) + LatencyByLoad::RECENT;
        assert_eq!(latency.estimate(old, 2), Some(millis(96)), "of 93 to 100");
        let older = Time(100) + LatencyByLoad::RECENT;
        assert_eq!(latency.estimate(older, 2), None);
        latency.finished(older, 7, millis(5));
        assert_eq!(latency.estimate(older, 2), Some(millis(5)), "near is better than old");
    }
}
