//! A whole registry over a place that stores bundles: what a new kind of registry builds on.
//!
//! [`Simple`] keeps the contract of [`Registry`], with versions, aliases and events, over a [`Shelf`],
//! which stores bundles by digest and one [`Index`] of their names. A kind with its own database
//! implements [`Registry`] directly.

use std::fmt;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::stream::BoxStream;
use parking_lot::Mutex;

use super::{
    Bundle, BundleStream, EventLog, Index, Listing, Published, Registry, RegistryError,
    RegistryEvent, Resolved, Revision, VersionInfo, blocking,
};
use crate::bundle;
use crate::function::{Digest, FunctionName, FunctionRef, Version};
use crate::time::{Clock, SystemClock};

/// Changes that watchers may be behind.
const EVENTS: usize = 1024;

/// Where bundles and their index lie.
///
/// **Concurrency**: all methods are called on threads that may block; `keep`, `write` and `remove` by
/// one at a time, `open` at any time.
///
/// **Durability**: what `keep` and `write` have returned from survives kill −9, and until then nothing
/// of it is seen.
pub trait Shelf: fmt::Debug + Send + Sync + 'static {
    /// Keeps a bundle, which may be there already, under its digest.
    ///
    /// # Errors
    ///
    /// That it cannot be written.
    fn keep(&self, bundle: &mut Bundle) -> io::Result<()>;

    /// The tar of the bundle with this digest.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`], or that it cannot be read.
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>>;

    /// Removes a bundle that is in no index any more; readers of it may go on.
    ///
    /// # Errors
    ///
    /// Errors are ignored: a bundle that stays cannot be found.
    fn remove(&self, digest: &Digest) -> io::Result<()>;

    /// Writes the index in the place of the last one: whole or not at all.
    ///
    /// # Errors
    ///
    /// That it cannot be written; the last one is there then.
    fn write(&self, index: &Index) -> io::Result<()>;
}

/// A registry over a [`Shelf`] that no other code changes. Clones share it.
///
/// Every change writes the whole index: right for thousands of versions, not for millions. Watchers
/// learn of changes through the same value and its clones.
#[derive(Debug)]
pub struct Simple<S> {
    shared: Arc<Shared<S>>,
}

#[derive(Debug)]
struct Shared<S> {
    kind: &'static str,
    shelf: S,
    clock: SystemClock,
    /// Held for the whole of a change.
    changing: Mutex<()>,
    index: Mutex<Index>,
    events: EventLog,
}

impl<S: Shelf> Simple<S> {
    /// The registry of a kind with this name in configuration, over `shelf`, whose index is `index`
    /// now.
    pub fn over(kind: &'static str, shelf: S, index: Index) -> Self {
        let events = EventLog::new(EVENTS, [], index.revision().0);
        let (clock, changing, index) = (SystemClock::new(), Mutex::new(()), Mutex::new(index));
        Simple { shared: Arc::new(Shared { kind, shelf, clock, changing, index, events }) }
    }

    /// Publishes the function in a folder.
    ///
    /// # Errors
    ///
    /// [`RegistryError::BadBundle`], and those of [`Registry::publish`].
    pub async fn publish_dir(
        &self,
        name: &FunctionName,
        folder: &Path,
    ) -> Result<Published, RegistryError> {
        let mut tar = Vec::new();
        bundle::pack_dir(folder, &mut tar)?;
        self.publish(name, bundle::stream(Cursor::new(tar))).await
    }

    /// Makes a change. It runs to its end even if the caller stops waiting.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Shared<S>) -> Result<T, RegistryError> + Send + 'static,
    ) -> Result<T, RegistryError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let _changing = shared.changing.lock();
            change(&shared)
        })
        .await
    }
}

impl<S: Shelf> Shared<S> {
    /// Writes the index as it will be, and only then believes it.
    fn commit(&self, changed: Index, event: RegistryEvent) -> Result<(), RegistryError> {
        self.shelf.write(&changed).map_err(RegistryError::storage)?;
        *self.index.lock() = changed;
        self.events.add(|_| event);
        Ok(())
    }
}

impl<S> Clone for Simple<S> {
    fn clone(&self) -> Self {
        Simple { shared: Arc::clone(&self.shared) }
    }
}

#[async_trait]
impl<S: Shelf> Registry for Simple<S> {
    fn kind(&self) -> &'static str {
        self.shared.kind
    }

    async fn put(
        &self,
        name: &FunctionName,
        mut bundle: Bundle,
    ) -> Result<Published, RegistryError> {
        let name = name.clone();
        let put = move |shared: &Shared<S>| {
            let mut changed = shared.index.lock().clone();
            let now_ms = shared.clock.unix_millis();
            let (published, event) = changed.publish(&name, &bundle, now_ms);
            if let Some(event) = event {
                shared.shelf.keep(&mut bundle).map_err(RegistryError::storage)?;
                shared.commit(changed, event)?;
            }
            Ok(published)
        };
        self.change(put).await
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        let (shared, digest) = (Arc::clone(&self.shared), *digest);
        let open = move || match shared.shelf.open(&digest) {
            Ok(tar) => Ok(bundle::stream(tar)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(match shared.index.lock().holds(&digest) {
                    true => RegistryError::damaged(&digest),
                    false => RegistryError::NotFound { what: format!("bundle {digest}") },
                })
            }
            Err(error) => Err(RegistryError::storage(error)),
        };
        blocking(open).await
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        self.shared.index.lock().resolve(reference)
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        Ok(self.shared.index.lock().list())
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let name = name.clone();
        let delete = move |shared: &Shared<S>| {
            let mut changed = shared.index.lock().clone();
            let versions = changed.versions(&name)?;
            let event = changed.delete(&name)?;
            let mut unused: Vec<_> = versions.iter().map(|version| version.digest).collect();
            unused.retain(|digest| !changed.holds(digest));
            shared.commit(changed, event)?;
            for digest in unused {
                let _ = shared.shelf.remove(&digest);
            }
            Ok(())
        };
        self.change(delete).await
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        self.shared.index.lock().versions(name)
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let (name, alias) = (name.clone(), alias.to_owned());
        let set = move |shared: &Shared<S>| {
            let mut changed = shared.index.lock().clone();
            let event = changed.set_alias(&name, &alias, version, expected)?;
            shared.commit(changed, event)
        };
        self.change(set).await
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.shared.events.watch(from)
    }

    fn cache_for(&self) -> Duration {
        // Every change is told before its call returns.
        Duration::from_secs(3600)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    /// Keeps nothing.
    #[derive(Debug)]
    struct Nowhere;

    impl Shelf for Nowhere {
        fn keep(&self, _: &mut Bundle) -> io::Result<()> {
            Ok(())
        }

        fn open(&self, _: &Digest) -> io::Result<Box<dyn Read + Send>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn remove(&self, _: &Digest) -> io::Result<()> {
            Ok(())
        }

        fn write(&self, _: &Index) -> io::Result<()> {
            Ok(())
        }
    }

    /// Else every call of a cluster would ask it.
    #[tokio::test]
    async fn what_it_resolves_to_may_be_used_until_it_tells_of_a_change() {
        let registry = Simple::over("nowhere", Nowhere, Index::default());
        assert!(!registry.cache_for().is_zero());
        let mut events = registry.watch(Revision::NOW);
        assert!(events.next().now_or_never().is_none());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f.py"), "").unwrap();
        registry.publish_dir(&"f".parse().unwrap(), folder.path()).await.unwrap();
        let told = events.next().now_or_never().expect("told before the call returns");
        assert!(matches!(told, Some(RegistryEvent::Published { .. })), "{told:?}");
    }
}
