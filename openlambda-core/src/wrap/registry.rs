//! A disturbed registry.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::stream::BoxStream;
use futures_util::StreamExt;

use super::disturbance::{Operation, Trouble};
use super::disturbed::DisturbedRegistry;
use crate::function::{Digest, FunctionName, FunctionRef, Version};
use crate::registry::{
    Bundle, BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved,
    Revision, VersionInfo,
};

impl From<Trouble> for RegistryError {
    fn from(trouble: Trouble) -> Self {
        RegistryError::Unavailable(trouble.into())
    }
}

#[async_trait]
impl Registry for DisturbedRegistry {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        let _permit = self.by.before(Operation::Put).await?;
        self.inner.put(name, bundle).await
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        let permit = self.by.before(Operation::Get).await?;
        let bundle = self.inner.get(digest).await?;
        Ok(Box::pin(bundle.inspect(move |_| _ = &permit)))
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let _permit = self.by.before(Operation::Resolve).await?;
        self.inner.resolve(reference).await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        let _permit = self.by.before(Operation::List).await?;
        self.inner.list().await
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let _permit = self.by.before(Operation::Delete).await?;
        self.inner.delete(name).await
    }

    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let _permit = self.by.before(Operation::Publish).await?;
        self.inner.publish(name, bundle).await
    }

    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        let _permit = self.by.before(Operation::Fetch).await?;
        self.inner.fetch(digest, into).await
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let _permit = self.by.before(Operation::Versions).await?;
        self.inner.versions(name).await
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let _permit = self.by.before(Operation::SetAlias).await?;
        self.inner.set_alias(name, alias, version, expected).await
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.inner.watch(from)
    }

    fn cache_for(&self) -> Duration {
        self.inner.cache_for()
    }
}
