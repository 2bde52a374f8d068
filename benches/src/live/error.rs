//! Why a measurement failed.

use openlambda_core::invocation::BoxError;
use thiserror::Error;

/// Why a measurement failed; the message ends with the next step.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// A step failed.
    #[error("{message}")]
    Step {
        /// Which, and what to do.
        message: String,
        /// Why.
        source: Option<BoxError>,
    },
    /// A kind of sandbox is not available: the error of [`Kinds`](super::Kinds).
    #[error(transparent)]
    Kind(BoxError),
}

pub(super) type Result<T, E = LiveError> = std::result::Result<T, E>;

impl LiveError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        LiveError::Step { message: message.into(), source: None }
    }
}

/// Says what was being done when something failed.
pub(super) trait Context<T> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<BoxError>> Context<T> for std::result::Result<T, E> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| LiveError::Step { message: message(), source: Some(error.into()) })
    }
}
