//! A worker's processors, shared equally by its running calls: [`Processors`].

use std::collections::BTreeSet;
use std::time::Duration;

use openlambda_core::scheduler::InvocationId;
use openlambda_core::time::Time;

/// Processor sharing, as an operating system's fair scheduler does it: with n calls on c processors
/// each runs at the speed min(1, c / n).
///
/// All calls progress at the same speed, so one number says how far each has come: the *attained
/// service*, what a call would have got that has run since the beginning. A call that starts when
/// that is v and needs s is over when it is v + s, whatever happens in between; arrivals and
/// departures only change how soon that is. Each event costs O(log n).
#[derive(Clone, Debug)]
pub struct Processors {
    count: f64,
    /// Attained service up to `updated`, nanoseconds.
    attained: f64,
    updated: Time,
    /// The attained service at which each call is over, as the bits of a float (which sort as
    /// numbers above 0 do).
    running: BTreeSet<(u64, InvocationId)>,
}

impl Processors {
    /// This many idle processors. 0 counts as 1.
    pub fn new(count: u32) -> Self {
        Processors {
            count: f64::from(count.max(1)),
            attained: 0.0,
            updated: Time::ZERO,
            running: BTreeSet::new(),
        }
    }

    /// A call starts that needs a processor for `service`.
    pub fn start(&mut self, now: Time, invocation: InvocationId, service: Duration) {
        self.advance(now);
        let end = self.attained + service.as_nanos() as f64;
        self.running.insert((end.to_bits(), invocation));
    }

    /// How many calls run for each processor.
    pub fn load(&self) -> f64 {
        self.running.len() as f64 / self.count
    }

    /// When the next call is over, if no other starts before.
    pub fn next_end(&self) -> Option<Time> {
        let (end, _) = self.running.first()?;
        let rest = (f64::from_bits(*end) - self.attained).max(0.0);
        Some(self.updated + Duration::from_nanos(libm::ceil(rest / self.speed()) as u64))
    }

    /// Takes a call out that is over.
    pub fn poll_ended(&mut self, now: Time) -> Option<InvocationId> {
        self.advance(now);
        let (end, invocation) = *self.running.first()?;
        // Ends are rounded up to whole nanoseconds; this forgives what the sums round down.
        if f64::from_bits(end) > self.attained + 0.5 {
            return None;
        }
        self.running.pop_first();
        Some(invocation)
    }

    /// Takes a call out that ends before it is through. O(n).
    pub fn stop(&mut self, now: Time, invocation: InvocationId) {
        self.advance(now);
        self.running.retain(|(_, running)| *running != invocation);
    }

    fn speed(&self) -> f64 {
        (self.count / self.running.len() as f64).min(1.0)
    }

    fn advance(&mut self, now: Time) {
        if !self.running.is_empty() {
            self.attained += now.since(self.updated).as_nanos() as f64 * self.speed();
        }
        self.updated = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(count: u32, calls: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut processors = Processors::new(count);
        let (mut ends, mut next) = (Vec::new(), 0);
        loop {
            let arrival = calls.get(next).map(|(at, _)| Time(*at));
            match (arrival, processors.next_end()) {
                (None, None) => return ends,
                (Some(at), end) if end.is_none_or(|end| at < end) => {
                    let service = Duration::from_nanos(calls[next].1);
                    processors.start(at, InvocationId(next as u64), service);
                    next += 1;
                }
                (_, end) => {
                    let now = end.expect("one of the two is there");
                    let before = ends.len();
                    while let Some(InvocationId(number)) = processors.poll_ended(now) {
                        ends.push((number, now.as_nanos()));
                    }
                    assert!(ends.len() > before, "an end was announced and did not come");
                }
            }
        }
    }

    #[test]
    fn calls_slow_each_other_down_beyond_the_processors() {
        // Alone for 500, then at half speed together: the second has 250 left when the first ends.
        assert_eq!(play(1, &[(0, 1_000), (500, 750)]), [(0, 1_500), (1, 1_750)]);
        assert_eq!(play(2, &[(0, 1_000), (500, 750)]), [(0, 1_000), (1, 1_250)]);
        // Three on two processors: each at 2/3.
        assert_eq!(play(2, &[(0, 600), (0, 600), (0, 600)]), [(0, 900), (1, 900), (2, 900)]);
        assert_eq!(play(1, &[(5, 0)]), [(0, 5)]);
    }

    #[test]
    fn what_is_stopped_leaves_its_share_to_the_others() {
        let mut processors = Processors::new(1);
        for n in 0..2 {
            processors.start(Time(0), InvocationId(n), Duration::from_nanos(100));
        }
        assert_eq!(processors.next_end(), Some(Time(200)));
        processors.stop(Time(100), InvocationId(0));
        assert_eq!(processors.next_end(), Some(Time(150)));
        assert_eq!(processors.poll_ended(Time(150)), Some(InvocationId(1)));
        assert_eq!(processors.next_end(), None);
    }
}
