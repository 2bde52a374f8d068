//! One configuration for a cluster and each of its daemons: [`Config`].
//!
//! ```text
//!  flags  >  environment  >  file  >  defaults
//!                              │
//!     [cluster] [balancer] [worker] [registry] [errors] [allow], the same for every program
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
mod count;
mod errors;
mod file;
mod given;
mod limits;
mod program;
mod registry;
mod seconds;
mod section;
mod setting;
mod share;
mod worker;

pub(crate) use self::config::{Config, Settings, is_policy, is_time};
pub(crate) use self::given::Given;
pub(crate) use self::limits::{
    check as check_limits, check_balancer, check_registry, check_worker,
};
pub(crate) use self::program::{Balancer, Program, Registry, Up, Worker, variables};
pub(crate) use self::setting::{Origin, Setting};
pub(crate) use self::worker::WorkerSettings;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
        config.worker.pause_after_seconds = Some("0.25".parse().unwrap());
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
        assert_eq!((config.cluster.workers.get(), &*config.balancer.policy.name), (3, "random"));
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
    fn each_form_of_a_key_says_the_same() {
        for text in [
            "worker.ttl_seconds = 3\n",
            "worker = { ttl_seconds = 3 }\n",
            "[worker]\nttl_seconds = 3.0",
            "\u{feff}[worker]\r\nttl_seconds = 3\r\n",
            "\"worker\".'ttl_seconds' = 3\n",
            "ttl_seconds = 3\nworker.weight = 2\n",
        ] {
            assert_eq!(up(text).unwrap().worker.ttl_seconds.get(), 3.0, "{text}");
        }
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
            (
                "[worker]\nweight = \"a\"\n",
                "line 2: weight: \"a\" does not fit here; write a number",
            ),
            ("weight = 0\n", "line 1: weight: 0 is not a share; use more than 0"),
            ("retry_share = inf\n", "line 1: retry_share: inf is not a share; use 0 to 1000000"),
            ("ttl_seconds = nan\n", "line 1: ttl_seconds: NaN is not a time; use seconds from 0"),
            ("ttl_seconds = -1\n", "line 1: ttl_seconds: -1 is not a time; use seconds from 0"),
            (
                "policy = \"random\"\n[balancer]\npolicy = \"random\"\n",
                "line 3: balancer.policy is said in line 1 already; leave one out",
            ),
            ("[worker]\nname = \"w\"\n", "line 2: ol up decides worker.name for each of its d"),
            ("workers = \n", "line 1: "),
            ("workers = 3\r\nworkers = 4\r\n", "line 2: workers is there already; put both"),
            ("[worker]\nweight = 1\n[worker]\n", "line 3: worker is there already; put both"),
            ("worker.weight = 1\n[worker]\n", "line 2: worker is there already; put both"),
            ("[[worker]]\nweight = 1\n", "line 1: there is one [worker] for all; write [worker]"),
            ("[WORKER]\nweight = 1\n", "line 1: unknown table [WORKER]; did you mean [worker]?"),
            ("[balancr]\nseed = 1\n", "line 1: unknown table [balancr]; did you mean [balancer]?"),
            (
                "seed = 18446744073709551615\n",
                "line 1: the number is too large; use one up to 9223",
            ),
            (
                "listen = \"localhost:1\"\n",
                "line 1: listen: it is not an IP address with a port; wr",
            ),
            ("policy = \"\"\n", "line 1: policy: it has no name; `ol policies` lists the names"),
            (
                "policy = { k = 3 }\n",
                "line 1: policy: it has no name; write \"NAME\", \"NAME,KEY=V",
            ),
            ("records = \"\"\n", "line 1: records: it is empty; give it a value or leave it out"),
            ("weight = 1e308\n", "is not a share; use more than 0, at most 1000000"),
            ("ready_cells = -1\n", "line 1: ready_cells: -1 is out of range; use 0 to 1000"),
            (
                "worker.most_connections = 1\n",
                "line 1: most_connections: 1 is out of range; use 16",
            ),
            ("bridge_range = \"10.0.0.0\"\n", "line 1: bridge_range: 10.0.0.0 is not a range for"),
            (
                "bridge_range = \"10.1.0.0/9\"\n",
                "10.1.0.0/9 is not a range for bridged networks; n",
            ),
        ] {
            let error = up(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_count_of_nothing_is_refused_wherever_it_is_said() {
        let counts = [
            "cluster.workers",
            "balancer.most_connections",
            "balancer.most_calls",
            "balancer.head_limit_kb",
            "balancer.body_limit_mb",
            "balancer.bundle_limit_mb",
            "balancer.access_log_mb",
            "registry.most_connections",
            "worker.memory_mb",
            "worker.max_starting",
            "worker.log_mb",
            "worker.body_limit_mb",
        ];
        for known in Up::known() {
            let full = format!("{}.{}", known.section, known.name);
            if !counts.contains(&&*full) {
                continue;
            }
            let flag = format!("--{}", known.argument.get_long().unwrap());
            let most = if known.name == "workers" { 1000 } else { 1_000_000_000 };
            for value in ["0", "-1", "nan", "1.5", "99999999999", "\"\"", "true"] {
                let text = format!("[{}]\n{} = {value}\n", known.section, known.name);
                let error = up(&text).unwrap_err().to_string();
                let line = format!("c.toml, line 2: {}: {value} is ", known.name);
                assert!(error.contains(&line), "{text}: {error}");
                assert!(error.ends_with(&format!("; use 1 to {most}")), "{text}: {error}");

                let value = value.trim_matches('"');
                let error = told::<Up>(&[&flag, value]);
                assert!(error.starts_with(&format!("error: {flag} {value}: ")), "{error}");
                let next = format!("; use 1 to {most}\n\nUsage: ol up [OPTIONS]\n");
                assert!(error.contains(&next), "{flag} {value}: {error}");
            }
            assert!(up(&format!("[{}]\n{} = 1", known.section, known.name)).is_ok());
            assert_eq!(told::<Up>(&[&flag, "1"]), "");
        }
    }

    #[test]
    fn a_number_that_cannot_be_is_told_by_its_flag_and_what_to_write() {
        for (flags, expected) in [
            (["--ttl-seconds", "-1"], "--ttl-seconds -1: -1 is not a time; use seconds from 0 to"),
            (["--ttl-seconds", "nan"], "--ttl-seconds nan: NaN is not a time; use seconds"),
            (["--weight", "0"], "--weight 0: 0 is not a share; use more than 0"),
            (["--weight", "inf"], "--weight inf: inf is not a share; use more than 0"),
            (["--retry-share", "-0.5"], "--retry-share -0.5: -0.5 is not a share; use 0 to"),
            (["--retries", "-1"], "write a whole number from 0 to 4294967295"),
            (["--retries", "many"], "\"many\" does not fit here; write a whole number from"),
            (["--listen", "5"], "--listen 5: it is not an IP address with a port; write one"),
            (["--pick", "best"], "unknown value \"best\"; known are most_recent, newest"),
        ] {
            let error = told::<Up>(&flags);
            assert!(error.contains(expected), "{flags:?}: {error}");
        }
    }

    #[test]
    fn a_running_limit_of_a_number_needs_no_quotes() {
        assert_eq!(up("running_limit = 8\n").unwrap().worker.running_limit, "8");
        assert_eq!(up("running_limit = \"load=1.5\"\n").unwrap().worker.running_limit, "load=1.5");
        for limit in ["0", "-2", "0.5", "true", "\"\"", "\"many\"", "[1]"] {
            let error = up(&format!("running_limit = {limit}\n")).unwrap_err().to_string();
            assert!(error.contains("line 1: running_limit: "), "{limit}: {error}");
            assert!(error.contains("write none, a number of calls (8)"), "{limit}: {error}");
        }
    }

    #[test]
    fn what_is_no_file_of_settings_is_told_with_the_flag() {
        let folder = tempfile::tempdir().unwrap();
        let latin = folder.path().join("latin.toml");
        std::fs::write(&latin, b"# \xe9\n").unwrap();
        for path in [folder.path(), &folder.path().join("missing.toml"), &latin] {
            let given = Given::<Up>::by_flags(&[]);
            let error = Settings::complete(given, Some(path)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot read {}: ", path.display())), "{error}");
            assert!(error.ends_with("; name a file of settings with --config"), "{error}");
        }
    }

    /// What a program says of flags that are wrong.
    fn told<P: Program>(flags: &[&str]) -> String {
        let command = <Given<P> as clap::Args>::augment_args(clap::Command::new(P::NAME));
        let matches = command.no_binary_name(true).try_get_matches_from(flags).unwrap();
        let given = <Given<P> as clap::FromArgMatches>::from_arg_matches(&matches);
        given.err().map(|error| error.to_string().trim().to_owned()).unwrap_or_default()
    }
}
