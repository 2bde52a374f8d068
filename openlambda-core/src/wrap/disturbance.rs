//! The trait of what disturbs operations: [`Disturbance`].

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;

/// Delays or fails operations.
#[async_trait]
pub trait Disturbance: fmt::Debug + Send + Sync + 'static {
    /// Called before an operation, which begins when this has returned. The permit is dropped when
    /// the operation is over, or given up.
    ///
    /// # Errors
    ///
    /// [`Trouble`]: the operation fails.
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble>;
}

/// Lets a program keep a handle to a disturbance, to inspect or change it while it is in use.
#[async_trait]
impl<D: Disturbance + ?Sized> Disturbance for Arc<D> {
    async fn before(&self, operation: Operation) -> Result<Permit, Trouble> {
        (**self).before(operation).await
    }
}

/// What is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// [`Registry::put`](crate::registry::Registry::put).
    Put,
    /// [`Registry::get`](crate::registry::Registry::get), to the end of the stream.
    Get,
    /// [`Registry::resolve`](crate::registry::Registry::resolve).
    Resolve,
    /// [`Registry::list`](crate::registry::Registry::list).
    List,
    /// [`Registry::delete`](crate::registry::Registry::delete).
    Delete,
    /// [`Registry::publish`](crate::registry::Registry::publish).
    Publish,
    /// [`Registry::fetch`](crate::registry::Registry::fetch).
    Fetch,
    /// [`Registry::versions`](crate::registry::Registry::versions).
    Versions,
    /// [`Registry::set_alias`](crate::registry::Registry::set_alias).
    SetAlias,
    /// [`SandboxFactory::create`](crate::sandbox::SandboxFactory::create).
    Create,
    /// [`SandboxFactory::create_zygote`](crate::sandbox::SandboxFactory::create_zygote).
    Zygote,
    /// [`Sandbox::invoke`](crate::sandbox::Sandbox::invoke), until its reply is done or dropped.
    Invoke,
}

/// Why an operation fails.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Trouble {
    /// An injected fault.
    #[error("a fault was injected into {0:?}; an experiment asked for it")]
    Fault(Operation),
    /// The limit of operations at once is reached.
    #[error("{at_once} of {operation:?} run at once, which is the limit; try again")]
    Full {
        /// What was to be done.
        operation: Operation,
        /// The limit.
        at_once: usize,
    },
}

/// The right to do an operation; what it holds is given back when it is dropped.
#[derive(Debug, Default)]
pub struct Permit {
    _place: Option<OwnedSemaphorePermit>,
}

impl Permit {
    /// Holds the place until it is dropped.
    pub(super) fn with(place: OwnedSemaphorePermit) -> Self {
        Permit { _place: Some(place) }
    }
}
