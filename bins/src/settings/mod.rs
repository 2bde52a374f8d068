//! One configuration for a cluster and each of its daemons: [`Config`].
//!
//! ```text
//!  flags  >  environment  >  file  >  defaults
//!                              │
//!     [cluster] [balancer] [worker] [registry], the same for every program
//! ```
//!
//! A section is a struct ([`ClusterSettings`] and so on): its fields are the keys of its table in a file,
//! its `clap` arguments are the flags and variables, its `Default` is what holds where nothing is said.
//! So a setting is written down once. A [`Program`] is `ol up` or a daemon: which settings can be given
//! to it, under which flags. [`Given`] is what one was given on its command line and by its environment;
//! [`Settings`] is all of it together, with where each value comes from.
//!
//! `ol up` checks everything before it starts anything, and hands its daemons a file with what came out.

mod balancer;
mod cluster;
mod file;
mod given;
mod limits;
mod program;
mod registry;
mod seconds;
mod section;
mod worker;

use std::path::Path;

use serde::Serialize;
use toml::{Table, Value};

pub(crate) use self::balancer::BalancerSettings;
pub(crate) use self::cluster::{ClusterSettings, WORKERS};
pub(crate) use self::given::Given;
pub(crate) use self::limits::{check as check_limits, check_balancer, check_worker};
pub(crate) use self::program::{Balancer, Program, Registry, Up, Worker, variables};
pub(crate) use self::registry::RegistrySettings;
pub(crate) use self::seconds::Seconds;
use self::section::{Known, Section};
pub(crate) use self::worker::WorkerSettings;
use crate::error::{CliError, Result};

/// Everything that can be set, by what it concerns.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Config {
    pub(crate) cluster: ClusterSettings,
    pub(crate) balancer: BalancerSettings,
    pub(crate) worker: WorkerSettings,
    pub(crate) registry: RegistrySettings,
}

/// The settings of one program, and where each comes from.
#[derive(Debug)]
pub(crate) struct Settings {
    all: Vec<Setting>,
}

/// One setting, as it is used.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) section: &'static str,
    pub(crate) name: String,
    /// `None`: it is not set and has no default.
    pub(crate) value: Option<Value>,
    pub(crate) origin: Origin,
    /// The flag, the variable, the file.
    pub(crate) place: Option<String>,
}

/// Where a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    Flag,
    Environment,
    File,
    Default,
    Unset,
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
        })
    }

    fn section<S: Section>(&self) -> Result<S> {
        let of_it = self.all.iter().filter(|setting| setting.section == S::NAME);
        let table: Table = of_it
            .filter_map(|setting| Some((setting.name.clone(), setting.value.clone()?)))
            .collect();
        table.try_into().map_err(|error: toml::de::Error| {
            CliError::new(format!("[{}]: {}", S::NAME, error.message()))
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

impl Setting {
    /// Where it comes from, for a person; `None` if it is not set.
    fn origin_text(&self) -> Option<String> {
        let kind = match self.origin {
            Origin::Flag => "flag",
            Origin::Environment => "environment",
            Origin::File => "file",
            Origin::Default => "default",
            Origin::Unset => return None,
        };
        let place = self.place.as_deref().unwrap_or_default();
        Some(format!("{kind} {place}").trim_end().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_command_line_is_sound_and_tells_the_defaults() {
        fn look<P: Program>(command: clap::Command) {
            command.debug_assert();
            for known in P::known() {
                let help = known.argument.get_help().unwrap().to_string();
                assert!(!help.ends_with('.'), "{}: {help}", known.name);
                if let Some(value) = known.default.filter(|value| !value.is_array()) {
                    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    assert!(help.ends_with(&format!("[default: {value}]")), "{help}");
                }
            }
        }
        fn command<P: Program>() -> clap::Command {
            <Given<P> as clap::Args>::augment_args(clap::Command::new(P::NAME))
        }
        look::<Up>(command::<Up>());
        look::<Worker>(command::<Worker>());
        look::<Balancer>(command::<Balancer>());
        look::<Registry>(command::<Registry>());
    }

    #[test]
    fn ol_up_takes_every_setting_but_those_that_it_decides() {
        let up = Up::known();
        let flags: BTreeSet<&str> = up.iter().filter_map(|one| one.argument.get_long()).collect();
        assert_eq!(flags.len(), up.len());
        for known in program::everything() {
            let found = up.iter().any(|one| one.is(known.section, &known.name));
            assert_eq!(found, !known.of_one, "{}.{}", known.section, known.name);
        }
        for flag in ["listen", "policy", "memory-mb", "keep-alive", "worker-head-seconds"] {
            assert!(flags.contains(flag), "{flag}: {flags:?}");
        }
    }

    #[test]
    fn what_is_written_for_daemons_reads_as_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("daemons.toml");
        let mut config = Config::default();
        config.worker.keep_alive = "ttl,seconds=7".parse().unwrap();
        config.worker.pause_after_seconds = Some(0.25.try_into().unwrap());
        config.balancer.seed = Some(9);
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let worker: WorkerSettings =
            Settings::complete(Given::<Worker>::by_flags(&[]), Some(&file))
                .unwrap()
                .config()
                .unwrap()
                .worker;
        assert_eq!(worker.keep_alive, config.worker.keep_alive);
        assert_eq!(worker.pause_after_seconds, config.worker.pause_after_seconds);
        let balancer = Settings::complete(Given::<Balancer>::by_flags(&[]), Some(&file)).unwrap();
        assert_eq!(balancer.config().unwrap().balancer.seed, Some(9));
    }

    /// What `ol up` says of a file.
    fn up(text: &str) -> Result<Config> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        Settings::complete(Given::<Up>::by_flags(&[]), Some(&file))?.config()
    }

    #[test]
    fn a_key_without_a_table_belongs_to_the_section_that_has_it() {
        let config =
            up("workers = 3\npolicy = \"random\"\nttl_seconds = 5\n[worker]\nweight = 2\n");
        let config = config.unwrap();
        assert_eq!((config.cluster.workers, &*config.balancer.policy.name), (3, "random"));
        assert_eq!((config.worker.ttl_seconds.get(), config.worker.weight), (5.0, 2.0));
        // As a text it is whose registry it is; as a table, what its daemon is told.
        let text = "registry = \"dir\"\n[balancer]\nregistry = \"dir=/f\"\n";
        assert!(up(text).unwrap_err().to_string().contains("line 3: ol up decides balancer.reg"));
        assert_eq!(up("registry = \"dir\"").unwrap().cluster.registry, "dir");
        assert!(up("[registry]\nstore = \"/s\"\n").unwrap().registry.store.is_some());
        // A table chooses a policy as well.
        let policy = up("[balancer]\npolicy = { name = \"bounded-load\", epsilon = 0.5 }").unwrap();
        assert_eq!(policy.balancer.policy.to_string(), "bounded-load,epsilon=0.5");
    }

    #[test]
    fn each_fault_of_a_file_is_told_with_its_line_and_what_to_do() {
        for (text, expected) in [
            ("seed = 1\nworker = 3\n", "line 2: unknown key \"worker\"; did you mean \"workers\"?"),
            (
                "[worker]\n\nmemory = 3\n",
                "line 3: unknown key \"memory\" in [worker]; did you mean \"memory_mb\"?",
            ),
            ("[x]\na = 1\n", "line 1: unknown key \"x\"; `ol config show` lists the keys"),
            ("[worker]\nweight = \"a\"\n", "line 2: weight: invalid type: string \"a\""),
            ("ttl_seconds = -1\n", "line 1: ttl_seconds: -1 is not a time; use seconds from 0"),
            (
                "policy = \"random\"\n[balancer]\npolicy = \"random\"\n",
                "line 3: balancer.policy is said in line 1 already; leave one out",
            ),
            ("[worker]\nname = \"w\"\n", "line 2: ol up decides worker.name for each of its d"),
            ("workers = \n", "line 1: "),
        ] {
            let error = up(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
