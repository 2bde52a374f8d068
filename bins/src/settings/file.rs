//! Reads the settings' file.
//!
//! Each section has a table. A key outside of all tables belongs to the first section that has it, the
//! program's own before the others, so that a file for one program needs no table.

use std::io::Read;
use std::path::Path;

use openlambda_core::config::{ConfigError, explain, nearest};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::cluster::ClusterSettings;
use super::program::{Program, everything};
use super::section::{Known, Section};
use super::setting::{Origin, Setting};
use crate::error::{CliError, Result};

/// The longest file of settings, bytes.
const LENGTH_LIMIT: u64 = 1 << 20;

/// What the file says, for whatever program.
///
/// # Errors
///
/// That it cannot be read, or which line of it is wrong, and what to do about it. What is not for this
/// program is checked as well.
pub(super) fn read<P: Program>(path: &Path) -> Result<Vec<Setting>> {
    let origin = path.display().to_string();
    let mut text = String::new();
    // Who names a link or a pipe wants it read.
    let opened = std::fs::File::open(path);
    let read = opened.and_then(|file| file.take(LENGTH_LIMIT + 1).read_to_string(&mut text));
    read.map_err(|error| {
        let message =
            format!("cannot read {origin}: {error}; name a file of settings with --config");
        CliError::new(message)
    })?;
    if text.len() as u64 > LENGTH_LIMIT {
        let most = LENGTH_LIMIT >> 10;
        return Err(CliError::new(format!(
            "{origin} is over {most} KiB; name a file of settings with --config"
        )));
    }
    let mut file = File { origin, text: &text, own: P::OWN, known: everything(), told: Vec::new() };
    file.read()?;
    // A daemon reads its own values; `ol up` decides them, so a file that has them means another.
    let decided = P::OWN == ClusterSettings::NAME;
    for (setting, line) in file.told.iter().filter(|_| decided) {
        if file.known.iter().any(|known| known.of_one && known.is(setting.section, &setting.name)) {
            let message = format!(
                "ol up decides {}.{} for each of its daemons; leave it out",
                setting.section, setting.name
            );
            return Err(CliError::from(file.refuse(*line, message)));
        }
    }
    Ok(file.told.into_iter().map(|(setting, _)| setting).collect())
}

struct File<'a> {
    origin: String,
    text: &'a str,
    own: &'static str,
    known: Vec<Known>,
    /// With the line.
    told: Vec<(Setting, usize)>,
}

impl File<'_> {
    fn read(&mut self) -> Result<(), ConfigError> {
        let broken = |error: toml::de::Error| {
            let span = error.span().unwrap_or_default();
            let message = match (error.message(), self.text.get(span.clone())) {
                ("duplicate key", Some(key)) => {
                    format!("{} is there already; put both together, or leave one out", key.trim())
                }
                (message, _) => explain(message),
            };
            self.refuse(self.line(span.start), message)
        };
        let values: Table = toml::from_str(self.text).map_err(broken)?;
        let places = DeTable::parse(self.text).map_err(broken)?;
        let mut keys = Vec::new();
        for (key, place) in places.get_ref() {
            let name = &**key.get_ref();
            match (&values[name], place.get_ref().as_table()) {
                (Value::Table(inner), Some(places)) if self.is_section(name) => {
                    let inside = places.iter().map(|(key, place)| {
                        let name_inside = &**key.get_ref();
                        let (at, value) = (key.span().start, &inner[name_inside]);
                        (at, Some(name), name_inside, value, place.get_ref())
                    });
                    keys.extend(inside);
                }
                (value, _) => keys.push((key.span().start, None, name, value, place.get_ref())),
            }
        }
        keys.sort_unstable_by_key(|(at, ..)| *at);
        for (at, section, name, value, place) in keys {
            self.take(section, name, value, (self.line(at), place))?;
        }
        Ok(())
    }

    /// Which part of a value that is refused is at fault, and where: the first that is refused by itself.
    fn culprit(
        &self,
        known: &Known,
        value: &Value,
        place: &DeValue<'_>,
    ) -> Option<(usize, String)> {
        let (Some(parts), Some(places)) = (value.as_table(), place.as_table()) else { return None };
        // In the order of the text.
        let mut keys: Vec<_> = places.iter().collect();
        keys.sort_unstable_by_key(|(key, _)| key.span().start);
        keys.into_iter().find_map(|(key, place)| {
            let name = &**key.get_ref();
            let alone = |value: Value| Value::Table(Table::from_iter([(name.to_owned(), value)]));
            let refused = |value: Value| known.takes(&alone(value)).err();
            let line = |at: usize| self.line(at);
            let value = &parts[name];
            let why = refused(value.clone())?;
            let (Some(inner), Some(places)) = (value.as_table(), place.get_ref().as_table()) else {
                return Some((line(key.span().start), why));
            };
            let mut keys: Vec<_> = places.keys().collect();
            keys.sort_unstable_by_key(|key| key.span().start);
            let inside = keys.into_iter().find_map(|key| {
                let name = &**key.get_ref();
                let one = Table::from_iter([(name.to_owned(), inner[name].clone())]);
                let why = refused(Value::Table(one))?;
                // What is wrong with all of them is wrong with none.
                let around = refused(Value::Table(Table::new()));
                around.is_none().then(|| (line(key.span().start), why))
            });
            Some(inside.unwrap_or((line(key.span().start), why)))
        })
    }

    /// One key, in the table of a section or outside of all.
    fn take(
        &mut self,
        section: Option<&str>,
        name: &str,
        value: &Value,
        (line, place): (usize, &DeValue<'_>),
    ) -> Result<(), ConfigError> {
        let within = |known: &&Known| section.is_none_or(|section| section == known.section);
        let here = || self.known.iter().filter(within);
        let mut found = here().filter(|known| known.name == name);
        let own = found.clone().find(|known| known.section == self.own);
        let Some(known) = own.or_else(|| found.next()) else {
            return Err(self.refuse(line, self.unknown(section, name, value)));
        };
        if let Err(why) = known.takes(value) {
            let (line, why) = self.culprit(known, value, place).unwrap_or((line, why));
            return Err(self.refuse(line, format!("{name}: {why}")));
        }
        if let Some((_, before)) =
            self.told.iter().find(|(told, _)| known.is(told.section, &told.name))
        {
            let message =
                format!("{}.{name} is said in line {before} already; leave one out", known.section);
            return Err(self.refuse(line, message));
        }
        let setting = known.setting(Some(value.clone()), Origin::File, Some(self.origin.clone()));
        self.told.push((setting, line));
        Ok(())
    }

    fn unknown(&self, section: Option<&str>, name: &str, value: &Value) -> String {
        if section.is_none() && self.is_section(name) && value.is_array() {
            return format!("there is one [{name}] for all; write [{name}] in place of [[{name}]]");
        }
        let sections = self.known.iter().map(|known| known.section);
        if section.is_none()
            && value.is_table()
            && let Some(near) = nearest(&name.to_lowercase(), sections)
        {
            return format!("unknown table [{name}]; did you mean [{near}]?");
        }
        let near = |own: bool| {
            let within = |known: &&Known| match section {
                Some(section) => section == known.section,
                None => !own || known.section == self.own,
            };
            nearest(name, self.known.iter().filter(within).map(|known| &*known.name))
        };
        let place = section.map(|section| format!(" in [{section}]")).unwrap_or_default();
        match near(true).or_else(|| near(false)) {
            Some(near) => format!("unknown key \"{name}\"{place}; did you mean \"{near}\"?"),
            None => format!("unknown key \"{name}\"{place}; `ol config show` lists the keys"),
        }
    }

    fn is_section(&self, name: &str) -> bool {
        self.known.iter().any(|known| known.section == name)
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text[..at].matches('\n').count()
    }

    fn refuse(&self, line: usize, message: impl Into<String>) -> ConfigError {
        let message = message.into();
        ConfigError { line: Some(line), ..ConfigError::new(&*self.origin, message) }
    }
}
