//! Whose turn it is between namespaces: [`Shares`], and versions in the order of turns, [`Turns`].
//!
//! The [queue policy](crate::queue) orders what waits *within* a namespace. Between namespaces the one
//! comes first that has had least of what is scarce, whatever the policy:
//!
//! * where running calls are limited, of time in a place, by start-time fair queueing as the policy
//!   [`Fair`](crate::queue::Fair) does it between functions: a namespace that begins to wait begins at the
//!   virtual time, so that nobody saves up. A start of an instance takes a place, and is charged like a call;
//! * else, of memory: the namespace whose instances take least of the pool.
//!
//! While all versions are of one namespace that may have all the memory, nothing is counted, and the order
//! is the policy's.

use std::time::Duration;

use super::order::{Key, Order};
use super::{NamespaceId, VersionId};

/// The assumed time of a call before one of its namespace is over, microseconds.
const UNKNOWN: u64 = 1_000;

/// What each namespace has had.
#[derive(Debug, Default)]
pub(super) struct Shares {
    of: Vec<Share>,
    /// There is more than one namespace.
    several: bool,
    /// There is, or the one may not have all the memory: what each takes is counted.
    counts: bool,
    /// The start tag of the namespace whose call began last, microseconds.
    virtual_time: u64,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    /// The start tag of its next call, microseconds of virtual time.
    start: u64,
    /// By how much that may lie before the virtual time: what calls were charged too much, less what they were
    /// charged too little. Without it, who is charged wrongly both ways would pay for the one and not get
    /// back the other. It cannot be saved up: the estimate follows what calls take, so what the two differ by
    /// over many calls is not more than a few calls.
    owed: u64,
    /// What its calls were charged that run, and how many they are.
    charged: u64,
    running: u64,
    /// What a call of it takes, as far as is known: half of it is what the last one took.
    estimate: u64,
    /// Bytes that its instances take, and those of them that end.
    memory: u64,
    ending: u64,
    /// The most that they may take.
    most: u64,
    /// Its first wish does not fit into that.
    full: bool,
}

impl Default for Share {
    fn default() -> Self {
        Share {
            start: 0,
            owed: 0,
            charged: 0,
            running: 0,
            estimate: UNKNOWN,
            memory: 0,
            ending: 0,
            most: u64::MAX,
            full: false,
        }
    }
}

impl Share {
    /// The start tag of its next call. Who begins to wait begins at the virtual time, so that nobody saves up.
    fn next(&self, now: u64) -> u64 {
        self.start.max(now.saturating_sub(self.owed))
    }

    /// A call begins, and is charged. Returns its start tag.
    fn begin(&mut self, now: u64, charge: u64) -> u64 {
        let start = self.next(now);
        self.owed = now.saturating_sub(start);
        self.start = start.saturating_add(charge);
        start
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 4)
}

impl Shares {
    /// Whether there is more than one namespace.
    #[inline]
    pub(super) fn several(&self) -> bool {
        self.several
    }

    /// Whether it is of any use to know what each namespace's instances take.
    #[inline]
    pub(super) fn counts(&self) -> bool {
        self.counts
    }

    /// A version of the namespace is known, whose instances may take so much memory.
    pub(super) fn know(&mut self, namespace: NamespaceId, most: u64) {
        self.share(namespace).most = most;
        self.several = self.of.len() > 1;
        self.counts |= self.several || most < u64::MAX;
    }

    fn share(&mut self, namespace: NamespaceId) -> &mut Share {
        let at = namespace.0 as usize;
        if at >= self.of.len() {
            self.of.resize(at + 1, Share::default());
        }
        &mut self.of[at]
    }

    fn get(&self, namespace: NamespaceId) -> Share {
        self.of.get(namespace.0 as usize).copied().unwrap_or_default()
    }

    // Places.

    /// A call begins to run.
    pub(super) fn begins(&mut self, namespace: NamespaceId) {
        let now = self.virtual_time;
        let share = self.share(namespace);
        let charge = share.estimate;
        let start = share.begin(now, charge);
        share.charged = share.charged.saturating_add(charge);
        share.running += 1;
        self.virtual_time = now.max(start);
    }

    /// An instance is started, in the place of a call.
    pub(super) fn starts(&mut self, namespace: NamespaceId) {
        let now = self.virtual_time;
        let share = self.share(namespace);
        let start = share.begin(now, share.estimate);
        self.virtual_time = now.max(start);
    }

    /// A call is over that took so long: what it was charged is corrected.
    pub(super) fn ends(&mut self, namespace: NamespaceId, took: Duration) {
        let (took, now) = (micros(took), self.virtual_time);
        let share = self.share(namespace);
        share.estimate = (share.estimate + took).div_ceil(2);
        // One that began before there were several namespaces was not charged.
        let Some(charge) = share.charged.checked_div(share.running) else { return };
        share.charged -= charge;
        share.running -= 1;
        share.start = share.start.saturating_add(took).saturating_sub(charge);
        let net = share.owed.saturating_add(charge).saturating_sub(took);
        share.owed = net.min(now.saturating_sub(share.start));
    }

    // Memory.

    pub(super) fn takes(&mut self, namespace: NamespaceId, bytes: u64) {
        self.share(namespace).memory += bytes;
    }

    pub(super) fn gives_back(&mut self, namespace: NamespaceId, bytes: u64) {
        let share = self.share(namespace);
        share.memory -= bytes;
        share.full = false;
    }

    /// An instance that takes so much begins to end.
    pub(super) fn is_ending(&mut self, namespace: NamespaceId, bytes: u64) {
        self.share(namespace).ending += bytes;
    }

    /// It is gone.
    pub(super) fn has_ended(&mut self, namespace: NamespaceId, bytes: u64) {
        self.share(namespace).ending -= bytes;
    }

    /// The most that the namespace's instances may take.
    pub(super) fn most(&self, namespace: NamespaceId) -> u64 {
        self.get(namespace).most
    }

    /// What they take.
    pub(super) fn memory(&self, namespace: NamespaceId) -> u64 {
        self.get(namespace).memory
    }

    /// Whether they may take so much more, now or (`soon`) when those have ended that end.
    pub(super) fn fits(&self, namespace: NamespaceId, bytes: u64, soon: bool) -> bool {
        let Share { memory, ending, most, .. } = self.get(namespace);
        let held = if soon { memory - ending } else { memory };
        held.saturating_add(bytes) <= most
    }

    /// Whether its first wish waits for that.
    #[inline]
    pub(super) fn is_full(&self, namespace: NamespaceId) -> bool {
        self.of.get(namespace.0 as usize).is_some_and(|share| share.full)
    }

    /// Its first wish waits until some of its instances are gone, and holds up no other namespace's.
    pub(super) fn set_full(&mut self, namespace: NamespaceId) {
        self.share(namespace).full = true;
    }
}

/// What is scarce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scarce {
    Places,
    Memory,
}

/// Versions of all namespaces, each under the place of one of its calls.
#[derive(Debug, Default)]
pub(super) struct Turns {
    of: Vec<Order>,
    newest_first: bool,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// What its namespace has had, and how many of its calls run; the same for all where there is one
    /// namespace.
    had: (u64, u64),
    namespace: NamespaceId,
    pub(super) key: Key,
    pub(super) version: VersionId,
}

impl Turns {
    /// Enters a version, with another key if it is there already, or takes it out.
    pub(super) fn set(&mut self, namespace: NamespaceId, id: VersionId, key: Option<Key>) {
        let at = namespace.0 as usize;
        if at >= self.of.len() {
            if key.is_none() {
                return;
            }
            let newest_first = self.newest_first;
            self.of.resize_with(at + 1, || {
                let mut order = Order::default();
                order.clear(newest_first);
                order
            });
        }
        self.of[at].set(id, key);
    }

    /// The first version. With `wishes`, of the namespaces that are not full.
    pub(super) fn first(&self, shares: &Shares, scarce: Scarce, wishes: bool) -> Option<Turn> {
        if !shares.several() {
            let (key, version) = self.of.first()?.first()?;
            return Some(Turn { had: (0, 0), namespace: NamespaceId(0), key, version });
        }
        let turns = self.of.iter().zip(0..).filter_map(|(order, n)| {
            let (key, version) = order.first()?;
            let (namespace, share) = (NamespaceId(n), shares.get(NamespaceId(n)));
            let had = match scarce {
                _ if wishes && share.full => return None,
                Scarce::Places => (share.next(shares.virtual_time), share.running),
                Scarce::Memory => (share.memory, 0),
            };
            Some(Turn { had, namespace, key, version })
        });
        turns.min_by_key(|turn| (turn.had, turn.key.number, turn.namespace.0))
    }

    /// The first version of a namespace.
    pub(super) fn first_of(&self, namespace: NamespaceId) -> Option<VersionId> {
        Some(self.of.get(namespace.0 as usize)?.first()?.1)
    }

    /// Empties it, and turns it round within each namespace.
    pub(super) fn clear(&mut self, newest_first: bool) {
        self.newest_first = newest_first;
        self.of.iter_mut().for_each(|order| order.clear(newest_first));
    }
}

impl Turn {
    /// Whether it comes before another, which may be of another namespace.
    pub(super) fn precedes(&self, other: &Turn, newest_first: bool) -> bool {
        if self.namespace != other.namespace {
            return (self.had, self.key.number) < (other.had, other.key.number);
        }
        if newest_first { self.key > other.key } else { self.key < other.key }
    }
}
