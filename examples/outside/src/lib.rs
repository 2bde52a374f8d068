//! Three parts of one's own, from outside of OpenLambda's workspace.
//!
//! | file | what | it is made of |
//! |---|---|---|
//! | `balancing.rs` | [`HomeWhileFree`], a balancing policy | `openlambda_lb::policies::parts` |
//! | `keep_alive.rs` | [`Doubling`], a keep-alive policy | `openlambda_core::keep_alive` |
//! | `sandbox.rs` | [`tables`], a kind of sandbox | `openlambda_core::sandbox::kit` |
//! | `main.rs` | a live cluster and a simulated one with all of them | |
//! | `tests/` | each part held to its contract | `openlambda_core::conformance` |

mod balancing;
mod keep_alive;
mod sandbox;

pub use balancing::HomeWhileFree;
pub use keep_alive::Doubling;
pub use sandbox::tables;
