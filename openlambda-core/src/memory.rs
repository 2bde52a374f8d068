//! In-memory implementations of the traits, for embedding and tests.

mod sandbox;

pub use sandbox::{MemoryFunction, MemorySandboxFactory};
