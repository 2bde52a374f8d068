//! The suites that every implementation of a trait runs, ours and yours.
//!
//! A suite is a function that takes a maker of fresh values and panics, saying what was promised and
//! what happened, when a promise of the trait's documentation is broken. What an implementation
//! cannot do by its nature it declares; then the suite demands that it says so in its errors.

pub mod balancing;
pub mod registry;
pub mod sandbox;
