//! The counts of calls that `/stats` shows: [`Stats`].

use std::sync::atomic::{AtomicU64, Ordering};

use openlambda_core::failure::{Failure, FailureKind};

/// What the balancer counts.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    calls: AtomicU64,
    /// In the order of [`FailureKind::ALL`].
    failures: [AtomicU64; FailureKind::ALL.len()],
}

impl Stats {
    /// A call was answered.
    pub(crate) fn answered(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// A call was answered with this failure.
    pub(crate) fn failed(&self, failure: &Failure) {
        if let Some(place) = FailureKind::ALL.iter().position(|kind| *kind == failure.kind) {
            self.failures[place].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Calls that were answered, also with a failure.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// The failures there were, and how often.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (FailureKind, u64)> {
        let counts = self.failures.iter().map(|count| count.load(Ordering::Relaxed));
        FailureKind::ALL.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }
}
