//! The settings that a program gets from its command line and its environment.

use std::ffi::OsString;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::program::Program;
use super::setting::{Origin, Setting};
use crate::error::{CliError, Result};

/// The settings that flags and variables say, for one program. A part of any command's arguments.
pub(crate) struct Given<P> {
    file: Option<PathBuf>,
    settings: Vec<Setting>,
    program: PhantomData<fn() -> P>,
}

impl<P> Clone for Given<P> {
    fn clone(&self) -> Self {
        let (file, settings) = (self.file.clone(), self.settings.clone());
        Given { file, settings, program: PhantomData }
    }
}

impl<P> fmt::Debug for Given<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given").field("file", &self.file).field("settings", &self.settings).finish()
    }
}

impl<P: Program> Given<P> {
    /// Nothing but what the environment says.
    ///
    /// # Errors
    ///
    /// A variable whose value cannot be.
    pub(crate) fn by_environment() -> Result<Given<P>> {
        let parse = || {
            let matches = Self::command().try_get_matches_from([] as [OsString; 0])?;
            Given::from_arg_matches(&matches)
        };
        parse().map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            CliError::new(first.trim_start_matches("error: ").to_owned())
        })
    }

    /// What it would be given by these flags. Those that are wrong end the program, as they end the
    /// command itself.
    pub(crate) fn by_flags(flags: &[OsString]) -> Given<P> {
        let matches = Self::command().try_get_matches_from(flags);
        let given = matches.and_then(|matches| Given::from_arg_matches(&matches));
        crate::terminal::parsed(given)
    }

    fn command() -> Command {
        Self::augment_args(Command::new(P::NAME).no_binary_name(true))
    }

    /// The file that it is told to read.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    pub(crate) fn settings(&self) -> &[Setting] {
        &self.settings
    }
}

impl<P: Program> Args for Given<P> {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE.toml")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Read settings from this TOML file; flags and the environment override it");
        command.arg(file).args(P::known().into_iter().map(|known| known.argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<P: Program> FromArgMatches for Given<P> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut settings = Vec::new();
        for known in P::known() {
            let id = known.argument.get_id().as_str();
            let (origin, place) = match matches.value_source(id) {
                Some(ValueSource::CommandLine) => {
                    let long = known.argument.get_long().unwrap_or_default();
                    (Origin::Flag, format!("--{long}"))
                }
                Some(ValueSource::EnvVariable) => {
                    let name = known.argument.get_env().unwrap_or_default();
                    (Origin::Environment, name.to_string_lossy().into_owned())
                }
                _ => continue,
            };
            let texts = matches.get_raw(id).into_iter().flatten();
            let texts: Vec<_> = texts.map(|text| text.to_string_lossy().into_owned()).collect();
            // As scripts unset a variable.
            if origin == Origin::Environment && texts.iter().all(String::is_empty) {
                continue;
            }
            let value = known.read(texts.clone());
            known.takes(&value).map_err(|why| {
                let sign = if origin == Origin::Flag { ' ' } else { '=' };
                let message = format!("{place}{sign}{}: {why}", texts.join(","));
                // Formatted here, it tells the usage of this program and not of all commands.
                clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
                    .format(&mut Self::command())
            })?;
            settings.push(known.setting(Some(value), origin, Some(place)));
        }
        let file = matches.get_one::<PathBuf>("config").cloned();
        Ok(Given { file, settings, program: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
