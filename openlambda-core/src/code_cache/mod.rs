//! Which unpacked bundles a worker keeps.
//!
//! [`CodeCache`] is pure: it decides what to fetch, who waits for a fetch that is under way, and
//! what to remove when the budget is exceeded or its function is deleted; the shell fetches, unpacks
//! and removes folders. A bundle is unpacked once and shared by all instances of all functions with
//! that digest.
//!
//! ```text
//!           want → Fetch              fetched              poll_removal        removed
//! (absent) ─────────────▶ fetching ───────────▶ held ──────────────────▶ going ───────▶ (absent)
//!     ▲                      │ failed          pin │ ▲ unpin               │ want: waits, then
//!     └──────────────────────┘                     ▼ │                     ▼ Fetch again
//!                                                 pinned                fetching
//! ```

use std::collections::{BTreeMap, BTreeSet};

use crate::function::Digest;
use crate::time::Time;

/// The state of a worker's unpacked bundles. See the module's documentation.
#[derive(Debug)]
pub struct CodeCache {
    budget: u64,
    used: u64,
    entries: BTreeMap<Digest, Entry>,
    /// Those that nobody will want, as far as it is known.
    discarded: BTreeSet<Digest>,
}

#[derive(Debug)]
enum Entry {
    Fetching,
    Held {
        bytes: u64,
        pins: u32,
        last_use: Time,
    },
    /// Its folder is being removed; `wanted` again meanwhile.
    Going {
        bytes: u64,
        wanted: bool,
    },
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
        CodeCache { budget, used: 0, entries: BTreeMap::new(), discarded: BTreeSet::new() }
    }

    /// Somebody needs the bundle.
    pub fn want(&mut self, digest: Digest, now: Time) -> Lookup {
        self.discarded.remove(&digest);
        match self.entries.get_mut(&digest) {
            Some(Entry::Held { last_use, .. }) => {
                *last_use = now;
                Lookup::Held
            }
            Some(Entry::Fetching) => Lookup::Wait,
            Some(Entry::Going { wanted, .. }) => {
                *wanted = true;
                Lookup::Wait
            }
            None => {
                self.entries.insert(digest, Entry::Fetching);
                Lookup::Fetch
            }
        }
    }

    /// The bundle was fetched and takes `bytes` on disk.
    pub fn fetched(&mut self, digest: Digest, bytes: u64, now: Time) {
        if let Some(entry @ Entry::Fetching) = self.entries.get_mut(&digest) {
            *entry = Entry::Held { bytes, pins: 0, last_use: now };
            self.used += bytes;
        }
    }

    /// The bundle could not be fetched: the next `want` tries again.
    pub fn failed(&mut self, digest: Digest) {
        if let Some(Entry::Fetching) = self.entries.get(&digest) {
            self.entries.remove(&digest);
            self.discarded.remove(&digest);
        }
    }

    /// An instance uses the folder: it is not removed until `unpin`. Returns whether it is held.
    #[must_use]
    pub fn pin(&mut self, digest: Digest, now: Time) -> bool {
        match self.entries.get_mut(&digest) {
            Some(Entry::Held { pins, last_use, .. }) => {
                *pins += 1;
                *last_use = now;
                true
            }
            _ => false,
        }
    }

    /// The instance is gone.
    pub fn unpin(&mut self, digest: Digest, now: Time) {
        if let Some(Entry::Held { pins, last_use, .. }) = self.entries.get_mut(&digest) {
            debug_assert!(*pins > 0, "an unpin without a pin");
            *pins = pins.saturating_sub(1);
            *last_use = now;
        }
    }

    /// Its functions are deleted: it is removed as soon as no instance uses it, whatever the budget,
    /// unless somebody [wants](Self::want) it again.
    pub fn discard(&mut self, digest: Digest) {
        if self.entries.contains_key(&digest) {
            self.discarded.insert(digest);
        }
    }

    /// Whether bundles are to be removed, as far as they are not needed.
    pub fn has_surplus(&self) -> bool {
        self.used > self.budget || self.discarded.iter().any(|digest| self.is_free(digest))
    }

    fn is_free(&self, digest: &Digest) -> bool {
        matches!(self.entries.get(digest), Some(Entry::Held { pins: 0, .. }))
    }

    /// The next bundle to remove: one that is discarded, or while the budget is exceeded the least
    /// recently used one; never one with pins. Remove its folder, then tell [`CodeCache::removed`].
    ///
    /// One that is `wanted` stays: an instance is going to start from it, and removing it would only
    /// mean to fetch it again. O(n) in the bundles that are held, and only when there is a surplus.
    pub fn poll_removal(&mut self, wanted: impl Fn(&Digest) -> bool) -> Option<Digest> {
        let discarded = self.discarded.iter().find(|it| self.is_free(it) && !wanted(it)).copied();
        let digest = match discarded {
            Some(digest) => digest,
            None if self.used > self.budget => self.least_recently_used(wanted)?,
            None => return None,
        };
        self.discarded.remove(&digest);
        let entry = self.entries.get_mut(&digest)?;
        if let Entry::Held { bytes, .. } = *entry {
            // The bytes count as gone at once, or every further poll would remove another bundle.
            self.used -= bytes;
            *entry = Entry::Going { bytes, wanted: false };
        }
        Some(digest)
    }

    fn least_recently_used(&self, wanted: impl Fn(&Digest) -> bool) -> Option<Digest> {
        let free = self.entries.iter().filter_map(|(digest, entry)| match entry {
            Entry::Held { pins: 0, last_use, .. } if !wanted(digest) => Some((*last_use, *digest)),
            _ => None,
        });
        free.min().map(|(_, digest)| digest)
    }

    /// The folder is removed. Returns whether to fetch it again, because somebody wanted it
    /// meanwhile.
    #[must_use]
    pub fn removed(&mut self, digest: Digest) -> bool {
        match self.entries.remove(&digest) {
            Some(Entry::Going { wanted: true, .. }) => {
                self.entries.insert(digest, Entry::Fetching);
                true
            }
            _ => false,
        }
    }

    /// Bytes of the bundles that are held.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of the folders that exist: those that are held and those that are being removed.
    pub fn on_disk(&self) -> u64 {
        let going = self.entries.values().map(|entry| match entry {
            Entry::Going { bytes, .. } => *bytes,
            _ => 0,
        });
        self.used + going.sum::<u64>()
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
    fn over_the_budget_the_least_recently_used_goes_but_never_a_pinned_one() {
        let mut cache = CodeCache::new(20);
        for n in 1..=3 {
            cache.want(digest(n), Time(u64::from(n)));
            cache.fetched(digest(n), 10, Time(u64::from(n)));
        }
        assert!(cache.pin(digest(1), Time(1)));
        assert_eq!(cache.poll_removal(|wanted| *wanted != digest(1)), None);
        assert_eq!(cache.poll_removal(|_| false), Some(digest(2)));
        assert_eq!(cache.poll_removal(|_| false), None);
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
        assert_eq!(cache.poll_removal(|wanted| *wanted == digest(2)), None);
        assert_eq!(cache.poll_removal(|_| false), Some(digest(2)));
        assert_eq!(cache.poll_removal(|_| false), None);
        assert!(!cache.has_surplus());
        assert!(!cache.removed(digest(2)));
        cache.unpin(digest(1), Time(2));
        assert!(cache.has_surplus());
        // It is deployed and called again.
        assert_eq!(cache.want(digest(1), Time(3)), Lookup::Held);
        assert!(!cache.has_surplus());
        assert_eq!(cache.poll_removal(|_| false), None);
        // It never came, so there is nothing to remove.
        cache.want(digest(9), Time(4));
        cache.discard(digest(9));
        cache.failed(digest(9));
        assert!(!cache.has_surplus());
        assert_eq!(cache.poll_removal(|_| false), None);
        assert_eq!(cache.on_disk(), 20);
    }

    #[test]
    fn what_is_wanted_while_it_goes_is_fetched_again() {
        let mut cache = CodeCache::new(0);
        cache.want(digest(1), Time(1));
        cache.fetched(digest(1), 10, Time(1));
        assert_eq!(cache.poll_removal(|_| false), Some(digest(1)));
        assert_eq!(cache.want(digest(1), Time(2)), Lookup::Wait);
        assert!(cache.removed(digest(1)));
        cache.fetched(digest(1), 10, Time(3));
        assert_eq!(cache.want(digest(1), Time(3)), Lookup::Held);
    }
}
