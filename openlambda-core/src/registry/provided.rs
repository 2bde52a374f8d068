//! The provided methods of [`Registry`](super::Registry), for kinds that do not override them.

use std::io::{self, Read, Seek};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt;

use super::{Bundle, BundleStream, RegistryError};
use crate::bundle::{self, BundleError, Limits};
use crate::function::Digest;

impl Bundle {
    /// The bundle that an archive stands for: a tar from anybody, plain or gzipped. Blocks while it
    /// reads.
    ///
    /// # Errors
    ///
    /// [`BundleError`].
    pub fn of(archive: impl Read, limits: Limits) -> Result<Self, BundleError> {
        let mut tar = tempfile::tempfile().map_err(BundleError::Write)?;
        let packed = bundle::canonicalise(archive, limits, &mut tar)?;
        tar.rewind().map_err(BundleError::Write)?;
        let bundle::Packed { digest, manifest, bytes } = packed;
        Ok(Bundle { digest, manifest, bytes, tar })
    }
}

pub(super) async fn canonical(bundle: BundleStream) -> Result<Bundle, RegistryError> {
    blocking(move || Ok(Bundle::of(bundle::reader(bundle), Limits::default())?)).await
}

pub(super) async fn unpack(
    bundle: BundleStream,
    digest: &Digest,
    into: &Path,
) -> Result<(), RegistryError> {
    let lost = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&lost);
    let bundle = bundle.map_err(move |error| {
        let message = error.to_string();
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        io::Error::other(message)
    });
    let reader = bundle::reader(Box::pin(bundle));
    let (digest, into) = (*digest, into.to_owned());
    let unpacked = blocking(move || Ok(bundle::unpack(reader, &digest, &into)?)).await;
    // What the stream says explains a bundle that is cut short.
    let lost = lost.lock().unwrap_or_else(PoisonError::into_inner).take();
    lost.map_or(unpacked, |error| Err(RegistryError::of_stream(error)))
}

/// Runs blocking work on a thread for it. The work goes on to its end even if the caller stops waiting.
///
/// # Errors
///
/// Those of `work`; [`RegistryError::Storage`] when it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(RegistryError::storage(error)))
}
