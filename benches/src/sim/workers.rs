//! The workers' shell: carries out, each after its delay, what a
//! [`WorkerCore`](openlambda_core::worker_core::WorkerCore) decides, as `worker/dispatch.rs` does in the
//! live system.

use std::time::Duration;

use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::invocation::StartKind;
use openlambda_core::scheduler::{InstanceId, InvocationId, LoadLimit};
use openlambda_core::wire::{Reservation, ReservationKey};
use openlambda_core::worker_core::{Call, Input, Notice, Output, StreamId};

use super::calls::{CallId, SimulatedCall};
use super::host::{Had, Host};
use super::what::{Life, What};
use super::world::World;

/// How a broken connection looks to the balancer.
const BROKEN: FailureKind = FailureKind::WorkerDied;
/// And a worker that cannot be reached.
const UNREACHED: FailureKind = FailureKind::NoWorker;

impl<R: FnMut(&SimulatedCall<'_>)> World<'_, R> {
    pub(super) fn happen_at_worker(&mut self, what: What) {
        match what {
            What::CallAt { call, worker } => self.call_at(call, worker),
            What::ReserveAt { balancer, ticket, function, worker } if self.lives(worker) => {
                let reservation = Reservation {
                    balancer: self.frontends[balancer as usize].name.clone(),
                    ticket: ticket.0,
                    function: self.functions.name(function).clone(),
                    version: self.functions.version(function),
                    digest: self.functions.digest(function),
                    deadline_ms: u64::try_from(self.config.max_wait.as_millis())
                        .unwrap_or(u64::MAX),
                };
                let (name, digest) = (reservation.function.clone(), reservation.digest);
                let now = self.now();
                let host = self.host(worker);
                host.core.handle(now, Input::Reserved(reservation));
                if let Some(version) = host.core.version_id(&name, &digest) {
                    host.knows(version, function);
                }
                self.carry_out_all(worker);
            }
            What::CancelAt { balancer, ticket, worker } if self.lives(worker) => {
                let balancer = self.frontends[balancer as usize].name.clone();
                let key = ReservationKey { balancer, ticket: ticket.0 };
                self.step(worker, Input::ReservationCancelled { key });
            }
            What::ProbeAt { balancer, worker } if self.lives(worker) => {
                let answer = self.hosts[worker.worker as usize].core.load(self.calendar.now());
                let (load, place) = self.loads.take();
                *place = answer;
                let what = What::Probed { balancer, worker, load };
                self.calendar.after(self.config.hop, what);
            }
            What::Fetched { worker, bundle } if self.lives(worker) => {
                let digest = self.host(worker).take_bundle(bundle);
                let input = if self.fails(self.config.faults.fetch) {
                    let failure =
                        Failure::new(FailureKind::RegistryUnavailable, "the registry is away");
                    Input::FetchFailed { digest, failure }
                } else {
                    let (bytes, manifest) =
                        (self.config.bundle_bytes, self.functions.manifest(&digest).clone());
                    Input::Fetched { digest, bytes, manifest }
                };
                self.step(worker, input);
            }
            What::Removed { worker, bundle } if self.lives(worker) => {
                let digest = self.host(worker).take_bundle(bundle);
                self.step(worker, Input::Removed { digest });
            }
            What::Started { worker, instance } if self.lives(worker) => {
                self.started(worker, instance);
            }
            What::Destroyed { worker, instance } if self.lives(worker) => {
                self.step(worker, Input::Destroyed { instance });
            }
            What::Paused { worker, instance } if self.lives(worker) => {
                let used = (self.config.paused_share < 1.0).then(|| {
                    let memory = self.config.limits.memory as f64;
                    (memory * self.config.paused_share) as u64
                });
                self.step(worker, Input::Paused { instance, used });
            }
            What::LimitSet { worker, instance, bytes } if self.lives(worker) => {
                self.step(worker, Input::LimitSet { instance, bytes: Some(bytes) });
            }
            What::Resumed { worker, instance } if self.lives(worker) => {
                self.step(worker, Input::Resumed { instance });
            }
            What::Finished { worker, invocation } if self.lives(worker) => {
                self.finish(worker, invocation, None);
            }
            What::Crashed { worker, invocation } if self.lives(worker) => {
                let had = self.host(worker).had(invocation);
                if let Some(instance) = had.and_then(|had| had.instance) {
                    self.end_calls_in(worker, instance);
                    self.step(worker, Input::Exited { instance });
                }
            }
            What::ProcessorsTurn { worker } if self.lives(worker) => self.processors_turn(worker),
            What::WorkerTimer { worker } if self.lives(worker) => {
                let now = self.now();
                let host = self.host(worker);
                if host.timer == Some(now) {
                    host.timer = None;
                    self.step(worker, Input::Timeout);
                }
            }
            What::Heartbeat { worker } if self.lives(worker) => self.heartbeat(worker),
            What::Load { worker } if self.lives(worker) => {
                let processors = &self.host(worker).processors;
                let load = processors.as_ref().map_or(0.0, |(processors, _)| processors.load());
                self.step(worker, Input::Load { per_processor: load });
                self.calendar.after(LoadLimit::EVERY, What::Load { worker });
            }
            What::Dies { worker } if self.lives(worker) => self.die(worker),
            What::Revives { worker } => self.revive(worker),
            // No balancer hears it any more.
            _ => {}
        }
    }

    fn call_at(&mut self, call: CallId, worker: Life) {
        let now = self.now();
        if !self.lives(worker) {
            return self.answer(call, Err(UNREACHED), false);
        }
        let state = self.calls.get(call);
        let frontend = &self.frontends[state.balancer as usize];
        let function = state.function;
        let reservation = state
            .reserved
            .then(|| ReservationKey { balancer: frontend.name.clone(), ticket: state.ticket.0 });
        let called = Call {
            function: self.functions.name(function).clone(),
            version: Some(self.functions.version(function)),
            digest: self.functions.digest(function),
            balancer: Some(&frontend.name),
            reservation,
        };
        let host = &mut self.hosts[worker.worker as usize];
        let accepted = host.core.call(now, called);
        let invocation = accepted.invocation;
        let had = Had { invocation, call: Some(call), instance: None, began: now };
        *host.place(invocation) = Some(had);
        host.knows(accepted.version, function);
        self.carry_out_all(worker);
    }

    /// One input, and all outputs that follow from it.
    fn step(&mut self, worker: Life, input: Input<'_>) {
        let now = self.now();
        self.host(worker).core.handle(now, input);
        self.carry_out_all(worker);
    }

    fn carry_out_all(&mut self, worker: Life) {
        let now = self.now();
        while let Some(output) = self.hosts[worker.worker as usize].core.poll_output() {
            self.carry_out(worker, output);
        }
        let host = &mut self.hosts[worker.worker as usize];
        host.meter.holds(now, host.core.memory().used());
        let next = host.core.poll_timeout();
        if let Some(at) = next.filter(|at| host.timer.is_none_or(|set| *at < set)) {
            let at = at.max(now);
            host.timer = Some(at);
            self.calendar.at(at, What::WorkerTimer { worker });
        }
    }

    fn carry_out(&mut self, worker: Life, output: Output) {
        let hop = self.config.hop;
        match output {
            Output::Fetch { digest } => {
                let bundle = self.host(worker).bundle(digest);
                self.calendar.after(self.config.pull, What::Fetched { worker, bundle });
            }
            Output::Remove { digest } => {
                let bundle = self.host(worker).bundle(digest);
                self.calendar.after(Duration::ZERO, What::Removed { worker, bundle });
            }
            Output::Create { instance, version } => {
                let host = &mut self.hosts[worker.worker as usize];
                let takes = self.functions.cold_start(host.versions[version.0 as usize]);
                host.starting.push((instance, takes));
                self.calendar.after(takes, What::Started { worker, instance });
            }
            Output::Cancel { instance } => {
                let starting = &mut self.host(worker).starting;
                if let Some(at) = starting.iter().position(|(other, _)| *other == instance) {
                    starting.swap_remove(at);
                    self.calendar.after(Duration::ZERO, What::Destroyed { worker, instance });
                }
            }
            Output::Run { invocation, instance, start, phases, .. } => {
                let now = self.now();
                let host = &mut self.hosts[worker.worker as usize];
                let had = host.had(invocation).expect("a call that runs has arrived");
                (had.instance, had.began) = (Some(instance), now);
                let call = had.call.expect("it was not answered");
                let state = self.calls.get_mut(call);
                state.ran = Some((now, start, phases));
                let service = state.service;
                if self.fails(self.config.faults.crash) {
                    let part = service.mul_f64(self.faults.unit());
                    return self.calendar.after(part, What::Crashed { worker, invocation });
                }
                match &mut self.hosts[worker.worker as usize].processors {
                    None => self.calendar.after(service, What::Finished { worker, invocation }),
                    Some((processors, _)) => {
                        processors.start(now, invocation, service);
                        self.after_processors(worker);
                    }
                }
            }
            Output::Pause { instance } => {
                self.calendar.after(Duration::ZERO, What::Paused { worker, instance });
            }
            Output::SetLimit { instance, bytes } => {
                self.calendar.after(Duration::ZERO, What::LimitSet { worker, instance, bytes });
            }
            Output::Resume { instance, .. } => {
                self.calendar.after(self.config.resume, What::Resumed { worker, instance });
            }
            Output::Destroy { instance, .. } => {
                // What runs there ends with it; the core has answered it or knows that it dies.
                self.end_calls_in(worker, instance);
                self.calendar.after(Duration::ZERO, What::Destroyed { worker, instance });
            }
            Output::Answer { invocation, failure } => {
                let had = self.host(worker).had(invocation);
                if let Some(call) = had.and_then(|had| had.call.take()) {
                    self.answer(call, Err(failure.kind), false);
                }
            }
            Output::IdleWithReply { .. } => self.host(worker).idle_with_reply = true,
            Output::Tell { stream, notice } => {
                let what = self.notice(worker, stream.0 as u32, notice);
                if let Some(what) = what {
                    self.calendar.after(hop, what);
                }
            }
            Output::TellAll { notice } => {
                for balancer in 0..self.frontends.len() as u32 {
                    if let Some(what) = self.notice(worker, balancer, notice) {
                        self.calendar.after(hop, what);
                    }
                }
            }
            Output::Record(record) => {
                *self.host(worker).place(record.invocation) = None;
            }
            _ => {}
        }
    }

    fn notice(&mut self, worker: Life, balancer: u32, notice: Notice) -> Option<What> {
        let host = self.host(worker);
        match notice {
            Notice::Idle { version } => {
                let function = host.versions[version.0 as usize];
                Some(What::Idle { balancer, worker, function })
            }
            Notice::Evicted { version } => {
                let function = host.versions[version.0 as usize];
                Some(What::Evicted { balancer, worker, function })
            }
            Notice::Offered { ticket } => {
                let ticket = openlambda_core::balancing::Ticket(ticket);
                Some(What::Offered { balancer, worker, ticket })
            }
            _ => None,
        }
    }

    fn started(&mut self, worker: Life, instance: InstanceId) {
        let host = self.host(worker);
        let at = host.starting.iter().position(|(other, _)| *other == instance);
        // Its start was cancelled meanwhile.
        let Some(at) = at else { return };
        let (_, create) = host.starting.swap_remove(at);
        let input = if self.fails(self.config.faults.start) {
            let failure = Failure::new(FailureKind::StartFailed, "the sandbox did not start");
            Input::StartFailed { instance, failure }
        } else {
            Input::Started { instance, start: StartKind::Cold, create, init: Duration::ZERO }
        };
        self.step(worker, input);
    }

    /// The handler is through with a call.
    fn finish(&mut self, worker: Life, invocation: InvocationId, failure: Option<FailureKind>) {
        let now = self.now();
        let host = self.host(worker);
        let Some(had) = host.had(invocation).filter(|had| had.instance.is_some()) else { return };
        let had = *had;
        let replies = failure.is_none() && had.call.is_some();
        let (run, reusable) = (now.since(had.began), failure.is_none());
        self.step(worker, Input::Finished { invocation, run, reusable, failure, replies });
        let idle = replies && std::mem::take(&mut self.host(worker).idle_with_reply);
        if let Some(call) = had.call {
            self.answer(call, failure.map_or(Ok(()), Err), idle);
        }
    }

    /// An instance is gone, and with it what ran there.
    fn end_calls_in(&mut self, worker: Life, instance: InstanceId) {
        let now = self.now();
        let host = self.host(worker);
        let ended: Vec<InvocationId> = (host.calls.iter().flatten())
            .filter(|had| had.instance == Some(instance))
            .map(|had| had.invocation)
            .collect();
        for invocation in ended {
            if let Some((processors, _)) = &mut self.host(worker).processors {
                processors.stop(now, invocation);
                self.after_processors(worker);
            }
            self.finish(worker, invocation, Some(FailureKind::SandboxCrashed));
        }
    }

    /// A worker has answered, or a connection to it ended.
    fn answer(&mut self, call: CallId, answer: Result<(), FailureKind>, idle: bool) {
        self.calls.get_mut(call).answer = Some((self.calendar.now(), answer));
        self.calendar.after(self.config.hop, What::Answered { call, idle });
    }

    // Processors.

    fn processors_turn(&mut self, worker: Life) {
        let now = self.now();
        let Some((processors, turn)) = &mut self.host(worker).processors else { return };
        if *turn != Some(now) {
            return;
        }
        *turn = None;
        let mut ended = Vec::new();
        while let Some(invocation) = processors.poll_ended(now) {
            ended.push(invocation);
        }
        for invocation in ended {
            self.calendar.after(Duration::ZERO, What::Finished { worker, invocation });
        }
        self.after_processors(worker);
    }

    /// What runs has changed, and so has the time of the next end.
    fn after_processors(&mut self, worker: Life) {
        let host = &mut self.hosts[worker.worker as usize];
        let Some((processors, turn)) = &mut host.processors else { return };
        let next = processors.next_end();
        if next != *turn {
            *turn = next;
            if let Some(at) = next {
                self.calendar.at(at, What::ProcessorsTurn { worker });
            }
        }
    }

    // Lives.

    /// A worker's life begins: it is subscribed to, sends heartbeats, and may die.
    pub(super) fn begin_life(&mut self, worker: u32, first_beat: Duration) {
        let worker = Life { worker, life: self.hosts[worker as usize].life };
        for balancer in 0..self.frontends.len() {
            let name = Some(self.frontends[balancer].name.clone());
            let stream = StreamId(balancer as u64);
            self.step(worker, Input::Subscribed { stream, balancer: name });
        }
        self.calendar.after(first_beat, What::Heartbeat { worker });
        if self.config.scheduler.running.follows_the_load() {
            self.calendar.after(LoadLimit::EVERY, What::Load { worker });
        }
        if let Some(deaths) = self.config.faults.workers {
            let lives = self.faults.exponential(deaths.every);
            self.calendar.after(lives, What::Dies { worker });
        }
    }

    fn die(&mut self, worker: Life) {
        let now = self.now();
        let host = self.host(worker);
        host.up = false;
        host.life += 1;
        host.meter.holds(now, 0);
        let calls: Vec<CallId> =
            host.calls.drain(..).flatten().filter_map(|had| had.call).collect();
        for call in calls {
            self.answer(call, Err(BROKEN), false);
        }
        let worker = worker.worker;
        for balancer in 0..self.frontends.len() as u32 {
            self.calendar.after(self.config.hop, What::Leaves { balancer, worker });
        }
        if let Some(deaths) = self.config.faults.workers {
            self.calendar.after(deaths.away, What::Revives { worker });
        }
    }

    fn revive(&mut self, worker: u32) {
        let host = &mut self.hosts[worker as usize];
        let (life, meter) = (host.life, std::mem::take(&mut host.meter));
        *host = Host::new(self.config).expect("it was valid before");
        (host.life, host.meter) = (life, meter);
        self.begin_life(worker, self.config.heartbeat);
        let worker = Life { worker, life };
        for balancer in 0..self.frontends.len() as u32 {
            self.calendar.after(self.config.hop, What::Joins { balancer, worker });
        }
    }

    fn heartbeat(&mut self, worker: Life) {
        for balancer in 0..self.frontends.len() as u32 {
            let host = &self.hosts[worker.worker as usize];
            let (snapshot, report) = self.reports.take();
            report.load = host.core.load(self.calendar.now());
            report.idle.clear();
            let idle = host.core.idle_versions();
            report
                .idle
                .extend(idle.map(|(version, count)| (host.versions[version.0 as usize], count)));
            let what = What::Snapshot { balancer, worker, snapshot };
            self.calendar.after(self.config.hop, what);
        }
        self.calendar.after(self.config.heartbeat, What::Heartbeat { worker });
    }

    /// Whether the worker is in this life.
    fn lives(&self, worker: Life) -> bool {
        let host = &self.hosts[worker.worker as usize];
        host.up && host.life == worker.life
    }

    fn host(&mut self, worker: Life) -> &mut Host {
        &mut self.hosts[worker.worker as usize]
    }

    fn fails(&mut self, share: f64) -> bool {
        share > 0.0 && self.faults.chance(share)
    }
}
