//! From a policy's name and parameters to the policy.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use super::{
    DEFAULT_TTL, Freq, GreedyDual, Histogram, HistogramConfig, KeepAlivePolicy, Landlord, Lru,
    Size, Ttl,
};
use crate::config::{ConfigError, nearest};

/// The policies that can be chosen by name.
pub static ENTRIES: [KeepAliveEntry; 7] = [
    KeepAliveEntry {
        name: "ttl",
        about: "a fixed time without use",
        source: "most platforms; OpenWhisk: 10 minutes",
        parameters: &[ParameterInfo {
            name: "seconds",
            default: DEFAULT_TTL.as_secs() as f64,
            least: 0.0,
            most: LONGEST,
            about: "how long an idle instance is kept",
        }],
        build: |values| Box::new(Ttl::new(seconds(values[0]))),
    },
    KeepAliveEntry {
        name: "lru",
        about: "until memory is short; then the least recently used goes",
        source: "the textbook; Sleator, Tarjan, CACM 1985",
        parameters: &[],
        build: |_| Box::new(Lru::default()),
    },
    KeepAliveEntry {
        name: "freq",
        about: "until memory is short; then the least frequently called goes",
        source: "the textbook's LFU",
        parameters: &[],
        build: |_| Box::new(Freq::default()),
    },
    KeepAliveEntry {
        name: "size",
        about: "until memory is short; then the largest goes",
        source: "Williams et al., Removal Policies in Network Caches, SIGCOMM 1996",
        parameters: &[],
        build: |_| Box::new(Size::default()),
    },
    KeepAliveEntry {
        name: "landlord",
        about: "until memory is short; then all pay rent by size from what their starts cost, and \
                who is out of credit goes",
        source: "Young, On-Line File Caching, SODA 1998, Algorithmica 2002",
        parameters: &[],
        build: |_| Box::new(Landlord::default()),
    },
    KeepAliveEntry {
        name: "greedy-dual",
        about: "until memory is short; then the lowest of clock + frequency x cost / size goes",
        source: "Fuerst, Sharma, FaasCache, ASPLOS 2021",
        parameters: &[ParameterInfo {
            name: "per_instance",
            default: 0.0,
            least: 0.0,
            most: 1.0,
            about: "1 counts each instance's own invocations, not those of its function",
        }],
        build: |values| Box::new(GreedyDual::new(values[0] > 0.5)),
    },
    KeepAliveEntry {
        name: "histogram",
        about: "learns how long each function rests: ends its instance, and starts one before the \
                next call is due",
        source: "Shahrad et al., Serverless in the Wild, USENIX ATC 2020; without its ARIMA part",
        parameters: &[
            ParameterInfo {
                name: "range_minutes",
                default: 240.0,
                least: 1.0,
                most: 10_080.0,
                about: "the longest rest that it counts, in bins of a minute",
            },
            ParameterInfo {
                name: "head",
                default: 0.05,
                least: 0.0,
                most: 1.0,
                about: "the share of rests that may be shorter than the instance is away",
            },
            ParameterInfo {
                name: "tail",
                default: 0.99,
                least: 0.0,
                most: 1.0,
                about: "the share of rests that end while the instance is kept",
            },
            ParameterInfo {
                name: "margin",
                default: 0.1,
                least: 0.0,
                most: 1.0,
                about: "how much earlier it comes, and how much later it goes",
            },
            ParameterInfo {
                name: "cv",
                default: 2.0,
                least: 0.0,
                most: 1000.0,
                about: "the least coefficient of variation of the bins that tells anything",
            },
            ParameterInfo {
                name: "samples",
                default: 5.0,
                least: 1.0,
                most: 1e9,
                about: "how many rests tell anything",
            },
            ParameterInfo {
                name: "fallback_seconds",
                default: 14_400.0,
                least: 0.0,
                most: LONGEST,
                about: "how long an instance is kept while the histogram tells nothing",
            },
        ],
        build: |values| {
            Box::new(Histogram::new(HistogramConfig {
                range_minutes: values[0] as u32,
                head: values[1],
                tail: values[2],
                margin: values[3],
                cv: values[4],
                samples: values[5] as u64,
                fallback: seconds(values[6]),
            }))
        },
    },
];

/// The names of [`ENTRIES`], in the same order.
pub const NAMES: [&str; 7] = ["ttl", "lru", "freq", "size", "landlord", "greedy-dual", "histogram"];

/// A century, in seconds: longer than anything is kept.
const LONGEST: f64 = 100.0 * 365.0 * 86_400.0;

fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(value)
}

/// One policy that can be chosen by name.
#[derive(Debug, Serialize)]
pub struct KeepAliveEntry {
    /// Its name, as `greedy-dual`.
    pub name: &'static str,
    /// How long it keeps instances, in a line.
    pub about: &'static str,
    /// Where it comes from: a paper, a system.
    pub source: &'static str,
    /// What can be set; all are numbers.
    pub parameters: &'static [ParameterInfo],
    /// Makes it from the values of its parameters, in their order and within their bounds.
    #[serde(skip)]
    build: fn(&[f64]) -> Box<dyn KeepAlivePolicy>,
}

/// A parameter of a policy.
#[derive(Debug, PartialEq, Serialize)]
pub struct ParameterInfo {
    /// Its name.
    pub name: &'static str,
    /// Its value when it is not given.
    pub default: f64,
    /// The least value that it can have.
    pub least: f64,
    /// The greatest.
    pub most: f64,
    /// What it does.
    pub about: &'static str,
}

/// Which policy, and its parameters; there is none that is not valid.
///
/// Read from a text: the name, and after commas the parameters that are not to have their defaults,
/// as `ttl,seconds=60`. Displays as such a text.
#[derive(Clone, Debug)]
pub struct KeepAliveConfig {
    entry: &'static KeepAliveEntry,
    /// The values that were given, at the places of their parameters.
    given: Vec<Option<f64>>,
}

impl KeepAliveConfig {
    /// The policy that is chosen.
    pub fn entry(&self) -> &'static KeepAliveEntry {
        self.entry
    }

    /// With `ttl` as the time of the policy `ttl`, unless it was given. Times over a century count
    /// as one.
    #[must_use]
    pub fn or_ttl(mut self, ttl: Duration) -> Self {
        if self.entry.name == "ttl" {
            self.given[0].get_or_insert(ttl.as_secs_f64().min(LONGEST));
        }
        self
    }

    /// Makes the policy.
    pub fn build(&self) -> Box<dyn KeepAlivePolicy> {
        let parameters = self.entry.parameters.iter();
        let values = parameters.zip(&self.given).map(|(info, given)| given.unwrap_or(info.default));
        (self.entry.build)(&values.collect::<Vec<f64>>())
    }
}

impl PartialEq for KeepAliveConfig {
    fn eq(&self, other: &Self) -> bool {
        self.entry.name == other.entry.name && self.given == other.given
    }
}

impl fmt::Display for KeepAliveConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)?;
        for (info, given) in self.entry.parameters.iter().zip(&self.given) {
            if let Some(value) = given {
                write!(f, ",{}={value}", info.name)?;
            }
        }
        Ok(())
    }
}

impl FromStr for KeepAliveConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let entry = ENTRIES.iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| refuse("keep-alive", unknown("policy", name, &NAMES)))?;
        let mut config = KeepAliveConfig { entry, given: vec![None; entry.parameters.len()] };
        for part in parts {
            config.give(part).map_err(|why| refuse(&format!("keep-alive {name}"), why))?;
        }
        Ok(config)
    }
}

impl KeepAliveConfig {
    /// Takes in one `parameter=value`.
    fn give(&mut self, text: &str) -> Result<(), String> {
        let name = self.entry.name;
        let (key, value) = text.split_once('=').ok_or_else(|| {
            format!("\"{text}\" is no parameter; write the policy as {name},parameter=value")
        })?;
        let (key, value) = (key.trim(), value.trim());
        let parameters = self.entry.parameters;
        let place = parameters.iter().position(|info| info.name == key).ok_or_else(|| {
            let known: Vec<&str> = parameters.iter().map(|info| info.name).collect();
            unknown("parameter", key, &known)
        })?;
        let ParameterInfo { least, most, .. } = parameters[place];
        let number = value.parse::<f64>().ok().filter(|number| (least..=most).contains(number));
        let number = number.ok_or_else(|| {
            format!("{key} = {value} is not valid; use a number from {least} to {most}")
        })?;
        match self.given[place].replace(number) {
            None => Ok(()),
            Some(_) => Err(format!("parameter \"{key}\" is given twice; leave one out")),
        }
    }
}

fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown {what} \"{name}\"; did you mean \"{near}\"?"),
        None if known.is_empty() => format!("unknown {what} \"{name}\"; it takes none"),
        None => format!("unknown {what} \"{name}\"; known are {}", known.join(", ")),
    }
}

fn refuse(origin: &str, message: String) -> ConfigError {
    ConfigError { origin: origin.to_owned(), line: None, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<KeepAliveConfig>().unwrap_err().to_string()
    }

    #[test]
    fn every_entry_builds_with_its_defaults_and_with_them_spelt_out() {
        assert_eq!(NAMES, ENTRIES.each_ref().map(|entry| entry.name));
        for entry in &ENTRIES {
            let plain = format!("{:?}", entry.name.parse::<KeepAliveConfig>().unwrap().build());
            let mut text = entry.name.to_owned();
            for parameter in entry.parameters {
                assert!((parameter.least..=parameter.most).contains(&parameter.default));
                text += &format!(",{}={}", parameter.name, parameter.default);
            }
            let config: KeepAliveConfig = text.parse().unwrap();
            assert_eq!(config.to_string(), text);
            assert_eq!(format!("{:?}", config.build()), plain, "{text}");
        }
    }

    #[test]
    fn what_is_unknown_is_refused_with_the_nearest() {
        assert_eq!(
            error("greedy_dual"),
            "keep-alive: unknown policy \"greedy_dual\"; did you mean \"greedy-dual\"?"
        );
        assert!(error("zzzzzz").contains("known are ttl, lru, freq"));
        assert_eq!(
            error("ttl,second=3"),
            "keep-alive ttl: unknown parameter \"second\"; did you mean \"seconds\"?"
        );
        assert!(error("lru,seconds=3").ends_with("it takes none"));
        assert!(error("ttl,3").contains("ttl,parameter=value"));
        assert!(error("ttl,seconds=3,seconds=3").contains("twice"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for text in [
            "ttl,seconds=-1",
            "ttl,seconds=nan",
            "ttl,seconds=inf",
            "ttl,seconds=long",
            "histogram,head=1.1",
            "histogram,range_minutes=0",
        ] {
            assert!(error(text).contains("is not valid; use a number from"), "{text}");
        }
    }

    #[test]
    fn a_time_from_elsewhere_is_only_a_default() {
        let ttl = |text: &str| {
            let config: KeepAliveConfig = text.parse().unwrap();
            config.or_ttl(Duration::from_secs(9)).to_string()
        };
        assert_eq!(ttl("ttl"), "ttl,seconds=9");
        assert_eq!(ttl("ttl, seconds = 4"), "ttl,seconds=4");
        assert_eq!(ttl("histogram"), "histogram");
    }
}
