//! OpenLambda's registries: where functions' bundles are kept.
//!
//! * [`dir`]: a folder of function folders. A changed file takes effect on the next call: for
//!   development.
//! * [`native`]: the project's own store, with versions and aliases, embedded in a program
//!   ([`native::NativeRegistry`]) or served over gRPC by `ol-registry` ([`native::RemoteRegistry`]).
//!
//! A new kind implements [`Registry`](openlambda_core::registry::Registry), or brings a
//! [`Shelf`](openlambda_core::registry::kit::Shelf), and passes the suite in
//! `openlambda_core::conformance::registry`.

#[cfg(feature = "dir")]
pub mod dir;
#[cfg(feature = "native")]
pub mod native;

#[cfg(any(feature = "dir", feature = "native"))]
use openlambda_core::registry::RegistryError;

/// Runs what blocks for the disk on a thread that may. It goes on when the caller does not.
#[cfg(any(feature = "dir", feature = "native"))]
async fn blocking<S: Send + Sync + 'static, T: Send + 'static>(
    shared: &std::sync::Arc<S>,
    work: impl FnOnce(&S) -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let shared = std::sync::Arc::clone(shared);
    openlambda_core::registry::blocking(move || work(&shared)).await
}
