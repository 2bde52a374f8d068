//! One queue for the whole cluster: [`CentralQueue`].

use std::collections::VecDeque;
use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo,
    Ticket, Why, WorkerId,
};

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, FewWorkers, FillOrder, FixedMap};

/// Requests wait at the balancer, in order of arrival, for the first free slot.
///
/// Algorithm: a worker has as many slots as its capacity. A request goes to the worker with the
/// largest part of its slots free; when none is free it is held, and when a slot becomes free the
/// one that came first is bound to it. No slot is free while a request waits that may go there.
///
/// A retry does not go to a worker that failed it while another one is ready; so a request behind it may
/// be served first, by that very worker. A request that failed on more than eight workers is not held:
/// it goes to the least full of the others.
///
/// With Poisson arrivals and exponential service this is the M/M/c queue, whose waiting times are
/// known, so it checks the simulator. Its price: a slot idles for one hop of the network between two
/// requests.
///
/// A request waits at most `wait`, and at most `most` requests wait; beyond, it is refused as
/// overloaded. Warm instances are not considered.
///
/// Cost: O(1) per decision and event, no allocation in the steady state; with retries in the queue
/// O(free workers · queue) in the worst case.
///
/// Source: the textbook (Kleinrock, Queueing Systems, 1975).
#[derive(Clone, Debug)]
pub struct CentralQueue {
    wait: Duration,
    most: usize,
    order: FillOrder,
    /// Those who left the queue from its middle are `None`, and forgotten when they come to the
    /// front.
    queue: VecDeque<Option<Waiting>>,
    /// The number of the queue's front; numbers go up by one from there.
    front: u64,
    /// By ticket: the number.
    numbers: FixedMap<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    failed: FewWorkers,
}

impl CentralQueue {
    /// Holds up to `most` requests, each for up to `wait`.
    pub fn new(wait: Duration, most: usize) -> Self {
        CentralQueue {
            wait,
            most,
            order: FillOrder::default(),
            queue: VecDeque::new(),
            front: 0,
            numbers: FixedMap::default(),
        }
    }

    fn free_slot(
        &self,
        candidates: &Candidates<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Option<WorkerId> {
        let mut free = self.order.iter().take_while(|(_, level)| *level < FillOrder::FULL);
        if candidates.left_out().next().is_some() {
            return free.find(|(worker, _)| candidates.allows(*worker)).map(|(worker, _)| worker);
        }
        free.next()?;
        let least = self.order.least();
        Some(least[cx.rng.below(least.len())])
    }

    /// Binds the first request that can be: one at a time, since each bind is followed by an event.
    fn bind_next(&self, view: &ClusterView<'_>, cx: &mut PolicyContext<'_>) {
        if self.numbers.is_empty() {
            return;
        }
        for (worker, level) in self.order.iter() {
            if level >= FillOrder::FULL {
                return;
            }
            let mut waiting = self.queue.iter().flatten();
            if let Some(next) = waiting.find(|waiting| waiting.failed.allow(worker, view)) {
                cx.bind(next.ticket, worker, Why("free slot"));
                return;
            }
        }
    }

    fn push(&mut self, waiting: Waiting) {
        // Those who left must not pile up behind one who stays.
        if self.queue.len() > 64 + 2 * self.numbers.len() {
            self.queue.retain(Option::is_some);
            for (number, waiting) in (self.front..).zip(self.queue.iter().flatten()) {
                self.numbers.insert(waiting.ticket.0, number);
            }
        }
        self.numbers.insert(waiting.ticket.0, self.front + self.queue.len() as u64);
        self.queue.push_back(Some(waiting));
    }

    fn forget(&mut self, ticket: Ticket) {
        let Some(number) = self.numbers.remove(ticket.0) else { return };
        if let Some(place) = self.queue.get_mut((number - self.front) as usize) {
            *place = None;
        }
        while let Some(None) = self.queue.front() {
            self.queue.pop_front();
            self.front += 1;
        }
    }
}

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "central-queue".to_owned(),
        about: "the first free slot of any worker; until then requests wait at the balancer"
            .to_owned(),
        source: "the textbook; with exponential service an M/M/c queue".to_owned(),
        parameters: vec![
            ParameterInfo::new("wait", 30.0, "the most seconds that a request waits")
                .within(0.001..=86_400.0),
            ParameterInfo::new("most", 100_000, "the most requests that wait")
                .within(0..=100_000_000),
        ],
        build: Box::new(|given| {
            let (wait, most) = (given.seconds("wait")?, given.whole("most")?);
            Ok(Box::new(CentralQueue::new(wait, most as usize)))
        }),
    }
}

impl BalancingPolicy for CentralQueue {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        if candidates.is_empty() {
            return Decision::Refuse(Refusal::NoWorker);
        }
        // Nobody who waits may go to a free slot, or it would have been bound: none is overtaken.
        if let Some(worker) = self.free_slot(&candidates, cx) {
            return Decision::To(worker, Why("free slot"));
        }
        let Some(failed) = FewWorkers::of(request.excluded) else {
            let mut allowed = self.order.iter().filter(|(worker, _)| candidates.allows(*worker));
            return match allowed.next() {
                Some((worker, _)) => Decision::To(worker, Why("least full")),
                None => Decision::Refuse(Refusal::Overloaded),
            };
        };
        if self.numbers.len() >= self.most {
            return Decision::Refuse(Refusal::Overloaded);
        }
        self.push(Waiting { ticket: request.ticket, failed });
        Decision::Hold { until: cx.now + self.wait }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        self.order.observe(event, view);
        if let PolicyEvent::Dispatched { ticket, .. } | PolicyEvent::Abandoned { ticket } = *event {
            self.forget(ticket);
        }
        self.bind_next(view, cx);
    }
}
