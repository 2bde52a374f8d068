//! How many of something there may be.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use toml::Value;

/// A whole number from `LEAST` to `MOST`. Of most things there has to be one, or nothing works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "u64")]
pub(crate) struct Count<const MOST: u64 = 1_000_000_000, const LEAST: u64 = 1>(u64);

impl<const MOST: u64, const LEAST: u64> Count<MOST, LEAST> {
    /// What the library has by default, brought into range.
    pub(crate) fn of(count: u64) -> Self {
        Count(count.clamp(LEAST, MOST))
    }

    pub(crate) fn get(self) -> u64 {
        self.0
    }
}

impl<const MOST: u64, const LEAST: u64> From<Count<MOST, LEAST>> for u64 {
    fn from(count: Count<MOST, LEAST>) -> u64 {
        count.0
    }
}

impl<const MOST: u64, const LEAST: u64> TryFrom<Value> for Count<MOST, LEAST> {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value {
            Value::Integer(count) => u64::try_from(count)
                .ok()
                .filter(|count| (LEAST..=MOST).contains(count))
                .map(Count)
                .ok_or_else(|| format!("{count} is out of range; use {LEAST} to {MOST}")),
            other => Err(format!("{other} is not a whole number; use {LEAST} to {MOST}")),
        }
    }
}

impl<const MOST: u64, const LEAST: u64> FromStr for Count<MOST, LEAST> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().map(Value::Integer);
        Count::try_from(number.unwrap_or_else(|_| Value::String(text.to_owned())))
    }
}

impl<const MOST: u64, const LEAST: u64> fmt::Display for Count<MOST, LEAST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
