//! The volumes of functions that are removed: [`put_aside`], and a registry that does it, [`KeepsVolumes`].
//!
//! A later function of the same name is not to get them. Where a registry knows of a name's lives, each life
//! has a folder of its own. Where it does not, as a folder of functions, whoever removes a function puts its
//! volumes where the next one does not look.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use openlambda_core::function::{Digest, FunctionName, FunctionRef, Version};
use openlambda_core::registry::{
    Bundle, BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved,
    Revision, VersionInfo,
};
use openlambda_core::sandbox::volumes_of;
use openlambda_core::time::{Clock, SystemClock};

/// Where the volumes of a function that was removed are, if it had any, and where the next one of its
/// name would look for them. They are put aside where its registry would give them to that one. `namespace`:
/// the folder of its namespace's volumes.
///
/// # Errors
///
/// They cannot be moved.
pub(crate) fn put_aside(
    namespace: &Path,
    name: &FunctionName,
    last: &Resolved,
) -> io::Result<Option<(PathBuf, PathBuf)>> {
    let kept = namespace.join(volumes_of(name, last.born));
    if !kept.exists() {
        return Ok(None);
    }
    if last.born.is_some() {
        let next = volumes_of(name, Some(Version(last.version.0 + 1)));
        return Ok(Some((kept, namespace.join(next))));
    }
    let now = SystemClock::new().unix_millis();
    let aside = namespace.join(format!("{}@removed-{now}", name.name()));
    std::fs::rename(&kept, &aside)?;
    Ok(Some((aside, kept)))
}

/// A registry whose functions leave their volumes aside when they are removed.
#[derive(Debug)]
pub(crate) struct KeepsVolumes {
    inner: Arc<dyn Registry>,
    /// The folder of all volumes.
    volumes: PathBuf,
}

impl KeepsVolumes {
    /// `inner`, whose functions have their volumes in this folder.
    pub(crate) fn new(inner: Arc<dyn Registry>, volumes: PathBuf) -> Self {
        KeepsVolumes { inner, volumes }
    }
}

#[async_trait]
impl Registry for KeepsVolumes {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let last = self.inner.resolve(&FunctionRef::latest(name.clone())).await.ok();
        self.inner.delete(name).await?;
        let (namespace, of) = (self.volumes.join(name.namespace()), name.clone());
        let put = move || last.map(|last| put_aside(&namespace, &of, &last)).transpose();
        let put = tokio::task::spawn_blocking(put).await.map_err(RegistryError::storage)?;
        if let Err(error) = put {
            tracing::error!(%name, %error, "cannot put its volumes aside; move them yourself");
        }
        Ok(())
    }

    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        self.inner.put(name, bundle).await
    }

    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        self.inner.publish(name, bundle).await
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        self.inner.set_alias(name, alias, version, expected).await
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        self.inner.get(digest).await
    }

    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        self.inner.fetch(digest, into).await
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        self.inner.resolve(reference).await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        self.inner.list().await
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        self.inner.versions(name).await
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.inner.watch(from)
    }

    fn cache_for(&self) -> Duration {
        self.inner.cache_for()
    }
}
