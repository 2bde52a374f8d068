//! From a reference to what it means now: the second hop, with a cache.
//!
//! # What the cache promises
//!
//! * Through one balancer, no call of a name alone that starts after a reply from version n is served
//!   by an older one: the newest version that was ever seen of a name is the floor for its calls. The
//!   exception is a rollback: an alias that is set back, or a deletion.
//! * Many calls that miss at once make one request to the registry.
//! * What was deleted is not found again, even while older answers are still on their way.
//! * While the registry cannot be reached, what is known is used, however old.
//!
//! A version or a digest never changes its meaning and is kept. A name alone or an alias is kept as
//! long as [`Registry::cache_for`] says, and until [`Registry::watch`] tells of a change. That there
//! is no such function is never kept.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt, Shared};
use http::HeaderValue;
use openlambda_core::balancing::FunctionId;
use openlambda_core::failure::{Culprit, Failure, FailureKind, Started};
use openlambda_core::function::{FunctionName, FunctionRef, Qualifier};
use openlambda_core::metrics::FunctionCalls;
use openlambda_core::registry::{Registry, RegistryEvent, Resolved, Revision};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_core::wire;

use super::cors::Cors;
use crate::observe::telemetry::Telemetry;

/// The most references that are remembered; then the one that was used longest ago goes.
const MOST_ENTRIES: usize = 10_000;

/// How long to wait before following a registry again that ended its stream of changes.
const FOLLOW_AGAIN: Duration = Duration::from_millis(500);

/// Resolves references. See the module's documentation.
#[derive(Debug)]
pub(crate) struct Resolver {
    registry: Arc<dyn Registry>,
    clock: Arc<SystemClock>,
    telemetry: Arc<Telemetry>,
    cache: Arc<Mutex<Cache>>,
}

/// What a reference means, in the forms that the later hops need.
#[derive(Debug)]
pub(crate) struct Resolution {
    pub(crate) resolved: Resolved,
    pub(crate) digest: HeaderValue,
    pub(crate) version: HeaderValue,
    pub(crate) timeout: Duration,
    /// Where its calls are counted.
    pub(crate) calls: Arc<FunctionCalls>,
    /// What its manifest says of pages of other origins.
    pub(crate) cors: Option<Cors>,
    /// The balancer's id of the function, once it has one.
    pub(crate) id: OnceLock<FunctionId>,
}

impl Resolution {
    fn new(resolved: Resolved, calls: Arc<FunctionCalls>) -> Self {
        let digest = resolved.digest.to_string();
        Resolution {
            digest: HeaderValue::from_str(&digest).expect("a digest is hexadecimal"),
            version: HeaderValue::from(resolved.version.0),
            timeout: resolved.manifest.timeout(),
            cors: Cors::new(&resolved.manifest),
            calls,
            id: OnceLock::new(),
            resolved,
        }
    }
}

type Answer = Result<Arc<Resolution>, Failure>;

#[derive(Debug, Default)]
struct Cache {
    /// Counts calls and requests to the registry, to tell which came first.
    clock: u64,
    entries: BTreeMap<FunctionRef, Entry>,
    /// The newest version seen of each name that is in `entries` or was.
    newest: BTreeMap<FunctionName, Arc<Resolution>>,
    /// Requests to the registry on their way.
    flights: BTreeMap<FunctionRef, Flight>,
    /// Answers to requests that began before this are not kept: something was deleted meanwhile.
    barrier: u64,
}

#[derive(Debug)]
struct Entry {
    resolution: Arc<Resolution>,
    /// When the request that brought it began, by `Cache::clock` and by the time.
    began: u64,
    at: Time,
    /// The registry told of a change since.
    stale: bool,
    used: u64,
}

#[derive(Clone, Debug)]
struct Flight {
    began: u64,
    answer: Shared<BoxFuture<'static, Answer>>,
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
                let mut cache = lock(&self.cache);
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
            let answer = flight.answer.clone().await;
            if !will_do(&answer) {
                continue;
            }
            let cache = lock(&self.cache);
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
        let flight = self.depart(&mut lock(&self.cache), reference);
        flight.answer.await
    }

    /// What is known of the reference without asking anybody, however old.
    pub(crate) fn known(&self, reference: &FunctionRef) -> Option<Arc<Resolution>> {
        lock(&self.cache).known(reference)
    }

    /// Follows the registry's changes for as long as it is polled.
    pub(crate) async fn follow(&self) {
        loop {
            let mut events = self.registry.watch(Revision::NOW);
            // What changed before the watch began was not announced to us.
            lock(&self.cache).all_stale();
            while let Some(event) = events.next().await {
                lock(&self.cache).apply(&event);
                if let RegistryEvent::Deleted { name, .. } = &event {
                    self.telemetry.calls.forget(name);
                }
            }
            tokio::time::sleep(FOLLOW_AGAIN).await;
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
            let mut cache = lock(&shared);
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
        let flight = Flight { began, answer: answer.boxed().shared() };
        cache.flights.insert(reference.clone(), flight.clone());
        flight
    }
}

impl Cache {
    fn fresh(
        &mut self,
        reference: &FunctionRef,
        called: u64,
        now: Time,
        keep: Duration,
    ) -> Option<Arc<Resolution>> {
        let clock = self.clock;
        let entry = self.entries.get_mut(reference)?;
        if !(entry.began > called || (!entry.stale && now.since(entry.at) < keep)) {
            return None;
        }
        entry.used = clock;
        let resolution = Arc::clone(&entry.resolution);
        let raised = self.raised(reference, Arc::clone(&resolution));
        // A newer version than the cached one was seen under another reference: ask again.
        Arc::ptr_eq(&raised, &resolution).then_some(resolution)
    }

    /// What is known, however old.
    fn known(&self, reference: &FunctionRef) -> Option<Arc<Resolution>> {
        let known = Arc::clone(&self.entries.get(reference)?.resolution);
        Some(self.raised(reference, known))
    }

    /// For a name alone: the newest version that was seen, if that is newer.
    fn raised(&self, reference: &FunctionRef, resolution: Arc<Resolution>) -> Arc<Resolution> {
        match self.newest.get(&reference.name) {
            Some(newest)
                if reference.qualifier == Qualifier::Latest
                    && newest.resolved.version > resolution.resolved.version =>
            {
                Arc::clone(newest)
            }
            _ => resolution,
        }
    }

    fn keep(
        &mut self,
        reference: &FunctionRef,
        resolution: Arc<Resolution>,
        began: u64,
        at: Time,
    ) -> Arc<Resolution> {
        if began <= self.barrier {
            return resolution;
        }
        let newest = self.newest.get(&reference.name);
        if newest.is_none_or(|newest| newest.resolved.version < resolution.resolved.version) {
            self.newest.insert(reference.name.clone(), Arc::clone(&resolution));
        }
        let resolution = self.raised(reference, resolution);
        if let Some(entry) = self.entries.get_mut(reference) {
            if entry.began > began {
                return Arc::clone(&entry.resolution);
            }
            // An unchanged meaning keeps what hangs on it.
            if entry.resolution.resolved != resolution.resolved {
                entry.resolution = resolution;
            }
            (entry.began, entry.at, entry.stale) = (began, at, false);
            return Arc::clone(&entry.resolution);
        }
        self.make_room();
        let entry =
            Entry { resolution: Arc::clone(&resolution), began, at, stale: false, used: began };
        self.entries.insert(reference.clone(), entry);
        resolution
    }

    fn make_room(&mut self) {
        if self.entries.len() >= MOST_ENTRIES
            && let Some(oldest) = self.entries.iter().min_by_key(|(_, entry)| entry.used)
        {
            let oldest = oldest.0.clone();
            self.entries.remove(&oldest);
        }
    }

    /// The registry says that there is no such thing.
    fn forget(&mut self, reference: &FunctionRef, began: u64) {
        if self.entries.get(reference).is_some_and(|entry| entry.began < began) {
            self.entries.remove(reference);
        }
        if reference.qualifier == Qualifier::Latest {
            self.newest.remove(&reference.name);
        }
    }

    fn apply(&mut self, event: &RegistryEvent) {
        match event {
            RegistryEvent::Published { name, version, .. } => {
                let reference = FunctionRef::latest(name.clone());
                if let Some(entry) = self.entries.get_mut(&reference) {
                    entry.stale |= entry.resolution.resolved.version < *version;
                }
            }
            RegistryEvent::Aliased { name, alias, .. } => {
                let qualifier = Qualifier::Alias(alias.as_str().into());
                let reference = FunctionRef { name: name.clone(), qualifier };
                if let Some(entry) = self.entries.get_mut(&reference) {
                    entry.stale = true;
                }
            }
            RegistryEvent::Deleted { name, .. } => {
                self.barrier = self.clock;
                self.newest.remove(name);
                self.entries.retain(|reference, _| reference.name != *name);
                // Calls from now on ask again instead of waiting for an answer from before.
                self.flights.retain(|reference, _| reference.name != *name);
            }
            // Anything may have changed.
            _ => self.all_stale(),
        }
    }

    fn all_stale(&mut self) {
        for entry in self.entries.values_mut() {
            entry.stale = true;
        }
    }
}

/// No code panics while it holds this lock.
fn lock(cache: &Mutex<Cache>) -> MutexGuard<'_, Cache> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}
