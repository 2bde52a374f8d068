//! Who has changed what: [`AuditLog`], and a registry that writes to it, [`Audited`].
//!
//! A line of JSON for each change that was made, in a file of bounded size ([`LogFile`]): keys are only
//! added. Requests that were refused are not in it, or a stranger could fill it with them.
//!
//! ```json
//! {"time_ms":1767225600000,"change":"publish","function":"hello","version":2,
//!  "digest":"sha256:…","old_version":1,"old_digest":"sha256:…","by":"uid 1000, ol deploy","from":"127.0.0.1:40112"}
//! ```

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_core::stream::BoxStream;
use parking_lot::Mutex;
use serde::Serialize;

use crate::function::{Digest, FunctionName, FunctionRef, Qualifier, Version};
use crate::json_lines;
use crate::registry::{
    Bundle, BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved,
    Revision, VersionInfo,
};
use crate::serving::LogFile;
use crate::time::{Clock, SystemClock};

/// The most bytes of one file; one older file is kept beside it.
const MOST_BYTES: u64 = 16 << 20;

/// A file of changes. Clones write to the same one.
#[derive(Clone, Debug)]
pub struct AuditLog {
    file: Arc<Mutex<LogFile>>,
    clock: Arc<SystemClock>,
    path: Arc<PathBuf>,
}

/// Who makes a change, and from where; both as text for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    /// The user or program, as far as it has said.
    pub by: String,
    /// The address of its connection.
    pub from: String,
}

/// One change.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "change", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change<'a> {
    /// A version was published; by a rollback, too, whose digest is an earlier version's.
    Publish {
        /// The function.
        function: &'a FunctionName,
        /// The new version.
        version: Version,
        /// Its bundle.
        digest: Digest,
        /// The newest version before.
        old_version: Option<Version>,
        /// Its bundle.
        old_digest: Option<Digest>,
    },
    /// A function was removed with all its versions.
    Delete {
        /// The function.
        function: &'a FunctionName,
        /// The newest version that it had.
        old_version: Option<Version>,
        /// Its bundle.
        old_digest: Option<Digest>,
    },
    /// An alias was set, moved or removed.
    Alias {
        /// The function.
        function: &'a FunctionName,
        /// The alias.
        alias: &'a str,
        /// Where it points now.
        version: Option<Version>,
        /// The bundle that it means now.
        digest: Option<Digest>,
        /// Where it pointed.
        old_version: Option<Version>,
        /// The bundle that it meant.
        old_digest: Option<Digest>,
    },
    /// A worker has announced itself, or another start or address of it.
    Announce {
        /// Its name.
        worker: &'a str,
        /// Where it is called.
        address: &'a str,
        /// Which start of it this is.
        incarnation: u64,
    },
}

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    #[serde(flatten)]
    change: &'a Change<'a>,
    by: &'a str,
    from: &'a str,
}

impl AuditLog {
    /// Appends to the file at `path`, which is made if it is not there, and is for its user alone. Several
    /// processes may write to one file.
    ///
    /// # Errors
    ///
    /// The file cannot be opened; it is a link, no file, or another user's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = LogFile::private(path, MOST_BYTES)?;
        let (file, path) = (Arc::new(Mutex::new(file)), Arc::new(path.to_owned()));
        Ok(AuditLog { file, clock: Arc::new(SystemClock::new()), path })
    }

    /// Writes a change down. What cannot be written is in the process's own log.
    pub fn write(&self, actor: &Actor, change: &Change<'_>) {
        let Actor { by, from } = actor;
        let line = Line { time_ms: self.clock.unix_millis(), change, by, from };
        let line = json_lines::line(&line);
        if let Err(error) = self.file.lock().write_all(&line) {
            let line = String::from_utf8_lossy(&line).into_owned();
            tracing::error!(%error, path = %self.path.display(), line, "cannot write the audit log");
        }
    }
}

/// A registry that writes to an [`AuditLog`] what is changed through it.
///
/// What was there before is looked up first, so of two changes of one name at the same time each may tell
/// the same past.
#[derive(Clone)]
pub struct Audited {
    inner: Arc<dyn Registry>,
    log: AuditLog,
    actor: Actor,
}

impl Audited {
    /// `inner`, as `actor` changes it.
    pub fn new(inner: Arc<dyn Registry>, log: AuditLog, actor: Actor) -> Self {
        Audited { inner, log, actor }
    }

    async fn digest_of(&self, name: &FunctionName, version: Option<Version>) -> Option<Digest> {
        self.meaning(name, Qualifier::Version(version?)).await.1
    }

    async fn newest(&self, name: &FunctionName) -> (Option<Version>, Option<Digest>) {
        self.meaning(name, Qualifier::Latest).await
    }

    async fn meaning(
        &self,
        name: &FunctionName,
        qualifier: Qualifier,
    ) -> (Option<Version>, Option<Digest>) {
        let reference = FunctionRef { name: name.clone(), qualifier };
        self.inner.resolve(&reference).await.map(|known| (known.version, known.digest)).ok().unzip()
    }

    fn published(
        &self,
        function: &FunctionName,
        before: (Option<Version>, Option<Digest>),
        published: &Published,
    ) {
        let (old_version, old_digest) = before;
        let Published { version, digest, new, .. } = *published;
        // The same code once more changes nothing.
        if new {
            let change = Change::Publish { function, version, digest, old_version, old_digest };
            self.log.write(&self.actor, &change);
        }
    }
}

/// Makes a change to its end and writes it down, whether or not anybody waits for it any more: a client that
/// leaves in the middle cannot have one that is not written down.
async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, RegistryError>> + Send + 'static,
) -> Result<T, RegistryError> {
    tokio::spawn(change).await.map_err(RegistryError::storage)?
}

impl fmt::Debug for Audited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audited").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Registry for Audited {
    fn kind(&self) -> &'static str {
        self.inner.kind()
    }

    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        let (this, name) = (self.clone(), name.clone());
        whole(async move {
            let before = this.newest(&name).await;
            let published = this.inner.put(&name, bundle).await?;
            this.published(&name, before, &published);
            Ok(published)
        })
        .await
    }

    async fn publish(
        &self,
        name: &FunctionName,
        bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let (this, name) = (self.clone(), name.clone());
        whole(async move {
            let before = this.newest(&name).await;
            let published = this.inner.publish(&name, bundle).await?;
            this.published(&name, before, &published);
            Ok(published)
        })
        .await
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let (this, name) = (self.clone(), name.clone());
        whole(async move {
            let (old_version, old_digest) = this.newest(&name).await;
            this.inner.delete(&name).await?;
            let change = Change::Delete { function: &name, old_version, old_digest };
            this.log.write(&this.actor, &change);
            Ok(())
        })
        .await
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let (this, name, alias) = (self.clone(), name.clone(), alias.to_owned());
        whole(async move {
            // That it points to `expected` is what the change depends on.
            let digest = this.digest_of(&name, version).await;
            let old_digest = this.digest_of(&name, expected).await;
            this.inner.set_alias(&name, &alias, version, expected).await?;
            if version == expected {
                return Ok(());
            }
            let (function, alias, old_version) = (&name, &*alias, expected);
            let change =
                Change::Alias { function, alias, version, digest, old_version, old_digest };
            this.log.write(&this.actor, &change);
            Ok(())
        })
        .await
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        self.inner.get(digest).await
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        self.inner.resolve(reference).await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        self.inner.list().await
    }

    async fn fetch(&self, digest: &Digest, into: &Path) -> Result<(), RegistryError> {
        self.inner.fetch(digest, into).await
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
