//! What sandboxes cost on this machine: `ol bench`, for any kinds of sandboxes.
//!
//! | function | measures |
//! |---|---|
//! | [`starts`] | create → first answer of a function that does nothing → destroy |
//! | [`memory`] | what one more idle instance takes of the machine's memory, the kernel's part included |
//! | [`resumes`] | resume of a paused instance, and its next answer |
//! | [`soak`] | thousands of starts: what is left of them, and whether they get slower |
//!
//! What is compared takes turns within each round, since a machine's speed changes from minute to minute;
//! a ratio is the median of the rounds' ratios. The kinds are given by name, as [`Kinds`].

mod error;
mod figures;
mod kinds;
mod lab;
mod memory;
mod resume;
mod rootless;
mod runc;
mod side;
mod soak;
mod start;
mod turn;
mod turns;

pub use error::LiveError;
pub use kinds::{Kinds, Place};
pub use memory::{Memory, MemoryConfig, MemoryRatio, MemoryRow, memory};
pub use resume::{ResumeConfig, ResumeRatio, ResumeRow, Resumes, resumes};
pub use soak::{COUNTED, Counts, SoakConfig, Soaked, soak};
pub use start::{StartConfig, StartRatio, StartRow, Starts, starts};
pub use turns::turns;
