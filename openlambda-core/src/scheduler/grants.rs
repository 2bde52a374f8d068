//! Grants wishes for memory: starts instances, and makes room for them.

use super::version::Code;
use super::wishes::Wish;
use super::{Action, EvictReason, Scheduler, VersionId};
use crate::time::Time;

impl Scheduler {
    /// Takes back wishes that nothing waits for any more, the latest first.
    pub(super) fn drop_surplus_wishes(&mut self, id: VersionId) {
        let version = &mut self.versions[id.0 as usize];
        if version.wishes.count() > 0 {
            let calls = self.queueing.limiter.calls();
            let wanted = version.code.limits().map_or(0, |limits| version.wanted(limits, calls));
            self.wishes.shrink(&mut version.wishes, wanted);
        }
    }

    /// Starts instances in the order of the wishes while there is memory, or resumes those that gave
    /// some back, and evicts idle ones until the first wish fits.
    pub(super) fn serve_wishes(&mut self, now: Time) {
        while self.grant(now) {}
    }

    /// Grants the first wish, if there is one and what it takes. Returns whether anything has changed so
    /// that the next one may be granted.
    pub(super) fn grant(&mut self, now: Time) -> bool {
        let newest_first = self.queueing.newest_first();
        let Some(Wish { version: id, .. }) = self.wishes.first(newest_first) else { return false };
        let version = &mut self.versions[id.0 as usize];
        let paused = self.instances.paused(version.paused).next();
        if version.code.limits().is_some()
            && version.waiting > version.promised
            && let Some(paused) = paused
        {
            let missing = self.instances[paused].missing();
            if !self.pool.take(missing) {
                self.make_room(now, missing);
                return false;
            }
            self.wishes.pop(&mut version.wishes, newest_first);
            self.resume(paused);
            return true;
        }
        if self.starting >= self.config.max_starting {
            return false;
        }
        let (memory, slots) = match &version.code {
            Code::Ready(limits) => (limits.memory, limits.slots),
            Code::Gone(_) | Code::Unknown | Code::Fetching => {
                // The folder is needed again; the wishes are made anew when it is there.
                version.code = Code::Fetching;
                self.actions.push_back(Action::Fetch { version: id });
                self.drop_surplus_wishes(id);
                return true;
            }
        };
        if !self.pool.take(memory) {
            self.make_room(now, memory);
            return false;
        }
        self.wishes.pop(&mut version.wishes, newest_first);
        version.instances += 1;
        version.promised += slots;
        if version.instances >= version.prewarm {
            version.prewarm = 0;
        }
        self.starting += 1;
        let instance = self.instances.start(now, id, version, memory, slots);
        self.actions.push_back(Action::Start { instance, version: id });
        true
    }

    fn make_room(&mut self, now: Time, bytes: u64) {
        while self.pool.free() + self.ending_bytes < bytes {
            let Some(victim) = self.keep_alive.victim(now) else { return };
            self.evict(now, victim, EvictReason::Memory);
        }
    }

    /// Whether a version must give up a free instance: somebody else has waited for memory for too
    /// long, and what is ending already does not suffice.
    pub(super) fn must_yield(&self, now: Time, version: VersionId) -> bool {
        let first = self.wishes.first(self.queueing.newest_first());
        let Some(Wish { version: wisher, since, .. }) = first else { return false };
        let limits = self.versions[wisher.0 as usize].code.limits();
        let needs = limits.map_or(0, |limits| limits.memory);
        wisher != version
            && now.since(since) > self.config.fairness
            && self.pool.free() + self.ending_bytes + self.retiring_bytes < needs
    }
}
