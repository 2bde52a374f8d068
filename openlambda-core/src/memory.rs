//! In-memory implementations of the traits, for embedding and tests.

mod registry;
mod sandbox;

pub use registry::{MemoryRegistry, MemoryShelf};
pub use sandbox::{MemoryFunction, MemorySandboxFactory};
