//! What the policies are made of: sorted books of the idle instances.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use crate::scheduler::{InstanceId, VersionId};
use crate::time::Time;

/// Entries in the order of a rank that can change. All operations are O(log n).
#[derive(Debug)]
pub(super) struct Order<Id, Rank> {
    ranks: BTreeMap<Id, Rank>,
    order: BTreeSet<(Rank, Id)>,
}

impl<Id: Copy + Ord, Rank: Copy + Ord> Order<Id, Rank> {
    /// Enters `id`, or gives it another rank.
    pub(super) fn set(&mut self, id: Id, rank: Rank) {
        if let Some(before) = self.ranks.insert(id, rank) {
            self.order.remove(&(before, id));
        }
        self.order.insert((rank, id));
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<Rank> {
        let rank = self.ranks.remove(&id)?;
        self.order.remove(&(rank, id));
        Some(rank)
    }

    /// The entry of the lowest rank; of equal ones that with the lowest id.
    pub(super) fn first(&self) -> Option<(Rank, Id)> {
        self.order.first().copied()
    }
}

impl<Id, Rank> Default for Order<Id, Rank> {
    fn default() -> Self {
        Order { ranks: BTreeMap::new(), order: BTreeSet::new() }
    }
}

/// A number that says how much an instance is worth keeping. Never NaN, so it has an order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Priority(pub(super) f64);

impl Eq for Priority {}

impl PartialOrd for Priority {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Priority {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What is known of a version while it has instances, and how it ranks its idle ones.
pub(super) trait Worth: Debug {
    /// What an instance is marked with when it becomes idle. Marks never go down as time goes on.
    type Mark: Copy + Ord + Debug;
    /// The version whose rank is lowest gives up an instance first.
    type Rank: Copy + Ord + Debug;

    /// The version's rank, when `mark` is that of the instance that is idle for longest.
    fn rank(&self, mark: Self::Mark) -> Self::Rank;
}

/// Idle instances where all instances of a version share something that changes with every
/// invocation, such as how often the version is called.
///
/// Giving each idle instance a rank of its own would make an invocation cost as much as the version
/// has idle instances. So versions are ranked, each by the instance that is idle for longest, and
/// every operation is O(log n) in instances and versions.
#[derive(Debug)]
pub(super) struct ByVersion<W: Worth> {
    instances: BTreeMap<InstanceId, Member<W::Mark>>,
    versions: BTreeMap<VersionId, Group<W>>,
    order: Order<VersionId, (W::Rank, Time, InstanceId)>,
}

#[derive(Debug)]
struct Member<Mark> {
    version: VersionId,
    /// How it was marked, while it is idle, and since when it is.
    idle: Option<(Mark, Time)>,
}

#[derive(Debug)]
struct Group<W: Worth> {
    worth: W,
    instances: u32,
    idle: BTreeSet<(W::Mark, Time, InstanceId)>,
}

impl<W: Worth> ByVersion<W> {
    /// An instance is there. `first` makes the worth of a version that had none, `update` adds what
    /// this instance tells about it.
    pub(super) fn started(
        &mut self,
        instance: InstanceId,
        version: VersionId,
        first: impl FnOnce() -> W,
        update: impl FnOnce(&mut W),
    ) {
        self.instances.insert(instance, Member { version, idle: None });
        let group = self.versions.entry(version).or_insert_with(|| Group {
            worth: first(),
            instances: 0,
            idle: BTreeSet::new(),
        });
        group.instances += 1;
        update(&mut group.worth);
        self.rank(version);
    }

    /// Something happened in an instance that changes what its version is worth.
    pub(super) fn update(&mut self, instance: InstanceId, update: impl FnOnce(&mut W)) {
        let Some(member) = self.instances.get(&instance) else { return };
        let version = member.version;
        if let Some(group) = self.versions.get_mut(&version) {
            update(&mut group.worth);
        }
        self.rank(version);
    }

    pub(super) fn idle(&mut self, instance: InstanceId, mark: W::Mark, now: Time) {
        let Some(member) = self.instances.get_mut(&instance) else { return };
        member.idle = Some((mark, now));
        let version = member.version;
        if let Some(group) = self.versions.get_mut(&version) {
            group.idle.insert((mark, now, instance));
        }
        self.rank(version);
    }

    pub(super) fn used(&mut self, instance: InstanceId) {
        let Some(member) = self.instances.get_mut(&instance) else { return };
        let (version, idle) = (member.version, member.idle.take());
        if let (Some((mark, since)), Some(group)) = (idle, self.versions.get_mut(&version)) {
            group.idle.remove(&(mark, since, instance));
        }
        self.rank(version);
    }

    /// An instance is gone; with a version's last one, what was known of the version is too.
    pub(super) fn ended(&mut self, instance: InstanceId) {
        self.used(instance);
        let Some(member) = self.instances.remove(&instance) else { return };
        if let Some(group) = self.versions.get_mut(&member.version) {
            group.instances -= 1;
            if group.instances == 0 {
                self.versions.remove(&member.version);
            }
        }
    }

    /// The instance to evict next, and its version's rank.
    pub(super) fn first(&self) -> Option<(W::Rank, InstanceId)> {
        self.order.first().map(|((rank, _, instance), _)| (rank, instance))
    }

    fn rank(&mut self, version: VersionId) {
        let Some(group) = self.versions.get(&version) else { return };
        match group.idle.first() {
            Some(&(mark, since, instance)) => {
                self.order.set(version, (group.worth.rank(mark), since, instance));
            }
            None => {
                self.order.remove(version);
            }
        }
    }
}

impl<W: Worth> Default for ByVersion<W> {
    fn default() -> Self {
        ByVersion { instances: BTreeMap::new(), versions: BTreeMap::new(), order: Order::default() }
    }
}
