//! The function's own worker, by one look-up in a table: [`Maglev`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};
use openlambda_core::hash::mix;

use super::candidates::Candidates;
use super::catalog::{ParameterInfo, PolicyEntry};
use super::lookup_table::LookupTable;

/// A key whose workers are not ready is hashed again so many times.
const MOST_TRIES: u64 = 16;

/// Maglev hashing: the key's entry in a table that was filled in even shares.
///
/// Formula: with M prime, M ≥ 100 n, worker i prefers the entries (oᵢ + j·sᵢ) mod M in order of j;
/// the workers take turns, each taking the next free entry that it prefers, wᵢ / w̄ turns in each
/// round. The choice is the owner of entry ⌊h(f) · M / 2⁶⁴⌋. Shares are even to one turn in M / n:
/// within 1 %.
///
/// In exchange for that evenness keys also move between workers that stay. When one of n workers
/// comes or goes, 1/n of the entries must change hands; with 65,537 entries about 0.5 % more do at
/// n = 20, and 1 % at n = 650. When n passes `size` / 100, and doubles of it, the table doubles and
/// nearly all keys move: set `size` to 100 times the largest cluster to come.
///
/// A worker that is not ready keeps its entries: its keys are hashed again to find a substitute each,
/// so that no other key moves and they come back afterwards.
///
/// Cost: O(1) and no allocation per decision; a further look-up for each worker met that is not
/// ready, at most 16, then O(ready workers). When a worker comes or goes, about M ln M short steps at
/// the next decision (some milliseconds for a thousand workers); nothing when one's health changes.
///
/// Source: D. Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer, NSDI 2016.
#[derive(Clone, Debug)]
pub struct Maglev {
    table: LookupTable,
}

impl Maglev {
    /// The smallest table.
    pub const LEAST_SIZE: u32 = *LookupTable::SIZES.start();
    /// The largest table to begin with.
    pub const MOST_SIZE: u32 = *LookupTable::SIZES.end();

    /// With a table of at least `size` entries.
    ///
    /// # Panics
    ///
    /// When `size` is not in [`Self::LEAST_SIZE`] ..= [`Self::MOST_SIZE`].
    pub fn new(size: u32) -> Self {
        Maglev { table: LookupTable::new(size) }
    }
}

impl Default for Maglev {
    /// 65,537 entries, as in the paper: enough for 655 workers.
    fn default() -> Self {
        Maglev::new(65_537)
    }
}

impl BalancingPolicy for Maglev {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) -> Decision {
        self.table.settle();
        let candidates = Candidates::of(request, view);
        match find(&self.table, request.key, &candidates, view) {
            Some((worker, true)) => Decision::To(worker, Why("home")),
            Some((worker, false)) => Decision::To(worker, Why("substitute")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        follow(&mut self.table, event, view);
    }
}

/// Keeps a table up with the workers that come and go.
pub(super) fn follow(table: &mut LookupTable, event: &PolicyEvent<'_>, view: &ClusterView<'_>) {
    match *event {
        PolicyEvent::Joined { worker } => {
            if let Some(known) = view.worker(worker) {
                table.insert(worker, known.name_hash(), known.weight());
            }
        }
        PolicyEvent::Left { worker, .. } => table.remove(worker),
        _ => {}
    }
}

/// The worker of a key in a settled table, or a substitute for it when it is no candidate, and
/// whether it is the key's own; `None` when there is no candidate.
pub(super) fn find(
    table: &LookupTable,
    key: u64,
    candidates: &Candidates<'_>,
    view: &ClusterView<'_>,
) -> Option<(WorkerId, bool)> {
    let home = table.worker(key)?;
    if view.is_ready(home) && candidates.allows(home) {
        return Some((home, true));
    }
    substitute(table, key, candidates, view).map(|worker| (worker, false))
}

#[cold]
fn substitute(
    table: &LookupTable,
    key: u64,
    candidates: &Candidates<'_>,
    view: &ClusterView<'_>,
) -> Option<WorkerId> {
    let allowed = |worker: &WorkerId| view.is_ready(*worker) && candidates.allows(*worker);
    let mut tries = (1..=MOST_TRIES).filter_map(|again| table.worker(mix(key, again)));
    tries.find(allowed).or_else(|| {
        // Nearly all are down. A draw by names among those that are left, so that every balancer
        // draws the same.
        let lot = |worker: &WorkerId| view.worker(*worker).map(|known| mix(key, known.name_hash()));
        view.ready().iter().copied().filter(allowed).max_by_key(lot)
    })
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "maglev".to_owned(),
        about: "the function's worker in an evenly filled table".to_owned(),
        source: "Eisenbud et al., Maglev, NSDI 2016".to_owned(),
        parameters: vec![
            ParameterInfo::new(
                "size",
                65_537,
                "entries of the table, at least; it grows to 100 for each worker; 101 to 16777216",
            )
            .within(LookupTable::SIZES),
        ],
        build: Box::new(|given| Ok(Box::new(Maglev::new(given.whole("size")?)))),
    }
}
