//! What the scheduler knows of one version of a function.

use super::line::Line;
use super::{Limits, NamespaceId, wishes};
use crate::arena::List;

/// Small while nothing is there of it: a worker knows every version that it was ever asked for, and a
/// simulated cluster has thousands of workers.
#[derive(Debug, Default)]
pub(super) struct Version {
    pub(super) code: Code,
    pub(super) namespace: NamespaceId,
    pub(super) superseded: bool,
    /// The calls that wait.
    pub(super) line: Line,
    /// How many they are.
    pub(super) waiting: u32,
    /// Instances with a free slot, the one that gets the next call at the end.
    pub(super) free: List,
    pub(super) paused: List,
    /// Instances in any state.
    pub(super) members: u32,
    /// Instances in any state but ending.
    pub(super) instances: u32,
    /// Of those, they take no more calls: they retire, or have run what they may.
    pub(super) spent: u32,
    /// Slots that are coming: of instances that are starting or resuming.
    pub(super) promised: u32,
    /// For instances that wait for memory.
    pub(super) wishes: wishes::Own,
    /// Instances that shall be there although nothing waits.
    pub(super) prewarm: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Code {
    #[default]
    Unknown,
    Fetching,
    Ready(Limits),
    /// The limits are known, the folder is gone.
    Gone(Limits),
}

impl Code {
    pub(super) fn limits(&self) -> Option<&Limits> {
        match self {
            Code::Ready(limits) | Code::Gone(limits) => Some(limits),
            Code::Unknown | Code::Fetching => None,
        }
    }
}

impl Version {
    /// Whether an instance of it is wished for.
    pub(super) fn waits(&self) -> bool {
        self.waiting > 0 || self.prewarm > 0
    }

    /// How many instances to wish for: enough slots for what waits, within the limit, and not more than
    /// may be used at once when the worker runs so many `calls`. A paused one that has not been resumed
    /// for what waits lacks memory, and is wished for like a new one.
    pub(super) fn wanted(&self, limits: &Limits, calls: u32, free: u32) -> u32 {
        let slots = self.waiting.saturating_sub(self.promised).saturating_sub(free);
        let for_queue = slots.div_ceil(limits.slots);
        let for_prewarm = self.prewarm.saturating_sub(self.instances);
        let more = limits.max_instances.saturating_sub(self.instances);
        let serving = self.instances - self.spent;
        let usable = calls.div_ceil(limits.slots).saturating_sub(serving);
        for_queue
            .min(more.saturating_add(self.paused.len()))
            .min(usable.saturating_add(self.paused.len()))
            .max(for_prewarm.min(more))
    }

    /// Slots that may still come: of instances that are coming, that are paused, or that the limit
    /// allows.
    pub(super) fn spare(&self, limits: &Limits) -> u32 {
        let more = limits.max_instances.saturating_sub(self.instances);
        let more = more.saturating_add(self.paused.len());
        self.promised.saturating_add(more.saturating_mul(limits.slots))
    }
}
