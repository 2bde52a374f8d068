//! What the functions of a namespace may take of a worker together: calls a second, waiting calls, a
//! share of the memory pool (which the scheduler keeps to).
//!
//! A namespace is known while a version of it is; then its number may be given to another. Where the operator has set no quota, a call costs
//! nothing here.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::allow::Allow;
use crate::function::FunctionName;
use crate::scheduler::NamespaceId;
use crate::time::Time;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Namespaces {
    allow: Allow,
    by_name: BTreeMap<Box<str>, NamespaceId>,
    places: Vec<Namespace>,
    free: Vec<NamespaceId>,
}

#[derive(Debug, Default)]
struct Namespace {
    /// Its versions.
    versions: u32,
    rate: Option<Rate>,
    most_waiting: Option<u32>,
    waiting: u32,
    memory_share: Option<f64>,
}

/// A quota that a call is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Over {
    /// The namespace has had as many calls as it may; one more in this time.
    Rate { per_second: f64, wait: Duration },
    /// So many of its calls wait.
    Waiting { most: u32 },
}

impl Namespaces {
    pub(super) fn new(allow: Allow) -> Self {
        let (by_name, places, free) = (BTreeMap::new(), Vec::new(), Vec::new());
        Namespaces { allow, by_name, places, free }
    }

    /// What the operator allows.
    pub(super) fn allow(&self) -> &Allow {
        &self.allow
    }

    /// A version of the function is known from now on.
    pub(super) fn enter(&mut self, function: &FunctionName) -> NamespaceId {
        let name = function.namespace();
        let id = match self.by_name.get(name) {
            Some(id) => *id,
            None => {
                let bounds = self.allow.of_calls(name);
                let namespace = Namespace {
                    rate: bounds.calls_per_second.map(Rate::new),
                    most_waiting: bounds.waiting_calls,
                    memory_share: bounds.memory_share,
                    ..Namespace::default()
                };
                let id = self.free.pop().unwrap_or(NamespaceId(self.places.len() as u32));
                match self.places.get_mut(id.0 as usize) {
                    Some(place) => *place = namespace,
                    None => self.places.push(namespace),
                }
                self.by_name.insert(name.into(), id);
                id
            }
        };
        self.places[id.0 as usize].versions += 1;
        id
    }

    /// Which share of the memory pool its instances may take.
    pub(super) fn memory_share(&self, id: NamespaceId) -> Option<f64> {
        self.places[id.0 as usize].memory_share
    }

    /// A version of the function is not known any more.
    pub(super) fn leave(&mut self, function: &FunctionName, id: NamespaceId) {
        let place = &mut self.places[id.0 as usize];
        place.versions -= 1;
        if place.versions == 0 {
            self.by_name.remove(function.namespace());
            self.free.push(id);
        }
    }

    /// A call arrives.
    ///
    /// # Errors
    ///
    /// Its namespace has had as many as it may.
    #[inline]
    pub(super) fn arrives(&mut self, id: NamespaceId, now: Time) -> Result<(), Over> {
        match &mut self.places[id.0 as usize].rate {
            None => Ok(()),
            Some(rate) => rate.take(now),
        }
    }

    /// A call begins to wait, whatever is returned.
    ///
    /// # Errors
    ///
    /// As many waited already as may.
    pub(super) fn waits(&mut self, id: NamespaceId) -> Result<(), Over> {
        let place = &mut self.places[id.0 as usize];
        place.waiting += 1;
        match place.most_waiting {
            Some(most) if place.waiting > most => Err(Over::Waiting { most }),
            _ => Ok(()),
        }
    }

    /// A call waits no more.
    pub(super) fn waits_no_more(&mut self, id: NamespaceId) {
        self.places[id.0 as usize].waiting -= 1;
    }
}

/// A bucket of tokens: a rate, and a second's worth of calls at once (one, where the rate is lower). Kept
/// as the time at which it is full again: the generic cell rate algorithm (ITU-T I.371), without a
/// timer and in whole nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    per_second: f64,
    /// From one call to the next, nanoseconds.
    interval: u64,
    /// How much later than now it may be full again, nanoseconds.
    burst: u64,
    full_at: Time,
}

impl Rate {
    pub(super) fn new(per_second: f64) -> Self {
        // What is no rate lets one call in a century.
        let interval = match per_second > 0.0 {
            true => libm::round(1e9 / per_second).clamp(1.0, 3e18) as u64,
            false => 3_000_000_000_000_000_000,
        };
        Rate { per_second, interval, burst: interval.max(1_000_000_000), full_at: Time::ZERO }
    }

    fn take(&mut self, now: Time) -> Result<(), Over> {
        let full_at = Time(self.full_at.max(now).as_nanos().saturating_add(self.interval));
        let late = full_at.since(now).as_nanos() as u64;
        if let Some(wait) = late.checked_sub(self.burst).filter(|wait| *wait > 0) {
            let wait = Duration::from_nanos(wait);
            return Err(Over::Rate { per_second: self.per_second, wait });
        }
        self.full_at = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Over any time, at most the burst and the rate's share of that time get through; and one that is
        /// told to wait gets through when it has.
        #[test]
        fn a_rate_is_kept_over_any_time(
            per_second in 0.1..5000.0f64,
            gaps in proptest::collection::vec(0..400_000_000u64, 1..300),
        ) {
            let mut rate = Rate::new(per_second);
            let (mut now, mut taken) = (Time::ZERO, Vec::new());
            for gap in gaps {
                now += Duration::from_nanos(gap);
                let before = rate;
                match rate.take(now) {
                    Ok(()) => taken.push(now),
                    Err(Over::Rate { wait, .. }) => {
                        let mut later = before;
                        prop_assert!(later.take(now + wait).is_ok());
                        let mut sooner = before;
                        prop_assert!(sooner.take(now + (wait - Duration::from_nanos(1))).is_err());
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
            for first in 0..taken.len() {
                for last in first..taken.len() {
                    let time = taken[last].since(taken[first]).as_secs_f64();
                    let most = per_second.max(1.0) + per_second * time * 1.001 + 1.0;
                    prop_assert!(((last - first + 1) as f64) <= most);
                }
            }
        }
    }

    #[test]
    fn a_slow_rate_lets_one_call_through_and_none_lets_none_but_the_first() {
        let mut rate = Rate::new(0.5);
        assert!(rate.take(Time::ZERO).is_ok());
        let wait = Duration::from_secs(2);
        assert_eq!(rate.take(Time::ZERO), Err(Over::Rate { per_second: 0.5, wait }));
        assert!(rate.take(Time::ZERO + wait).is_ok());
        for none in [0.0, -1.0, f64::NAN] {
            let mut rate = Rate::new(none);
            assert!(rate.take(Time::ZERO).is_ok());
            assert!(rate.take(Time::ZERO + Duration::from_secs(1_000_000)).is_err());
        }
    }

    #[test]
    fn a_namespace_is_known_while_a_version_of_it_is() {
        let mut allow = Allow::default();
        allow.all.waiting_calls = Some(1);
        let mut namespaces = Namespaces::new(allow);
        let (one, other) = ("a/f".parse().unwrap(), "b/f".parse().unwrap());
        let id = namespaces.enter(&one);
        assert_eq!(namespaces.enter(&one), id);
        assert_ne!(namespaces.enter(&other), id);
        assert!(namespaces.waits(id).is_ok() && namespaces.waits(id).is_err());
        namespaces.leave(&one, id);
        namespaces.leave(&one, id);
        let again = namespaces.enter(&"c/f".parse().unwrap());
        assert!(again == id && namespaces.waits(again).is_ok());
        assert_eq!(namespaces.by_name.len(), 2);
    }
}
