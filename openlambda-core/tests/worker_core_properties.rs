//! The worker's core under random histories: whatever the order of events, each call has one answer and
//! one record, no code is removed that an instance uses, memory's books balance, an instance runs with
//! its full limit or not at all, each idle notice has one reader, and a drain ends.
//!
//! The test plays the shell ([`shell`]): it keeps its own, naive picture of what the core asked for, and
//! fulfils, fails or delays each output in random order. It is `scheduler_properties.rs` one level up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "worker_core_properties/shell.rs"]
mod shell;

use std::time::Duration;

use openlambda_core::scheduler::{InstanceId, InvocationId};
use openlambda_core::time::Time;
use openlambda_core::wire::ReservationKey;
use openlambda_core::worker_core::{Input, Output};
use proptest::prelude::*;

use self::shell::{At, MB, Shell, function};

const FUNCTIONS: usize = 4;
const BALANCERS: [&str; 3] = ["a", "b", "c"];

/// Which version is called.
#[derive(Clone, Copy, Debug)]
struct Target {
    of: usize,
    number: u64,
    /// Its caller knows the number.
    numbered: bool,
}

#[derive(Clone, Debug)]
enum Op {
    Call(Target, Option<usize>),
    /// A call that names a place that is kept for it, or was, or will be; perhaps another version than
    /// the one that was reserved.
    CallWithKey(usize, Option<Target>),
    Cancel(usize),
    Reserve(Target, usize, u64),
    ReserveAgain(usize, u64),
    Unreserve(usize),
    Subscribe(Option<usize>),
    Unsubscribe(usize),
    Fulfil(usize, bool),
    Advance(u64),
    Rest(u64),
    Exit(usize),
    Stale(usize),
    Delete(u8),
    Prewarm(usize, u32),
    Pressure(u64),
    Drain(u64),
}

fn target() -> impl Strategy<Value = Target> {
    (0..FUNCTIONS, 1..=5u64, proptest::bool::weighted(0.8))
        .prop_map(|(of, number, numbered)| Target { of, number, numbered })
}

fn op() -> impl Strategy<Value = Op> {
    let balancer = || 0..BALANCERS.len();
    let sender = || proptest::option::weighted(0.8, 0..BALANCERS.len());
    prop_oneof![
        9 => (target(), sender()).prop_map(|(target, sender)| Op::Call(target, sender)),
        4 => (0..64usize, proptest::option::weighted(0.15, target()))
            .prop_map(|(choice, other)| Op::CallWithKey(choice, other)),
        1 => (0..64usize).prop_map(Op::Cancel),
        5 => (target(), balancer(), 1..400u64).prop_map(|(t, of, ms)| Op::Reserve(t, of, ms)),
        1 => (0..64usize, 1..400u64).prop_map(|(choice, ms)| Op::ReserveAgain(choice, ms)),
        2 => (0..64usize).prop_map(Op::Unreserve),
        1 => sender().prop_map(Op::Subscribe),
        1 => (0..64usize).prop_map(Op::Unsubscribe),
        18 => (0..256usize).prop_map(|choice| Op::Fulfil(choice, true)),
        3 => (0..256usize).prop_map(|choice| Op::Fulfil(choice, false)),
        3 => (1..120u64).prop_map(Op::Advance),
        1 => (1..4u64).prop_map(Op::Rest),
        1 => (0..16usize).prop_map(Op::Exit),
        1 => (0..64usize).prop_map(Op::Stale),
        1 => (1..16u8).prop_map(Op::Delete),
        1 => (0..FUNCTIONS, 0..4u32).prop_map(|(of, n)| Op::Prewarm(of, n)),
        1 => (0..600u64).prop_map(Op::Pressure),
        1 => (0..40u64).prop_map(|n| if n < 2 { Op::Drain(n * 300) } else { Op::Advance(1) }),
    ]
}

struct History {
    shell: Shell,
    /// Every reservation that was ever made.
    tickets: Vec<(ReservationKey, Target)>,
}

impl History {
    fn ticket(&self, choice: usize) -> Option<(ReservationKey, Target)> {
        // Mostly those of late.
        let recent = self.tickets.len().min(if choice.is_multiple_of(5) { 64 } else { 6 });
        let at = self.tickets.len() - (recent > 0).then(|| 1 + choice % recent)?;
        Some(self.tickets[at].clone())
    }

    fn play(&mut self, op: &Op) {
        let shell = &mut self.shell;
        match *op {
            Op::Call(Target { of, number, numbered }, sender) => {
                let sender = sender.map(|n| BALANCERS[n]);
                shell.call(of, number, numbered, sender, None);
            }
            Op::CallWithKey(choice, other) => {
                let Some((key, reserved)) = self.ticket(choice) else { return };
                let Target { of, number, numbered } = other.unwrap_or(reserved);
                let sender = key.balancer.clone();
                self.shell.call(of, number, numbered, Some(&sender), Some(key));
            }
            Op::Cancel(choice) => {
                let known = shell.calls.keys().chain(&shell.past).copied().collect::<Vec<_>>();
                let invocation = match known.is_empty() {
                    true => InvocationId(77),
                    false => known[choice % known.len()],
                };
                shell.cancel(invocation);
            }
            Op::Reserve(target, of, patience) => {
                let ticket = self.tickets.len() as u64;
                let key = ReservationKey { balancer: BALANCERS[of].to_owned(), ticket };
                self.tickets.push((key.clone(), target));
                self.shell.reserve(key, target.of, target.number, patience);
            }
            Op::ReserveAgain(choice, patience) => {
                let Some((key, target)) = self.ticket(choice) else { return };
                self.shell.reserve(key, target.of, target.number, patience);
            }
            Op::Unreserve(choice) => {
                let Some((key, _)) = self.ticket(choice) else { return };
                self.shell.unreserve(key);
            }
            Op::Subscribe(of) if shell.streams.len() < 6 => {
                shell.subscribe(of.map(|n| BALANCERS[n]));
            }
            Op::Subscribe(_) => {}
            Op::Unsubscribe(choice) => {
                if !shell.streams.is_empty() {
                    shell.unsubscribe(shell.streams[choice % shell.streams.len()].0);
                }
            }
            Op::Fulfil(choice, well) => shell.fulfil(choice, well),
            Op::Advance(ms) => shell.advance(Duration::from_millis(ms)),
            Op::Rest(minutes) => shell.advance(Duration::from_secs(60 * minutes)),
            Op::Exit(choice) => {
                let up = shell.instances.iter();
                let up = up.filter(|(_, place)| !matches!(place.at, At::Starting | At::Cancelling));
                let up: Vec<InstanceId> = up.map(|(id, _)| *id).collect();
                if !up.is_empty() {
                    shell.exit(up[choice % up.len()]);
                }
            }
            Op::Stale(choice) => {
                // The last words of what is gone.
                let Some(instance) = shell.gone.iter().rev().nth(choice / 4).copied() else {
                    return;
                };
                let bytes = Some(MB);
                shell.tell(match choice % 4 {
                    0 => Input::Exited { instance },
                    1 => Input::Paused { instance, used: bytes },
                    2 => Input::LimitSet { instance, bytes },
                    _ => Input::Resumed { instance },
                });
            }
            Op::Delete(which) => {
                let which = (0..FUNCTIONS).filter(|n| which >> n & 1 == 1);
                shell.delete(which.map(function).collect());
            }
            Op::Prewarm(of, instances) => shell.prewarm(of, instances),
            Op::Pressure(mb) => shell.tell(Input::MemoryPressure { bytes: mb * MB }),
            Op::Drain(ms) => shell.drain(Duration::from_millis(ms)),
        }
    }
}

fn play(
    ops: &[Op],
    pause: bool,
    keep_alive: &str,
    patient: bool,
    quotas: bool,
) -> Vec<(Time, Output)> {
    let mut shell = Shell::new(pause, keep_alive, quotas);
    for balancer in ["a", "b"] {
        shell.subscribe(Some(balancer));
    }
    let mut history = History { shell, tickets: Vec::new() };
    for op in ops {
        history.play(op);
    }
    history.shell.finish(patient);
    history.shell.log
}

const POLICIES: [&str; 5] = [
    "ttl",
    "ttl,seconds=0",
    "lru",
    "greedy-dual",
    "histogram,samples=1,range_minutes=5,cv=0.1,fallback_seconds=1",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(400)))]

    #[test]
    fn random_histories_of_a_worker_keep_every_promise(
        ops in proptest::collection::vec(op(), 1..300),
        pause in any::<bool>(),
        policy in proptest::sample::select(&POLICIES),
        patient in any::<bool>(),
        quotas in any::<bool>(),
    ) {
        let log = play(&ops, pause, policy, patient, quotas);
        prop_assert_eq!(log, play(&ops, pause, policy, patient, quotas), "the same history, other outputs");
    }
}
