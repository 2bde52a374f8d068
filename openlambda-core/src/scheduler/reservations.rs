//! The life of a reservation, a place for an invocation that may come, as `scheduler/mod.rs` draws it.

use super::calls::{Call, Offer, Place};
use super::timers::Timer;
use super::{Action, InstanceId, InvocationId, Rejection, ReservationEnd, Scheduler, VersionId};
use crate::queue::Arrival;
use crate::time::Time;

impl Scheduler {
    pub(super) fn on_reserved(
        &mut self,
        now: Time,
        invocation: InvocationId,
        version: VersionId,
        deadline: Time,
    ) {
        let place = Place { version, deadline, reserved: true };
        let call = Arrival { version, arrived: now, deadline };
        match self.admits(&call) {
            Ok(()) => self.enqueue(now, invocation, place),
            Err(why) => self.reservation_over(invocation, ReservationEnd::Refused(why)),
        }
    }

    pub(super) fn on_reservation_cancelled(&mut self, now: Time, invocation: InvocationId) {
        match self.calls.get(invocation) {
            Some(Call::Offered(_)) => {
                self.end_offer(now, invocation, ReservationEnd::Cancelled);
            }
            Some(Call::Waiting(place)) if place.reserved => {
                let why = Rejection::Cancelled;
                self.leave_queue(
                    invocation,
                    Action::Reject { invocation, why },
                    ReservationEnd::Cancelled,
                );
            }
            _ => {}
        }
    }

    /// An invocation that arrived takes over what its reservation has, if it has one: the slot, and
    /// runs, or the place in the queue.
    pub(super) fn take_reservation(
        &mut self,
        now: Time,
        invocation: InvocationId,
        version: VersionId,
        deadline: Time,
    ) -> bool {
        let (reserved, offer) = match self.calls.get(invocation) {
            Some(Call::Offered(offer)) => (self.instances[offer.instance].version, Some(*offer)),
            Some(Call::Waiting(place)) if place.reserved => (place.version, None),
            _ => return false,
        };
        if reserved != version {
            self.on_reservation_cancelled(now, invocation);
            return false;
        }
        self.versions[version.0 as usize].superseded = false;
        self.reservation_over(invocation, ReservationEnd::Taken);
        if let Some(offer) = offer {
            self.release(invocation, offer);
            self.run(now, invocation, offer.since, offer.instance, offer.start);
        } else {
            let place = Place { version, deadline, reserved: false };
            self.calls.set(invocation, Call::Waiting(place));
            self.timers.set(Timer::Wait, invocation.slot(), deadline);
        }
        true
    }

    /// The slot that was held goes to the next.
    pub(super) fn end_offer(&mut self, now: Time, invocation: InvocationId, why: ReservationEnd) {
        let Some(&Call::Offered(offer)) = self.calls.get(invocation) else { return };
        self.calls.remove(invocation);
        self.timers.clear_call(invocation.slot());
        self.reservation_over(invocation, why);
        self.release(invocation, offer);
        self.free_slot(now, offer.instance, true);
    }

    /// The slot is held no more; it is busy yet.
    fn release(&mut self, invocation: InvocationId, offer: Offer) {
        let instance = &mut self.instances[offer.instance];
        self.offers.remove(&mut instance.offers, invocation.slot());
    }

    /// The instance ends, and the slots that it held are free of their reservations.
    pub(super) fn lose_slots(&mut self, id: InstanceId) {
        while let Some(slot) = self.instances[id].offers.first() {
            let invocation = self.calls.at(slot);
            self.offers.remove(&mut self.instances[id].offers, slot);
            self.calls.remove(invocation);
            self.timers.clear_call(slot);
            self.instances.free_slot(id);
            self.reservation_over(invocation, ReservationEnd::SlotLost);
        }
    }

    pub(super) fn reservation_over(&mut self, invocation: InvocationId, why: ReservationEnd) {
        self.actions.push_back(Action::ReservationOver { invocation, why });
    }

    /// Their invocations would be rejected.
    pub(super) fn end_reservations(&mut self, now: Time) {
        let draining = Rejection::Draining;
        let those = |scheduler: &Self, matches: fn(&Call) -> bool| -> Vec<InvocationId> {
            let calls = scheduler.calls.iter().filter(|(_, call)| matches(call));
            calls.map(|(invocation, _)| invocation).collect()
        };
        let waiting = |call: &Call| matches!(call, Call::Waiting(place) if place.reserved);
        for invocation in those(self, waiting) {
            self.reject_waiting(invocation, draining);
        }
        for invocation in those(self, |call| matches!(call, Call::Offered(_))) {
            self.end_offer(now, invocation, ReservationEnd::Refused(draining));
        }
    }
}
