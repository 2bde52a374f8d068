//! How much a client may ask for: [`Limits`].

use std::time::Duration;

/// A body of a known length up to this is read before the worker is chosen, and can be sent again.
pub(super) const KEPT_BODY: u64 = 64 << 10;

/// How long the client may take to send such a body.
pub(super) const BODY_PATIENCE: Duration = Duration::from_secs(30);

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
