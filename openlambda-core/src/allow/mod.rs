//! `[allow]`: what the operator lets functions ask for and take, for the cluster and by namespace.
//!
//! ```text
//!                      Allow: [allow], [allow.namespace.NAME]
//!                        │                          │
//!   ol deploy ─▶ registry: is the manifest      worker: again, before it makes a sandbox
//!                within the bounds?             (the bundle may be older than the bound, or
//!                no: refused, with key, line    come from a registry without bounds)
//!                and bound
//! ```
//!
//! Quotas are of what all functions of a namespace take together: [`Allow::check_stored`] in a registry.
//!
//! [`Allow::check`] compares a manifest with the bounds of its namespace. It is pure: the registry, the
//! worker's core and the simulator ask the same function. A bound that a namespace does not have for
//! itself is the cluster's; a bound that nobody has set is that of the manifest's own rules.

mod check;
mod stored;
mod values;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use check::Refused;
pub use stored::{OverQuota, Stored};
pub use values::BadBound;

use crate::manifest::Network;

/// The bounds of a cluster, and those of its namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allow {
    /// For each namespace that has no bound of its own, `[allow]`.
    #[serde(flatten)]
    pub all: Bounds,
    /// The bounds of one namespace, `[allow.namespace.NAME]`. `None` in them is the bound in `all`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub namespace: BTreeMap<String, Bounds>,
}

/// Upper bounds. `None`: there is none of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// What a manifest's `network` may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<Vec<Network>>,
    /// The largest `memory_mb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// The largest `processes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// The largest `cpus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// The largest `tmp_mb`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp_mb: Option<u64>,
    /// The largest `timeout_seconds`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// The largest `pause_after_seconds`. `"never"` is more than any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_after_seconds: Option<f64>,
    /// The largest `concurrency`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// The largest `max_instances`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instances: Option<u32>,
    /// The largest `[environment]`, KiB: all names and values together, and two bytes for each variable,
    /// as [`Manifest::environment_bytes`](crate::manifest::Manifest::environment_bytes) says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment_kb: Option<u64>,
    /// The most `[[volumes]]` of one function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<u32>,
    /// Where volumes may be: at one of these absolute paths, or below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_places: Option<Vec<String>>,
    /// The largest bundle, MiB: its uncompressed tar, which is what it takes in a registry, and on a
    /// worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_mb: Option<u64>,
    /// The most different bundles of the namespace in the registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundles: Option<u64>,
    /// What these bundles may take together, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_mb: Option<u64>,
    /// The most versions of all functions of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub versions: Option<u64>,
    /// The share of each worker's memory pool that the namespace's instances may take together: 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_share: Option<f64>,
    /// The most calls of the namespace that wait on one worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_calls: Option<u32>,
    /// The most calls of the namespace a second on one worker, after a second's worth at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_per_second: Option<f64>,
    /// What the logs of the namespace's functions may take on one worker, MiB: the oldest lines go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_mb: Option<u64>,
    /// What the bodies of the namespace's waiting calls may take on each worker, MiB, of what the worker
    /// has for all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_mb: Option<u64>,
}

impl Allow {
    /// The networks that manifests may ask for unless the operator says otherwise. Not `host`, by which
    /// a function reaches what listens on its worker's machine: workers, the registry.
    pub const NETWORKS: [Network; 2] = [Network::None, Network::Bridge];

    /// Whatever a manifest can say, `network = "host"` too: for programs that run their own functions.
    pub fn everything() -> Self {
        let networks = Some(vec![Network::None, Network::Bridge, Network::Host]);
        Allow { all: Bounds { networks, ..Bounds::default() }, namespace: BTreeMap::new() }
    }

    /// What the bodies of a namespace's waiting calls may take on a worker, bytes.
    pub fn waiting_bytes(&self, namespace: &str) -> Option<u64> {
        let (most, _) = self.bound(namespace, |bounds| bounds.waiting_mb)?;
        Some(most.saturating_mul(1 << 20))
    }

    /// What the logs of a namespace may take on a worker, bytes.
    pub fn log_bytes(&self, namespace: &str) -> Option<u64> {
        let (most, _) = self.bound(namespace, |bounds| bounds.log_mb)?;
        Some(most.saturating_mul(1 << 20))
    }

    /// The quotas of calls of a namespace, those of the cluster where it has none of its own; all else is
    /// `None`.
    pub(crate) fn of_calls(&self, namespace: &str) -> Bounds {
        let calls = self.bound(namespace, |bounds| bounds.waiting_calls);
        let rate = self.bound(namespace, |bounds| bounds.calls_per_second);
        let share = self.bound(namespace, |bounds| bounds.memory_share);
        Bounds {
            waiting_calls: calls.map(|(most, _)| most),
            calls_per_second: rate.map(|(most, _)| most),
            memory_share: share.map(|(most, _)| most),
            ..Bounds::default()
        }
    }

    /// A bound of a namespace, and the table of the configuration that it stands in.
    fn bound<T>(&self, namespace: &str, of: impl Fn(&Bounds) -> Option<T>) -> Option<(T, Table)> {
        match self.namespace.get(namespace).and_then(&of) {
            Some(bound) => Some((bound, Table::OfNamespace)),
            None => Some((of(&self.all)?, Table::OfAll)),
        }
    }
}

/// The table of the configuration that a bound stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    OfAll,
    OfNamespace,
}

impl Table {
    fn of(self, namespace: &str) -> String {
        match self {
            Table::OfAll => "[allow]".to_owned(),
            Table::OfNamespace => format!("[allow.namespace.{namespace}]"),
        }
    }
}

impl Default for Allow {
    /// No bound but [`Allow::NETWORKS`].
    fn default() -> Self {
        let networks = Some(Self::NETWORKS.to_vec());
        Allow { all: Bounds { networks, ..Bounds::default() }, namespace: BTreeMap::new() }
    }
}
