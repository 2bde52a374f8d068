//! Grants wishes for memory: starts instances, and evicts others to make room for them.

use super::instances::{Instance, State};
use super::life::is_idle;
use super::shares::Turn;
use super::version::Code;
use super::wishes::Wish;
use super::{Action, EvictReason, NamespaceId, Scheduler, VersionId};
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
        self.queueing.wishing.set(version.namespace, id, key);
    }

    /// Whose wish is served next, and its turn (`None`: before all others). In the order of the queue policy; without a
    /// limit of running calls, memory is all that a wish waits for, and one that has done so for too long
    /// comes first, whatever the order.
    pub(super) fn next_wish(&mut self, now: Time) -> Option<(Option<Turn>, Wish)> {
        let oldest = self.wishes.oldest()?;
        if !self.queueing.orders {
            return Some((None, oldest));
        }
        // Between namespaces age is no claim: whoever floods has the oldest.
        let overdue = now.since(oldest.since) > self.config.fairness && !self.shares.several();
        if overdue && !self.queueing.limiter.limits() {
            return Some((None, oldest));
        }
        let turn = self.queueing.wishing.first(&self.shares, self.queueing.scarce(), true)?;
        let wish = self.wishes.oldest_of(&self.versions[turn.version.0 as usize].wishes)?;
        Some((Some(turn), wish))
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
        let namespace = version.namespace;
        let paused = self.instances.paused(version.paused).next();
        let free = self.instances.free_slots(version, version.waiting);
        if version.code.limits().is_some()
            && version.waiting > version.promised + free
            && let Some(paused) = paused
        {
            let missing = self.instances[paused].missing();
            if self.shares.counts() && !self.shares.fits(namespace, missing, false) {
                return self.make_room_within(now, namespace, id, missing);
            }
            if !self.take_memory(namespace, missing) {
                self.make_room(now, missing);
                return false;
            }
            self.wishes.pop(&mut self.versions[id.0 as usize].wishes);
            self.resume(paused);
            self.enter_wishing(id);
            return true;
        }
        if self.starting >= self.config.max_starting {
            return false;
        }
        let limits = match version.code {
            Code::Ready(limits) => limits,
            Code::Gone(_) | Code::Unknown | Code::Fetching => {
                // The folder is needed again; the wishes are made anew when it is there.
                version.code = Code::Fetching;
                self.actions.push_back(Action::Fetch { version: id });
                self.drop_surplus_wishes(id);
                return true;
            }
        };
        let memory = limits.memory;
        if self.shares.counts() && !self.shares.fits(namespace, memory, false) {
            return self.make_room_within(now, namespace, id, memory);
        }
        if !self.take_memory(namespace, memory) {
            self.make_room(now, memory);
            return false;
        }
        if self.shares.several() {
            self.shares.starts(namespace);
        }
        let version = &mut self.versions[id.0 as usize];
        self.wishes.pop(&mut version.wishes);
        version.instances += 1;
        version.promised += limits.slots;
        if version.instances >= version.prewarm {
            version.prewarm = 0;
        }
        self.starting += 1;
        let instance = self.instances.start(now, id, version, &limits);
        self.actions.push_back(Action::Start { instance, version: id });
        self.enter_wishing(id);
        true
    }

    fn make_room(&mut self, now: Time, bytes: u64) {
        let coming = |it: &Self| it.pool.free() + it.ending_bytes + it.lowering_bytes;
        // What paused instances do not use costs nobody a start.
        while coming(self) < bytes
            && let Some(spares) = self.instances.spare(|_| true)
        {
            self.lower(spares);
        }
        while coming(self) < bytes {
            let Some(victim) = self.keep_alive.victim(now) else { return };
            self.evict(now, victim, EvictReason::Memory);
        }
    }

    /// The same within a namespace's own share, for a wish of this version: its own idle instances end. Returns
    /// whether the wishes of others are to be looked at.
    fn make_room_within(
        &mut self,
        now: Time,
        namespace: NamespaceId,
        first: VersionId,
        bytes: u64,
    ) -> bool {
        while !self.shares.fits(namespace, bytes, true) {
            let versions = &self.versions;
            let own = |of: &Instance| versions[of.version.0 as usize].namespace == namespace;
            let Some(spares) = self.instances.spare(own) else { break };
            self.lower(spares);
        }
        while !self.shares.fits(namespace, bytes, true) {
            let versions = &self.versions;
            let own = |of: &Instance| {
                is_idle(of) && versions[of.version.0 as usize].namespace == namespace
            };
            let idle = self.instances.filter(own);
            // Whose end would come first, or who is there for longest.
            let first = idle.into_iter().min_by_key(|id| {
                let instance = &self.instances[*id];
                (instance.expire_at.is_none(), instance.expire_at, instance.serial)
            });
            let Some(victim) = first else { break };
            self.evict(now, victim, EvictReason::Memory);
        }
        self.shares.set_full(namespace, first);
        self.shares.several()
    }

    /// Takes memory for an instance from the pool, if so much is free.
    pub(super) fn take_memory(&mut self, namespace: NamespaceId, bytes: u64) -> bool {
        let taken = self.pool.take(bytes);
        if taken && self.shares.counts() {
            self.shares.takes(namespace, bytes);
        }
        taken
    }

    /// Gives memory of an instance of the version back.
    pub(super) fn give_memory_back(&mut self, version: VersionId, bytes: u64) {
        self.pool.give_back(bytes);
        if self.shares.counts() {
            self.shares.gives_back(self.versions[version.0 as usize].namespace, bytes);
        }
    }

    /// What instances take is of interest from now on.
    pub(super) fn count_memory(&mut self) {
        for id in self.instances.filter(|of| of.state() != State::Gone) {
            let of = &self.instances[id];
            let namespace = self.versions[of.version.0 as usize].namespace;
            self.shares.takes(namespace, of.memory);
            if of.retiring || matches!(of.state(), State::Ending | State::Cancelling) {
                self.shares.is_ending(namespace, of.memory);
            } else if of.lowering {
                self.shares.is_ending(namespace, of.spare);
            }
        }
    }

    /// Whether a version must give up a free instance: another version waits for memory whose namespace has
    /// less, or has waited for too long, and what is ending already does not suffice.
    pub(super) fn must_yield(&mut self, now: Time, version: VersionId) -> bool {
        if self.wishes.is_empty() {
            return false;
        }
        let fairness = self.config.fairness;
        let it = &mut self.versions[version.0 as usize];
        let own = it.namespace;
        if !self.queueing.orders {
            // It has an instance, so that its calls are served; who has none would wait behind it for ever.
            self.wishes.defer(&mut it.wishes, version, fairness, now);
        }
        let next = self.next_wish(now).map(|(_, wish)| wish);
        [self.wish_of(own), next]
            .into_iter()
            .flatten()
            .any(|wish| self.yields_to(now, version, wish))
    }

    /// Whether it must for this wish.
    fn yields_to(&self, now: Time, version: VersionId, wish: Wish) -> bool {
        let Wish { version: wisher, since } = wish;
        if wisher == version {
            return false;
        }
        let memory = |id: VersionId| {
            let limits = self.versions[id.0 as usize].code.limits();
            limits.map_or(0, |limits| limits.memory)
        };
        let needs = memory(wisher);
        let own = self.versions[version.0 as usize].namespace;
        let its = self.versions[wisher.0 as usize].namespace;
        // More even with it than without.
        let has_less = its != own
            && self.shares.memory(its) + needs + memory(version) <= self.shares.memory(own);
        let coming = self.ending_bytes
            + self.retiring_bytes
            + self.lowering_bytes
            + self.instances.spare_bytes();
        (has_less || now.since(since) > self.config.fairness)
            && (self.pool.free() + coming < needs
                || its == own && !self.shares.fits(its, needs, true))
    }

    /// The first wish of a namespace that has all the memory that it may have.
    fn wish_of(&self, namespace: NamespaceId) -> Option<Wish> {
        if !self.shares.counts() {
            return None;
        }
        let wish = match self.queueing.orders {
            true => {
                let id = self.queueing.wishing.first_of(namespace)?;
                self.wishes.oldest_of(&self.versions[id.0 as usize].wishes)?
            }
            false => self.wishes.oldest()?,
        };
        self.shares.is_full(namespace, wish.version).then_some(wish)
    }
}
