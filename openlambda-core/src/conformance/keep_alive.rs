//! What every keep-alive policy must do, checked over many random histories.
//!
//! Call [`check`] from a test of the policy:
//!
//! ```
//! use openlambda_core::keep_alive::Lru;
//!
//! openlambda_core::conformance::keep_alive::check(|| Box::new(Lru::default()));
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use super::times;
use crate::keep_alive::{InstanceFacts, KeepAlivePolicy};
use crate::random::Rng;
use crate::scheduler::{InstanceId, VersionId};
use crate::time::Time;

/// Histories that [`check`] runs, [`times`] so many.
const HISTORIES: u64 = 60;

/// What happens in one of them.
const STEPS: u64 = 400;

/// A policy with more wishes than this at one time counts as endless.
const MOST_WISHES: usize = 10_000;

/// Holds a policy to the contract of [`KeepAlivePolicy`].
///
/// The histories are random: instances start, for a call or an expected one, are used, rest, end by
/// themselves, when their time is up or when memory is short; and their ids are used again.
///
/// 1. the victim is an idle instance, and there is one exactly when any instance is idle;
/// 2. asking for the victim changes nothing;
/// 3. it wishes only for versions that it has observed, its wishes end, and its next wake-up is later than
///    now;
/// 4. the same history gives the same answers.
///
/// # Panics
///
/// When the policy does not, with the seed and the step.
pub fn check(make: impl Fn() -> Box<dyn KeepAlivePolicy>) {
    for seed in 0..HISTORIES * times() {
        let first = History::new(make(), seed).run();
        let again = History::new(make(), seed).run();
        let differs = first.iter().zip(&again).position(|(a, b)| a != b);
        assert!(
            first == again,
            "seed {seed}: the same history got other answers, first at {differs:?}; draw no \
             randomness, and iterate over ordered maps"
        );
    }
}

/// What a policy said.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Until(Option<Time>),
    Victim(Option<InstanceId>),
    Wish(Option<VersionId>),
}

#[derive(Clone, Copy, Debug)]
enum State {
    InUse,
    /// Until when.
    Idle(Option<Time>),
}

struct History {
    policy: Box<dyn KeepAlivePolicy>,
    seed: u64,
    step: u64,
    rng: Rng,
    now: Time,
    instances: BTreeMap<InstanceId, State>,
    /// How many instances each slot has had.
    generations: Vec<u64>,
    answers: Vec<Answer>,
}

impl History {
    /// Versions that there are. Few, so that most have several instances.
    const VERSIONS: usize = 6;
    /// Instances at once.
    const MOST: usize = 12;

    fn new(policy: Box<dyn KeepAlivePolicy>, seed: u64) -> Self {
        History {
            policy,
            seed,
            step: 0,
            rng: Rng::from_seed_and_label(seed, "keep-alive"),
            now: Time::ZERO,
            instances: BTreeMap::new(),
            generations: vec![0; Self::MOST],
            answers: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<Answer> {
        for step in 0..STEPS {
            self.step = step;
            match self.rng.below(16) {
                0..=2 => {
                    let version = VersionId(self.rng.below(Self::VERSIONS) as u32);
                    if let Some(instance) = self.start(version) {
                        self.invoked(instance);
                    }
                }
                3..=6 => self.rest(),
                7..=9 => {
                    if let Some(instance) = self.any(|state| matches!(state, State::Idle(_))) {
                        self.policy.used(instance, self.now);
                        self.instances.insert(instance, State::InUse);
                        self.invoked(instance);
                    }
                }
                10 => {
                    if let Some(instance) = self.any(|state| matches!(state, State::InUse)) {
                        self.invoked(instance);
                    }
                }
                11 => {
                    if let Some(instance) = self.any(|_| true) {
                        self.end(instance);
                    }
                }
                12 => {
                    if let Some(victim) = self.victim() {
                        self.end(victim);
                    }
                }
                _ => self.wait(),
            }
            self.victim();
        }
        while let Some(victim) = self.victim() {
            self.end(victim);
        }
        while let Some(instance) = self.any(|_| true) {
            self.end(instance);
        }
        self.victim();
        self.answers
    }

    fn start(&mut self, version: VersionId) -> Option<InstanceId> {
        let free = |slot: &usize| self.instances.keys().all(|id| id.0 as u32 as usize != *slot);
        let slot = (0..Self::MOST).find(free)?;
        let instance = InstanceId(self.generations[slot] << 32 | slot as u64);
        self.generations[slot] += 1;
        let memory = (1 + self.rng.below(4) as u64) * (64 << 20);
        let start_cost = Duration::from_millis(self.rng.below(1_000) as u64);
        self.policy.started(instance, &InstanceFacts { version, memory, start_cost }, self.now);
        self.instances.insert(instance, State::InUse);
        Some(instance)
    }

    fn invoked(&mut self, instance: InstanceId) {
        self.policy.invoked(instance, self.now, self.now);
    }

    fn rest(&mut self) {
        if let Some(instance) = self.any(|state| matches!(state, State::InUse)) {
            self.set_idle(instance);
        }
    }

    fn set_idle(&mut self, instance: InstanceId) {
        let until = self.policy.idle(instance, self.now);
        self.answers.push(Answer::Until(until));
        self.instances.insert(instance, State::Idle(until));
    }

    fn end(&mut self, instance: InstanceId) {
        self.policy.ended(instance, self.now);
        self.instances.remove(&instance);
    }

    /// Some time passes, from nothing to hours; instances whose time is up are evicted, and wishes are granted.
    fn wait(&mut self) {
        let longest = [1, 1_000, 60_000, 10_000_000][self.rng.below(4)];
        self.now += Duration::from_millis(self.rng.below(longest) as u64);
        let over = |state: &State| matches!(state, State::Idle(Some(until)) if *until <= self.now);
        let over: Vec<_> =
            self.instances.iter().filter(|(_, state)| over(state)).map(|(id, _)| *id).collect();
        for instance in over {
            self.end(instance);
        }
        for _ in 0..MOST_WISHES {
            let wish = self.policy.prewarm(self.now);
            self.answers.push(Answer::Wish(wish));
            let Some(version) = wish else {
                let next = self.policy.next_wakeup();
                self.demand(next.is_none_or(|next| next > self.now), || {
                    format!("it has no wish now, and wants to be asked at {next:?}, which is over")
                });
                return;
            };
            self.demand((version.0 as usize) < Self::VERSIONS, || {
                format!("it wishes for {version:?}, which it was not told of")
            });
            // The scheduler may have no room for it.
            if self.rng.chance(0.5)
                && let Some(instance) = self.start(version)
            {
                self.set_idle(instance);
            }
        }
        self.demand(false, || format!("it has more than {MOST_WISHES} wishes at one time"));
    }

    fn victim(&mut self) -> Option<InstanceId> {
        let victim = self.policy.victim(self.now);
        let again = self.policy.victim(self.now);
        self.demand(victim == again, || {
            format!("its victim was {victim:?}, and when asked again {again:?}")
        });
        let idle = |id: &InstanceId| matches!(self.instances.get(id), Some(State::Idle(_)));
        let any = self.instances.keys().any(idle);
        self.demand(victim.is_none_or(|victim| idle(&victim)), || {
            format!("its victim is {victim:?}, which is not idle")
        });
        self.demand(victim.is_some() == any, || match any {
            true => "it has no victim, and an instance is idle".to_owned(),
            false => format!("its victim is {victim:?}, and no instance is idle"),
        });
        self.answers.push(Answer::Victim(victim));
        victim
    }

    /// An instance in such a state, by chance.
    fn any(&mut self, of: impl Fn(&State) -> bool) -> Option<InstanceId> {
        let found: Vec<_> =
            self.instances.iter().filter(|(_, state)| of(state)).map(|(id, _)| *id).collect();
        if found.is_empty() { None } else { Some(found[self.rng.below(found.len())]) }
    }

    fn demand(&self, kept: bool, what: impl Fn() -> String) {
        assert!(kept, "seed {}, step {}, at {:?}: {}", self.seed, self.step, self.now, what());
    }
}
