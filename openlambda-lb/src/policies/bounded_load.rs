//! The function's own worker, unless it has more than its share of the load: [`BoundedLoad`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, Ring, WorkerRing};

/// Consistent hashing with bounded loads.
///
/// A function belongs to a place on a [`Ring`]; a request goes to the first ready worker clockwise
/// that has room under the cap. So requests of one function go to the workers where its instances are
/// warm, and no worker gets more than (1 + ε) times its fair share.
///
/// Formula: with m requests in flight at the n ready workers, the cap is c = ⌈(1 + ε)(m + 1) / n⌉ and
/// the choice is the first worker clockwise of h(f) with q + 1 ≤ c. With weights wᵢ, worker i has
/// points in proportion to wᵢ and the cap ⌈(1 + ε)(m + 1) wᵢ / Σw⌉. The caps add up to more than m, so
/// there always is one. For a retry, the workers that failed are left out of m, n and Σw: the bound
/// holds among the others.
///
/// Cost: one look-up on the ring and O(1/ε²) steps on average; no allocation. A frequently called function
/// passes all the workers that it has filled, about its share of the calls times n of them, so a step
/// reads only the next point and the worker's number in one array. When a worker joins or leaves,
/// O(points) at the next decision.
///
/// Source: V. Mirrokni, M. Thorup, M. Zadimoghaddam, Consistent Hashing with Bounded Loads, SODA
/// 2018. Their version also moves requests when the cap sinks; requests that run cannot be moved, so
/// here the bound holds at the moment of each choice.
#[derive(Clone, Debug)]
pub struct BoundedLoad {
    epsilon: f64,
    vnodes: u32,
    ring: Ring,
    /// By slot: requests in flight at a ready worker, else [`NOT_READY`].
    loads: Vec<u32>,
    /// Their sum.
    in_flight: u64,
    /// Over the ready workers; `None` when some came or went since.
    weights: Option<Weights>,
}

/// More than any worker may have.
const NOT_READY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Weights {
    sum: f64,
    most: f64,
}

impl BoundedLoad {
    /// The largest number of points for a worker of weight 1.
    pub const MOST_VNODES: u32 = 10_000;

    /// Allows each worker `1 + epsilon` times its share, with `vnodes` points on the ring for a
    /// worker of weight 1.
    ///
    /// # Panics
    ///
    /// When `epsilon` is not a number above 0, or `vnodes` not in 1 ..= [`Self::MOST_VNODES`].
    pub fn new(epsilon: f64, vnodes: u32) -> Self {
        assert!(epsilon > 0.0 && epsilon.is_finite(), "epsilon must be a number above 0");
        assert!((1..=Self::MOST_VNODES).contains(&vnodes), "vnodes must be 1 to 10000");
        let (ring, loads) = (Ring::new(), Vec::new());
        BoundedLoad { epsilon, vnodes, ring, loads, in_flight: 0, weights: None }
    }

    /// The most requests that a worker may have, given those in flight at the workers that count,
    /// with the one to come, and its part of their weight.
    fn cap(&self, in_flight: u64, part: f64) -> f64 {
        // A hair less, so that a product which rounding put just above a whole number does not add a
        // request to the cap. The caps still add up to more than the requests in flight.
        const A_HAIR_LESS: f64 = 1.0 - 1e-12;
        ((1.0 + self.epsilon) * (in_flight + 1) as f64 * part * A_HAIR_LESS).ceil()
    }

    fn set_load(&mut self, worker: WorkerId, load: u32) {
        if worker.index() >= self.loads.len() {
            self.loads.resize(worker.index() + 1, NOT_READY);
        }
        let before = std::mem::replace(&mut self.loads[worker.index()], load);
        let counted = |load| if load == NOT_READY { 0 } else { u64::from(load) };
        self.in_flight = self.in_flight - counted(before) + counted(load);
    }

    fn weights(&mut self, view: &ClusterView<'_>) -> Weights {
        *self.weights.get_or_insert_with(|| {
            let ready = view.ready().iter().filter_map(|worker| view.worker(*worker));
            ready.fold(Weights { sum: 0.0, most: 0.0 }, |weights, worker| Weights {
                sum: weights.sum + worker.weight(),
                most: weights.most.max(worker.weight()),
            })
        })
    }
}

impl Default for BoundedLoad {
    /// ε = 0.25 and 100 points.
    fn default() -> Self {
        BoundedLoad::new(0.25, 100)
    }
}

impl BalancingPolicy for BoundedLoad {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        if candidates.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        self.ring.settle();
        let Weights { sum: mut weight, most: heaviest } = self.weights(view);
        let mut in_flight = self.in_flight;
        for worker in candidates.left_out().filter_map(|worker| view.worker(worker)) {
            in_flight -= u64::from(worker.in_flight());
            weight -= worker.weight();
        }
        // Of all workers the heaviest have the highest cap: who has so many is full in any case.
        let full = self.cap(in_flight, heaviest / weight) as u32;
        let has_room = |id: WorkerId| {
            let load = self.loads[id.index()];
            load < full
                && view.worker(id).is_some_and(|worker| {
                    f64::from(load + 1) <= self.cap(in_flight, worker.weight() / weight)
                })
        };
        let mut walk = self.ring.walk(WorkerRing::place_of(request.key));
        let ready = |id: &WorkerId| self.loads[id.index()] != NOT_READY && candidates.allows(*id);
        let (mut next, mut why) = (walk.find(ready), Why("home"));
        while let Some(id) = next {
            if candidates.allows(id) && has_room(id) {
                return Decision::To(id, why);
            }
            why = Why("spill");
            next = walk.find(|id| self.loads[id.index()] < full);
        }
        // Reached only if rounding made the caps add up to too little.
        match candidates.iter().min_by_key(|worker| view.in_flight(*worker)) {
            Some(worker) => Decision::To(worker, Why("least loaded")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        match *event {
            PolicyEvent::Joined { worker } => {
                if let Some(known) = view.worker(worker) {
                    let points = (f64::from(self.vnodes) * known.weight()).round();
                    // At least one, or it would never be found; a mad weight must not eat the memory.
                    let points = points.clamp(1.0, f64::from(Self::MOST_VNODES)) as u32;
                    self.ring.insert(worker, known.name_hash(), points);
                    self.set_load(worker, known.in_flight());
                }
                self.weights = None;
            }
            PolicyEvent::Left { worker, .. } => {
                self.ring.remove(worker);
                self.set_load(worker, NOT_READY);
                self.weights = None;
            }
            PolicyEvent::ReadyChanged { worker, ready } => {
                self.set_load(worker, if ready { view.in_flight(worker) } else { NOT_READY });
                self.weights = None;
            }
            PolicyEvent::Dispatched { worker, .. } | PolicyEvent::Completed { worker, .. }
                if view.is_ready(worker) =>
            {
                self.set_load(worker, view.in_flight(worker));
            }
            _ => {}
        }
    }
}

/// What the policy remembers, for the test of its bound.
#[cfg(test)]
impl BoundedLoad {
    fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// The choice, with everything counted anew and each worker asked.
    fn by_the_book(&self, request: &RequestInfo<'_>, view: &ClusterView<'_>) -> Decision {
        let candidates = Candidates::of(request, view);
        let sums = |ids: &mut dyn Iterator<Item = WorkerId>| {
            let known = ids.filter_map(|id| view.worker(id));
            known.fold((0, 0.0), |(m, w), worker| (m + worker.in_flight(), w + worker.weight()))
        };
        let (ready, out) =
            (sums(&mut view.ready().iter().copied()), sums(&mut candidates.left_out()));
        let (in_flight, weight) = (u64::from(ready.0 - out.0), ready.1 - out.1);
        let mut why = Why("home");
        for id in self.ring.walk(WorkerRing::place_of(request.key)) {
            let Some(worker) = view.worker(id).filter(|_| view.is_ready(id)) else { continue };
            if candidates.allows(id) {
                let cap = self.cap(in_flight, worker.weight() / weight);
                if f64::from(worker.in_flight() + 1) <= cap {
                    return Decision::To(id, why);
                }
                why = Why("spill");
            }
        }
        panic!("the caps add up to too little")
    }
}

/// Its line in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "bounded-load".to_owned(),
        about: "the function's own worker on a hash ring, unless it is over its share".to_owned(),
        source: "Mirrokni, Thorup, Zadimoghaddam, Consistent Hashing with Bounded Loads, SODA 2018"
            .to_owned(),
        parameters: vec![
            ParameterInfo::new("epsilon", 0.25, "how far over its fair share a worker may go"),
            ParameterInfo::new("vnodes", 100, "points on the ring for a worker of weight 1")
                .within(1..=BoundedLoad::MOST_VNODES),
        ],
        build: Box::new(|given| {
            let wanted = "a number above 0, at most 1000";
            let epsilon = given.number_where("epsilon", wanted, |e| e > 0.0 && e <= 1000.0)?;
            Ok(Box::new(BoundedLoad::new(epsilon, given.whole("vnodes")?)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::balancing::{Cluster, FunctionId, Output, Ticket, WorkerId, WorkerInfo};
    use openlambda_core::hash::mix;
    use openlambda_core::random::Rng;
    use openlambda_core::time::Time;
    use proptest::prelude::*;

    use super::*;

    /// Drives the policy and the reducer by hand, to look inside between the steps.
    struct Bench {
        cluster: Cluster,
        policy: BoundedLoad,
        rng: Rng,
        outputs: Vec<Output>,
        running: Vec<WorkerId>,
        workers: Vec<WorkerId>,
    }

    impl Bench {
        fn observe(&mut self, event: PolicyEvent<'_>) {
            let mut cx = PolicyContext::new(Time(0), &mut self.rng, &mut self.outputs);
            self.policy.observe(&event, &self.cluster.view(), &mut cx);
        }
    }

    const TICKET: Ticket = Ticket(0);
    const F: FunctionId = FunctionId(0);

    proptest! {
        /// The sums are right and the bound holds at every step, with weights, retries, and workers
        /// that come, go, fail and drain.
        #[test]
        fn the_bound_holds_at_every_step(
            epsilon in prop_oneof![Just(0.01), Just(0.25), Just(2.0)],
            steps in proptest::collection::vec((0..12u8, any::<u64>()), 1..300),
        ) {
            let mut bench = Bench {
                cluster: Cluster::new(),
                policy: BoundedLoad::new(epsilon, 20),
                rng: Rng::from_seed(1),
                outputs: Vec::new(),
                running: Vec::new(),
                workers: Vec::new(),
            };
            let mut names = 0;
            for (what, draw) in steps {
                let pick = |len: usize| draw as usize % len;
                match what {
                    0 => {
                        names += 1;
                        let mut info = WorkerInfo::new(format!("w{names}"), 1);
                        info.weight = [1.0, 1.0, 2.0, 0.3][pick(4)];
                        let worker = bench.cluster.join(info);
                        bench.workers.push(worker);
                        bench.observe(PolicyEvent::Joined { worker });
                    }
                    1 if !bench.workers.is_empty() && draw % 3 == 0 => {
                        let worker = bench.workers.swap_remove(pick(bench.workers.len()));
                        let (name, name_hash) = bench.cluster.leave(worker).unwrap();
                        bench.observe(PolicyEvent::Left { worker, name: &name, name_hash });
                    }
                    2 if !bench.workers.is_empty() => {
                        let worker = bench.workers[pick(bench.workers.len())];
                        if let Some(ready) = bench.cluster.set_healthy(worker, draw % 7 < 4) {
                            bench.observe(PolicyEvent::ReadyChanged { worker, ready });
                        }
                    }
                    3..=5 if !bench.running.is_empty() => {
                        let worker = bench.running.swap_remove(pick(bench.running.len()));
                        bench.cluster.completed(worker);
                        let completed = PolicyEvent::Completed {
                            ticket: TICKET,
                            function: F,
                            worker,
                            latency: std::time::Duration::ZERO,
                            start: None,
                            ok: true,
                        };
                        bench.observe(completed);
                    }
                    _ => {
                        let excluded: Vec<_> = bench
                            .workers
                            .iter()
                            .copied()
                            .enumerate()
                            .filter(|(i, _)| what == 6 && draw >> (i % 32) & 1 == 1)
                            .map(|(_, worker)| worker)
                            .collect();
                        let mut request = RequestInfo::new(TICKET, F, mix(draw % 5, 1));
                        request.excluded = &excluded;
                        let mut cx =
                            PolicyContext::new(Time(0), &mut bench.rng, &mut bench.outputs);
                        let view = bench.cluster.view();
                        let decision = bench.policy.select(&request, &view, &mut cx);
                        let Decision::To(chosen, _) = decision else {
                            prop_assert!(view.ready().is_empty());
                            continue;
                        };
                        prop_assert_eq!(decision, bench.policy.by_the_book(&request, &view));
                        let counted: Vec<_> = view
                            .ready()
                            .iter()
                            .filter(|worker| !excluded.contains(worker))
                            .collect();
                        let counted: Vec<_> =
                            if counted.is_empty() { view.ready().iter().collect() } else { counted };
                        prop_assert!(counted.contains(&&chosen));
                        let m: u32 = counted.iter().map(|worker| view.in_flight(**worker)).sum();
                        let weight =
                            |worker| view.worker(worker).map_or(0.0, |worker| worker.weight());
                        let total: f64 = counted.iter().map(|worker| weight(**worker)).sum();
                        let share = f64::from(m + 1) * weight(chosen) / total;
                        let load = f64::from(view.in_flight(chosen) + 1);
                        prop_assert!(
                            load <= ((1.0 + epsilon) * share - 1e-9).ceil(),
                            "{load} requests with a share of {share}"
                        );
                        bench.cluster.dispatched(chosen);
                        bench.running.push(chosen);
                        bench.observe(PolicyEvent::Dispatched {
                            ticket: TICKET,
                            function: F,
                            worker: chosen,
                        });
                    }
                }
                let view = bench.cluster.view();
                let in_flight: u32 = view.ready().iter().map(|worker| view.in_flight(*worker)).sum();
                prop_assert_eq!(bench.policy.in_flight(), u64::from(in_flight));
            }
        }
    }
}
