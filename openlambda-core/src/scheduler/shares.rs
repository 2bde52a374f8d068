//! Whose turn it is between namespaces: [`Shares`], and versions in the order of turns, [`Turns`].
//!
//! The [queue policy](crate::queue) orders what waits *within* a namespace. Between namespaces the one
//! comes first that has had least of what is scarce, whatever the policy:
//!
//! * where running calls are limited, of time in a place, by start-time fair queueing (Goyal, Vin and Cheng,
//!   SIGCOMM 1996) as the policy [`Fair`](crate::queue::Fair) does it between functions. A start of an
//!   instance takes a place, and is charged for as long as it takes. A namespace that begins to wait begins
//!   where those are that wait, so that nobody saves up while nothing of theirs waits; and who waits but has
//!   no instance that is free keeps a claim to no more than what is under way just then;
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
    /// The latest start tag of what has begun, microseconds.
    begun: u64,
    /// What is charged for all that is under way, microseconds.
    under_way: u64,
    /// Namespaces with calls that wait.
    waiting: u32,
}

#[derive(Clone, Copy, Debug)]
struct Share {
    /// The start tag of its next call, microseconds of virtual time.
    start: u64,
    /// Its calls that wait.
    waiting: u32,
    calls: Charges,
    starts: Charges,
    /// Bytes that its instances take, and those of them that end.
    memory: u64,
    ending: u64,
    /// The most that they may take.
    most: u64,
    /// The version whose wish, if it is the first, does not fit into that.
    full: Option<VersionId>,
}

impl Default for Share {
    fn default() -> Self {
        Share {
            start: 0,
            waiting: 0,
            calls: Charges::default(),
            starts: Charges::default(),
            memory: 0,
            ending: 0,
            most: u64::MAX,
            full: None,
        }
    }
}

/// What is charged for things of one kind, calls or starts, that take a place for a while.
#[derive(Clone, Copy, Debug)]
struct Charges {
    /// For those that are under way, and how many they are.
    charged: u64,
    open: u64,
    /// What one takes, as far as is known: half of it is what the last one took.
    estimate: u64,
}

impl Default for Charges {
    fn default() -> Self {
        Charges { charged: 0, open: 0, estimate: UNKNOWN }
    }
}

impl Charges {
    /// One begins, and is charged this.
    fn begin(&mut self) -> u64 {
        self.charged = self.charged.saturating_add(self.estimate);
        self.open += 1;
        self.estimate
    }

    /// One is over: what it was charged, unless it began before there were several namespaces.
    fn end(&mut self, took: u64) -> Option<u64> {
        self.estimate = (self.estimate.saturating_add(took)).div_ceil(2);
        let charge = self.charged.checked_div(self.open)?;
        self.charged -= charge;
        self.open -= 1;
        Some(charge)
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
        self.takes_place(namespace, |share| &mut share.calls);
    }

    /// A call is over that took so long.
    pub(super) fn ends(&mut self, namespace: NamespaceId, took: Duration) {
        self.leaves_place(namespace, took, |share| &mut share.calls);
    }

    /// An instance is started, in the place of a call.
    pub(super) fn starts(&mut self, namespace: NamespaceId) {
        self.takes_place(namespace, |share| &mut share.starts);
    }

    /// A start is over that took so long, with or without an instance.
    pub(super) fn started(&mut self, namespace: NamespaceId, took: Duration) {
        self.leaves_place(namespace, took, |share| &mut share.starts);
    }

    fn takes_place(&mut self, namespace: NamespaceId, of: impl Fn(&mut Share) -> &mut Charges) {
        let floor = self.floor();
        let share = self.share(namespace);
        let charge = of(share).begin();
        let start = share.start.max(floor);
        share.start = start.saturating_add(charge);
        self.begun = self.begun.max(start);
        self.under_way = self.under_way.saturating_add(charge);
    }

    fn leaves_place(
        &mut self,
        namespace: NamespaceId,
        took: Duration,
        of: impl Fn(&mut Share) -> &mut Charges,
    ) {
        let took = micros(took);
        let share = self.share(namespace);
        if let Some(charge) = of(share).end(took) {
            // What was charged is corrected to what it took.
            share.start = share.start.saturating_add(took).saturating_sub(charge);
            self.under_way = self.under_way.saturating_sub(charge);
        }
    }

    /// A call arrives, which waits or begins at once.
    pub(super) fn arrives(&mut self, namespace: NamespaceId) {
        if self.share(namespace).waiting == 0 {
            let now = self.virtual_time();
            let share = self.share(namespace);
            share.start = share.start.max(now);
        }
    }

    /// It waits.
    pub(super) fn waits(&mut self, namespace: NamespaceId) {
        let share = self.share(namespace);
        share.waiting += 1;
        self.waiting += u32::from(share.waiting == 1);
    }

    /// It does not wait any more.
    pub(super) fn waits_no_more(&mut self, namespace: NamespaceId) {
        let share = self.share(namespace);
        share.waiting -= 1;
        self.waiting -= u32::from(share.waiting == 0);
    }

    /// The earliest start tag that counts.
    fn floor(&self) -> u64 {
        self.begun.saturating_sub(self.under_way)
    }

    /// Where one begins that has not waited: where the last began, or, where that was out of turn, the first of
    /// those that wait.
    fn virtual_time(&self) -> u64 {
        if self.waiting == 0 {
            return self.begun;
        }
        let waiting = self.of.iter().filter(|share| share.waiting > 0).map(|share| share.start);
        waiting.min().map_or(self.begun, |first| first.clamp(self.floor(), self.begun))
    }

    // Memory.

    pub(super) fn takes(&mut self, namespace: NamespaceId, bytes: u64) {
        self.share(namespace).memory += bytes;
    }

    pub(super) fn gives_back(&mut self, namespace: NamespaceId, bytes: u64) {
        let share = self.share(namespace);
        share.memory -= bytes;
        share.full = None;
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

    /// Whether its first wish, which is of this version, waits for that.
    #[inline]
    pub(super) fn is_full(&self, namespace: NamespaceId, first: VersionId) -> bool {
        self.of.get(namespace.0 as usize).is_some_and(|share| share.full == Some(first))
    }

    /// Its first wish, which is of this version, waits until some of its instances are gone or idle, and holds
    /// up no other namespace's.
    pub(super) fn set_full(&mut self, namespace: NamespaceId, first: VersionId) {
        self.share(namespace).full = Some(first);
    }

    /// One of its instances is idle now, which may end for its first wish.
    pub(super) fn rests(&mut self, namespace: NamespaceId) {
        self.share(namespace).full = None;
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
                _ if wishes && share.full == Some(version) => return None,
                Scarce::Places => (share.start.max(shares.floor()), share.calls.open),
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
