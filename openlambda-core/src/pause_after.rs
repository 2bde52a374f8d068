//! When an instance is paused: [`PauseAfter`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long an instance has to be without use until it is paused. Written as a number of seconds, or
/// `"never"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum PauseAfter {
    /// It runs on between its calls.
    Never,
    /// It is paused after this time; at once, when that is zero.
    After(Duration),
}

impl PauseAfter {
    /// The longest that can be asked for: some thirty years. No sum of a few of them overflows anything.
    const LONGEST_SECONDS: f64 = 1e9;

    /// The time; `None` for never.
    pub fn time(self) -> Option<Duration> {
        match self {
            PauseAfter::Never => None,
            PauseAfter::After(time) => Some(time),
        }
    }

    /// The time in seconds, infinity for never.
    pub fn seconds(self) -> f64 {
        self.time().map_or(f64::INFINITY, |time| time.as_secs_f64())
    }
}

impl From<Option<Duration>> for PauseAfter {
    fn from(time: Option<Duration>) -> Self {
        time.map_or(PauseAfter::Never, PauseAfter::After)
    }
}

impl fmt::Display for PauseAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PauseAfter::Never => f.pad("never"),
            PauseAfter::After(time) => time.as_secs_f64().fmt(f),
        }
    }
}

impl FromStr for PauseAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(seconds) => Written::Seconds(seconds).try_into(),
            Err(_) => Written::Word(text.to_owned()).try_into(),
        }
    }
}

/// As files have it.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "use a number of seconds, such as 0.5, or \"never\"")]
enum Written {
    Seconds(f64),
    Word(String),
}

impl TryFrom<Written> for PauseAfter {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Seconds(seconds) if (0.0..=Self::LONGEST_SECONDS).contains(&seconds) => {
                Ok(PauseAfter::After(Duration::from_secs_f64(seconds)))
            }
            Written::Seconds(seconds) => {
                let most = Self::LONGEST_SECONDS as u64;
                Err(format!("{seconds} is not a time; use seconds from 0 to {most}, or \"never\""))
            }
            Written::Word(word) if word == "never" => Ok(PauseAfter::Never),
            Written::Word(_) => {
                Err("use a number of seconds, such as 0.5, or \"never\"".to_owned())
            }
        }
    }
}

impl From<PauseAfter> for Written {
    fn from(after: PauseAfter) -> Self {
        match after {
            PauseAfter::Never => Written::Word("never".to_owned()),
            PauseAfter::After(time) => Written::Seconds(time.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for (text, after) in [
            ("never", PauseAfter::Never),
            ("0", PauseAfter::After(Duration::ZERO)),
            ("0.25", PauseAfter::After(Duration::from_millis(250))),
        ] {
            assert_eq!(text.parse(), Ok(after));
            assert_eq!(after.to_string(), text);
            let json = serde_json::to_string(&after).unwrap();
            assert_eq!(serde_json::from_str::<PauseAfter>(&json).unwrap(), after);
        }
        for text in ["", "soon", "-1", "NaN", "inf", "1e10"] {
            let error = text.parse::<PauseAfter>().unwrap_err();
            assert!(error.ends_with("\"never\""), "{text}: {error}");
        }
    }
}
