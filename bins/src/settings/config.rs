//! All sections of the configuration together.

use std::path::Path;

use openlambda_core::config::explain;
use serde::Serialize;
use toml::Table;

use super::allow::AllowSettings;
use super::balancer::BalancerSettings;
use super::cluster::ClusterSettings;
use super::errors::ErrorSettings;
use super::file;
use super::given::Given;
use super::program::{Program, Registry, Up};
use super::registry::RegistrySettings;
use super::section::{Known, Section};
use super::setting::{Origin, Setting};
use super::worker::WorkerSettings;
use crate::error::{CliError, Result};

/// Whether a setting is a time, or goes with one.
pub(crate) fn is_time(name: &str) -> bool {
    name.ends_with("_seconds")
}

/// Whether a setting chooses a policy of workers.
pub(crate) fn is_policy(name: &str) -> bool {
    ["worker.keep_alive", "worker.queue_policy"].contains(&name)
}

/// Everything that can be set, by what it concerns.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Config {
    pub(crate) cluster: ClusterSettings,
    pub(crate) balancer: BalancerSettings,
    pub(crate) worker: WorkerSettings,
    pub(crate) registry: RegistrySettings,
    pub(crate) errors: ErrorSettings,
    pub(crate) allow: AllowSettings,
}

/// The settings of one program, and where each comes from.
#[derive(Debug)]
pub(crate) struct Settings {
    all: Vec<Setting>,
}

impl Settings {
    /// What the program was given, completed from the file that it names, or from this one.
    ///
    /// # Errors
    ///
    /// That the file cannot be read, or which line of it is wrong.
    pub(crate) fn complete<P: Program>(given: Given<P>, file: Option<&Path>) -> Result<Settings> {
        let file = match given.file().or(file) {
            Some(path) => file::read::<P>(path)?,
            None => Vec::new(),
        };
        let settle = |known: Known| {
            let same = |setting: &&Setting| known.is(setting.section, &setting.name);
            let told = given.settings().iter().chain(&file).find(same).cloned();
            told.unwrap_or_else(|| {
                let value = known.default.clone();
                let origin = if value.is_some() { Origin::Default } else { Origin::Unset };
                known.setting(value, origin, None)
            })
        };
        Ok(Settings { all: P::known().into_iter().map(settle).collect() })
    }

    /// Those of a cluster without flags: what the environment and this file say, and the defaults.
    ///
    /// # Errors
    ///
    /// As [`complete`](Self::complete), and a variable whose value cannot be.
    pub(crate) fn of_cluster(file: Option<&Path>) -> Result<Settings> {
        Settings::complete(Given::<Up>::by_environment()?, file)
    }

    /// Those that `ol up` wrote down for its daemons in this file.
    ///
    /// # Errors
    ///
    /// As [`complete`](Self::complete).
    pub(crate) fn of_daemons(file: &Path) -> Result<Settings> {
        Settings::complete(Given::<Registry>::by_environment()?, Some(file))
    }

    /// The error, as one of the call if a flag or a variable says one of the settings that it is about:
    /// those for which this holds, by `section.name`. Else it is the file's.
    pub(crate) fn blame(&self, error: CliError, about: impl Fn(&str) -> bool) -> CliError {
        let by_the_call = self.all.iter().any(|setting| {
            let said = matches!(setting.origin, Origin::Flag | Origin::Environment);
            said && about(&format!("{}.{}", setting.section, setting.name))
        });
        if by_the_call { error.by_the_call() } else { error }
    }

    pub(crate) fn all(&self) -> &[Setting] {
        &self.all
    }

    /// The settings as the types that programs use.
    ///
    /// # Errors
    ///
    /// None that [`complete`](Self::complete) has not found already.
    pub(crate) fn config(&self) -> Result<Config> {
        Ok(Config {
            cluster: self.section()?,
            balancer: self.section()?,
            worker: self.section()?,
            registry: self.section()?,
            errors: self.section()?,
            allow: self.section()?,
        })
    }

    fn section<S: Section>(&self) -> Result<S> {
        let of_it = self.all.iter().filter(|setting| setting.section == S::NAME);
        let table: Table = of_it
            .filter_map(|setting| Some((setting.name.clone(), setting.value.clone()?)))
            .collect();
        table.try_into().map_err(|error: toml::de::Error| {
            CliError::new(format!("[{}]: {}", S::NAME, explain(error.message())))
        })
    }

    /// A file for `--config` that says all of this, each line told where it comes from if `origins`.
    /// The sections are told by tables where there are several.
    pub(crate) fn to_file(&self, origins: bool) -> String {
        let line = |setting: &Setting| match &setting.value {
            Some(value) => format!("{} = {value}", setting.name),
            None => format!("# {} is not set", setting.name),
        };
        let width = self.all.iter().map(|setting| line(setting).chars().count()).max().unwrap_or(0);
        let one = self.all.iter().all(|setting| setting.section == self.all[0].section);
        let (mut text, mut section) = (String::new(), "");
        for setting in &self.all {
            if !one && setting.section != section {
                section = setting.section;
                text.push_str(&format!("\n[{section}]\n"));
            }
            match setting.origin_text().filter(|_| origins) {
                Some(origin) => {
                    text.push_str(&format!("{:<width$}  # {origin}\n", line(setting)));
                }
                None => text.push_str(&format!("{}\n", line(setting))),
            }
        }
        text
    }
}
