//! The balancer's one reducer: which workers are in the cluster, and what is known about each.
//!
//! Only the methods of [`Cluster`] change it, one for each kind of event; policies read it through
//! [`ClusterView`]. Arrays are indexed by [`WorkerId::index`], so each query that a policy makes per
//! decision is O(1); small queries are inlined into the crates of the policies.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::idle::IdleInstances;
use super::{ColourId, FunctionId, PackageId, WorkerId, WorkerLoad};
use crate::function::FunctionName;
use crate::hash::{mix, stable_hash};

/// Seed of the hash of workers' and functions' names, unless an experiment says: a constant, so that
/// placements agree between balancers and over restarts.
const NAME_SEED: u64 = 0x6f6c_2d6e_616d_6573;

/// What is known of the workers and functions. See the module's documentation.
#[derive(Debug)]
pub struct Cluster {
    /// Seed of the hashes of names.
    placement: u64,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Joined workers, by name.
    by_name: BTreeMap<Arc<str>, WorkerId>,
    /// Ready workers, by slot: round robin walks it, random draws from it.
    ready: Vec<WorkerId>,
    in_flight_total: u64,
    functions: Interner<FunctionName>,
    function_keys: Vec<u64>,
    packages: Interner<String>,
    package_keys: Vec<u64>,
    colours: Interner<String>,
    colour_keys: Vec<u64>,
    idle: IdleInstances,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    worker: Option<Worker>,
}

#[derive(Debug)]
struct Worker {
    name: Arc<str>,
    name_hash: u64,
    weight: f64,
    capacity: u32,
    healthy: bool,
    draining: bool,
    in_flight: u32,
    load: WorkerLoad,
}

/// What a worker says of itself when it joins.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Its stable name: the same after a restart.
    pub name: Arc<str>,
    /// Its share of the load beside others: 2.0 gets twice as much as 1.0.
    pub weight: f64,
    /// How many invocations it can run at once.
    pub capacity: u32,
}

impl WorkerInfo {
    /// A worker of weight 1 that runs `capacity` invocations at once.
    pub fn new(name: impl Into<Arc<str>>, capacity: u32) -> Self {
        WorkerInfo { name: name.into(), weight: 1.0, capacity }
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            placement: NAME_SEED,
            slots: Vec::new(),
            free: Vec::new(),
            by_name: BTreeMap::new(),
            ready: Vec::new(),
            in_flight_total: 0,
            functions: Interner::default(),
            function_keys: Vec::new(),
            packages: Interner::default(),
            package_keys: Vec::new(),
            colours: Interner::default(),
            colour_keys: Vec::new(),
            idle: IdleInstances::default(),
        }
    }
}

impl Cluster {
    /// An empty cluster.
    pub fn new() -> Self {
        Cluster::default()
    }

    /// An empty cluster with a placement of its own: rings and tables hash names under this seed, where
    /// those of all live balancers agree. For experiments, whose seeds must reach the placement: what
    /// comes of a hash differs more between placements than between streams of calls.
    pub fn with_placement(seed: u64) -> Self {
        Cluster { placement: mix(NAME_SEED, seed), ..Cluster::default() }
    }

    /// What policies see.
    pub fn view(&self) -> ClusterView<'_> {
        ClusterView { cluster: self }
    }

    /// A worker joins, healthy. One with the same name must have left before.
    ///
    /// # Panics
    ///
    /// When a worker of that name is there.
    pub fn join(&mut self, info: WorkerInfo) -> WorkerId {
        assert!(!self.by_name.contains_key(&info.name), "worker {} joined twice", info.name);
        let worker = Worker {
            name_hash: stable_hash(self.placement, info.name.as_bytes()),
            name: info.name.clone(),
            weight: info.weight,
            capacity: info.capacity,
            healthy: true,
            draining: false,
            in_flight: 0,
            load: WorkerLoad::default(),
        };
        let id = match self.free.pop() {
            Some(slot) => {
                let place = &mut self.slots[slot as usize];
                place.worker = Some(worker);
                WorkerId { slot, generation: place.generation }
            }
            None => {
                let slot = u32::try_from(self.slots.len()).expect("fewer than 2^32 workers");
                self.slots.push(Slot { generation: 0, worker: Some(worker) });
                WorkerId { slot, generation: 0 }
            }
        };
        self.by_name.insert(info.name, id);
        self.update_ready(id);
        id
    }

    /// A worker leaves; all that was known of it is forgotten. Returns its name and name's hash.
    pub fn leave(&mut self, id: WorkerId) -> Option<(Arc<str>, u64)> {
        self.worker(id)?;
        let slot = &mut self.slots[id.index()];
        let worker = slot.worker.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.in_flight_total -= u64::from(worker.in_flight);
        self.by_name.remove(&worker.name);
        self.ready.retain(|ready| *ready != id);
        self.idle.forget(id.slot);
        Some((worker.name, worker.name_hash))
    }

    /// Sets a worker's health. Returns whether it is ready now, if that changed.
    pub fn set_healthy(&mut self, id: WorkerId, healthy: bool) -> Option<bool> {
        self.worker_mut(id)?.healthy = healthy;
        self.update_ready(id)
    }

    /// Sets whether a worker takes no new requests. Returns whether it is ready now, if that
    /// changed.
    pub fn set_draining(&mut self, id: WorkerId, draining: bool) -> Option<bool> {
        self.worker_mut(id)?.draining = draining;
        self.update_ready(id)
    }

    /// A request was sent to a worker.
    pub fn dispatched(&mut self, id: WorkerId) {
        if let Some(worker) = self.worker_mut(id) {
            worker.in_flight += 1;
            self.in_flight_total += 1;
        }
    }

    /// A request was sent to a worker, where it takes an idle instance of its function, if there is
    /// one.
    pub(super) fn sent(&mut self, id: WorkerId, function: FunctionId) {
        if let Some(worker) = self.worker_mut(id) {
            worker.in_flight += 1;
            self.in_flight_total += 1;
            self.idle.take(id.slot, function);
        }
    }

    /// A request was answered by a worker. For one that left meanwhile nothing happens.
    pub fn completed(&mut self, id: WorkerId) {
        if let Some(worker) = self.worker_mut(id) {
            debug_assert!(worker.in_flight > 0, "a completion without a dispatch");
            if worker.in_flight > 0 {
                worker.in_flight -= 1;
                self.in_flight_total -= 1;
            }
        }
    }

    /// An instance became idle.
    pub fn idle(&mut self, id: WorkerId, function: FunctionId) {
        if self.worker(id).is_some() {
            self.idle.add(id.slot, function);
        }
    }

    /// An idle instance was evicted or taken: one less. Events may be lost, so zero stays zero.
    pub fn not_idle(&mut self, id: WorkerId, function: FunctionId) {
        if self.worker(id).is_some() {
            self.idle.take(id.slot, function);
        }
    }

    /// A snapshot of a worker's idle instances replaces what was known: it repairs lost events. In
    /// any order; the counts of a function that is named twice add up. It costs as much as the worker
    /// holds.
    pub fn set_idle(&mut self, id: WorkerId, idle: impl IntoIterator<Item = (FunctionId, u32)>) {
        if self.worker(id).is_some() {
            self.idle.set(id.slot, idle);
        }
    }

    /// A worker reported its load.
    pub fn set_load(&mut self, id: WorkerId, load: WorkerLoad) {
        if let Some(worker) = self.worker_mut(id) {
            worker.load = load;
        }
    }

    /// The id of a function and its key for rings, given at first sight.
    pub fn function(&mut self, name: &FunctionName) -> (FunctionId, u64) {
        let id = self.functions.intern(name);
        if id as usize == self.function_keys.len() {
            self.function_keys.push(stable_hash(self.placement, name.to_string().as_bytes()));
        }
        (FunctionId(id), self.function_keys[id as usize])
    }

    /// The name of a function that was interned.
    pub fn function_name(&self, id: FunctionId) -> Option<&FunctionName> {
        self.functions.values.get(id.0 as usize)
    }

    /// The id of a package, given at first sight.
    pub fn package(&mut self, name: &str) -> PackageId {
        let id = self.packages.intern(name);
        if id as usize == self.package_keys.len() {
            self.package_keys.push(stable_hash(self.placement, name.as_bytes()));
        }
        PackageId(id)
    }

    /// The id of a colour, given at first sight.
    pub fn colour(&mut self, name: &str) -> ColourId {
        let id = self.colours.intern(name);
        if id as usize == self.colour_keys.len() {
            self.colour_keys.push(stable_hash(self.placement, name.as_bytes()));
        }
        ColourId(id)
    }

    #[inline]
    fn worker(&self, id: WorkerId) -> Option<&Worker> {
        let slot = self.slots.get(id.index())?;
        if slot.generation == id.generation { slot.worker.as_ref() } else { None }
    }

    #[inline]
    fn worker_mut(&mut self, id: WorkerId) -> Option<&mut Worker> {
        let slot = self.slots.get_mut(id.index())?;
        if slot.generation == id.generation { slot.worker.as_mut() } else { None }
    }

    fn update_ready(&mut self, id: WorkerId) -> Option<bool> {
        let worker = self.worker(id)?;
        let ready = worker.healthy && !worker.draining;
        match (self.ready.binary_search(&id), ready) {
            (Err(place), true) => self.ready.insert(place, id),
            (Ok(place), false) => {
                self.ready.remove(place);
            }
            _ => return None,
        }
        Some(ready)
    }
}

/// What policies see of a [`Cluster`].
#[derive(Clone, Copy, Debug)]
pub struct ClusterView<'a> {
    cluster: &'a Cluster,
}

impl<'a> ClusterView<'a> {
    /// The workers that take requests, in order of their slots.
    #[inline]
    pub fn ready(&self) -> &'a [WorkerId] {
        &self.cluster.ready
    }

    /// Whether a worker takes requests.
    #[inline]
    pub fn is_ready(&self, worker: WorkerId) -> bool {
        self.cluster.worker(worker).is_some_and(|worker| worker.healthy && !worker.draining)
    }

    /// All workers that joined, ready or not, in order of their names.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerId, WorkerView<'a>)> {
        let cluster = self.cluster;
        cluster
            .by_name
            .values()
            .filter_map(|id| Some((*id, WorkerView { worker: cluster.worker(*id)? })))
    }

    /// One worker; `None` when it left.
    #[inline]
    pub fn worker(&self, id: WorkerId) -> Option<WorkerView<'a>> {
        Some(WorkerView { worker: self.cluster.worker(id)? })
    }

    /// The worker of that name.
    pub fn named(&self, name: &str) -> Option<WorkerId> {
        self.cluster.by_name.get(name).copied()
    }

    /// Requests that this balancer has sent to the worker and that are not answered; 0 when it left.
    #[inline]
    pub fn in_flight(&self, id: WorkerId) -> u32 {
        self.cluster.worker(id).map_or(0, |worker| worker.in_flight)
    }

    /// The same over all workers.
    pub fn in_flight_total(&self) -> u64 {
        self.cluster.in_flight_total
    }

    /// One more than the highest [`WorkerId::index`] so far: the size for arrays.
    pub fn slots(&self) -> usize {
        self.cluster.slots.len()
    }

    /// A stable hash of the package's name, for rings: ids differ between balancers. 0 for an id of
    /// another cluster.
    pub fn package_key(&self, package: PackageId) -> u64 {
        self.cluster.package_keys.get(package.0 as usize).copied().unwrap_or(0)
    }

    /// A stable hash of the colour's name, for rings: ids differ between balancers. 0 for an id of
    /// another cluster.
    pub fn colour_key(&self, colour: ColourId) -> u64 {
        self.cluster.colour_keys.get(colour.0 as usize).copied().unwrap_or(0)
    }

    /// Idle instances of the function on the worker, as far as the events tell.
    pub fn idle(&self, id: WorkerId, function: FunctionId) -> u32 {
        self.worker(id).map_or(0, |_| self.cluster.idle.count(id.slot, function))
    }

    /// The workers with idle instances of the function, ready or not, and how many.
    pub fn idle_workers(&self, function: FunctionId) -> impl Iterator<Item = (WorkerId, u32)> {
        let cluster = self.cluster;
        cluster.idle.slots(function).map(|(slot, count)| {
            let generation = cluster.slots[slot as usize].generation;
            (WorkerId { slot, generation }, count)
        })
    }
}

/// What policies see of one worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerView<'a> {
    worker: &'a Worker,
}

impl<'a> WorkerView<'a> {
    /// Its stable name.
    pub fn name(&self) -> &'a str {
        &self.worker.name
    }

    /// A stable hash of its name, for rings.
    pub fn name_hash(&self) -> u64 {
        self.worker.name_hash
    }

    /// Its share of the load.
    pub fn weight(&self) -> f64 {
        self.worker.weight
    }

    /// How many invocations it can run at once.
    pub fn capacity(&self) -> u32 {
        self.worker.capacity
    }

    /// Requests that this balancer has in flight there.
    pub fn in_flight(&self) -> u32 {
        self.worker.in_flight
    }

    /// Whether it passes its health checks.
    pub fn healthy(&self) -> bool {
        self.worker.healthy
    }

    /// Whether it takes no new requests.
    pub fn draining(&self) -> bool {
        self.worker.draining
    }

    /// Its last report.
    pub fn load(&self) -> WorkerLoad {
        self.worker.load
    }
}

/// Gives equal values equal small numbers.
#[derive(Debug)]
struct Interner<T> {
    ids: BTreeMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Interner { ids: BTreeMap::new(), values: Vec::new() }
    }
}

impl<T: Ord + Clone> Interner<T> {
    fn intern<Q>(&mut self, value: &Q) -> u32
    where
        T: std::borrow::Borrow<Q>,
        Q: Ord + ToOwned<Owned = T> + ?Sized,
    {
        if let Some(id) = self.ids.get(value) {
            return *id;
        }
        let id = u32::try_from(self.values.len()).expect("fewer than 2^32 names");
        self.ids.insert(value.to_owned(), id);
        self.values.push(value.to_owned());
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_reused_but_its_old_id_is_not() {
        let mut cluster = Cluster::new();
        let a = cluster.join(WorkerInfo::new("a", 1));
        cluster.dispatched(a);
        cluster.leave(a);
        let b = cluster.join(WorkerInfo::new("b", 1));
        assert_eq!(a.index(), b.index());
        assert_ne!(a, b);
        cluster.completed(a);
        assert_eq!(cluster.view().in_flight(b), 0);
        assert_eq!(cluster.view().in_flight_total(), 0);
        assert!(cluster.view().worker(a).is_none());
    }

    #[test]
    fn keys_of_packages_and_colours_depend_on_names_only() {
        let (mut a, mut b) = (Cluster::new(), Cluster::new());
        a.package("flask");
        a.colour("red");
        let (pa, pb) = (a.package("numpy"), b.package("numpy"));
        let (ca, cb) = (a.colour("blue"), b.colour("blue"));
        assert!(pa != pb && ca != cb);
        assert_eq!(a.view().package_key(pa), b.view().package_key(pb));
        assert_eq!(a.view().colour_key(ca), b.view().colour_key(cb));
        assert_ne!(a.view().package_key(pa), a.view().package_key(pb));
        assert_eq!(a.package("numpy"), pa);
    }

    #[test]
    fn ready_follows_health_and_draining() {
        let mut cluster = Cluster::new();
        let a = cluster.join(WorkerInfo::new("a", 1));
        let b = cluster.join(WorkerInfo::new("b", 1));
        assert_eq!(cluster.view().ready(), [a, b]);
        assert_eq!(cluster.set_healthy(a, false), Some(false));
        assert_eq!(cluster.set_healthy(a, false), None);
        assert_eq!(cluster.set_draining(a, true), None);
        assert_eq!(cluster.view().ready(), [b]);
        assert_eq!(cluster.set_draining(a, false), None);
        assert_eq!(cluster.set_healthy(a, true), Some(true));
        assert_eq!(cluster.view().ready(), [a, b]);
    }

    #[test]
    fn a_snapshot_repairs_lost_events() {
        let mut cluster = Cluster::new();
        let a = cluster.join(WorkerInfo::new("a", 1));
        let (f, _) = cluster.function(&"f".parse().unwrap());
        let (g, _) = cluster.function(&"g".parse().unwrap());
        cluster.not_idle(a, f);
        cluster.idle(a, f);
        cluster.set_idle(a, [(g, 2), (f, 0)]);
        assert_eq!(cluster.view().idle(a, f), 0);
        assert_eq!(cluster.view().idle(a, g), 2);
        assert_eq!(cluster.view().idle_workers(g).collect::<Vec<_>>(), [(a, 2)]);
        cluster.leave(a);
        assert_eq!(cluster.view().idle_workers(g).count(), 0);
    }
}
