//! The configuration of a scheduler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::RunningLimit;

/// The configuration of a scheduler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerConfig {
    /// The size of the memory pool, bytes.
    pub memory: u64,
    /// How many instances may be starting at once.
    pub max_starting: u32,
    /// Pause an instance after this time without use, unless its version says otherwise
    /// ([`Limits::pause_after`](super::Limits::pause_after)); `None` never pauses.
    pub pause_after: Option<Duration>,
    /// When a wish for memory is older than this, busy instances of other versions are evicted for it as
    /// they become free, even if invocations of their own version wait.
    pub fairness: Duration,
    /// How long a slot is held for a reservation's invocation before it goes to the next call. Keep it to
    /// a few round trips to the balancer, since nothing runs in the slot meanwhile.
    pub offer_timeout: Duration,
    /// Which instance gets a call when several have a free slot.
    pub pick: InstanceChoice,
    /// How many calls run at once.
    #[serde(default)]
    pub running: RunningLimit,
}

/// Which instance of a version gets a call, of those with a free slot.
///
/// Both choices leave the same instances idle for as long as they can, so that instances that the load
/// does not need expire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceChoice {
    /// The one that was fully busy most recently: its data is still in the processor's caches. O(1).
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
