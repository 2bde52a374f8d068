//! Grants wishes for memory: starts instances, and evicts others to make room for them.

use super::order::Key;
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
            let free = self.instances.free_slots(version, version.waiting);
            let wanted =
                version.code.limits().map_or(0, |limits| version.wanted(limits, calls, free));
            self.wishes.shrink(&mut version.wishes, wanted);
            self.enter_wishing(id);
        }
    }

    /// A version is entered among those that wish, at the place of the call that it wishes for.
    pub(super) fn enter_wishing(&mut self, id: VersionId) {
        if !self.queueing.orders {
            return;
        }
        let version = &self.versions[id.0 as usize];
        let key = (version.wishes.count() > 0).then(|| {
            let free = self.instances.free_slots(version, version.waiting);
            self.queueing.wish_key(&version.line, version.promised.saturating_add(free))
        });
        self.queueing.wishing.set(id, key);
    }

    /// Whose wish is served next, and the place of its call. In the order of the queue policy; without a
    /// limit of running calls, memory is all that a wish waits for, and one that has done so for too long
    /// comes first, whatever the order.
    pub(super) fn next_wish(&mut self, now: Time) -> Option<(Key, Wish)> {
        let oldest = self.wishes.oldest()?;
        let first = Key { rank: 0, number: 0 };
        if !self.queueing.orders {
            return Some((first, oldest));
        }
        let overdue = now.since(oldest.since) > self.config.fairness;
        if overdue && !self.queueing.limiter.limits() {
            return Some((first, oldest));
        }
        let (key, id) = self.queueing.wishing.first()?;
        let wish = self.wishes.oldest_of(&self.versions[id.0 as usize].wishes)?;
        Some((key, wish))
    }

    /// Starts instances in the order of the wishes while there is memory, or resumes those that gave
    /// some back, and evicts idle ones until the first wish fits.
    pub(super) fn serve_wishes(&mut self, now: Time) {
        while let Some((_, wish)) = self.next_wish(now)
            && self.grant(now, wish.version)
        {}
    }

    /// Grants a version's wish, if there is what it takes. Returns whether anything has changed so that
    /// the next one may be granted.
    pub(super) fn grant(&mut self, now: Time, id: VersionId) -> bool {
        let version = &mut self.versions[id.0 as usize];
        let paused = self.instances.paused(version.paused).next();
        let free = self.instances.free_slots(version, version.waiting);
        if version.code.limits().is_some()
            && version.waiting > version.promised + free
            && let Some(paused) = paused
        {
            let missing = self.instances[paused].missing();
            if !self.pool.take(missing) {
                self.make_room(now, missing);
                return false;
            }
            self.wishes.pop(&mut version.wishes);
            self.resume(paused);
            self.enter_wishing(id);
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
        self.wishes.pop(&mut version.wishes);
        version.instances += 1;
        version.promised += slots;
        if version.instances >= version.prewarm {
            version.prewarm = 0;
        }
        self.starting += 1;
        let instance = self.instances.start(now, id, version, memory, slots);
        self.actions.push_back(Action::Start { instance, version: id });
        self.enter_wishing(id);
        true
    }

    fn make_room(&mut self, now: Time, bytes: u64) {
        while self.pool.free() + self.ending_bytes < bytes {
            let Some(victim) = self.keep_alive.victim(now) else { return };
            self.evict(now, victim, EvictReason::Memory);
        }
    }

    /// Whether a version must give up a free instance: another version has waited for memory for too
    /// long, and what is ending already does not suffice.
    pub(super) fn must_yield(&mut self, now: Time, version: VersionId) -> bool {
        let Some((_, Wish { version: wisher, since })) = self.next_wish(now) else { return false };
        let limits = self.versions[wisher.0 as usize].code.limits();
        let needs = limits.map_or(0, |limits| limits.memory);
        wisher != version
            && now.since(since) > self.config.fairness
            && self.pool.free() + self.ending_bytes + self.retiring_bytes < needs
    }
}
