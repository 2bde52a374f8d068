//! How many bytes the bodies of waiting calls may take, shared between namespaces: [`Budget`].
//!
//! Pure: what is asked for and given back goes in, and whether there is room comes out.
//!
//! A namespace may take up to [`SHARE`] times what is free *after* it has taken: the dynamic thresholds by
//! which switches share their memory between ports (A. Choudhury, E. Hahne, Dynamic Queue Length
//! Thresholds for Shared-Memory Packet Switches, IEEE/ACM ToN 1998). So one that floods gets two thirds of
//! a budget that nobody else uses, never all of it; a newcomer gets two thirds of what the others have
//! left; and no share has to be set for a namespace that may never be called.

use std::collections::BTreeMap;

/// How many times what is free one namespace may hold.
const SHARE: u64 = 2;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Budget {
    total: u64,
    used: u64,
    /// What namespaces hold, if they hold anything.
    held: BTreeMap<Box<str>, u64>,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The namespace holds as much as its bound allows, this many bytes.
    Bound(u64),
    /// It holds as much as it may, beside what all hold together: this many bytes.
    Shared(u64),
}

impl Budget {
    pub(super) fn new(total: u64) -> Self {
        Budget { total, used: 0, held: BTreeMap::new() }
    }

    /// Takes bytes for a namespace with this bound of its own.
    ///
    /// # Errors
    ///
    /// There is no room for all of them; nothing is taken then.
    pub(super) fn take(
        &mut self,
        namespace: &str,
        bytes: u64,
        bound: Option<u64>,
    ) -> Result<(), Full> {
        let held = self.held.get(namespace).copied().unwrap_or(0);
        let wanted = held.saturating_add(bytes);
        if let Some(bound) = bound.filter(|bound| wanted > *bound) {
            return Err(Full::Bound(bound));
        }
        let free = self.total.saturating_sub(self.used).checked_sub(bytes);
        if free.is_none_or(|free| wanted > free.saturating_mul(SHARE)) {
            return Err(Full::Shared(self.used));
        }
        self.used += bytes;
        match self.held.get_mut(namespace) {
            Some(held) => *held = wanted,
            None => drop(self.held.insert(namespace.into(), wanted)),
        }
        Ok(())
    }

    /// Gives back what was taken.
    pub(super) fn give(&mut self, namespace: &str, bytes: u64) {
        self.used -= bytes;
        let held = self.held.get_mut(namespace).expect("it was taken");
        *held -= bytes;
        if *held == 0 {
            self.held.remove(namespace);
        }
    }

    /// What is taken, bytes.
    pub(super) fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOTAL: u64 = 81_000;

    const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

    #[test]
    fn a_flood_leaves_a_third_and_a_newcomer_gets_two_thirds_of_that() {
        let mut budget = Budget::new(TOTAL);
        let fill = |budget: &mut Budget, who| {
            (0..).take_while(|_| budget.take(NAMES[who], 1000, None).is_ok()).count()
        };
        assert_eq!([fill(&mut budget, 1), fill(&mut budget, 2), fill(&mut budget, 3)], [54, 18, 6]);
        assert_eq!(budget.take(NAMES[1], 1, None), Err(Full::Shared(78_000)));
        assert_eq!(budget.take(NAMES[4], 1000, Some(999)), Err(Full::Bound(999)));
        for _ in 0..54 {
            budget.give(NAMES[1], 1000);
        }
        assert_eq!(fill(&mut budget, 2), 32);
        assert_eq!(budget.take(NAMES[1], u64::MAX, None), Err(Full::Shared(56_000)));
    }

    proptest! {
        /// Nothing is lost or oversold, and whatever others do, each of them leaves a newcomer a third.
        #[test]
        fn what_is_taken_is_held_and_no_flood_takes_the_newcomer_s_share(
            steps in proptest::collection::vec((0..3usize, 1..4000u64, 0..4u8), 1..400),
        ) {
            let mut budget = Budget::new(TOTAL);
            let mut held: Vec<Vec<u64>> = vec![Vec::new(); 3];
            let mut ever = [false; 3];
            for (who, bytes, what) in steps {
                let own = &mut held[who];
                if what == 0 {
                    if let Some(bytes) = own.pop() {
                        budget.give(NAMES[who], bytes);
                    }
                } else if budget.take(NAMES[who], bytes, Some(TOTAL / 2)).is_ok() {
                    own.push(bytes);
                    ever[who] = true;
                }
                let sums: Vec<u64> = held.iter().map(|own| own.iter().sum()).collect();
                prop_assert_eq!(budget.used(), sums.iter().sum::<u64>());
                prop_assert!(budget.used() < TOTAL);
                prop_assert!(sums.iter().all(|sum| *sum <= TOTAL / 2));
                let floods = ever.iter().filter(|ever| **ever).count() as u32;
                let left = TOTAL / 3u64.pow(floods) - u64::from(floods);
                prop_assert!(TOTAL - budget.used() >= left);
                prop_assert!(budget.take(NAMES[4], left * 2 / 3 - 1, None).is_ok());
                budget.give(NAMES[4], left * 2 / 3 - 1);
            }
            for (who, own) in held.into_iter().enumerate() {
                own.into_iter().for_each(|bytes| budget.give(NAMES[who], bytes));
            }
            prop_assert!(budget.used() == 0 && budget.held.is_empty());
        }
    }
}
