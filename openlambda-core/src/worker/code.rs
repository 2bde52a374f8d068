//! The folders behind the [code cache](crate::code_cache): fetching, unpacking, removing.
//!
//! A bundle is unpacked under a temporary name and then renamed to `code/<digest>` in the worker's
//! folder, so a folder with that name is complete.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::compile::is_source;
use super::lives::Lives;
use crate::failure::{Failure, FailureKind};
use crate::function::Digest;
use crate::manifest::Manifest;
use crate::registry::Registry;

/// Fetches and removes unpacked bundles.
#[derive(Debug)]
pub(super) struct CodeStore {
    root: PathBuf,
    registry: Arc<dyn Registry>,
    next: AtomicU64,
}

/// A bundle that was fetched.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) manifest: Manifest,
    /// What its files take, bytes.
    pub(super) bytes: u64,
    /// What those of them take that Python could import, bytes.
    pub(super) sources: u64,
}

impl CodeStore {
    /// Opens the store of the worker with this folder, empty: an earlier worker's bundles are
    /// removed, since a crash may have left any of them incomplete.
    pub(super) async fn open(state_dir: &Path, registry: Arc<dyn Registry>) -> io::Result<Self> {
        let root = state_dir.join("code");
        match tokio::fs::remove_dir_all(&root).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        tokio::fs::create_dir_all(&root).await?;
        Ok(CodeStore { root, registry, next: AtomicU64::new(0) })
    }

    /// What tells whose volumes are whose.
    pub(super) fn lives(&self) -> Lives {
        Lives::new(Arc::clone(&self.registry))
    }

    /// Where the bundle is once it is fetched.
    pub(super) fn folder(&self, digest: &Digest) -> PathBuf {
        self.root.join(digest.hex())
    }

    /// Fetches and unpacks a bundle, and reads its manifest.
    pub(super) async fn fetch(&self, digest: Digest) -> Result<Fetched, Failure> {
        let temporary = self.temporary();
        let fetched = self.fetch_into(digest, &temporary).await;
        if fetched.is_err() {
            let _ = tokio::fs::remove_dir_all(&temporary).await;
        }
        fetched
    }

    async fn fetch_into(&self, digest: Digest, temporary: &Path) -> Result<Fetched, Failure> {
        tokio::fs::create_dir(temporary).await.map_err(broken_folder)?;
        self.registry.fetch(&digest, temporary).await?;
        let (temporary, folder) = (temporary.to_owned(), self.folder(&digest));
        let read = move || {
            let manifest = Manifest::load(&temporary).map_err(|error| {
                Failure::new(FailureKind::StartFailed, crate::failure::chain(&error))
            })?;
            let mut sources = 0;
            let bytes = size_of(&temporary, &mut sources).map_err(broken_folder)?;
            std::fs::rename(&temporary, &folder).map_err(broken_folder)?;
            Ok(Fetched { manifest, bytes, sources })
        };
        tokio::task::spawn_blocking(read).await.map_err(|error| {
            Failure::new(FailureKind::Internal, format!("reading a bundle failed: {error}"))
        })?
    }

    /// Removes a bundle's folder.
    pub(super) async fn remove(&self, digest: Digest) {
        // Renamed first: a fetch of the same bundle may follow at once.
        let temporary = self.temporary();
        let removed = async {
            tokio::fs::rename(self.folder(&digest), &temporary).await?;
            tokio::fs::remove_dir_all(&temporary).await
        };
        if let Err(error) = removed.await {
            tracing::warn!(%digest, %error, "could not remove a bundle's folder");
        }
    }

    fn temporary(&self) -> PathBuf {
        self.root.join(format!("tmp-{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }
}

fn broken_folder(error: io::Error) -> Failure {
    Failure::new(FailureKind::StartFailed, format!("the worker's code folder fails: {error}"))
}

/// What all files take, bytes; adds to `sources` what Python's take.
fn size_of(folder: &Path, sources: &mut u64) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => size_of(&entry.path(), sources)?,
            false => metadata.len(),
        };
        if is_source(&entry.path(), &metadata) {
            *sources += metadata.len();
        }
    }
    Ok(bytes)
}
