//! How much clients may ask for: [`Limits`] of one call, [`Places`] for all.

use std::time::Duration;

use openlambda_core::failure::{Failure, FailureKind};
use tokio::sync::{Semaphore, SemaphorePermit};

/// A body of a known length up to this is read before the worker is chosen, and can be sent again.
pub(super) const KEPT_BODY: u64 = 64 << 10;

/// How long the client may take to send such a body, beside a second for each [`SLOWEST`] bytes that came.
pub(super) const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// How many bytes a second of a body have to come.
pub(super) const SLOWEST: u64 = 256;

/// The most headers of a request. A worker takes 100, and some are added on the way.
pub(super) const MOST_HEADERS: usize = 90;

/// What one call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The largest body, bytes.
    pub(crate) body: u64,
    /// How long the worker may be silent, beside the function's own time limit.
    pub(crate) silence: Duration,
}

/// Places for the calls that are answered at once, over all connections.
#[derive(Debug)]
pub(crate) struct Places(Semaphore);

impl Places {
    pub(crate) fn new(most_calls: usize) -> Self {
        Places(Semaphore::new(most_calls.min(Semaphore::MAX_PERMITS)))
    }

    /// A place until the drop of what is returned. A call too many is refused at once instead of queued.
    ///
    /// # Errors
    ///
    /// That all are taken.
    pub(super) fn enter(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.0.try_acquire().map_err(|_| {
            let message = "the balancer has too many calls at once; try again in a moment";
            Failure::new(FailureKind::NoWorker, message)
        })
    }
}
