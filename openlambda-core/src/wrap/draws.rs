//! Seeded randomness, independent for each operation.

use std::sync::atomic::{AtomicU64, Ordering};

use super::disturbance::Operation;
use crate::hash::{mix, stable_hash};
use crate::random::Rng;

/// How many operations there are.
const OPERATIONS: usize = Operation::Invoke as usize + 1;

/// Draws for the operations, independent of their order among each other.
#[derive(Debug)]
pub(super) struct Draws {
    seed: u64,
    counts: [AtomicU64; OPERATIONS],
}

impl Draws {
    /// `kind` tells apart wrappers that have the same seed.
    pub(super) fn new(kind: &str, seed: u64) -> Self {
        let seed = stable_hash(seed, kind.as_bytes());
        Draws { seed, counts: [const { AtomicU64::new(0) }; OPERATIONS] }
    }

    pub(super) fn next(&self, operation: Operation) -> Rng {
        let n = self.counts[operation as usize].fetch_add(1, Ordering::Relaxed);
        Rng::from_seed(mix(mix(self.seed, operation as u64), n))
    }
}
