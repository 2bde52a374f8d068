//! Resolves a reference to the version that it means now: the second hop, with a cache.
//!
//! # What the cache promises
//!
//! * Through one balancer, no call of a name alone that starts after a reply from version n is served
//!   by an older one: the newest version that was ever seen of a name is the floor for its calls. The
//!   exception is a rollback: an alias that is set back, or a deletion.
//! * Many calls that miss at once make one request to the registry.
//! * A deleted function is not found again, even if older answers are still on their way.
//! * While the registry cannot be reached, or has not answered for [half a second](PATIENCE), cached
//!   meanings are used, however old.
//!
//! A version or a digest never changes its meaning and is kept. A name alone or an alias is kept as
//! long as [`Registry::cache_for`] says, and until [`Registry::watch`] reports a change. The answer
//! that there is no such function is never kept.

mod cache;
mod resolution;

use std::ops::RangeInclusive;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::FutureExt;
use openlambda_core::backoff::Backoff;
use openlambda_core::failure::{Culprit, Failure, FailureKind, Started};
use openlambda_core::function::{FunctionRef, Qualifier};
use openlambda_core::random::fresh_seed;
use openlambda_core::registry::{Registry, RegistryEvent, Revision};
use openlambda_core::time::{Clock, SystemClock};
use openlambda_core::wire;
use parking_lot::Mutex;

use self::cache::{Answer, Cache, Flight};
pub(crate) use self::resolution::Resolution;
use crate::observe::Telemetry;

/// How long the calls of a name that is known wait for a request to the registry, from its beginning.
const PATIENCE: Duration = Duration::from_millis(500);

/// The pauses before following a registry again that ended its stream of changes.
const FOLLOW_AGAIN: RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(1);

/// Resolves references. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Resolver {
    registry: Arc<dyn Registry>,
    clock: Arc<SystemClock>,
    telemetry: Arc<Telemetry>,
    cache: Arc<Mutex<Cache>>,
}

impl Resolver {
    pub(crate) fn new(
        registry: Arc<dyn Registry>,
        telemetry: Arc<Telemetry>,
        clock: Arc<SystemClock>,
    ) -> Self {
        Resolver { registry, clock, telemetry, cache: Arc::default() }
    }

    /// What the reference means for a call that starts now.
    pub(crate) async fn resolve(&self, reference: &FunctionRef) -> Answer {
        let keep = match wire::is_mutable(reference) {
            true => self.registry.cache_for(),
            false => Duration::MAX,
        };
        let mut called = 0;
        loop {
            let flight = {
                let mut cache = self.cache.lock();
                cache.clock += 1;
                if called == 0 {
                    called = cache.clock;
                }
                if let Some(resolution) = cache.fresh(reference, called, self.clock.now(), keep) {
                    return Ok(resolution);
                }
                match cache.flights.get(reference) {
                    Some(flight) => flight.clone(),
                    None => self.depart(&mut cache, reference),
                }
            };
            // Where nothing may be kept, an answer to an earlier question will not do: another change
            // may have come in between. Nor does one that says there is no such function.
            let will_do = |answer: &Answer| {
                flight.began >= called
                    || match answer {
                        Ok(_) => keep > Duration::ZERO,
                        Err(failure) => failure.kind != FailureKind::NotFound,
                    }
            };
            let left = PATIENCE.saturating_sub(self.clock.now().since(flight.at));
            let in_time = tokio::time::timeout(left, flight.answer.clone());
            let known = match keep > Duration::ZERO {
                true => self.known(reference),
                // What may not be kept is waited for.
                false => None,
            };
            let answer = match known {
                None => flight.answer.clone().await,
                Some(known) => match in_time.await {
                    Ok(answer) => answer,
                    Err(_) => return Ok(known),
                },
            };
            if !will_do(&answer) {
                continue;
            }
            let cache = self.cache.lock();
            return match answer {
                Ok(resolution) => Ok(cache.raised(reference, resolution)),
                Err(failure) if failure.kind == FailureKind::RegistryUnavailable => {
                    cache.known(reference).ok_or(failure)
                }
                Err(failure) => Err(failure),
            };
        }
    }

    /// What the reference means by a request that begins now; the calls that start after this see
    /// it, or something newer.
    pub(crate) async fn refresh(&self, reference: &FunctionRef) -> Answer {
        let flight = self.depart(&mut self.cache.lock(), reference);
        flight.answer.await
    }

    /// What is known of the reference without asking anybody, however old.
    pub(crate) fn known(&self, reference: &FunctionRef) -> Option<Arc<Resolution>> {
        self.cache.lock().known(reference)
    }

    /// Follows the registry's changes for as long as it is polled.
    pub(crate) async fn follow(&self) {
        let mut backoff = Backoff::new(FOLLOW_AGAIN, fresh_seed());
        loop {
            let mut events = self.registry.watch(Revision::NOW);
            // What changed before the watch began was not announced to us.
            self.cache.lock().all_stale();
            while let Some(event) = events.next().await {
                backoff.reset();
                self.cache.lock().apply(&event);
                if let RegistryEvent::Deleted { name, .. } = &event {
                    self.telemetry.calls.forget(name);
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Begins a request to the registry. It takes the place of one that began earlier.
    fn depart(&self, cache: &mut Cache, reference: &FunctionRef) -> Flight {
        cache.clock += 1;
        let began = cache.clock;
        let at = self.clock.now();
        let registry = Arc::clone(&self.registry);
        let shared = Arc::clone(&self.cache);
        let telemetry = Arc::clone(&self.telemetry);
        let wanted = reference.clone();
        // A task of its own: a caller that goes away must not stop it for the others.
        let task = tokio::spawn(async move {
            let asked = AssertUnwindSafe(async { registry.resolve(&wanted).await });
            // A panic must not leave its flight behind for all later calls to wait for.
            let answer = asked.catch_unwind().await;
            let mut cache = shared.lock();
            if cache.flights.get(&wanted).is_some_and(|flight| flight.began == began) {
                cache.flights.remove(&wanted);
            }
            match answer {
                Ok(Ok(resolved)) => {
                    let calls = telemetry.calls.of(&resolved.name, at);
                    let resolution = Arc::new(Resolution::new(resolved, calls));
                    Ok(cache.keep(&wanted, resolution, began, at))
                }
                Err(_) => {
                    let message = "the registry's client panicked; the balancer's log says where";
                    let failure = Failure::new(FailureKind::Internal, message);
                    Err(failure.blame(Culprit::Balancer).started(Started::No))
                }
                Ok(Err(error)) => {
                    let failure = Failure::from(error);
                    if failure.kind == FailureKind::NotFound {
                        cache.forget(&wanted, began);
                        if wanted.qualifier == Qualifier::Latest {
                            telemetry.calls.forget(&wanted.name);
                        }
                    }
                    Err(failure)
                }
            }
        });
        let answer = async move {
            task.await.unwrap_or_else(|error| {
                let message = format!("resolving failed: {error}; this is a defect, report it");
                Err(Failure::new(FailureKind::Internal, message))
            })
        };
        let flight = Flight { began, at, answer: answer.boxed().shared() };
        cache.flights.insert(reference.clone(), flight.clone());
        flight
    }
}
