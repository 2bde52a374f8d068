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

use super::namespaces::Over;
use super::notices::BalancerId;
use crate::arena::OwnedArena;
use crate::invocation::{Phases, StartKind};
use crate::scheduler::{InvocationId, VersionId};
use crate::time::Time;
use crate::wire::ReservationKey;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Calls {
    places: OwnedArena<CallState>,
    /// By which name balancers know reservations, and calls that had one or name one: a reservation
    /// that comes after its call, on a slower way, does not count.
    by_key: BTreeMap<ReservationKey, InvocationId>,
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
    /// It is one of the calls of its namespace that wait.
    pub(super) waits: bool,
    /// Which quota it is over: it is about to be rejected.
    pub(super) over: Option<Over>,
    /// How warm it runs, and where its time went before.
    pub(super) started: Option<(StartKind, Phases)>,
    /// It ran over its time limit. What its handler says of its end is a consequence.
    pub(super) expired: bool,
}

impl Calls {
    /// Gives a call its number.
    pub(super) fn insert(&mut self, call: CallState) -> InvocationId {
        let key = call.key.as_deref().cloned();
        let id = InvocationId(self.places.insert(call));
        if let Some(key) = key {
            self.by_key.insert(key, id);
        }
        id
    }

    pub(super) fn get_mut(&mut self, id: InvocationId) -> Option<&mut CallState> {
        self.places.get_mut(id.0)
    }

    pub(super) fn get(&self, id: InvocationId) -> Option<&CallState> {
        self.places.get(id.0)
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
        let call = self.places.remove(id.0)?;
        if let Some(key) = &call.key
            && self.by_key.get(&**key) == Some(&id)
        {
            self.by_key.remove(&**key);
        }
        Some(call)
    }
}
