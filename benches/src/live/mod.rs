//! What sandboxes cost on this machine: `ol bench`, for any kinds of sandboxes.
//!
//! | function | measures |
//! |---|---|
//! | [`starts`] | create → first answer of a function that does nothing → destroy |
//! | [`memory`] | how much of the machine's memory one more idle instance takes, the kernel's part included |
//! | [`resumes`] | the time to resume a paused instance and get its next answer |
//! | [`soak`] | thousands of starts: what they leave behind, and whether they get slower |
//!
//! The compared sides take turns within each round, since a machine's speed changes from minute to minute;
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
