//! The provided methods of [`Registry`](super::Registry), for kinds that do not override them.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use super::{Bundle, BundleStream, RegistryError};
use crate::bundle::{self, BundleError, Limits, Pace};
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
        let bundle::Packed { digest, manifest, bytes, .. } = packed;
        Ok(Bundle { digest, manifest, bytes, tar })
    }
}

pub(super) async fn canonical(bundle: BundleStream) -> Result<Bundle, RegistryError> {
    let archive = upload(bundle).await?;
    blocking(move || Ok(Bundle::of(archive, Limits::default())?)).await
}

/// A bundle that somebody sends, as a file: for kinds that publish in their own way. No thread waits
/// for it, and it has to come at [some pace](bundle::Pace).
///
/// # Errors
///
/// [`RegistryError::BadBundle`] says why it did not come.
pub async fn upload(bundle: BundleStream) -> Result<File, RegistryError> {
    let spooled = bundle::spool(bundle, Limits::default(), Pace::default()).await;
    spooled.map_err(|error| match error.downcast::<RegistryError>() {
        Ok(told) => told,
        Err(error) => RegistryError::BadBundle {
            reason: format!("the bundle cannot be read: {}", crate::failure::chain(&error)),
        },
    })
}

pub(super) async fn unpack(
    bundle: BundleStream,
    digest: &Digest,
    into: &Path,
) -> Result<(), RegistryError> {
    let spooled = bundle::spool(bundle, Limits::default(), Pace::default()).await;
    let bundle = spooled.map_err(RegistryError::of_stream)?;
    let (digest, into) = (*digest, into.to_owned());
    let unpack = move || {
        bundle::unpack(bundle, &digest, &into).map_err(|error| match error {
            BundleError::Write(_) => error.into(),
            // What a registry keeps was looked through when it came.
            _ => RegistryError::damaged(&digest),
        })
    };
    blocking(unpack).await
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
