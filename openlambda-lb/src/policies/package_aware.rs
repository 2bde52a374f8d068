//! A worker that has the function's packages cached: [`PackageAware`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};
use openlambda_core::hash::mix;

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, LoadOrder, WorkerRing};

/// Turns a package's key into that of its second place on the ring.
const SECOND_SALT: u64 = 0x7365_636f_6e64;

/// Package-aware scheduling (PASch): functions with the same package go to the same two workers, which
/// have it cached, unless both are overloaded.
///
/// Formula: with p the function's largest package, c₁ is the first ready worker clockwise of h(p) on
/// a ring and c₂ the first other one clockwise of h(p, salt). The choice is the less loaded of both by
/// (q + 1) / w, c₁ among equals. When that has q ≥ threshold × capacity, the choice is the ready
/// worker with the fewest requests in flight, any of equals.
///
/// Sizes of packages are not known here: the manifest's first package stands for the largest, so
/// list that first. A function without packages is taken for a package of its own.
///
/// Cost: two look-ups, O(1) on average, and a step for each point of a worker that is not ready; O(1)
/// per event. No allocation. The least loaded worker costs O(1), O(n) for a retry.
///
/// Sources: C. Abad, E. Boza, E. van Eyk, Package-Aware Scheduling of FaaS Functions, HotCloudPerf
/// 2018; G. Aumala, E. Boza, L. Ortiz-Avilés, G. Totoy, C. Abad, Beyond Load Balancing: Package-Aware
/// Scheduling for Serverless Platforms, CCGrid 2019.
#[derive(Clone, Debug)]
pub struct PackageAware {
    threshold: f64,
    ring: WorkerRing,
    order: LoadOrder,
}

impl PackageAware {
    /// The largest number of points for a worker of weight 1.
    pub const MOST_VNODES: u32 = WorkerRing::MOST_VNODES;

    /// A worker is overloaded from `threshold` times its capacity on; `vnodes` points on the ring for
    /// a worker of weight 1.
    ///
    /// # Panics
    ///
    /// When `threshold` is not a number above 0, or `vnodes` not in 1 ..= [`Self::MOST_VNODES`].
    pub fn new(threshold: f64, vnodes: u32) -> Self {
        assert!(threshold > 0.0 && threshold.is_finite(), "threshold must be a number above 0");
        PackageAware { threshold, ring: WorkerRing::new(vnodes), order: LoadOrder::new() }
    }
}

impl Default for PackageAware {
    /// Overloaded when all is in use; 100 points.
    fn default() -> Self {
        PackageAware::new(1.0, 100)
    }
}

impl BalancingPolicy for PackageAware {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        let package = request.packages.first().map_or(request.key, |p| view.package_key(*p));
        let Some(first) = self.ring.home(package, &candidates, view) else {
            return Decision::Refuse(Refusal::NoWorker);
        };
        let second = match candidates.len() {
            1 => None,
            _ => {
                let mut walk = self.ring.candidates(mix(package, SECOND_SALT), &candidates, view);
                walk.find(|worker| *worker != first)
            }
        };
        let (worker, why) = match second {
            Some(second) if cost(second, view) < cost(first, view) => (second, "second home"),
            _ => (first, "home"),
        };
        if !self.overloaded(worker, view) {
            return Decision::To(worker, Why(why));
        }
        let least = self.order.draw_lowest(&candidates, cx.rng);
        Decision::To(least.unwrap_or(worker), Why("least loaded"))
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        self.ring.observe(event, view);
        self.order.observe(event, view);
    }
}

impl PackageAware {
    fn overloaded(&self, worker: WorkerId, view: &ClusterView<'_>) -> bool {
        view.worker(worker).is_none_or(|known| {
            f64::from(known.in_flight()) >= self.threshold * f64::from(known.capacity())
        })
    }
}

fn cost(worker: WorkerId, view: &ClusterView<'_>) -> f64 {
    view.worker(worker)
        .map_or(f64::INFINITY, |known| f64::from(known.in_flight() + 1) / known.weight())
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "package-aware".to_owned(),
        about: "the less loaded of two workers that have the function's package, unless overloaded"
            .to_owned(),
        source: "Aumala et al., Beyond Load Balancing: Package-Aware Scheduling for Serverless \
                 Platforms, CCGrid 2019"
            .to_owned(),
        parameters: vec![
            ParameterInfo::new(
                "threshold",
                1,
                "the part of its capacity from which a worker is overloaded, above 0, at most 1000",
            ),
            ParameterInfo::new(
                "vnodes",
                100,
                "points on the ring for a worker of weight 1, 1 to 10000",
            )
            .within(1..=WorkerRing::MOST_VNODES),
        ],
        build: Box::new(|given| {
            let range = "a number above 0, at most 1000";
            let threshold = given.number_where("threshold", range, |t| t > 0.0 && t <= 1000.0)?;
            Ok(Box::new(PackageAware::new(threshold, given.whole("vnodes")?)))
        }),
    }
}
