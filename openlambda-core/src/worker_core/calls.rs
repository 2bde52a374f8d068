//! The calls on a worker, and the reservations for calls that may come.
//!
//! A call and its reservation share an id. So an id is free for the next call only when both are over:
//!
//! ```text
//!   reserved ──────▶ over          (the call goes elsewhere, or comes as a new one)
//!      │ called
//!      ▼
//!   called ── run ──▶ started ──▶ over
//! ```

use std::collections::BTreeMap;

use super::notices::BalancerId;
use crate::invocation::{Phases, StartKind};
use crate::scheduler::{InvocationId, VersionId};
use crate::time::Time;
use crate::wire::ReservationKey;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Calls {
    places: Vec<Place>,
    free: Vec<u32>,
    /// By which name balancers know reservations, and calls that had one or name one: a reservation
    /// that comes after its call, on a slower way, does not count.
    by_key: BTreeMap<ReservationKey, InvocationId>,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    call: Option<CallState>,
}

/// What is known of a call, or of a place that is kept for one.
#[derive(Debug)]
pub(super) struct CallState {
    pub(super) version: VersionId,
    /// When it arrived, or its place was reserved: it has waited since then.
    pub(super) arrived: Time,
    /// How many calls ran or waited when it arrived.
    pub(super) found: u32,
    /// The reservation is not over.
    pub(super) reserved: bool,
    /// The call has come.
    pub(super) called: bool,
    /// By which name its balancer knows it, if it had a reservation or names one.
    pub(super) key: Option<Box<ReservationKey>>,
    pub(super) balancer: Option<BalancerId>,
    /// How warm it runs, and where its time went before.
    pub(super) started: Option<(StartKind, Phases)>,
    /// It ran over its time limit. What its handler says of its end is a consequence.
    pub(super) expired: bool,
}

impl Calls {
    /// Gives a call its number.
    pub(super) fn insert(&mut self, call: CallState) -> InvocationId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, call: None });
            u32::try_from(self.places.len() - 1).expect("fewer than 2^32 calls at once")
        });
        let place = &mut self.places[slot as usize];
        let id = InvocationId(u64::from(place.generation) << 32 | u64::from(slot));
        if let Some(key) = &call.key {
            self.by_key.insert((**key).clone(), id);
        }
        place.call = Some(call);
        id
    }

    pub(super) fn get_mut(&mut self, id: InvocationId) -> Option<&mut CallState> {
        let place = self.places.get_mut(slot_of(id))?;
        if place.generation == generation_of(id) { place.call.as_mut() } else { None }
    }

    pub(super) fn get(&self, id: InvocationId) -> Option<&CallState> {
        let place = self.places.get(slot_of(id))?;
        if place.generation == generation_of(id) { place.call.as_ref() } else { None }
    }

    /// The call that has the reservation `key`.
    pub(super) fn named(&self, key: &ReservationKey) -> Option<InvocationId> {
        self.by_key.get(key).copied()
    }

    /// The open reservations of a balancer.
    pub(super) fn reservations_of(&self, balancer: &str) -> Vec<InvocationId> {
        let first = ReservationKey { balancer: balancer.to_owned(), ticket: 0 };
        let its = self.by_key.range(first..);
        let its = its.take_while(|(key, _)| key.balancer == balancer).map(|(_, id)| *id);
        its.filter(|id| self.get(*id).is_some_and(|call| call.reserved)).collect()
    }

    /// The call, or its reservation, is over. When both are, its number is free again, and what was
    /// known is returned.
    pub(super) fn over(
        &mut self,
        id: InvocationId,
        end: impl FnOnce(&mut CallState),
    ) -> Option<CallState> {
        let call = self.get_mut(id)?;
        end(call);
        if call.called || call.reserved {
            return None;
        }
        let place = &mut self.places[slot_of(id)];
        let call = place.call.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot_of(id) as u32);
        if let Some(key) = &call.key
            && self.by_key.get(&**key) == Some(&id)
        {
            self.by_key.remove(&**key);
        }
        Some(call)
    }
}

const fn slot_of(id: InvocationId) -> usize {
    id.0 as u32 as usize
}

const fn generation_of(id: InvocationId) -> u32 {
    (id.0 >> 32) as u32
}
