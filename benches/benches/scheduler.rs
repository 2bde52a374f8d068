//! Calls a second through the worker's scheduler, warm (arrived, run, finished) and cold (arrived,
//! started, run, finished, evicted, destroyed): each alone on the worker, and with many under way.

use std::collections::VecDeque;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use openlambda_core::invocation::StartKind;
use openlambda_core::scheduler::{
    Action, Event, InvocationId, Limits, Scheduler, SchedulerConfig, VersionId,
};
use openlambda_core::time::Time;
use openlambda_core::{keep_alive, queue};

/// Versions on the worker, and calls that are under way when the next one comes.
const LOADS: [(&str, u32, usize); 2] = [("alone", 100, 0), ("crowded", 1000, 2000)];

/// A world in which everything succeeds at once, and calls end in the order of their arrival.
struct Worker {
    scheduler: Scheduler,
    limits: Limits,
    now: Time,
    versions: u32,
    under_way: usize,
    calls: u32,
    events: u64,
    /// The generations of the invocations' slots, and which are free.
    generations: Vec<u32>,
    free: Vec<u32>,
    running: VecDeque<InvocationId>,
    next: Vec<Event>,
}

impl Worker {
    fn new(reuse: bool, versions: u32, under_way: usize) -> Self {
        let config = SchedulerConfig { memory: 1 << 40, ..SchedulerConfig::default() };
        Worker {
            scheduler: Scheduler::new(
                config,
                queue::default().make(),
                keep_alive::default().make(),
            ),
            limits: Limits {
                memory: 128 << 20,
                slots: 1,
                max_instances: 16,
                queue: 1024,
                timeout: Duration::from_secs(30),
                reuse,
                pause_after: None,
            },
            now: Time::ZERO,
            versions,
            under_way,
            calls: 0,
            events: 0,
            generations: Vec::new(),
            free: Vec::new(),
            running: VecDeque::new(),
            next: Vec::new(),
        }
    }

    /// One call arrives, and the oldest one ends.
    fn call(&mut self) {
        self.now += Duration::from_micros(10);
        self.calls += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.generations.push(0);
            self.generations.len() as u32 - 1
        });
        let generation = u64::from(self.generations[slot as usize]);
        let invocation = InvocationId(generation << 32 | u64::from(slot));
        let version = VersionId((self.calls.wrapping_mul(0x9e37_79b9) >> 8) % self.versions);
        let deadline = self.now + Duration::from_secs(30);
        self.handle(Event::Arrived { invocation, version, deadline });
        if self.running.len() > self.under_way
            && let Some(invocation) = self.running.pop_front()
        {
            let slot = invocation.0 as u32;
            self.generations[slot as usize] += 1;
            self.free.push(slot);
            self.handle(Event::Finished { invocation, reusable: true });
        }
    }

    fn handle(&mut self, event: Event) {
        self.next.push(event);
        while let Some(event) = self.next.pop() {
            self.events += 1;
            self.scheduler.handle(self.now, event);
            while let Some(action) = self.scheduler.poll_action() {
                let event = match action {
                    Action::Fetch { version } => Event::CodeReady { version, limits: self.limits },
                    Action::Start { instance, .. } => {
                        Event::SandboxReady { instance, start: StartKind::Cold }
                    }
                    Action::Evict { instance, .. } => Event::Destroyed { instance },
                    Action::Run { invocation, .. } => {
                        self.running.push_back(invocation);
                        continue;
                    }
                    _ => continue,
                };
                self.next.push(event);
            }
            if self.scheduler.poll_timeout().is_some_and(|at| at <= self.now) {
                self.next.push(Event::Timeout);
            }
        }
    }
}

fn scheduler(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler");
    for (load, versions, under_way) in LOADS {
        for (name, reuse) in [("warm", true), ("cold", false)] {
            let mut worker = Worker::new(reuse, versions, under_way);
            for _ in 0..100_000 {
                worker.call();
            }
            let before = (worker.events, worker.calls);
            for _ in 0..1000 {
                worker.call();
            }
            let per_call = (worker.events - before.0) / u64::from(worker.calls - before.1);
            group.throughput(Throughput::Elements(per_call));
            group.bench_function(format!("{load}/{name}"), |b| b.iter(|| worker.call()));
        }
    }
    group.finish();
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
