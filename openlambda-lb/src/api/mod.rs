//! What the balancer answers beside calls.

mod admin;
mod internal;
mod operate;
mod registry;

pub use self::admin::Admin;
pub(crate) use self::internal::Internal;
pub(crate) use self::operate::{Operate, Report};
pub(crate) use self::registry::RegistryApi;
