//! The phases of a call before it runs, computed here and nowhere else.

use std::time::Duration;

use crate::invocation::{Phases, StartKind};
use crate::time::Time;

/// What a call that did not find an instance may have waited for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Start {
    /// When the last fetch of the code began and ended.
    pub(super) pulled: Option<(Time, Time)>,
    /// What making the sandbox took.
    pub(super) create: Duration,
    /// What its runtime took until it asked for the first event.
    pub(super) init: Duration,
}

/// Where the time between arrival and run went. A warm start only queued; another one also waited for
/// code, sandbox and runtime, each as far as it was in its way: the latest first, since what came
/// earlier may have begun before the call did.
pub(super) fn phases(arrived: Time, now: Time, start: StartKind, waited: &Start) -> Phases {
    let mut phases = Phases::default();
    let mut rest = now.since(arrived);
    if start != StartKind::Warm {
        let pull =
            waited.pulled.map_or(Duration::ZERO, |(began, ended)| ended.since(began.max(arrived)));
        for (phase, took) in [
            (&mut phases.init, waited.init),
            (&mut phases.create, waited.create),
            (&mut phases.pull, pull),
        ] {
            *phase = took.min(rest);
            rest -= *phase;
        }
    }
    phases.queue = rest;
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_in_the_way_does_not_count() {
        let ns = Duration::from_nanos;
        let waited = Start { pulled: Some((Time(10), Time(30))), create: ns(20), init: ns(30) };
        let of = |arrived, now, start| {
            let phases = phases(Time(arrived), Time(now), start, &waited);
            [phases.queue, phases.pull, phases.create, phases.init].map(|d| d.as_nanos())
        };
        // From the beginning, with 5 of waiting for memory in between.
        assert_eq!(of(10, 85, StartKind::Cold), [5, 20, 20, 30]);
        // It arrived in the middle of the pull, of the making, of the runtime's start.
        assert_eq!(of(20, 80, StartKind::Cold), [0, 10, 20, 30]);
        assert_eq!(of(40, 80, StartKind::Cold), [0, 0, 10, 30]);
        assert_eq!(of(70, 80, StartKind::Zygote), [0, 0, 0, 10]);
        assert_eq!(of(10, 85, StartKind::Warm), [75, 0, 0, 0]);
        assert_eq!(of(90, 80, StartKind::Cold), [0, 0, 0, 0]);
    }
}
