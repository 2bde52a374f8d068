//! The instances of a worker: a table, how many there are of each kind, and which are idle.

use std::ops::{Index, IndexMut};

use super::version::Version;
use super::{InstanceChoice, InstanceId, Limits, PauseAfter, VersionId};
use crate::arena::{Arena, List, Lists, slot_of};
use crate::invocation::StartKind;
use crate::time::Time;

/// All instances, from the start until nothing is left of them.
///
/// What counts of an instance, its state and how many of its slots are used, changes only through
/// [`set_state`](Self::set_state), [`use_slot`](Self::use_slot) and [`free_slot`](Self::free_slot), so
/// that the counts are right.
#[derive(Debug, Default)]
pub(super) struct Instances {
    table: Arena<Instance>,
    /// How many were ever started.
    started: u64,
    counts: [u32; 5],
    /// Idle ones, paused ones among them, by version.
    idle: Vec<u32>,
    /// The links of all versions' lists of free and paused instances.
    places: Lists,
    /// The paused ones that can give memory back and have not, the one paused longest first.
    spares: List,
    /// How much that is together, bytes.
    spare_bytes: u64,
    spare_links: Lists,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Instance {
    pub(super) version: VersionId,
    /// Its number in the order of starts; ids are used again.
    pub(super) serial: u64,
    /// What it takes from the pool now, bytes.
    pub(super) memory: u64,
    /// What it takes unless it is paused.
    pub(super) full: u64,
    /// When it is paused; `None`: as the configuration says.
    pub(super) pause_after: Option<PauseAfter>,
    /// What it can give back while it is paused, bytes.
    pub(super) spare: u64,
    /// It is giving that back.
    pub(super) lowering: bool,
    pub(super) slots: u32,
    used: u32,
    state: State,
    /// The reservations that slots are held for, the first offered first.
    pub(super) offers: List,
    /// An invocation has run in it.
    pub(super) ran: bool,
    pub(super) started: Time,
    /// How it was made, until it has been given its first invocations.
    pub(super) fresh: Option<StartKind>,
    /// The keep-alive policy and the balancers were told that it is idle.
    pub(super) resting: bool,
    /// It takes no more invocations, and its version counts it as one of those.
    pub(super) spent: bool,
    /// It takes no more invocations and is evicted when those that it has are over.
    pub(super) retiring: bool,
    /// When the keep-alive policy ends it, if it is not used before.
    pub(super) expire_at: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    /// `CancelStart` was said; `Destroyed`, `SandboxReady` or `SandboxFailed` comes.
    Cancelling,
    /// Idle when no slot is used or held, else busy.
    Up,
    Pausing,
    /// Pausing, but to be resumed as soon as it is paused.
    Wanted,
    Paused,
    Resuming,
    /// It takes no more invocations; `Evict` was said.
    Ending,
    /// `Destroyed` came before the last `Finished`.
    Gone,
}

/// As what an instance is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Starting,
    Busy,
    Idle,
    Paused,
    Ending,
}

impl Kind {
    fn is_idle(self) -> bool {
        matches!(self, Kind::Idle | Kind::Paused)
    }
}

impl Instance {
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Slots that are busy, the held ones among them.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// What it has to take from the pool before it runs.
    pub(super) fn missing(&self) -> u64 {
        self.full - self.memory
    }

    fn kind(&self) -> Kind {
        match self.state {
            State::Starting | State::Cancelling => Kind::Starting,
            State::Up if self.used > 0 => Kind::Busy,
            State::Up => Kind::Idle,
            State::Pausing | State::Wanted | State::Paused | State::Resuming => Kind::Paused,
            State::Ending | State::Gone => Kind::Ending,
        }
    }
}

impl InstanceId {
    pub(super) fn slot(self) -> u32 {
        slot_of(self.0)
    }
}

impl Instances {
    /// A new one, which is starting.
    pub(super) fn start(
        &mut self,
        now: Time,
        id: VersionId,
        version: &mut Version,
        limits: &Limits,
    ) -> InstanceId {
        let Limits { memory, slots, pause_after, .. } = *limits;
        let instance = Instance {
            version: id,
            serial: self.started,
            memory,
            full: memory,
            pause_after,
            spare: 0,
            lowering: false,
            slots,
            used: 0,
            state: State::Starting,
            offers: List::default(),
            ran: false,
            started: now,
            fresh: None,
            resting: false,
            spent: false,
            retiring: false,
            expire_at: None,
        };
        self.started += 1;
        self.counts[Kind::Starting as usize] += 1;
        version.members += 1;
        InstanceId(self.table.insert(instance))
    }

    /// Nothing is left of it, and it is not idle.
    pub(super) fn remove(&mut self, id: InstanceId, version: &mut Version) {
        if let Some(instance) = self.table.remove(id.0) {
            self.counts[instance.kind() as usize] -= 1;
            version.members -= 1;
        }
    }

    pub(super) fn get(&self, id: InstanceId) -> Option<&Instance> {
        self.table.get(id.0)
    }

    pub(super) fn get_mut(&mut self, id: InstanceId) -> Option<&mut Instance> {
        self.table.get_mut(id.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.len() == 0
    }

    pub(super) fn set_state(&mut self, id: InstanceId, state: State) {
        let instance = &mut self[id];
        let before = instance.kind();
        instance.state = state;
        let (after, version) = (instance.kind(), instance.version);
        self.shift(version, before, after);
    }

    /// An invocation or a reservation gets one more slot of an instance that is up. Returns how many
    /// are used now.
    pub(super) fn use_slot(&mut self, id: InstanceId) -> u32 {
        let instance = &mut self[id];
        instance.used += 1;
        let (used, version) = (instance.used, instance.version);
        if used == 1 {
            self.shift(version, Kind::Idle, Kind::Busy);
        }
        used
    }

    /// A slot is not used any more. Returns how many are.
    pub(super) fn free_slot(&mut self, id: InstanceId) -> u32 {
        let instance = &mut self[id];
        instance.used -= 1;
        let (used, version) = (instance.used, instance.version);
        if used == 0 && instance.state == State::Up {
            self.shift(version, Kind::Busy, Kind::Idle);
        }
        used
    }

    fn shift(&mut self, version: VersionId, before: Kind, after: Kind) {
        self.counts[before as usize] -= 1;
        self.counts[after as usize] += 1;
        match (before.is_idle(), after.is_idle()) {
            (true, false) => self.idle[version.0 as usize] -= 1,
            (false, true) => {
                let version = version.0 as usize;
                if version >= self.idle.len() {
                    self.idle.resize(version + 1, 0);
                }
                self.idle[version] += 1;
            }
            _ => {}
        }
    }

    /// How many there are of this kind.
    pub(super) fn count_of(&self, kind: Kind) -> u32 {
        self.counts[kind as usize]
    }

    /// The versions with idle instances (paused ones too), and how many.
    pub(super) fn idle_versions(&self) -> impl Iterator<Item = (VersionId, u32)> {
        let versions = (0u32..).map(VersionId).zip(self.idle.iter().copied());
        versions.filter(|(_, idle)| *idle > 0)
    }

    /// Those that are so, in the order of their starts. O(instances).
    pub(super) fn filter(&self, matches: impl Fn(&Instance) -> bool) -> Vec<InstanceId> {
        let those = self.table.iter().filter(|(_, instance)| matches(instance));
        let mut those: Vec<_> = those.map(|(id, instance)| (instance.serial, id)).collect();
        those.sort_unstable();
        those.into_iter().map(|(_, id)| InstanceId(id)).collect()
    }

    // Who gets the next call.

    /// The free slots of a version, counted until they are `enough`.
    pub(super) fn free_slots(&self, version: &Version, enough: u32) -> u32 {
        let mut free = 0;
        for slot in self.places.iter_back(version.free) {
            if free >= enough {
                break;
            }
            let instance = &self[self.at(slot)];
            free += instance.slots - instance.used;
        }
        free
    }

    /// The instance of this version that gets the next call.
    pub(super) fn next_free(&self, version: &Version) -> Option<InstanceId> {
        version.free.last().map(|slot| self.at(slot))
    }

    /// An instance has a free slot again, or for the first time.
    pub(super) fn push_free(
        &mut self,
        id: InstanceId,
        version: &mut Version,
        choice: InstanceChoice,
    ) {
        let before = match choice {
            InstanceChoice::MostRecent => version.free.last(),
            // Those that are busy were newer than those that are not, mostly, so this is short.
            InstanceChoice::Newest => {
                let serial = self[id].serial;
                let mut older = self.places.iter_back(version.free);
                older.find(|slot| self[self.at(*slot)].serial < serial)
            }
        };
        self.places.insert_after(&mut version.free, before, id.slot());
    }

    /// An instance is not to get calls any more, if it might.
    pub(super) fn remove_free(&mut self, id: InstanceId, version: &mut Version) {
        if self.places.contains(id.slot()) {
            self.places.remove(&mut version.free, id.slot());
        }
    }

    pub(super) fn push_paused(&mut self, id: InstanceId, version: &mut Version) {
        self.places.push_back(&mut version.paused, id.slot());
    }

    pub(super) fn remove_paused(&mut self, id: InstanceId, version: &mut Version) {
        self.places.remove(&mut version.paused, id.slot());
    }

    /// The instances of a version's list of paused ones, the one paused last first.
    pub(super) fn paused(&self, paused: List) -> impl Iterator<Item = InstanceId> {
        self.places.iter_back(paused).map(|slot| self.at(slot))
    }

    /// A paused instance can give back this much.
    pub(super) fn has_spare(&mut self, id: InstanceId, bytes: u64) {
        self[id].spare = bytes;
        if bytes > 0 {
            self.spare_links.push_back(&mut self.spares, id.slot());
            self.spare_bytes += bytes;
        }
    }

    /// It gives it back now, or never will.
    pub(super) fn no_spare(&mut self, id: InstanceId) {
        if self.spare_links.contains(id.slot()) {
            self.spare_links.remove(&mut self.spares, id.slot());
            self.spare_bytes -= self[id].spare;
        }
    }

    /// What they can give back together, bytes.
    pub(super) fn spare_bytes(&self) -> u64 {
        self.spare_bytes
    }

    /// The first that can give memory back of the paused instances that are so, the one paused longest first.
    pub(super) fn spare(&self, is_so: impl Fn(&Instance) -> bool) -> Option<InstanceId> {
        let mut spares = self.spare_links.iter(self.spares).map(|slot| self.at(slot));
        spares.find(|id| is_so(&self[*id]))
    }

    /// The instance in a slot that has one.
    pub(super) fn at(&self, slot: u32) -> InstanceId {
        InstanceId(self.table.id_at(slot).expect("there is an instance in this slot"))
    }
}

impl Index<InstanceId> for Instances {
    type Output = Instance;

    fn index(&self, id: InstanceId) -> &Instance {
        self.get(id).expect("the instance is there")
    }
}

impl IndexMut<InstanceId> for Instances {
    fn index_mut(&mut self, id: InstanceId) -> &mut Instance {
        self.get_mut(id).expect("the instance is there")
    }
}
