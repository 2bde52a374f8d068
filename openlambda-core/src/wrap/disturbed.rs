//! The wrapper around a registry or a sandbox factory.

use std::sync::Arc;

use super::disturbance::{Disturbance, Operation, Permit, Trouble};
use crate::registry::Registry;
use crate::sandbox::SandboxFactory;
use crate::time::SystemClock;

/// A registry or a sandbox factory with something in the way. Its kind and its capabilities are those
/// of what is wrapped.
#[derive(Debug)]
pub struct Disturbed<T: ?Sized> {
    pub(super) inner: Arc<T>,
    pub(super) by: Arc<By>,
}

/// A [`Registry`] with something in the way.
pub type DisturbedRegistry = Disturbed<dyn Registry>;

/// A [`SandboxFactory`] with something in the way.
pub type DisturbedFactory = Disturbed<dyn SandboxFactory>;

/// What is in the way, and of what.
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
    /// `inner`, with `disturbance` in the way of all operations.
    pub fn new(inner: Arc<T>, disturbance: impl Disturbance) -> Self {
        let (disturbance, clock) = (Arc::new(disturbance), Arc::new(SystemClock::new()));
        let by = By { disturbance, only: None, clock };
        Disturbed { inner, by: Arc::new(by) }
    }

    /// The same in the way of these operations alone. For sandboxes that were made before, nothing
    /// changes.
    pub fn only(mut self, operations: impl IntoIterator<Item = Operation>) -> Self {
        Arc::make_mut(&mut self.by).only = Some(operations.into_iter().collect());
        self
    }
}
