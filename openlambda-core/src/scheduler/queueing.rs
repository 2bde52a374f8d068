//! What waits, in the order of the queue policy: [`Queueing`] has the calls, a [`Line`] those of one
//! version.
//!
//! The next calls of those versions that also have a free slot are in an order of their own, which is
//! kept only where the number of running calls is limited: else a call with a free slot never waits.

use std::collections::BTreeSet;

use super::limit::Limiter;
use super::line::Line;
use super::{RunningLimit, VersionId};
use crate::arena::Lists;
use crate::queue::{Arrival, QueuePolicy};
use crate::time::Time;

/// A place in the order of all that waits: by rank, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) rank: u64,
    pub(super) number: u64,
}

/// The calls of all versions that wait, and what they wait for together.
#[derive(Debug)]
pub(super) struct Queueing {
    pub(super) policy: Box<dyn QueuePolicy>,
    /// [`QueuePolicy::learns`].
    pub(super) learns: bool,
    pub(super) limiter: Limiter,
    /// By the slot of a call that waits.
    waiting: Vec<Waiting>,
    links: Lists,
    /// How many have begun to wait.
    count: u64,
    /// Since when somebody always waits.
    since: Time,
    /// The highest rank is served first at the moment.
    newest_first: bool,
    /// Versions with a free slot and a call that waits, by that call's place; see [`Self::ready`].
    ready: BTreeSet<(Key, VersionId)>,
    /// Under which place each version is in `ready`.
    places: Vec<Option<Key>>,
}

/// A call that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) arrived: Time,
    pub(super) key: Key,
}

impl Queueing {
    pub(super) fn new(policy: Box<dyn QueuePolicy>, limit: &RunningLimit) -> Self {
        Queueing {
            learns: policy.learns(),
            policy,
            limiter: Limiter::new(limit),
            waiting: Vec::new(),
            links: Lists::default(),
            count: 0,
            since: Time::ZERO,
            newest_first: false,
            ready: BTreeSet::new(),
            places: Vec::new(),
        }
    }

    /// A call begins to wait; `others` do so already, of all versions.
    pub(super) fn push(
        &mut self,
        now: Time,
        line: &mut Line,
        slot: u32,
        call: &Arrival,
        rank: u64,
        others: u32,
    ) {
        if others == 0 {
            self.since = now;
        }
        let waiting = Waiting { arrived: call.arrived, key: Key { rank, number: self.count } };
        self.count += 1;
        let at = slot as usize;
        if at >= self.waiting.len() {
            self.waiting.resize(at + 1, waiting);
        }
        self.waiting[at] = waiting;
        line.push(&mut self.links, rank, slot);
    }

    /// What is known of a call that waits.
    pub(super) fn get(&self, slot: u32) -> Waiting {
        self.waiting[slot as usize]
    }

    /// A call waits no more.
    pub(super) fn remove(&mut self, line: &mut Line, slot: u32) {
        let rank = self.waiting[slot as usize].key.rank;
        line.remove(&mut self.links, rank, slot);
    }

    /// Whose turn it is of a version's calls.
    pub(super) fn next(&self, line: &Line) -> Option<u32> {
        if self.newest_first { line.last() } else { line.first() }
    }

    /// Whose turn comes last.
    pub(super) fn last(&self, line: &Line) -> Option<u32> {
        if self.newest_first { line.first() } else { line.last() }
    }

    /// The key of the call that comes last: the place of a wish for one more instance.
    pub(super) fn last_key(&self, line: &Line) -> Key {
        let last = self.last(line).map(|slot| self.get(slot).key);
        last.unwrap_or(Key { rank: 0, number: self.count })
    }

    /// Sees which end of the lines is served. Returns whether that has changed, so that the versions
    /// are to be entered in [`ready`](Self::ready) anew.
    pub(super) fn look(&mut self, now: Time) -> bool {
        let newest_first = self.policy.newest_first(self.since, now);
        let turned = newest_first != self.newest_first;
        self.newest_first = newest_first;
        if turned {
            self.ready.clear();
            self.places.clear();
        }
        turned
    }

    /// Whether what has the one key is served before what has the other.
    pub(super) fn precedes(&self, one: Key, other: Key) -> bool {
        if self.newest_first { one > other } else { one < other }
    }

    pub(super) fn newest_first(&self) -> bool {
        self.newest_first
    }

    /// Enters a version under the place of its next call, or takes it out.
    pub(super) fn set_ready(&mut self, id: VersionId, key: Option<Key>) {
        let at = id.0 as usize;
        if at >= self.places.len() {
            if key.is_none() {
                return;
            }
            self.places.resize(at + 1, None);
        }
        let before = std::mem::replace(&mut self.places[at], key);
        if before == key {
            return;
        }
        if let Some(before) = before {
            self.ready.remove(&(before, id));
        }
        if let Some(key) = key {
            self.ready.insert((key, id));
        }
    }

    /// Whether the version is entered under this place.
    pub(super) fn is_ready(&self, id: VersionId, key: Key) -> bool {
        self.places.get(id.0 as usize) == Some(&Some(key))
    }

    /// The version whose next call runs next, as it was entered.
    pub(super) fn ready(&self) -> Option<(Key, VersionId)> {
        let next = if self.newest_first { self.ready.last() } else { self.ready.first() };
        next.copied()
    }
}
