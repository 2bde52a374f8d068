//! What `ol up` is asked for, beside the cluster that runs already.
//!
//! Only what was said counts: by flags, and by a file that `--config` names, it is a demand; by the
//! environment and the folder's own `config.toml` it is a wish that holds for the next start. A cluster has
//! what `daemons.toml` says, which its supervisor wrote when it started; ports that were left free are
//! those that it got.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use openlambda_core::catalog::{Catalog as PartCatalog, Choice};
use toml::{Table, Value};

use crate::Catalog;
use crate::cluster::{ClusterState, DataDir};
use crate::error::{Context, Result};
use crate::settings::{Config, Origin, Setting, Settings};

/// What the cluster that runs has otherwise than it is asked for.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// What was demanded.
    pub(super) demands: Vec<String>,
    /// What would be otherwise after a start.
    pub(super) wishes: Vec<String>,
}

/// Compares `asked`, which is `settings` with nothing left open, with what runs in the folder.
///
/// `by_file`: the file of settings was named in the call.
pub(super) fn differences(
    settings: &Settings,
    asked: &Config,
    by_file: bool,
    dir: &DataDir,
    state: &ClusterState,
    catalog: &Catalog,
) -> Result<Differences> {
    let asked = Table::try_from(asked).context(|| "cannot compare the settings".to_owned())?;
    // A cluster of an early release has no such file; what it has is not known then.
    let Some(runs) = dir.daemons_table() else { return Ok(Differences::default()) };
    let mut found = Differences::default();
    for setting in settings.all() {
        let into = match setting.origin {
            Origin::Flag => &mut found.demands,
            Origin::File if by_file => &mut found.demands,
            Origin::Environment | Origin::File => &mut found.wishes,
            Origin::Default | Origin::Unset => continue,
        };
        let value = |table: &Table| table.get(setting.section)?.get(&setting.name).cloned();
        let Some(asked) = value(&asked) else { continue };
        if let Some(has) = differs(setting, &asked, value(&runs), state, catalog) {
            into.push(format!("{}: the cluster has {has}", said(setting, &asked)));
        }
    }
    Ok(found)
}

/// How the setting was said.
fn said(setting: &Setting, asked: &Value) -> String {
    let (place, value) = (setting.place.as_deref().unwrap_or_default(), plain(asked));
    match setting.origin {
        Origin::Flag => format!("{place} {value}"),
        Origin::Environment => format!("{place}={value}"),
        _ => format!("{} = {asked} in {place}", setting.name),
    }
}

/// What the cluster has instead, or `None` if it has what is asked for.
fn differs(
    setting: &Setting,
    asked: &Value,
    runs: Option<Value>,
    state: &ClusterState,
    catalog: &Catalog,
) -> Option<String> {
    let name = (setting.section, setting.name.as_str());
    if name == ("cluster", "secret_file") {
        let has = state.secret_file.as_ref().map(|file| file.display().to_string());
        return (has.as_deref() != asked.as_str()).then(|| has.unwrap_or_else(nothing));
    }
    let Some(runs) = runs else { return Some(nothing()) };
    let same = match name {
        ("balancer", "listen") => return address(asked, &runs, port(&state.url)),
        ("registry", "listen") => return address(asked, &runs, port(&state.registry.spec)),
        ("balancer", "policy") => same_choice(asked, &runs, catalog.policies()),
        ("worker", "keep_alive") => same_choice(asked, &runs, catalog.keep_alive_policies()),
        ("worker", "queue_policy") => same_choice(asked, &runs, catalog.queue_policies()),
        _ => number(asked).zip(number(&runs)).map_or(*asked == runs, |(a, b)| a == b),
    };
    (!same).then(|| plain(&runs))
}

fn nothing() -> String {
    "none".to_owned()
}

/// An address is as it was asked for if any port would do, or the one that it got was named.
fn address(asked: &Value, runs: &Value, got: Option<u16>) -> Option<String> {
    let parsed = |value: &Value| value.as_str()?.parse::<SocketAddr>().ok();
    let (Some(asked), Some(mut runs)) = (parsed(asked), parsed(runs)) else {
        return Some(plain(runs));
    };
    if let Some(port) = got {
        runs.set_port(port);
    }
    let same = asked.ip() == runs.ip() && (asked.port() == 0 || asked.port() == runs.port());
    (!same).then(|| runs.to_string())
}

fn port(url: &str) -> Option<u16> {
    url.rsplit_once(':')?.1.parse().ok()
}

/// A part is the same if its parameters are, also those that are left to their defaults.
fn same_choice<T: ?Sized>(asked: &Value, runs: &Value, catalog: &PartCatalog<T>) -> bool {
    let whole = |value: &Value| {
        let choice: Choice = value.as_str()?.parse().ok()?;
        let entry = catalog.entries().find(|entry| entry.name == choice.name)?;
        let parameter = |name: &str, default: &str| {
            let text = choice.parameters.get(name).map_or_else(|| default.to_owned(), plain);
            // 0.50 is 0.5.
            text.parse::<f64>().map_or(text, |number| number.to_string())
        };
        let parameters: BTreeMap<String, String> = entry
            .parameters
            .iter()
            .map(|info| (info.name.to_string(), parameter(&info.name, &info.default)))
            .collect();
        Some((choice.name, parameters))
    };
    asked == runs || whole(asked).is_some_and(|asked| Some(asked) == whole(runs))
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|number| number as f64))
}

/// A value without the quotes of a file.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
