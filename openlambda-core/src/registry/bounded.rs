//! What is published, kept to the operator's bounds: [`Bounded`].

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::stream::BoxStream;

use super::{
    Bundle, BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved,
    Revision, VersionInfo, provided,
};
use crate::allow::Allow;
use crate::bundle;
use crate::function::{Digest, FunctionName, FunctionRef, Version};
use crate::manifest::Manifest;

/// A registry that takes only what an [`Allow`] allows, one bundle at a time (quotas of what a namespace
/// keeps are the native registry's): for kinds that do not check it themselves, in
/// the program that publishes. Everything but publishing is the wrapped registry's.
#[derive(Clone, Debug)]
pub struct Bounded {
    inner: Arc<dyn Registry>,
    allow: Arc<Allow>,
}

impl Bounded {
    /// `inner`, within these bounds.
    pub fn new(inner: Arc<dyn Registry>, allow: Allow) -> Self {
        Bounded { inner, allow: Arc::new(allow) }
    }
}

/// Whether `name` may have a bundle of so many bytes with this manifest. `tar` gives the bundle, in canonical form and from its beginning:
/// it is read only for the line of what is refused.
///
/// # Errors
///
/// [`RegistryError::NotAllowed`].
pub fn admit<R: Read>(
    allow: &Allow,
    name: &FunctionName,
    manifest: &Manifest,
    bytes: u64,
    tar: impl FnOnce() -> io::Result<R>,
) -> Result<(), RegistryError> {
    if let Err(over) = allow.check_size(name.namespace(), bytes) {
        return Err(RegistryError::NotAllowed { reason: over.to_string() });
    }
    let Err(refused) = allow.check(name.namespace(), manifest) else { return Ok(()) };
    let text = tar().ok().and_then(bundle::manifest_text);
    let refused = match text {
        Some((file, text)) => refused.at(file, &text),
        None => *refused,
    };
    Err(RegistryError::NotAllowed { reason: refused.to_string() })
}

#[async_trait]
impl Registry for Bounded {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn put(
        &self,
        name: &FunctionName,
        mut bundle: Bundle,
    ) -> Result<Published, RegistryError> {
        let (allow, of) = (Arc::clone(&self.allow), name.clone());
        let bundle = provided::blocking(move || {
            let (manifest, bytes) = (bundle.manifest.clone(), bundle.bytes);
            admit(&allow, &of, &manifest, bytes, || Ok(&mut bundle))?;
            Ok(bundle)
        });
        self.inner.put(name, bundle.await?).await
    }

    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let bundle = provided::canonical(bundle).await?;
        self.put(name, bundle).await
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

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        self.inner.delete(name).await
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        self.inner.versions(name).await
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

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.inner.watch(from)
    }

    fn cache_for(&self) -> Duration {
        self.inner.cache_for()
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::memory::MemoryRegistry;

    #[tokio::test]
    async fn what_is_not_allowed_is_refused_with_its_line_and_leaves_nothing() {
        let inner = MemoryRegistry::new();
        let registry = Bounded::new(Arc::new(inner.clone()), Allow::default());
        let publish = async |manifest: &str| {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("f.py"), "").unwrap();
            std::fs::write(folder.path().join("ol.toml"), manifest).unwrap();
            let mut tar = Vec::new();
            bundle::pack_dir(folder.path(), &mut tar).unwrap();
            registry.publish(&"f".parse().unwrap(), bundle::stream(Cursor::new(tar))).await
        };
        let error = publish("memory_mb = 64\n\nnetwork = \"host\"").await.unwrap_err();
        let RegistryError::NotAllowed { reason } = &error else { panic!("{error}") };
        assert!(reason.starts_with("ol.toml, line 3: network = \"host\", and the op"), "{reason}");
        assert!(inner.list().await.unwrap().is_empty());
        publish("network = \"bridge\"").await.unwrap();
        assert_eq!(inner.list().await.unwrap().len(), 1);
    }
}
