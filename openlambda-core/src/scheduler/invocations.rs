//! The life of an invocation: it arrives, waits for a slot unless one is free, runs, and passes the
//! slot on.

use super::calls::{Call, Offer, Place, Run};
use super::instances::State;
use super::shares::Turn;
use super::timers::Timer;
use super::version::Code;
use super::{
    Action, EvictReason, InstanceId, InvocationId, Limits, Rejection, ReservationEnd, Scheduler,
    VersionId,
};
use crate::invocation::StartKind;
use crate::queue::Arrival;
use crate::time::Time;

/// The most invocations that wait for a version's code, before its manifest says how many may.
const QUEUE_BEFORE_CODE: u32 = 1024;

impl Scheduler {
    pub(super) fn on_arrived(
        &mut self,
        now: Time,
        invocation: InvocationId,
        version: VersionId,
        deadline: Time,
    ) {
        if self.take_reservation(now, invocation, version, deadline) {
            return;
        }
        let place = Place { version, deadline, reserved: false };
        let call = Arrival { version, arrived: now, deadline };
        match self.admits(&call) {
            Ok(()) => self.enqueue(now, invocation, place),
            Err(why) => self.actions.push_back(Action::Reject { invocation, why }),
        }
    }

    /// What an instance of the version can have at most, bytes.
    #[inline]
    fn pool_for(&mut self, id: VersionId) -> u64 {
        let total = self.pool.total();
        if !self.shares.counts() {
            return total;
        }
        let namespace = self.version(id).namespace;
        total.min(self.shares.most(namespace))
    }

    /// Whether one more may wait for the version.
    pub(super) fn admits(&mut self, call: &Arrival) -> Result<(), Rejection> {
        let draining = self.draining;
        let pool = self.pool_for(call.version);
        let running = self.places_in_use();
        let has_place = self.queueing.limiter.admits(running);
        let has_place = has_place || self.queueing.policy.passes_by(call);
        let version = self.version(call.version);
        let runs_at_once = !version.free.is_empty() && version.waiting == 0 && has_place;
        match version.code.limits() {
            _ if draining => Err(Rejection::Draining),
            Some(limits) if limits.memory > pool => {
                Err(Rejection::TooLarge { needs: limits.memory, pool })
            }
            // What a free slot takes at once does not wait, so a limit of 0 still serves. The slots
            // that are coming are not part of the queue's bound.
            Some(limits)
                if !runs_at_once
                    && u64::from(version.waiting)
                        >= u64::from(limits.queue) + u64::from(version.spare(limits)) =>
            {
                Err(Rejection::QueueFull)
            }
            None if version.waiting >= QUEUE_BEFORE_CODE => Err(Rejection::QueueFull),
            _ => Ok(()),
        }
    }

    pub(super) fn enqueue(&mut self, now: Time, invocation: InvocationId, place: Place) {
        let id = place.version;
        let running = self.places_in_use();
        let version = &mut self.versions[id.0 as usize];
        version.superseded = false;
        if self.shares.several() {
            self.shares.arrives(version.namespace);
        }
        let free = if version.waiting == 0 { self.instances.next_free(version) } else { None };
        let call = Arrival { version: id, arrived: now, deadline: place.deadline };
        let queueing = &mut self.queueing;
        if let Some(instance) = free
            && (queueing.limiter.admits(running) || queueing.policy.passes_by(&call))
        {
            if queueing.learns {
                let rank = queueing.policy.rank(&call, now);
                queueing.policy.started(&call, rank, now);
            }
            self.serve(now, invocation, place, now, instance);
        } else {
            let rank = queueing.policy.rank(&call, now);
            let others = self.calls.count_waiting() + self.calls.count_reserved();
            queueing.push(now, &mut version.line, invocation.slot(), &call, rank, others);
            version.waiting += 1;
            if self.shares.several() {
                self.shares.waits(version.namespace);
            }
            self.calls.set(invocation, Call::Waiting(place));
            self.timers.set(Timer::Wait, invocation.slot(), place.deadline);
        }
        self.pump(now, id);
    }

    /// Calls that run or for which a slot is held, and starts that are under way.
    pub(super) fn places_in_use(&self) -> u32 {
        self.calls.count_running() + self.calls.count_offered() + self.starting
    }

    /// What waits is over; its wishes for instances shrink with the queue.
    pub(super) fn reject_waiting(&mut self, invocation: InvocationId, why: Rejection) {
        self.leave_queue(
            invocation,
            Action::Reject { invocation, why },
            ReservationEnd::Refused(why),
        );
    }

    pub(super) fn leave_queue(
        &mut self,
        invocation: InvocationId,
        rejection: Action,
        end: ReservationEnd,
    ) {
        let Some(&place) = self.calls.waiting(invocation) else { return };
        self.calls.remove(invocation);
        self.timers.clear_call(invocation.slot());
        let version = &mut self.versions[place.version.0 as usize];
        version.waiting -= 1;
        if self.shares.several() {
            self.shares.waits_no_more(version.namespace);
        }
        if self.queueing.learns {
            self.queueing.policy.left(place.version);
        }
        self.queueing.remove(&mut version.line, invocation.slot());
        if place.reserved {
            self.reservation_over(invocation, end);
        } else {
            self.actions.push_back(rejection);
        }
        self.drop_surplus_wishes(place.version);
    }

    /// Gives free slots to what waits, in turn, then sees that enough instances are coming.
    #[inline]
    pub(super) fn pump(&mut self, now: Time, id: VersionId) {
        let version = &self.versions[id.0 as usize];
        // After a warm call nothing waits.
        if version.waits() || version.wishes.count() > 0 {
            self.pump_what_waits(now, id);
        }
    }

    fn pump_what_waits(&mut self, now: Time, id: VersionId) {
        let index = id.0 as usize;
        if self.queueing.limiter.limits() {
            while self.next_passes_by(id) && self.serve_next(now, id) {}
            self.enter_ready(id);
            self.dispatch(now);
        } else {
            self.look(now);
            while self.serve_next(now, id) {}
        }
        let version = &mut self.versions[index];
        if !version.waits() {
            self.wishes.shrink(&mut version.wishes, 0);
            return self.enter_wishing(id);
        }
        let limits = match version.code {
            Code::Unknown => {
                version.code = Code::Fetching;
                self.actions.push_back(Action::Fetch { version: id });
                return;
            }
            Code::Fetching => return,
            Code::Ready(limits) | Code::Gone(limits) => limits,
        };
        // Paused instances first: waking one is cheaper than making one.
        let calls = self.queueing.limiter.calls();
        let version = &self.versions[index];
        let free = self.instances.free_slots(version, version.waiting);
        while self.versions[index].waiting.min(calls) > self.versions[index].promised + free {
            let (paused, instances) = (self.versions[index].paused, &self.instances);
            let whole = instances.paused(paused).find(|id| instances[*id].missing() == 0);
            let Some(instance) = whole.or_else(|| {
                // What it gave back it needs again: at once if nobody waits for memory, else in turn.
                let last = instances.paused(paused).next()?;
                let missing = instances[last].missing();
                let namespace = self.versions[index].namespace;
                let at_once = self.wishes.is_empty()
                    && (!self.shares.counts() || self.shares.fits(namespace, missing, false))
                    && self.pool.take(missing);
                if at_once && self.shares.counts() {
                    self.shares.takes(namespace, missing);
                }
                at_once.then_some(last)
            }) else {
                break;
            };
            self.resume(instance);
        }
        let version = &mut self.versions[index];
        let wanted = version.wanted(&limits, calls, free);
        while version.wishes.count() < wanted {
            self.wishes.push(&mut version.wishes, id, now);
        }
        self.wishes.shrink(&mut version.wishes, wanted);
        self.enter_wishing(id);
    }

    /// The version's next call gets its next free slot, if there are both.
    pub(super) fn serve_next(&mut self, now: Time, id: VersionId) -> bool {
        let version = &mut self.versions[id.0 as usize];
        let Some(instance) = self.instances.next_free(version) else { return false };
        let Some(slot) = self.queueing.next(&version.line) else { return false };
        let waiting = self.queueing.get(slot);
        self.queueing.remove(&mut version.line, slot);
        version.waiting -= 1;
        if self.shares.several() {
            self.shares.waits_no_more(version.namespace);
        }
        let invocation = self.calls.at(slot);
        let place = *self.calls.waiting(invocation).expect("what is in a queue waits");
        if self.queueing.learns {
            let (arrived, deadline) = (waiting.arrived, place.deadline);
            let call = Arrival { version: id, arrived, deadline };
            self.queueing.policy.started(&call, waiting.key.rank, now);
        }
        self.serve(now, invocation, place, waiting.arrived, instance);
        true
    }

    /// A version is entered among those of which a call can run, under the place of that call, or taken
    /// out.
    fn enter_ready(&mut self, id: VersionId) {
        let version = &self.versions[id.0 as usize];
        let free = self.instances.next_free(version).is_some();
        let next = self.queueing.next(&version.line).filter(|_| free);
        let key = next.map(|slot| self.queueing.get(slot).key);
        self.queueing.ready.set(version.namespace, id, key);
    }

    /// Whether the version's next call needs no place.
    fn next_passes_by(&self, id: VersionId) -> bool {
        let Some(slot) = self.queueing.next(&self.versions[id.0 as usize].line) else {
            return false;
        };
        let arrived = self.queueing.get(slot).arrived;
        let place = self.calls.waiting(self.calls.at(slot)).expect("what is in a queue waits");
        let call = Arrival { version: id, arrived, deadline: place.deadline };
        self.queueing.policy.passes_by(&call)
    }

    /// Sees in which direction the queues are served; where it has turned, all versions have other places.
    fn look(&mut self, now: Time) {
        if self.calls.count_waiting() + self.calls.count_reserved() > 0 && self.queueing.look(now) {
            for id in (0..self.versions.len() as u32).map(VersionId) {
                if self.queueing.limiter.limits() {
                    self.enter_ready(id);
                }
                self.enter_wishing(id);
            }
        }
    }

    /// Where the number of running calls is limited: gives places to what is first in the order of the
    /// queue policy, over all versions, of calls that have a slot and of wishes for instances.
    pub(super) fn dispatch(&mut self, now: Time) {
        // What is evicted for a wish comes back here.
        if std::mem::replace(&mut self.dispatching, true) {
            return;
        }
        self.look(now);
        loop {
            let running = self.places_in_use();
            if !self.queueing.limiter.admits(running) {
                break;
            }
            let ready = self.next_ready();
            if let Some((turn, wish)) = self.next_wish(now)
                && ready.is_none_or(|ready| {
                    turn.is_none_or(|turn| self.queueing.precedes(&turn, &ready))
                })
                && self.grant(now, wish.version)
            {
                continue;
            }
            // The memory that a wish lacks may have been taken from this version.
            let Some(ready) = self.next_ready() else { break };
            let id = ready.version;
            self.enter_ready(id);
            if self.next_ready() == Some(ready) {
                self.serve_next(now, id);
                self.enter_ready(id);
                self.drop_surplus_wishes(id);
            }
        }
        self.dispatching = false;
    }

    /// The first version of which a call can run.
    fn next_ready(&self) -> Option<Turn> {
        self.queueing.ready.first(&self.shares, self.queueing.scarce(), false)
    }

    /// An invocation, or the reservation of one, gets a slot of this instance, which is the version's
    /// next: the one runs, the other has it held.
    fn serve(
        &mut self,
        now: Time,
        invocation: InvocationId,
        place: Place,
        arrived: Time,
        id: InstanceId,
    ) {
        let instance = &mut self.instances[id];
        let (start, slots) = (instance.fresh.unwrap_or(StartKind::Warm), instance.slots);
        if instance.used() == 0 {
            instance.expire_at = None;
            self.timers.clear_instance(id.slot());
            if std::mem::take(&mut instance.resting) {
                self.keep_alive.used(id, now);
            }
        }
        if self.instances.use_slot(id) == slots {
            self.instances.remove_free(id, &mut self.versions[place.version.0 as usize]);
        }
        if !place.reserved {
            return self.run(now, invocation, arrived, id, start);
        }
        let until = place.deadline.min(now + self.config.offer_timeout);
        self.offers.push_back(&mut self.instances[id].offers, invocation.slot());
        self.calls.set(invocation, Call::Offered(Offer { instance: id, since: arrived, start }));
        self.timers.set(Timer::Offer, invocation.slot(), until);
        self.actions.push_back(Action::Offer { invocation, instance: id });
    }

    /// An invocation runs in a slot that it has.
    pub(super) fn run(
        &mut self,
        now: Time,
        invocation: InvocationId,
        arrived: Time,
        id: InstanceId,
        start: StartKind,
    ) {
        self.keep_alive.invoked(id, arrived, now);
        let instance = &mut self.instances[id];
        instance.ran = true;
        let version = &self.versions[instance.version.0 as usize];
        if self.shares.several() {
            self.shares.begins(version.namespace);
        }
        match version.code.limits() {
            Some(limits) => {
                self.timers.set(Timer::Run, invocation.slot(), now + limits.timeout);
            }
            None => self.timers.clear_call(invocation.slot()),
        }
        self.calls.set(invocation, Call::Running(Run { instance: id, since: now }));
        self.actions.push_back(Action::Run { invocation, instance: id, start });
    }

    pub(super) fn on_finished(&mut self, now: Time, invocation: InvocationId, reusable: bool) {
        let Some(&Call::Running(run)) = self.calls.get(invocation) else { return };
        self.calls.remove(invocation);
        self.timers.clear_call(invocation.slot());
        if self.queueing.learns {
            let version = self.instances[run.instance].version;
            self.queueing.policy.finished(version, now.since(run.since), now);
        }
        if self.shares.several() {
            let version = self.instances[run.instance].version;
            let namespace = self.versions[version.0 as usize].namespace;
            self.shares.ends(namespace, now.since(run.since));
        }
        self.free_slot(now, run.instance, reusable);
    }

    /// It has run for as long as it may.
    pub(super) fn expire(&mut self, now: Time, invocation: InvocationId) {
        if let Some(&Call::Running(run)) = self.calls.get(invocation) {
            self.actions.push_back(Action::Expire { invocation });
            self.evict(now, run.instance, EvictReason::TimedOut);
        }
    }

    /// A slot that ran an invocation, or was held for one that did not come, is free.
    pub(super) fn free_slot(&mut self, now: Time, id: InstanceId, reusable: bool) {
        let used = self.instances.free_slot(id);
        let instance = &self.instances[id];
        let was_full = used + 1 == instance.slots;
        let (version_id, retiring) = (instance.version, instance.retiring);
        let version = &mut self.versions[version_id.0 as usize];
        match instance.state() {
            State::Gone => {
                if used == 0 {
                    self.instances.remove(id, version);
                }
                return;
            }
            State::Ending => return,
            _ => {}
        }
        if !reusable {
            return self.evict(now, id, EvictReason::Broken);
        }
        let reuse = version.code.limits().is_none_or(|limits| limits.reuse);
        if !reuse && instance.ran {
            if used == 0 {
                return self.evict(now, id, EvictReason::NoReuse);
            }
            self.spend(id);
            return self.pump(now, version_id);
        }
        let retires = retiring || self.must_yield(now, version_id);
        let version = &mut self.versions[version_id.0 as usize];
        if retires {
            if !retiring {
                let instance = &mut self.instances[id];
                instance.retiring = true;
                self.retiring_bytes += instance.memory;
                if self.shares.counts() {
                    self.shares.is_ending(version.namespace, instance.memory);
                }
                self.instances.remove_free(id, version);
                self.spend(id);
            }
            if used == 0 {
                return self.evict(now, id, EvictReason::Memory);
            }
        } else if was_full {
            self.instances.push_free(id, version, self.config.pick);
        }
        self.pump(now, version_id);
        self.rest(now, id);
    }

    /// The instance takes no more calls.
    fn spend(&mut self, id: InstanceId) {
        let instance = &mut self.instances[id];
        if !std::mem::replace(&mut instance.spent, true) {
            let version = instance.version;
            // What else is free of it is of no use either.
            self.versions[version.0 as usize].spent += 1;
        }
    }

    // Code.

    pub(super) fn on_code_ready(&mut self, now: Time, id: VersionId, limits: Limits) {
        let pool = self.pool_for(id);
        let version = self.version(id);
        version.code = Code::Ready(limits);
        if limits.memory > pool {
            version.prewarm = 0;
            let why = Rejection::TooLarge { needs: limits.memory, pool };
            self.reject_all(id, why);
            return;
        }
        // Before the code was there nobody knew the bound; the latest are over it.
        let room = limits.queue.saturating_add(version.spare(&limits));
        while self.versions[id.0 as usize].waiting > room
            && let Some(slot) = self.queueing.last(&self.versions[id.0 as usize].line)
        {
            self.reject_waiting(self.calls.at(slot), Rejection::QueueFull);
        }
        self.pump(now, id);
    }

    pub(super) fn on_code_failed(&mut self, id: VersionId) {
        let version = self.version(id);
        if version.code == Code::Fetching {
            version.code = Code::Unknown;
        }
        version.prewarm = 0;
        self.reject_all(id, Rejection::CodeFailed);
    }

    fn reject_all(&mut self, id: VersionId, why: Rejection) {
        while let Some(invocation) = self.next_waiting(id) {
            self.reject_waiting(invocation, why);
        }
        self.drop_surplus_wishes(id);
    }

    /// The version's next call, of those that wait.
    pub(super) fn next_waiting(&mut self, id: VersionId) -> Option<InvocationId> {
        let slot = self.queueing.next(&self.versions[id.0 as usize].line)?;
        Some(self.calls.at(slot))
    }
}
