//! Places that are kept for invocations that may come: the life of a reservation, as the module above
//! draws it.

use super::{
    Action, InstanceId, InvocationId, Rejection, ReservationEnd, Scheduler, Timer, VersionId,
};
use crate::time::Time;

impl Scheduler {
    pub(super) fn on_reserved(
        &mut self,
        now: Time,
        invocation: InvocationId,
        version: VersionId,
        deadline: Time,
    ) {
        match self.admits(version) {
            Ok(()) => self.enqueue(now, invocation, version, deadline, true),
            Err(why) => self.reservation_over(invocation, ReservationEnd::Refused(why)),
        }
    }

    pub(super) fn on_reservation_cancelled(&mut self, now: Time, invocation: InvocationId) {
        if self.offered.contains_key(&invocation) {
            self.end_offer(now, invocation, ReservationEnd::Cancelled);
        } else if self.waiting.get(&invocation).is_some_and(|place| place.reserved) {
            let why = Rejection::Cancelled;
            self.leave_queue(
                invocation,
                Action::Reject { invocation, why },
                ReservationEnd::Cancelled,
            );
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
        if let Some(offer) = self.offered.get(&invocation).copied() {
            if self.instances[&offer.instance].version != version {
                self.end_offer(now, invocation, ReservationEnd::Cancelled);
                return false;
            }
            self.offered.remove(&invocation);
            self.timers.remove(&(offer.until, Timer::Offer(invocation)));
            self.version(version).superseded = false;
            self.reservation_over(invocation, ReservationEnd::Taken);
            let instance = self.instances.get_mut(&offer.instance).expect("it holds a slot");
            instance.held -= 1;
            self.run(now, invocation, offer.since, offer.instance, offer.start);
            return true;
        }
        let Some(place) = self.waiting.get_mut(&invocation).filter(|place| place.reserved) else {
            return false;
        };
        if place.version != version {
            self.on_reservation_cancelled(now, invocation);
            return false;
        }
        place.reserved = false;
        let until = std::mem::replace(&mut place.deadline, deadline);
        self.reserved -= 1;
        self.timers.remove(&(until, Timer::Wait(invocation)));
        self.timers.insert((deadline, Timer::Wait(invocation)));
        self.version(version).superseded = false;
        self.reservation_over(invocation, ReservationEnd::Taken);
        true
    }

    /// The slot that was held goes to the next.
    pub(super) fn end_offer(&mut self, now: Time, invocation: InvocationId, why: ReservationEnd) {
        let Some(offer) = self.offered.remove(&invocation) else { return };
        self.timers.remove(&(offer.until, Timer::Offer(invocation)));
        self.reservation_over(invocation, why);
        let instance = self.instances.get_mut(&offer.instance).expect("it holds a slot");
        instance.held -= 1;
        self.free_slot(now, offer.instance, true);
    }

    /// The instance ends, and the slots that it held are free of their reservations.
    pub(super) fn lose_slots(&mut self, id: InstanceId) {
        let held = self.offered.iter().filter(|(_, offer)| offer.instance == id);
        let lost: Vec<_> = held.map(|(invocation, offer)| (*invocation, offer.until)).collect();
        for (invocation, until) in lost {
            self.offered.remove(&invocation);
            self.timers.remove(&(until, Timer::Offer(invocation)));
            self.reservation_over(invocation, ReservationEnd::SlotLost);
        }
        let instance = self.instances.get_mut(&id).expect("it is ending, not gone");
        instance.used -= std::mem::take(&mut instance.held);
    }

    pub(super) fn reservation_over(&mut self, invocation: InvocationId, why: ReservationEnd) {
        self.actions.push_back(Action::ReservationOver { invocation, why });
    }

    /// Their invocations would be rejected.
    pub(super) fn end_reservations(&mut self, now: Time) {
        let draining = Rejection::Draining;
        let waiting = self.waiting.iter().filter(|(_, place)| place.reserved);
        for invocation in waiting.map(|(invocation, _)| *invocation).collect::<Vec<_>>() {
            self.reject_waiting(invocation, draining);
        }
        for invocation in self.offered.keys().copied().collect::<Vec<_>>() {
            self.end_offer(now, invocation, ReservationEnd::Refused(draining));
        }
    }
}
