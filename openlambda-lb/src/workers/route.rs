//! The way of one call through the cluster: [`Route`].

use std::sync::Arc;

use futures_util::future::join_all;
use http::header::HeaderValue;
use openlambda_core::balancing::retry::{FailedAttempt, Verdict};
use openlambda_core::balancing::{Decision, Refusal, Ticket};
use openlambda_core::failure::{Culprit, Failure};
use openlambda_core::invocation::StartKind;
use tokio::sync::oneshot;

use super::deployed::Deployed;
use super::peer::Peer;
use super::selector::{Bound, Selector};

/// A call's ticket: one attempt after another, and its end when dropped.
///
/// ```text
///  begin ─▶ select ─▶ (sent to a worker) ─▶ completed
///             ▲              │
///             └─ failed: Retry
/// ```
#[derive(Debug)]
pub(crate) struct Route {
    selector: Arc<Selector>,
    ticket: Ticket,
    function: Arc<Deployed>,
    /// How workers know of the call already. Also for a retry: its worker may have a reservation
    /// whose cancellation is on its way.
    reservation: Option<HeaderValue>,
    /// The worker that may hold a slot for the call, until it is known that the call has come there.
    place: Option<Arc<Peer>>,
    /// The balancer knows that the call is over.
    over: bool,
}

enum Step {
    Go(Arc<Peer>),
    Wait(oneshot::Receiver<Result<Bound, Refusal>>),
    Probe(Vec<Arc<Peer>>),
    Refused(Refusal),
}

impl Route {
    /// A call of the function came in.
    pub(crate) fn begin(selector: &Arc<Selector>, function: &Arc<Deployed>) -> Route {
        let ticket = selector.with(|state, _| {
            let id = *function.id.get_or_init(|| {
                let id = state.balancer.function(&function.resolved.name);
                state.balancer.describe(id, &function.resolved.manifest);
                id
            });
            state.balancer.arrived(id)
        });
        let (selector, function) = (Arc::clone(selector), Arc::clone(function));
        Route { selector, ticket, function, reservation: None, place: None, over: false }
    }

    /// The worker for the next attempt; may wait for one as long as the policy holds the call.
    pub(crate) async fn select(&mut self) -> Result<Arc<Peer>, Failure> {
        loop {
            let step = self.selector.with(|state, now| {
                let decision = state.balancer.select(now, self.ticket);
                self.selector.decided(&decision);
                match decision {
                    Decision::To(worker, _) => match state.peer(worker) {
                        Some(peer) => Step::Go(peer),
                        None => Step::Refused(Refusal::NoWorker),
                    },
                    Decision::Hold { until } => {
                        Step::Wait(state.hold(self.ticket, Arc::clone(&self.function), until))
                    }
                    Decision::Probe(set) => {
                        Step::Probe(set.as_slice().iter().filter_map(|w| state.peer(*w)).collect())
                    }
                    Decision::Refuse(refusal) => Step::Refused(refusal),
                }
            });
            let refusal = match step {
                Step::Go(peer) => return Ok(peer),
                Step::Wait(waits) => match waits.await {
                    Ok(Ok(Bound { peer, reserved })) => {
                        if reserved {
                            let key = self.selector.key(self.ticket).to_string();
                            self.reservation = HeaderValue::from_str(&key).ok();
                            self.place = Some(Arc::clone(&peer));
                        }
                        return Ok(peer);
                    }
                    Ok(Err(refusal)) => refusal,
                    Err(_) => Refusal::NoWorker,
                },
                Step::Probe(peers) => {
                    join_all(peers.iter().map(|peer| self.selector.probe(peer))).await;
                    continue;
                }
                Step::Refused(refusal) => refusal,
            };
            return Err(refused(refusal));
        }
    }

    /// The header that names the call's reservation to the worker that was selected.
    pub(crate) fn reservation(&self) -> Option<&HeaderValue> {
        self.reservation.as_ref()
    }

    /// The attempt at the worker that was selected failed. Whether to select another one.
    pub(crate) fn failed(&mut self, attempt: &FailedAttempt) -> Verdict {
        self.give_back();
        self.selector.with(|state, now| state.balancer.failed(now, self.ticket, attempt))
    }

    /// The worker told with the call's reply that an instance of the function is idle.
    pub(crate) fn idle(&self, worker: &Peer) {
        if let Some(function) = self.function.id.get() {
            self.selector.with(|state, now| state.balancer.worker_idle(now, worker.id, *function));
        }
    }

    /// The call is over.
    pub(crate) fn completed(mut self, start: Option<StartKind>, ok: bool) {
        self.place = None;
        self.selector.with(|state, now| {
            state.balancer.completed(now, self.ticket, start, ok);
            state.balancer.finish(now, self.ticket);
        });
        self.over = true;
    }

    /// The call may never have come to the worker that holds a slot for it: its client has left at
    /// that moment, or its body broke off. If it has come, nothing happens.
    fn give_back(&mut self) {
        if let Some(peer) = self.place.take() {
            let key = self.selector.key(self.ticket);
            tokio::spawn(async move { peer.cancel(&key).await });
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.give_back();
        self.selector.with(|state, now| {
            state.waiting.remove(&self.ticket);
            state.balancer.finish(now, self.ticket);
        });
    }
}

fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::NoWorker => Failure::new(
            refusal.kind(),
            "no worker is ready; `ol status` shows them, try again in a moment",
        ),
        _ => Failure::new(
            refusal.kind(),
            "all workers are too busy; try again in a moment or add workers",
        )
        .blame(Culprit::Balancer),
    }
}
