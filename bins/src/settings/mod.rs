//! One configuration for a cluster and each of its daemons: [`Config`].
//!
//! ```text
//!  flags  >  environment  >  file  >  defaults
//!                              │
//!     [cluster] [balancer] [worker] [registry] [allow], the same for every program
//! ```
//!
//! A section is a struct (`ClusterSettings` and so on): its fields are the keys of its table in a file,
//! its `clap` arguments are the flags and variables, and its `Default` holds the default values. So a
//! setting is written down once. A [`Program`] is `ol up` or a daemon: it says which settings the program
//! has, under which flags. [`Given`] has what the command line and the environment set; [`Settings`] has
//! every value, and where it comes from.
//!
//! `ol up` checks everything before it starts anything, and hands its daemons a file with the result.

mod allow;
mod balancer;
mod cluster;
mod config;
mod file;
mod given;
mod limits;
mod program;
mod registry;
mod seconds;
mod section;
mod setting;
mod worker;

pub(crate) use self::cluster::WORKERS;
pub(crate) use self::config::{Config, Settings};
pub(crate) use self::given::Given;
pub(crate) use self::limits::{check as check_limits, check_balancer, check_worker};
pub(crate) use self::program::{Balancer, Program, Registry, Up, Worker, variables};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::worker::WorkerSettings;
    use super::*;
    use crate::error::Result;

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
