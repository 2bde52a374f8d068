//! What the policies are built from: idle instances in sorted order.

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

/// Instances that share what they are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    /// All instances of a version.
    Version(VersionId),
    /// One alone.
    Instance(InstanceId),
}

/// What is known of a group while it has instances, and how it ranks its idle ones.
pub(super) trait Worth: Debug {
    /// What an instance is marked with when it becomes idle. Marks never go down as time goes on.
    type Mark: Copy + Ord + Debug;
    /// The group whose rank is lowest gives up an instance first.
    type Rank: Copy + Ord + Debug;

    /// The group's rank, when `mark` is that of the instance that is idle for longest.
    fn rank(&self, mark: Self::Mark) -> Self::Rank;
}

/// Idle instances where all of a group share something that changes with every invocation, such as
/// how often a version is called.
///
/// Giving each idle instance a rank of its own would make an invocation cost as much as the group
/// has idle instances. So groups are ranked, each by the instance that is idle for longest, and
/// every operation is O(log n).
#[derive(Debug)]
pub(super) struct Grouped<W: Worth> {
    instances: BTreeMap<InstanceId, Member<W::Mark>>,
    groups: BTreeMap<Group, Members<W>>,
    order: Order<Group, (W::Rank, Time, InstanceId)>,
}

#[derive(Debug)]
struct Member<Mark> {
    group: Group,
    /// How it was marked, while it is idle, and since when it is.
    idle: Option<(Mark, Time)>,
}

#[derive(Debug)]
struct Members<W: Worth> {
    worth: W,
    instances: u32,
    idle: BTreeSet<(W::Mark, Time, InstanceId)>,
}

impl<W: Worth> Grouped<W> {
    /// An instance is there. `first` makes the worth of a group that had none, `update` adds what
    /// this instance tells about it.
    pub(super) fn started(
        &mut self,
        instance: InstanceId,
        group: Group,
        first: impl FnOnce() -> W,
        update: impl FnOnce(&mut W),
    ) {
        self.instances.insert(instance, Member { group, idle: None });
        let members = self.groups.entry(group).or_insert_with(|| Members {
            worth: first(),
            instances: 0,
            idle: BTreeSet::new(),
        });
        members.instances += 1;
        update(&mut members.worth);
        self.rank(group);
    }

    /// Something happened in an instance that changes what its group is worth.
    pub(super) fn update(&mut self, instance: InstanceId, update: impl FnOnce(&mut W)) {
        let Some(member) = self.instances.get(&instance) else { return };
        let group = member.group;
        if let Some(members) = self.groups.get_mut(&group) {
            update(&mut members.worth);
        }
        self.rank(group);
    }

    pub(super) fn idle(&mut self, instance: InstanceId, mark: W::Mark, now: Time) {
        let Some(member) = self.instances.get_mut(&instance) else { return };
        member.idle = Some((mark, now));
        let group = member.group;
        if let Some(members) = self.groups.get_mut(&group) {
            members.idle.insert((mark, now, instance));
        }
        self.rank(group);
    }

    pub(super) fn used(&mut self, instance: InstanceId) {
        let Some(member) = self.instances.get_mut(&instance) else { return };
        let (group, idle) = (member.group, member.idle.take());
        if let (Some((mark, since)), Some(members)) = (idle, self.groups.get_mut(&group)) {
            members.idle.remove(&(mark, since, instance));
        }
        self.rank(group);
    }

    /// An instance is gone; with a group's last one, what was known of the group is too.
    pub(super) fn ended(&mut self, instance: InstanceId) {
        self.used(instance);
        let Some(member) = self.instances.remove(&instance) else { return };
        if let Some(members) = self.groups.get_mut(&member.group) {
            members.instances -= 1;
            if members.instances == 0 {
                self.groups.remove(&member.group);
            }
        }
    }

    /// The instance to evict next, and its group's rank.
    pub(super) fn first(&self) -> Option<(W::Rank, InstanceId)> {
        self.order.first().map(|((rank, _, instance), _)| (rank, instance))
    }

    fn rank(&mut self, group: Group) {
        let Some(members) = self.groups.get(&group) else { return };
        match members.idle.first() {
            Some(&(mark, since, instance)) => {
                self.order.set(group, (members.worth.rank(mark), since, instance));
            }
            None => {
                self.order.remove(group);
            }
        }
    }
}

impl<W: Worth> Default for Grouped<W> {
    fn default() -> Self {
        Grouped { instances: BTreeMap::new(), groups: BTreeMap::new(), order: Order::default() }
    }
}
