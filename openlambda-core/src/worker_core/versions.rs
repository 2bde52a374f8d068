//! The versions of functions that a worker knows: an id for each name and digest, and which version is
//! the newest.
//!
//! Versions are published and called for as long as a worker lives, so a version that nothing uses any
//! more makes room for others, in amortised O(1) for each new one. A look-up is one hash of the name and
//! one probe of a table: the versions of a function form a chain, the latest first.

use std::collections::HashMap;
use std::sync::Arc;

use super::namespaces::Namespaces;
use crate::allow::Allow;
use crate::failure::Failure;
use crate::function::{Digest, FunctionName, Version};
use crate::hash::{Hashed, stable_hash};
use crate::manifest::Manifest;
use crate::scheduler::{Limits, NamespaceId, VersionId};
use crate::time::Time;

/// Versions that are known before it is worth to look for those that can be forgotten.
pub(super) const MANY: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Versions {
    places: Vec<VersionState>,
    /// Places that can be used again.
    free: Vec<VersionId>,
    /// The version that came last of those whose names have this hash; the others follow by
    /// [`VersionState::next`].
    index: HashMap<u64, VersionId, Hashed>,
    /// Look for versions that can be forgotten when there are so many.
    sweep_at: usize,
    bundles: HashMap<Digest, Bundle, Hashed>,
    pub(super) namespaces: Namespaces,
    /// The version that has just become known.
    added: Option<VersionId>,
}

/// A version of a function.
#[derive(Debug)]
pub(super) struct VersionState {
    pub(super) function: FunctionName,
    pub(super) namespace: NamespaceId,
    pub(super) digest: Digest,
    /// The highest number by which it was called. The same bytes may be published again, as another version.
    pub(super) version: Option<Version>,
    /// What its bundle says; the default before it was fetched.
    pub(super) manifest: Arc<Manifest>,
    /// When the last fetch of its code began and ended.
    pub(super) pulled: Option<(Time, Time)>,
    /// Why its code could not be had last.
    pub(super) failure: Option<Box<Failure>>,
    /// It waits for its bundle.
    pub(super) fetching: bool,
    /// Calls, reservations and instances of it.
    pub(super) uses: u32,
    /// Its function was deleted, and it was not called since.
    pub(super) deleted: bool,
    /// It is the newest of its function, as far as it is known, by this number.
    newest: Option<Version>,
    hash: u64,
    next: Option<VersionId>,
    /// The next one with the same bundle.
    next_of_bundle: Option<VersionId>,
    /// A free place in `places`.
    vacant: bool,
}

/// A bundle that versions have, or the code cache.
#[derive(Debug, Default)]
struct Bundle {
    /// The first and the last of the versions that have it; the others follow by
    /// [`VersionState::next_of_bundle`].
    versions: Option<(VersionId, VersionId)>,
    /// What is in it, while it is unpacked here.
    manifest: Option<Arc<Manifest>>,
    /// What its files take then, bytes.
    bytes: u64,
    /// When the fetch that is under way began.
    began: Time,
}

impl Versions {
    pub(super) fn new(allow: Allow) -> Self {
        Versions {
            places: Vec::new(),
            free: Vec::new(),
            index: HashMap::with_hasher(Hashed),
            sweep_at: MANY,
            bundles: HashMap::with_hasher(Hashed),
            namespaces: Namespaces::new(allow),
            added: None,
        }
    }

    pub(super) fn get(&self, id: VersionId) -> &VersionState {
        &self.places[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: VersionId) -> &mut VersionState {
        &mut self.places[id.0 as usize]
    }

    /// All that are known.
    pub(super) fn iter(&self) -> impl Iterator<Item = (VersionId, &VersionState)> {
        let places = (0..).map(VersionId).zip(&self.places);
        places.filter(|(_, version)| !version.vacant)
    }

    /// The number of a version, and the older version whose place it has just taken. `forget` is asked
    /// for versions of which nothing is left here whether nothing is left elsewhere, and forgets them.
    pub(super) fn intern(
        &mut self,
        function: &FunctionName,
        version: Option<Version>,
        digest: Digest,
        forget: impl FnMut(VersionId) -> bool,
    ) -> (VersionId, Option<VersionId>) {
        let hash = hash_of(function);
        let found = self.find(hash, function, &digest);
        let id = match found.filter(|id| !self.may_be_of_an_earlier_life(*id, version)) {
            Some(id) => id,
            None => self.add(hash, function, digest, forget),
        };
        let place = &mut self.places[id.0 as usize];
        place.deleted = false;
        let Some(version) = version else { return (id, None) };
        if place.newest == Some(version) {
            return (id, None);
        }
        // A late call by an earlier number does not take its instances back to an earlier life.
        place.version = place.version.max(Some(version));
        let newest = self.newest(hash, function);
        if newest.is_some_and(|(known, _)| version <= known) {
            return (id, None);
        }
        let superseded = newest.map(|(_, old)| old).filter(|old| *old != id);
        if let Some(old) = superseded {
            self.places[old.0 as usize].newest = None;
        }
        self.places[id.0 as usize].newest = Some(version);
        (id, superseded)
    }

    /// Whether what is known here, with the same bytes, may belong to a life of the function that ended
    /// before this version was published: then its instances have the data of the function that was
    /// deleted, in their volumes at least, and none of them may serve this version. The word of the deletion
    /// may be late, so a later number is enough where there are volumes. (Where there are none, such
    /// instances serve until that word comes; a rollback, which looks the same, finds them warm.)
    fn may_be_of_an_earlier_life(&self, id: VersionId, version: Option<Version>) -> bool {
        let known = self.get(id);
        let is_later = version.zip(known.version).is_some_and(|(version, known)| version > known);
        is_later && (known.deleted || !known.manifest.volumes.is_empty())
    }

    /// The newest version of a function that was called here.
    pub(super) fn newest_of(&self, function: &FunctionName) -> Option<VersionId> {
        self.newest(hash_of(function), function).map(|(_, id)| id)
    }

    fn newest(&self, hash: u64, function: &FunctionName) -> Option<(Version, VersionId)> {
        let mut of = self.chain(hash).filter(|id| self.get(*id).function == *function);
        of.find_map(|id| Some((self.get(id).newest?, id)))
    }

    pub(super) fn known(&self, function: &FunctionName, digest: &Digest) -> Option<VersionId> {
        self.find(hash_of(function), function, digest)
    }

    /// The latest with these bytes; there is another one for each life of the function.
    fn find(&self, hash: u64, function: &FunctionName, digest: &Digest) -> Option<VersionId> {
        self.chain(hash).find(|id| {
            let place = self.get(*id);
            place.digest == *digest && place.function == *function
        })
    }

    /// All versions whose names have this hash.
    fn chain(&self, hash: u64) -> impl Iterator<Item = VersionId> {
        let first = self.index.get(&hash).copied();
        std::iter::successors(first, |id| self.get(*id).next)
    }

    fn add(
        &mut self,
        hash: u64,
        function: &FunctionName,
        digest: Digest,
        forget: impl FnMut(VersionId) -> bool,
    ) -> VersionId {
        if self.free.is_empty() && self.places.len() >= self.sweep_at {
            self.sweep(forget);
        }
        let bundle = self.bundles.entry(digest).or_default();
        let before = bundle.versions;
        let state = VersionState {
            function: function.clone(),
            namespace: self.namespaces.enter(function),
            digest,
            version: None,
            manifest: bundle.manifest.clone().unwrap_or_else(no_manifest),
            pulled: None,
            failure: None,
            fetching: false,
            uses: 0,
            deleted: false,
            newest: None,
            hash,
            next: self.index.get(&hash).copied(),
            next_of_bundle: None,
            vacant: false,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.places[id.0 as usize] = state;
                id
            }
            None => {
                self.places.push(state);
                VersionId(u32::try_from(self.places.len() - 1).expect("fewer than 2^32 versions"))
            }
        };
        bundle.versions = Some((before.map_or(id, |(first, _)| first), id));
        if let Some((_, last)) = before {
            self.places[last.0 as usize].next_of_bundle = Some(id);
        }
        self.index.insert(hash, id);
        self.added = Some(id);
        id
    }

    /// The version that has become known since this was asked last: one, after each
    /// [`intern`](Self::intern).
    pub(super) fn take_added(&mut self) -> Option<VersionId> {
        self.added.take()
    }

    fn sweep(&mut self, mut forget: impl FnMut(VersionId) -> bool) {
        let mut known = 0;
        for at in 0..self.places.len() {
            let (id, place) = (VersionId(at as u32), &self.places[at]);
            if place.vacant {
                continue;
            }
            if place.uses > 0 || place.fetching || self.is_last_of_bundle(place) || !forget(id) {
                known += 1;
                continue;
            }
            self.remove(id);
        }
        self.sweep_at = MANY.max(2 * known);
    }

    /// Whether its bundle is unpacked here and nobody else has it: the bundle is to go when the function
    /// is deleted.
    fn is_last_of_bundle(&self, place: &VersionState) -> bool {
        let bundle = &self.bundles[&place.digest];
        bundle.manifest.is_some() && bundle.versions.is_some_and(|(first, last)| first == last)
    }

    fn remove(&mut self, id: VersionId) {
        let place = &mut self.places[id.0 as usize];
        place.vacant = true;
        self.namespaces.leave(&place.function, place.namespace);
        let (hash, next, digest) = (place.hash, place.next, place.digest);
        let next_of_bundle = place.next_of_bundle;
        // Nothing of it is kept while its place is free.
        place.manifest = no_manifest();
        (place.failure, place.newest) = (None, None);
        match (self.index.get(&hash).copied(), next) {
            (Some(first), Some(next)) if first == id => {
                self.index.insert(hash, next);
            }
            (Some(first), None) if first == id => {
                self.index.remove(&hash);
            }
            (Some(first), next) => {
                let mut before = first;
                while self.places[before.0 as usize].next != Some(id) {
                    before = self.places[before.0 as usize].next.expect("it is in its chain");
                }
                self.places[before.0 as usize].next = next;
            }
            (None, _) => debug_assert!(false, "a version is in the index"),
        }
        let before = self.with_bundle(&digest).take_while(|other| *other != id).last();
        if let Some(before) = before {
            self.places[before.0 as usize].next_of_bundle = next_of_bundle;
        }
        let bundle = self.bundles.get_mut(&digest).expect("a version has a bundle");
        let (first, last) = bundle.versions.expect("its versions are in a chain");
        let first = if first == id { next_of_bundle } else { Some(first) };
        let last = if last == id { before } else { Some(last) };
        bundle.versions = first.zip(last);
        if bundle.versions.is_none() && bundle.manifest.is_none() {
            self.bundles.remove(&digest);
        }
        self.free.push(id);
    }

    // Bundles.

    /// The versions with this bundle.
    pub(super) fn with_bundle(&self, digest: &Digest) -> impl Iterator<Item = VersionId> {
        let first = self.bundles.get(digest).and_then(|bundle| bundle.versions);
        let first = first.map(|(first, _)| first);
        std::iter::successors(first, |id| self.get(*id).next_of_bundle)
    }

    /// What is in a bundle that is unpacked here: its manifest, and the bytes that its files take.
    pub(super) fn contents_of(&self, digest: &Digest) -> Option<(&Arc<Manifest>, u64)> {
        let bundle = self.bundles.get(digest)?;
        Some((bundle.manifest.as_ref()?, bundle.bytes))
    }

    /// A fetch of the bundle begins.
    pub(super) fn fetch_begins(&mut self, digest: Digest, now: Time) {
        self.bundles.entry(digest).or_default().began = now;
    }

    /// When that was.
    pub(super) fn fetch_began(&self, digest: &Digest) -> Option<Time> {
        self.bundles.get(digest).map(|bundle| bundle.began)
    }

    /// The bundle is unpacked here.
    pub(super) fn unpacked(&mut self, digest: Digest, bytes: u64, manifest: Arc<Manifest>) {
        let bundle = self.bundles.entry(digest).or_default();
        (bundle.manifest, bundle.bytes) = (Some(manifest), bytes);
    }

    /// The bundle is not here, or no more.
    pub(super) fn not_here(&mut self, digest: &Digest) {
        if let Some(bundle) = self.bundles.get_mut(digest) {
            bundle.manifest = None;
            if bundle.versions.is_none() {
                self.bundles.remove(digest);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.places.len()
    }
}

/// The part of a manifest that schedules.
pub(super) fn limits_of(manifest: &Manifest) -> Limits {
    Limits {
        memory: manifest.memory_bytes(),
        slots: manifest.concurrency,
        max_instances: manifest.max_instances,
        queue: manifest.queue,
        timeout: manifest.timeout(),
        reuse: manifest.reuse,
        pause_after: manifest.pause_after_seconds,
    }
}

/// One default manifest for all versions whose code has not come.
fn no_manifest() -> Arc<Manifest> {
    static NONE: std::sync::OnceLock<Arc<Manifest>> = std::sync::OnceLock::new();
    NONE.get_or_init(Arc::default).clone()
}

fn hash_of(function: &FunctionName) -> u64 {
    stable_hash(0, function.full().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u64) -> Digest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Digest::from_bytes(bytes)
    }

    fn function(n: u64) -> FunctionName {
        format!("f{}", n % 7).parse().unwrap()
    }

    #[test]
    fn versions_of_which_nothing_is_left_make_room() {
        let mut versions = Versions::new(Allow::default());
        let (kept, _) = versions.intern(&function(0), Some(Version(1)), digest(0), |_| true);
        versions.get_mut(kept).uses += 1;
        for n in 1..100_000 {
            versions.intern(&function(n), Some(Version(n)), digest(n), |_| true);
        }
        assert!(versions.places() <= 2 * MANY, "{}", versions.places());
        assert!(versions.bundles.len() <= 2 * MANY);
        assert_eq!(versions.intern(&function(0), Some(Version(1)), digest(0), |_| true).0, kept);
        // A version that was forgotten is known again when it is called again.
        let (old, _) = versions.intern(&function(1), Some(Version(1)), digest(1), |_| true);
        let place = versions.get(old);
        assert_eq!((&place.function, place.digest), (&function(1), digest(1)));
        // What somebody else still needs stays.
        let before = versions.iter().count();
        for n in 200_000..200_400 {
            versions.intern(&function(n), None, digest(n), |_| false);
        }
        assert_eq!(versions.iter().count(), before + 400);
    }

    #[test]
    fn versions_with_the_same_hash_are_told_apart() {
        let mut versions = Versions::new(Allow::default());
        let names: Vec<_> = (0..5).map(function).collect();
        let ids: Vec<_> =
            names.iter().map(|name| versions.add(7, name, digest(1), |_| true)).collect();
        let with_it = |versions: &Versions| versions.with_bundle(&digest(1)).collect::<Vec<_>>();
        assert_eq!(with_it(&versions), ids);
        for gone in [4, 0, 2] {
            versions.remove(ids[gone]);
            assert_eq!(versions.find(7, &names[gone], &digest(1)), None);
            for kept in [1, 3] {
                assert_eq!(versions.find(7, &names[kept], &digest(1)), Some(ids[kept]));
                assert!(with_it(&versions).contains(&ids[kept]));
            }
            assert!(!with_it(&versions).contains(&ids[gone]));
        }
        versions.remove(ids[1]);
        versions.remove(ids[3]);
        assert!(versions.index.is_empty() && versions.bundles.is_empty());
    }

    #[test]
    fn the_same_bytes_in_another_life_of_a_function_are_another_version() {
        let mut versions = Versions::new(Allow::default());
        let call = |versions: &mut Versions, number: Option<u64>| {
            versions.intern(&function(0), number.map(Version), digest(1), |_| true)
        };
        let (first, _) = call(&mut versions, Some(1));
        // Nothing says that it has data, and nothing that it was deleted.
        assert_eq!(call(&mut versions, Some(2)), (first, None));
        versions.get_mut(first).deleted = true;
        assert_eq!(call(&mut versions, Some(2)), (first, None), "it was called before");
        versions.get_mut(first).deleted = true;
        let (second, superseded) = call(&mut versions, Some(3));
        assert!(second != first && superseded == Some(first));
        // Whoever comes late, by whatever number, is served by the latest life.
        for late in [Some(1), Some(2), Some(3), None] {
            assert_eq!(call(&mut versions, late), (second, None));
            assert_eq!(versions.get(second).version, Some(Version(3)));
        }
        // Where there are volumes, it need not be known that it was deleted.
        let volume = crate::manifest::Volume { name: "a".to_owned(), path: "/a".to_owned() };
        let manifest = Manifest { volumes: vec![volume], ..Manifest::default() };
        versions.get_mut(second).manifest = Arc::new(manifest);
        let (third, superseded) = call(&mut versions, Some(4));
        assert!(third != second && superseded == Some(second));
        assert_eq!(versions.known(&function(0), &digest(1)), Some(third));
        assert_eq!(versions.newest_of(&function(0)), Some(third));
    }

    #[test]
    fn a_newer_version_supersedes_and_an_older_one_does_not() {
        let mut versions = Versions::new(Allow::default());
        let mut call =
            |version, n| versions.intern(&function(0), Some(Version(version)), digest(n), |_| true);
        let (first, none) = call(1, 1);
        assert_eq!(none, None);
        let (second, superseded) = call(2, 2);
        assert_eq!(superseded, Some(first));
        assert_eq!(call(1, 1), (first, None), "a rollback that is late");
        assert_eq!(call(2, 2), (second, None));
        // The old bytes again, as a newer version.
        assert_eq!(call(3, 1), (first, Some(second)));
        assert_eq!(call(3, 1), (first, None));
        assert_eq!(versions.newest_of(&function(0)), Some(first));
        assert_eq!(versions.newest_of(&function(1)), None);
    }
}
