//! The simulated functions, as registry and balancers know them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::hash::stable_hash;
use openlambda_core::manifest::Manifest;
use openlambda_core::scheduler::Limits;

use super::config::SimConfig;
use crate::workload::Profile;

/// Names, bundles and manifests of all functions.
#[derive(Debug)]
pub(super) struct Functions {
    functions: Vec<Function>,
    /// What is in a bundle; by its digest, since functions may share it.
    manifests: BTreeMap<Digest, Arc<Manifest>>,
}

#[derive(Debug)]
struct Function {
    name: FunctionName,
    version: Version,
    digest: Digest,
    package: Option<u32>,
    cold_start: Duration,
    manifest: Arc<Manifest>,
}

impl Functions {
    pub(super) fn new(config: &SimConfig, profiles: &[Profile]) -> Self {
        // Most functions have the same manifest: it is there once.
        let mut alike: BTreeMap<(u64, Option<u32>), Arc<Manifest>> = BTreeMap::new();
        let mut manifests = BTreeMap::new();
        let functions = profiles.iter().enumerate().map(|(n, profile)| {
            let memory = profile.memory.unwrap_or(config.limits.memory);
            let manifest = alike.entry((memory, profile.package)).or_insert_with(|| {
                let limits = Limits { memory, ..config.limits };
                Arc::new(manifest_of(&limits, profile.package))
            });
            let name = match config.namespaces {
                0 | 1 => format!("f{n}"),
                namespaces => format!("n{}/f{n}", n as u32 % namespaces),
            };
            let name: FunctionName = name.parse().expect("letters and digits");
            let digest = match profile.package {
                // What a worker pulls is the package. A bundle has one manifest, so functions share it
                // where that is the same.
                Some(package) => digest_of(&format!("{} {memory}", package_name(package))),
                None => digest_of(name.name()),
            };
            manifests.insert(digest, manifest.clone());
            Function {
                name,
                version: Version(1),
                digest,
                package: profile.package,
                cold_start: profile.cold_start.unwrap_or(config.cold_start),
                manifest: manifest.clone(),
            }
        });
        let functions = functions.collect();
        Functions { functions, manifests }
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.functions.len() as u32
    }

    pub(super) fn name(&self, function: u32) -> &FunctionName {
        &self.functions[function as usize].name
    }

    pub(super) fn version(&self, function: u32) -> Version {
        self.functions[function as usize].version
    }

    /// The newest version's bundle.
    pub(super) fn digest(&self, function: u32) -> Digest {
        self.functions[function as usize].digest
    }

    /// What is in a bundle.
    pub(super) fn manifest(&self, digest: &Digest) -> &Arc<Manifest> {
        &self.manifests[digest]
    }

    /// The function as balancers know it.
    pub(super) fn manifest_of(&self, function: u32) -> &Arc<Manifest> {
        &self.functions[function as usize].manifest
    }

    pub(super) fn cold_start(&self, function: u32) -> Duration {
        self.functions[function as usize].cold_start
    }

    /// A new version of the function is published.
    pub(super) fn release(&mut self, function: u32) {
        let of = &mut self.functions[function as usize];
        of.version = Version(of.version.0 + 1);
        let package = of.package.map(package_name).unwrap_or_default();
        of.digest = digest_of(&format!("{} {} {package}", of.name.name(), of.version.0));
        self.manifests.insert(of.digest, of.manifest.clone());
    }
}

fn manifest_of(limits: &Limits, package: Option<u32>) -> Manifest {
    Manifest {
        memory_mb: limits.memory.div_ceil(1 << 20),
        concurrency: limits.slots,
        max_instances: limits.max_instances,
        queue: limits.queue,
        timeout_seconds: limits.timeout.as_secs_f64(),
        reuse: limits.reuse,
        packages: package.map(package_name).into_iter().collect(),
        ..Manifest::default()
    }
}

fn digest_of(text: &str) -> Digest {
    let mut bytes = [0; 32];
    for (part, n) in bytes.chunks_exact_mut(8).zip(0..) {
        part.copy_from_slice(&stable_hash(n, text.as_bytes()).to_le_bytes());
    }
    Digest::from_bytes(bytes)
}

fn package_name(package: u32) -> String {
    format!("p{package}")
}
