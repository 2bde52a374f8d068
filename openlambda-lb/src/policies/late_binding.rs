//! The first of a few workers that has a slot free: [`LateBinding`].

use std::collections::VecDeque;
use std::time::Duration;

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo,
    Ticket, Why, WorkerId,
};
use openlambda_core::time::Time;

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{Candidates, FewWorkers, FixedMap};

/// Sampled late binding: a request reserves a place in the queues of `d` random workers, and goes to
/// the worker whose queue reaches the place first.
///
/// Algorithm: `d` distinct ready workers are drawn and get a reservation each; the request stays at the
/// balancer. A worker whose queue reaches a reservation offers its slot; the first offer gets the
/// request, and the balancer cancels the other reservations. So a request never waits behind a long one
/// while another of its workers is free; the length of a queue alone would not show that. With fewer
/// than two workers to choose from, nothing is reserved.
///
/// When no offer has come for `patience` (lost, or the workers know no reservations), the request is
/// bound to the one of its workers with the fewest requests in flight by weight, (qᵢ + 1) / wᵢ; if
/// none of them is ready any more, to the better of two random ones. It waits `wait` in all, then it is
/// refused as overloaded. A retry that failed on more than eight workers goes to a random other one
/// at once.
///
/// Cost: O(d) per decision and O(1) per event, no allocation in the steady state; the request pays
/// one round trip between an offer and the request itself.
///
/// Source: K. Ousterhout, P. Wendell, M. Zaharia, I. Stoica, Sparrow: Distributed, Low Latency
/// Scheduling, SOSP 2013. There a job of m tasks shares d · m reservations (batch sampling); an
/// invocation is a job of one task.
#[derive(Clone, Debug)]
pub struct LateBinding {
    d: usize,
    patience: Duration,
    wait: Duration,
    /// By ticket.
    held: FixedMap<Held>,
    /// When patience ends, in that order. Those that are held no more are dropped at the front.
    ends: VecDeque<(Time, Ticket)>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    reserved: FewWorkers,
    failed: FewWorkers,
    patience_ends: Time,
}

impl LateBinding {
    /// The most reservations of a request.
    pub const MOST: usize = FewWorkers::MOST;

    /// `d` reservations per request, 1 to [`Self::MOST`] (clamped); without an offer a request is
    /// bound after `patience`, and it is held for up to `wait`.
    pub fn new(d: usize, patience: Duration, wait: Duration) -> Self {
        LateBinding {
            d: d.clamp(1, Self::MOST),
            // Without any, it would be woken without end while no worker is ready.
            patience: patience.max(Duration::from_millis(1)),
            wait,
            held: FixedMap::default(),
            ends: VecDeque::new(),
        }
    }

    fn hold(&mut self, ticket: Ticket, reserved: FewWorkers, failed: FewWorkers, now: Time) {
        let patience_ends = now + self.patience;
        self.held.insert(ticket.0, Held { reserved, failed, patience_ends });
        self.ends.push_back((patience_ends, ticket));
    }

    fn drop_ended(&mut self) {
        while let Some((at, ticket)) = self.ends.front()
            && self.held.get(ticket.0).is_none_or(|held| held.patience_ends != *at)
        {
            self.ends.pop_front();
        }
    }

    /// Where a request goes that got no offer.
    fn without_offer(
        held: &Held,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Option<WorkerId> {
        let usable = |worker: &WorkerId| view.is_ready(*worker) && held.failed.allow(*worker, view);
        let reserved = held.reserved.iter().filter(usable);
        let better = |a: WorkerId, b| if cost(b, view) < cost(a, view) { b } else { a };
        if let Some(best) = reserved.reduce(better) {
            return Some(best);
        }
        let n = view.ready().len();
        if n == 0 {
            return None;
        }
        let drawn = [0; 2].map(|_| view.ready()[cx.rng.below(n)]);
        let drawn = drawn.into_iter().filter(usable).reduce(better);
        drawn.or_else(|| view.ready().iter().copied().find(usable))
    }
}

fn cost(worker: WorkerId, view: &ClusterView<'_>) -> f64 {
    view.worker(worker)
        .map_or(f64::INFINITY, |known| f64::from(known.in_flight() + 1) / known.weight())
}

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "late-binding".to_owned(),
        about: "the first of d random workers whose queue reaches the request".to_owned(),
        source: "Ousterhout et al., Sparrow: Distributed, Low Latency Scheduling, SOSP 2013"
            .to_owned(),
        parameters: vec![
            ParameterInfo::new("d", 2, "workers that a request has reservations at, 1 to 8")
                .within(1..=LateBinding::MOST as u32),
            ParameterInfo::new(
                "patience",
                1.0,
                "seconds without an offer, then it is bound anyway",
            )
            .within(0.001..=86_400.0),
            ParameterInfo::new("wait", 30.0, "the most seconds that a request is held")
                .within(0.001..=86_400.0),
        ],
        build: Box::new(|given| {
            let (d, patience) = (given.whole("d")? as usize, given.seconds("patience")?);
            Ok(Box::new(LateBinding::new(d, patience, given.seconds("wait")?)))
        }),
    }
}

impl BalancingPolicy for LateBinding {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let candidates = Candidates::of(request, view);
        let Some(only) = candidates.any(cx.rng) else {
            return Decision::Refuse(Refusal::NoWorker);
        };
        let n = candidates.len();
        let Some(failed) = FewWorkers::of(request.excluded).filter(|_| n > 1) else {
            return Decision::To(only, Why("no choice"));
        };
        // Floyd's sampling, as in `PowerOfD`.
        let mut places = [0; LateBinding::MOST];
        let mut drawn = [only; LateBinding::MOST];
        let d = self.d.min(n);
        for (taken, top) in (n - d..n).enumerate() {
            let at = cx.rng.below(top + 1);
            places[taken] = if places[..taken].contains(&at) { top } else { at };
            drawn[taken] = candidates.nth(places[taken]);
            cx.reserve(request.ticket, drawn[taken]);
        }
        let reserved = FewWorkers::of(&drawn[..d]).unwrap_or_default();
        self.hold(request.ticket, reserved, failed, cx.now);
        Decision::Hold { until: cx.now + self.wait }
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        match *event {
            PolicyEvent::Offered { ticket, worker } => {
                let held = self.held.get(ticket.0);
                if held.is_some_and(|held| held.failed.allow(worker, view)) {
                    cx.bind(ticket, worker, Why("offered"));
                }
            }
            PolicyEvent::Dispatched { ticket, .. } | PolicyEvent::Abandoned { ticket } => {
                self.held.remove(ticket.0);
                self.drop_ended();
            }
            _ => {}
        }
    }

    fn next_wakeup(&self) -> Option<Time> {
        self.ends.front().map(|(at, _)| *at)
    }

    fn on_wakeup(&mut self, view: &ClusterView<'_>, cx: &mut PolicyContext<'_>) {
        while let Some((at, ticket)) = self.ends.front().copied().filter(|(at, _)| *at <= cx.now) {
            self.ends.pop_front();
            let Some(held) = self.held.get(ticket.0).filter(|held| held.patience_ends == at) else {
                continue;
            };
            let held = *held;
            if let Some(worker) = Self::without_offer(&held, view, cx) {
                cx.bind(ticket, worker, Why("no offer"));
            }
            // If no worker is ready, it is tried again later; otherwise it is forgotten when the bind
            // is observed.
            self.hold(ticket, held.reserved, held.failed, cx.now);
        }
        self.drop_ended();
    }
}
