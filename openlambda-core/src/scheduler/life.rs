//! The life of an instance, as `scheduler/mod.rs` draws it: it becomes ready, rests, is paused and
//! resumed, and ends.

use std::time::Duration;

use super::instances::{Instance, State};
use super::timers::Timer;
use super::{Action, EvictReason, InstanceId, Rejection, ReservationEnd, Scheduler, VersionId};
use crate::invocation::StartKind;
use crate::keep_alive::InstanceFacts;
use crate::time::Time;

/// When an instance is looked at again that calls may need although it rests.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Scheduler {
    pub(super) fn on_sandbox_ready(&mut self, now: Time, id: InstanceId, start: StartKind) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        match instance.state() {
            State::Starting => {}
            State::Cancelling => {
                self.instances.set_state(id, State::Ending);
                let why = EvictReason::Unwanted;
                self.actions.push_back(Action::Evict { instance: id, why });
                return;
            }
            _ => return,
        }
        instance.fresh = Some(start);
        let (version_id, slots, started) = (instance.version, instance.slots, instance.started);
        self.start_is_over(version_id, now.since(started));
        let instance = &self.instances[id];
        let facts = InstanceFacts {
            version: version_id,
            memory: instance.memory,
            start_cost: now.since(instance.started),
        };
        self.starting -= 1;
        self.keep_alive.started(id, &facts, now);
        self.comes_up(id, version_id, slots);
        // The place of its start is that of its first call.
        let places = self.places_in_use();
        if self.queueing.limiter.limits() && self.queueing.limiter.admits(places) {
            self.serve_next(now, version_id);
        }
        self.pump(now, version_id);
        if let Some(instance) = self.instances.get_mut(id) {
            instance.fresh = None;
        }
        self.rest(now, id);
    }

    /// An instance takes the place of a call no more.
    fn start_is_over(&mut self, version: VersionId, took: Duration) {
        if self.shares.several() {
            self.shares.started(self.versions[version.0 as usize].namespace, took);
        }
    }

    /// An instance has the slots that it has promised.
    fn comes_up(&mut self, id: InstanceId, version: VersionId, slots: u32) {
        self.instances.set_state(id, State::Up);
        let version = &mut self.versions[version.0 as usize];
        version.promised -= slots;
        self.instances.push_free(id, version, self.config.pick);
    }

    pub(super) fn on_sandbox_failed(&mut self, now: Time, id: InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        let (version_id, slots, memory) = (instance.version, instance.slots, instance.memory);
        let started = instance.started;
        match instance.state() {
            State::Starting => {
                self.starting -= 1;
                self.start_is_over(version_id, now.since(started));
                let version = &mut self.versions[version_id.0 as usize];
                version.promised -= slots;
                version.instances -= 1;
                version.prewarm = 0;
                // It was started for one invocation, and that one learns why it did not come. With
                // every failure one invocation fewer waits, so a function that never starts cannot
                // keep the worker busy for ever.
                if let Some(invocation) = self.next_waiting(version_id) {
                    self.reject_waiting(invocation, Rejection::StartFailed(id));
                }
            }
            State::Cancelling => self.is_gone(version_id, memory),
            _ => return,
        }
        self.instances.remove(id, &mut self.versions[version_id.0 as usize]);
        self.give_memory_back(version_id, memory);
        self.pump(now, version_id);
    }

    /// An unused instance rests: it may be paused, expire, or be evicted at once.
    pub(super) fn rest(&mut self, now: Time, id: InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        if instance.state() != State::Up || instance.used() > 0 {
            return;
        }
        let version_id = instance.version;
        if self.draining {
            return self.end_or_spare(now, id, EvictReason::Draining);
        }
        if self.versions[version_id.0 as usize].superseded {
            return self.end_or_spare(now, id, EvictReason::Superseded);
        }
        // One that was resumed but not needed after all has rested all the time.
        if !instance.resting {
            let until = self.keep_alive.idle(id, now);
            let needed =
                self.queueing.limiter.limits() && self.versions[version_id.0 as usize].waiting > 0;
            if until.is_some_and(|until| until <= now) && !needed {
                return self.evict(now, id, EvictReason::Expired);
            }
            let instance = &mut self.instances[id];
            instance.resting = true;
            let soon = if needed { now + LOOK_AGAIN } else { now };
            instance.expire_at = until.map(|until| until.max(soon));
            self.actions.push_back(Action::TellIdle { version: version_id });
            if self.shares.counts() {
                self.shares.rests(self.versions[version_id.0 as usize].namespace);
            }
        }
        let after = match self.instances[id].pause_after {
            Some(after) => after.time(),
            None => self.config.pause_after,
        };
        let pause = after.map(|after| (now + after, Timer::Pause));
        let expire = self.instances[id].expire_at.map(|at| (at, Timer::Expire));
        if let Some((at, timer)) = pause.into_iter().chain(expire).min() {
            self.timers.set(timer, id.slot(), at);
        }
    }

    /// It has rested so long that it is paused or ends, unless calls wait for their turn to run in it: then
    /// it is looked at again.
    fn rested(&mut self, now: Time, id: InstanceId, timer: Timer) {
        let instance = &mut self.instances[id];
        if self.versions[instance.version.0 as usize].waiting > 0 && self.queueing.limiter.limits()
        {
            return self.timers.set(timer, id.slot(), now + LOOK_AGAIN);
        }
        match timer {
            Timer::Pause => self.pause(id),
            _ => self.evict(now, id, EvictReason::Expired),
        }
    }

    fn pause(&mut self, id: InstanceId) {
        let instance = &self.instances[id];
        if let Some(at) = instance.expire_at {
            self.timers.set(Timer::Expire, id.slot(), at);
        }
        let version = &mut self.versions[instance.version.0 as usize];
        self.instances.set_state(id, State::Pausing);
        self.instances.remove_free(id, version);
        self.instances.push_paused(id, version);
        self.actions.push_back(Action::Pause { instance: id });
    }

    pub(super) fn on_paused(&mut self, id: InstanceId, spare: u64) {
        match self.instances.get(id).map(Instance::state) {
            Some(State::Wanted) => {
                self.actions.push_back(Action::Resume { instance: id });
                self.instances.set_state(id, State::Resuming);
            }
            Some(State::Pausing) => {
                self.instances.set_state(id, State::Paused);
                self.instances.has_spare(id, spare.min(self.instances[id].memory));
            }
            _ => {}
        }
    }

    /// A paused instance gives back what it can spare.
    pub(super) fn lower(&mut self, id: InstanceId) {
        self.instances.no_spare(id);
        let instance = &mut self.instances[id];
        instance.lowering = true;
        let (version, spare) = (instance.version, instance.spare);
        self.lowering_bytes += spare;
        if self.shares.counts() {
            self.shares.is_ending(self.versions[version.0 as usize].namespace, spare);
        }
        self.actions.push_back(Action::Lower { instance: id });
    }

    /// Nothing comes back from an instance by lowering its limit any more.
    fn is_lowered(&mut self, id: InstanceId) {
        self.instances.no_spare(id);
        let instance = &mut self.instances[id];
        let spare = std::mem::take(&mut instance.spare);
        if std::mem::take(&mut instance.lowering) {
            self.lowering_bytes -= spare;
            if self.shares.counts() {
                let namespace = self.versions[self.instances[id].version.0 as usize].namespace;
                self.shares.has_ended(namespace, spare);
            }
        }
    }

    pub(super) fn on_lowered(&mut self, id: InstanceId, bytes: u64) {
        if !self.instances.get(id).is_some_and(|it| it.lowering) {
            return;
        }
        self.is_lowered(id);
        let instance = &mut self.instances[id];
        let less = instance.memory.saturating_sub(bytes);
        instance.memory -= less;
        let version = instance.version;
        self.give_memory_back(version, less);
    }

    /// Wakes a paused instance; its memory has been taken.
    pub(super) fn resume(&mut self, id: InstanceId) {
        self.is_lowered(id);
        let instance = &mut self.instances[id];
        instance.memory = instance.full;
        let (state, slots) = (instance.state(), instance.slots);
        let version = &mut self.versions[instance.version.0 as usize];
        version.promised += slots;
        self.instances.remove_paused(id, version);
        if state == State::Pausing {
            self.instances.set_state(id, State::Wanted);
        } else {
            self.instances.set_state(id, State::Resuming);
            self.actions.push_back(Action::Resume { instance: id });
        }
    }

    pub(super) fn on_resumed(&mut self, now: Time, id: InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        if instance.state() != State::Resuming {
            return;
        }
        let (version, slots) = (instance.version, instance.slots);
        self.comes_up(id, version, slots);
        self.pump(now, version);
        self.rest(now, id);
    }

    /// Begins an instance's end, from whatever state it is in. Memory comes back when it is gone.
    pub(super) fn evict(&mut self, now: Time, id: InstanceId, why: EvictReason) {
        let Some(instance) = self.instances.get(id) else { return };
        let (before, version_id, slots) = (instance.state(), instance.version, instance.slots);
        let (after, action) = match before {
            State::Cancelling | State::Ending | State::Gone => return,
            State::Starting => (State::Cancelling, Action::CancelStart { instance: id }),
            State::Up | State::Pausing | State::Wanted | State::Paused | State::Resuming => {
                (State::Ending, Action::Evict { instance: id, why })
            }
        };
        if before == State::Paused {
            self.is_lowered(id);
        }
        let instance = &mut self.instances[id];
        let was_idle = std::mem::take(&mut instance.resting);
        let holds = !instance.offers.is_empty();
        let was_spent = std::mem::take(&mut instance.spent);
        if std::mem::take(&mut instance.retiring) {
            self.retiring_bytes -= instance.memory;
        } else if self.shares.counts() {
            let namespace = self.versions[version_id.0 as usize].namespace;
            self.shares.is_ending(namespace, instance.memory);
        }
        self.ending_bytes += instance.memory;
        instance.expire_at = None;
        self.timers.clear_instance(id.slot());
        self.instances.set_state(id, after);
        let version = &mut self.versions[version_id.0 as usize];
        version.instances -= 1;
        version.spent -= u32::from(was_spent);
        // A prewarm is a wish of the moment: what is evicted is not made again for its sake.
        version.prewarm = 0;
        match before {
            State::Up => self.instances.remove_free(id, version),
            State::Paused | State::Pausing => {
                self.instances.remove_paused(id, version);
            }
            State::Starting | State::Resuming | State::Wanted => {
                version.promised -= slots;
            }
            State::Cancelling | State::Ending | State::Gone => {}
        }
        if before == State::Starting {
            self.starting -= 1;
            let started = self.instances[id].started;
            self.start_is_over(version_id, now.since(started));
        } else {
            self.keep_alive.ended(id, now);
        }
        if holds {
            self.lose_slots(id);
        }
        self.actions.push_back(action);
        if was_idle {
            self.actions.push_back(Action::TellEvicted { version: version_id });
        }
        self.pump(now, version_id);
    }

    pub(super) fn on_destroyed(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        if !matches!(instance.state(), State::Ending | State::Cancelling) {
            return;
        }
        let (memory, used, version_id) = (instance.memory, instance.used(), instance.version);
        let version = &mut self.versions[version_id.0 as usize];
        if used > 0 {
            self.instances.set_state(id, State::Gone);
        } else {
            self.instances.remove(id, version);
        }
        self.is_gone(version_id, memory);
        self.give_memory_back(version_id, memory);
    }

    /// Nothing is left of an instance of the version that was ending.
    fn is_gone(&mut self, version: VersionId, bytes: u64) {
        self.ending_bytes -= bytes;
        if !self.shares.counts() {
            return;
        }
        self.shares.has_ended(self.versions[version.0 as usize].namespace, bytes);
    }

    /// Ends an idle instance, unless its version's calls wait for their turn alone: then it is there for
    /// them, and ends after that.
    fn end_or_spare(&mut self, now: Time, id: InstanceId, why: EvictReason) {
        let instance = &self.instances[id];
        let needed = self.versions[instance.version.0 as usize].waiting > 0;
        if needed && self.queueing.limiter.limits() && instance.state() == State::Up {
            if !self.spared.contains(&id) {
                self.spared.push(id);
            }
        } else {
            self.evict(now, id, why);
        }
    }

    /// Instances that are idle but were needed end when they are not needed any more.
    pub(super) fn end_spared(&mut self, now: Time) {
        if self.spared.is_empty() {
            return;
        }
        for id in std::mem::take(&mut self.spared) {
            self.rest(now, id);
        }
    }

    // Many at once.

    pub(super) fn on_superseded(&mut self, now: Time, id: VersionId) {
        let version = self.version(id);
        version.superseded = true;
        version.prewarm = 0;
        let waiting = version.waiting > 0;
        for instance in self.instances.filter(|of| of.version == id && is_idle(of)) {
            self.end_or_spare(now, instance, EvictReason::Superseded);
        }
        if !waiting {
            for instance in self.instances.filter(|of| of.version == id && is_starting(of)) {
                self.evict(now, instance, EvictReason::Superseded);
            }
        }
    }

    pub(super) fn on_prewarm(&mut self, now: Time, id: VersionId, instances: u32) {
        let (draining, pool) = (self.draining, self.pool.total());
        let version = self.version(id);
        let fits = version.code.limits().is_none_or(|limits| limits.memory <= pool);
        // An instance of a superseded version would be evicted as soon as it is ready.
        let wanted = !draining && !version.superseded;
        if wanted && fits && version.instances < instances {
            version.prewarm = instances;
            self.pump(now, id);
        }
    }

    pub(super) fn on_memory_pressure(&mut self, now: Time, bytes: u64) {
        let mut freed = 0;
        while freed < bytes
            && let Some(spares) = self.instances.spare(|_| true)
        {
            freed += self.instances[spares].spare;
            self.lower(spares);
        }
        while freed < bytes {
            let Some(victim) = self.keep_alive.victim(now) else { break };
            freed += self.instances[victim].memory;
            self.evict(now, victim, EvictReason::Memory);
        }
    }

    pub(super) fn on_drain(&mut self, now: Time) {
        self.draining = true;
        for version in &mut self.versions {
            version.prewarm = 0;
        }
        self.end_reservations(now);
        for instance in self.instances.filter(is_idle) {
            self.end_or_spare(now, instance, EvictReason::Draining);
        }
        for instance in self.instances.filter(is_starting) {
            let version = self.instances[instance].version;
            if self.versions[version.0 as usize].waiting == 0 {
                self.evict(now, instance, EvictReason::Draining);
            }
        }
    }

    /// Returns whether anything was due.
    pub(super) fn on_timeout(&mut self, now: Time) -> bool {
        let mut due = false;
        while let Some((timer, slot)) = self.timers.pop(now) {
            due = true;
            match timer {
                Timer::Wait => {
                    self.reject_waiting(self.calls.at(slot), Rejection::WaitedTooLong);
                }
                Timer::Offer => {
                    self.end_offer(now, self.calls.at(slot), ReservationEnd::NotTaken);
                }
                Timer::Run => self.expire(now, self.calls.at(slot)),
                Timer::Pause | Timer::Expire => {
                    self.rested(now, self.instances.at(slot), timer);
                }
            }
        }
        // After the timers: an instance that expires now is not one that the next call finds.
        while let Some(version) = self.keep_alive.prewarm(now) {
            due = true;
            self.on_prewarm(now, version, 1);
        }
        due
    }
}

pub(super) fn is_idle(instance: &Instance) -> bool {
    match instance.state() {
        State::Up => instance.used() == 0,
        State::Pausing | State::Paused => true,
        _ => false,
    }
}

fn is_starting(instance: &Instance) -> bool {
    instance.state() == State::Starting
}
