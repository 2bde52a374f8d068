//! Settings that come from flags, else the environment, else a file, else a default; and where each
//! one came from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};
use openlambda_core::config::parse_toml;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::error::{Context, Result};

/// The options of a command that can also stand in a TOML file, under the fields' names.
pub(crate) trait Settings: Args + DeserializeOwned + Default {
    /// What holds where nothing else is said, as TOML. A setting without a default is left out.
    fn defaults() -> String;

    /// These, and where they are silent, those of `other`.
    fn or(self, other: Self) -> Self;
}

/// What was given by flags and the environment, completed from the file and the defaults.
///
/// # Errors
///
/// That the file cannot be read, or which line of it is wrong.
pub(crate) fn complete<T: Settings>(given: T, file: Option<&Path>) -> Result<T> {
    let file = match file {
        Some(path) => read(path)?.0,
        None => T::default(),
    };
    Ok(given.or(file).or(parse_toml(&T::defaults(), "the defaults")?))
}

/// The file as settings, and as it is.
fn read<T: Settings>(path: &Path) -> Result<(T, Table)> {
    let origin = path.display().to_string();
    let text = std::fs::read_to_string(path).context(|| format!("cannot read {origin}"))?;
    Ok((parse_toml(&text, &origin)?, parse_toml(&text, &origin)?))
}

/// One setting, as it would be used.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
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

/// All settings of a command that was called with `flags`, and would read `file` unless they name
/// another one. Flags that are wrong end the program, as they end the command itself.
///
/// # Errors
///
/// As [`complete`].
pub(crate) fn explain<T: Settings>(
    program: &'static str,
    flags: &[OsString],
    file: Option<PathBuf>,
) -> Result<Vec<Setting>> {
    let command = T::augment_args(Command::new(program).no_binary_name(true));
    let matches = command.clone().try_get_matches_from(flags).unwrap_or_else(|error| error.exit());
    let path = matches.get_one::<PathBuf>("config").cloned().or(file);
    let table = match &path {
        Some(path) => read::<T>(path)?.1,
        None => Table::new(),
    };
    let defaults: Table = parse_toml(&T::defaults(), "the defaults")?;
    let mut settings = Vec::new();
    for argument in command.get_arguments() {
        let name = argument.get_id().as_str();
        if name == "config" {
            continue;
        }
        let flag = argument.get_long().map(|long| format!("--{long}"));
        let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
        let (origin, place, value) = match matches.value_source(name) {
            Some(ValueSource::CommandLine) => {
                (Origin::Flag, flag, Some(given::<T>(name, &matches)))
            }
            Some(ValueSource::EnvVariable) => {
                (Origin::Environment, variable, Some(given::<T>(name, &matches)))
            }
            _ => match (table.get(name), defaults.get(name)) {
                (Some(value), _) => {
                    let place = path.as_ref().map(|path| path.display().to_string());
                    (Origin::File, place, Some(value.clone()))
                }
                (None, Some(value)) => (Origin::Default, None, Some(value.clone())),
                (None, None) => (Origin::Unset, None, None),
            },
        };
        settings.push(Setting { name: name.to_owned(), value, origin, place });
    }
    Ok(settings)
}

/// What a flag or a variable says, as the file would: whatever of a number, a list and a text the
/// setting takes.
fn given<T: Settings>(name: &str, matches: &ArgMatches) -> Value {
    let texts: Vec<String> = matches
        .get_raw(name)
        .into_iter()
        .flatten()
        .map(|text| text.to_string_lossy().into_owned())
        .collect();
    let takes = |value: &Value| {
        let table = Table::from_iter([(name.to_owned(), value.clone())]);
        T::deserialize(table).is_ok()
    };
    let text = texts.join(",");
    let number = text.parse().map(Value::Integer).or_else(|_| text.parse().map(Value::Float));
    let list = Value::Array(texts.into_iter().map(Value::String).collect());
    let candidates = number.into_iter().chain([list]);
    candidates.into_iter().find(takes).unwrap_or(Value::String(text))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The defaults are valid, and the help tells the same.
    pub(crate) fn defaults_are_as_documented<T: Settings>() {
        let defaults: Table = parse_toml(&T::defaults(), "defaults").unwrap();
        parse_toml::<T>(&T::defaults(), "defaults").unwrap();
        let command = T::augment_args(Command::new("test"));
        let mut seen = 0;
        for argument in command.get_arguments() {
            let name = argument.get_id().as_str();
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            let told =
                help.split_once("[default: ").map(|(_, rest)| rest.trim_end_matches([']', '.']));
            let Some(value) = defaults.get(name) else { continue };
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(told, Some(value.trim_end_matches(".0")), "{name}: {help}");
            seen += 1;
        }
        assert_eq!(seen, defaults.len(), "a default has no flag");
    }
}
