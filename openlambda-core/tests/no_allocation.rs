//! The scheduler allocates nothing in the steady state: it is on the path of every invocation.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::time::Duration;

use openlambda_core::invocation::StartKind;
use openlambda_core::scheduler::{
    Action, Event, InvocationId, Limits, Scheduler, SchedulerConfig, VersionId,
};
use openlambda_core::time::Time;
use openlambda_core::{keep_alive, queue};

const VERSIONS: u32 = 20;
/// More than there are slots, so that some calls wait.
const IN_FLIGHT: usize = 200;
const WARM_UP: usize = 20_000;

/// A shell in which instances start at once, and calls end in the order of their arrival.
struct Shell {
    scheduler: Scheduler,
    now: Time,
    limits: Limits,
    calls: u32,
    /// Which generation each slot has, and which are free.
    generations: Vec<u32>,
    free: Vec<u32>,
    running: VecDeque<InvocationId>,
    next: Vec<Event>,
    starts: usize,
}

impl Shell {
    fn new(policy: &str, reuse: bool) -> Self {
        let config = SchedulerConfig {
            memory: 1 << 40,
            pause_after: Some(Duration::from_secs(1)),
            ..SchedulerConfig::default()
        };
        Shell {
            scheduler: Scheduler::new(
                config,
                queue::default().make(),
                keep_alive::standard().maker_of(policy).unwrap().make(),
            ),
            now: Time::ZERO,
            limits: Limits {
                memory: 128 << 20,
                slots: 2,
                max_instances: 4,
                queue: 1024,
                timeout: Duration::from_millis(30),
                reuse,
                pause_after: None,
            },
            calls: 0,
            generations: vec![0; 2 * IN_FLIGHT],
            free: (0..2 * IN_FLIGHT as u32).collect(),
            running: VecDeque::with_capacity(2 * IN_FLIGHT),
            next: Vec::with_capacity(64),
            starts: 0,
        }
    }

    /// A call arrives, and when enough are under way the oldest one is through.
    fn step(&mut self) {
        self.now += Duration::from_micros(10);
        self.calls += 1;
        let slot = self.free.pop().unwrap();
        let generation = self.generations[slot as usize];
        let invocation = InvocationId(u64::from(generation) << 32 | u64::from(slot));
        let version = VersionId((self.calls.wrapping_mul(0x9e37_79b9) >> 16) % VERSIONS);
        let deadline = self.now + Duration::from_millis(50);
        self.handle(Event::Arrived { invocation, version, deadline });
        let in_flight = self.generations.len() - self.free.len();
        if in_flight > IN_FLIGHT
            && let Some(invocation) = self.running.pop_front()
        {
            self.over(invocation);
            self.handle(Event::Finished { invocation, reusable: true });
        }
        if self.scheduler.poll_timeout().is_some_and(|at| at <= self.now) {
            self.handle(Event::Timeout);
        }
    }

    fn over(&mut self, invocation: InvocationId) {
        let slot = invocation.0 as u32;
        self.generations[slot as usize] += 1;
        self.free.push(slot);
    }

    fn handle(&mut self, event: Event) {
        self.next.push(event);
        while let Some(event) = self.next.pop() {
            self.scheduler.handle(self.now, event);
            while let Some(action) = self.scheduler.poll_action() {
                let event = match action {
                    Action::Fetch { version } => Event::CodeReady { version, limits: self.limits },
                    Action::Start { instance, .. } => {
                        self.starts += 1;
                        Event::SandboxReady { instance, start: StartKind::Cold }
                    }
                    Action::Pause { instance } => Event::Paused { instance, spare: 0 },
                    Action::Resume { instance } => Event::Resumed { instance },
                    Action::Evict { instance, .. } => Event::Destroyed { instance },
                    Action::Run { invocation, .. } => {
                        self.running.push_back(invocation);
                        continue;
                    }
                    Action::Reject { invocation, .. } => {
                        self.over(invocation);
                        continue;
                    }
                    _ => continue,
                };
                self.next.push(event);
            }
        }
    }
}

#[test]
fn neither_warm_nor_cold_calls_allocate_in_the_steady_state() {
    for (policy, reuse) in [("ttl", true), ("lru", true), ("ttl", false)] {
        let mut shell = Shell::new(policy, reuse);
        (0..WARM_UP).for_each(|_| shell.step());
        let starts = shell.starts;
        let counted = allocation_counter::measure(|| (0..10_000).for_each(|_| shell.step()));
        let counts = shell.scheduler.counts();
        assert!(counts.running > 100 && counts.waiting > 10, "{counts:?}");
        assert_eq!(shell.starts == starts, reuse, "warm calls start nothing, cold ones do");
        assert_eq!(counted.count_total, 0, "{policy}, reuse {reuse}");
    }
}

/// The counter counts: a test that cannot fail shows nothing.
#[test]
fn an_allocation_is_seen() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(counted.count_total, 1);
}
