//! The command line's one error type: a message for a person, which ends with the next step.

use std::fmt;
use std::process::ExitCode;

use openlambda_core::invocation::BoxError;
use openlambda_core::serving::identity::SecretError;

use crate::terminal::{plain, say};

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct CliError {
    message: String,
    source: Option<BoxError>,
    wrong_call: bool,
}

pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

impl CliError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        CliError { message: message.into(), source: None, wrong_call: false }
    }

    pub(crate) fn caused(message: impl Into<String>, source: impl Into<BoxError>) -> Self {
        CliError { message: message.into(), source: Some(source.into()), wrong_call: false }
    }

    /// The same, where what was asked for can be right nowhere: the exit status says so.
    pub(crate) fn by_the_call(self) -> Self {
        CliError { wrong_call: true, ..self }
    }

    #[cfg(feature = "bench")]
    pub(crate) fn is_by_the_call(&self) -> bool {
        self.wrong_call
    }

    /// 1: it failed; 2: it was called wrongly.
    pub(crate) fn status(&self) -> ExitCode {
        ExitCode::from(if self.wrong_call { 2 } else { 1 })
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CliError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

impl From<openlambda_core::config::ConfigError> for CliError {
    fn from(error: openlambda_core::config::ConfigError) -> Self {
        CliError::new(error.to_string())
    }
}

impl From<SecretError> for CliError {
    fn from(error: SecretError) -> Self {
        CliError::new(openlambda_core::failure::chain(&error))
    }
}

impl From<openlambda_core::format::FormatError> for CliError {
    fn from(error: openlambda_core::format::FormatError) -> Self {
        CliError::new(openlambda_core::failure::chain(&error))
    }
}

/// Says what was being done when something failed.
pub(crate) trait Context<T> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<BoxError>> Context<T> for std::result::Result<T, E> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| CliError::caused(message(), error))
    }
}

/// Prints an error with its causes, as every binary does before it fails.
pub(crate) fn print(program: &str, error: &CliError) {
    say!("{program}: {}", plain(&openlambda_core::failure::chain(error)));
}
