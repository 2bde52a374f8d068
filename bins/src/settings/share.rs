//! How much of one thing there is for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number that is not negative, with a point where it needs one.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub(crate) struct Share(f64);

/// No share is larger.
const LARGEST: f64 = 1e6;

impl Share {
    pub(crate) fn get(self) -> f64 {
        self.0
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> f64 {
        share.0
    }
}

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        match (0.0..=LARGEST).contains(&share) {
            true => Ok(Share(share)),
            false => Err(format!("{share} is not a share; use 0 to {LARGEST}")),
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: f64 = text.parse().map_err(|_| "use a number, such as 0.2".to_owned())?;
        number.try_into()
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
