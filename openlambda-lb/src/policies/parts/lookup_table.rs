//! Maglev's table from keys to workers: [`LookupTable`].

use std::ops::RangeInclusive;

use openlambda_core::balancing::{ClusterView, PolicyEvent, WorkerId};
use openlambda_core::hash::mix;

use super::candidates::Candidates;

const OFFSET_SALT: u64 = 0x6f66_6673;
const SKIP_SALT: u64 = 0x736b_6970;
const ENTRY_SALT: u64 = 0x656e_7472;

/// A key whose workers are not ready is hashed again so many times.
const MOST_TRIES: u64 = 16;

/// A table whose entries name workers, in even shares: a key's entry tells its worker.
///
/// The table has M entries, M prime. Each worker has a permutation of them by its name,
/// `(offset + j · skip) mod M`; in turns, each takes the next entry of its permutation that is free,
/// until all are taken. A worker of weight w gets w / w̄ turns in each round, w̄ being the mean. The
/// table depends on the set of names and weights only.
///
/// M is the first prime at or above size · 2ᵏ, with the least k ≥ 0 that gives M ≥ 100 n. So M does
/// not change with each worker, which would move nearly every key, but does so when the number of
/// workers passes size / 100 and doubles of it.
///
/// Cost: a look-up is one multiplication and two reads. Changes are collected and carried out
/// together by [`settle`](Self::settle) in about M ln M short steps: only offset and skip are kept,
/// not the permutations (n · M numbers), a step is an addition, and free entries are looked for in a
/// set of M bits, which fits into the processor's nearest cache for a thousand workers.
///
/// Source: D. Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016.
///
/// ```
/// use openlambda_core::balancing::{
///     Cluster, FunctionId, PolicyEvent, RequestInfo, Ticket, WorkerInfo,
/// };
/// use openlambda_lb::policies::parts::{Candidates, LookupTable};
///
/// let mut cluster = Cluster::new();
/// let mut table = LookupTable::new(1_009);
/// for name in ["a", "b"] {
///     let worker = cluster.join(WorkerInfo::new(name, 8));
///     table.observe(&PolicyEvent::Joined { worker }, &cluster.view());
/// }
/// let request = RequestInfo::new(Ticket(0), FunctionId(0), 7);
/// let view = cluster.view();
/// let (worker, its_own) = table.find(request.key, &Candidates::of(&request, &view), &view).unwrap();
/// assert!(its_own && table.worker(request.key) == Some(worker));
/// ```
#[derive(Clone, Debug)]
pub struct LookupTable {
    size: u32,
    members: Vec<Member>,
    outdated: bool,
    /// By entry: the place in `members`.
    entries: Vec<u32>,
    taken: Vec<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    name_hash: u64,
    worker: WorkerId,
    weight: f64,
    /// For filling: the next entry of its permutation, the step, and the turns that it has left.
    next: u32,
    skip: u32,
    turns: f64,
}

impl LookupTable {
    /// The range of sizes.
    pub const SIZES: RangeInclusive<u32> = 101..=16_777_216;

    /// Without workers; a table of at least `size` entries.
    ///
    /// # Panics
    ///
    /// When `size` is not in [`Self::SIZES`].
    pub fn new(size: u32) -> Self {
        let (least, most) = (Self::SIZES.start(), Self::SIZES.end());
        assert!(Self::SIZES.contains(&size), "the size must be {least} to {most}");
        let (members, entries, taken) = (Vec::new(), Vec::new(), Vec::new());
        LookupTable { size, members, outdated: false, entries, taken }
    }

    /// Adds a worker. Takes effect with [`settle`](Self::settle).
    pub fn insert(&mut self, worker: WorkerId, name_hash: u64, weight: f64) {
        // A weight that is NaN or absurd must not leave the others without entries, or time.
        let weight = if weight >= 1e-3 { weight.min(1e3) } else { 1e-3 };
        self.members.push(Member { name_hash, worker, weight, next: 0, skip: 0, turns: 0.0 });
        self.outdated = true;
    }

    /// Takes a worker out. Takes effect with [`settle`](Self::settle).
    pub fn remove(&mut self, worker: WorkerId) {
        self.members.retain(|member| member.worker != worker);
        self.outdated = true;
    }

    /// Keeps the table up with the workers that come and go: all that joined have entries, ready or
    /// not. To be told every event; takes effect with [`settle`](Self::settle) or
    /// [`find`](Self::find).
    pub fn observe(&mut self, event: &PolicyEvent<'_>, view: &ClusterView<'_>) {
        match *event {
            PolicyEvent::Joined { worker } => {
                if let Some(known) = view.worker(worker) {
                    self.insert(worker, known.name_hash(), known.weight());
                }
            }
            PolicyEvent::Left { worker, .. } => self.remove(worker),
            _ => {}
        }
    }

    /// The worker of a key, or a substitute for one that is no candidate, and whether it is the key's
    /// own; `None` when there is no candidate. Settles the table.
    ///
    /// Each key of such a worker has a substitute of its own, so that no other key moves and they come
    /// back afterwards: the key is hashed again, at most 16 times; then the ready workers draw lots,
    /// O(n).
    pub fn find(
        &mut self,
        key: u64,
        candidates: &Candidates<'_>,
        view: &ClusterView<'_>,
    ) -> Option<(WorkerId, bool)> {
        self.settle();
        let home = self.worker(key)?;
        if view.is_ready(home) && candidates.allows(home) {
            return Some((home, true));
        }
        self.substitute(key, candidates, view).map(|worker| (worker, false))
    }

    #[cold]
    fn substitute(
        &self,
        key: u64,
        candidates: &Candidates<'_>,
        view: &ClusterView<'_>,
    ) -> Option<WorkerId> {
        let allowed = |worker: &WorkerId| view.is_ready(*worker) && candidates.allows(*worker);
        let mut tries = (1..=MOST_TRIES).filter_map(|again| self.worker(mix(key, again)));
        tries.find(allowed).or_else(|| {
            // Nearly all are down. A draw by names among those that are left, so that every balancer
            // draws the same.
            let lot =
                |worker: &WorkerId| view.worker(*worker).map(|known| mix(key, known.name_hash()));
            view.ready().iter().copied().filter(allowed).max_by_key(lot)
        })
    }

    /// Carries out what `insert` and `remove` noted. Nothing noted: costs nothing.
    pub fn settle(&mut self) {
        if self.outdated {
            self.outdated = false;
            self.fill();
        }
    }

    /// The worker of a key in a settled table, ready or not; `None` when there is no worker.
    pub fn worker(&self, key: u64) -> Option<WorkerId> {
        // The upper bits of the product are uniform over 0 .. M, as the remainder would be, and
        // cheaper.
        let entry = (u128::from(mix(key, ENTRY_SALT)) * self.entries.len() as u128) >> 64;
        let member = *self.entries.get(entry as usize)?;
        Some(self.members[member as usize].worker)
    }

    fn fill(&mut self) {
        self.entries.clear();
        if self.members.is_empty() {
            return;
        }
        // Turns go by the names' hashes, not by the order of joining.
        self.members.sort_unstable_by_key(|member| member.name_hash);
        let m = entries_for(self.size, self.members.len());
        let total: f64 = self.members.iter().map(|member| member.weight).sum();
        let scale = self.members.len() as f64 / total;
        for member in &mut self.members {
            member.next = (mix(member.name_hash, OFFSET_SALT) % u64::from(m)) as u32;
            member.skip = (mix(member.name_hash, SKIP_SALT) % u64::from(m - 1)) as u32 + 1;
            member.turns = 0.0;
        }
        self.entries.resize(m as usize, 0);
        self.taken.clear();
        self.taken.resize(m as usize / 64 + 1, 0);
        let mut free = m;
        loop {
            for (place, member) in self.members.iter_mut().enumerate() {
                member.turns += member.weight * scale;
                // Rounding may leave a whole turn a hair below 1.
                while member.turns > 1.0 - 1e-9 {
                    member.turns -= 1.0;
                    let entry = loop {
                        let entry = member.next;
                        member.next = match entry + member.skip {
                            next if next >= m => next - m,
                            next => next,
                        };
                        let (word, bit) = (entry as usize / 64, 1 << (entry % 64));
                        if self.taken[word] & bit == 0 {
                            self.taken[word] |= bit;
                            break entry;
                        }
                    };
                    self.entries[entry as usize] = place as u32;
                    free -= 1;
                    if free == 0 {
                        return;
                    }
                }
            }
        }
    }
}

/// The number of entries for a number of workers.
fn entries_for(size: u32, workers: usize) -> u32 {
    let wanted = (workers as u64 * 100).min(1 << 30);
    let mut size = u64::from(size);
    while size < wanted {
        size *= 2;
    }
    let prime = (size..).find(|m| (2..).take_while(|d| d * d <= *m).all(|d| m % d != 0));
    u32::try_from(prime.unwrap_or(size)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use openlambda_core::balancing::{Cluster, WorkerInfo};

    use super::*;

    fn table(size: u32, weights: &[f64]) -> LookupTable {
        let mut cluster = Cluster::new();
        let mut table = LookupTable::new(size);
        for (i, weight) in weights.iter().enumerate() {
            let worker = cluster.join(WorkerInfo::new(format!("w{i}"), 1));
            let name_hash = cluster.view().worker(worker).unwrap().name_hash();
            table.insert(worker, name_hash, *weight);
        }
        table.settle();
        table
    }

    /// Entries by worker's slot.
    fn shares(table: &LookupTable, workers: usize) -> Vec<u32> {
        let mut shares = vec![0; workers];
        for entry in &table.entries {
            shares[table.members[*entry as usize].worker.index()] += 1;
        }
        shares
    }

    #[test]
    fn the_number_of_entries_is_prime_and_at_least_a_hundred_for_each() {
        assert_eq!(entries_for(65_537, 1), 65_537);
        assert_eq!(entries_for(65_537, 655), 65_537);
        assert_eq!(entries_for(65_537, 656), 131_101);
        assert_eq!(entries_for(65_537, 10_000), 1_048_601);
        assert_eq!(entries_for(101, 1), 101);
    }

    /// With equal weights no two shares differ by more than one entry, which is 1 % at 100 entries
    /// for each and less with more.
    #[test]
    fn equal_workers_have_equal_shares() {
        for n in [1, 2, 3, 100, 655, 1_000] {
            let table = table(65_537, &vec![1.0; n]);
            let shares = shares(&table, n);
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{n} workers have {least} to {most} entries");
            assert!(f64::from(*most) <= 1.01 * table.entries.len() as f64 / n as f64 + 1.0);
        }
    }

    #[test]
    fn shares_follow_weights() {
        let weights: Vec<f64> = (0..100).map(|i| [1.0, 2.0, 0.5, 7.0][i % 4]).collect();
        let table = table(65_537, &weights);
        let total: f64 = weights.iter().sum();
        for (share, weight) in shares(&table, 100).into_iter().zip(&weights) {
            let expected = 65_537.0 * weight / total;
            let error = (f64::from(share) / expected - 1.0).abs();
            assert!(error < 0.011, "{share} entries instead of {expected}");
        }
    }

    #[test]
    fn mad_weights_do_no_harm() {
        let table = table(1_009, &[f64::NAN, 0.0, -1.0, f64::INFINITY, 1.0]);
        assert!(shares(&table, 5)[3] > 900);
        assert_eq!(table.entries.len(), 1_009);
    }

    #[test]
    fn without_workers_no_key_has_one() {
        let mut table = table(101, &[1.0]);
        let worker = table.worker(7).unwrap();
        table.remove(worker);
        table.settle();
        assert_eq!(table.worker(7), None);
        assert_eq!(LookupTable::new(101).worker(7), None);
    }
}
