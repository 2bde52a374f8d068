//! The configuration of a scheduler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RunningLimit;

/// What the scheduler is told about the worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// The size of the memory pool, bytes.
    pub memory: u64,
    /// How many instances may be starting at once.
    pub max_starting: u32,
    /// Pause an instance after this time without use; `None` never pauses.
    pub pause_after: Option<Duration>,
    /// When a wish for memory is older than this, busy instances of other versions that become free
    /// are evicted for it although invocations of their own wait.
    pub fairness: Duration,
    /// How long a slot is held for a reservation's invocation before it goes to the next: some
    /// round trips to the balancer, since nothing runs there meanwhile.
    pub offer_timeout: Duration,
    /// Which instance gets a call when several have a free slot.
    pub pick: InstanceChoice,
    /// How many calls run at once.
    #[serde(default)]
    pub running: RunningLimit,
}

/// Which instance of a version gets a call, of those with a free slot.
///
/// Both leave the same ones idle as long as they can, so that what the load does not need expires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceChoice {
    /// The one that had no free slot most recently: what it used last is still in the processor's
    /// caches. O(1).
    #[default]
    MostRecent,
    /// The one that was started last. Which one that is does not depend on the order in which calls
    /// end. O(1) while the free ones are older than those in use, which this choice sees to; else
    /// O(free ones of the version) when a slot becomes free.
    Newest,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            memory: 4 << 30,
            max_starting: 16,
            pause_after: None,
            fairness: Duration::from_secs(1),
            offer_timeout: Duration::from_millis(200),
            pick: InstanceChoice::default(),
            running: RunningLimit::default(),
        }
    }
}
