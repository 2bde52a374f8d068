//! The programs that have settings: `ol up` and the daemons.

use std::collections::BTreeSet;

use toml::Value;

use super::allow::AllowSettings;
use super::balancer::BalancerSettings;
use super::cluster::ClusterSettings;
use super::errors::ErrorSettings;
use super::registry::RegistrySettings;
use super::section::{Known, Section};
use super::worker::WorkerSettings;

/// A program that is given settings.
pub(crate) trait Program: Send + Sync + 'static {
    /// Its name on a command line.
    const NAME: &'static str;

    /// The section whose keys may stand in a file outside of any table before those of others.
    const OWN: &'static str;

    /// What can be given to it, in the order in which it is shown.
    fn known() -> Vec<Known>;
}

/// `ol up`: everything but what it decides itself for each of its daemons.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Up;

/// `ol-worker`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Worker;

/// `ol-lb`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Balancer;

/// `ol-registry`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registry;

impl Program for Up {
    const NAME: &'static str = "ol up";
    const OWN: &'static str = ClusterSettings::NAME;

    fn known() -> Vec<Known> {
        let free = |known: Known| match (known.section, &*known.name) {
            // A cluster for experiments repeats itself, and its registry is its own affair.
            (BalancerSettings::NAME, "seed") => known.with_default(Value::Integer(0)),
            (RegistrySettings::NAME, "listen") => known.with_default("127.0.0.1:0".into()),
            _ => known,
        };
        let mut known: Vec<Known> = everything().into_iter().map(free).collect();
        known.retain(|known| !known.of_one);
        // Two daemons have the same setting: the second is told by a flag that names it.
        let mut taken = BTreeSet::from(["config".to_owned()]);
        for known in &mut known {
            let long = known.argument.get_long().unwrap_or_default().to_owned();
            let argument = known.argument.clone().id(format!("{}.{}", known.section, known.name));
            known.argument = match taken.insert(long.clone()) {
                true => argument,
                false => argument.long(format!("{}-{long}", known.section)),
            }
            .help_heading(match known.section {
                ClusterSettings::NAME => "Cluster",
                BalancerSettings::NAME => "Balancer",
                WorkerSettings::NAME => "Workers",
                ErrorSettings::NAME => "What callers are told",
                AllowSettings::NAME => "What functions may ask for",
                _ => "Registry",
            });
        }
        known
    }
}

impl Program for Worker {
    const NAME: &'static str = "ol-worker";
    const OWN: &'static str = WorkerSettings::NAME;

    fn known() -> Vec<Known> {
        with_bounds(Known::of::<WorkerSettings>())
    }
}

impl Program for Balancer {
    const NAME: &'static str = "ol-lb";
    const OWN: &'static str = BalancerSettings::NAME;

    fn known() -> Vec<Known> {
        let mut known = Known::of::<BalancerSettings>();
        known.extend(Known::of::<ErrorSettings>());
        with_bounds(known)
    }
}

impl Program for Registry {
    const NAME: &'static str = "ol-registry";
    const OWN: &'static str = RegistrySettings::NAME;

    fn known() -> Vec<Known> {
        with_bounds(Known::of::<RegistrySettings>())
    }
}

/// Every setting of every section.
pub(crate) fn everything() -> Vec<Known> {
    let mut known = Known::of::<ClusterSettings>();
    known.extend(Known::of::<BalancerSettings>());
    known.extend(Known::of::<WorkerSettings>());
    known.extend(Known::of::<RegistrySettings>());
    known.extend(Known::of::<ErrorSettings>());
    with_bounds(known)
}

/// What the operator allows: registry, balancer and worker each keep to it.
fn with_bounds(mut known: Vec<Known>) -> Vec<Known> {
    known.extend(Known::of::<AllowSettings>().into_iter().map(|mut bound| {
        // A worker has a `memory_mb` of its own.
        bound.argument = bound.argument.id(format!("{}.{}", bound.section, bound.name));
        bound
    }));
    known
}

/// The environment's variables that are settings.
pub(crate) fn variables() -> BTreeSet<std::ffi::OsString> {
    everything().iter().filter_map(|known| Some(known.argument.get_env()?.to_owned())).collect()
}
