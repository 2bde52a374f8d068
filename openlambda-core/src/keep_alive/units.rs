//! Units of cost and size, for the policies that weigh one against the other.

use std::time::Duration;

/// Costs of starts, as the policies that weigh them against memory count them.
pub(super) fn milliseconds(cost: Duration) -> f64 {
    cost.as_secs_f64() * 1e3
}

/// Sizes in the same. What takes no memory counts as a byte, so that it can be divided by.
pub(super) fn mebibytes(memory: u64) -> f64 {
    memory.max(1) as f64 / (1 << 20) as f64
}
