//! The name, flag, help and default of each setting, read from the struct of its section.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Args, Command, value_parser};
use openlambda_core::config::{WRONG_TYPE, explain};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::setting::{Origin, Setting};

/// Settings that belong together.
///
/// The fields of the struct are the keys of a table in a file; its `Args` give flags, variables and
/// help; its `Default` says what holds where nothing is said. It is never parsed by `clap` itself.
pub(crate) trait Section: Args + Default + Serialize + DeserializeOwned {
    /// The name of the table.
    const NAME: &'static str;

    /// Those that `ol up` decides, since each daemon needs another value.
    const OF_ONE: &'static [&'static str] = &[];

    /// Whether the values, each of the right type, can be meant: what is wrong and what to write.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A setting that can be given.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) section: &'static str,
    pub(crate) name: String,
    pub(crate) default: Option<Value>,
    /// `ol up` decides it.
    pub(crate) of_one: bool,
    /// Flag, variable, help.
    pub(crate) argument: Arg,
    takes: fn(Table) -> Result<(), String>,
}

impl Known {
    /// The settings of a section.
    pub(crate) fn of<S: Section>() -> Vec<Known> {
        let defaults = Table::try_from(S::default()).unwrap_or_default();
        let command = S::augment_args(Command::new(S::NAME));
        let known = command.get_arguments().map(|argument| {
            let name = argument.get_id().as_str().to_owned();
            let default = defaults.get(&name).cloned().map(plain);
            Known {
                section: S::NAME,
                of_one: S::OF_ONE.contains(&&*name),
                argument: argument
                    .clone()
                    .required(false)
                    .help(help_with(argument, default.as_ref()))
                    // What a shell completes follows from the type that the parser had.
                    .value_hint(argument.get_value_hint())
                    // `takes` says what is wrong with a value, the same for a flag, a variable and a file.
                    .value_parser(value_parser!(OsString))
                    .allow_negative_numbers(true),
                default,
                name,
                takes: |table| match table.try_into::<S>() {
                    Ok(section) => section.check(),
                    Err(error) => Err(explain(error.message())),
                },
            }
        });
        known.collect()
    }

    /// The same, with another default.
    pub(crate) fn with_default(mut self, value: Value) -> Known {
        let help = self.argument.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.split(" [default: ").next().unwrap_or_default().to_owned();
        self.argument = self.argument.help(help);
        self.argument = self.argument.clone().help(help_with(&self.argument, Some(&value)));
        self.default = Some(value);
        self
    }

    pub(crate) fn is(&self, section: &str, name: &str) -> bool {
        self.section == section && self.name == name
    }

    /// Whether the setting can have this value, and if not, why.
    pub(crate) fn takes(&self, value: &Value) -> Result<(), String> {
        if self.default.is_none() && value.as_str() == Some("") {
            return Err("it is empty; give it a value or leave it out".to_owned());
        }
        (self.takes)(Table::from_iter([(self.name.clone(), value.clone())]))
    }

    /// What texts on a command line mean: whatever of a number, a list and a text it takes. If it takes
    /// none, what its default is like.
    pub(crate) fn read(&self, texts: Vec<String>) -> Value {
        let text = texts.join(",");
        let number = text.parse().map(Value::Integer).or_else(|_| text.parse().map(Value::Float));
        let list = match self.argument.get_action() {
            ArgAction::Append => Some(Value::Array(texts.into_iter().map(Value::String).collect())),
            _ => None,
        };
        let mut candidates = number.clone().into_iter().chain(list.clone());
        let taken = candidates.find(|value| self.takes(value).is_ok());
        let is_number = self.default.as_ref().is_some_and(|it| it.is_integer() || it.is_float());
        // Of the right type, though out of range.
        let is_a_number = |number: &Value| {
            is_number || self.takes(number).is_err_and(|why| !why.contains(WRONG_TYPE))
        };
        let is_no_text = || self.takes(&text.clone().into()).is_err();
        let meant = || number.ok().filter(|number| is_a_number(number) && is_no_text());
        taken.or_else(meant).or(list).unwrap_or(Value::String(text))
    }

    pub(crate) fn setting(
        &self,
        value: Option<Value>,
        origin: Origin,
        place: Option<String>,
    ) -> Setting {
        Setting { section: self.section, name: self.name.clone(), value, origin, place }
    }
}

/// What a file writes as a word.
pub(super) fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    Value::String(text.to_owned())
        .try_into()
        .map_err(|error: toml::de::Error| explain(error.message()))
}

/// The help, which ends with the default unless it says what holds without one.
fn help_with(argument: &Arg, default: Option<&Value>) -> StyledStr {
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    match default {
        Some(Value::Array(_)) | None => help.into(),
        Some(Value::String(text)) => format!("{help} [default: {text}]").into(),
        Some(value) => format!("{help} [default: {value}]").into(),
    }
}

/// Without the point of a number that needs none.
fn plain(value: Value) -> Value {
    match value {
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            Value::Integer(number as i64)
        }
        value => value,
    }
}
