//! A registry without a disk.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::stream;

use crate::bundle;
use crate::function::{Digest, FunctionName, FunctionRef, Version};
use crate::registry::{
    Bundle, BundleStream, EventLog, Index, Listing, Published, Registry, RegistryError,
    RegistryEvent, Resolved, Revision, VersionInfo, blocking,
};
use crate::time::{Clock, SystemClock};

/// Changes that watchers may be behind.
const EVENTS: usize = 1024;

/// Keeps bundles in memory: for programs that embed a cluster, and for tests. Clones share them.
#[derive(Clone, Debug)]
pub struct MemoryRegistry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: SystemClock,
    state: Mutex<State>,
    events: EventLog,
}

#[derive(Debug, Default)]
struct State {
    index: Index,
    bundles: BTreeMap<Digest, Bytes>,
}

impl MemoryRegistry {
    /// A registry without functions.
    pub fn new() -> Self {
        let events = EventLog::new(EVENTS, [], 0);
        let (clock, state) = (SystemClock::new(), Mutex::default());
        MemoryRegistry { shared: Arc::new(Shared { clock, state, events }) }
    }

    /// Publishes the function in a folder.
    ///
    /// # Errors
    ///
    /// [`RegistryError::BadBundle`].
    pub async fn publish_dir(
        &self,
        name: &FunctionName,
        folder: &Path,
    ) -> Result<Published, RegistryError> {
        let mut tar = Vec::new();
        bundle::pack_dir(folder, &mut tar)?;
        let chunk = stream::once(async { Ok(Bytes::from(tar)) });
        self.publish(name, Box::pin(chunk)).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        MemoryRegistry::new()
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    fn kind(&self) -> &'static str {
        "memory"
    }

    async fn put(
        &self,
        name: &FunctionName,
        mut bundle: Bundle,
    ) -> Result<Published, RegistryError> {
        let read = blocking(move || {
            let mut tar = Vec::new();
            bundle.read_to_end(&mut tar).map_err(RegistryError::storage)?;
            Ok((bundle, Bytes::from(tar)))
        });
        let (bundle, tar) = read.await?;
        let mut state = self.lock();
        let now_ms = self.shared.clock.unix_millis();
        let (published, event) = state.index.publish(name, &bundle, now_ms);
        if let Some(event) = event {
            state.bundles.insert(bundle.digest, tar);
            // Under the lock, so that the events of a name come in the order of its versions.
            self.shared.events.add(|_| event);
        }
        Ok(published)
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        let bundle = self.lock().bundles.get(digest).cloned();
        let missing = || RegistryError::NotFound { what: format!("bundle {digest}") };
        let bundle = bundle.ok_or_else(missing)?;
        Ok(Box::pin(stream::once(async { Ok(bundle) })))
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        self.lock().index.resolve(reference)
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        Ok(self.lock().index.list())
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let State { index, bundles } = &mut *self.lock();
        let event = index.delete(name)?;
        bundles.retain(|digest, _| index.holds(digest));
        self.shared.events.add(|_| event);
        Ok(())
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        self.lock().index.versions(name)
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let mut state = self.lock();
        let event = state.index.set_alias(name, alias, version, expected)?;
        self.shared.events.add(|_| event);
        Ok(())
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.shared.events.watch(from)
    }

    fn cache_for(&self) -> Duration {
        // Every change is told before its call returns.
        Duration::from_secs(3600)
    }
}
