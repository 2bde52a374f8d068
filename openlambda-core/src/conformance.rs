//! The suites that every implementation of a trait runs.

pub mod sandbox;
