//! The suites that every implementation of a trait runs, ours and others'.
//!
//! Each is a function that panics with what is wrong; call it from a test.

pub mod balancing;
