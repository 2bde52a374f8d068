//! A registry over a store in the same program.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use openlambda_core::bundle::{self, BundleError};
use openlambda_core::function::{Digest, FunctionName, FunctionRef, Version};
use openlambda_core::registry::{
    Bundle, BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved,
    Revision, VersionInfo, upload,
};
use tokio::sync::Semaphore;

use super::{Store, verified::Verified};
use crate::blocking;

/// A [`Store`] as a [`Registry`]: for programs that embed one, and behind `ol-registry`. Clones share
/// the store.
#[derive(Clone, Debug)]
pub struct NativeRegistry {
    store: Arc<Store>,
    /// For bundles that are on their way in, and that are looked through.
    uploads: Arc<Semaphore>,
    checks: Arc<Semaphore>,
}

/// The most bundles that come at once; each is kept in an unnamed file until all of it is there.
const UPLOADS: usize = 1024;
/// The most that are looked through at once.
const CHECKS: usize = 4;

impl NativeRegistry {
    /// The registry over `store`.
    pub fn new(store: Store) -> Self {
        NativeRegistry {
            store: Arc::new(store),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            checks: Arc::new(Semaphore::new(CHECKS)),
        }
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }
}

#[async_trait]
impl Registry for NativeRegistry {
    fn kind(&self) -> &'static str {
        "native"
    }

    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        let name = name.clone();
        blocking(&self.store, move |store| store.put(&name, bundle)).await
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        let digest = *digest;
        let file = blocking(&self.store, move |store| store.bundle(&digest)).await?;
        let broken = |error: io::Error| match error.downcast::<RegistryError>() {
            Ok(told) => io::Error::other(told),
            Err(error) => io::Error::other(RegistryError::storage(error)),
        };
        Ok(bundle::stream(Verified::new(file, digest)).map_err(broken).boxed())
    }

    // Canonicalised where the bundle is to lie.
    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let _uploading = self.uploads.try_acquire().map_err(|_| {
            let message = format!("{UPLOADS} bundles are coming already; try again");
            RegistryError::Unavailable(message.into())
        })?;
        let archive = upload(bundle).await?;
        // Few at once: checking takes a core each, and names and code are looked up meanwhile.
        let _checking = self.checks.acquire().await.map_err(RegistryError::storage)?;
        let name = name.clone();
        blocking(&self.store, move |store| store.publish(&name, archive)).await
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let reference = reference.clone();
        blocking(&self.store, move |store| store.resolve(&reference)).await
    }

    // From the file, without a stream.
    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        let (digest, into) = (*digest, into.to_owned());
        let unpack = move |store: &Store| {
            bundle::unpack(store.bundle(&digest)?, &digest, &into).map_err(|error| match error {
                BundleError::Write(_) => error.into(),
                // It was looked through when it came, so the disk has changed it.
                _ => RegistryError::damaged(&digest),
            })
        };
        blocking(&self.store, unpack).await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        blocking(&self.store, Store::list).await
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let name = name.clone();
        blocking(&self.store, move |store| store.versions(&name)).await
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let name = name.clone();
        blocking(&self.store, move |store| store.delete(&name)).await
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let (name, alias) = (name.clone(), alias.to_owned());
        blocking(&self.store, move |store| store.set_alias(&name, &alias, version, expected)).await
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.store.events().watch(from)
    }

    fn cache_for(&self) -> Duration {
        super::CACHE_FOR
    }
}
