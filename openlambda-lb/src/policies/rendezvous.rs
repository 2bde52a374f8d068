//! The worker with the highest random weight: [`Rendezvous`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};
use openlambda_core::hash::mix;

use super::catalog::PolicyEntry;
use super::parts::Candidates;

/// Rendezvous hashing, also called highest random weight: each worker draws a lot for the function,
/// and the highest wins.
///
/// Shares are exactly in proportion to the weights in expectation, and fewer than any other hash
/// policy's keys move: only those of a worker that goes, or those that one that comes wins.
///
/// Formula: argmax over the ready workers of −wᵢ / ln uᵢ with uᵢ = h(f, nameᵢ) in (0, 1). Since
/// −wᵢ / ln uᵢ is 1 / Exp(wᵢ), worker i wins with probability wᵢ / Σw.
///
/// Cost: O(1) for a function that was seen since the last worker came: the winner is kept. After one
/// came, and for a retry, O(n), which the algorithm demands. Between equal weights the hashes decide
/// without a logarithm. No allocation but when a function is seen for the first time.
///
/// Sources: D. Thaler, C. Ravishankar, Using Name-Based Mappings to Increase Hit Rates, IEEE/ACM
/// Transactions on Networking 1998; the weights: C. Schindelhauer, G. Schomaker, Weighted Distributed
/// Hash Tables, SPAA 2005.
#[derive(Clone, Debug, Default)]
pub struct Rendezvous {
    /// The ready workers by weight, then by name's hash, so that ties do not depend on who came first.
    members: Vec<Member>,
    outdated: bool,
    /// Counts the times that a worker became ready. One that stops being so only frees its own keys.
    gains: u64,
    /// By function: who won.
    winners: Vec<Winner>,
}

#[derive(Clone, Copy, Debug)]
struct Member {
    weight: f64,
    name_hash: u64,
    worker: WorkerId,
}

#[derive(Clone, Copy, Debug, Default)]
struct Winner {
    key: u64,
    gains: u64,
    worker: Option<WorkerId>,
}

impl Rendezvous {
    /// Knows no workers yet.
    pub fn new() -> Self {
        Rendezvous::default()
    }

    /// The winner among those that `allows` lets through.
    fn draw(&self, key: u64, allows: impl Fn(WorkerId) -> bool) -> Option<WorkerId> {
        let mut best: Option<(Member, u64)> = None;
        for member in self.members.iter().filter(|member| allows(member.worker)) {
            let lot = mix(key, member.name_hash);
            let higher = match &best {
                None => true,
                Some((least, best_lot)) if least.weight == member.weight => lot > *best_lot,
                Some((least, best_lot)) => {
                    score(member.weight, lot) > score(least.weight, *best_lot)
                }
            };
            if higher {
                best = Some((*member, lot));
            }
        }
        best.map(|(member, _)| member.worker)
    }

    fn update(&mut self, view: &ClusterView<'_>) {
        if !self.outdated {
            return;
        }
        self.outdated = false;
        self.members.clear();
        self.members.extend(view.ready().iter().filter_map(|worker| {
            let known = view.worker(*worker)?;
            // A weight of NaN would always win, or make comparisons meaningless.
            let weight = if known.weight() > 0.0 { known.weight() } else { f64::MIN_POSITIVE };
            Some(Member { weight, name_hash: known.name_hash(), worker: *worker })
        }));
        self.members.sort_unstable_by(|a, b| {
            a.weight.total_cmp(&b.weight).then(a.name_hash.cmp(&b.name_hash))
        });
    }
}

/// −w / ln u, with the hash's upper 53 bits as u, strictly between 0 and 1.
fn score(weight: f64, hash: u64) -> f64 {
    let u = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -weight / libm::log(u)
}

impl BalancingPolicy for Rendezvous {
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
        let at = request.function.0 as usize;
        if at >= self.winners.len() {
            self.winners.resize(at + 1, Winner::default());
        }
        let kept = self.winners[at];
        let kept = kept.worker.filter(|worker| {
            kept.key == request.key && kept.gains == self.gains && view.is_ready(*worker)
        });
        let winner = match kept {
            Some(worker) => Some(worker),
            None => {
                self.update(view);
                let worker = self.draw(request.key, |_| true);
                self.winners[at] = Winner { key: request.key, gains: self.gains, worker };
                worker
            }
        };
        match winner {
            Some(worker) if candidates.allows(worker) => Decision::To(worker, Why("home")),
            _ => {
                self.update(view);
                match self.draw(request.key, |worker| candidates.allows(worker)) {
                    Some(worker) => Decision::To(worker, Why("next")),
                    None => Decision::Refuse(Refusal::NoWorker),
                }
            }
        }
    }

    fn observe(&mut self, event: &PolicyEvent<'_>, _: &ClusterView<'_>, _: &mut PolicyContext<'_>) {
        match *event {
            PolicyEvent::Joined { .. } | PolicyEvent::ReadyChanged { ready: true, .. } => {
                self.gains += 1;
                self.outdated = true;
            }
            PolicyEvent::Left { .. } | PolicyEvent::ReadyChanged { ready: false, .. } => {
                self.outdated = true;
            }
            _ => {}
        }
    }
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry::new(
        "rendezvous",
        "the worker with the highest random weight for the function",
        "Thaler, Ravishankar, Using Name-Based Mappings to Increase Hit Rates, IEEE/ACM ToN 1998",
        || Box::new(Rendezvous::new()),
    )
}
