//! Hands the catalogue's kinds of sandboxes to the laboratory.

use std::sync::Arc;

use openlambda_core::invocation::BoxError;
use openlambda_core::sandbox::SandboxFactory;
use openlambda_lab::live::{Kinds, LiveError, Place};

use crate::Catalog;
use crate::catalog::{SandboxContext, SandboxOptions};
use crate::error::{CliError, Result};
use crate::settings::Settings;

/// The kinds of a catalogue, as a cluster's workers would have them here.
pub(super) struct CatalogKinds<'a> {
    catalog: &'a Catalog,
    options: SandboxOptions,
}

impl CatalogKinds<'_> {
    pub(super) fn of(catalog: &Catalog) -> Result<CatalogKinds<'_>> {
        let options = Settings::of_cluster(None)?.config()?.worker.sandbox_options()?;
        Ok(CatalogKinds { catalog, options })
    }
}

impl Kinds for CatalogKinds<'_> {
    fn name(&self, name: &str) -> Result<&'static str, BoxError> {
        let entry = self.catalog.sandbox_entry(name, &self.options);
        // One that is named need only be known; whether it works is seen later.
        let named = |error: CliError| if name == "auto" { error } else { error.by_the_call() };
        Ok(entry.map_err(named)?.name)
    }

    fn build(&self, name: &str, place: Place) -> Result<Arc<dyn SandboxFactory>, BoxError> {
        let entry = self.catalog.sandbox_entry(name, &self.options)?;
        (entry.build)(SandboxContext {
            volumes_dir: place.state_dir.join("volumes"),
            state_dir: place.state_dir,
            mark: place.mark,
            spawner: place.spawner,
            clock: place.clock,
            options: self.options.clone(),
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
