//! The wrapper around a registry or a sandbox factory.

use std::sync::Arc;

use super::disturbance::{Disturbance, Operation, Permit, Trouble};
use crate::registry::Registry;
use crate::sandbox::SandboxFactory;
use crate::time::SystemClock;

/// A registry or a sandbox factory whose operations are disturbed. Its kind and its capabilities are those
/// of the wrapped one.
#[derive(Debug)]
pub struct Disturbed<T: ?Sized> {
    pub(super) inner: Arc<T>,
    pub(super) by: Arc<By>,
}

/// A disturbed [`Registry`].
pub type DisturbedRegistry = Disturbed<dyn Registry>;

/// A disturbed [`SandboxFactory`].
pub type DisturbedFactory = Disturbed<dyn SandboxFactory>;

/// A disturbance, and the operations that it applies to.
#[derive(Clone, Debug)]
pub(super) struct By {
    disturbance: Arc<dyn Disturbance>,
    only: Option<Vec<Operation>>,
    pub(super) clock: Arc<SystemClock>,
}

impl By {
    pub(super) async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        match &self.only {
            Some(only) if !only.contains(&operation) => Ok(Permit::default()),
            _ => self.disturbance.before(operation).await,
        }
    }
}

impl<T: ?Sized> Disturbed<T> {
    /// `inner`, with `disturbance` for all operations.
    pub fn new(inner: Arc<T>, disturbance: impl Disturbance) -> Self {
        let (disturbance, clock) = (Arc::new(disturbance), Arc::new(SystemClock::new()));
        let by = By { disturbance, only: None, clock };
        Disturbed { inner, by: Arc::new(by) }
    }

    /// The same for these operations alone. Sandboxes that were made before are not affected.
    pub fn only(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        Arc::make_mut(&mut self.by).only = Some(operations.into_iter().collect());
        self
    }
}
