//! What the balancer answers beside calls.

mod registry;

pub use self::registry::Admin;
