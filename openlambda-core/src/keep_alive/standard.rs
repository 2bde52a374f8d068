//! The catalogue of keep-alive policies.

use std::time::Duration;

use super::{
    DEFAULT_TTL, KeepAliveCatalog, KeepAliveMaker, Ttl, freq, greedy_dual, histogram, landlord,
    lru, size, ttl,
};
use crate::catalog::{CENTURY, Catalog, Choice};

/// What a catalogue of these calls them.
pub const KIND: &str = "keep-alive policy";

/// The default policy of a worker.
pub const DEFAULT: &str = "ttl";

/// The policies of this module. Add your own with [`Catalog::register`].
pub fn standard() -> KeepAliveCatalog {
    Catalog::of(
        KIND,
        [
            ttl::entry(),
            lru::entry(),
            freq::entry(),
            size::entry(),
            landlord::entry(),
            greedy_dual::entry(),
            histogram::entry(),
        ],
    )
}

/// The policy [`DEFAULT`], without parameters.
pub fn default() -> KeepAliveMaker {
    KeepAliveMaker::new(DEFAULT, || Box::new(Ttl::new(DEFAULT_TTL)))
}

/// The same choice, with `ttl` as the time of the policy `ttl` unless it is given: the setting
/// `ttl_seconds` of a worker. Times over a century count as one.
#[must_use]
pub fn or_ttl(choice: Choice, ttl: Duration) -> Choice {
    match &*choice.name {
        "ttl" => choice.or("seconds", ttl.as_secs_f64().min(CENTURY)),
        _ => choice,
    }
}
