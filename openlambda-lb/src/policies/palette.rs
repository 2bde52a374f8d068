//! Requests of one colour together: [`Palette`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, ColourId, Decision, PolicyContext, PolicyEvent, Refusal,
    RequestInfo, Why, WorkerId,
};

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, LoadOrder, LookupTable};
use super::power_of_d::PowerOfD;

/// Palette: a colour is an opaque hint that requests belong together; those of one colour go to one
/// worker, whatever their function.
///
/// Formula, by [`Assignment`]: *bucket hash*: the worker that owns bucket h(colour) mod B; *least
/// assigned*: at its first request a colour is given to the ready worker with the smallest
/// ⌊colours / w⌋, any of equals, and stays there until that leaves or is not ready. A request without
/// a colour goes to the less loaded of two random workers, as locality does not matter to it.
///
/// Bucket hashing needs no memory and agrees between balancers, but may put several busy colours on
/// one worker. Least assigned spreads colours evenly; it depends on what this balancer saw before.
///
/// Cost: O(1) per decision, and no allocation but when a colour is seen for the first time. Bucket
/// hash: as [`Maglev`](super::Maglev). Least assigned: O(colours of the worker) when one comes back.
///
/// Source: M. Abdi et al., Palette Load Balancing: Locality Hints for Serverless Functions, EuroSys
/// 2023. There, the balancer forgets colours by LRU; here, as many are kept as there are names.
#[derive(Clone, Debug)]
pub struct Palette {
    assigned: Assigned,
    uncoloured: PowerOfD,
}

/// How colours become workers; see [`Palette`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assignment {
    /// By a hash into at least this many buckets, which workers own in even shares.
    BucketHash {
        /// How many buckets at least, 101 to 16,777,216; there are 100 for each worker at least.
        buckets: u32,
    },
    /// A new colour to the worker with the fewest.
    LeastAssigned,
}

#[derive(Clone, Debug)]
enum Assigned {
    BucketHash(LookupTable),
    LeastAssigned(Colours),
}

impl Palette {
    /// With that way to assign colours.
    ///
    /// # Panics
    ///
    /// When the number of buckets is out of range.
    pub fn new(assignment: Assignment) -> Self {
        let assigned = match assignment {
            Assignment::BucketHash { buckets } => Assigned::BucketHash(LookupTable::new(buckets)),
            Assignment::LeastAssigned => Assigned::LeastAssigned(Colours::default()),
        };
        Palette { assigned, uncoloured: PowerOfD::new(2) }
    }
}

impl Default for Palette {
    /// Bucket hash with 65,537 buckets.
    fn default() -> Self {
        Palette::new(Assignment::BucketHash { buckets: 65_537 })
    }
}

impl BalancingPolicy for Palette {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let Some(colour) = request.colour else {
            return self.uncoloured.select(request, view, cx);
        };
        let candidates = Candidates::of(request, view);
        let found = match &mut self.assigned {
            Assigned::BucketHash(table) => {
                let found = table.find(view.colour_key(colour), &candidates, view);
                found.map(|(worker, own)| (worker, if own { "colour" } else { "substitute" }))
            }
            Assigned::LeastAssigned(colours) => colours.find(colour, &candidates, view, cx),
        };
        match found {
            Some((worker, why)) => Decision::To(worker, Why(why)),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        match &mut self.assigned {
            Assigned::BucketHash(table) => table.observe(event, view),
            Assigned::LeastAssigned(colours) => colours.observe(event, view),
        }
    }
}

/// Which worker has which colour.
#[derive(Clone, Debug, Default)]
struct Colours {
    /// By colour.
    workers: Vec<Option<WorkerId>>,
    /// By slot: how many colours the worker has that is there now.
    counts: Vec<u32>,
    /// The ready workers by ⌊colours / w⌋.
    order: LoadOrder,
}

impl Colours {
    fn find(
        &mut self,
        colour: ColourId,
        candidates: &Candidates<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Option<(WorkerId, &'static str)> {
        let at = colour.0 as usize;
        if at >= self.workers.len() {
            self.workers.resize(at + 1, None);
        }
        let known = self.workers[at].filter(|worker| view.is_ready(*worker));
        match known {
            Some(worker) if candidates.allows(worker) => Some((worker, "colour")),
            // It failed this one request: the colour stays.
            Some(_) => {
                let least = self.order.draw_lowest(candidates, cx.rng)?;
                Some((least, "substitute"))
            }
            None => {
                let least = self.order.draw_lowest(candidates, cx.rng)?;
                if let Some(old) = self.workers[at].replace(least) {
                    self.count(old, view, |count| count.saturating_sub(1));
                }
                self.count(least, view, |count| count + 1);
                Some((least, "new colour"))
            }
        }
    }

    /// Changes how many colours a worker has, if it is there.
    fn count(&mut self, worker: WorkerId, view: &ClusterView<'_>, change: impl Fn(u32) -> u32) {
        if view.worker(worker).is_some() {
            let count = &mut self.counts[worker.index()];
            *count = change(*count);
            self.order.set(worker, level(worker, self.counts[worker.index()], view));
        }
    }

    fn observe(&mut self, event: &PolicyEvent<'_>, view: &ClusterView<'_>) {
        match *event {
            PolicyEvent::Joined { worker } => {
                if worker.index() >= self.counts.len() {
                    self.counts.resize(worker.index() + 1, 0);
                }
                // Another one may have had the slot before.
                self.counts[worker.index()] = 0;
                self.order.insert(worker, 0);
            }
            PolicyEvent::ReadyChanged { worker, ready: true } => {
                self.order.insert(worker, level(worker, self.counts[worker.index()], view));
            }
            PolicyEvent::Left { worker, .. }
            | PolicyEvent::ReadyChanged { worker, ready: false } => self.order.remove(worker),
            _ => {}
        }
    }
}

fn level(worker: WorkerId, colours: u32, view: &ClusterView<'_>) -> u32 {
    // A tiny weight must not ask for endless levels.
    let weight = view.worker(worker).map_or(1.0, |known| known.weight()).max(1.0 / 16.0);
    (f64::from(colours) / weight) as u32
}

/// The policy in the catalogue.
pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "palette".to_owned(),
        about: "requests of one colour at one worker".to_owned(),
        source: "Abdi et al., Palette Load Balancing, EuroSys 2023".to_owned(),
        parameters: vec![
            ParameterInfo::new(
                "assign",
                "bucket-hash",
                "how a colour becomes a worker: bucket-hash or least-assigned",
            ),
            ParameterInfo::new(
                "buckets",
                65_537,
                "for bucket-hash: buckets, at least; 100 for each worker; 101 to 16777216",
            )
            .within(LookupTable::SIZES),
        ],
        build: Box::new(|given| {
            let assign = given.word("assign", &["bucket-hash", "least-assigned"])?;
            let buckets = given.whole("buckets")?;
            Ok(Box::new(Palette::new(match assign {
                0 => Assignment::BucketHash { buckets },
                _ => Assignment::LeastAssigned,
            })))
        }),
    }
}
