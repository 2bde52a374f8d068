//! Which unpacked bundles a worker keeps.
//!
//! [`CodeCache`] is pure: it decides what to fetch, which starts wait for a fetch under way, and what to
//! remove when the cache is over its budget or the function is deleted; the shell fetches, unpacks and
//! removes folders. A bundle is unpacked once and shared by all instances of all functions with that
//! digest.
//!
//! Bundles that are not in use are kept in the order of their last use. A bundle whose turn to be
//! removed has come although an instance is about to start from it gets a *second chance*, as in the
//! clock algorithm of paging (Corbató 1968): it counts as just used. So each event costs O(log n),
//! however many bundles there are and however many of them are wanted.
//!
//! ```text
//!           want → Fetch              fetched              poll_removal        removed
//! (absent) ─────────────▶ fetching ───────────▶ held ──────────────────▶ going ───────▶ (absent)
//!     ▲                      │ failed          pin │ ▲ unpin               │ want: waits, then
//!     └──────────────────────┘                     ▼ │                     ▼ Fetch again
//!                                                 pinned                fetching
//! ```

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use crate::function::Digest;
use crate::hash::Hashed;
use crate::time::Time;

/// How many bundles one [`CodeCache::poll_removal`] looks at. When so many in a row are needed soon, it
/// goes on with the next event, and the budget is exceeded until then.
const LOOKED_AT: usize = 8;

/// The state of a worker's unpacked bundles. See the module's documentation.
#[derive(Debug)]
pub struct CodeCache {
    budget: u64,
    /// Bytes of what is held.
    used: u64,
    /// Bytes of what is being removed.
    going: u64,
    entries: HashMap<Digest, Entry, Hashed>,
    /// What is held and not pinned.
    free: BTreeSet<(Turn, Digest)>,
    /// How many of `free` are discarded.
    discarded: usize,
}

/// When it is a free bundle's turn to be removed: first those that are discarded, each kind in the order
/// of the last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    kept: bool,
    used: Time,
}

#[derive(Debug)]
enum Entry {
    /// `discarded`: its functions were deleted meanwhile.
    Fetching {
        discarded: bool,
    },
    Held(Held),
    /// Its folder is being removed; `wanted` again meanwhile, and perhaps `discarded` after that.
    Going {
        bytes: u64,
        wanted: bool,
        discarded: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: u64,
    pins: u32,
    turn: Turn,
}

/// What [`CodeCache::want`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It is there.
    Held,
    /// It is being fetched, or will be: wait for that.
    Wait,
    /// Fetch it now, then tell [`CodeCache::fetched`] or [`CodeCache::failed`].
    Fetch,
}

impl CodeCache {
    /// A cache that keeps unpinned bundles up to `budget` bytes. Pinned ones may exceed it.
    pub fn new(budget: u64) -> Self {
        CodeCache {
            budget,
            used: 0,
            going: 0,
            entries: HashMap::with_hasher(Hashed),
            free: BTreeSet::new(),
            discarded: 0,
        }
    }

    /// A start needs the bundle.
    pub fn want(&mut self, digest: Digest, now: Time) -> Lookup {
        match self.entries.get_mut(&digest) {
            Some(Entry::Held(_)) => {
                self.change(digest, |held| held.turn = Turn { kept: true, used: now });
                Lookup::Held
            }
            Some(Entry::Fetching { discarded }) => {
                *discarded = false;
                Lookup::Wait
            }
            Some(Entry::Going { wanted, discarded, .. }) => {
                (*wanted, *discarded) = (true, false);
                Lookup::Wait
            }
            None => {
                self.entries.insert(digest, Entry::Fetching { discarded: false });
                Lookup::Fetch
            }
        }
    }

    /// The bundle was fetched and takes `bytes` on disk.
    pub fn fetched(&mut self, digest: Digest, bytes: u64, now: Time) {
        if let Some(entry @ Entry::Fetching { .. }) = self.entries.get_mut(&digest) {
            let kept = !matches!(entry, Entry::Fetching { discarded: true });
            let turn = Turn { kept, used: now };
            *entry = Entry::Held(Held { bytes, pins: 0, turn });
            self.used += bytes;
            self.enter(digest, turn);
        }
    }

    /// The folder of a bundle that is held has grown by so many bytes: by what was compiled of it.
    pub fn grown(&mut self, digest: Digest, bytes: u64) {
        if self.change(digest, |held| held.bytes += bytes) {
            self.used += bytes;
        }
    }

    /// The bundle could not be fetched: the next `want` tries again.
    pub fn failed(&mut self, digest: Digest) {
        if let Some(Entry::Fetching { .. }) = self.entries.get(&digest) {
            self.entries.remove(&digest);
        }
    }

    /// An instance uses the folder: it is not removed until `unpin`. Returns whether it is held.
    #[must_use]
    pub fn pin(&mut self, digest: Digest, now: Time) -> bool {
        self.change(digest, |held| {
            held.pins += 1;
            held.turn.used = now;
        })
    }

    /// The instance is gone.
    pub fn unpin(&mut self, digest: Digest, now: Time) {
        self.change(digest, |held| {
            debug_assert!(held.pins > 0, "an unpin without a pin");
            held.pins = held.pins.saturating_sub(1);
            held.turn.used = now;
        });
    }

    /// Its functions are deleted: it is removed as soon as no instance uses it, whatever the budget,
    /// unless it is [wanted](Self::want) again.
    pub fn discard(&mut self, digest: Digest) {
        if let Some(Entry::Fetching { discarded } | Entry::Going { discarded, .. }) =
            self.entries.get_mut(&digest)
        {
            *discarded = true;
        }
        self.change(digest, |held| held.turn.kept = false);
    }

    /// Whether bundles are to be removed, as far as they are not needed.
    pub fn has_surplus(&self) -> bool {
        self.discarded > 0 || self.used > self.budget
    }

    /// The next bundle to remove: one that is discarded, or while the budget is exceeded the least
    /// recently used one; never one with pins. Remove its folder, then tell [`CodeCache::removed`].
    ///
    /// One that is `wanted` stays: an instance is going to start from it, and removing it would only
    /// mean to fetch it again.
    pub fn poll_removal(&mut self, now: Time, wanted: impl Fn(&Digest) -> bool) -> Option<Digest> {
        for kept in [false, true] {
            let first = (Turn { kept, used: Time::ZERO }, Digest::from_bytes([0; 32]));
            let mut from = Bound::Included(first);
            let (mut looked_at, mut looked) = ([first.1; LOOKED_AT], 0);
            while looked < LOOKED_AT {
                if kept && self.used <= self.budget {
                    return None;
                }
                let next = self.free.range((from, Bound::Unbounded)).next().copied();
                let Some((turn, digest)) = next.filter(|(turn, _)| turn.kept == kept) else {
                    break;
                };
                from = Bound::Excluded((turn, digest));
                // It comes again, among those that were used just now.
                if looked_at[..looked].contains(&digest) {
                    continue;
                }
                if !wanted(&digest) {
                    self.remove(digest, turn);
                    return Some(digest);
                }
                self.change(digest, |held| held.turn.used = now);
                looked_at[looked] = digest;
                looked += 1;
            }
        }
        None
    }

    fn remove(&mut self, digest: Digest, turn: Turn) {
        self.leave(digest, turn);
        let entry = self.entries.get_mut(&digest).expect("what is free is held");
        if let Entry::Held(Held { bytes, .. }) = *entry {
            // The bytes count as gone at once, or every further poll would remove another bundle.
            self.used -= bytes;
            self.going += bytes;
            *entry = Entry::Going { bytes, wanted: false, discarded: false };
        }
    }

    /// The folder is removed. Returns whether to fetch it again, because it was wanted
    /// meanwhile.
    #[must_use]
    pub fn removed(&mut self, digest: Digest) -> bool {
        let Some(&Entry::Going { bytes, wanted, discarded }) = self.entries.get(&digest) else {
            return false;
        };
        self.going -= bytes;
        if wanted {
            self.entries.insert(digest, Entry::Fetching { discarded });
        } else {
            self.entries.remove(&digest);
        }
        wanted
    }

    /// Bytes of the bundles that are held.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of the folders that exist: those that are held and those that are being removed.
    pub fn on_disk(&self) -> u64 {
        self.used + self.going
    }

    /// Changes a bundle that is held, and its place among those that are free. Whether it is held.
    fn change(&mut self, digest: Digest, change: impl FnOnce(&mut Held)) -> bool {
        let Some(Entry::Held(held)) = self.entries.get_mut(&digest) else { return false };
        let before = *held;
        change(held);
        let after = *held;
        if before.pins == 0 {
            self.leave(digest, before.turn);
        }
        if after.pins == 0 {
            self.enter(digest, after.turn);
        }
        true
    }

    fn enter(&mut self, digest: Digest, turn: Turn) {
        self.free.insert((turn, digest));
        self.discarded += usize::from(!turn.kept);
    }

    fn leave(&mut self, digest: Digest, turn: Turn) {
        self.free.remove(&(turn, digest));
        self.discarded -= usize::from(!turn.kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    #[test]
    fn one_fetch_serves_all_who_want_it() {
        let mut cache = CodeCache::new(100);
        assert_eq!(cache.want(digest(1), Time(1)), Lookup::Fetch);
        assert_eq!(cache.want(digest(1), Time(2)), Lookup::Wait);
        cache.failed(digest(1));
        assert_eq!(cache.want(digest(1), Time(3)), Lookup::Fetch);
        cache.fetched(digest(1), 10, Time(4));
        assert_eq!(cache.want(digest(1), Time(5)), Lookup::Held);
    }

    #[test]
    fn what_a_bundle_has_grown_by_counts_and_goes_with_it() {
        let mut cache = CodeCache::new(25);
        for n in 1..=2 {
            cache.want(digest(n), Time(u64::from(n)));
            cache.fetched(digest(n), 10, Time(u64::from(n)));
        }
        assert!(cache.pin(digest(2), Time(3)));
        cache.grown(digest(2), 6);
        assert_eq!((cache.used(), cache.has_surplus()), (26, true));
        assert_eq!(cache.poll_removal(Time(4), |_| false), Some(digest(1)));
        assert!(!cache.removed(digest(1)));
        cache.unpin(digest(2), Time(5));
        // Of what is not here, nothing counts.
        cache.grown(digest(1), 100);
        assert_eq!((cache.used(), cache.on_disk()), (16, 16));
        cache.discard(digest(2));
        assert_eq!(cache.poll_removal(Time(6), |_| false), Some(digest(2)));
        assert_eq!((cache.used(), cache.on_disk()), (0, 16));
    }

    #[test]
    fn over_the_budget_the_least_recently_used_goes_but_never_a_pinned_one() {
        let mut cache = CodeCache::new(20);
        for n in 1..=3 {
            cache.want(digest(n), Time(u64::from(n)));
            cache.fetched(digest(n), 10, Time(u64::from(n)));
        }
        assert!(cache.pin(digest(1), Time(1)));
        assert_eq!(cache.poll_removal(Time(9), |wanted| *wanted != digest(1)), None);
        assert_eq!(cache.poll_removal(Time(9), |_| false), Some(digest(2)));
        assert_eq!(cache.poll_removal(Time(9), |_| false), None);
        assert_eq!((cache.used(), cache.on_disk()), (20, 30));
        assert!(!cache.pin(digest(2), Time(9)));
        assert!(!cache.removed(digest(2)));
        assert_eq!(cache.on_disk(), 20);
    }

    #[test]
    fn what_is_discarded_goes_as_soon_as_nothing_uses_it() {
        let mut cache = CodeCache::new(100);
        for n in 1..=3 {
            cache.want(digest(n), Time(1));
            cache.fetched(digest(n), 10, Time(1));
        }
        assert!(!cache.has_surplus());
        assert!(cache.pin(digest(1), Time(1)));
        for n in [1, 2, 9] {
            cache.discard(digest(n));
        }
        assert!(cache.has_surplus());
        assert_eq!(cache.poll_removal(Time(9), |wanted| *wanted == digest(2)), None);
        assert_eq!(cache.poll_removal(Time(9), |_| false), Some(digest(2)));
        assert_eq!(cache.poll_removal(Time(9), |_| false), None);
        assert!(!cache.has_surplus());
        assert!(!cache.removed(digest(2)));
        cache.unpin(digest(1), Time(2));
        assert!(cache.has_surplus());
        // It is deployed and called again.
        assert_eq!(cache.want(digest(1), Time(3)), Lookup::Held);
        assert!(!cache.has_surplus());
        assert_eq!(cache.poll_removal(Time(9), |_| false), None);
        // It never came, so there is nothing to remove.
        cache.want(digest(9), Time(4));
        cache.discard(digest(9));
        cache.failed(digest(9));
        assert!(!cache.has_surplus());
        assert_eq!(cache.poll_removal(Time(9), |_| false), None);
        assert_eq!(cache.on_disk(), 20);
    }

    #[test]
    fn what_is_wanted_while_it_goes_is_fetched_again() {
        let mut cache = CodeCache::new(0);
        cache.want(digest(1), Time(1));
        cache.fetched(digest(1), 10, Time(1));
        assert_eq!(cache.poll_removal(Time(9), |_| false), Some(digest(1)));
        assert_eq!(cache.want(digest(1), Time(2)), Lookup::Wait);
        assert!(cache.removed(digest(1)));
        cache.fetched(digest(1), 10, Time(3));
        assert_eq!(cache.want(digest(1), Time(3)), Lookup::Held);
    }

    #[test]
    fn what_is_discarded_while_it_goes_and_comes_again_goes_for_good() {
        let mut cache = CodeCache::new(0);
        cache.want(digest(1), Time(1));
        cache.fetched(digest(1), 10, Time(1));
        assert_eq!(cache.poll_removal(Time(2), |_| false), Some(digest(1)));
        cache.budget = 100;
        // Somebody waits for it still, whose function is deleted.
        assert_eq!(cache.want(digest(1), Time(3)), Lookup::Wait);
        cache.discard(digest(1));
        assert!(cache.removed(digest(1)));
        cache.fetched(digest(1), 10, Time(4));
        assert!(cache.pin(digest(1), Time(4)));
        cache.unpin(digest(1), Time(5));
        assert_eq!(cache.poll_removal(Time(5), |_| false), Some(digest(1)));
    }

    /// Many things happen at one time, most of all in simulations.
    #[test]
    fn what_is_needed_soon_hides_no_other_that_was_used_at_the_same_time() {
        let mut cache = CodeCache::new(15);
        for n in 1..=2 {
            cache.want(digest(n), Time(1));
            cache.fetched(digest(n), 10, Time(1));
        }
        assert_eq!(cache.poll_removal(Time(1), |it| *it == digest(1)), Some(digest(2)));
        cache.discard(digest(1));
        assert_eq!(cache.poll_removal(Time(1), |it| *it == digest(1)), None);
        assert_eq!(cache.poll_removal(Time(1), |_| false), Some(digest(1)));
        // Nor are those that were used before looked at twice, and it not at all.
        for n in 2..9 {
            cache.want(digest(n), Time(2));
            cache.fetched(digest(n), 10, Time(if n < 8 { 2 } else { 3 }));
        }
        assert_eq!(cache.poll_removal(Time(3), |it| *it != digest(8)), Some(digest(8)));
    }

    #[test]
    fn those_that_are_needed_soon_are_passed_over_without_looking_at_all() {
        let mut cache = CodeCache::new(0);
        for n in 0..200 {
            cache.want(digest(n), Time(1));
            cache.fetched(digest(n), 10, Time(u64::from(n)));
        }
        let looked = std::cell::Cell::new(0);
        let mut polls = 0;
        loop {
            polls += 1;
            looked.set(0);
            let removed = cache.poll_removal(Time(1000 + polls), |it| {
                looked.set(looked.get() + 1);
                *it != digest(150)
            });
            assert!(looked.get() <= LOOKED_AT, "{}", looked.get());
            if removed.is_some() {
                assert_eq!((removed, polls), (Some(digest(150)), 19));
                break;
            }
        }
        // One that is discarded stays so while it is needed, and hides no other.
        cache.discard(digest(3));
        assert_eq!(cache.poll_removal(Time(2000), |it| *it == digest(3)), Some(digest(151)));
        assert_eq!(cache.poll_removal(Time(2001), |_| false), Some(digest(3)));
    }
}
