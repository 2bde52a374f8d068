//! The known meanings of references, without a request to the registry: [`Cache`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Shared};
use openlambda_core::failure::Failure;
use openlambda_core::function::{FunctionName, FunctionRef, Qualifier};
use openlambda_core::registry::RegistryEvent;
use openlambda_core::time::Time;

use super::resolution::Resolution;

/// The most references that are remembered; then the one that was used longest ago goes.
const MOST_ENTRIES: usize = 10_000;

pub(super) type Answer = Result<Arc<Resolution>, Failure>;

#[derive(Debug, Default)]
pub(super) struct Cache {
    /// Counts calls and requests to the registry, to tell which came first.
    pub(super) clock: u64,
    entries: BTreeMap<FunctionRef, Entry>,
    /// The newest version seen of each name that is in `entries` or was.
    newest: BTreeMap<FunctionName, Arc<Resolution>>,
    /// Requests to the registry on their way.
    pub(super) flights: BTreeMap<FunctionRef, Flight>,
    /// Answers to requests that began before this are not kept: something was deleted meanwhile.
    barrier: u64,
}

#[derive(Debug)]
struct Entry {
    resolution: Arc<Resolution>,
    /// When the request that brought it began, by `Cache::clock` and by the time.
    began: u64,
    at: Time,
    /// The registry has reported a change since.
    stale: bool,
    used: u64,
}

/// A request to the registry.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) began: u64,
    pub(super) at: Time,
    pub(super) answer: Shared<BoxFuture<'static, Answer>>,
}

impl Cache {
    /// What the reference means for a call that was made at `called`, if that need not be asked.
    pub(super) fn fresh(
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
    pub(super) fn known(&self, reference: &FunctionRef) -> Option<Arc<Resolution>> {
        let known = Arc::clone(&self.entries.get(reference)?.resolution);
        Some(self.raised(reference, known))
    }

    /// For a name alone: the newest version that was seen, if that is newer.
    pub(super) fn raised(
        &self,
        reference: &FunctionRef,
        resolution: Arc<Resolution>,
    ) -> Arc<Resolution> {
        match self.newest.get(&reference.name) {
            Some(newest)
                if reference.qualifier == Qualifier::Latest
                    && newest.resolved().version > resolution.resolved().version =>
            {
                Arc::clone(newest)
            }
            _ => resolution,
        }
    }

    /// The registry answered the request that began at `began`. Returns what calls get now.
    pub(super) fn keep(
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
        if newest.is_none_or(|newest| newest.resolved().version < resolution.resolved().version) {
            self.newest.insert(reference.name.clone(), Arc::clone(&resolution));
        }
        let resolution = self.raised(reference, resolution);
        if let Some(entry) = self.entries.get_mut(reference) {
            if entry.began > began {
                return Arc::clone(&entry.resolution);
            }
            // An unchanged meaning keeps what hangs on it.
            if entry.resolution.resolved() != resolution.resolved() {
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
    pub(super) fn forget(&mut self, reference: &FunctionRef, began: u64) {
        if self.entries.get(reference).is_some_and(|entry| entry.began < began) {
            self.entries.remove(reference);
        }
        if reference.qualifier == Qualifier::Latest {
            self.newest.remove(&reference.name);
        }
    }

    /// The registry told of a change.
    pub(super) fn apply(&mut self, event: &RegistryEvent) {
        match event {
            RegistryEvent::Published { name, version, .. } => {
                let reference = FunctionRef::latest(name.clone());
                if let Some(entry) = self.entries.get_mut(&reference) {
                    entry.stale |= entry.resolution.resolved().version < *version;
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

    /// Anything may have changed.
    pub(super) fn all_stale(&mut self) {
        for entry in self.entries.values_mut() {
            entry.stale = true;
        }
    }
}
