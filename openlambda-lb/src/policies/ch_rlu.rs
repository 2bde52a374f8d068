//! Each function at its own worker; popular functions spread to the next ones: [`ChRlu`].

use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, Refusal,
    RequestInfo, Why, WorkerId,
};
use openlambda_core::time::Time;

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, WorkerRing};

/// How often popular functions are determined again.
const POPULARITY_EVERY: Duration = Duration::from_secs(1);

/// A report that is older than this is ignored.
const STALE_AFTER: Duration = Duration::from_secs(10);

/// How much the latest interval counts in a function's mean.
const NEWEST: f64 = 0.1;

/// The standard deviation of the noise.
const DEVIATION: f64 = 0.1;

/// Consistent hashing with random load updates (CH-RLU).
///
/// Unpopular functions go to their home, whatever its load: a cold start costs them more than a wait.
/// Popular functions go along a chain of workers and skip those that are loaded, or are about to be. The
/// noise represents requests that were sent since the worker's last report, and keeps the requests of a
/// burst from herding to the same next worker.
///
/// Formula: popular are the given share of the functions with the shortest mean inter-arrival times.
/// A popular function's request goes through the distinct ready workers clockwise of h(f), at most
/// `chain` of them. For each a noise is drawn from N(λ̄ / capacity, 0.1), λ̄ being 1 / the mean
/// inter-arrival time over all functions, in 1/s; the first with load + noise ≤ bound is chosen, and
/// the noise is added to its cached load. When there is none, the request goes home, to the first: all
/// are loaded, and at least its instances are there. (Where the least loaded of the chain is taken
/// instead, popular functions start cold all over the cluster just when it is busiest. With calls of
/// 200 ms, cold starts of 2 s and load 0.5 that takes two thirds as long again. With calls of seconds and
/// cold starts of one, which are cheap beside them, a burst waits longer at home than elsewhere.) An
/// unpopular function goes home.
///
/// λ̄ is used as a load without conversion, as in the authors' code: that fits calls that run for about a
/// second. Where functions are called more often than `bound` · capacity times a second on average, the
/// noise alone is over the bound, and popular functions stay at home too.
///
/// A worker's load is divided by its capacity. It is the cached load, which is that of its last report
/// (running + queued, over all balancers) with the noise added since; or this balancer's own requests in
/// flight, when those are more or when there was no report for 10 s.
///
/// Cost: a look-up on the ring, and for popular functions up to `chain` draws, more when points of the
/// same worker or of those that are not ready are between; no allocation. Once a second O(functions)
/// to tell the popular ones. Weights set the points on the ring; loads count by capacity.
///
/// Source: A. Fuerst, P. Sharma, Locality-aware Load-Balancing For Serverless Clusters, HPDC 2022. That
/// requests go home when no worker fits is from the authors' own code, `ch_rlu.rs` of Ilúvatar; their
/// older one for OpenWhisk draws any worker then.
#[derive(Clone, Debug)]
pub struct ChRlu {
    popular: f64,
    bound: f64,
    chain: usize,
    ring: WorkerRing,
    functions: Vec<Function>,
    /// By slot.
    reports: Vec<Option<Report>>,
    /// A function with a mean interval up to this, in seconds, is popular.
    popular_up_to: f64,
    /// λ̄.
    rate: f64,
    update_at: Time,
    /// For finding `popular_up_to`.
    intervals: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Function {
    last: Option<Time>,
    /// The mean time between its requests, in seconds; none before the second.
    interval: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
struct Report {
    worker: WorkerId,
    at: Time,
    load: f64,
}

impl ChRlu {
    /// The largest number of points for a worker of weight 1.
    pub const MOST_VNODES: u32 = WorkerRing::MOST_VNODES;
    /// The longest chain.
    pub const MOST_CHAIN: u32 = 64;

    /// The share `popular` of the functions is so; they leave a worker whose load for each of its
    /// capacity is above `bound`, over at most `chain` workers; `vnodes` points on the ring for a
    /// worker of weight 1.
    ///
    /// # Panics
    ///
    /// When `popular` is not in 0 ..= 1, `bound` not a number above 0, `chain` not in
    /// 1 ..= [`Self::MOST_CHAIN`], or `vnodes` not in 1 ..= [`Self::MOST_VNODES`].
    pub fn new(popular: f64, bound: f64, chain: u32, vnodes: u32) -> Self {
        assert!((0.0..=1.0).contains(&popular), "popular must be a share");
        assert!(bound > 0.0 && bound.is_finite(), "bound must be a number above 0");
        assert!((1..=Self::MOST_CHAIN).contains(&chain), "chain must be 1 to 64");
        ChRlu {
            popular,
            bound,
            chain: chain as usize,
            ring: WorkerRing::new(vnodes),
            functions: Vec::new(),
            reports: Vec::new(),
            popular_up_to: 0.0,
            rate: 0.0,
            update_at: Time::ZERO,
            intervals: Vec::new(),
        }
    }

    /// Takes note of an arrival.
    fn arrived(&mut self, function: FunctionId, now: Time) {
        let at = function.0 as usize;
        if at >= self.functions.len() {
            self.functions.resize(at + 1, Function::default());
        }
        let function = &mut self.functions[at];
        if let Some(last) = function.last {
            let interval = now.since(last).as_secs_f64();
            function.interval =
                Some(function.interval.map_or(interval, |mean| mean + NEWEST * (interval - mean)));
        }
        function.last = Some(now);
    }

    fn is_popular(&self, function: FunctionId) -> bool {
        let function = self.functions.get(function.0 as usize);
        function.and_then(|f| f.interval).is_some_and(|interval| interval <= self.popular_up_to)
    }

    /// Decides which functions are popular.
    fn update_popularity(&mut self, now: Time) {
        if now < self.update_at {
            return;
        }
        self.update_at = now + POPULARITY_EVERY;
        self.intervals.clear();
        let mut seen = 0;
        for function in &self.functions {
            let Some(last) = function.last else { continue };
            seen += 1;
            if let Some(interval) = function.interval {
                // One that stopped coming becomes unpopular.
                self.intervals.push(interval.max(now.since(last).as_secs_f64()));
            }
        }
        let wanted = (self.popular * f64::from(seen)).round() as usize;
        let wanted = wanted.min(self.intervals.len());
        let sum: f64 = self.intervals.iter().sum();
        self.rate = if sum > 0.0 { self.intervals.len() as f64 / sum } else { 0.0 };
        self.popular_up_to = match wanted {
            // Not even one whose requests come at the same moment.
            0 => -1.0,
            _ => *self.intervals.select_nth_unstable_by(wanted - 1, f64::total_cmp).1,
        };
    }

    fn load(&self, worker: WorkerId, now: Time, view: &ClusterView<'_>) -> f64 {
        let own = view
            .worker(worker)
            .map_or(0.0, |known| f64::from(known.in_flight()) / f64::from(known.capacity().max(1)));
        let report = self.reports.get(worker.index()).copied().flatten();
        let report =
            report.filter(|report| report.worker == worker && now.since(report.at) <= STALE_AFTER);
        report.map_or(own, |report| report.load.max(own))
    }

    fn add_noise(&mut self, worker: WorkerId, noise: f64) {
        if let Some(Some(report)) = self.reports.get_mut(worker.index())
            && report.worker == worker
        {
            report.load = (report.load + noise).max(0.0);
        }
    }

    /// The way of a popular function.
    fn along_the_chain(
        &mut self,
        request: &RequestInfo<'_>,
        candidates: &Candidates<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Option<(WorkerId, Why)> {
        let longest = self.chain.min(candidates.len());
        let mut met = [candidates.nth(0); Self::MOST_CHAIN as usize];
        let mut length = 0;
        for worker in self.ring.candidates(request.key, candidates, view) {
            if met[..length].contains(&worker) {
                continue;
            }
            met[length] = worker;
            length += 1;
            if length == longest {
                break;
            }
        }
        for (place, worker) in met[..length].iter().copied().enumerate() {
            let capacity = view.worker(worker).map_or(1, |known| known.capacity().max(1));
            let noise = self.rate / f64::from(capacity) + DEVIATION * cx.rng.normal();
            if self.load(worker, cx.now, view) + noise <= self.bound {
                self.add_noise(worker, noise);
                return Some((worker, Why(if place == 0 { "home" } else { "chain" })));
            }
        }
        Some((*met[..length].first()?, Why("all are loaded")))
    }
}

impl Default for ChRlu {
    /// A fifth of the functions, a bound of 1.2, chains of 16, and 100 points.
    fn default() -> Self {
        ChRlu::new(0.2, 1.2, 16, 100)
    }
}

impl BalancingPolicy for ChRlu {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        // A retry is no further arrival.
        if request.attempt == 0 {
            self.arrived(request.function, cx.now);
        }
        self.update_popularity(cx.now);
        let candidates = Candidates::of(request, view);
        if candidates.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        let found = if self.is_popular(request.function) {
            self.along_the_chain(request, &candidates, view, cx)
        } else {
            self.ring.home(request.key, &candidates, view).map(|worker| (worker, Why("unpopular")))
        };
        match found {
            Some((worker, why)) => Decision::To(worker, why),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        self.ring.observe(event, view);
        if let PolicyEvent::Load { worker, load } | PolicyEvent::Probed { worker, load } = *event
            && let Some(known) = view.worker(worker)
        {
            if worker.index() >= self.reports.len() {
                self.reports.resize(worker.index() + 1, None);
            }
            let load = f64::from(load.running) + f64::from(load.queued);
            let load = load / f64::from(known.capacity().max(1));
            self.reports[worker.index()] = Some(Report { worker, at: cx.now, load });
        }
    }
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "ch-rlu".to_owned(),
        about: "popular functions leave a loaded home along the ring, others stay".to_owned(),
        source: "Fuerst, Sharma, Locality-aware Load-Balancing For Serverless Clusters, HPDC 2022"
            .to_owned(),
        parameters: vec![
            ParameterInfo::new(
                "bound",
                1.2,
                "the most load per unit of a worker's capacity, above 0, at most 1000",
            ),
            ParameterInfo::new(
                "chain",
                16,
                "how many overloaded workers a request passes, 1 to 64",
            )
            .within(1..=ChRlu::MOST_CHAIN),
            ParameterInfo::new(
                "popular",
                0.2,
                "the share of functions that count as popular, 0 to 1",
            )
            .within(0..=1),
            ParameterInfo::new(
                "vnodes",
                100,
                "points on the ring for a worker of weight 1, 1 to 10000",
            )
            .within(1..=WorkerRing::MOST_VNODES),
        ],
        build: Box::new(|given| {
            let range = "a number above 0, at most 1000";
            let bound = given.number_where("bound", range, |b| b > 0.0 && b <= 1000.0)?;
            let (popular, chain) = (given.number("popular")?, given.whole("chain")?);
            Ok(Box::new(ChRlu::new(popular, bound, chain, given.whole("vnodes")?)))
        }),
    }
}
