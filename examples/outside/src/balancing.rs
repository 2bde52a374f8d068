//! A balancing policy built from parts: [`HomeWhileFree`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
};
use openlambda_lb::policies::PolicyEntry;
use openlambda_lb::policies::parts::{Candidates, FillOrder, LoadOrder, Room, WorkerRing};

/// The function's own worker while it has a free slot; else the fullest worker with a free slot; when all are
/// full, the least loaded.
///
/// So calls of one function find its warm instances, and calls that are too many for one worker fill few
/// other workers. O(1) for a call's first attempt, O(workers) for a retry.
#[derive(Debug)]
pub struct HomeWhileFree {
    ring: WorkerRing,
    room: Room,
    full: FillOrder,
    load: LoadOrder,
}

impl HomeWhileFree {
    /// Knows no workers yet.
    pub fn new() -> Self {
        HomeWhileFree {
            ring: WorkerRing::new(100),
            room: Room::default(),
            full: FillOrder::default(),
            load: LoadOrder::new(),
        }
    }

    /// Its line in a catalogue.
    pub fn entry() -> PolicyEntry {
        let about =
            "the function's own worker while that has a free slot, else the fullest that has";
        PolicyEntry::new("home-while-free", about, "examples/outside", || {
            Box::new(HomeWhileFree::new())
        })
    }
}

impl Default for HomeWhileFree {
    fn default() -> Self {
        HomeWhileFree::new()
    }
}

impl BalancingPolicy for HomeWhileFree {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        if let Some(home) = self.ring.home(request.key, &candidates, view)
            && self.room.at(home)
        {
            return Decision::To(home, Why("home"));
        }
        let packed =
            self.full.fullest_with_room().iter().find(|worker| candidates.allows(**worker));
        if let Some(worker) = packed {
            return Decision::To(*worker, Why("packed"));
        }
        match self.load.draw_lowest(&candidates, cx.rng) {
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
        self.ring.observe(event, view);
        self.room.observe(event, view);
        self.full.observe(event, view);
        self.load.observe(event, view);
    }
}
