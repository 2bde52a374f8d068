//! Which values a bound can have: [`Allow::check_values`].

use thiserror::Error;

use super::{Allow, Bounds, Table};
use crate::function::FunctionName;

/// A bound that means nothing, or not what was meant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{key} in {table}: {message}")]
pub struct BadBound {
    /// The operator's key, or the name of a namespace.
    pub key: String,
    /// The table of the configuration that it stands in.
    pub table: String,
    /// What is wrong, and what to write.
    pub message: String,
}

impl Allow {
    /// Whether all bounds have values that can be kept, and stand for namespaces that there can be.
    ///
    /// What reads a configuration asks; a worker or registry whose bounds come from a program takes every
    /// value, and what is no number allows nothing.
    ///
    /// # Errors
    ///
    /// The first that does not.
    pub fn check_values(&self) -> Result<(), BadBound> {
        let bad = |key: &str, table: String, message: String| {
            Err(BadBound { key: key.to_owned(), table, message })
        };
        if let Err((key, message)) = self.all.check() {
            return bad(key, Table::OfAll.of(""), message);
        }
        for (namespace, bounds) in &self.namespace {
            if let Err(error) = FunctionName::new(namespace, "f") {
                let shown: String = namespace.chars().take(80).collect();
                return bad(&shown, "[allow.namespace]".to_owned(), error.to_string());
            }
            if let Err((key, message)) = bounds.check() {
                return bad(key, Table::OfNamespace.of(namespace), message);
            }
        }
        Ok(())
    }
}

impl Bounds {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let bad = |key, message| Err((key, message));
        if let Some(share) = self.memory_share
            && !(share > 0.0 && share <= 1.0)
        {
            let message =
                format!("{share} is not a share; use more than 0 and at most 1, such as 0.5");
            return bad("memory_share", message);
        }
        // A manifest asks for no more, so more is a mistake: of units, or of a digit.
        let numbers = [
            ("cpus", self.cpus, 1024.0),
            ("timeout_seconds", self.timeout_seconds, 86_400.0),
            ("pause_after_seconds", self.pause_after_seconds, 86_400.0),
            ("calls_per_second", self.calls_per_second, 1e9),
        ];
        for (key, value, most) in numbers {
            if let Some(value) = value
                && !(0.0..=most).contains(&value)
            {
                return bad(key, format!("{value} is out of range; use 0 to {most}"));
            }
        }
        for place in self.volume_places.iter().flatten() {
            let below = place.strip_prefix('/').map(|path| path.strip_suffix('/').unwrap_or(path));
            let is_clean = |path: &str| {
                let odd = |part: &str| ["", ".", ".."].contains(&part) || part.contains('\0');
                path.is_empty() || !path.split('/').any(odd)
            };
            if !below.is_some_and(is_clean) {
                let shown: String = place.chars().take(80).collect();
                let message = format!(
                    "\"{shown}\" is no place for volumes; use an absolute path without \".\", \"..\" \
                     and empty parts, such as \"/data\""
                );
                return bad("volume_places", message);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), String> {
        let allow: Allow = toml::from_str(text).unwrap();
        allow.check_values().map_err(|error| error.to_string())
    }

    #[test]
    fn what_no_bound_can_be_is_refused_with_its_key_and_what_to_write() {
        for (text, expected) in [
            (
                "memory_share = 50",
                "memory_share in [allow]: 50 is not a share; use more than 0 and",
            ),
            ("memory_share = -1", "memory_share in [allow]: -1 is not a share"),
            ("memory_share = nan", "NaN is not a share"),
            ("memory_share = 0", "0 is not a share"),
            ("memory_share = inf", "inf is not a share"),
            ("cpus = nan", "cpus in [allow]: NaN is out of range; use 0 to 1024"),
            ("cpus = -0.5", "-0.5 is out of range"),
            ("cpus = 5000", "5000 is out of range"),
            ("timeout_seconds = inf", "inf is out of range; use 0 to 86400"),
            ("calls_per_second = -3", "-3 is out of range"),
            ("calls_per_second = nan", "NaN is out of range"),
            (
                "volume_places = [\"data\"]",
                "\"data\" is no place for volumes; use an absolute path",
            ),
            ("volume_places = [\"/data\", \"\"]", "\"\" is no place"),
            ("volume_places = [\"/data/../etc\"]", "\"/data/../etc\" is no place"),
            ("volume_places = [\"//data\"]", "\"//data\" is no place"),
            ("[namespace.a]\nmemory_share = 2", "memory_share in [allow.namespace.a]: 2 is not"),
            (
                "[namespace.\"a b\"]\ncpus = 2",
                "a b in [allow.namespace]: \"a b\" is not a valid name",
            ),
            ("[namespace.\"\"]\ncpus = 2", "\"\" is not a valid namespace"),
        ] {
            let said = checked(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
        for text in [
            "memory_share = 1\ncpus = 0.5\ntimeout_seconds = 86400\ncalls_per_second = 0",
            "volume_places = []\nmemory_share = 1e-3",
            "volume_places = [\"/\", \"/data\", \"/data/\", \"/a/b.c\"]\n[namespace.a-1_b]\ncpus = 1",
        ] {
            checked(text).unwrap();
        }
    }
}
