//! Why something is no bundle: [`BundleError`].

use std::io;

use thiserror::Error;

use crate::failure::chain;
use crate::function::Digest;
use crate::manifest::ManifestError;
use crate::registry::RegistryError;

/// Why something is no bundle.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundleError {
    /// An entry is refused.
    #[error("\"{path}\" {why}")]
    Entry {
        /// The entry's path, as the archive names it.
        path: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// It is too large as a whole.
    #[error("{0}")]
    TooLarge(String),
    /// Its manifest is not valid, or the files do not tell what to run.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its bytes are not those that the digest names.
    #[error("the bundle is damaged: it has the digest {found}, not {wanted}")]
    Damaged {
        /// The digest that was asked for.
        wanted: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The archive, or the folder, cannot be read.
    #[error("the bundle cannot be read")]
    Read(#[source] io::Error),
    /// The result cannot be written.
    #[error("the bundle cannot be written")]
    Write(#[source] io::Error),
}

impl From<BundleError> for RegistryError {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::Write(_) | BundleError::Damaged { .. } => {
                RegistryError::Storage(error.into())
            }
            _ => RegistryError::BadBundle { reason: chain(&error) },
        }
    }
}

pub(super) fn refuse(path: &str, why: impl Into<String>) -> BundleError {
    BundleError::Entry { path: path.to_owned(), why: why.into() }
}
