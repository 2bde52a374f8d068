//! Workers with idle instances of a function pull its requests: [`Hiku`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, RequestInfo,
    Why, WorkerId,
};

use super::catalog::PolicyEntry;
use super::least_outstanding::LeastOutstanding;
use super::parts::{BySlot, FixedMap};

/// Pull-based scheduling: a priority queue per function of the workers that have an idle instance of
/// it.
///
/// Algorithm: an answered request of function f puts its worker into f's queue, an eviction takes it
/// out, and so does a request that is sent there, once for each idle instance. A request of f goes
/// to the worker in f's queue with the fewest requests in flight, by weight: argmin (qᵢ + 1) / wᵢ. When
/// the queue is empty it goes to the worker with the fewest requests of all ([`LeastOutstanding`]).
///
/// A worker's count changes with every request, of whatever function, and re-sorting it in the
/// queues of all its functions each time is what makes such a policy slow. Here an event touches
/// only the queue of its own function. A worker that comes to the head of a queue with a count that
/// has risen since sinks to its new place; one whose count fell elsewhere is found a little late.
///
/// How many instances are idle is counted from completions, dispatches and evictions, raised by
/// idle notices, and replaced by what the worker says in its next report, so that lost or repeated
/// events do no lasting harm.
///
/// Cost: O(log n) per decision and event, no allocation in the steady state; when a worker comes
/// back, or leaves, O(functions · log n); for a retry O(length of the queue).
///
/// Source: S. Akbari, M. Hauswirth, Hiku: Pull-Based Scheduling for Serverless Computing, CCGrid
/// 2025.
#[derive(Clone, Debug, Default)]
pub struct Hiku {
    /// By function: a binary heap, the least loaded first.
    queues: Vec<Vec<Idle>>,
    /// By function and slot: the place in that function's heap.
    places: FixedMap<usize>,
    /// How many reports have come from a worker.
    reports: BySlot<u32>,
    fallback: LeastOutstanding,
}

/// A worker with idle instances of a function.
#[derive(Clone, Copy, Debug)]
struct Idle {
    worker: WorkerId,
    /// Its load when it was last looked at here.
    load: Load,
    instances: u32,
    /// The worker's reports at the time when `instances` was counted.
    reports: u32,
}

/// (q + 1) / w as the bits of a float, which sort as the numbers do; all bits set for a worker that
/// is not ready.
type Load = u32;

const NOT_READY: Load = Load::MAX;

/// No place: of an entry that `places` does not have yet.
const NEW: usize = usize::MAX;

impl Hiku {
    /// How many stale heads a decision puts in their place, before it takes the next as it is. It
    /// bounds the cost of a decision in the worst case.
    const MOST_SINKING: usize = 8;

    /// Knows no workers yet.
    pub fn new() -> Self {
        Hiku::default()
    }

    /// The best worker of the function's queue.
    fn pop(&mut self, function: FunctionId, view: &ClusterView<'_>) -> Option<WorkerId> {
        for sinking in 0..=Self::MOST_SINKING {
            let head = *self.queues.get(function.0 as usize)?.first()?;
            if !self.repair(function, head, view) {
                continue;
            }
            let load = load(head.worker, view);
            if load == NOT_READY {
                // Behind it there are only others like it, once it has sunk.
                if head.load == NOT_READY {
                    return None;
                }
            } else if load <= head.load || sinking == Self::MOST_SINKING {
                return Some(head.worker);
            }
            self.set_load(function, 0, load);
        }
        None
    }

    /// Replaces a count that is older than the worker's last report. Returns whether any instance
    /// is left.
    fn repair(&mut self, function: FunctionId, idle: Idle, view: &ClusterView<'_>) -> bool {
        let reports = self.reports.get(idle.worker).copied().unwrap_or_default();
        if idle.reports == reports {
            return true;
        }
        let instances = view.idle(idle.worker, function);
        self.set_instances(function, idle.worker, view, |_| instances);
        instances > 0
    }

    fn after_failures(
        &self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
    ) -> Option<WorkerId> {
        let queue = self.queues.get(request.function.0 as usize)?;
        let allowed = queue
            .iter()
            .map(|idle| idle.worker)
            .filter(|worker| view.is_ready(*worker) && !request.excludes(*worker));
        allowed.min_by_key(|worker| (load(*worker, view), worker.index()))
    }

    /// Sets how many instances are idle to `count` of how many they were; 0 takes the worker out.
    /// Either way its load is looked at again.
    fn set_instances(
        &mut self,
        function: FunctionId,
        worker: WorkerId,
        view: &ClusterView<'_>,
        count: impl FnOnce(u32) -> u32,
    ) {
        let Some(known) = view.worker(worker) else { return };
        let queue = function.0 as usize;
        let place = self.place(function, worker);
        let before = place.map_or(0, |place| self.queues[queue][place].instances);
        // More than run at once cannot be idle; counts that drifted end here.
        let instances = count(before).min(known.capacity().max(1));
        if instances == 0 {
            if let Some(place) = place {
                self.remove_at(function, place);
            }
            return;
        }
        let reports = self.reports.get(worker).copied().unwrap_or_default();
        let idle = Idle { worker, load: load(worker, view), instances, reports };
        if queue >= self.queues.len() {
            self.queues.resize_with(queue + 1, Vec::new);
        }
        let heap = &mut self.queues[queue];
        match place {
            Some(place) => {
                heap[place] = idle;
                self.sift(function, place, place);
            }
            None => {
                let last = heap.len();
                heap.push(idle);
                self.sift(function, last, NEW);
            }
        }
    }

    fn place(&self, function: FunctionId, worker: WorkerId) -> Option<usize> {
        let heap = self.queues.get(function.0 as usize)?;
        // A request that is sent to a worker was mostly sent to the head.
        if heap.first()?.worker == worker {
            return Some(0);
        }
        let place = *self.places.get(key(function, worker))?;
        (heap[place].worker == worker).then_some(place)
    }

    fn set_load(&mut self, function: FunctionId, place: usize, load: Load) {
        self.queues[function.0 as usize][place].load = load;
        self.sift(function, place, place);
    }

    fn remove_at(&mut self, function: FunctionId, place: usize) {
        let heap = &mut self.queues[function.0 as usize];
        let removed = heap.swap_remove(place);
        let moved_from = heap.len();
        self.places.remove(key(function, removed.worker));
        if place < moved_from {
            self.sift(function, place, moved_from);
        }
    }

    /// Moves an entry, which its place in `places` has at `known`, up or down to where its load
    /// belongs. The others step aside, and it is written once.
    fn sift(&mut self, function: FunctionId, mut place: usize, known: usize) {
        let heap = &mut self.queues[function.0 as usize][..];
        let moving = heap[place];
        while place > 0 && moving.load < heap[(place - 1) / 2].load {
            let parent = (place - 1) / 2;
            heap[place] = heap[parent];
            self.places.insert(key(function, heap[place].worker), place);
            place = parent;
        }
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            let child = match heap.get(right) {
                Some(other) if other.load < heap[left].load => right,
                _ => left,
            };
            if heap.get(child).is_none_or(|child| child.load >= moving.load) {
                break;
            }
            heap[place] = heap[child];
            self.places.insert(key(function, heap[place].worker), place);
            place = child;
        }
        heap[place] = moving;
        if place != known {
            self.places.insert(key(function, moving.worker), place);
        }
    }
}

fn key(function: FunctionId, worker: WorkerId) -> u64 {
    u64::from(function.0) << 32 | worker.index() as u64
}

fn load(worker: WorkerId, view: &ClusterView<'_>) -> Load {
    match view.worker(worker) {
        Some(known) if known.healthy() && !known.draining() => {
            let (requests, weight) = (f64::from(known.in_flight() + 1), known.weight());
            // Mostly there is nothing to divide by, and a division takes as long as all the rest.
            let load = if weight == 1.0 { requests } else { requests / weight };
            (load as f32).to_bits()
        }
        _ => NOT_READY,
    }
}

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry::new(
        "hiku",
        "the least loaded worker with an idle instance of the function, else the least loaded",
        "Akbari & Hauswirth, Hiku: Pull-Based Scheduling for Serverless Computing, CCGrid 2025",
        || Box::new(Hiku::new()),
    )
}

impl BalancingPolicy for Hiku {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let idle = if request.excluded.is_empty() {
            self.pop(request.function, view)
        } else {
            self.after_failures(request, view)
        };
        match idle {
            Some(worker) => Decision::To(worker, Why("idle instance")),
            None => self.fallback.select(request, view, cx),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        self.fallback.observe(event, view, cx);
        let functions = (0..self.queues.len() as u32).map(FunctionId);
        match *event {
            PolicyEvent::Dispatched { function, worker, .. }
            | PolicyEvent::Evicted { function, worker } => {
                self.set_instances(function, worker, view, |before| before.saturating_sub(1));
            }
            PolicyEvent::Completed { function, worker, ok, .. } => {
                // An instance that failed may be gone.
                self.set_instances(function, worker, view, |before| before + u32::from(ok));
            }
            PolicyEvent::Idle { function, worker } => {
                // The notice of an instance whose completion was counted already adds nothing.
                let told = view.idle(worker, function);
                self.set_instances(function, worker, view, |before| before.max(told));
            }
            PolicyEvent::Load { worker, .. } => {
                if let Some(reports) = self.reports.get_mut(worker) {
                    *reports = reports.wrapping_add(1);
                }
            }
            PolicyEvent::Joined { worker } => self.reports.insert(worker, 0),
            PolicyEvent::Left { worker, .. } => {
                for function in functions {
                    if let Some(place) = self.place(function, worker) {
                        self.remove_at(function, place);
                    }
                }
                self.reports.remove(worker);
            }
            // Those that became unready sink when they come to the head.
            PolicyEvent::ReadyChanged { worker, ready: true } => {
                for function in functions {
                    if let Some(place) = self.place(function, worker) {
                        self.set_load(function, place, load(worker, view));
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::conformance::balancing::check_history;

    use super::*;

    /// Looks at the queues after each event.
    #[derive(Debug, Default)]
    struct Watched(Hiku);

    impl BalancingPolicy for Watched {
        fn select(
            &mut self,
            request: &RequestInfo<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) -> Decision {
            let decision = self.0.select(request, view, cx);
            self.0.check(view);
            decision
        }

        fn observe(
            &mut self,
            event: &PolicyEvent<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) {
            self.0.observe(event, view, cx);
            self.0.check(view);
        }
    }

    impl Hiku {
        fn check(&self, view: &ClusterView<'_>) {
            let mut pairs = 0;
            for (function, heap) in self.queues.iter().enumerate() {
                pairs += heap.len();
                for (place, idle) in heap.iter().enumerate() {
                    assert!(view.worker(idle.worker).is_some(), "one that left is in a queue");
                    assert!(idle.instances > 0);
                    assert!(heap[place.saturating_sub(1) / 2].load <= idle.load, "it is a heap");
                    assert_eq!(self.place(FunctionId(function as u32), idle.worker), Some(place));
                }
            }
            assert_eq!(self.places.len(), pairs, "nothing is remembered beside the queues");
        }
    }

    #[test]
    fn its_queues_are_sound_at_every_step() {
        for seed in 0..100 {
            check_history(|| Box::new(Watched::default()), seed);
        }
    }
}
