//! The state of the cluster, for status reports and metrics.

use std::sync::Arc;

use openlambda_core::balancing::retry::RetryCounts;
use openlambda_core::wire::{BalancerStatus, WorkerStatus};

use super::selector::Selector;

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Workers that take calls.
    pub(crate) ready: u64,
    /// All workers that are known.
    pub(crate) workers: u64,
    /// Calls at workers.
    pub(crate) in_flight: u64,
    /// Calls that the policy holds.
    pub(crate) held: u64,
    /// Calls in any state.
    pub(crate) tickets: u64,
    /// How often the policy broke its contract.
    pub(crate) defects: u64,
}

impl Selector {
    pub(crate) fn status(self: &Arc<Self>, policy: &str) -> BalancerStatus {
        self.with(|state, _| {
            let view = state.balancer.view();
            let workers = view.workers().map(|(id, worker)| WorkerStatus {
                name: worker.name().to_owned(),
                url: state
                    .peer(id)
                    .map(|peer| format!("http://{}", peer.address()))
                    .unwrap_or_default(),
                state: match (worker.healthy(), worker.draining()) {
                    (false, _) => "unhealthy",
                    (true, true) => "draining",
                    (true, false) => "ready",
                }
                .to_owned(),
                in_flight: worker.in_flight(),
                load: worker.load(),
            });
            BalancerStatus { policy: policy.to_owned(), workers: workers.collect() }
        })
    }

    /// What became of attempts that failed.
    pub(crate) fn retries(self: &Arc<Self>) -> RetryCounts {
        self.with(|state, _| state.balancer.retries())
    }

    pub(crate) fn counts(self: &Arc<Self>) -> Counts {
        self.with(|state, _| {
            let view = state.balancer.view();
            Counts {
                ready: view.ready().len() as u64,
                workers: view.workers().count() as u64,
                in_flight: view.in_flight_total(),
                held: state.balancer.held() as u64,
                tickets: state.balancer.tickets() as u64,
                defects: state.balancer.defects().0,
            }
        })
    }
}
