//! Whether a manifest is within the bounds of its namespace, and where it is not: [`Refused`].

use std::fmt::{self, Display};

use thiserror::Error;
use toml::de::DeTable;

use super::{Allow, Bounds};
use crate::manifest::{MANIFEST_FILE, Manifest, YAML_FILE};
use crate::pause_after::PauseAfter;

/// A manifest asks for more than the operator allows.
#[derive(Clone, Debug, PartialEq, Error)]
pub struct Refused {
    /// The key of `ol.toml`.
    pub key: &'static str,
    /// The value that it has, as `ol.toml` would say it.
    pub asked: String,
    /// What is allowed in its place, in words.
    pub allowed: String,
    /// The operator's key.
    pub bound: &'static str,
    /// The table of the configuration that the bound stands in.
    pub table: String,
    /// The manifest's file and the key's 1-based line in it, once [`Refused::at`] has found them.
    pub line: Option<(&'static str, usize)>,
    /// Which of the volumes it is about.
    volume: Option<usize>,
}

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { key, asked, allowed, bound, table, .. } = self;
        if let Some((file, line)) = self.line {
            write!(f, "{file}, line {line}: ")?;
        }
        write!(
            f,
            "{asked}, and the operator allows {allowed} ({bound} in {table}); change {key}, or have \
             the operator change {bound}"
        )
    }
}

impl Allow {
    /// Whether functions of this namespace may have this manifest.
    ///
    /// # Errors
    ///
    /// The first key that asks for more, in the order of [`Bounds`]; without a line.
    pub fn check(&self, namespace: &str, manifest: &Manifest) -> Result<(), Box<Refused>> {
        let networks = self.bound(namespace, |bounds| bounds.networks.clone());
        if let Some((networks, table)) = networks
            && !networks.contains(&manifest.network)
        {
            let asked = format!("network = \"{}\"", manifest.network.as_str());
            let names: Vec<_> =
                networks.iter().map(|network| format!("\"{}\"", network.as_str())).collect();
            return Err(refuse("network", asked, one_of(&names), "networks", table.of(namespace)));
        }
        self.check_numbers(namespace, manifest)?;
        if let Some((most, table)) = self.bound(namespace, |bounds| bounds.environment_kb) {
            let bytes = manifest.environment_bytes();
            if bytes as u64 > most.saturating_mul(1024) {
                let asked = format!("the environment takes {bytes} bytes");
                let allowed = format!("{} bytes", most.saturating_mul(1024));
                return Err(refuse(
                    "environment",
                    asked,
                    allowed,
                    "environment_kb",
                    table.of(namespace),
                ));
            }
        }
        self.check_volumes(namespace, manifest)
    }

    fn check_numbers(&self, namespace: &str, manifest: &Manifest) -> Result<(), Box<Refused>> {
        type Of = fn(&Bounds) -> Option<f64>;
        // Where it says nothing, it is the operator's own.
        let paused = manifest.pause_after_seconds.map_or(0.0, PauseAfter::seconds);
        // Each fits into 53 bits, or is larger than any manifest's.
        let numbers: [(&'static str, f64, Of); 8] = [
            ("memory_mb", manifest.memory_mb as f64, |b| b.memory_mb.map(|most| most as f64)),
            ("processes", manifest.processes.into(), |b| b.processes.map(f64::from)),
            ("cpus", manifest.cpus, |b| b.cpus),
            ("tmp_mb", manifest.tmp_mb as f64, |b| b.tmp_mb.map(|most| most as f64)),
            ("timeout_seconds", manifest.timeout_seconds, |b| b.timeout_seconds),
            ("pause_after_seconds", paused, |b| b.pause_after_seconds),
            ("concurrency", manifest.concurrency.into(), |b| b.concurrency.map(f64::from)),
            ("max_instances", manifest.max_instances.into(), |b| b.max_instances.map(f64::from)),
        ];
        for (key, asked, of) in numbers {
            if let Some((most, table)) = self.bound(namespace, of)
                // A bound that is no number allows nothing.
                && asked.partial_cmp(&most).is_none_or(std::cmp::Ordering::is_gt)
            {
                let asked = match asked.is_infinite() {
                    true => format!("{key} = \"never\""),
                    false => format!("{key} = {asked}"),
                };
                let allowed = format!("at most {most}");
                return Err(refuse(key, asked, allowed, key, table.of(namespace)));
            }
        }
        Ok(())
    }

    fn check_volumes(&self, namespace: &str, manifest: &Manifest) -> Result<(), Box<Refused>> {
        let count = manifest.volumes.len();
        if let Some((most, table)) = self.bound(namespace, |bounds| bounds.volumes)
            && count > most as usize
        {
            let asked = format!("volumes are {count}");
            let mut refused =
                refuse("volumes", asked, format!("{most}"), "volumes", table.of(namespace));
            // The first that is too many.
            refused.volume = Some(most as usize);
            return Err(refused);
        }
        let Some((places, table)) = self.bound(namespace, |bounds| bounds.volume_places.clone())
        else {
            return Ok(());
        };
        let is_below = |path: &str, place: &str| {
            let below = path.strip_prefix(place.trim_end_matches('/'));
            below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
        };
        for (at, volume) in manifest.volumes.iter().enumerate() {
            if places.iter().any(|place| is_below(&volume.path, place)) {
                continue;
            }
            let asked = format!("volume \"{}\" is at \"{}\"", volume.name, volume.path);
            let names: Vec<_> = places.iter().map(|place| format!("\"{place}\"")).collect();
            let allowed = match names.is_empty() {
                true => "no place".to_owned(),
                false => format!("{} and what is below", one_of(&names)),
            };
            let mut refused =
                refuse("volumes", asked, allowed, "volume_places", table.of(namespace));
            refused.volume = Some(at);
            return Err(refused);
        }
        Ok(())
    }
}

impl Refused {
    /// The same, with the line of the key, if the manifest in `file`, which has this text, says it. What
    /// a manifest does not say has its default.
    pub fn at(mut self, file: &str, text: &str) -> Self {
        self.line = match file {
            MANIFEST_FILE => self.line_in_toml(text).map(|line| (MANIFEST_FILE, line)),
            YAML_FILE => self.line_in_yaml(text).map(|line| (YAML_FILE, line)),
            _ => None,
        };
        self
    }

    fn line_in_toml(&self, text: &str) -> Option<usize> {
        let table = DeTable::parse(text).ok()?;
        let (key, value) = table.get_ref().iter().find(|(key, _)| **key.get_ref() == *self.key)?;
        let mut at = key.span().start;
        if let Some(volume) = self.volume
            && let Some(volume) = value.get_ref().as_array().and_then(|all| all.get(volume))
        {
            at = volume.span().start;
        }
        Some(1 + text.get(..at)?.matches('\n').count())
    }

    fn line_in_yaml(&self, text: &str) -> Option<usize> {
        let keys: &[&str] = match self.key {
            "memory_mb" => &["mem_mb"],
            "processes" => &["procs"],
            "cpus" => &["cpu_percent"],
            "timeout_seconds" => &["runtime_sec", "max_runtime_sec"],
            key => &[key],
        };
        let says = |line: &str| {
            let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let mut words = words.take_while(|_| !line.trim_start().starts_with('#'));
            words.any(|word| keys.contains(&word))
        };
        Some(1 + text.lines().position(says)?)
    }
}

fn refuse(
    key: &'static str,
    asked: String,
    allowed: String,
    bound: &'static str,
    table: String,
) -> Box<Refused> {
    Box::new(Refused { key, asked, allowed, bound, table, line: None, volume: None })
}

fn one_of(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        [one] => one.clone(),
        [others @ .., last] => format!("{} or {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(text: &str) -> Allow {
        let mut allow: Allow = toml::from_str(text).unwrap();
        allow.all.networks.get_or_insert(Allow::NETWORKS.to_vec());
        allow
    }

    fn refusal(allow: &Allow, namespace: &str, text: &str) -> Refused {
        let manifest = Manifest::parse(text).unwrap();
        allow.check(namespace, &manifest).unwrap_err().at(MANIFEST_FILE, text)
    }

    #[test]
    fn what_is_not_bounded_is_allowed_but_the_machines_network() {
        let most = "memory_mb = 1048576\nprocesses = 1048576\ncpus = 1024\ntmp_mb = 1048576\n\
                    timeout_seconds = 86400\nconcurrency = 1000\nmax_instances = 10000";
        for network in ["none", "bridge"] {
            let text = format!("{most}\nnetwork = \"{network}\"");
            Allow::default().check("default", &Manifest::parse(&text).unwrap()).unwrap();
        }
        let refused = refusal(&Allow::default(), "default", "reuse = true\nnetwork = \"host\"\n");
        assert_eq!(
            refused.to_string(),
            "ol.toml, line 2: network = \"host\", and the operator allows \"none\" or \"bridge\" \
             (networks in [allow]); change network, or have the operator change networks"
        );
        let manifest = Manifest::parse(&format!("{most}\nnetwork = \"host\"")).unwrap();
        Allow::everything().check("default", &manifest).unwrap();
    }

    #[test]
    fn each_bound_refuses_what_is_over_it_and_names_both() {
        let environment = format!("\n[environment]\nA = \"{}\"", "x".repeat(1024));
        let volumes = "[[volumes]]\nname = \"a\"\npath = \"/data/a\"\n\n[[volumes]]\nname = \"b\"\n\
                       path = \"/datab\"";
        for (bound, text, line, what) in [
            (
                "networks = []",
                "network = \"bridge\"",
                1,
                "network = \"bridge\", and the operator allows none (networks in [allow])",
            ),
            (
                "memory_mb = 64",
                "\nmemory_mb = 65",
                2,
                "memory_mb = 65, and the operator allows at most 64 (memory_mb in [allow])",
            ),
            (
                "processes = 8",
                "processes = 9",
                1,
                "processes = 9, and the operator allows at most 8",
            ),
            ("cpus = 0.5", "cpus = 0.75", 1, "cpus = 0.75, and the operator allows at most 0.5"),
            // A program's own; no file may say it.
            ("cpus = nan", "cpus = 0.01", 1, "at most NaN"),
            ("tmp_mb = 1", "tmp_mb = 2", 1, "tmp_mb = 2"),
            (
                "timeout_seconds = 10",
                "timeout_seconds = 10.5",
                1,
                "timeout_seconds = 10.5, and the operator allows at most 10",
            ),
            ("concurrency = 1", "concurrency = 2", 1, "concurrency = 2"),
            ("max_instances = 4", "max_instances = 5", 1, "max_instances = 5"),
            (
                "environment_kb = 1",
                &*environment,
                2,
                "the environment takes 1027 bytes, and the operator allows 1024 bytes (environment_kb in [allow])",
            ),
            ("volumes = 1", volumes, 5, "volumes are 2, and the operator allows 1"),
            ("volumes = 0", volumes, 1, "volumes are 2, and the operator allows 0"),
            (
                "volume_places = [\"/data\"]",
                volumes,
                5,
                "volume \"b\" is at \"/datab\", and the operator allows \"/data\" and what is below (volume_places in [allow])",
            ),
            ("volume_places = []", volumes, 1, "allows no place"),
        ] {
            let refused = refusal(&allow(bound), "default", text);
            assert_eq!(refused.line, Some((MANIFEST_FILE, line)), "{bound}");
            assert!(refused.to_string().contains(what), "{bound}: {refused}");
        }
        for (bound, text) in [
            ("memory_mb = 64", "memory_mb = 64"),
            ("cpus = 0.5", "cpus = 0.5"),
            ("environment_kb = 2", &*environment),
            ("volumes = 2\nvolume_places = [\"/data/\", \"/datab\"]", volumes),
            ("volume_places = [\"/\"]", volumes),
        ] {
            allow(bound).check("default", &Manifest::parse(text).unwrap()).unwrap();
        }
    }

    #[test]
    fn a_default_that_is_too_much_has_no_line() {
        let refused = refusal(&allow("memory_mb = 64"), "default", "reuse = true");
        assert_eq!(refused.line, None);
        assert!(refused.to_string().starts_with("memory_mb = 128, and the operator allows"));
    }

    #[test]
    fn a_namespace_has_its_own_bounds_and_else_those_of_the_cluster() {
        let allow = allow(
            "memory_mb = 64\nprocesses = 8\n[namespace.big]\nmemory_mb = 512\nnetworks = [\"host\"]\n",
        );
        let text = "memory_mb = 512\nprocesses = 8\nnetwork = \"host\"";
        allow.check("big", &Manifest::parse(text).unwrap()).unwrap();
        let refused = refusal(&allow, "big", "memory_mb = 513\nnetwork = \"host\"");
        assert!(refused.to_string().contains("memory_mb in [allow.namespace.big]"), "{refused}");
        let refused = refusal(&allow, "big", "processes = 9\nnetwork = \"host\"");
        assert!(refused.to_string().contains("processes in [allow])"), "{refused}");
        assert_eq!(refusal(&allow, "other", text).key, "network");
        assert_eq!(refusal(&allow, "default", "memory_mb = 65").key, "memory_mb");
    }

    #[cfg(feature = "yaml")]
    #[test]
    fn lines_of_the_other_form_are_found_too() {
        let text = "# limits of mem_mb\nenvironment:\n  A: b\nlimits:\n  procs: 3\n  mem_mb: 65\n";
        let manifest = Manifest::of_files::<crate::manifest::ManifestError>(
            |file| Ok((file == YAML_FILE).then(|| text.to_owned())),
            |_| None,
            |file| file == "f.py",
        );
        let refused = allow("memory_mb = 64").check("default", &manifest.unwrap()).unwrap_err();
        assert_eq!(refused.at(YAML_FILE, text).line, Some((YAML_FILE, 6)));
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        let text = "networks = [\"none\"]\ncpus = 2\n\n[namespace.a]\nvolumes = 3\n";
        let read: Allow = toml::from_str(text).unwrap();
        let json = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<Allow>(&json).unwrap(), read);
        assert_eq!(toml::from_str::<Allow>(&toml::to_string(&read).unwrap()).unwrap(), read);
        assert!(toml::from_str::<Allow>("[namespace.a]\nmemory = 3").is_err());
    }
}
