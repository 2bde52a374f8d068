//! How many calls a worker runs at once: [`RunningLimit`].

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The most calls that a worker runs at once. An instance that is starting counts as one: its first call
/// has the place then. What is over the limit waits, in the order of the queue policy, also where a slot
/// is free.
///
/// With more running calls than processors all become slower, and those that wait cannot be put in an
/// order any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RunningLimit {
    /// As many as there are slots: memory is the only limit.
    #[default]
    None,
    /// At most this many, 1 or more.
    Calls(u32),
    /// As many as the machine's load allows.
    Load(LoadLimit),
}

/// A limit that follows the load of the machine: by one more each time that the load is reported and was
/// under the target although the limit was reached, by a quarter less when it was over it.
///
/// The load is the number of threads that run or want to, for each processor; at 1 no thread waits for a
/// processor. Additive increase and multiplicative decrease as TCP's, on the load: A. Fuerst et al.,
/// Ilúvatar, HPDC 2023.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadLimit {
    /// It begins with this many, and is never lower: 1 or more.
    pub least: u32,
    /// It is never higher than this.
    pub most: u32,
    /// The load that is aimed at, in threads per processor.
    pub target: f64,
}

impl LoadLimit {
    /// How often the load is to be reported.
    pub const EVERY: Duration = Duration::from_millis(250);
}

impl Default for LoadLimit {
    fn default() -> Self {
        LoadLimit { least: 1, most: 1024, target: 1.5 }
    }
}

/// A text that names no limit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "\"{text}\" is not a limit of running calls; write none, a number of calls (8), a multiple of the \
     processors (2x), or load, load=1.5 for threads per processor"
)]
pub struct LimitError {
    text: String,
}

impl RunningLimit {
    /// The limit that a text names on a machine with this many processors: `none`, `8`, `2x`, `load`,
    /// `load=1.5`.
    ///
    /// # Errors
    ///
    /// [`LimitError`] for every other text.
    pub fn parse(text: &str, processors: u32) -> Result<Self, LimitError> {
        let error = || LimitError { text: text.to_owned() };
        let number = |text: &str| {
            let number = f64::from_str(text).ok().filter(|number| number.is_finite());
            number.filter(|number| *number > 0.0).ok_or_else(error)
        };
        let processors = processors.max(1);
        let most = LoadLimit::default().most.max(processors.saturating_mul(64));
        let load = LoadLimit { least: processors, most, ..LoadLimit::default() };
        Ok(match text {
            "none" => RunningLimit::None,
            "load" => RunningLimit::Load(load),
            _ => match (text.strip_prefix("load="), text.strip_suffix('x')) {
                (Some(target), _) => {
                    RunningLimit::Load(LoadLimit { target: number(target)?, ..load })
                }
                (_, Some(times)) => {
                    let calls = libm::round(number(times)? * f64::from(processors)).max(1.0);
                    if calls > 1e6 {
                        return Err(error());
                    }
                    RunningLimit::Calls(calls as u32)
                }
                _ => match text.parse() {
                    Ok(calls) if calls > 0 => RunningLimit::Calls(calls),
                    _ => return Err(error()),
                },
            },
        })
    }

    /// Whether it wants reports of the machine's load.
    pub fn follows_the_load(&self) -> bool {
        matches!(self, RunningLimit::Load(_))
    }
}

/// The limit at the moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limiter {
    calls: u32,
    follows: Option<LoadLimit>,
    /// The limit has been reached since the last report.
    reached: bool,
}

impl Limiter {
    pub(super) fn new(limit: &RunningLimit) -> Self {
        let (calls, follows) = match limit {
            RunningLimit::None => (u32::MAX, None),
            RunningLimit::Calls(calls) => (*calls, None),
            RunningLimit::Load(load) => (load.least, Some(*load)),
        };
        Limiter { calls: calls.max(1), follows, reached: false }
    }

    /// Whether there is one at all.
    pub(super) fn limits(&self) -> bool {
        self.calls < u32::MAX
    }

    /// Its value.
    pub(super) fn calls(&self) -> u32 {
        self.calls
    }

    /// Whether one more may run beside this many.
    #[inline]
    pub(super) fn admits(&mut self, running: u32) -> bool {
        let admits = running < self.calls;
        self.reached |= !admits;
        admits
    }

    /// The load was so high lately, in threads per processor.
    pub(super) fn load(&mut self, load: f64) {
        let Some(LoadLimit { least, most, target }) = self.follows else { return };
        if load > target {
            self.calls = (self.calls - self.calls.div_ceil(4)).max(least).max(1);
        } else if self.reached {
            self.calls = self.calls.saturating_add(1).min(most.max(1));
        }
        self.reached = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_have_text_forms() {
        let parse = |text: &str| RunningLimit::parse(text, 4).unwrap();
        assert_eq!(parse("none"), RunningLimit::None);
        assert_eq!(parse("8"), RunningLimit::Calls(8));
        assert_eq!(parse("2x"), RunningLimit::Calls(8));
        assert_eq!(parse("0.1x"), RunningLimit::Calls(1));
        let load = LoadLimit { least: 4, most: 1024, target: 1.5 };
        assert_eq!(parse("load"), RunningLimit::Load(load));
        assert_eq!(parse("load=3"), RunningLimit::Load(LoadLimit { target: 3.0, ..load }));
        for text in [
            "", "0", "-1", "x", "0x", "1.5", "loads", "1e300x", "load=", "load=0", "load=NaN",
            "infx",
        ] {
            let error = RunningLimit::parse(text, 4).unwrap_err().to_string();
            assert!(error.contains("write none, a number of calls"), "{error}");
        }
    }

    #[test]
    fn a_limit_that_follows_the_load_grows_by_one_and_shrinks_by_a_quarter() {
        let config = LoadLimit { least: 2, most: 6, target: 1.0 };
        let mut limit = Limiter::new(&RunningLimit::Load(config));
        assert!(limit.admits(1) && limit.limits());
        limit.load(0.5);
        assert_eq!(limit.calls(), 2, "it was not reached");
        for expected in [3, 4, 5, 6, 6] {
            assert!(!limit.admits(limit.calls()));
            limit.load(0.5);
            assert_eq!(limit.calls(), expected);
        }
        for expected in [4, 3, 2, 2] {
            limit.load(1.5);
            assert_eq!(limit.calls(), expected);
        }
    }
}
