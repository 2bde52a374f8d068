//! The waiting calls in the order of the queue policy: [`Queueing`] holds all of them, a [`Line`] those
//! of one version.
//!
//! `Queueing` derives two orders of versions from the lines. One has the versions with a waiting call and
//! a free slot; it is kept only with a limit of running calls, since without a limit such a call does not
//! wait. The other has the versions that wish for an instance; it is kept only where it differs from the
//! order of their wishes.

use super::RunningLimit;
use super::limit::Limiter;
use super::line::Line;
use super::order::Key;
use super::shares::{Scarce, Turn, Turns};
use crate::arena::Lists;
use crate::queue::{Arrival, QueuePolicy};
use crate::time::Time;

/// The calls of all versions that wait, and what they wait for together.
#[derive(Debug)]
pub(super) struct Queueing {
    pub(super) policy: Box<dyn QueuePolicy>,
    /// [`QueuePolicy::learns`].
    pub(super) learns: bool,
    /// There is another order than that of wishes: the policy's, or a limit that makes what is first
    /// wait beside free slots.
    pub(super) orders: bool,
    pub(super) limiter: Limiter,
    /// By the slot of a call that waits.
    waiting: Vec<Waiting>,
    links: Lists,
    /// How many have begun to wait.
    count: u64,
    /// Since when the queue has not been empty.
    since: Time,
    /// The highest rank is served first at the moment.
    newest_first: bool,
    /// Versions with a free slot and a call that waits, by that call's place.
    pub(super) ready: Turns,
    /// Versions that wish for an instance, by the place of the first call that has no slot, none that is
    /// free and none that is coming.
    pub(super) wishing: Turns,
}

/// A call that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) arrived: Time,
    pub(super) key: Key,
}

impl Queueing {
    pub(super) fn new(policy: Box<dyn QueuePolicy>, limit: &RunningLimit) -> Self {
        let limiter = Limiter::new(limit);
        Queueing {
            learns: policy.learns(),
            orders: policy.orders() || limiter.limits(),
            policy,
            limiter,
            waiting: Vec::new(),
            links: Lists::default(),
            count: 0,
            since: Time::ZERO,
            newest_first: false,
            ready: Turns::default(),
            wishing: Turns::default(),
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

    /// The place of a version's wish, of whose calls so many have a slot that is free or coming. What is
    /// wished for although no call waits for it comes after all that do.
    pub(super) fn wish_key(&self, line: &Line, covered: u32) -> Key {
        let last = if self.newest_first { 0 } else { u64::MAX };
        let slot = line.nth(&self.links, covered, self.newest_first);
        slot.map_or(Key { rank: last, number: last }, |slot| self.get(slot).key)
    }

    /// Sees which end of the lines is served. Returns whether that has changed: then the versions are to
    /// be entered in the orders anew.
    pub(super) fn look(&mut self, now: Time) -> bool {
        let newest_first = self.policy.newest_first(self.since, now);
        let turned = newest_first != self.newest_first;
        self.newest_first = newest_first;
        if turned {
            self.ready.clear(newest_first);
            self.wishing.clear(newest_first);
        }
        turned
    }

    /// Whether the one is served before the other.
    pub(super) fn precedes(&self, one: &Turn, other: &Turn) -> bool {
        one.precedes(other, self.newest_first)
    }

    /// What namespaces share.
    pub(super) fn scarce(&self) -> Scarce {
        if self.limiter.limits() { Scarce::Places } else { Scarce::Memory }
    }
}
