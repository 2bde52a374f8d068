//! Which workers have a free slot: [`Room`].

use openlambda_core::balancing::{ClusterView, PolicyEvent, WorkerId};

/// The ready workers with less of this balancer's requests in flight than they can run at once.
///
/// Cost: O(1) per event and per question; it allocates only when a slot is used for the first time.
/// With several balancers, each counts its own requests: a worker may be busier than one knows.
///
/// ```
/// use openlambda_core::balancing::{Cluster, PolicyEvent, WorkerInfo};
/// use openlambda_lb::policies::parts::Room;
///
/// let mut cluster = Cluster::new();
/// let worker = cluster.join(WorkerInfo::new("w", 1));
/// let mut room = Room::default();
/// room.observe(&PolicyEvent::Joined { worker }, &cluster.view());
/// assert!(room.at(worker));
///
/// cluster.set_healthy(worker, false);
/// room.observe(&PolicyEvent::ReadyChanged { worker, ready: false }, &cluster.view());
/// assert!(!room.at(worker) && !room.anywhere());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// By slot.
    has_room: Vec<bool>,
    workers: usize,
}

impl Room {
    /// Whether a worker is ready and has a free slot.
    pub fn at(&self, worker: WorkerId) -> bool {
        self.has_room.get(worker.index()).copied().unwrap_or(false)
    }

    /// Whether any worker is ready and has a free slot.
    pub fn anywhere(&self) -> bool {
        self.workers > 0
    }

    /// To be told every event.
    pub fn observe(&mut self, event: &PolicyEvent<'_>, view: &ClusterView<'_>) {
        match *event {
            PolicyEvent::Joined { worker }
            | PolicyEvent::ReadyChanged { worker, .. }
            | PolicyEvent::Dispatched { worker, .. }
            | PolicyEvent::Completed { worker, .. } => {
                // One that left must not change what is known of its successor in the slot.
                if let Some(known) = view.worker(worker) {
                    let ready = known.healthy() && !known.draining();
                    self.set(worker, ready && known.in_flight() < known.capacity());
                }
            }
            PolicyEvent::Left { worker, .. } => self.set(worker, false),
            _ => {}
        }
    }

    fn set(&mut self, worker: WorkerId, room: bool) {
        if worker.index() >= self.has_room.len() {
            self.has_room.resize(worker.index() + 1, false);
        }
        let had_room = std::mem::replace(&mut self.has_room[worker.index()], room);
        self.workers += usize::from(room);
        self.workers -= usize::from(had_room);
    }
}
