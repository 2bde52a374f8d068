//! The smallest set of workers that covers the function's demand: [`MinWorkerSet`].

use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, Refusal,
    RequestInfo, Why, WorkerId,
};
use openlambda_core::time::Time;

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, Room, WorkerRing};

/// How much the latest duration counts in the mean.
const NEWEST: f64 = 0.2;

/// Minimum worker set: a function has the fewest workers, from its home clockwise, whose capacity
/// covers its demand; a request goes to the least loaded of them.
///
/// So a function is on few workers, where its instances stay warm, and on more as its demand grows;
/// when the demand shrinks, the last workers get no more requests, and their instances expire.
///
/// Formula: demand = λ · d, the invocations that run at once by Little's law: λ is the rate of
/// arrivals, counted with weights e^(−age / window), d the mean duration of invocations that were
/// answered, weighted exponentially, with their wait at the worker. The demand is never less than
/// what is in flight of the function with the one to come: that counts in a burst, and before
/// durations are known. The set is the shortest run of distinct ready workers clockwise of h(f)
/// with Σ capacity × utilisation ≥ demand and at least one free slot, where there is any; the choice
/// in it is the least (q + 1) / w among those with a free slot, the first among equals.
///
/// Cost: O(size of the set), which the algorithm demands, plus a step for each worker on the way that
/// is not ready; no allocation while the workers and the sizes of the sets stay the same. After a
/// worker came or went, each function's workers are looked up again on the ring at its next request.
///
/// Source: Y. Zhang, Í. Goiri, G. Chaudhry, R. Fonseca, S. Elnikety, C. Delimitrou, R. Bianchini,
/// Faster and Cheaper Serverless Computing on Harvested Resources, SOSP 2021. They count cores and
/// memory; here an invocation takes one of the worker's capacity.
#[derive(Clone, Debug)]
pub struct MinWorkerSet {
    window: f64,
    utilisation: f64,
    ring: WorkerRing,
    room: Room,
    /// Counts the changes of the ring.
    epoch: u64,
    functions: Vec<Function>,
    /// By slot: the last look at the ring that met the worker; see [`extend`].
    met: Vec<u64>,
    looks: u64,
}

#[derive(Clone, Debug, Default)]
struct Function {
    key: u64,
    /// Workers clockwise of its place, each once, ready or not: as many as were needed so far.
    chain: Vec<WorkerId>,
    epoch: u64,
    /// Arrivals, weighted by age at `at`.
    arrivals: f64,
    at: Time,
    /// Mean, in seconds; 0 before the first answer.
    duration: f64,
    in_flight: u32,
}

impl MinWorkerSet {
    /// The largest number of points for a worker of weight 1.
    pub const MOST_VNODES: u32 = WorkerRing::MOST_VNODES;

    /// Arrivals count for about `window`; workers are filled up to `utilisation` of their capacity;
    /// `vnodes` points on the ring for a worker of weight 1.
    ///
    /// # Panics
    ///
    /// When `window` is zero, `utilisation` not above 0 and at most 1, or `vnodes` not in
    /// 1 ..= [`Self::MOST_VNODES`].
    pub fn new(window: Duration, utilisation: f64, vnodes: u32) -> Self {
        assert!(!window.is_zero(), "the window must not be zero");
        assert!(utilisation > 0.0 && utilisation <= 1.0, "utilisation must be above 0, at most 1");
        MinWorkerSet {
            window: window.as_secs_f64(),
            utilisation,
            ring: WorkerRing::new(vnodes),
            room: Room::default(),
            epoch: 1,
            functions: Vec::new(),
            met: Vec::new(),
            looks: 0,
        }
    }

    fn function(&mut self, id: FunctionId) -> &mut Function {
        let at = id.0 as usize;
        if at >= self.functions.len() {
            self.functions.resize(at + 1, Function::default());
        }
        &mut self.functions[at]
    }

    /// Takes note of an arrival; returns how many invocations of the function run at once.
    fn demand(&mut self, request: &RequestInfo<'_>, now: Time) -> f64 {
        let window = self.window;
        let function = self.function(request.function);
        // A retry is no further arrival.
        if request.attempt == 0 {
            let age = now.since(function.at).as_secs_f64();
            function.arrivals = function.arrivals * libm::exp(-age / window) + 1.0;
            function.at = now;
        }
        let estimate = function.arrivals / window * function.duration;
        estimate.max(f64::from(function.in_flight + 1))
    }
}

impl Default for MinWorkerSet {
    /// 30 seconds, 80 % and 100 points.
    fn default() -> Self {
        MinWorkerSet::new(Duration::from_secs(30), 0.8, 100)
    }
}

impl BalancingPolicy for MinWorkerSet {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        let demand = self.demand(request, cx.now);
        if candidates.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        let MinWorkerSet { ring, room, functions, met, looks, epoch, utilisation, .. } = self;
        let function = &mut functions[request.function.0 as usize];
        if function.epoch != *epoch || function.key != request.key {
            function.chain.clear();
            // At once, so that a set that grows later allocates nothing.
            function.chain.reserve(view.ready().len().min(128));
            function.epoch = *epoch;
            function.key = request.key;
        }
        let mut best: Option<(WorkerId, bool, f64)> = None;
        // When all are full, a longer look does not help.
        let mut free = !room.anywhere();
        let (mut covered, mut at) = (0.0, 0);
        while covered < demand || !free {
            if at == function.chain.len() && !extend(function, ring, met, looks, view) {
                // All workers are in the set.
                break;
            }
            let worker = function.chain[at];
            at += 1;
            let Some(known) = view.worker(worker) else { continue };
            if !known.healthy() || known.draining() || !candidates.allows(worker) {
                continue;
            }
            covered += f64::from(known.capacity()) * *utilisation;
            let full = !room.at(worker);
            free |= !full;
            let cost = f64::from(known.in_flight() + 1) / known.weight();
            if best.is_none_or(|(_, others_full, least)| (full, cost) < (others_full, least)) {
                best = Some((worker, full, cost));
            }
        }
        match best {
            Some((worker, ..)) if worker == function.chain[0] => Decision::To(worker, Why("home")),
            Some((worker, ..)) => Decision::To(worker, Why("set")),
            None => Decision::To(candidates.nth(0), Why("any")),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        if self.ring.observe(event, view) {
            self.epoch += 1;
        }
        self.room.observe(event, view);
        match *event {
            PolicyEvent::Dispatched { function, .. } => self.function(function).in_flight += 1,
            PolicyEvent::Completed { function, latency, ok, .. } => {
                let function = self.function(function);
                function.in_flight = function.in_flight.saturating_sub(1);
                let latency = latency.as_secs_f64();
                if ok && function.duration == 0.0 {
                    function.duration = latency;
                } else if ok {
                    function.duration += NEWEST * (latency - function.duration);
                }
            }
            _ => {}
        }
    }
}

/// Makes a function's chain about twice as long; `false` when it has all workers already.
#[cold]
fn extend(
    function: &mut Function,
    ring: &mut WorkerRing,
    met: &mut Vec<u64>,
    looks: &mut u64,
    view: &ClusterView<'_>,
) -> bool {
    let before = function.chain.len();
    let wanted = before * 2 + 4;
    if met.len() < view.slots() {
        met.resize(view.slots(), 0);
    }
    *looks += 1;
    function.chain.clear();
    for worker in ring.walk(function.key) {
        if std::mem::replace(&mut met[worker.index()], *looks) != *looks {
            function.chain.push(worker);
            if function.chain.len() == wanted {
                break;
            }
        }
    }
    function.chain.len() > before
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "min-worker-set".to_owned(),
        about: "the least loaded of the fewest workers that cover the function's demand".to_owned(),
        source: "Zhang et al., Faster and Cheaper Serverless Computing on Harvested Resources, \
                 SOSP 2021"
            .to_owned(),
        parameters: vec![
            ParameterInfo::new(
                "utilisation",
                0.8,
                "the part of a worker's capacity that is to be used, above 0, at most 1",
            ),
            ParameterInfo::new(
                "vnodes",
                100,
                "points on the ring for a worker of weight 1, 1 to 10000",
            )
            .within(1..=WorkerRing::MOST_VNODES),
            ParameterInfo::new(
                "window",
                30,
                "seconds for which arrivals count, above 0, at most 86400",
            )
            // Below a nanosecond there is no window.
            .within(0.001..=86_400.0),
        ],
        build: Box::new(|given| {
            let part = "a number above 0, at most 1";
            let utilisation = given.number_where("utilisation", part, |u| u > 0.0 && u <= 1.0)?;
            let (window, vnodes) = (given.seconds("window")?, given.whole("vnodes")?);
            Ok(Box::new(MinWorkerSet::new(window, utilisation, vnodes)))
        }),
    }
}
