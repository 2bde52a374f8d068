//! The world of an experiment: calls come, and what the deciders want done happens, each after its delay.

use std::time::Duration;

use openlambda_core::balancing::{BalancingPolicy, Ticket, WorkerLoad};
use openlambda_core::failure::FailureKind;
use openlambda_core::invocation::Phases;
use openlambda_core::metrics::Outcome;
use openlambda_core::random::Rng;
use openlambda_core::scheduler::{InstanceId, InvocationId};
use openlambda_core::time::Time;

use super::balancers::Frontend;
use super::calendar::Calendar;
use super::calls::{CallId, Calls, SimulatedCall, UnderWay};
use super::functions::Functions;
use super::workers::Host;
use super::{SimConfig, SimError, Usage, Users};
use crate::workload::{Arrival, Workload};

/// What can happen. What is said between balancers and workers names the worker's life: what comes from
/// or for an earlier one is not heard.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    /// The next call of an open system.
    Arrival,
    /// A user makes a call.
    Call {
        function: u32,
        service: Duration,
    },

    // At a worker.
    CallAt {
        call: CallId,
        worker: Life,
    },
    ReserveAt {
        balancer: u32,
        ticket: Ticket,
        function: u32,
        worker: Life,
    },
    CancelAt {
        balancer: u32,
        ticket: Ticket,
        worker: Life,
    },
    ProbeAt {
        balancer: u32,
        worker: Life,
    },
    Fetched {
        worker: Life,
        bundle: u32,
    },
    Removed {
        worker: Life,
        bundle: u32,
    },
    Started {
        worker: Life,
        instance: InstanceId,
    },
    Destroyed {
        worker: Life,
        instance: InstanceId,
    },
    Paused {
        worker: Life,
        instance: InstanceId,
    },
    LimitSet {
        worker: Life,
        instance: InstanceId,
        bytes: u64,
    },
    Resumed {
        worker: Life,
        instance: InstanceId,
    },
    Finished {
        worker: Life,
        invocation: InvocationId,
    },
    Crashed {
        worker: Life,
        invocation: InvocationId,
    },
    ProcessorsTurn {
        worker: Life,
    },
    WorkerTimer {
        worker: Life,
    },
    Load {
        worker: Life,
    },
    Heartbeat {
        worker: Life,
    },
    Dies {
        worker: Life,
    },
    Revives {
        worker: u32,
    },

    // At a balancer.
    Answered {
        call: CallId,
        idle: bool,
    },
    Selects {
        call: CallId,
    },
    /// All probes of a call are on their way back.
    Probes {
        call: CallId,
    },
    Probed {
        balancer: u32,
        worker: Life,
        load: u32,
    },
    Snapshot {
        balancer: u32,
        worker: Life,
        snapshot: u32,
    },
    Offered {
        balancer: u32,
        worker: Life,
        ticket: Ticket,
    },
    Idle {
        balancer: u32,
        worker: Life,
        function: u32,
    },
    Evicted {
        balancer: u32,
        worker: Life,
        function: u32,
    },
    BalancerTimer {
        balancer: u32,
    },
    Joins {
        balancer: u32,
        worker: Life,
    },
    Leaves {
        balancer: u32,
        worker: u32,
    },

    Release,
}

/// A worker, and which of its lives: one that dies comes back as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) worker: u32,
    pub(super) life: u32,
}

/// A worker's report, on its way.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    pub(super) load: WorkerLoad,
    pub(super) idle: Vec<(u32, u32)>,
}

/// What is on its way and too large for an event, in places that are used again.
#[derive(Debug)]
pub(super) struct OnTheWay<T> {
    places: Vec<T>,
    free: Vec<u32>,
}

impl<T: Default> OnTheWay<T> {
    fn new() -> Self {
        OnTheWay { places: Vec::new(), free: Vec::new() }
    }

    /// A place, with what was in it before.
    pub(super) fn take(&mut self) -> (u32, &mut T) {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(T::default());
            (self.places.len() - 1) as u32
        });
        (at, &mut self.places[at as usize])
    }

    pub(super) fn get(&self, at: u32) -> &T {
        &self.places[at as usize]
    }

    pub(super) fn give_back(&mut self, at: u32) {
        self.free.push(at);
    }
}

/// See the module's documentation.
pub(super) struct World<'a, R> {
    pub(super) config: &'a SimConfig,
    pub(super) calendar: Calendar<What>,
    pub(super) functions: Functions,
    pub(super) calls: Calls,
    pub(super) frontends: Vec<Frontend>,
    pub(super) hosts: Vec<Host>,
    pub(super) loads: OnTheWay<WorkerLoad>,
    pub(super) reports: OnTheWay<Report>,
    /// What goes wrong.
    pub(super) faults: Rng,
    record: R,
    workload: Workload,
    next_arrival: Option<Arrival>,
    thoughts: Rng,
    /// To which balancer a call comes.
    doors: Rng,
    releases: Rng,
    arrived: u64,
    over: u64,
}

impl<'a, R: FnMut(&SimulatedCall<'_>)> World<'a, R> {
    pub(super) fn new(
        config: &'a SimConfig,
        mut make_policy: impl FnMut() -> Box<dyn BalancingPolicy>,
        record: R,
    ) -> Result<Self, SimError> {
        let profiles = config.workload.profiles(config.seed);
        if config.users.is_some_and(|users| users.count == 0) {
            return Err(SimError::NoUsers);
        }
        if config.users.is_some() && profiles.iter().all(|profile| profile.timer) {
            return Err(SimError::OnlyTimers);
        }
        if config.balancers == 0 {
            return Err(SimError::NoBalancer);
        }
        let functions = Functions::new(config, &profiles);
        let frontends: Vec<Frontend> = (0..config.balancers)
            .map(|balancer| Frontend::new(config, balancer, make_policy(), &functions))
            .collect();
        let hosts = (0..config.workers).map(|_| Host::new(config)).collect::<Result<_, _>>()?;
        let stream = |label| Rng::from_seed_and_label(config.seed, label);
        let delays = [Duration::ZERO, config.hop, config.heartbeat, config.pull];
        let mut world = World {
            config,
            calendar: Calendar::new(&delays),
            functions,
            calls: Calls::default(),
            frontends,
            hosts,
            loads: OnTheWay::new(),
            reports: OnTheWay::new(),
            faults: stream("faults"),
            record,
            workload: Workload::new(config.workload, config.seed),
            next_arrival: None,
            thoughts: stream("thoughts"),
            doors: stream("balancers"),
            releases: stream("releases"),
            arrived: 0,
            over: 0,
        };
        let mut beats = stream("heartbeats");
        for worker in 0..config.workers {
            world.join_at_once(worker);
            // Workers are not started at the same moment.
            world.begin_life(worker, config.heartbeat.mul_f64(beats.unit()));
        }
        world.release_later();
        Ok(world)
    }

    pub(super) fn run(mut self) -> Usage {
        match self.config.users {
            None => self.await_arrival(),
            Some(users) => (0..users.count).for_each(|_| self.think(users)),
        }
        // The experiment is over with its last call.
        while self.over < self.config.workload.invocations
            && let Some(what) = self.calendar.next()
        {
            self.happen(what);
        }
        let now = self.now();
        let byte_seconds: f64 = self.hosts.iter_mut().map(|host| host.byte_seconds(now)).sum();
        // An experiment without calls takes no time, and holds nothing.
        let seconds = now.as_secs_f64();
        Usage { seconds, mean_memory: if seconds > 0.0 { byte_seconds / seconds } else { 0.0 } }
    }

    pub(super) fn now(&self) -> Time {
        self.calendar.now()
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Arrival => {
                let arrival = self.next_arrival.take().expect("it was drawn");
                self.await_arrival();
                self.arrive(arrival.function, arrival.service);
            }
            What::Call { function, service } => self.arrive(function, service),
            What::Release => {
                let function = self.releases.below(self.functions.len() as usize) as u32;
                self.functions.release(function);
                self.release_later();
            }
            What::Selects { .. }
            | What::Probes { .. }
            | What::Answered { .. }
            | What::Probed { .. }
            | What::Snapshot { .. }
            | What::Offered { .. }
            | What::Idle { .. }
            | What::Evicted { .. }
            | What::BalancerTimer { .. }
            | What::Joins { .. }
            | What::Leaves { .. } => self.happen_at_balancer(what),
            _ => self.happen_at_worker(what),
        }
    }

    fn await_arrival(&mut self) {
        self.next_arrival = self.workload.next();
        if let Some(arrival) = &self.next_arrival {
            self.calendar.in_order(arrival.at, What::Arrival);
        }
    }

    fn arrive(&mut self, function: u32, service: Duration) {
        let balancer = match self.frontends.len() {
            1 => 0,
            count => self.doors.below(count) as u32,
        };
        let ticket = self.frontends[balancer as usize].arrived(function);
        let call = self.calls.insert(UnderWay {
            number: self.arrived,
            function,
            balancer,
            ticket,
            service,
            arrived: self.now(),
            attempts: 0,
            reserved: false,
            worker: None,
            ran: None,
            answer: None,
        });
        self.arrived += 1;
        self.frontends[balancer as usize].knows(ticket, call);
        self.select(call);
    }

    /// A call is over. `failure`: how, if it was not answered by its function.
    pub(super) fn call_over(&mut self, id: CallId, failure: Option<FailureKind>) {
        let call = self.calls.remove(id);
        let now = self.now();
        let latency = now.since(call.arrived);
        let network = if call.worker.is_some() { 2 * self.config.hop } else { Duration::ZERO };
        let mut phases = call.ran.map(|(_, _, phases)| phases).unwrap_or_default();
        if let (Some((began, ..)), Some((ended, _))) = (call.ran, call.answer) {
            phases.run = ended.since(began);
        }
        let Phases { pull, create, init, run, .. } = phases;
        phases.queue = latency.saturating_sub(network + pull + create + init + run);
        self.over += 1;
        (self.record)(&SimulatedCall {
            number: call.number,
            function: call.function,
            balancer: call.balancer,
            worker: call.worker,
            attempts: call.attempts,
            arrived: call.arrived,
            answered: now,
            start: call.ran.map(|(_, start, _)| start),
            phases,
            network: network.min(latency),
            outcome: failure.map_or(Outcome::Ok, Outcome::Failed),
            functions: &self.functions,
            seed: self.config.seed,
        });
        if let Some(users) = self.config.users {
            self.think(users);
        }
    }

    /// A user thinks, then makes a call, if any is left to make.
    fn think(&mut self, users: Users) {
        let at = self.now() + self.thoughts.exponential(users.think);
        if let Some(Arrival { function, service, .. }) = self.workload.call_at(at) {
            self.calendar.at(at, What::Call { function, service });
        }
    }

    fn release_later(&mut self) {
        if let Some(mean) = self.config.releases {
            let after = self.releases.exponential(mean);
            self.calendar.after(after, What::Release);
        }
    }
}
