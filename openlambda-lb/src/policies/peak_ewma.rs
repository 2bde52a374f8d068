//! The one of two workers with the lower expected latency: [`PeakEwma`].

use openlambda_core::balancing::{
    BalancingPolicy, ClusterView, Decision, PolicyContext, PolicyEvent, Refusal, RequestInfo, Why,
    WorkerId,
};
use openlambda_core::time::Time;

use super::catalog::{ParameterInfo, PolicyEntry};
use super::parts::{BySlot, Candidates};

/// Power of two choices on a cost that is latency times queue, and that jumps to peaks.
///
/// Formula: each worker has an estimate of its latency. A reply that took `rtt`, Δt after the one
/// before it, changes it so:
///
/// ```text
/// rtt > est:  est = rtt
/// else:       est = est · e^(−Δt/τ) + rtt · (1 − e^(−Δt/τ))
/// ```
///
/// and with time alone it fades as est · e^(−Δt/τ), so that a slow worker is tried again. Of two
/// random distinct workers the one with the lower cost is taken: cost = est · (q + 1) / w. A worker
/// without an estimate costs nothing while it has no request in flight, and more than any other
/// from then on until its first reply.
///
/// A failed request can raise the estimate, but does not lower it: a worker that fails at once would
/// attract all requests otherwise.
///
/// Cost: two samples and at most two exponentials per decision, one per completion; no allocation.
///
/// Source: Finagle's PeakEwma load metric (Twitter, 2016), as in tower's `balance`.
#[derive(Clone, Debug)]
pub struct PeakEwma {
    /// τ in nanoseconds.
    tau: f64,
    estimates: BySlot<Estimate>,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    /// In nanoseconds, at the time `at`. 0: nothing is known.
    latency: f64,
    at: Time,
}

/// The cost of a worker whose first reply is still to come, in nanoseconds: 39 hours.
const PENALTY: f64 = (i64::MAX >> 16) as f64;

impl PeakEwma {
    /// Estimates fade to a part of 1/e in `tau_seconds`.
    ///
    /// # Panics
    ///
    /// When it is not a number above 0.
    pub fn new(tau_seconds: f64) -> Self {
        assert!(tau_seconds > 0.0 && tau_seconds.is_finite(), "tau must be a number above 0");
        PeakEwma { tau: tau_seconds * 1e9, estimates: BySlot::default() }
    }

    /// The estimate of a worker's latency at a time, in nanoseconds; `None` while there is none.
    pub fn estimate(&self, worker: WorkerId, now: Time) -> Option<f64> {
        let known = self.estimates.get(worker).filter(|estimate| estimate.latency > 0.0)?;
        Some(known.latency * self.fading(*known, now))
    }

    /// e^(−Δt/τ)
    fn fading(&self, estimate: Estimate, now: Time) -> f64 {
        libm::exp(-(now.since(estimate.at).as_nanos() as f64) / self.tau)
    }

    fn cost(&self, worker: WorkerId, view: &ClusterView<'_>, now: Time) -> f64 {
        let Some(known) = view.worker(worker) else { return f64::INFINITY };
        let pending = f64::from(known.in_flight());
        match self.estimate(worker, now) {
            Some(latency) => latency * (pending + 1.0) / known.weight(),
            None if known.in_flight() == 0 => 0.0,
            None => (PENALTY + pending) / known.weight(),
        }
    }
}

pub(super) fn entry() -> PolicyEntry {
    PolicyEntry {
        name: "peak-ewma".to_owned(),
        about: "the one of two random workers with the lower latency × requests in flight"
            .to_owned(),
        source: "Finagle's PeakEwma; tower's balance".to_owned(),
        parameters: vec![
            ParameterInfo::new("tau", 10.0, "seconds in which an estimate fades")
                .within(0.001..=86_400.0),
        ],
        build: Box::new(|given| Ok(Box::new(PeakEwma::new(given.number("tau")?)))),
    }
}

impl BalancingPolicy for PeakEwma {
    fn select(
        &mut self,
        request: &RequestInfo<'_>,
        view: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) -> Decision {
        let Some((a, b)) = Candidates::of(request, view).two(cx.rng) else {
            return Decision::Refuse(Refusal::NoWorker);
        };
        // Their order is random, so ties are decided by a fair coin.
        let better = self.cost(b, view, cx.now) < self.cost(a, view, cx.now);
        Decision::To(if better { b } else { a }, Why("lower cost"))
    }

    fn observe(
        &mut self,
        event: &PolicyEvent<'_>,
        _: &ClusterView<'_>,
        cx: &mut PolicyContext<'_>,
    ) {
        match *event {
            PolicyEvent::Joined { worker } => {
                self.estimates.insert(worker, Estimate { latency: 0.0, at: cx.now });
            }
            PolicyEvent::Left { worker, .. } => self.estimates.remove(worker),
            PolicyEvent::Completed { worker, latency, ok, .. } => {
                let Some(known) = self.estimates.get(worker).copied() else { return };
                let rtt = latency.as_nanos() as f64;
                let latency = if rtt > known.latency {
                    rtt
                } else if ok {
                    let fading = self.fading(known, cx.now);
                    known.latency * fading + rtt * (1.0 - fading)
                } else {
                    return;
                };
                self.estimates.insert(worker, Estimate { latency, at: cx.now });
            }
            _ => {}
        }
    }
}
