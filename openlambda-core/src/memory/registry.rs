//! A registry without a disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::stream;

use super::EventLog;
use crate::bundle;
use crate::function::{Digest, FunctionName, FunctionRef, Qualifier, Version, check_alias};
use crate::manifest::Manifest;
use crate::registry::{
    BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved, Revision,
    VersionInfo,
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
    functions: BTreeMap<FunctionName, Function>,
    bundles: BTreeMap<Digest, Bytes>,
}

/// One name. It stays when it is deleted, so that no version's number is used again.
#[derive(Debug, Default)]
struct Function {
    last: u64,
    versions: BTreeMap<Version, (VersionInfo, Manifest)>,
    aliases: BTreeMap<String, Version>,
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

    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let packed = blocking(move || {
            let mut tar = Vec::new();
            let packed =
                bundle::canonicalise(bundle::reader(bundle), bundle::Limits::default(), &mut tar)?;
            Ok((packed, Bytes::from(tar)))
        });
        let (packed, tar) = packed.await?;
        let digest = packed.digest;
        let mut state = self.lock();
        let function = state.functions.entry(name.clone()).or_default();
        if let Some((version, (newest, _))) = function.versions.last_key_value()
            && newest.digest == digest
        {
            return Ok(Published { version: *version, digest, new: false });
        }
        function.last += 1;
        let version = Version(function.last);
        let mut info = VersionInfo::new(version, digest);
        info.bytes = Some(packed.bytes);
        info.published_ms = Some(self.shared.clock.unix_millis());
        function.versions.insert(version, (info, packed.manifest));
        state.bundles.insert(digest, tar);
        // Under the lock, so that the events of a name come in the order of its versions.
        self.shared.events.add(|revision| RegistryEvent::Published {
            revision,
            name: name.clone(),
            version,
            digest,
        });
        Ok(Published { version, digest, new: true })
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let state = self.lock();
        let missing = || RegistryError::NotFound { what: format!("function \"{reference}\"") };
        let function = state.functions.get(&reference.name).ok_or_else(missing)?;
        let newest = function.versions.last_key_value();
        let version = match &reference.qualifier {
            Qualifier::Latest => newest.map(|(version, _)| *version),
            Qualifier::Version(version) => Some(*version),
            Qualifier::Alias(alias) => function.aliases.get(&**alias).copied(),
            Qualifier::Digest(wanted) => {
                let mut versions = function.versions.iter().rev();
                versions.find(|(_, (info, _))| info.digest == *wanted).map(|(version, _)| *version)
            }
        };
        let version = version.ok_or_else(missing)?;
        let (info, manifest) = function.versions.get(&version).ok_or_else(missing)?;
        Ok(Resolved::new(reference.name.clone(), version, info.digest, manifest.clone()))
    }

    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        let bundle = self.lock().bundles.get(digest).cloned();
        let missing = || RegistryError::NotFound { what: format!("bundle {digest}") };
        let bundle = bundle.ok_or_else(missing)?;
        let (digest, into) = (*digest, into.to_owned());
        blocking(move || Ok(bundle::unpack(&*bundle, &digest, &into)?)).await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        let state = self.lock();
        let listing = |(name, function): (&FunctionName, &Function)| {
            let (version, (info, _)) = function.versions.last_key_value()?;
            Some(Listing {
                name: name.clone(),
                version: *version,
                digest: info.digest,
                aliases: function.aliases.clone(),
            })
        };
        Ok(state.functions.iter().filter_map(listing).collect())
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let state = self.lock();
        let function = state.functions.get(name).filter(|f| !f.versions.is_empty());
        let missing = || RegistryError::NotFound { what: format!("function \"{name}\"") };
        let function = function.ok_or_else(missing)?;
        Ok(function.versions.values().map(|(info, _)| info.clone()).collect())
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let mut state = self.lock();
        let function = state.functions.get_mut(name).filter(|f| !f.versions.is_empty());
        let missing = || RegistryError::NotFound { what: format!("function \"{name}\"") };
        let function = function.ok_or_else(missing)?;
        function.versions.clear();
        function.aliases.clear();
        let State { functions, bundles } = &mut *state;
        let used = |digest: &Digest| {
            functions.values().any(|f| f.versions.values().any(|(info, _)| info.digest == *digest))
        };
        bundles.retain(|digest, _| used(digest));
        self.shared.events.add(|revision| RegistryEvent::Deleted { revision, name: name.clone() });
        Ok(())
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        check_alias(alias).map_err(|error| RegistryError::Unsupported(error.to_string()))?;
        let mut state = self.lock();
        let function = state.functions.get_mut(name).filter(|f| !f.versions.is_empty());
        let missing = |what: String| RegistryError::NotFound { what };
        let function = function.ok_or_else(|| missing(format!("function \"{name}\"")))?;
        let at = function.aliases.get(alias).copied();
        if at != expected {
            return Err(RegistryError::Conflict { alias: alias.to_owned(), at });
        }
        match version {
            Some(version) if !function.versions.contains_key(&version) => {
                return Err(missing(format!("version {version} of {name}")));
            }
            Some(version) => function.aliases.insert(alias.to_owned(), version),
            None => function.aliases.remove(alias),
        };
        self.shared.events.add(|revision| RegistryEvent::Aliased {
            revision,
            name: name.clone(),
            alias: alias.to_owned(),
            version,
        });
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(RegistryError::Storage(error.into())))
}
