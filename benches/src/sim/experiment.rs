//! An experiment from its first call to its last: calls arrive, and whatever the deciders ask for happens
//! after its delay.

use std::time::Duration;

use openlambda_core::balancing::BalancingPolicy;
use openlambda_core::random::Rng;

use super::calendar::Calendar;
use super::calls::{Calls, SimulatedCall, UnderWay};
use super::clients::Clients;
use super::config::{SimConfig, SimError};
use super::frontend::Frontend;
use super::functions::Functions;
use super::host::Host;
use super::on_the_way::OnTheWay;
use super::what::What;
use super::world::World;

/// Runs the experiment with one balancer; `record` sees every call when it is over, in the order in which
/// they end.
///
/// # Errors
///
/// [`SimError`].
pub fn simulate(
    config: &SimConfig,
    policy: Box<dyn BalancingPolicy>,
    record: impl FnMut(&SimulatedCall<'_>),
) -> Result<Usage, SimError> {
    if config.balancers > 1 {
        return Err(SimError::OnePolicy);
    }
    let mut policy = Some(policy);
    simulate_with(config, || policy.take().expect("there is one balancer"), record)
}

/// The same with a policy for each of the balancers.
///
/// # Errors
///
/// [`SimError`].
pub fn simulate_with(
    config: &SimConfig,
    make_policy: impl FnMut() -> Box<dyn BalancingPolicy>,
    record: impl FnMut(&SimulatedCall<'_>),
) -> Result<Usage, SimError> {
    Ok(World::new(config, make_policy, record)?.run())
}

/// What the experiment took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// From the beginning until the last call was over. In a closed loop, calls by seconds are the
    /// throughput.
    pub seconds: f64,
    /// Bytes that all workers' instances took from the pools: the mean over time, until the last
    /// call was over.
    pub mean_memory: f64,
}

impl<'a, R: FnMut(&SimulatedCall<'_>)> World<'a, R> {
    fn new(
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
            clients: Clients::new(config, record),
            frontends,
            hosts,
            loads: OnTheWay::new(),
            reports: OnTheWay::new(),
            arrived: 0,
            faults: stream("faults"),
            doors: stream("balancers"),
            releases: stream("releases"),
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

    fn run(mut self) -> Usage {
        self.clients.begin(&mut self.calendar);
        // The experiment is over with its last call.
        while self.clients.over < self.config.workload.invocations
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

    fn happen(&mut self, what: What) {
        match what {
            What::Arrival => {
                let arrival = self.clients.arrival(&mut self.calendar);
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

    fn release_later(&mut self) {
        if let Some(mean) = self.config.releases {
            let after = self.releases.exponential(mean);
            self.calendar.after(after, What::Release);
        }
    }
}
