//! In-memory implementations of the traits, for embedding and tests.
//!
//! [`EventLog`] is the part of them that implementations with a disk use too.

mod event_log;
mod registry;
mod sandbox;

pub use event_log::EventLog;
pub use registry::MemoryRegistry;
pub use sandbox::{MemoryFunction, MemorySandboxFactory};
