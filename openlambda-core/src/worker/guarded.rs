//! Catches panics of sandboxes and registries, which may be code from outside: a panic fails one call,
//! and reaches the core as any other failure does.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use crate::failure::{Failure, FailureKind};

/// Runs code that may come from outside. `what` names it in the failure that its panic becomes.
pub(super) async fn guarded<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Failure> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| {
        let message = format!("{what} panicked; the worker's log says where");
        Failure::new(FailureKind::Internal, message)
    })
}
