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
#[derive(Debug)]
pub(super) struct By {
    disturbance: Box<dyn Disturbance>,
    only: Option<Vec<Operation>>,
    pub(super) clock: SystemClock,
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
        let disturbance = Box::new(disturbance);
        let by = By { disturbance, only: None, clock: SystemClock::new() };
        Disturbed { inner, by: Arc::new(by) }
    }

    /// The same in the way of these operations alone. Call it before sandboxes are made.
    pub fn only(self, operations: impl IntoIterator<Item = Operation>) -> Self {
        let Disturbed { inner, mut by } = self;
        if let Some(by) = Arc::get_mut(&mut by) {
            by.only = Some(operations.into_iter().collect());
        }
        Disturbed { inner, by }
    }
}
