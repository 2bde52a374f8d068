//! Wishes for memory for one more instance: first come, first served over all functions, and taken
//! back latest first by the function that made them.

use super::version::Code;
use super::{Action, EvictReason, Scheduler, VersionId};
use crate::arena::{List, Lists};
use crate::time::Time;

/// The wishes of all versions in their order. Every operation is O(1).
#[derive(Debug, Default)]
pub(super) struct Wishes {
    wishes: Vec<Wish>,
    free: Vec<u32>,
    links: Lists,
    order: List,
}

#[derive(Clone, Copy, Debug)]
struct Wish {
    version: VersionId,
    since: Time,
    /// The wish that this version made before, if this is not its first.
    older: u32,
}

/// What a version knows of its wishes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    count: u32,
    /// The latest, if there is one.
    newest: u32,
}

impl Own {
    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

impl Wishes {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whose turn it is, and since when it wishes.
    pub(super) fn first(&self) -> Option<(VersionId, Time)> {
        let wish = self.wishes[self.order.first()? as usize];
        Some((wish.version, wish.since))
    }

    /// The version makes one more.
    pub(super) fn push(&mut self, own: &mut Own, version: VersionId, now: Time) {
        let wish = Wish { version, since: now, older: own.newest };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.wishes[slot as usize] = wish;
                slot
            }
            None => {
                self.wishes.push(wish);
                self.wishes.len() as u32 - 1
            }
        };
        self.links.push_back(&mut self.order, slot);
        *own = Own { count: own.count + 1, newest: slot };
    }

    /// The first one is granted. It is the oldest of its version, whose `own` must be given.
    pub(super) fn pop(&mut self, own: &mut Own) {
        if let Some(slot) = self.order.first() {
            self.remove(slot);
            own.count -= 1;
        }
    }

    /// The version takes its latest ones back until it has this many.
    pub(super) fn shrink(&mut self, own: &mut Own, count: u32) {
        while own.count > count {
            let older = self.wishes[own.newest as usize].older;
            self.remove(own.newest);
            *own = Own { count: own.count - 1, newest: older };
        }
    }

    fn remove(&mut self, slot: u32) {
        self.links.remove(&mut self.order, slot);
        self.free.push(slot);
    }
}

impl Scheduler {
    /// Takes back wishes that nothing waits for any more, the latest first.
    pub(super) fn drop_surplus_wishes(&mut self, id: VersionId) {
        let version = &mut self.versions[id.0 as usize];
        if version.wishes.count() > 0 {
            let wanted = version.code.limits().map_or(0, |limits| version.wanted(limits));
            self.wishes.shrink(&mut version.wishes, wanted);
        }
    }

    /// Starts instances in the order of the wishes while there is memory, or resumes those that gave
    /// some back, and evicts idle ones until the first wish fits.
    pub(super) fn serve_wishes(&mut self, now: Time) {
        while let Some((id, _)) = self.wishes.first() {
            let version = &mut self.versions[id.0 as usize];
            let paused = self.instances.paused(version.paused).next();
            if version.code.limits().is_some()
                && version.waiting > version.promised
                && let Some(paused) = paused
            {
                let missing = self.instances[paused].missing();
                if !self.pool.take(missing) {
                    self.make_room(now, missing);
                    return;
                }
                self.wishes.pop(&mut version.wishes);
                self.resume(paused);
                continue;
            }
            if self.starting >= self.config.max_starting {
                return;
            }
            let (memory, slots) = match &version.code {
                Code::Ready(limits) => (limits.memory, limits.slots),
                Code::Gone(_) | Code::Unknown | Code::Fetching => {
                    // The folder is needed again; the wishes are made anew when it is there.
                    version.code = Code::Fetching;
                    self.actions.push_back(Action::Fetch { version: id });
                    self.drop_surplus_wishes(id);
                    continue;
                }
            };
            if !self.pool.take(memory) {
                self.make_room(now, memory);
                return;
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
        }
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
        let Some((wisher, since)) = self.wishes.first() else { return false };
        let limits = self.versions[wisher.0 as usize].code.limits();
        let needs = limits.map_or(0, |limits| limits.memory);
        wisher != version
            && now.since(since) > self.config.fairness
            && self.pool.free() + self.ending_bytes + self.retiring_bytes < needs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn wishes_are_as_in_a_vector(
            ops in proptest::collection::vec((0..4usize, 0..5u32), 1..200),
        ) {
            let mut wishes = Wishes::default();
            let mut owns = [Own::default(); 3];
            let mut model: Vec<(VersionId, Time)> = Vec::new();
            for (n, (version, count)) in ops.into_iter().enumerate() {
                let id = VersionId(version as u32);
                match (owns.get_mut(version), wishes.first()) {
                    (Some(own), _) if count > own.count() => {
                        wishes.push(own, id, Time(n as u64));
                        model.push((id, Time(n as u64)));
                    }
                    (Some(own), _) => {
                        wishes.shrink(own, count);
                        while model.iter().filter(|wish| wish.0 == id).count() > count as usize {
                            model.remove(model.iter().rposition(|wish| wish.0 == id).unwrap());
                        }
                    }
                    (None, Some((first, _))) => {
                        wishes.pop(&mut owns[first.0 as usize]);
                        model.remove(0);
                    }
                    (None, None) => {}
                }
                prop_assert_eq!(wishes.first(), model.first().copied());
                prop_assert_eq!(wishes.is_empty(), model.is_empty());
                for (own, version) in owns.iter().zip(0..) {
                    let expected = model.iter().filter(|wish| wish.0.0 == version).count();
                    prop_assert_eq!(own.count() as usize, expected);
                }
            }
        }
    }
}
