//! Why a manifest is refused.

use std::io;

use thiserror::Error;

use super::names::MANIFEST_FILE;
use crate::config::ConfigError;

/// A folder that is no valid function.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// The text of `ol.toml` is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value is out of its range.
    #[error("{MANIFEST_FILE}: {0}")]
    Value(String),
    /// The files do not tell what the function is.
    #[error("{0}")]
    Unclear(String),
    /// The files cannot be read.
    #[error("cannot read the function's files")]
    Io(#[from] io::Error),
}
