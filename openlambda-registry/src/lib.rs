//! OpenLambda's registries: where functions' bundles are kept.
//!
//! * [`dir`]: a folder of function folders. A changed file takes effect on the next call: for
//!   development.
//! * [`native`]: a store of our own with versions and aliases, embedded in a program
//!   ([`native::NativeRegistry`]) or served over gRPC by `ol-registry` ([`native::RemoteRegistry`]).
//!
//! A new kind implements [`Registry`](openlambda_core::registry::Registry) and passes the suite in
//! `openlambda_core::conformance::registry`.

#[cfg(feature = "dir")]
pub mod dir;
#[cfg(feature = "native")]
pub mod native;
