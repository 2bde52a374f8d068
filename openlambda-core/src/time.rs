//! Time as a value, and the one place that reads a clock.
//!
//! Every decider takes [`Time`] as an input, so a simulation and a live system run the same code.
//! Only a [`Clock`] produces it; `clippy.toml` bans `Instant::now` everywhere else.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::sync::atomic::{AtomicU64, Ordering};
pub use std::time::Duration;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A point in time: nanoseconds since the clock's start. Never goes backwards within one clock.
///
/// 64 bits hold 584 years.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub u64);

impl Time {
    /// The clock's start.
    pub const ZERO: Time = Time(0);
    /// Later than everything else.
    pub const MAX: Time = Time(u64::MAX);

    /// The time that is `nanoseconds` after the clock's start.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Time(nanoseconds)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Seconds since the clock's start.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, rhs: Duration) -> Time {
        let nanoseconds = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Time(self.0.saturating_add(nanoseconds))
    }
}

impl AddAssign<Duration> for Time {
    fn add_assign(&mut self, rhs: Duration) {
        *self = *self + rhs;
    }
}

impl Sub<Time> for Time {
    type Output = Duration;
    fn sub(self, rhs: Time) -> Duration {
        self.since(rhs)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}s", self.as_secs_f64())
    }
}

/// A source of time. Implementations are shared between threads.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time now. Two calls in order never go backwards.
    fn now(&self) -> Time;

    /// Milliseconds since 1970-01-01 UTC, for people and for protocols that want a date.
    fn unix_millis(&self) -> u64;
}

/// The machine's monotonic clock, counted from when this value was made.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    pub fn new() -> Self {
        SystemClock { start: Instant::now() }
    }

    /// The instant that `time` stands for, for timers of the async runtime.
    pub fn instant(&self, time: Time) -> Instant {
        // A century stands for "never": adding u64::MAX nanoseconds could overflow an Instant.
        const CENTURY: u64 = 100 * 365 * 86_400 * 1_000_000_000;
        self.start + Duration::from_nanos(time.0.min(CENTURY))
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    fn now(&self) -> Time {
        Time(u64::try_from((Instant::now() - self.start).as_nanos()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the clock")]
    fn unix_millis(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that stands still until it is told to move, for tests.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Moves the clock forward to `time`; a time that has passed changes nothing.
    pub fn advance_to(&self, time: Time) {
        self.0.fetch_max(time.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        Time(self.0.load(Ordering::SeqCst))
    }

    fn unix_millis(&self) -> u64 {
        self.now().0 / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Time::MAX + Duration::from_secs(1), Time::MAX);
        assert_eq!(Time(5).since(Time(9)), Duration::ZERO);
        assert_eq!(Time(9) - Time(5), Duration::from_nanos(4));
    }

    #[test]
    fn the_system_clock_can_turn_never_into_an_instant() {
        let clock = SystemClock::new();
        assert!(clock.instant(Time::MAX) > clock.instant(clock.now()));
    }
}
