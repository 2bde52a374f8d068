//! The smallest registry that keeps anything: a folder with one JSON index and a file per bundle.
//!
//! ```text
//! <folder>/index.json       names, their last version's number, the newest bundle's digest
//!         /<digest>.tar     the bundle
//! ```
//!
//! It keeps the newest version of a function only. So it has no aliases, and a call that was on its
//! way to a version which no worker had pulled yet fails when the next one is published.
//!
//! What the contract asks for and is easily forgotten: a bundle gets its canonical form before it has a digest; a version's
//! number is not used again, not even after the function was deleted; a publisher who gives up
//! leaves nothing or all; and what was acknowledged survives kill −9.
//!
//! The index is read once: several processes need a registry that they ask over the network.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use openlambda_core::bundle::{self, Limits};
use openlambda_core::function::{Digest, FunctionName, FunctionRef, Qualifier, Version};
use openlambda_core::memory::EventLog;
use openlambda_core::registry::{
    BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved, Revision,
};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

/// Bundles in a folder. Clones share them.
#[derive(Clone, Debug)]
struct JsonRegistry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    index: Mutex<Index>,
    events: EventLog,
}

type Index = BTreeMap<FunctionName, Entry>;

/// A function. It stays when it is deleted, for the sake of its number.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    last: Version,
    newest: Option<Resolved>,
}

impl JsonRegistry {
    fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let folder = folder.into();
        let index = match fs::read(folder.join("index.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Index::new(),
            Err(error) => return Err(error),
        };
        let events = EventLog::new(1024, [], 0);
        Ok(JsonRegistry { shared: Arc::new(Shared { folder, index: Mutex::new(index), events }) })
    }
}

#[async_trait]
impl Registry for JsonRegistry {
    fn kind(&self) -> &'static str {
        "json"
    }

    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let (shared, name) = (Arc::clone(&self.shared), name.clone());
        // A blocking task runs to its end, whoever waits for it.
        blocking(move || {
            let mut file = NamedTempFile::new_in(&shared.folder).map_err(storage)?;
            let packed =
                bundle::canonicalise(bundle::reader(bundle), Limits::default(), &mut file)?;
            let digest = packed.digest;
            let mut index = shared.lock();
            let known = index.get(&name);
            if let Some(Resolved { version, digest: newest, .. }) =
                known.and_then(|entry| entry.newest.as_ref())
                && *newest == digest
            {
                return Ok(Published { version: *version, digest, new: false });
            }
            let version = Version(known.map_or(0, |entry| entry.last.0) + 1);
            let newest = Some(Resolved::new(name.clone(), version, digest, packed.manifest));
            file.persist(shared.bundle(&digest)).map_err(storage)?;
            shared.change(&mut index, &name, Entry { last: version, newest })?;
            shared.events.add(|revision| {
                let name = name.clone();
                RegistryEvent::Published { revision, name, version, digest }
            });
            Ok(Published { version, digest, new: true })
        })
        .await
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let index = self.shared.lock();
        let newest = index.get(&reference.name).and_then(|entry| entry.newest.as_ref());
        let meant = newest.filter(|newest| match &reference.qualifier {
            Qualifier::Latest => true,
            Qualifier::Version(version) => newest.version == *version,
            Qualifier::Digest(digest) => newest.digest == *digest,
            // Aliases, which it has not.
            _ => false,
        });
        meant.cloned().ok_or_else(|| not_found(format!("function \"{reference}\"")))
    }

    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        let (shared, digest, into) = (Arc::clone(&self.shared), *digest, into.to_owned());
        blocking(move || {
            let file = File::open(shared.bundle(&digest)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => not_found(format!("bundle {digest}")),
                _ => storage(error),
            })?;
            Ok(bundle::unpack(file, &digest, &into)?)
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        let index = self.shared.lock();
        let newest = index.values().filter_map(|entry| entry.newest.clone());
        let listing = |Resolved { name, version, digest, .. }| {
            let aliases = BTreeMap::new();
            Listing { name, version, digest, aliases }
        };
        Ok(newest.map(listing).collect())
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let (shared, name) = (Arc::clone(&self.shared), name.clone());
        blocking(move || {
            let mut index = shared.lock();
            let there = index.get(&name).filter(|entry| entry.newest.is_some());
            let there = there.ok_or_else(|| not_found(format!("function \"{name}\"")))?;
            let deleted = Entry { last: there.last, newest: None };
            shared.change(&mut index, &name, deleted)?;
            shared.events.add(|revision| RegistryEvent::Deleted { revision, name: name.clone() });
            Ok(())
        })
        .await
    }

    async fn set_alias(
        &self,
        _name: &FunctionName,
        _alias: &str,
        _version: Option<Version>,
        _expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let message = "this registry keeps one version of a function, so it has no aliases";
        Err(RegistryError::Unsupported(message.to_owned()))
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.shared.events.watch(from)
    }
}

impl Shared {
    fn bundle(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex()).with_extension("tar")
    }

    /// Writes the index as it will be, and only then believes it.
    fn change(
        &self,
        index: &mut Index,
        name: &FunctionName,
        entry: Entry,
    ) -> Result<(), RegistryError> {
        let mut changed = index.clone();
        let old = changed.insert(name.clone(), entry).and_then(|entry| entry.newest);
        let mut file = NamedTempFile::new_in(&self.folder).map_err(storage)?;
        serde_json::to_writer_pretty(&mut file, &changed).map_err(storage)?;
        // A rename is whole or not at all. A power cut would ask for a sync as well.
        file.persist(self.folder.join("index.json")).map_err(storage)?;
        *index = changed;
        if let Some(old) = old {
            let mut left = index.values().filter_map(|entry| entry.newest.as_ref());
            if !left.any(|newest| newest.digest == old.digest) {
                // A file that stays is found by nobody.
                let _ = fs::remove_file(self.bundle(&old.digest));
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Files are read and written off the runtime's own threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(storage(error)))
}

fn storage(error: impl std::error::Error + Send + Sync + 'static) -> RegistryError {
    RegistryError::Storage(error.into())
}

fn not_found(what: String) -> RegistryError {
    RegistryError::NotFound { what }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let registry = JsonRegistry::open(folder.path())?;
    for function in ["echo", "hello", "echo"] {
        let code = Path::new(env!("CARGO_MANIFEST_DIR")).join("functions").join(function);
        let mut tar = Vec::new();
        bundle::pack_dir(&code, &mut tar)?;
        let bundle = Box::pin(stream::once(async { Ok(tar.into()) }));
        let published = registry.publish(&function.parse()?, bundle).await?;
        let news = if published.new { "new" } else { "there already" };
        println!("published {function}:{} ({news})", published.version);
    }
    drop(registry);

    let reopened = JsonRegistry::open(folder.path())?;
    for listing in reopened.list().await? {
        println!("{}:{} {}", listing.name, listing.version, listing.digest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use openlambda_core::conformance::registry::{Fixture, suite};
    use tempfile::TempDir;

    use super::*;

    #[derive(Default)]
    struct Folders {
        last: Mutex<Option<TempDir>>,
    }

    impl Folders {
        fn open(&self) -> Option<Arc<dyn Registry>> {
            let last = self.last.lock().unwrap();
            Some(Arc::new(JsonRegistry::open(last.as_ref()?.path()).unwrap()))
        }
    }

    #[async_trait]
    impl Fixture for Folders {
        async fn empty(&self) -> Arc<dyn Registry> {
            *self.last.lock().unwrap() = Some(tempfile::tempdir().unwrap());
            self.open().unwrap()
        }

        async fn reopened(&self) -> Option<Arc<dyn Registry>> {
            self.open()
        }

        fn keeps_versions(&self) -> bool {
            false
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_registry_honours_the_contract() {
        suite(&Folders::default()).await;
    }
}
