//! Hands the catalogue's kinds of sandboxes to the laboratory.

use std::sync::Arc;

use openlambda_core::invocation::BoxError;
use openlambda_core::sandbox::SandboxFactory;
use openlambda_lab::live::{Kinds, LiveError, Place};
use parking_lot::Mutex;

use crate::Catalog;
use crate::catalog::{SandboxContext, SandboxOptions};
use crate::cli::progress::Pace;
use crate::error::{CliError, Result};
use crate::settings::Settings;

/// The kinds of a catalogue, as a cluster's workers would have them here.
pub(super) struct CatalogKinds<'a> {
    catalog: &'a Catalog,
    options: SandboxOptions,
    /// How far the measurement is, until it is over.
    pace: Mutex<Option<Pace>>,
}

impl CatalogKinds<'_> {
    pub(super) fn of(catalog: &Catalog) -> Result<CatalogKinds<'_>> {
        let options = Settings::of_cluster(None)?.config()?.worker.sandbox_options()?;
        let pace = Mutex::new(Some(Pace::start("measuring", "parts")));
        Ok(CatalogKinds { catalog, options, pace })
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

    fn is_over(&self, done: u64, all: u64) {
        let mut pace = self.pace.lock();
        if done < all
            && let Some(pace) = &*pace
        {
            pace.at(done, all);
        } else {
            // What is printed next needs the line.
            *pace = None;
        }
    }
}

impl From<LiveError> for CliError {
    fn from(error: LiveError) -> Self {
        match error {
            LiveError::Step { message, source: Some(source) } => {
                let by_the_call = match source.downcast_ref::<LiveError>() {
                    Some(LiveError::Kind(said)) => {
                        said.downcast_ref::<CliError>().is_some_and(CliError::is_by_the_call)
                    }
                    _ => false,
                };
                let error = CliError::caused(message, source);
                if by_the_call { error.by_the_call() } else { error }
            }
            // What the catalogue said, as it said it.
            LiveError::Kind(said) => match said.downcast::<CliError>() {
                Ok(said) => *said,
                Err(said) => CliError::new(said.to_string()),
            },
            other => CliError::new(other.to_string()),
        }
    }
}
