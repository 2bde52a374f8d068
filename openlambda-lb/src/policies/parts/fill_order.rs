//! Workers in order of how full they are, for unequal capacities: [`FillOrder`].

use openlambda_core::balancing::{ClusterView, PolicyEvent, WorkerId, WorkerView};

use super::load_order::LoadOrder;

/// The ready workers by the part of their capacity that is taken, in sixteenths, rounded down: so
/// that each request of a worker with at most 16 slots makes a difference.
///
/// Cost: an event moves a worker by ⌈16 / capacity⌉ levels, each O(1); the questions are O(1). No
/// allocation once the highest level was reached. It is a [`LoadOrder`], whose source is told there.
///
/// ```
/// use openlambda_core::balancing::{Cluster, PolicyEvent, WorkerInfo};
/// use openlambda_lb::policies::parts::FillOrder;
///
/// let mut cluster = Cluster::new();
/// let [small, large] = [1, 8].map(|slots| cluster.join(WorkerInfo::new(format!("w{slots}"), slots)));
/// let mut order = FillOrder::default();
/// for worker in [small, large] {
///     cluster.dispatched(worker);
///     order.observe(&PolicyEvent::Joined { worker }, &cluster.view());
/// }
/// assert_eq!(order.iter().collect::<Vec<_>>(), [(large, 2), (small, FillOrder::FULL)]);
/// assert_eq!(order.fullest_with_room(), [large]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct FillOrder {
    order: LoadOrder,
}

impl FillOrder {
    /// From this level on, all slots of a worker are taken.
    pub const FULL: u32 = 16;

    /// Far beyond full there is nothing left to tell apart, and levels cost memory.
    const MOST: u64 = 4096;

    /// How full a worker is: the part of its capacity that is taken, in sixteenths.
    pub fn level(worker: WorkerView<'_>) -> u32 {
        let level = u64::from(worker.in_flight()) * u64::from(Self::FULL);
        (level / u64::from(worker.capacity().max(1))).min(Self::MOST) as u32
    }

    /// To be told every event.
    pub fn observe(&mut self, event: &PolicyEvent<'_>, view: &ClusterView<'_>) {
        match *event {
            PolicyEvent::Joined { worker } | PolicyEvent::ReadyChanged { worker, ready: true } => {
                if let Some(known) = view.worker(worker) {
                    self.order.insert(worker, Self::level(known));
                }
            }
            PolicyEvent::Left { worker, .. }
            | PolicyEvent::ReadyChanged { worker, ready: false } => self.order.remove(worker),
            PolicyEvent::Dispatched { worker, .. } | PolicyEvent::Completed { worker, .. } => {
                if let Some(known) = view.worker(worker) {
                    self.order.set(worker, Self::level(known));
                }
            }
            _ => {}
        }
    }

    /// The least full workers, in no particular order.
    pub fn least(&self) -> &[WorkerId] {
        self.order.lowest()
    }

    /// The fullest workers that have a free slot, in no particular order.
    pub fn fullest_with_room(&self) -> &[WorkerId] {
        let levels = (0..Self::FULL).rev().map(|level| self.order.at(level));
        levels.into_iter().find(|workers| !workers.is_empty()).unwrap_or(&[])
    }

    /// All workers, the least full first, with their levels.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, u32)> {
        self.order.iter()
    }
}
