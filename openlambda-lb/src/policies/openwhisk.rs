//! Apache OpenWhisk's balancer: [`OpenWhisk`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};
use openlambda_core::hash::mix;

use super::catalog::PolicyEntry;
use super::parts::{Candidates, Room};

/// Keeps a function's step independent of its home.
const STEP_SALT: u64 = 0x7374_6570;

/// Sharding, as in Apache OpenWhisk: from the function's home in steps of its own until a worker has
/// a free slot.
///
/// Formula: of the n workers in order of their names, the home is h(f) mod n. The function's step s
/// is drawn by its hash from the numbers ≤ n that are co-prime to n and to each other; so home,
/// home + s, home + 2s, … visit every worker, and functions with the same home part ways. The choice
/// is the first one that is ready and has a slot: q < capacity. When all are full, any ready one,
/// uniformly.
///
/// A slot is one of the invocations that the worker can run at once ([`capacity`]); OpenWhisk counts
/// its memory instead. Capacities express unequal workers; weights are ignored. A worker that is not
/// ready keeps its place, but when one joins or leaves for good, n changes and nearly all functions move,
/// as the algorithm has it.
///
/// Cost: a step for each full worker on the way, at most n, which the algorithm demands; O(1) when all
/// are full. No allocation. When a worker comes or goes, O(n log log n) at the next decision.
///
/// Source: Apache OpenWhisk, `ShardingContainerPoolBalancer` (2018).
///
/// [`capacity`]: openlambda_core::balancing::WorkerView::capacity
#[derive(Clone, Debug, Default)]
pub struct OpenWhisk {
    /// All workers, in order of their names.
    members: Vec<WorkerId>,
    outdated: bool,
    /// The steps for this many workers.
    steps: Vec<u32>,
    room: Room,
}

impl OpenWhisk {
    /// Knows no workers yet.
    pub fn new() -> Self {
        OpenWhisk::default()
    }

    fn update(&mut self, view: &ClusterView<'_>) {
        if !self.outdated {
            return;
        }
        self.outdated = false;
        let before = self.members.len();
        self.members.clear();
        self.members.extend(view.workers().map(|(worker, _)| worker));
        if self.members.len() != before {
            steps(self.members.len(), &mut self.steps);
        }
    }
}

/// The numbers up to `n` that are co-prime to `n` and to each other, taken greedily from 1 on, as
/// OpenWhisk does. They are 1 and the primes that do not divide `n`: a composite number shares a
/// prime factor either with `n` or with that prime, which was taken before.
fn steps(n: usize, steps: &mut Vec<u32>) {
    steps.clear();
    steps.push(1);
    let mut composite = vec![false; n + 1];
    for p in 2..=n {
        if composite[p] {
            continue;
        }
        for multiple in (p * p..=n).step_by(p) {
            composite[multiple] = true;
        }
        if !n.is_multiple_of(p) {
            steps.push(p as u32);
        }
    }
}

impl BalancingPolicy for OpenWhisk {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        if candidates.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        self.update(view);
        if self.room.anywhere() {
            let n = self.members.len();
            let mut at = (request.key % n as u64) as usize;
            let step = mix(request.key, STEP_SALT) % self.steps.len() as u64;
            let step = self.steps[step as usize] as usize;
            let mut why = Why("home");
            for _ in 0..n {
                let worker = self.members[at];
                if self.room.at(worker) && candidates.allows(worker) {
                    return Decision::To(worker, why);
                }
                why = Why("step");
                at = (at + step) % n;
            }
        }
        Decision::To(candidates.nth(cx.rng.below(candidates.len())), Why("all full"))
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        self.room.observe(event, view);
        self.outdated |= matches!(event, PolicyEvent::Joined { .. } | PolicyEvent::Left { .. });
    }
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry::new(
        "openwhisk",
        "the first worker with a free slot, in co-prime steps from the function's own",
        "Apache OpenWhisk, ShardingContainerPoolBalancer, 2018",
        || Box::new(OpenWhisk::new()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gcd(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { gcd(b, a % b) }
    }

    #[test]
    fn steps_are_those_of_the_definition() {
        let mut found = Vec::new();
        for n in 1..300 {
            let mut expected: Vec<u32> = Vec::new();
            for x in 1..=n {
                if gcd(x, n) == 1 && expected.iter().all(|taken| gcd(*taken, x) == 1) {
                    expected.push(x);
                }
            }
            steps(n as usize, &mut found);
            assert_eq!(found, expected, "for {n}");
        }
    }
}
