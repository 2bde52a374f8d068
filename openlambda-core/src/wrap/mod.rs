//! Wrappers for experiments: a registry, or a kind of sandbox, that is slow, that fails, or that has
//! a limit.
//!
//! [`Disturbed`] applies a [`Disturbance`] to another [`Registry`](crate::registry::Registry) or
//! [`SandboxFactory`](crate::sandbox::SandboxFactory), and is one itself, so wrappers can be wrapped:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use openlambda_core::memory::MemoryRegistry;
//! use openlambda_core::wrap::{Delay, Disturbed, DisturbedRegistry, Faulty, Operation, Slow};
//!
//! // Far away, and one bundle in a hundred does not come.
//! let slow = Slow::by(Delay::Exponential { mean: Duration::from_millis(20) }, 7);
//! let registry: DisturbedRegistry = Disturbed::new(Arc::new(MemoryRegistry::new()), slow);
//! let registry: DisturbedRegistry = Disturbed::new(Arc::new(registry), Faulty::new(0.01, 7));
//! let registry = registry.only([Operation::Fetch, Operation::Get]);
//! ```
//!
//! A wrapper's draws depend on its kind, its seed, the operation, and how many of that operation came
//! before: the tenth `fetch` is treated the same in every run, whatever runs beside it. Which operations
//! are slow is independent of which fail, also under one seed; give two wrappers of one kind two seeds.
//!
//! | operation | what happens when it is disturbed |
//! |---|---|
//! | of a registry | fails with [`RegistryError::Unavailable`](crate::registry::RegistryError::Unavailable) before the registry is called |
//! | [`Create`](Operation::Create), [`Zygote`](Operation::Zygote) | fails with [`Resources`] before anything is made |
//! | [`Invoke`](Operation::Invoke) | the instance is destroyed before its handler gets the call, which fails with [`Exited`]; where only a limit is exceeded, with [`Busy`] |
//!
//! Operations that change nothing and wait for nothing (`watch`, `exited`, `destroy` …) are not disturbed.
//!
//! [`Resources`]: crate::sandbox::SandboxErrorKind::Resources
//! [`Exited`]: crate::sandbox::SandboxErrorKind::Exited
//! [`Busy`]: crate::sandbox::SandboxErrorKind::Busy

mod disturbance;
mod disturbed;
mod draws;
mod faulty;
mod limited;
mod registry;
mod sandbox;
mod slow;

pub use disturbance::{Disturbance, Operation, Permit, Trouble};
pub use disturbed::{Disturbed, DisturbedFactory, DisturbedRegistry};
pub use faulty::Faulty;
pub use limited::Limited;
pub use slow::{Delay, Slow};
