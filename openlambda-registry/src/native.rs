//! The native registry: a store with versions, aliases, and a stream of changes.
//!
//! * [`Store`] keeps everything in one folder and survives kill −9; it does no networking.
//! * [`NativeRegistry`] is the [`Registry`](openlambda_core::registry::Registry) over a store in the
//!   same program.
//! * [`serve`] serves one over gRPC (`ol-registry`), and [`RemoteRegistry`] is the client. The protocol is
//!   in `proto/registry.proto`.

mod client;
mod protocol;
mod registry;
mod server;
mod store;
mod verified;

pub use client::RemoteRegistry;
pub use registry::NativeRegistry;
pub use server::{ServeConfig, serve};
pub use store::{Checked, Rebuilt, STORE_FORMAT, Store, StoreError};

/// For how long a name's meaning may be used without asking again by one who watches: a change is
/// told within milliseconds, and a watch that breaks is noticed. This bounds the rest.
const CACHE_FOR: std::time::Duration = std::time::Duration::from_secs(30);
