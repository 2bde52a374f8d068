//! A bound on how much work another policy gives to any one worker: [`Guardrails`].

use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, RequestInfo,
    Ticket, Why, WorkerId,
};
use openlambda_core::time::Time;

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::Candidates;

/// An inner policy's choices, restricted to workers that have not had too much work of the request's
/// size.
///
/// Formula: sizes are grouped by rank. With x the request's size, its rank r is the number with
/// cʳ ≤ x < cʳ⁺¹ (microseconds; everything below one is rank 0, the next is 1, and so on). G(r, i) is
/// the sum of the sizes of rank r that were sent to worker i, by weight: x / wᵢ. Worker i is safe for
/// the request when
///
/// ```text
/// G(r, i) + x / wᵢ ≤ min over j of G(r, j) + g · cʳ⁺¹ / w        w: the least weight
/// ```
///
/// so the sums of two workers never differ by more than g · cʳ⁺¹ / w, whatever the inner policy does.
/// A worker whose last request is answered is empty: its sums are set to the least of each rank. A worker
/// that joins, or comes back, starts there too, or at the largest when it still has requests.
///
/// A request's size is its size estimate; failing that, the mean latency of its function (which
/// includes the time in queues and moves by an eighth with each reply); failing that, `size`.
///
/// The inner policy is asked first. As long as it chooses an unsafe worker, it is asked again with
/// that one excluded, up to four times; then the worker with the least sum is taken, which is always
/// safe. A retry whose safe workers are all excluded goes to the one with the least sum among the
/// others, and its sum counts only up to the limit. Requests that the inner policy holds and binds count
/// in the same way, but are not guarded, so the catalogue refuses such a policy.
///
/// Cost: that of the inner policy, once in most cases, and O(log n) per request; a worker that becomes
/// empty costs O(ranks in use · log n). No allocation once a rank has been seen.
///
/// Source: I. Grosof, Z. Scully, M. Harchol-Balter, Load Balancing Guardrails: Keeping Your Heavy
/// Traffic on the Road to Low Response Times, SIGMETRICS 2019. There the workers are alike and serve
/// the shortest remaining request first; then any guarded policy has the optimal mean response time
/// in heavy traffic.
#[derive(Debug)]
pub struct Guardrails {
    inner: Box<dyn BalancingPolicy>,
    g: f64,
    /// Nanoseconds.
    default_size: u64,
    /// The upper limit of each rank, nanoseconds.
    limits: Vec<u64>,
    /// By rank; empty before its first request.
    sums: Vec<LeastTree>,
    /// By slot: the ready workers, whose sums count.
    ready: Vec<Option<WorkerId>>,
    least_weight: f64,
    /// By function: the mean latency in nanoseconds, 0 before the first.
    sizes: Vec<f64>,
    /// The request that was decided on last, until it is dispatched.
    decided: Option<(Ticket, u64)>,
    /// Reused: the workers that the inner policy is to leave out.
    excluded: Vec<WorkerId>,
}

/// The least weight that counts in the sums; with a smaller one, one worker could switch off the guard.
const LEAST_WEIGHT: f64 = 0.01;

/// How often the inner policy is asked again.
const MOST_TRIES: usize = 4;

impl Guardrails {
    /// Guards `inner` with ranks that grow by the factor `c` and a limit of `g` times the largest
    /// request of the rank. Requests of which nothing is known count as `default_size`.
    ///
    /// # Panics
    ///
    /// When `c` is not in 1.1 ..= 1000 or `g` not in 1 ..= 1000.
    pub fn new(inner: Box<dyn BalancingPolicy>, c: f64, g: f64, default_size: Duration) -> Self {
        assert!((1.1..=1000.0).contains(&c), "c must be 1.1 to 1000");
        assert!((1.0..=1000.0).contains(&g), "g must be 1 to 1000");
        let limits = std::iter::successors(Some(1e3), |limit| Some(limit * c));
        let limits: Vec<u64> =
            limits.take_while(|limit| *limit < 1e18).map(|limit| limit as u64).collect();
        Guardrails {
            inner,
            g,
            default_size: default_size.as_nanos() as u64,
            sums: vec![LeastTree::default(); limits.len()],
            limits,
            ready: Vec::new(),
            least_weight: f64::INFINITY,
            sizes: Vec::new(),
            decided: None,
            excluded: Vec::new(),
        }
    }

    /// A size of which there is no estimate.
    fn expected(&self, function: FunctionId) -> u64 {
        match self.sizes.get(function.0 as usize) {
            Some(mean) if *mean >= 1.0 => *mean as u64,
            _ => self.default_size,
        }
    }

    /// A size's rank, and the size within what ranks there are.
    fn rank(&self, size: u64) -> (usize, u64) {
        let size = size.clamp(1, self.limits.last().map_or(1, |last| last - 1));
        (self.limits.partition_point(|limit| *limit <= size), size)
    }

    /// How far the sums of a rank may be apart.
    fn most_apart(&self, rank: usize) -> u64 {
        (self.g * self.limits[rank] as f64 / self.least_weight.max(LEAST_WEIGHT)).ceil() as u64
    }

    fn sum_with(&self, rank: usize, size: u64, worker: WorkerId, view: &ClusterView<'_>) -> u64 {
        let weight = view.worker(worker).map_or(1.0, |known| known.weight()).max(LEAST_WEIGHT);
        let sum = self.sums[rank].get(worker.index());
        sum.saturating_add((size as f64 / weight).ceil() as u64)
    }

    fn limit(&self, rank: usize) -> u64 {
        self.sums[rank].least().saturating_add(self.most_apart(rank))
    }

    fn is_safe(&self, rank: usize, size: u64, worker: WorkerId, view: &ClusterView<'_>) -> bool {
        self.sum_with(rank, size, worker, view) <= self.limit(rank)
    }

    fn least(&self, rank: usize, candidates: &Candidates<'_>) -> Option<WorkerId> {
        let least = self.ready.get(self.sums[rank].place_of_least()).copied().flatten();
        if let Some(worker) = least.filter(|worker| candidates.allows(*worker)) {
            return Some(worker);
        }
        let ready = self.ready.iter().flatten().copied();
        let allowed = ready.filter(|worker| candidates.allows(*worker));
        allowed.min_by_key(|worker| self.sums[rank].get(worker.index()))
    }

    fn enter(&mut self, worker: WorkerId, view: &ClusterView<'_>) {
        if worker.index() >= self.ready.len() {
            self.ready.resize(worker.index() + 1, None);
        }
        let weight = view.worker(worker).map_or(1.0, |known| known.weight());
        self.least_weight = self.least_weight.min(weight);
        let empty = view.in_flight(worker) == 0;
        for sums in self.sums.iter_mut().filter(|sums| !sums.is_empty()) {
            let sum = match sums.least() {
                ABSENT => 0,
                least if empty => least,
                _ => {
                    let others = self.ready.iter().flatten().map(|other| sums.get(other.index()));
                    others.max().unwrap_or_default()
                }
            };
            sums.set(worker.index(), sum);
        }
        self.ready[worker.index()] = Some(worker);
    }

    fn depart(&mut self, worker: WorkerId) {
        if self.ready.get(worker.index()).copied().flatten() == Some(worker) {
            self.ready[worker.index()] = None;
            for sums in self.sums.iter_mut().filter(|sums| !sums.is_empty()) {
                sums.set(worker.index(), ABSENT);
            }
        }
    }

    fn dispatched(
        &mut self,
        ticket: Ticket,
        function: FunctionId,
        worker: WorkerId,
        view: &ClusterView<'_>,
    ) {
        let decided = self.decided.take().filter(|(decided, _)| *decided == ticket);
        let size = decided.map_or_else(|| self.expected(function), |(_, size)| size);
        let (rank, size) = self.rank(size);
        if view.is_ready(worker) {
            self.open(rank);
            let sum = self.sum_with(rank, size, worker, view).min(self.limit(rank));
            self.sums[rank].set(worker.index(), sum);
        }
    }

    fn completed(
        &mut self,
        function: FunctionId,
        worker: WorkerId,
        latency: Option<Duration>,
        view: &ClusterView<'_>,
    ) {
        if let Some(latency) = latency {
            let function = function.0 as usize;
            if function >= self.sizes.len() {
                self.sizes.resize(function + 1, 0.0);
            }
            let (mean, latency) = (&mut self.sizes[function], latency.as_nanos() as f64);
            *mean = if *mean == 0.0 { latency } else { *mean + (latency - *mean) / 8.0 };
        }
        if view.is_ready(worker) && view.in_flight(worker) == 0 {
            for sums in self.sums.iter_mut().filter(|sums| !sums.is_empty()) {
                let least = sums.least();
                sums.set(worker.index(), least);
            }
        }
    }

    /// Makes a rank's sums at its first request.
    fn open(&mut self, rank: usize) {
        if self.sums[rank].is_empty() {
            for worker in self.ready.iter().flatten() {
                self.sums[rank].set(worker.index(), 0);
            }
        }
    }
}

/// Policies that hold requests bind them later, past the guard.
const HOLDING: [&str; 2] = ["central-queue", "late-binding"];

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "guardrails".to_owned(),
        about: "another policy's choice, unless that worker has had too much work of this size"
            .to_owned(),
        source: "Grosof, Scully, Harchol-Balter, Load Balancing Guardrails, SIGMETRICS 2019"
            .to_owned(),
        parameters: vec![
            ParameterInfo::new("inner", "random", "the policy that is guarded"),
            ParameterInfo::new("c", 2.0, "how much larger requests of the next rank are")
                .within(1.1..=1000.0),
            ParameterInfo::new(
                "g",
                2.0,
                "by how many of a rank's largest requests the sums may differ",
            )
            .within(1..=1000),
            ParameterInfo::new(
                "size",
                0.1,
                "seconds that a request counts for when its size is not known",
            )
            .within(1e-6..=86_400.0),
        ],
        build: Box::new(|given| {
            let (c, g, size) = (given.number("c")?, given.number("g")?, given.seconds("size")?);
            let (inner, policy) = given.nested("inner")?;
            if HOLDING.contains(&inner.name.as_str()) {
                return Err(given.refuse(format!(
                    "inner = {} holds requests, which cannot be guarded; use a policy that decides \
                     at once",
                    inner.name
                )));
            }
            Ok(Box::new(Guardrails::new(policy, c, g, size)))
        }),
    }
}

impl BalancingPolicy for Guardrails {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let estimate = request.size_estimate.map(|size| size.as_nanos() as u64);
        let size = estimate.unwrap_or_else(|| self.expected(request.function));
        self.decided = Some((request.ticket, size));
        let mut decision = self.inner.select(request, view, cx);
        let (rank, size) = self.rank(size);
        self.open(rank);
        let candidates = Candidates::of(request, view);
        self.excluded.clear();
        self.excluded.extend_from_slice(request.excluded);
        for _ in 0..MOST_TRIES {
            let Decision::To(chosen, _) = decision else { return decision };
            if candidates.allows(chosen) && self.is_safe(rank, size, chosen, view) {
                return decision;
            }
            if self.excluded.contains(&chosen) {
                break;
            }
            self.excluded.push(chosen);
            let mut again = *request;
            again.excluded = &self.excluded;
            decision = self.inner.select(&again, view, cx);
        }
        match decision {
            Decision::To(chosen, _)
                if candidates.allows(chosen) && self.is_safe(rank, size, chosen, view) =>
            {
                decision
            }
            Decision::To(..) => match self.least(rank, &candidates) {
                Some(worker) => Decision::To(worker, Why("guarded")),
                None => decision,
            },
            _ => decision,
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        match *event {
            PolicyEvent::Joined { worker } | PolicyEvent::ReadyChanged { worker, ready: true } => {
                self.enter(worker, view);
            }
            PolicyEvent::Left { worker, .. }
            | PolicyEvent::ReadyChanged { worker, ready: false } => self.depart(worker),
            PolicyEvent::Dispatched { ticket, function, worker } => {
                self.dispatched(ticket, function, worker, view);
            }
            PolicyEvent::Completed { function, worker, latency, ok, .. } => {
                self.completed(function, worker, ok.then_some(latency), view);
            }
            _ => {}
        }
        self.inner.observe(event, view, cx);
    }

    fn next_wakeup(&self) -> Option<Time> {
        self.inner.next_wakeup()
    }

    fn on_wakeup(&mut self, view: &ClusterView<'_>, cx: &mut PolicyContext<'_>) {
        self.inner.on_wakeup(view, cx);
    }
}

/// Not among the ready workers.
const ABSENT: u64 = u64::MAX;

/// Numbers by slot, and the least of them: a tournament tree. A change costs O(log n), the least is
/// at the root.
#[derive(Clone, Debug, Default)]
struct LeastTree {
    /// The root is at 1, the children of i at 2i and 2i + 1, the leaves fill the second half.
    nodes: Vec<u64>,
}

impl LeastTree {
    fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn least(&self) -> u64 {
        self.nodes.get(1).copied().unwrap_or(ABSENT)
    }

    fn get(&self, slot: usize) -> u64 {
        self.nodes.get(self.nodes.len() / 2 + slot).copied().unwrap_or(ABSENT)
    }

    /// The first slot of the least number.
    fn place_of_least(&self) -> usize {
        let leaves = self.nodes.len() / 2;
        let mut at = 1;
        while at < leaves {
            at = if self.nodes[2 * at] <= self.nodes[2 * at + 1] { 2 * at } else { 2 * at + 1 };
        }
        at - leaves.min(at)
    }

    fn set(&mut self, slot: usize, number: u64) {
        if slot >= self.nodes.len() / 2 {
            self.grow(slot + 1);
        }
        let mut at = self.nodes.len() / 2 + slot;
        self.nodes[at] = number;
        while at > 1 {
            at /= 2;
            self.nodes[at] = self.nodes[2 * at].min(self.nodes[2 * at + 1]);
        }
    }

    #[cold]
    fn grow(&mut self, slots: usize) {
        let leaves = slots.next_power_of_two().max(2);
        let old = self.nodes.split_off(self.nodes.len() / 2);
        self.nodes = vec![ABSENT; 2 * leaves];
        for (slot, number) in old.into_iter().enumerate() {
            self.set(slot, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::conformance::balancing::check_history;
    use proptest::prelude::*;

    use super::super::{BoundedLoad, LeastOutstanding, PowerOfD, Random, RoundRobin};
    use super::*;

    /// Looks at the sums after each call.
    #[derive(Debug)]
    struct Watched(Guardrails);

    impl Watched {
        fn check(&self, view: &ClusterView<'_>) {
            let guard = &self.0;
            assert_eq!(
                guard.ready.iter().flatten().copied().collect::<Vec<_>>(),
                view.ready(),
                "the sums are those of the ready workers"
            );
            for (rank, sums) in guard.sums.iter().enumerate().filter(|(_, sums)| !sums.is_empty()) {
                let of_ready = || view.ready().iter().map(|worker| sums.get(worker.index()));
                let (Some(least), Some(most)) = (of_ready().min(), of_ready().max()) else {
                    continue;
                };
                assert_eq!(sums.least(), least);
                assert!(most - least <= guard.most_apart(rank), "rank {rank}: {least} to {most}");
            }
        }
    }

    impl BalancingPolicy for Watched {
        fn select(
            &mut self,
            request: &RequestInfo<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) -> Decision {
            self.0.select(request, view, cx)
        }

        fn observe(
            &mut self,
            event: &PolicyEvent<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) {
            self.0.observe(event, view, cx);
            self.check(view);
        }
    }

    #[test]
    fn sums_stay_within_the_limit_in_any_history_with_any_inner_policy() {
        for seed in 0..200 {
            let inner: [fn() -> Box<dyn BalancingPolicy>; 5] = [
                || Box::new(Random),
                || Box::new(RoundRobin::new()),
                || Box::new(LeastOutstanding::new()),
                || Box::new(PowerOfD::new(3)),
                || Box::<BoundedLoad>::default(),
            ];
            let (c, g) = ([1.1, 2.0, 10.0][seed as usize % 3], [1.0, 2.0][seed as usize % 2]);
            let inner = inner[seed as usize % 5];
            check_history(
                || Box::new(Watched(Guardrails::new(inner(), c, g, Duration::from_millis(3)))),
                seed,
            );
        }
    }

    proptest! {
        #[test]
        fn the_tree_finds_the_least(steps in proptest::collection::vec((0..20usize, 0..9u64), 1..100)) {
            let mut tree = LeastTree::default();
            let mut model = [ABSENT; 20];
            for (slot, number) in steps {
                // 0 takes a number out.
                model[slot] = number.checked_sub(1).unwrap_or(ABSENT);
                tree.set(slot, model[slot]);
                let least = *model.iter().min().unwrap();
                prop_assert_eq!(tree.least(), least);
                prop_assert_eq!(tree.get(tree.place_of_least()), least);
                for (slot, number) in model.iter().enumerate() {
                    prop_assert_eq!(tree.get(slot), *number);
                }
            }
        }
    }
}
