//! The less loaded of two workers, by cached loads that are updated in batches: [`Dodoor`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{BySlot, Candidates};

/// Power of two choices on a cached load vector, which is refreshed every `b` decisions.
///
/// Formula: of two random distinct workers the one with the lower (Lᵢ + 1) / wᵢ, where Lᵢ is the
/// worker's load at the last refresh: its requests in flight from this balancer, and from others as
/// many as its last report had beyond those from here. (The whole report would be too old: a worker that
/// was busy at that moment would look busy until the next one.) At a refresh, before the first decision
/// and `b` decisions after the last refresh, the loads of all workers are copied. In between the vector
/// does not change, not even by this balancer's own requests, so a decision sees loads that are up to
/// b − 1 decisions old. With b = 1 it is the power of two choices. A worker that joined since the last
/// refresh has load 0.
///
/// By default b is half of the workers that are ready at the refresh, ⌊n / 2⌋ and at least 1. It has to
/// grow with n: while one batch is placed, the worker that looks the least loaded is taken each time that
/// it is drawn, 2 · b / n times on average. With b = n / 2 that is once; with b ≫ n the whole batch goes to
/// the workers that *were* idle, and the policy is no better than random, or worse.
///
/// Cost: O(1) and two samples per decision, and O(n) at a refresh, which is O(1) per decision when b is
/// a share of n; no allocation.
///
/// Source: Dodoor: Efficient Randomized Decentralized Scheduling with Load Caching for Heterogeneous
/// Tasks and Clusters, arXiv 2510.12889, 2025, whose experiments have batches of 50 for 100 servers;
/// the analysis is that of the b-batched setting (Los & Sauerwald, Balanced Allocations in Batches,
/// SPAA 2022). The paper's load score also weighs processors, memory and the estimated time of each
/// task, and its schedulers fetch the vector from a data store; here there is one count per worker.
#[derive(Clone, Debug, Default)]
pub struct Dodoor {
    /// `None`: half of the workers.
    b: Option<u32>,
    /// Decisions until the next refresh.
    left: u32,
    loads: BySlot<u32>,
    /// Requests from others, by the workers' last reports.
    others: BySlot<u32>,
}

impl Dodoor {
    /// Refreshes when half as many decisions were made as there are workers.
    pub fn new() -> Self {
        Dodoor::default()
    }

    /// Refreshes every `b` decisions; 0 counts as 1.
    pub fn with_batch(b: u32) -> Self {
        Dodoor { b: Some(b.max(1)), ..Dodoor::default() }
    }

    fn refresh(&mut self, view: &ClusterView<'_>) {
        for id in view.ready() {
            let others = self.others.get(*id).copied().unwrap_or_default();
            self.loads.insert(*id, view.in_flight(*id).saturating_add(others));
        }
    }

    fn cost(&self, worker: WorkerId, view: &ClusterView<'_>) -> f64 {
        let load = self.loads.get(worker).copied().unwrap_or_default();
        view.worker(worker).map_or(f64::INFINITY, |known| (f64::from(load) + 1.0) / known.weight())
    }
}

/// The parameter's value for the default of `b`.
const HALF: &str = "half";

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "dodoor".to_owned(),
        about: "the less loaded of two random workers, by loads that are refreshed now and then"
            .to_owned(),
        source: "Dodoor: Efficient Randomized Decentralized Scheduling with Load Caching, \
                 arXiv 2510.12889, 2025"
            .to_owned(),
        parameters: vec![ParameterInfo::new(
            "b",
            HALF,
            "decisions between two refreshes, 1 to 1000000, or half as many as there are workers",
        )],
        build: Box::new(|given| {
            if given.get("b")?.as_str() == Some(HALF) {
                return Ok(Box::new(Dodoor::new()));
            }
            let wanted = "a whole number from 1 to 1000000, or half";
            let b = given
                .number_where("b", wanted, |b| b.fract() == 0.0 && (1.0..=1e6).contains(&b))?;
            Ok(Box::new(Dodoor::with_batch(b as u32)))
        }),
    }
}

impl BalancingPolicy for Dodoor {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let Some((a, b)) = Candidates::of(request, view).two(cx.rng) else {
            return Decision::Refuse(Refusal::NoWorker);
        };
        if self.left == 0 {
            self.refresh(view);
            let half = u32::try_from(view.ready().len() / 2).unwrap_or(u32::MAX);
            self.left = self.b.unwrap_or(half).max(1);
        }
        self.left -= 1;
        let better = self.cost(b, view) < self.cost(a, view);
        Decision::To(if better { b } else { a }, Why("less loaded"))
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        if let PolicyEvent::Load { worker, load } = *event {
            let all = load.running.saturating_add(load.queued);
            self.others.insert(worker, all.saturating_sub(view.in_flight(worker)));
        }
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::balancing::{Cluster, FunctionId, Ticket, WorkerInfo};
    use openlambda_core::random::Rng;
    use openlambda_core::time::Time;

    use super::*;

    /// Decisions from one refresh to the next.
    fn batch(policy: &mut Dodoor, cluster: &Cluster) -> u32 {
        let (mut rng, mut outputs) = (Rng::from_seed(1), Vec::new());
        let request = RequestInfo::new(Ticket(0), FunctionId(0), 0);
        let mut decisions = 0;
        loop {
            let mut cx = PolicyContext::new(Time(0), &mut rng, &mut outputs);
            assert!(matches!(policy.select(&request, &cluster.view(), &mut cx), Decision::To(..)));
            decisions += 1;
            if policy.left == 0 {
                return decisions;
            }
        }
    }

    #[test]
    fn a_batch_is_half_of_the_ready_workers_unless_it_is_given() {
        let mut cluster = Cluster::new();
        let (mut half, mut given) = (Dodoor::new(), Dodoor::with_batch(3));
        let mut workers = Vec::new();
        for n in 1..=21 {
            workers.push(cluster.join(WorkerInfo::new(format!("w{n}"), 1)));
            assert_eq!(batch(&mut half, &cluster), (n / 2).max(1), "{n} workers");
            assert_eq!(batch(&mut given, &cluster), 3);
        }
        for worker in &workers[..13] {
            cluster.set_healthy(*worker, false);
        }
        assert_eq!(batch(&mut half, &cluster), 4, "of those that are ready");
    }
}
