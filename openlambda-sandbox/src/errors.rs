//! Errors that several kinds of sandboxes share.

use openlambda_core::failure::FunctionError;
use openlambda_core::invocation::BoxError;
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind};

pub(crate) fn unsupported(message: impl Into<String>) -> SandboxError {
    SandboxError::new(SandboxErrorKind::Unsupported, message)
}

pub(crate) fn resources(what: &str, error: impl Into<BoxError>) -> SandboxError {
    SandboxError::new(SandboxErrorKind::Resources, format!("the sandbox cannot be made: {what}"))
        .with_source(error)
}

pub(crate) fn shutting_down() -> SandboxError {
    let message = "the sandbox cannot be made: the worker is shutting down; use another worker";
    SandboxError::new(SandboxErrorKind::Resources, message)
}

pub(crate) fn init_error(kind: &str, message: impl Into<String>) -> SandboxError {
    let message = message.into();
    let error = FunctionError {
        message: message.clone(),
        kind: kind.to_owned(),
        ..FunctionError::default()
    };
    SandboxError::new(SandboxErrorKind::Init, message).with_function_error(error)
}
