//! What the operator lets functions ask for.

use std::collections::BTreeMap;

use clap::Args;
use openlambda_core::allow::{Allow, BadBound, Bounds};
use openlambda_core::manifest::Network;
use serde::{Deserialize, Deserializer, Serialize};

use super::section::Section;

/// `[allow]`, and `[allow.namespace.NAME]` for the namespaces that have bounds of their own.
#[derive(Args, Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AllowSettings {
    /// Network that manifests may ask for: none, bridge or host, by which a function reaches what
    /// listens on its worker's machine; may be given more than once
    #[arg(long = "allow-network", value_name = "NETWORK", value_parser = network, hide_short_help = true)]
    networks: Vec<Network>,
    /// The largest memory_mb of a manifest
    #[arg(long = "allow-memory-mb", value_name = "MIB", hide_short_help = true)]
    memory_mb: Option<u64>,
    /// The largest processes of a manifest
    #[arg(long = "allow-processes", value_name = "COUNT", hide_short_help = true)]
    processes: Option<u32>,
    /// The largest cpus of a manifest
    #[arg(long = "allow-cpus", value_name = "COUNT", hide_short_help = true)]
    cpus: Option<f64>,
    /// The largest tmp_mb of a manifest
    #[arg(long = "allow-tmp-mb", value_name = "MIB", hide_short_help = true)]
    tmp_mb: Option<u64>,
    /// The largest timeout_seconds of a manifest
    #[arg(long = "allow-timeout-seconds", value_name = "SECONDS", hide_short_help = true)]
    timeout_seconds: Option<f64>,
    /// The largest pause_after_seconds of a manifest; "never" is more than any
    #[arg(long = "allow-pause-after-seconds", value_name = "SECONDS", hide_short_help = true)]
    pause_after_seconds: Option<f64>,
    /// The largest concurrency of a manifest
    #[arg(long = "allow-concurrency", value_name = "COUNT", hide_short_help = true)]
    concurrency: Option<u32>,
    /// The largest max_instances of a manifest
    #[arg(long = "allow-max-instances", value_name = "COUNT", hide_short_help = true)]
    max_instances: Option<u32>,
    /// The largest environment of a manifest, names and values together, KiB
    #[arg(long = "allow-environment-kb", value_name = "KIB", hide_short_help = true)]
    environment_kb: Option<u64>,
    /// The most volumes of a manifest
    #[arg(long = "allow-volumes", value_name = "COUNT", hide_short_help = true)]
    volumes: Option<u32>,
    /// Path at or below which volumes may be mounted; may be given more than once [default: anywhere]
    #[arg(long = "allow-volume-place", value_name = "PATH", hide_short_help = true)]
    volume_places: Option<Vec<String>>,
    /// The largest bundle, unpacked, MiB
    #[arg(long = "allow-bundle-mb", value_name = "MIB", hide_short_help = true)]
    bundle_mb: Option<u64>,
    /// The most different bundles of a namespace in the native registry
    #[arg(long = "allow-bundles", value_name = "COUNT", hide_short_help = true)]
    bundles: Option<u64>,
    /// What a namespace's bundles may take in the native registry, unpacked, MiB
    #[arg(long = "allow-stored-mb", value_name = "MIB", hide_short_help = true)]
    stored_mb: Option<u64>,
    /// The most versions of a namespace's functions together in the native registry
    #[arg(long = "allow-versions", value_name = "COUNT", hide_short_help = true)]
    versions: Option<u64>,
    /// The share of each worker's memory pool that a namespace's instances may take: 0.5 is half of it
    #[arg(long = "allow-memory-share", value_name = "SHARE", hide_short_help = true)]
    memory_share: Option<f64>,
    /// The most calls of a namespace that wait on each worker
    #[arg(long = "allow-waiting-calls", value_name = "COUNT", hide_short_help = true)]
    waiting_calls: Option<u32>,
    /// The most calls of a namespace a second on each worker, after a second's worth at once
    #[arg(long = "allow-calls-per-second", value_name = "COUNT", hide_short_help = true)]
    calls_per_second: Option<f64>,
    /// What the logs of a namespace's functions may take on each worker, MiB; the oldest go
    #[arg(long = "allow-log-mb", value_name = "MIB", hide_short_help = true)]
    log_mb: Option<u64>,
    /// What the bodies of a namespace's waiting calls may take on each worker, MiB
    #[arg(long = "allow-waiting-mb", value_name = "MIB", hide_short_help = true)]
    waiting_mb: Option<u64>,
    /// Bounds of single namespaces, in a file as tables [allow.namespace.NAME]; as a flag in TOML:
    /// {students = {memory_mb = 256}}
    #[arg(long = "allow-namespace", value_name = "TOML", value_parser = namespaces, hide_short_help = true)]
    #[serde(deserialize_with = "table_or_text", skip_serializing_if = "BTreeMap::is_empty")]
    namespace: BTreeMap<String, Bounds>,
}

impl Section for AllowSettings {
    const NAME: &'static str = "allow";

    fn check(&self) -> Result<(), String> {
        let checked = self.allow().check_values();
        checked.map_err(|BadBound { key, table, message }| match table.as_str() {
            // Whoever reports it names the key.
            "[allow]" | "[allow.namespace]" => message,
            _ => format!("{key}: {message}"),
        })
    }
}

impl Default for AllowSettings {
    fn default() -> Self {
        let Allow { all, namespace } = Allow::default();
        AllowSettings {
            networks: all.networks.unwrap_or_default(),
            memory_mb: all.memory_mb,
            processes: all.processes,
            cpus: all.cpus,
            tmp_mb: all.tmp_mb,
            timeout_seconds: all.timeout_seconds,
            pause_after_seconds: all.pause_after_seconds,
            concurrency: all.concurrency,
            max_instances: all.max_instances,
            environment_kb: all.environment_kb,
            volumes: all.volumes,
            volume_places: all.volume_places,
            bundle_mb: all.bundle_mb,
            bundles: all.bundles,
            stored_mb: all.stored_mb,
            versions: all.versions,
            memory_share: all.memory_share,
            waiting_calls: all.waiting_calls,
            calls_per_second: all.calls_per_second,
            log_mb: all.log_mb,
            waiting_mb: all.waiting_mb,
            namespace,
        }
    }
}

impl AllowSettings {
    /// What the library is told.
    pub(crate) fn allow(&self) -> Allow {
        let all = Bounds {
            networks: Some(self.networks.clone()),
            memory_mb: self.memory_mb,
            processes: self.processes,
            cpus: self.cpus,
            tmp_mb: self.tmp_mb,
            timeout_seconds: self.timeout_seconds,
            pause_after_seconds: self.pause_after_seconds,
            concurrency: self.concurrency,
            max_instances: self.max_instances,
            environment_kb: self.environment_kb,
            volumes: self.volumes,
            volume_places: self.volume_places.clone(),
            bundle_mb: self.bundle_mb,
            bundles: self.bundles,
            stored_mb: self.stored_mb,
            versions: self.versions,
            memory_share: self.memory_share,
            waiting_calls: self.waiting_calls,
            calls_per_second: self.calls_per_second,
            log_mb: self.log_mb,
            waiting_mb: self.waiting_mb,
        };
        Allow { all, namespace: self.namespace.clone() }
    }
}

fn network(text: &str) -> Result<Network, String> {
    let network = toml::Value::String(text.to_owned()).try_into();
    network.map_err(|error: toml::de::Error| error.message().to_owned())
}

/// A flag's text as the table that a file has.
fn namespaces(text: &str) -> Result<BTreeMap<String, Bounds>, String> {
    #[derive(Deserialize)]
    struct Text {
        namespace: BTreeMap<String, Bounds>,
    }
    let read: Result<Text, _> = toml::from_str(&format!("namespace = {text}"));
    read.map(|text| text.namespace).map_err(|error| error.message().to_owned())
}

fn table_or_text<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, Bounds>, D::Error> {
    use serde::de::Error;
    match toml::Value::deserialize(from)? {
        toml::Value::String(text) => namespaces(&text).map_err(Error::custom),
        table => table.try_into().map_err(|error: toml::de::Error| Error::custom(error.message())),
    }
}
