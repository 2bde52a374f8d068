//! A hash ring that follows workers as they join and leave: [`WorkerRing`].

use openlambda_core::balancing::{ClusterView, PolicyEvent, WorkerId};
use openlambda_core::hash::mix;

use super::candidates::Candidates;
use super::ring::Ring;

/// Keeps the place of functions' keys on the ring apart from that of workers' names.
const KEY_SALT: u64 = 0x6b65_7973;

/// The most points of one worker: a mad weight must not eat the memory.
const MOST_POINTS: f64 = 10_000.0;

/// A [`Ring`] of all workers that joined, with points in proportion to their weights.
///
/// Workers that are not ready keep their points and are passed over, so that their functions come
/// back to them afterwards. All policies that use it with the same number of points agree where a
/// key is at home.
///
/// Cost: the nearest candidate is found in O(1) on average, plus a step for each point of one that is
/// passed over. Workers that came or went cost O(points) at the next look-up, all of them together.
///
/// Source: [`Ring`]'s; weights as numbers of points: G. DeCandia et al., Dynamo: Amazon's Highly
/// Available Key-value Store, SOSP 2007.
///
/// ```
/// use openlambda_core::balancing::{
///     Cluster, FunctionId, PolicyEvent, RequestInfo, Ticket, WorkerInfo,
/// };
/// use openlambda_lb::policies::parts::{Candidates, WorkerRing};
///
/// let mut cluster = Cluster::new();
/// let mut ring = WorkerRing::new(100);
/// for name in ["a", "b", "c"] {
///     let worker = cluster.join(WorkerInfo::new(name, 8));
///     ring.observe(&PolicyEvent::Joined { worker }, &cluster.view());
/// }
/// let key = 7;
/// let request = RequestInfo::new(Ticket(0), FunctionId(0), key);
/// let home = ring.home(key, &Candidates::of(&request, &cluster.view()), &cluster.view()).unwrap();
///
/// cluster.set_healthy(home, false);
/// let view = cluster.view();
/// let next = ring.home(key, &Candidates::of(&request, &view), &view);
/// assert!(next.is_some() && next != Some(home));
/// ```
#[derive(Clone, Debug)]
pub struct WorkerRing {
    ring: Ring,
    vnodes: u32,
}

impl WorkerRing {
    /// The largest number of points for a worker of weight 1.
    pub const MOST_VNODES: u32 = 10_000;

    /// A ring without workers, with `vnodes` points for a worker of weight 1.
    ///
    /// # Panics
    ///
    /// When `vnodes` is not in 1 ..= [`Self::MOST_VNODES`].
    pub fn new(vnodes: u32) -> Self {
        assert!((1..=Self::MOST_VNODES).contains(&vnodes), "vnodes must be 1 to 10000");
        WorkerRing { ring: Ring::new(), vnodes }
    }

    /// To be told every event. Returns whether the ring changed.
    pub fn observe(&mut self, event: &PolicyEvent<'_>, view: &ClusterView<'_>) -> bool {
        match *event {
            PolicyEvent::Joined { worker } => {
                let Some(known) = view.worker(worker) else { return false };
                let points = (f64::from(self.vnodes) * known.weight()).round();
                // At least one, or the worker would never be found; also for a weight that is not a
                // number.
                let points = if points >= 1.0 { points.min(MOST_POINTS) as u32 } else { 1 };
                self.ring.insert(worker, known.name_hash(), points);
                true
            }
            PolicyEvent::Left { worker, .. } => {
                self.ring.remove(worker);
                true
            }
            _ => false,
        }
    }

    /// Where on a [`Ring`] a key is: apart from the places that workers' names hash to.
    pub const fn place_of(key: u64) -> u64 {
        mix(key, KEY_SALT)
    }

    /// All workers clockwise from a key's place, ready or not, each as often as it has points; once
    /// around.
    pub fn walk(&mut self, key: u64) -> impl Iterator<Item = WorkerId> {
        self.ring.settle();
        self.ring.walk(Self::place_of(key))
    }

    /// The candidates clockwise from a key's place, each as often as it has points; once around.
    pub fn candidates(
        &mut self,
        key: u64,
        candidates: &Candidates<'_>,
        view: &ClusterView<'_>,
    ) -> impl Iterator<Item = WorkerId> {
        self.walk(key).filter(|worker| view.is_ready(*worker) && candidates.allows(*worker))
    }

    /// The first candidate clockwise from a key's place; `None` when there is no candidate.
    pub fn home(
        &mut self,
        key: u64,
        candidates: &Candidates<'_>,
        view: &ClusterView<'_>,
    ) -> Option<WorkerId> {
        if candidates.is_empty() {
            return None;
        }
        self.candidates(key, candidates, view).next()
    }
}
