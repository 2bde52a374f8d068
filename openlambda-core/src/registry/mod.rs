//! The registry contract: where functions' bundles are kept.
//!
//! A registry maps names to numbered versions, versions to digests, and digests to bundles.
//! Implementations: `dir`, `native` and others in `openlambda-registry`,
//! [`memory`](crate::memory) here. Every one runs the suite in `conformance::registry`.
//!
//! A new kind stores bundles ([`put`](Registry::put), [`get`](Registry::get)) and their names
//! ([`resolve`](Registry::resolve), [`list`](Registry::list), [`delete`](Registry::delete)); [`Index`]
//! helps with the names. Every other method is provided, and a kind that can do it faster overrides
//! it. `registry::kit` (feature `kit`) has a whole registry over a place that stores bundles.

#[cfg(feature = "bundle")]
mod bounded;
mod bundle;
mod error;
#[cfg(feature = "kit")]
mod event_log;
mod index;
#[cfg(feature = "kit")]
pub mod kit;
#[cfg(feature = "bundle")]
mod provided;

use std::collections::BTreeMap;
use std::fmt;

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::stream::BoxStream;
use futures_util::stream;
use serde::{Deserialize, Serialize};

use crate::function::{Digest, FunctionName, FunctionRef, Version};
use crate::manifest::Manifest;

#[cfg(feature = "bundle")]
pub use bounded::{Bounded, admit};
pub use bundle::{Bundle, BundleStream};
pub use error::RegistryError;
#[cfg(feature = "kit")]
pub use event_log::EventLog;
pub use index::Index;
#[cfg(feature = "bundle")]
pub use provided::{blocking, upload};

/// Stores functions' bundles.
///
/// **Concurrency**: all methods may be called from many tasks at once. Publishing is serialised per
/// function: two publishers of one name get two versions.
///
/// **Durability**: what `put`, `publish`, `delete` and `set_alias` acknowledged survives a crash of the
/// registry (kill −9), where the implementation keeps anything outside memory at all.
///
/// **Cancellation**: dropping the future of `put` or `publish` before it is acknowledged publishes
/// either nothing or the whole version. Dropping the future of `fetch` may leave a partial folder behind,
/// which belongs to the caller.
///
/// **Ordering**: `resolve` after an acknowledged `publish` on the same handle sees that version or a
/// newer one. Versions of a name only grow; a deleted number is never used again.
#[async_trait]
pub trait Registry: Send + Sync + fmt::Debug {
    /// The kind's name in configuration: `dir`, `native`, `memory`.
    fn kind(&self) -> &'static str;

    /// Stores a bundle as the next version of `name`. If the newest version is this bundle already, no
    /// new version is made.
    ///
    /// # Errors
    ///
    /// The registry cannot be reached or written, or [`RegistryError::NotAllowed`]; nothing was stored then.
    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError>;

    /// The bundle's tar.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`] when no version has it, [`RegistryError::Damaged`] when the registry's copy is
    /// not what it was; the stream may say so at its end.
    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError>;

    /// What `reference` means now.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`].
    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError>;

    /// All functions in order of their names.
    ///
    /// # Errors
    ///
    /// The registry cannot be reached or read.
    async fn list(&self) -> Result<Vec<Listing>, RegistryError>;

    /// Removes a function with all its versions and aliases.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`].
    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError>;

    /// Publishes a bundle from any source: validates it, brings it into canonical form, so that its
    /// digest does not depend on who packed it, and [`put`](Self::put)s it.
    ///
    /// Provided with the feature `bundle`; a kind can override it to canonicalise where the bundle is
    /// stored.
    ///
    /// # Errors
    ///
    /// [`RegistryError::BadBundle`] says what is wrong; nothing was stored then. Those of `put`.
    #[cfg(feature = "bundle")]
    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let bundle = provided::canonical(bundle).await?;
        self.put(name, bundle).await
    }

    /// Publishes a bundle from any source. Without the feature `bundle` this method is not provided.
    #[cfg(not(feature = "bundle"))]
    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError>;

    /// Unpacks the bundle that [`get`](Self::get) gives into the empty, existing folder `into`, if it
    /// is the one that the digest names.
    ///
    /// Provided with the feature `bundle`; a kind can override it to leave out the stream.
    ///
    /// # Errors
    ///
    /// Those of `get`, [`RegistryError::Unavailable`] when it breaks off; the folder's content is undefined
    /// after an error.
    #[cfg(feature = "bundle")]
    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        let bundle = self.get(digest).await?;
        provided::unpack(bundle, digest, into).await
    }

    /// Unpacks a bundle. Without the feature `bundle` this method is not provided.
    #[cfg(not(feature = "bundle"))]
    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError>;

    /// The versions of `name` that can be resolved, the oldest first: never empty, and the last is the
    /// one that the name alone means.
    ///
    /// The default returns the newest version only, which suits a kind that keeps no others.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`].
    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let newest = self.resolve(&FunctionRef::latest(name.clone())).await?;
        Ok(vec![VersionInfo::new(newest.version, newest.digest)])
    }

    /// Points the alias to `version`, or removes it (`None`), if it points to `expected` now
    /// (`None`: does not exist). Compare-and-set, so that two people cannot undo each other's work
    /// unseen.
    ///
    /// By default there are no aliases, which suits a kind that keeps only the newest version.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Conflict`] says where the alias points; [`RegistryError::NotFound`];
    /// [`RegistryError::Unsupported`] where there are none.
    async fn set_alias(
        &self,
        _name: &FunctionName,
        _alias: &str,
        _version: Option<Version>,
        _expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let message = format!(
            "registries of the kind {} have no aliases; use the native registry",
            self.kind()
        );
        Err(RegistryError::Unsupported(message))
    }

    /// The changes after `from`, as they come; ends only when the registry does.
    ///
    /// Start with the revision of an earlier event, or with [`Revision::NOW`]. A
    /// [`RegistryEvent::Lagged`] says that events were lost: resolve again what matters.
    ///
    /// By default the stream is empty and never ends: then [`cache_for`](Self::cache_for) must be zero,
    /// and workers keep deleted functions until they need the room. `EventLog` (feature `kit`) helps to
    /// implement it.
    fn watch(&self, _from: Revision) -> BoxStream<'static, RegistryEvent> {
        Box::pin(stream::pending())
    }

    /// How long a follower of [`watch`](Self::watch) may use what a mutable reference (a name alone, an
    /// alias) resolved to, before it resolves the reference again.
    ///
    /// Zero, the default, means not at all, which suits a registry that does not announce changes at
    /// once, such as a folder that people edit. A registry that announces its changes returns a time
    /// that bounds the damage of a lost event.
    fn cache_for(&self) -> Duration {
        Duration::ZERO
    }
}

/// A registry's counter of changes. Comparable only within one registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// From now on.
    pub const NOW: Revision = Revision(u64::MAX);
}

/// What a reference means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Resolved {
    /// The function.
    pub name: FunctionName,
    /// The version.
    pub version: Version,
    /// Its bundle.
    pub digest: Digest,
    /// Its manifest, complete.
    pub manifest: Manifest,
    /// The version with which the function's present life began: another one after it was deleted
    /// and published again. What it keeps beside its code, its volumes, belongs to that life. `None`:
    /// the registry does not know of lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub born: Option<Version>,
}

impl Resolved {
    /// A resolved reference.
    pub fn new(name: FunctionName, version: Version, digest: Digest, manifest: Manifest) -> Self {
        Resolved { name, version, digest, manifest, born: None }
    }
}

/// A version that was stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// Its number.
    pub version: Version,
    /// Its digest.
    pub digest: Digest,
    /// `false` when it was the newest version already.
    pub new: bool,
}

/// One function in a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The function.
    pub name: FunctionName,
    /// The newest version.
    pub version: Version,
    /// Its digest.
    pub digest: Digest,
    /// Aliases and where they point.
    pub aliases: BTreeMap<String, Version>,
}

/// One version of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct VersionInfo {
    /// Its number.
    pub version: Version,
    /// Its digest. Two versions have the same when code was published again after another.
    pub digest: Digest,
    /// The size of its uncompressed tar, bytes, where the registry knows it.
    pub bytes: Option<u64>,
    /// When it was published, milliseconds since 1970, where the registry knows it.
    pub published_ms: Option<u64>,
}

impl VersionInfo {
    /// A version whose size and time are not known.
    pub fn new(version: Version, digest: Digest) -> Self {
        VersionInfo { version, digest, bytes: None, published_ms: None }
    }
}

/// A change in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RegistryEvent {
    /// A version was published.
    Published {
        /// The change's revision.
        revision: Revision,
        /// The function.
        name: FunctionName,
        /// The new newest version.
        version: Version,
        /// Its digest.
        digest: Digest,
    },
    /// A function was deleted.
    Deleted {
        /// The change's revision.
        revision: Revision,
        /// The function.
        name: FunctionName,
    },
    /// An alias was set or removed.
    Aliased {
        /// The change's revision.
        revision: Revision,
        /// The function.
        name: FunctionName,
        /// The alias.
        alias: String,
        /// Where it points now.
        version: Option<Version>,
    },
    /// Events before this revision were lost.
    Lagged {
        /// The revision to go on from.
        revision: Revision,
    },
}

impl RegistryEvent {
    /// The change's revision.
    pub fn revision(&self) -> Revision {
        match self {
            RegistryEvent::Published { revision, .. }
            | RegistryEvent::Deleted { revision, .. }
            | RegistryEvent::Aliased { revision, .. }
            | RegistryEvent::Lagged { revision } => *revision,
        }
    }
}
