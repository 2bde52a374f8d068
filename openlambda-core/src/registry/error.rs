//! What goes wrong in a registry.

use std::io;

use thiserror::Error;

use crate::failure::{Failure, FailureKind};
use crate::function::{Digest, Version};

/// What went wrong in a registry.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No such function, version, alias or digest.
    #[error("there is no {what}; `ol ls` shows what there is")]
    NotFound {
        /// What was looked for: `function "echo"`, `version 3 of echo`.
        what: String,
    },
    /// The bundle is refused, with the reason.
    #[error("the bundle is refused: {reason}")]
    BadBundle {
        /// Why, and what to do.
        reason: String,
    },
    /// The operator does not allow it, with the key, the bound and the next step.
    #[error("the bundle is not allowed: {reason}")]
    NotAllowed {
        /// What was asked for, and what is allowed.
        reason: String,
    },
    /// An alias does not point where the caller believes.
    #[error("alias {alias} points to {} now; read it and try again", at.map_or("nothing".to_owned(), |version| format!("version {version}")))]
    Conflict {
        /// The alias.
        alias: String,
        /// Where it points.
        at: Option<Version>,
    },
    /// This kind of registry cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The registry cannot be reached.
    #[error("the registry cannot be reached")]
    Unavailable(#[source] crate::invocation::BoxError),
    /// What the registry has acknowledged is not there, or is not what it was. Nobody who calls or deploys is
    /// to blame.
    #[error("the registry's {what}")]
    Damaged {
        /// What is damaged, and what to do: `copy of bundle sha256:… is damaged or missing; deploy …`.
        what: String,
    },
    /// The registry's storage failed.
    #[error("the registry's storage failed")]
    Storage(#[source] crate::invocation::BoxError),
}

impl RegistryError {
    /// The storage failed so.
    pub fn storage(error: impl Into<crate::invocation::BoxError>) -> Self {
        RegistryError::Storage(error.into())
    }

    /// The copy of the bundle with this digest is damaged or missing.
    pub fn damaged(digest: &Digest) -> Self {
        let what = format!(
            "copy of bundle {digest} is damaged or missing; deploy that code again, which heals it"
        );
        RegistryError::Damaged { what }
    }

    /// What broke off a [`BundleStream`](super::BundleStream) that came from a registry.
    pub fn of_stream(error: io::Error) -> Self {
        error.downcast().unwrap_or_else(|error| RegistryError::Unavailable(error.into()))
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Failure {
        let kind = match &error {
            RegistryError::NotFound { .. } => FailureKind::NotFound,
            RegistryError::BadBundle { .. } | RegistryError::Conflict { .. } => {
                FailureKind::BadRequest
            }
            RegistryError::NotAllowed { .. } => FailureKind::Forbidden,
            RegistryError::Unsupported(_) => FailureKind::BadRequest,
            RegistryError::Unavailable(_)
            | RegistryError::Damaged { .. }
            | RegistryError::Storage(_) => FailureKind::RegistryUnavailable,
        };
        Failure::new(kind, crate::failure::chain(&error))
    }
}
