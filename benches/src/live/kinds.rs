//! The kinds of sandboxes that can be measured.

use std::path::PathBuf;
use std::sync::Arc;

use openlambda_core::invocation::BoxError;
use openlambda_core::sandbox::SandboxFactory;
use openlambda_core::time::SystemClock;
use openlambda_sandbox::sys::Spawner;

/// Kinds of sandboxes by their names, as a program has them.
pub trait Kinds: Send + Sync {
    /// The kind's own name; what is asked for may be another one, such as `auto`.
    ///
    /// # Errors
    ///
    /// There is no such kind, and what to ask for instead.
    fn name(&self, name: &str) -> Result<&'static str, BoxError>;

    /// Makes a factory of the kind that has this very name.
    ///
    /// # Errors
    ///
    /// The kind does not work here.
    fn build(&self, name: &str, place: Place) -> Result<Arc<dyn SandboxFactory>, BoxError>;

    /// Is told how much of a measurement is over, in parts that take about as long each.
    fn is_over(&self, done: u64, all: u64) {
        let _ = (done, all);
    }
}

/// What a factory is made of.
#[derive(Debug)]
#[non_exhaustive]
pub struct Place {
    /// A folder of its own.
    pub state_dir: PathBuf,
    /// What its processes and cgroups are marked with.
    pub mark: String,
    /// Starts processes.
    pub spawner: Arc<Spawner>,
    /// Where time comes from.
    pub clock: Arc<SystemClock>,
}
