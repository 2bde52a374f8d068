//! How long a call is expected to run: [`Estimates`].

use std::time::Duration;

use crate::scheduler::VersionId;

/// The expected time of the next run of each version: an exponentially weighted moving mean of those
/// that have ended, in which each new one weighs a quarter.
///
/// A building block of queue policies. Dense: by the version's number, 8 bytes each.
#[derive(Clone, Debug, Default)]
pub struct Estimates {
    /// Nanoseconds; 0 where no run has ended yet.
    means: Vec<u64>,
}

impl Estimates {
    /// What is expected, if any run of the version has ended.
    pub fn of(&self, version: VersionId) -> Option<Duration> {
        let mean = self.means.get(version.0 as usize).copied().filter(|mean| *mean > 0);
        mean.map(Duration::from_nanos)
    }

    /// A run has ended.
    pub fn observe(&mut self, version: VersionId, run: Duration) {
        let at = version.0 as usize;
        if at >= self.means.len() {
            self.means.resize(at + 1, 0);
        }
        // A run that takes no time is one, too.
        let run = u64::try_from(run.as_nanos()).unwrap_or(u64::MAX / 4).clamp(1, u64::MAX / 4);
        let mean = &mut self.means[at];
        *mean = if *mean == 0 { run } else { (*mean - *mean / 4 + run / 4).max(1) };
    }

    /// The version's number may be given to another one.
    pub fn forget(&mut self, version: VersionId) {
        if let Some(mean) = self.means.get_mut(version.0 as usize) {
            *mean = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_run_weighs_a_quarter() {
        let mut estimates = Estimates::default();
        let version = VersionId(3);
        assert_eq!(estimates.of(version), None);
        estimates.observe(version, Duration::from_millis(100));
        assert_eq!(estimates.of(version), Some(Duration::from_millis(100)));
        estimates.observe(version, Duration::from_millis(200));
        assert_eq!(estimates.of(version), Some(Duration::from_millis(125)));
        assert_eq!(estimates.of(VersionId(2)), None);
        estimates.forget(version);
        assert_eq!(estimates.of(version), None);
        estimates.observe(version, Duration::ZERO);
        estimates.observe(version, Duration::MAX);
        estimates.observe(version, Duration::MAX);
        assert!(estimates.of(version) > Some(Duration::from_secs(1_000_000_000)));
    }
}
