//! A part's name and parameters as a person writes them: [`Choice`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::config::ConfigError;

/// The name of a part, and its parameters. A [`Catalog`](super::Catalog) knows whether the part exists.
///
/// On a command line `bounded-load,epsilon=0.25`; in a configuration file that text, or the table
/// `{ name = "bounded-load", epsilon = 0.25 }`. A parameter is a number, a word, or any other TOML value,
/// so one choice can be inside another: `guardrails,inner={ name = "power-of-two", d = 3 }`.
///
/// A choice is displayed and serialized as its text, which parses to the same choice again.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct Choice {
    /// The part's name.
    pub name: String,
    /// The parameters that are given; the others have their defaults.
    pub parameters: Table,
}

impl Choice {
    /// The part of this name, with all of its defaults.
    pub fn named(name: impl Into<String>) -> Self {
        Choice { name: name.into(), parameters: Table::new() }
    }

    /// The same choice with `value`, as a person would write it, for a parameter that is not given yet.
    #[must_use]
    pub fn or(mut self, parameter: &str, value: impl fmt::Display) -> Self {
        self.parameters.entry(parameter).or_insert_with(|| scalar(&value.to_string()));
        self
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (name, value) in &self.parameters {
            match value {
                // As it is, unless it would be read as something else.
                Value::String(word) if cut_value(word) == (value.clone(), None) => {
                    write!(f, ",{name}={word}")?;
                }
                value => write!(f, ",{name}={value}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Choice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Choice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let (name, mut rest) = match text.split_once(',') {
            Some((name, rest)) => (name.trim(), Some(rest)),
            None => (text.trim(), None),
        };
        if name.is_empty() {
            return Err(refuse("it has no name; `ol policies` lists the names"));
        }
        let mut choice = Choice::named(name);
        while let Some(text) = rest {
            let part = text.split(',').next().unwrap_or_default();
            let Some((key, value)) = text.split_once('=').filter(|_| part.contains('=')) else {
                let part = part.trim();
                let message = format!("\"{part}\" is no parameter; write {name},parameter=value");
                return Err(ConfigError::new(name, message));
            };
            let (key, (value, after)) = (key.trim(), cut_value(value));
            if choice.parameters.insert(key.to_owned(), value).is_some() {
                let message = format!("parameter \"{key}\" is given twice; leave one out");
                return Err(ConfigError::new(name, message));
            }
            rest = after;
        }
        Ok(choice)
    }
}

impl TryFrom<Value> for Choice {
    type Error = ConfigError;

    fn try_from(value: Value) -> Result<Self, ConfigError> {
        let wanted = "write \"NAME\", \"NAME,KEY=VALUE\" or { name = \"NAME\", KEY = VALUE }; `ol policies` \
                      lists the names";
        match value {
            Value::String(text) => text.parse(),
            Value::Table(mut parameters) => match parameters.remove("name") {
                Some(Value::String(name)) => Ok(Choice { name, parameters }),
                _ => Err(refuse(format!("it has no name; {wanted}"))),
            },
            _ => Err(refuse(format!("it is not a name in quotes and not a table; {wanted}"))),
        }
    }
}

fn refuse(message: impl Into<String>) -> ConfigError {
    ConfigError::new("", message)
}

/// The value that `text` begins with, and what follows the comma behind it.
fn cut_value(text: &str) -> (Value, Option<&str>) {
    let cut = |end: usize| (text[..end].trim(), text.get(end + 1..));
    let mut ends = text.match_indices(',').map(|(at, _)| at).chain([text.len()]);
    // Commas between quotes or brackets are the value's own.
    if text.trim_start().starts_with(['"', '\'', '{', '[']) {
        let whole =
            ends.clone().map(cut).find_map(|(value, rest)| Some((toml_value(value)?, rest)));
        if let Some(whole) = whole {
            return whole;
        }
    }
    let (word, rest) = cut(ends.next().unwrap_or_default());
    (scalar(word), rest)
}

/// A number as people write it (`.5`), else what TOML takes it for, else a word.
pub(super) fn scalar(text: &str) -> Value {
    let number = text.parse().map(Value::Integer).or_else(|_| text.parse().map(Value::Float));
    number.ok().or_else(|| toml_value(text)).unwrap_or_else(|| Value::String(text.to_owned()))
}

fn toml_value(text: &str) -> Option<Value> {
    let mut table: Table = format!("value = {text}").parse().ok()?;
    // With a line break, `text` could be more than a value.
    table.remove("value").filter(|_| table.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Choice {
        text.parse().unwrap()
    }

    #[test]
    fn a_text_is_a_name_and_parameters() {
        let choice =
            parse(" bounded-load , epsilon = 0.5,vnodes=7, on=true ,half=.5,as=x=y,like=it's");
        assert_eq!(choice.name, "bounded-load");
        let expected =
            "epsilon = 0.5\nvnodes = 7\non = true\nhalf = 0.5\nas = \"x=y\"\nlike = \"it's\"";
        assert_eq!(choice.parameters, expected.parse().unwrap());
        assert_eq!(parse("random"), Choice::named("random"));
    }

    #[test]
    fn what_is_no_choice_is_refused() {
        let error = |text: &str| text.parse::<Choice>().unwrap_err().to_string();
        assert!(error("").contains("ol policies"));
        assert!(error(",d=3").contains("ol policies"));
        let no_parameter =
            "bounded-load: \"epsilon\" is no parameter; write bounded-load,parameter=value";
        assert_eq!(error("bounded-load,epsilon"), no_parameter);
        assert_eq!(error("bounded-load, epsilon ,vnodes=3"), no_parameter);
        assert!(error("power-of-two,d=2,d=3").contains("twice"));
        assert!(error("random,").contains("parameter=value"));
    }

    #[test]
    fn files_name_a_part_by_a_text_or_a_table() {
        #[derive(Debug, Deserialize)]
        struct File {
            policy: Choice,
        }
        let read = |text: &str| toml::from_str::<File>(text).map(|file| file.policy.to_string());
        assert_eq!(read("policy = \"random\"").unwrap(), "random");
        assert_eq!(
            read("policy = { name = \"bounded-load\", epsilon = 0.5 }").unwrap(),
            "bounded-load,epsilon=0.5"
        );
        assert_eq!(read("[policy]\nname = \"power-of-two\"\nd = 3").unwrap(), "power-of-two,d=3");
        assert!(read("policy = 3").unwrap_err().to_string().contains("lists the names"));
        assert!(read("policy = { epsilon = 3 }").unwrap_err().to_string().contains("no name"));
        let json: Choice = serde_json::from_str("\"power-of-two,d=3\"").unwrap();
        assert_eq!(serde_json::to_string(&json).unwrap(), "\"power-of-two,d=3\"");
    }

    #[test]
    fn a_choice_may_have_another_inside() {
        let text = "guardrails,c=3,inner={ name = \"power-of-two\", d = 3 }";
        let choice = parse(text);
        let inner = Choice::try_from(choice.parameters["inner"].clone()).unwrap();
        assert_eq!(inner, parse("power-of-two,d=3"));
        assert_eq!(parse(&choice.to_string()), choice);
        let choice = parse("guardrails,inner=\"power-of-two,d=3\",c=3");
        assert_eq!(Choice::try_from(choice.parameters["inner"].clone()).unwrap(), inner);
        assert_eq!(choice.to_string(), "guardrails,c=3,inner=\"power-of-two,d=3\"");
    }

    #[test]
    fn a_default_fills_in_what_is_not_given() {
        assert_eq!(parse("ttl").or("seconds", 9.0).to_string(), "ttl,seconds=9");
        assert_eq!(parse("ttl,seconds=4").or("seconds", 9.0).to_string(), "ttl,seconds=4");
    }

    fn value() -> impl Strategy<Value = Value> {
        let word = prop_oneof!["\\PC{0,12}", "[a-z0-9.,='\"{}\\[\\]#\n\\\\ -]{0,12}"];
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::Integer),
            // What is not a number is not equal to itself.
            any::<f64>().prop_filter("a number", |number| !number.is_nan()).prop_map(Value::Float),
            any::<bool>().prop_map(Value::Boolean),
            word.prop_map(Value::String),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            let table = prop::collection::btree_map("\\PC{0,6}", inner.clone(), 0..4);
            let table = table.prop_map(|table| Value::Table(table.into_iter().collect()));
            prop_oneof![prop::collection::vec(inner, 0..4).prop_map(Value::Array), table]
        })
    }

    proptest! {
        #[test]
        fn the_text_reads_as_the_same_again(
            name in "[a-z][a-z-]{0,8}",
            parameters in prop::collection::btree_map("[a-z_]{1,6}", value(), 0..4),
        ) {
            let choice = Choice { name, parameters: parameters.into_iter().collect() };
            let text = choice.to_string();
            prop_assert_eq!(text.parse::<Choice>(), Ok(choice), "{}", text);
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,8}(,[a-z]=.{0,12}){0,3}") {
            if let Ok(choice) = text.parse::<Choice>() {
                prop_assert!(!choice.name.is_empty());
            }
        }
    }
}
