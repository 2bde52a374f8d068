//! From a policy's name and parameters to the policy: [`PolicyCatalog`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use openlambda_core::balancing::BalancingPolicy;
use openlambda_core::config::{ConfigError, nearest};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{BoundedLoad, LeastOutstanding, PowerOfD, Random, RoundRobin};

/// The policies that can be chosen by name.
#[derive(Debug, Default)]
pub struct PolicyCatalog {
    entries: BTreeMap<String, PolicyEntry>,
}

/// One policy that can be chosen by name.
pub struct PolicyEntry {
    /// Its name, as `bounded-load`.
    pub name: String,
    /// What it does, in a line.
    pub about: String,
    /// Where it comes from: a paper, a system.
    pub source: String,
    /// What can be set.
    pub parameters: Vec<ParameterInfo>,
    /// Makes it from its parameters. Those that are not in `parameters` were refused before.
    pub build: BuildPolicy,
}

/// See [`PolicyEntry::build`].
pub type BuildPolicy =
    Box<dyn Fn(&Parameters<'_>) -> Result<Box<dyn BalancingPolicy>, ConfigError> + Send + Sync>;

/// The parameters that a policy is made from: a [`Table`], and the catalogue for those that have
/// another policy inside.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    table: &'a Table,
    catalog: &'a PolicyCatalog,
}

impl Parameters<'_> {
    /// The policy that a parameter names, the one named `default` when it is not given. It may be of
    /// any form that a [`PolicyConfig`] has.
    ///
    /// # Errors
    ///
    /// As [`PolicyCatalog::build`].
    pub fn policy(
        &self,
        parameter: &str,
        default: &str,
    ) -> Result<(PolicyConfig, Box<dyn BalancingPolicy>), ConfigError> {
        let config = match self.table.get(parameter) {
            None => PolicyConfig::named(default),
            Some(value) => PolicyConfig::try_from(value.clone())?,
        };
        let policy = self.catalog.build(&config)?;
        Ok((config, policy))
    }
}

impl Deref for Parameters<'_> {
    type Target = Table;
    fn deref(&self) -> &Table {
        self.table
    }
}

/// A parameter of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParameterInfo {
    /// Its name.
    pub name: String,
    /// Its value when it is not given.
    pub default: String,
    /// What it does.
    pub about: String,
}

impl ParameterInfo {
    /// A parameter.
    pub fn new(name: &str, default: impl fmt::Display, about: &str) -> Self {
        let default = default.to_string();
        ParameterInfo { name: name.to_owned(), default, about: about.to_owned() }
    }
}

impl PolicyEntry {
    /// A policy without parameters.
    pub fn new<P: BalancingPolicy + 'static>(
        name: &str,
        about: &str,
        source: &str,
        make: impl Fn() -> P + Send + Sync + 'static,
    ) -> Self {
        PolicyEntry {
            name: name.to_owned(),
            about: about.to_owned(),
            source: source.to_owned(),
            parameters: Vec::new(),
            build: Box::new(move |_| Ok(Box::new(make()))),
        }
    }
}

impl fmt::Debug for PolicyEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyEntry")
            .field("name", &self.name)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

impl PolicyCatalog {
    /// The policy that is used when none is named.
    pub const DEFAULT: &'static str = "round-robin";

    /// No policies.
    pub fn new() -> Self {
        PolicyCatalog::default()
    }

    /// The policies of this crate.
    pub fn standard() -> Self {
        let mut catalog = PolicyCatalog::new();
        catalog.register(PolicyEntry::new(
            "round-robin",
            "each worker in turn",
            "the textbook",
            RoundRobin::new,
        ));
        catalog.register(PolicyEntry::new(
            "random",
            "any worker, uniformly",
            "the textbook; each worker is an M/M/1 queue",
            || Random,
        ));
        catalog.register(PolicyEntry {
            name: "power-of-two".to_owned(),
            about: "the least loaded of d random workers".to_owned(),
            source: "Mitzenmacher, The Power of Two Choices, IEEE TPDS 2001".to_owned(),
            parameters: vec![ParameterInfo::new("d", 2, "how many workers are sampled, 1 to 16")],
            build: Box::new(|table| {
                let d =
                    number("power-of-two", table, "d", 2.0, "a whole number from 1 to 16", |d| {
                        d.fract() == 0.0 && (1.0..=PowerOfD::MOST as f64).contains(&d)
                    })?;
                Ok(Box::new(PowerOfD::new(d as usize)))
            }),
        });
        catalog.register(PolicyEntry::new(
            "least-outstanding",
            "the worker with the fewest requests in flight",
            "least connections, as in every balancer",
            LeastOutstanding::new,
        ));
        catalog.register(PolicyEntry {
            name: "bounded-load".to_owned(),
            about: "the function's own worker on a hash ring, unless it is over its share"
                .to_owned(),
            source: "Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing with Bounded Loads, \
                     SODA 2018"
                .to_owned(),
            parameters: vec![
                ParameterInfo::new("epsilon", 0.25, "how far over its fair share a worker may go"),
                ParameterInfo::new("vnodes", 100, "points on the ring for a worker of weight 1"),
            ],
            build: Box::new(|table| {
                let name = "bounded-load";
                let epsilon =
                    number(name, table, "epsilon", 0.25, "a number above 0, at most 1000", |e| {
                        e > 0.0 && e <= 1000.0
                    })?;
                let most = f64::from(BoundedLoad::MOST_VNODES);
                let whole = "a whole number from 1 to 10000";
                let vnodes = number(name, table, "vnodes", 100.0, whole, |v| {
                    v.fract() == 0.0 && (1.0..=most).contains(&v)
                })?;
                Ok(Box::new(BoundedLoad::new(epsilon, vnodes as u32)))
            }),
        });
        catalog.register(super::central_queue::entry());
        catalog.register(super::ch_rlu::entry());
        catalog.register(super::consistent_hashing::entry());
        catalog.register(super::dodoor::entry());
        catalog.register(super::guardrails::entry());
        catalog.register(super::hermod::entry());
        catalog.register(super::hiku::entry());
        catalog.register(super::join_idle_queue::entry());
        catalog.register(super::late_binding::entry());
        catalog.register(super::maglev::entry());
        catalog.register(super::min_worker_set::entry());
        catalog.register(super::openwhisk::entry());
        catalog.register(super::package_aware::entry());
        catalog.register(super::palette::entry());
        catalog.register(super::peak_ewma::entry());
        catalog.register(super::prequal::entry());
        catalog.register(super::rendezvous::entry());
        catalog
    }

    /// Adds a policy; one of the same name is replaced.
    pub fn register(&mut self, entry: PolicyEntry) {
        self.entries.insert(entry.name.clone(), entry);
    }

    /// The policies in order of their names.
    pub fn entries(&self) -> impl Iterator<Item = &PolicyEntry> {
        self.entries.values()
    }

    /// Makes the policy that `config` names.
    ///
    /// # Errors
    ///
    /// An unknown name or parameter, with the nearest known one, and a value that is out of range.
    pub fn build(&self, config: &PolicyConfig) -> Result<Box<dyn BalancingPolicy>, ConfigError> {
        let Some(entry) = self.entries.get(&config.name) else {
            let message = match nearest(&config.name, self.entries.keys().map(String::as_str)) {
                Some(near) => {
                    format!("unknown policy \"{}\"; did you mean \"{near}\"?", config.name)
                }
                None => {
                    let known: Vec<_> = self.entries.keys().map(String::as_str).collect();
                    format!("unknown policy \"{}\"; known are {}", config.name, known.join(", "))
                }
            };
            return Err(refuse("policy", message));
        };
        let known = || entry.parameters.iter().map(|parameter| parameter.name.as_str());
        for name in config.parameters.keys() {
            if known().any(|known| known == name) {
                continue;
            }
            let message = match (nearest(name, known()), entry.parameters.is_empty()) {
                (Some(near), _) => {
                    format!("unknown parameter \"{name}\"; did you mean \"{near}\"?")
                }
                (None, true) => format!("unknown parameter \"{name}\"; it takes none"),
                (None, false) => {
                    let known: Vec<_> = known().collect();
                    format!("unknown parameter \"{name}\"; known are {}", known.join(", "))
                }
            };
            return Err(refuse(&format!("policy {}", entry.name), message));
        }
        (entry.build)(&Parameters { table: &config.parameters, catalog: self })
    }
}

/// Which policy, and its parameters.
///
/// In a configuration file `"round-robin"` or `{ name = "bounded-load", epsilon = 0.25 }`; on a
/// command line `bounded-load,epsilon=0.25`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct PolicyConfig {
    /// The policy's name.
    pub name: String,
    /// The parameters that are not to have their defaults.
    pub parameters: Table,
}

impl PolicyConfig {
    /// A policy with its default parameters.
    pub fn named(name: impl Into<String>) -> Self {
        PolicyConfig { name: name.into(), parameters: Table::new() }
    }
}

impl Default for PolicyConfig {
    fn default() -> Self {
        PolicyConfig::named(PolicyCatalog::DEFAULT)
    }
}

impl fmt::Display for PolicyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (name, value) in &self.parameters {
            match value {
                Value::String(text) => write!(f, ",{name}={text}")?,
                value => write!(f, ",{name}={value}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for PolicyConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for PolicyConfig {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err(refuse(
                "policy",
                "no policy is named; `ol policies` lists them".to_owned(),
            ));
        }
        let mut config = PolicyConfig::named(name);
        for part in parts {
            let Some((key, value)) = part.split_once('=') else {
                let message = format!(
                    "\"{part}\" is no parameter; write the policy as {name},parameter=value"
                );
                return Err(refuse(&format!("policy {name}"), message));
            };
            let (key, value) = (key.trim(), value.trim());
            if config.parameters.insert(key.to_owned(), scalar(value)).is_some() {
                let message = format!("parameter \"{key}\" is given twice; leave one out");
                return Err(refuse(&format!("policy {name}"), message));
            }
        }
        Ok(config)
    }
}

impl TryFrom<Value> for PolicyConfig {
    type Error = ConfigError;
    fn try_from(value: Value) -> Result<Self, ConfigError> {
        let wanted = "write \"round-robin\" or { name = \"bounded-load\", epsilon = 0.25 }";
        match value {
            Value::String(text) => text.parse(),
            Value::Table(mut parameters) => match parameters.remove("name") {
                Some(Value::String(name)) => Ok(PolicyConfig { name, parameters }),
                _ => Err(refuse("policy", format!("it has no name; {wanted}"))),
            },
            _ => Err(refuse("policy", format!("it is no text and no table; {wanted}"))),
        }
    }
}

fn scalar(text: &str) -> Value {
    if let Ok(number) = text.parse::<i64>() {
        return Value::Integer(number);
    }
    if let Ok(number) = text.parse::<f64>() {
        return Value::Float(number);
    }
    match text {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        _ => Value::String(text.to_owned()),
    }
}

pub(super) fn refuse(origin: &str, message: String) -> ConfigError {
    ConfigError { origin: origin.to_owned(), line: None, message }
}

/// A numeric parameter within its range. `wanted` says the range.
pub(super) fn number(
    policy: &str,
    table: &Table,
    name: &str,
    default: f64,
    wanted: &str,
    valid: impl Fn(f64) -> bool,
) -> Result<f64, ConfigError> {
    let value = match table.get(name) {
        None => return Ok(default),
        Some(value) => value,
    };
    let number = match value {
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        _ => None,
    };
    number.filter(|number| valid(*number)).ok_or_else(|| {
        refuse(&format!("policy {policy}"), format!("{name} = {value} is not valid; use {wanted}"))
    })
}

/// A whole-number parameter from `least` to `most`.
pub(super) fn whole(
    policy: &str,
    table: &Table,
    name: &str,
    default: u32,
    (least, most): (u32, u32),
) -> Result<u32, ConfigError> {
    let wanted = format!("a whole number from {least} to {most}");
    let valid = |v: f64| v.fract() == 0.0 && (f64::from(least)..=f64::from(most)).contains(&v);
    Ok(number(policy, table, name, f64::from(default), &wanted, valid)? as u32)
}

/// A parameter whose value is one of a few words, the first of them when it is not given; returns
/// the word's place.
pub(super) fn word(
    policy: &str,
    table: &Table,
    name: &str,
    words: &[&str],
) -> Result<usize, ConfigError> {
    let Some(value) = table.get(name) else { return Ok(0) };
    let place = value.as_str().and_then(|value| words.iter().position(|word| *word == value));
    place.ok_or_else(|| {
        let near = value.as_str().and_then(|value| nearest(value, words.iter().copied()));
        let hint = match near {
            Some(near) => format!("did you mean {near}?"),
            None => format!("use {}", words.join(" or ")),
        };
        refuse(&format!("policy {policy}"), format!("{name} = {value} is not valid; {hint}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let built = text.parse().and_then(|config| PolicyCatalog::standard().build(&config));
        built.unwrap_err().to_string()
    }

    #[test]
    fn every_entry_builds_with_its_defaults_and_with_them_spelt_out() {
        let catalog = PolicyCatalog::standard();
        for entry in catalog.entries() {
            catalog.build(&PolicyConfig::named(&entry.name)).unwrap();
            let mut text = entry.name.clone();
            for parameter in &entry.parameters {
                text += &format!(",{}={}", parameter.name, parameter.default);
            }
            let config: PolicyConfig = text.parse().unwrap();
            assert_eq!(config.to_string().parse::<PolicyConfig>().unwrap(), config);
            catalog.build(&config).unwrap();
        }
        catalog.build(&PolicyConfig::default()).unwrap();
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest() {
        assert_eq!(
            error("round-robbin"),
            "policy: unknown policy \"round-robbin\"; did you mean \"round-robin\"?"
        );
        assert!(error("zzz").contains("least-outstanding"));
        assert_eq!(
            error("bounded-load,epsilom=1"),
            "policy bounded-load: unknown parameter \"epsilom\"; did you mean \"epsilon\"?"
        );
        assert!(error("palette,assign=last-assigned").contains("did you mean least-assigned?"));
        assert!(error("random,d=2").ends_with("it takes none"));
        assert!(error("bounded-load,epsilon").contains("parameter=value"));
        assert!(error("power-of-two,d=2,d=3").contains("twice"));
        assert!(error("").contains("ol policies"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "power-of-two,d=0",
            "power-of-two,d=17",
            "power-of-two,d=1.5",
            "power-of-two,d=two",
            "bounded-load,epsilon=0",
            "bounded-load,epsilon=-1",
            "bounded-load,epsilon=nan",
            "bounded-load,epsilon=inf",
            "bounded-load,vnodes=0",
            "bounded-load,vnodes=10001",
            "ch-rlu,popular=1.1",
            "ch-rlu,bound=0",
            "ch-rlu,chain=65",
            "consistent-hashing,vnodes=0.5",
            "maglev,size=100",
            "maglev,size=16777217",
            "min-worker-set,window=0",
            "min-worker-set,utilisation=1.01",
            "package-aware,threshold=0",
            "palette,assign=3",
            "palette,assign=random",
            "palette,buckets=0",
            "central-queue,wait=0",
            "dodoor,b=0",
            "guardrails,c=1",
            "guardrails,g=0.5",
            "join-idle-queue,below=0",
            "late-binding,d=9",
            "peak-ewma,tau=0",
            "prequal,quantile=1.1",
        ] {
            assert!(error(text).contains("is not valid; use"), "{text}: {}", error(text));
        }
    }

    #[test]
    fn a_policy_may_have_another_inside() {
        let catalog = PolicyCatalog::standard();
        let build = |text: &str| {
            let table: Table = text.parse().unwrap();
            PolicyConfig::try_from(Value::Table(table)).and_then(|config| catalog.build(&config))
        };
        build("name = \"guardrails\"\ninner = { name = \"power-of-two\", d = 3 }").unwrap();
        assert!(error("guardrails,inner=randon").contains("did you mean \"random\"?"));
        assert!(error("guardrails,inner=central-queue").contains("holds requests"));
        let wrong = build("name = \"guardrails\"\ninner = { name = \"power-of-two\", d = 0 }");
        assert!(wrong.unwrap_err().to_string().contains("d = 0 is not valid"));
        let mut catalog = PolicyCatalog::standard();
        catalog.register(PolicyEntry::new("mine", "as random", "me", || Random));
        catalog.build(&"guardrails,inner=mine".parse().unwrap()).unwrap();
    }

    #[test]
    fn files_name_a_policy_by_a_text_or_a_table() {
        #[derive(Debug, Deserialize)]
        struct File {
            policy: PolicyConfig,
        }
        let read = |text: &str| toml::from_str::<File>(text).map(|file| file.policy.to_string());
        assert_eq!(read("policy = \"random\"").unwrap(), "random");
        assert_eq!(
            read("policy = { name = \"bounded-load\", epsilon = 0.5 }").unwrap(),
            "bounded-load,epsilon=0.5"
        );
        assert_eq!(read("[policy]\nname = \"power-of-two\"\nd = 3").unwrap(), "power-of-two,d=3");
        assert!(read("policy = 3").unwrap_err().to_string().contains("round-robin"));
        assert!(read("policy = { epsilon = 3 }").unwrap_err().to_string().contains("no name"));
        let json: PolicyConfig = serde_json::from_str("\"power-of-two,d=3\"").unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), "\"power-of-two,d=3\"");
    }

    #[test]
    fn a_policy_of_ones_own_joins() {
        let mut catalog = PolicyCatalog::standard();
        catalog.register(PolicyEntry::new("mine", "as random", "me", || Random));
        catalog.build(&PolicyConfig::named("mine")).unwrap();
        assert_eq!(catalog.entries().count(), PolicyCatalog::standard().entries().count() + 1);
    }
}
