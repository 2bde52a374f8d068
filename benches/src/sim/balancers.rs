//! The balancers' shell: carries out what the pure [`Balancer`](openlambda_core::balancing::balancer::Balancer)
//! decides, as `workers/` does in the live system.

use openlambda_core::balancing::balancer::BalancerOutput;
use openlambda_core::balancing::retry::{FailedAttempt, Verdict};
use openlambda_core::balancing::{Decision, FunctionId, Refusal, WorkerId};

use super::calls::{CallId, SimulatedCall};
use super::what::{Life, What};
use super::world::World;

impl<R: FnMut(&SimulatedCall<'_>)> World<'_, R> {
    pub(super) fn happen_at_balancer(&mut self, what: What) {
        let now = self.now();
        let balancer = match what {
            What::Selects { call } => return self.select(call),
            What::Probes { call } => {
                return self.calendar.after(self.config.hop, What::Selects { call });
            }
            What::Answered { call, idle } => return self.answered(call, idle),
            What::Probed { balancer, worker, load } => {
                let frontend = &mut self.frontends[balancer as usize];
                if let Some(id) = frontend.id_of(worker) {
                    frontend.balancer.probed(now, id, *self.loads.get(load));
                }
                self.loads.give_back(load);
                balancer
            }
            What::Snapshot { balancer, worker, snapshot } => {
                let frontend = &mut self.frontends[balancer as usize];
                if let Some(id) = frontend.id_of(worker) {
                    let report = self.reports.get(snapshot);
                    let idle = report.idle.iter().map(|(of, count)| (FunctionId(*of), *count));
                    frontend.balancer.snapshot(now, id, report.load, idle);
                }
                self.reports.give_back(snapshot);
                balancer
            }
            What::Offered { balancer, worker, ticket } => {
                let frontend = &mut self.frontends[balancer as usize];
                if let Some(id) = frontend.id_of(worker) {
                    frontend.balancer.offered(now, ticket, id);
                }
                balancer
            }
            What::Idle { balancer, worker, function } => {
                let frontend = &mut self.frontends[balancer as usize];
                if let Some(id) = frontend.id_of(worker) {
                    frontend.balancer.worker_idle(now, id, FunctionId(function));
                }
                balancer
            }
            What::Evicted { balancer, worker, function } => {
                let frontend = &mut self.frontends[balancer as usize];
                if let Some(id) = frontend.id_of(worker) {
                    frontend.balancer.worker_evicted(now, id, FunctionId(function));
                }
                balancer
            }
            What::BalancerTimer { balancer } => {
                let frontend = &mut self.frontends[balancer as usize];
                if frontend.timer != Some(now) {
                    return;
                }
                frontend.timer = None;
                frontend.balancer.handle_timeout(now);
                balancer
            }
            What::Joins { balancer, worker } => {
                let capacity = self.capacity();
                self.frontends[balancer as usize].join(now, worker, capacity);
                balancer
            }
            What::Leaves { balancer, worker } => {
                let frontend = &mut self.frontends[balancer as usize];
                if let Some((id, _)) = frontend.known[worker as usize].take() {
                    frontend.balancer.leave(now, id);
                }
                balancer
            }
            _ => unreachable!("it happens elsewhere"),
        };
        self.after_balancer(balancer);
    }

    /// A worker that is there from the beginning is known to all.
    pub(super) fn join_at_once(&mut self, worker: u32) {
        let (now, capacity) = (self.now(), self.capacity());
        for frontend in &mut self.frontends {
            frontend.join(now, Life { worker, life: 0 }, capacity);
        }
    }

    pub(super) fn select(&mut self, call: CallId) {
        let now = self.now();
        let state = self.calls.get(call);
        let (balancer, ticket) = (state.balancer, state.ticket);
        match self.frontends[balancer as usize].balancer.select(now, ticket) {
            Decision::To(worker, _) => self.send(balancer, call, worker),
            Decision::Hold { .. } => {}
            Decision::Probe(set) => {
                for worker in set.as_slice() {
                    self.probe(balancer, *worker);
                }
                // Entered last, so that it comes when all answers are in.
                self.calendar.after(self.config.hop, What::Probes { call });
            }
            Decision::Refuse(refusal) => self.refuse(call, refusal),
        }
        self.after_balancer(balancer);
    }

    fn after_balancer(&mut self, balancer: u32) {
        while let Some(output) = self.frontends[balancer as usize].balancer.poll_output() {
            let frontend = &self.frontends[balancer as usize];
            match output {
                BalancerOutput::Bound { ticket, worker, .. } => {
                    let call = frontend.call_of(ticket);
                    self.send(balancer, call, worker);
                }
                BalancerOutput::Refused { ticket, refusal } => {
                    let call = frontend.call_of(ticket);
                    self.refuse(call, refusal);
                }
                BalancerOutput::Probe { worker } => self.probe(balancer, worker),
                BalancerOutput::Reserve { ticket, worker } => {
                    let call = self.calls.get_mut(frontend.call_of(ticket));
                    call.reserved = true;
                    let function = call.function;
                    let worker = self.life_of(frontend.worker_of(worker));
                    let what = What::ReserveAt { balancer, ticket, function, worker };
                    self.calendar.after(self.config.hop, what);
                }
                BalancerOutput::Cancel { ticket, worker } => {
                    let worker = self.life_of(frontend.worker_of(worker));
                    let what = What::CancelAt { balancer, ticket, worker };
                    self.calendar.after(self.config.hop, what);
                }
                _ => {}
            }
        }
        let frontend = &mut self.frontends[balancer as usize];
        let timeout = frontend.balancer.poll_timeout();
        if let Some(at) = timeout.filter(|at| frontend.timer.is_none_or(|set| *at < set)) {
            let at = at.max(self.calendar.now());
            frontend.timer = Some(at);
            self.calendar.at(at, What::BalancerTimer { balancer });
        }
    }

    fn send(&mut self, balancer: u32, call: CallId, worker: WorkerId) {
        let frontend = &self.frontends[balancer as usize];
        let worker = frontend.worker_of(worker);
        let life = frontend.known[worker as usize].map_or(u32::MAX, |(_, life)| life);
        let state = self.calls.get_mut(call);
        state.worker = Some(worker);
        state.attempts += 1;
        (state.ran, state.answer) = (None, None);
        let worker = Life { worker, life };
        self.calendar.after(self.config.hop, What::CallAt { call, worker });
    }

    fn probe(&mut self, balancer: u32, worker: WorkerId) {
        let worker = self.life_of(self.frontends[balancer as usize].worker_of(worker));
        self.calendar.after(self.config.hop, What::ProbeAt { balancer, worker });
    }

    fn refuse(&mut self, call: CallId, refusal: Refusal) {
        let state = self.calls.get(call);
        let (balancer, ticket) = (state.balancer, state.ticket);
        let now = self.now();
        self.frontends[balancer as usize].balancer.finish(now, ticket);
        self.call_over(call, Some(refusal.kind()));
    }

    fn answered(&mut self, call: CallId, idle: bool) {
        let now = self.now();
        let state = self.calls.get(call);
        let (balancer, ticket, function) = (state.balancer, state.ticket, state.function);
        let worker = state.worker.expect("a worker has answered");
        let start = state.ran.map(|(_, start, _)| start);
        let (_, answer) = state.answer.expect("it was answered");
        let frontend = &mut self.frontends[balancer as usize];
        match answer {
            Ok(()) => {
                if let (true, Some((id, _))) = (idle, frontend.known[worker as usize]) {
                    frontend.balancer.worker_idle(now, id, FunctionId(function));
                }
                frontend.balancer.completed(now, ticket, start, true);
            }
            Err(kind) => {
                let attempt = FailedAttempt::new(kind);
                if frontend.balancer.failed(now, ticket, &attempt) == Verdict::Retry {
                    return self.select(call);
                }
            }
        }
        frontend.balancer.finish(now, ticket);
        self.after_balancer(balancer);
        self.call_over(call, answer.err());
    }

    /// How many calls a worker can run at once, as it says of itself.
    fn capacity(&self) -> u32 {
        let config = self.config;
        let fit = config.scheduler.memory / config.limits.memory.max(1);
        config.processors.unwrap_or(u32::try_from(fit).unwrap_or(u32::MAX))
    }

    fn life_of(&self, worker: u32) -> Life {
        Life { worker, life: self.hosts[worker as usize].life }
    }
}
