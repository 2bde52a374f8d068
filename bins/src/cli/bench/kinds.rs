//! The catalogue's kinds of sandboxes, as the laboratory takes them.

use std::sync::Arc;

use openlambda_core::invocation::BoxError;
use openlambda_core::sandbox::SandboxFactory;
use openlambda_lab::live::{Kinds, LiveError, Place};

use crate::Catalog;
use crate::catalog::SandboxContext;
use crate::error::CliError;

impl Kinds for Catalog {
    fn name(&self, name: &str) -> Result<&'static str, BoxError> {
        Ok(self.sandbox_entry(name)?.name)
    }

    fn build(&self, name: &str, place: Place) -> Result<Arc<dyn SandboxFactory>, BoxError> {
        (self.sandbox_entry(name)?.build)(SandboxContext {
            volumes_dir: place.state_dir.join("volumes"),
            state_dir: place.state_dir,
            mark: place.mark,
            spawner: place.spawner,
            clock: place.clock,
        })
    }
}

impl From<LiveError> for CliError {
    fn from(error: LiveError) -> Self {
        match error {
            LiveError::Step { message, source: Some(source) } => CliError::caused(message, source),
            // What the catalogue said, as it said it.
            LiveError::Kind(said) => match said.downcast::<CliError>() {
                Ok(said) => *said,
                Err(said) => CliError::new(said.to_string()),
            },
            other => CliError::new(other.to_string()),
        }
    }
}
