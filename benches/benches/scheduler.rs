//! Events a second through the worker's scheduler: warm invocations (arrived, run, finished), and
//! cold ones (code, start, run, finished, evicted, destroyed). A call is over before the next one
//! comes, so all have the same slot, each with a generation of its own, as a shell would give it.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use openlambda_core::invocation::StartKind;
use openlambda_core::scheduler::{
    Action, Event, InvocationId, Limits, Scheduler, SchedulerConfig, VersionId,
};
use openlambda_core::time::Time;
use openlambda_core::{keep_alive, queue};

const VERSIONS: u32 = 100;

struct Worker {
    scheduler: Scheduler,
    limits: Limits,
    now: Time,
    invocations: u64,
    events: u64,
}

impl Worker {
    fn new(reuse: bool) -> Self {
        let config = SchedulerConfig { memory: 1 << 40, ..SchedulerConfig::default() };
        let keep_alive = keep_alive::by_name("ttl", keep_alive::DEFAULT_TTL).expect("a policy");
        Worker {
            scheduler: Scheduler::new(
                config,
                queue::by_name("fifo").expect("a policy"),
                keep_alive,
            ),
            limits: Limits {
                memory: 128 << 20,
                slots: 1,
                max_instances: 16,
                queue: 1024,
                timeout: Duration::from_secs(30),
                reuse,
            },
            now: Time::ZERO,
            invocations: 0,
            events: 0,
        }
    }

    /// One invocation from arrival to its end, with a world in which everything succeeds at once.
    fn invocation(&mut self) {
        self.now += Duration::from_micros(10);
        let invocation = InvocationId(self.invocations << 32);
        let version = VersionId((self.invocations % u64::from(VERSIONS)) as u32);
        self.invocations += 1;
        let deadline = self.now + Duration::from_secs(30);
        let mut next = Some(Event::Arrived { invocation, version, deadline });
        while let Some(event) = next.take() {
            self.events += 1;
            self.scheduler.handle(self.now, event);
            while let Some(action) = self.scheduler.poll_action() {
                next = match action {
                    Action::Fetch { version } => {
                        Some(Event::CodeReady { version, limits: self.limits })
                    }
                    Action::Start { instance, .. } => {
                        Some(Event::SandboxReady { instance, start: StartKind::Cold })
                    }
                    Action::Run { invocation, .. } => {
                        Some(Event::Finished { invocation, reusable: true })
                    }
                    Action::Evict { instance, .. } => Some(Event::Destroyed { instance }),
                    _ => next,
                };
            }
        }
    }
}

fn scheduler(c: &mut Criterion) {
    let mut group = c.benchmark_group("scheduler");
    for (name, reuse) in [("warm", true), ("cold", false)] {
        let mut worker = Worker::new(reuse);
        for _ in 0..VERSIONS {
            worker.invocation();
        }
        let before = (worker.events, worker.invocations);
        for _ in 0..1000 {
            worker.invocation();
        }
        let per_invocation = (worker.events - before.0) / (worker.invocations - before.1);
        group.throughput(Throughput::Elements(per_invocation));
        group.bench_function(name, |b| b.iter(|| worker.invocation()));
    }
    group.finish();
}

criterion_group!(benches, scheduler);
criterion_main!(benches);
