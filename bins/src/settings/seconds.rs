//! A duration in seconds, as people write it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A time in seconds, not negative, with a point where it needs one.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub(crate) struct Seconds(f64);

/// The longest that makes sense: some thirty years. No sum of a few of them overflows anything.
const LONGEST: f64 = 1e9;

impl Seconds {
    pub(crate) fn get(self) -> f64 {
        self.0
    }
}

impl From<Seconds> for f64 {
    fn from(seconds: Seconds) -> f64 {
        seconds.0
    }
}

impl From<Seconds> for Duration {
    fn from(seconds: Seconds) -> Duration {
        Duration::from_secs_f64(seconds.0)
    }
}

impl From<Duration> for Seconds {
    fn from(time: Duration) -> Seconds {
        Seconds(time.as_secs_f64().min(LONGEST))
    }
}

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        match (0.0..=LONGEST).contains(&seconds) {
            true => Ok(Seconds(seconds)),
            false => {
                Err(format!("{seconds} is not a time; use seconds from 0 to {}", LONGEST as u64))
            }
        }
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: f64 =
            text.parse().map_err(|_| "use a number of seconds, such as 30 or 0.5".to_owned())?;
        number.try_into()
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
