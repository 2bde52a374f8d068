//! Your own parts, three of them, in a crate outside of OpenLambda's workspace.
//!
//! | file | what | built from |
//! |---|---|---|
//! | `balancing.rs` | [`HomeWhileFree`], a balancing policy | `openlambda_lb::policies::parts` |
//! | `keep_alive.rs` | [`Doubling`], a keep-alive policy | `openlambda_core::keep_alive` |
//! | `sandbox.rs` | [`tables`], a kind of sandbox | `openlambda_core::sandbox::kit` |
//! | `main.rs` | a live cluster and a simulated one with all of them | |
//! | `tests/` | each part tested against its contract | `openlambda_core::conformance` |

mod balancing;
mod keep_alive;
mod sandbox;

pub use balancing::HomeWhileFree;
pub use keep_alive::Doubling;
pub use sandbox::tables;
