//! Whether a call that failed at one worker is tried on another: [`RetryRule`].
//!
//! The rule is the balancer's own and the same for every policy, in live traffic and in simulations;
//! [`Balancer::failed`](super::balancer::Balancer::failed) asks it. A call is tried again when
//!
//! 1. it cannot have started ([`Started::No`]): no call runs twice;
//! 2. another worker may succeed: this one could not be reached, drains, is full, cannot make the
//!    sandbox, or cannot reach the registry. A mistake in the request itself fails on every worker;
//! 3. it has been retried fewer than [`RetryConfig::most`] times;
//! 4. its body can be sent again;
//! 5. a worker on which it has not failed is ready; and
//! 6. the budget allows one more retry.
//!
//! The first of these that does not hold is the reason for giving up ([`GiveUp`]).
//!
//! # The budget
//!
//! When every worker is full, a retry only adds load. So retries are bounded as a share of the
//! traffic, as in Finagle (`RetryBudget`) and Linkerd: a balance begins with [`RetryConfig::reserve`]
//! retries; the end of each call's first attempt adds [`RetryConfig::share`] of a retry, and each retry
//! takes one. So, since the beginning,
//!
//! > retries ≤ reserve + share × finished first attempts
//!
//! The balance exceeds the reserve by at most one call's share (or one retry). So a long time without
//! failures does not save up a storm of retries, and the bound holds for any stretch of traffic, plus
//! that one. Finagle instead lets savings expire and adds a minimum per second; this rule has no clock,
//! so a balancer with little traffic uses its reserve.
//!
//! Why the default share is 1: the end of a call's first attempt pays for the call's own first retry.
//! So the budget never refuses a call that the next worker would have taken, however many workers die,
//! drain or fill up at once; and when every worker is full there are twice as many attempts as calls,
//! not three times as many. The reserve pays for second retries: when many workers disappear
//! together, each of the calls under way (a thousand, say) may meet two of them.

use serde::{Deserialize, Serialize};

use crate::failure::{Failure, FailureKind, Started};

/// How many retries are allowed; see the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// How many more workers one call is tried on.
    pub most: u32,
    /// How much of a retry each call adds to the budget: 0.2 is one retry for every fifth call. A negative
    /// value or NaN counts as 0.
    pub share: f64,
    /// How many retries the budget begins with, and the most that it saves up.
    pub reserve: u32,
}

impl Default for RetryConfig {
    /// Two retries of a call; a retry for each call, and a thousand in reserve.
    fn default() -> Self {
        RetryConfig { most: 2, share: 1.0, reserve: 1_000 }
    }
}

/// What is known of an attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// What went wrong.
    pub kind: FailureKind,
    /// Whether the handler may have seen the call.
    pub started: Started,
    /// Whether all of the request's body can be sent once more.
    pub body_at_hand: bool,
}

impl FailedAttempt {
    /// An attempt of which only the failure's kind is known, and whose body can be sent again.
    pub const fn new(kind: FailureKind) -> Self {
        FailedAttempt { kind, started: kind.usually_started(), body_at_hand: true }
    }

    /// The attempt that ended with `failure`.
    pub const fn of(failure: &Failure, body_at_hand: bool) -> Self {
        FailedAttempt { kind: failure.kind, started: failure.started, body_at_hand }
    }

    /// Whether another worker may succeed where one failed so.
    const fn may_work_elsewhere(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::NoWorker
                | FailureKind::Draining
                | FailureKind::QueueFull
                | FailureKind::StartFailed
                | FailureKind::RegistryUnavailable
        )
    }
}

/// What happens to a call whose attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Select another worker for it.
    Retry,
    /// Its failure is its answer.
    GiveUp(GiveUp),
}

/// Why a call is not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum GiveUp {
    /// It may have started.
    NotSafe,
    /// Another worker would fail it, too.
    SameElsewhere,
    /// It was tried as often as allowed.
    TooOften,
    /// A part of its body has been sent and is not kept.
    BodyGone,
    /// No other worker is ready.
    NoAlternative,
    /// The budget is spent.
    Budget,
}

impl GiveUp {
    /// Every reason, in the order in which they are looked at.
    pub const ALL: [GiveUp; 6] = [
        GiveUp::NotSafe,
        GiveUp::SameElsewhere,
        GiveUp::TooOften,
        GiveUp::BodyGone,
        GiveUp::NoAlternative,
        GiveUp::Budget,
    ];

    /// The reason as a label of metrics, for example `not_safe`.
    pub const fn as_str(self) -> &'static str {
        match self {
            GiveUp::NotSafe => "not_safe",
            GiveUp::SameElsewhere => "same_elsewhere",
            GiveUp::TooOften => "too_often",
            GiveUp::BodyGone => "body_gone",
            GiveUp::NoAlternative => "no_alternative",
            GiveUp::Budget => "budget",
        }
    }
}

/// How many verdicts there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryCounts {
    /// Attempts at another worker.
    pub retries: u64,
    /// In the order of [`GiveUp::ALL`].
    given_up: [u64; GiveUp::ALL.len()],
}

impl RetryCounts {
    /// How many calls were given up for that reason.
    pub fn given_up(&self, why: GiveUp) -> u64 {
        self.given_up[why as usize]
    }
}

/// A retry in the budget's units: shares are exact to a millionth, and sums do not depend on rounding.
const RETRY: u64 = 1_000_000;

/// The rule with its budget and its counts. See the module's documentation.
#[derive(Clone, Debug)]
pub struct RetryRule {
    most: u32,
    /// What a call adds to the balance.
    share: u64,
    balance: u64,
    most_balance: u64,
    counts: RetryCounts,
}

impl RetryRule {
    /// The rule with a full reserve.
    pub fn new(config: RetryConfig) -> Self {
        let most = u64::from(u32::MAX) * RETRY;
        // The cast saturates, and makes a 0 of what is no number.
        let share = ((config.share * RETRY as f64).round() as u64).min(most);
        let reserve = u64::from(config.reserve) * RETRY;
        // Without a reserve the shares of calls must still come to a retry at some time.
        let most_balance = reserve + share.max(RETRY);
        RetryRule {
            most: config.most,
            share,
            balance: reserve,
            most_balance,
            counts: RetryCounts::default(),
        }
    }

    /// The first attempt at a call is over, with any result.
    pub fn first_attempt_ended(&mut self) {
        self.balance = self.most_balance.min(self.balance + self.share);
    }

    /// Judges a call that was tried again `retries` times before; `alternative`: whether a worker is
    /// ready that it has not failed on.
    pub fn judge(&mut self, attempt: &FailedAttempt, retries: u32, alternative: bool) -> Verdict {
        let refused = if attempt.started != Started::No {
            Some(GiveUp::NotSafe)
        } else if !attempt.may_work_elsewhere() {
            Some(GiveUp::SameElsewhere)
        } else if retries >= self.most {
            Some(GiveUp::TooOften)
        } else if !attempt.body_at_hand {
            Some(GiveUp::BodyGone)
        } else if !alternative {
            Some(GiveUp::NoAlternative)
        } else if self.balance < RETRY {
            Some(GiveUp::Budget)
        } else {
            None
        };
        match refused {
            Some(why) => {
                self.counts.given_up[why as usize] += 1;
                Verdict::GiveUp(why)
            }
            None => {
                self.balance -= RETRY;
                self.counts.retries += 1;
                Verdict::Retry
            }
        }
    }

    /// What was judged so far.
    pub fn counts(&self) -> RetryCounts {
        self.counts
    }
}

impl Default for RetryRule {
    fn default() -> Self {
        RetryRule::new(RetryConfig::default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::balancing::balancer::{Balancer, BalancerOutput};
    use crate::balancing::{
        BalancingPolicy, ClusterView, Decision, FunctionId, PolicyContext, PolicyEvent, Refusal,
        RequestInfo, Ticket, Why, WorkerId, WorkerInfo,
    };
    use crate::random::Rng;
    use crate::time::Time;

    const RETRY_IT: Verdict = Verdict::Retry;

    fn give_up(why: GiveUp) -> Verdict {
        Verdict::GiveUp(why)
    }

    fn config(most: u32, share: f64, reserve: u32) -> RetryConfig {
        RetryConfig { most, share, reserve }
    }

    /// What failed, how often it was tried again before, whether a worker is left: the verdict.
    #[test]
    fn the_rule() {
        use FailureKind as Kind;
        let failed = FailedAttempt::new;
        let started = |kind, started| FailedAttempt { started, ..failed(kind) };
        let bodyless = |kind| FailedAttempt { body_at_hand: false, ..failed(kind) };
        for (attempt, retries, alternative, verdict) in [
            // What another worker may do better.
            (failed(Kind::NoWorker), 0, true, RETRY_IT),
            (failed(Kind::Draining), 0, true, RETRY_IT),
            (failed(Kind::QueueFull), 0, true, RETRY_IT),
            (failed(Kind::StartFailed), 0, true, RETRY_IT),
            (failed(Kind::RegistryUnavailable), 0, true, RETRY_IT),
            // Nobody knows whether it started, or it did; nothing else matters then.
            (failed(Kind::WorkerDied), 0, true, give_up(GiveUp::NotSafe)),
            (failed(Kind::Internal), 0, true, give_up(GiveUp::NotSafe)),
            (failed(Kind::Timeout), 0, true, give_up(GiveUp::NotSafe)),
            (failed(Kind::FunctionError), 0, true, give_up(GiveUp::NotSafe)),
            (failed(Kind::SandboxCrashed), 0, true, give_up(GiveUp::NotSafe)),
            (failed(Kind::OutOfMemory), 0, true, give_up(GiveUp::NotSafe)),
            (failed(Kind::BadReply), 0, true, give_up(GiveUp::NotSafe)),
            (started(Kind::NoWorker, Started::Maybe), 0, true, give_up(GiveUp::NotSafe)),
            (started(Kind::QueueFull, Started::Yes), 9, false, give_up(GiveUp::NotSafe)),
            // Known not to have started, and wrong everywhere.
            (failed(Kind::BadRequest), 0, true, give_up(GiveUp::SameElsewhere)),
            (failed(Kind::Forbidden), 0, true, give_up(GiveUp::SameElsewhere)),
            (failed(Kind::NotFound), 0, true, give_up(GiveUp::SameElsewhere)),
            (failed(Kind::MethodNotAllowed), 0, true, give_up(GiveUp::SameElsewhere)),
            (failed(Kind::BodyTooLarge), 0, true, give_up(GiveUp::SameElsewhere)),
            (failed(Kind::InitError), 0, true, give_up(GiveUp::SameElsewhere)),
            (started(Kind::WorkerDied, Started::No), 0, true, give_up(GiveUp::SameElsewhere)),
            // Two retries, not three.
            (failed(Kind::Draining), 1, true, RETRY_IT),
            (failed(Kind::Draining), 2, true, give_up(GiveUp::TooOften)),
            (bodyless(Kind::Draining), 2, false, give_up(GiveUp::TooOften)),
            // The body, then the workers.
            (bodyless(Kind::QueueFull), 0, true, give_up(GiveUp::BodyGone)),
            (bodyless(Kind::QueueFull), 0, false, give_up(GiveUp::BodyGone)),
            (failed(Kind::QueueFull), 0, false, give_up(GiveUp::NoAlternative)),
        ] {
            let mut rule = RetryRule::new(config(2, 0.0, 1));
            let place = format!("{attempt:?}, {retries} retries, alternative: {alternative}");
            assert_eq!(rule.judge(&attempt, retries, alternative), verdict, "{place}");
            let counts = rule.counts();
            assert_eq!(counts.retries, u64::from(verdict == RETRY_IT), "{place}");
            for why in GiveUp::ALL {
                let given_up = verdict == give_up(why);
                assert_eq!(counts.given_up(why), u64::from(given_up), "{place}: {why:?}");
            }
            // What was refused has cost nothing; what was not has cost the only retry there was.
            let next = match verdict {
                RETRY_IT => give_up(GiveUp::Budget),
                _ => RETRY_IT,
            };
            assert_eq!(rule.judge(&failed(Kind::Draining), 0, true), next, "{place}");
        }
    }

    #[test]
    fn each_kind_of_failure_has_a_verdict() {
        let mut rule = RetryRule::new(config(1, 0.0, 100));
        let retried: Vec<_> = FailureKind::ALL
            .into_iter()
            .filter(|kind| {
                let attempt = FailedAttempt { started: Started::No, ..FailedAttempt::new(*kind) };
                rule.judge(&attempt, 0, true) == RETRY_IT
            })
            .map(FailureKind::code)
            .collect();
        let expected =
            ["queue_full", "no_worker", "draining", "registry_unavailable", "start_failed"];
        assert_eq!(retried, expected);
    }

    /// How many retries a budget allows now.
    fn affordable(rule: &RetryRule) -> u64 {
        let mut rule = rule.clone();
        let attempt = FailedAttempt::new(FailureKind::Draining);
        let before = rule.counts().retries;
        while rule.counts().retries < before + 10_000 && rule.judge(&attempt, 0, true) == RETRY_IT {
        }
        rule.counts().retries - before
    }

    #[test]
    fn calls_earn_retries_and_savings_are_bounded() {
        // Share, reserve, calls: retries.
        for (share, reserve, calls, expected) in [
            (0.2, 10, 0, 10),
            (0.2, 0, 4, 0),
            (0.2, 0, 5, 1),
            (0.2, 0, 1_000_000, 1),
            (0.2, 10, 1_000_000, 11),
            (1.0, 0, 1, 1),
            (2.5, 0, 1, 2),
            (2.5, 3, 1_000, 5),
            (0.0, 3, 1_000, 3),
            (0.0, 0, 1_000, 0),
            (-1.0, 0, 1_000, 0),
            (f64::NAN, 2, 1_000, 2),
            (f64::INFINITY, 0, 1, 10_000),
        ] {
            let mut rule = RetryRule::new(config(2, share, reserve));
            (0..calls).for_each(|_| rule.first_attempt_ended());
            assert_eq!(affordable(&rule), expected, "share {share}, reserve {reserve}, {calls}");
        }
        // A hundredth, a hundred times, is one: nothing is lost to rounding.
        let mut rule = RetryRule::new(config(2, 0.01, 0));
        (0..99).for_each(|_| rule.first_attempt_ended());
        assert_eq!(affordable(&rule), 0);
        rule.first_attempt_ended();
        assert_eq!(affordable(&rule), 1);
    }

    /// The promise of the default: whatever happened before, the first retry is there.
    #[test]
    fn by_default_each_call_pays_for_its_first_retry() {
        let mut rule = RetryRule::default();
        let attempt = FailedAttempt::new(FailureKind::QueueFull);
        let mut second = 0;
        for _ in 0..5_000 {
            rule.first_attempt_ended();
            assert_eq!(rule.judge(&attempt, 0, true), RETRY_IT);
            second += u64::from(rule.judge(&attempt, 1, true) == RETRY_IT);
        }
        assert_eq!(second, u64::from(RetryConfig::default().reserve));
        assert_eq!(rule.counts().given_up(GiveUp::Budget), 5_000 - second);
    }

    /// Any worker that is allowed; now and then a call is held until another one is over.
    #[derive(Debug, Default)]
    struct Anywhere {
        held: Vec<(Ticket, Vec<WorkerId>)>,
    }

    fn anywhere(excluded: &[WorkerId], view: &ClusterView<'_>, rng: &mut Rng) -> Option<WorkerId> {
        let ready = view.ready().iter().copied();
        let allowed: Vec<_> = ready.filter(|worker| !excluded.contains(worker)).collect();
        let candidates = if allowed.is_empty() { view.ready() } else { &allowed };
        (!candidates.is_empty()).then(|| candidates[rng.below(candidates.len())])
    }

    impl BalancingPolicy for Anywhere {
        fn select(
            &mut self,
            request: &RequestInfo<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) -> Decision {
            let worker = anywhere(request.excluded, view, cx.rng);
            match worker {
                None => Decision::Refuse(Refusal::NoWorker),
                Some(_) if cx.rng.chance(0.1) => {
                    self.held.push((request.ticket, request.excluded.to_vec()));
                    Decision::Hold { until: cx.now + Duration::from_nanos(20) }
                }
                Some(worker) => Decision::To(worker, Why("any")),
            }
        }

        fn observe(
            &mut self,
            event: &PolicyEvent<'_>,
            view: &ClusterView<'_>,
            cx: &mut PolicyContext<'_>,
        ) {
            if let PolicyEvent::Completed { .. } = event
                && let Some((ticket, excluded)) = self.held.pop()
                && let Some(worker) = anywhere(&excluded, view, cx.rng)
            {
                cx.bind(ticket, worker, Why("any"));
            }
        }
    }

    /// What a history knows of a call.
    #[derive(Debug, Default)]
    struct Call {
        /// Where it was, oldest first.
        visited: Vec<WorkerId>,
        may_have_started: bool,
    }

    struct History {
        seed: u64,
        rng: Rng,
        now: Time,
        config: RetryConfig,
        balancer: Balancer,
        function: FunctionId,
        workers: Vec<WorkerId>,
        calls: BTreeMap<Ticket, Call>,
        running: Vec<Ticket>,
        first_attempts_over: u64,
        retries: u64,
        given_up: u64,
    }

    impl History {
        fn new(seed: u64) -> Self {
            let mut rng = Rng::from_seed_and_label(seed, "retries");
            let share = [0.0, 0.1, 0.5, 1.0, 2.5][rng.below(5)];
            let config = config(rng.below(4) as u32, share, [0, 1, 10][rng.below(3)]);
            let policy = Box::new(Anywhere::default());
            let mut balancer = Balancer::new(policy, seed).with_retries(config);
            let function = balancer.function(&"f".parse().unwrap());
            let workers = (0..1 + rng.below(6))
                .map(|n| balancer.join(Time(0), WorkerInfo::new(format!("w{n}"), 1)))
                .collect();
            History {
                seed,
                rng,
                now: Time(0),
                config,
                balancer,
                function,
                workers,
                calls: BTreeMap::new(),
                running: Vec::new(),
                first_attempts_over: 0,
                retries: 0,
                given_up: 0,
            }
        }

        fn run(mut self) {
            for _ in 0..400 {
                self.now += Duration::from_nanos(1);
                match self.rng.below(10) {
                    0..5 => {
                        let ticket = self.balancer.arrived(self.function);
                        self.calls.insert(ticket, Call::default());
                        self.select(ticket);
                    }
                    5..9 if !self.running.is_empty() => self.end_an_attempt(),
                    9 => self.churn(),
                    _ => {}
                }
                if self.balancer.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.balancer.handle_timeout(self.now);
                }
                self.outputs();
                let (seed, config) = (self.seed, self.config);
                let counts = self.balancer.retries();
                assert_eq!(counts.retries, self.retries, "seed {seed}");
                let given_up: u64 = GiveUp::ALL.iter().map(|why| counts.given_up(*why)).sum();
                assert_eq!(given_up, self.given_up, "seed {seed}");
                let earned = config.share * self.first_attempts_over as f64;
                let most = f64::from(config.reserve) + earned;
                assert!(self.retries as f64 <= most + 1e-6, "seed {seed}: {counts:?} of {most}");
                assert_eq!(self.balancer.defects().0, 0, "seed {seed}");
            }
            // Everything ends: what runs is answered, what is held runs out of time.
            while let Some(ticket) = self.running.pop() {
                self.balancer.completed(self.now, ticket, None, true);
                self.over(ticket);
                self.outputs();
            }
            while let Some(at) = self.balancer.poll_timeout() {
                self.now = self.now.max(at);
                self.balancer.handle_timeout(self.now);
                self.outputs();
                while let Some(ticket) = self.running.pop() {
                    self.over(ticket);
                }
            }
            let left = (self.balancer.tickets(), self.balancer.view().in_flight_total());
            assert_eq!((left, self.calls.len()), ((0, 0), 0), "seed {}", self.seed);
        }

        fn select(&mut self, ticket: Ticket) {
            match self.balancer.select(self.now, ticket) {
                Decision::To(worker, _) => self.goes(ticket, worker),
                Decision::Refuse(_) => self.over(ticket),
                _ => {}
            }
            self.outputs();
        }

        fn goes(&mut self, ticket: Ticket, worker: WorkerId) {
            let (seed, call) = (self.seed, self.calls.get_mut(&ticket).unwrap());
            assert!(!call.may_have_started, "seed {seed}: what may have started runs again");
            let mut ready = self.balancer.view().ready().iter();
            let left = ready.any(|worker| !call.visited.contains(worker));
            let again = call.visited.contains(&worker);
            assert!(!again || !left, "seed {seed}: {call:?} goes to {worker:?} again");
            call.visited.push(worker);
            let retries = call.visited.len() - 1;
            assert!(retries <= self.config.most as usize, "seed {seed}: {retries} retries");
            self.running.push(ticket);
        }

        fn end_an_attempt(&mut self) {
            let ticket = self.running.swap_remove(self.rng.below(self.running.len()));
            let call = self.calls.get_mut(&ticket).unwrap();
            let first = call.visited.len() == 1;
            self.first_attempts_over += u64::from(first);
            if self.rng.chance(0.3) {
                self.balancer.completed(self.now, ticket, None, true);
                return self.over(ticket);
            }
            // Mostly what may be tried again.
            let kind = match self.rng.chance(0.7) {
                true => FailureKind::Draining,
                false => FailureKind::ALL[self.rng.below(FailureKind::ALL.len())],
            };
            let mut attempt = FailedAttempt::new(kind);
            if self.rng.chance(0.1) {
                attempt.started = [Started::No, Started::Maybe, Started::Yes][self.rng.below(3)];
            }
            attempt.body_at_hand = self.rng.chance(0.9);
            call.may_have_started = attempt.started != Started::No;
            let verdict = self.balancer.failed(self.now, ticket, &attempt);
            let (seed, call) = (self.seed, &self.calls[&ticket]);
            match verdict {
                Verdict::Retry => {
                    let mut ready = self.balancer.view().ready().iter();
                    let left = ready.any(|worker| !call.visited.contains(worker));
                    assert!(left && attempt.body_at_hand, "seed {seed}: {attempt:?} of {call:?}");
                    self.retries += 1;
                    self.outputs();
                    self.select(ticket);
                }
                Verdict::GiveUp(why) => {
                    let pays = first && self.config.share >= 1.0;
                    assert!(!pays || why != GiveUp::Budget, "seed {seed}: it had paid itself");
                    self.given_up += 1;
                    self.over(ticket);
                }
            }
        }

        /// A worker drains, takes calls again, or is started anew.
        fn churn(&mut self) {
            let at = self.rng.below(self.workers.len());
            match self.rng.below(4) {
                0 => {
                    let info = WorkerInfo::new(format!("w{at}"), 1);
                    self.workers[at] = self.balancer.join(self.now, info);
                }
                draw => self.balancer.set_draining(self.now, self.workers[at], draw == 1),
            }
        }

        fn outputs(&mut self) {
            while let Some(output) = self.balancer.poll_output() {
                match output {
                    BalancerOutput::Bound { ticket, worker, .. } => self.goes(ticket, worker),
                    BalancerOutput::Refused { ticket, .. } => self.over(ticket),
                    other => panic!("{other:?}"),
                }
            }
        }

        fn over(&mut self, ticket: Ticket) {
            self.balancer.finish(self.now, ticket);
            self.calls.remove(&ticket);
        }
    }

    /// Over random histories of workers that fail: no call goes to the same worker twice while another
    /// one is ready, none has more retries than it may, nothing that may have started is tried again,
    /// there are no more retries than the budget has, and everything comes to its end.
    #[test]
    fn retries_keep_to_the_rule_in_any_history() {
        for seed in 0..500 {
            History::new(seed).run();
        }
    }
}
