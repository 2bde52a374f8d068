//! One simulated balancer.

use openlambda_core::balancing::balancer::Balancer;
use openlambda_core::balancing::{BalancingPolicy, FunctionId, Ticket, WorkerId, WorkerInfo};
use openlambda_core::time::Time;

use super::calls::CallId;
use super::config::SimConfig;
use super::functions::Functions;
use super::what::Life;

/// A balancer, and what belongs to its tickets and workers here.
#[derive(Debug)]
pub(super) struct Frontend {
    pub(super) name: String,
    pub(super) balancer: Balancer,
    /// When the balancer's next time-out is.
    pub(super) timer: Option<Time>,
    /// By a ticket's place (its lower half): which call has it.
    tickets: Vec<CallId>,
    /// By worker: under which id it is known, and in which life.
    pub(super) known: Vec<Option<(WorkerId, u32)>>,
    /// By a worker's slot: which it is.
    slots: Vec<u32>,
}

impl Frontend {
    pub(super) fn new(
        config: &SimConfig,
        number: u32,
        policy: Box<dyn BalancingPolicy>,
        functions: &Functions,
    ) -> Self {
        // Several balancers decide independently; placement is the same for all.
        let seed = config.seed.wrapping_add(u64::from(number) << 32);
        let mut balancer =
            Balancer::new(policy, seed).with_retries(config.retries).with_placement(config.seed);
        for function in 0..functions.len() {
            let id = balancer.function(functions.name(function));
            debug_assert_eq!(id.0, function, "ids are given out in order");
            let manifest = functions.manifest_of(function);
            if !manifest.packages.is_empty() {
                balancer.describe(id, manifest);
            }
        }
        Frontend {
            name: format!("b{number}"),
            balancer,
            timer: None,
            tickets: Vec::new(),
            known: vec![None; config.workers as usize],
            slots: Vec::new(),
        }
    }

    pub(super) fn arrived(&mut self, function: u32) -> Ticket {
        self.balancer.arrived(FunctionId(function))
    }

    /// Which call a ticket stands for.
    pub(super) fn knows(&mut self, ticket: Ticket, call: CallId) {
        let at = ticket.0 as u32 as usize;
        if at >= self.tickets.len() {
            self.tickets.resize(at + 1, 0);
        }
        self.tickets[at] = call;
    }

    pub(super) fn call_of(&self, ticket: Ticket) -> CallId {
        self.tickets[ticket.0 as u32 as usize]
    }

    pub(super) fn join(&mut self, now: Time, worker: Life, capacity: u32) {
        let name = format!("w{}", worker.worker);
        let id = self.balancer.join(now, WorkerInfo::new(name, capacity));
        self.known[worker.worker as usize] = Some((id, worker.life));
        if id.index() >= self.slots.len() {
            self.slots.resize(id.index() + 1, 0);
        }
        self.slots[id.index()] = worker.worker;
    }

    /// The worker's id, if it is known in this life.
    pub(super) fn id_of(&self, worker: Life) -> Option<WorkerId> {
        let (id, life) = self.known[worker.worker as usize]?;
        (life == worker.life).then_some(id)
    }

    pub(super) fn worker_of(&self, id: WorkerId) -> u32 {
        self.slots[id.index()]
    }
}
