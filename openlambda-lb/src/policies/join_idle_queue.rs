//! The worker that has been idle longest: [`JoinIdleQueue`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
};

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, WorkerQueue};

/// A queue of idle workers; when it is empty, any worker.
///
/// Algorithm: a worker whose last request is answered joins the queue's end. A request takes the
/// worker at its head; when no worker is idle, it goes to a random one, where it waits.
///
/// A worker is idle while it has fewer than `below` requests of this balancer in flight. 1 is the
/// paper's rule; its extension, to report earlier than at zero, is a higher number, and fits workers
/// with many slots.
///
/// Cost: O(1) per decision and per event, no allocation; O(idle workers) for a retry. Weights are
/// not respected. With several balancers each knows only its own requests: a worker that is idle for
/// one is in that one's queue whatever the others send, where the paper has it join one at random.
///
/// Source: Y. Lu, Q. Xie, G. Kliot, A. Geller, J. Larus, A. Greenberg, Join-Idle-Queue: A Novel Load
/// Balancing Algorithm for Dynamically Scalable Web Services, Performance Evaluation 68(11), 2011.
#[derive(Clone, Debug)]
pub struct JoinIdleQueue {
    below: u32,
    idle: WorkerQueue,
}

impl JoinIdleQueue {
    /// A worker with fewer than `below` requests in flight is idle; 0 counts as 1.
    pub fn new(below: u32) -> Self {
        JoinIdleQueue { below: below.max(1), idle: WorkerQueue::default() }
    }
}

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "join-idle-queue".to_owned(),
        about: "the worker that has been idle longest, else any".to_owned(),
        source: "Lu et al., Join-Idle-Queue, Performance Evaluation 2011".to_owned(),
        parameters: vec![
            ParameterInfo::new(
                "below",
                1,
                "a worker with fewer requests in flight than this is idle",
            )
            .within(1..=1_000_000),
        ],
        build: Box::new(|given| Ok(Box::new(JoinIdleQueue::new(given.whole("below")?)))),
    }
}

impl BalancingPolicy for JoinIdleQueue {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        // For a first attempt that is the head of the queue.
        if let Some(worker) = self.idle.iter().find(|worker| candidates.allows(*worker)) {
            return Decision::To(worker, Why("idle"));
        }
        match candidates.any(cx.rng) {
            Some(worker) => Decision::To(worker, Why("random")),
            None => Decision::Refuse(Refusal::NoWorker),
        }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        _: &mut PolicyContext<'_>,
    ) {
        let (PolicyEvent::Joined { worker }
        | PolicyEvent::Left { worker, .. }
        | PolicyEvent::ReadyChanged { worker, .. }
        | PolicyEvent::Dispatched { worker, .. }
        | PolicyEvent::Completed { worker, .. }) = *event
        else {
            return;
        };
        // The view is asked and not the event, so that nothing can be counted twice. One that left
        // is not ready.
        if !view.is_ready(worker) || view.in_flight(worker) >= self.below {
            self.idle.remove(worker);
        } else if matches!(event, PolicyEvent::Dispatched { .. }) {
            // It has room for more, but others that have been idle longer come first.
            self.idle.remove(worker);
            self.idle.push(worker);
        } else {
            self.idle.push(worker);
        }
    }
}
