//! The invocations and reservations that the scheduler knows, by the ids that the shell gives them.

use super::{InstanceId, InvocationId, VersionId};
use crate::arena::{Slots, slot_of};
use crate::invocation::StartKind;
use crate::time::Time;

/// A table of calls, and how many of each kind there are.
#[derive(Debug, Default)]
pub(super) struct Calls {
    slots: Slots<Call>,
    counts: [u32; 4],
}

/// Where an invocation, or the reservation of one, is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    /// In its version's queue.
    Waiting(Place),
    /// A reservation that a slot is held for.
    Offered(Offer),
    /// In an instance.
    Running(Run),
}

/// A place among those that wait for a version's slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) version: VersionId,
    pub(super) deadline: Time,
    /// Its invocation has not arrived yet.
    pub(super) reserved: bool,
}

/// A run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) instance: InstanceId,
    pub(super) since: Time,
}

/// A slot that is held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) instance: InstanceId,
    /// When the place was reserved.
    pub(super) since: Time,
    /// How warm the instance is for the one for which the slot is held.
    pub(super) start: StartKind,
}

#[derive(Clone, Copy)]
enum Kind {
    Waiting,
    Reserved,
    Offered,
    Running,
}

impl Call {
    fn kind(&self) -> Kind {
        match self {
            Call::Waiting(place) if place.reserved => Kind::Reserved,
            Call::Waiting(_) => Kind::Waiting,
            Call::Offered(_) => Kind::Offered,
            Call::Running(_) => Kind::Running,
        }
    }
}

impl Calls {
    pub(super) fn get(&self, id: InvocationId) -> Option<&Call> {
        self.slots.get(id.0)
    }

    pub(super) fn waiting(&self, id: InvocationId) -> Option<&Place> {
        match self.get(id) {
            Some(Call::Waiting(place)) => Some(place),
            _ => None,
        }
    }

    /// Enters a call, or gives it another state.
    // Not inlined, the state would be written to the stack in parts and read back at once as a whole,
    // for which a processor has to wait.
    #[inline(always)]
    pub(super) fn set(&mut self, id: InvocationId, call: Call) {
        self.counts[call.kind() as usize] += 1;
        match self.slots.get_mut(id.0) {
            Some(known) => {
                let before = std::mem::replace(known, call).kind();
                self.counts[before as usize] -= 1;
            }
            None => self.slots.insert(id.0, call),
        }
    }

    pub(super) fn remove(&mut self, id: InvocationId) {
        if let Some(call) = self.slots.remove(id.0) {
            self.counts[call.kind() as usize] -= 1;
        }
    }

    /// The call in a slot that has one.
    pub(super) fn at(&self, slot: u32) -> InvocationId {
        InvocationId(self.slots.id_at(slot).expect("there is a call in this slot"))
    }

    /// In the order of their slots. O(slots).
    pub(super) fn iter(&self) -> impl Iterator<Item = (InvocationId, &Call)> {
        self.slots.iter().map(|(id, call)| (InvocationId(id), call))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == 0
    }

    /// Invocations that wait.
    pub(super) fn count_waiting(&self) -> u32 {
        self.counts[Kind::Waiting as usize]
    }

    /// Reservations that wait.
    pub(super) fn count_reserved(&self) -> u32 {
        self.counts[Kind::Reserved as usize]
    }

    pub(super) fn count_offered(&self) -> u32 {
        self.counts[Kind::Offered as usize]
    }

    pub(super) fn count_running(&self) -> u32 {
        self.counts[Kind::Running as usize]
    }
}

impl InvocationId {
    pub(super) fn slot(self) -> u32 {
        slot_of(self.0)
    }
}
