//! Wishes, each for memory for one more instance, in the order in which they were made. The scheduler
//! decides which is served first; a version withdraws its latest wishes first.

use std::time::Duration;

use super::VersionId;
use crate::arena::{List, Lists};
use crate::time::Time;

/// The wishes of all versions in their order. Every operation is O(1).
#[derive(Debug, Default)]
pub(super) struct Wishes {
    wishes: Vec<Wish>,
    free: Vec<u32>,
    order: List,
    order_links: Lists,
    /// Of each version.
    own_links: Lists,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) version: VersionId,
    pub(super) since: Time,
}

/// What a version knows of its wishes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Own {
    wishes: List,
}

impl Own {
    pub(super) fn count(&self) -> u32 {
        self.wishes.len()
    }
}

impl Wishes {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The one that was made first.
    pub(super) fn oldest(&self) -> Option<Wish> {
        self.order.first().map(|slot| self.wishes[slot as usize])
    }

    /// The first one that a version made, of those that it has.
    pub(super) fn oldest_of(&self, own: &Own) -> Option<Wish> {
        own.wishes.first().map(|slot| self.wishes[slot as usize])
    }

    /// The version makes one more.
    pub(super) fn push(&mut self, own: &mut Own, version: VersionId, now: Time) {
        let wish = Wish { version, since: now };
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
        self.order_links.push_back(&mut self.order, slot);
        self.own_links.push_back(&mut own.wishes, slot);
    }

    /// The version's oldest one is granted.
    pub(super) fn pop(&mut self, own: &mut Own) {
        if let Some(oldest) = own.wishes.first() {
            self.remove(own, oldest);
        }
    }

    /// Those of a version that come before all others and are older than this are made anew, behind the others'
    /// wishes; if there are no others, they stay.
    pub(super) fn defer(&mut self, own: &mut Own, version: VersionId, age: Duration, now: Time) {
        while let Some(first) = self.oldest()
            && first.version == version
            && now.since(first.since) > age
            && self.order.len() > own.count()
        {
            self.pop(own);
            self.push(own, version, now);
        }
    }

    /// The version takes its latest ones back until it has this many.
    pub(super) fn shrink(&mut self, own: &mut Own, count: u32) {
        while own.count() > count
            && let Some(newest) = own.wishes.last()
        {
            self.remove(own, newest);
        }
    }

    fn remove(&mut self, own: &mut Own, slot: u32) {
        self.order_links.remove(&mut self.order, slot);
        self.own_links.remove(&mut own.wishes, slot);
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn wishes_are_as_in_a_vector(
            ops in proptest::collection::vec((0..9usize, 0..5u32), 1..200),
        ) {
            let mut wishes = Wishes::default();
            let mut owns = [Own::default(); 3];
            let mut model: Vec<(VersionId, Time)> = Vec::new();
            for (n, (op, count)) in ops.into_iter().enumerate() {
                let (version, pops, defers) = (op % 3, op / 3 == 1, op / 3 == 2);
                let (own, id) = (&mut owns[version], VersionId(version as u32));
                if defers {
                    let age = u64::from(count);
                    wishes.defer(own, id, Duration::from_nanos(age), Time(n as u64));
                    while model.iter().any(|wish| wish.0 != id)
                        && model[0].0 == id
                        && n as u64 - model[0].1.as_nanos() > age
                    {
                        model.remove(0);
                        model.push((id, Time(n as u64)));
                    }
                } else if pops {
                    wishes.pop(own);
                    if let Some(at) = model.iter().position(|wish| wish.0 == id) {
                        model.remove(at);
                    }
                } else if count > own.count() {
                    wishes.push(own, id, Time(n as u64));
                    model.push((id, Time(n as u64)));
                } else {
                    wishes.shrink(own, count);
                    while model.iter().filter(|wish| wish.0 == id).count() > count as usize {
                        model.remove(model.iter().rposition(|wish| wish.0 == id).unwrap());
                    }
                }
                let told = |wish: Option<Wish>| wish.map(|wish| (wish.version, wish.since));
                prop_assert_eq!(told(wishes.oldest()), model.first().copied());
                prop_assert_eq!(wishes.is_empty(), model.is_empty());
                for (own, version) in owns.iter().zip(0..) {
                    let mut expected = model.iter().filter(|wish| wish.0.0 == version);
                    prop_assert_eq!(own.count() as usize, expected.clone().count());
                    prop_assert_eq!(told(wishes.oldest_of(own)), expected.next().copied());
                }
            }
        }
    }
}
