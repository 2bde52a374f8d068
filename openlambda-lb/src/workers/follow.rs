//! Passes membership's events to the pure balancer: [`SelectorFollower`].

use std::collections::BTreeSet;
use std::sync::Arc;

use http::header::HeaderValue;
use openlambda_core::balancing::{Change, ClusterEvent, FunctionId, Member, Ticket, WorkerId};
use openlambda_core::time::Time;

use super::membership::Follower;
use super::peer::Peer;
use super::selector::{Selector, SourceId, State};

/// Hands what one source of membership says to the pure balancer, and sees to the connections.
#[derive(Debug)]
pub(crate) struct SelectorFollower {
    selector: Arc<Selector>,
    source: SourceId,
}

impl SelectorFollower {
    /// Follows the source of this number.
    pub(crate) fn new(selector: Arc<Selector>, source: SourceId) -> Self {
        SelectorFollower { selector, source }
    }

    /// The worker takes the place of any other one of its name. That it is there already is no news, but
    /// one more source may know it now.
    fn join(&self, worker: &Arc<Member>) {
        let Ok(header) = HeaderValue::from_str(worker.name()) else {
            tracing::error!(worker = worker.name(), "cannot join: no header can have this name");
            return;
        };
        // With a peer go its connections, better without the lock: it is returned.
        let (joined, _before) = self.selector.with(|state, now| {
            let before = state.named(worker.name());
            let known = before.as_ref().is_some_and(|old| old.is_told_as(worker));
            if !known {
                let mut sources = BTreeSet::new();
                if let Some(old) = &before {
                    let told = state.leave(now, old.id);
                    // Those who told of another start of it have no say about this one.
                    sources = if old.leads_to(worker) { told } else { sources };
                }
                let id = state.balancer.join(now, worker.info.clone());
                state.enter(self.selector.peer_of(id, worker, header), sources);
            }
            self.tells_of(state, worker);
            (!known, before)
        });
        if joined {
            tracing::info!(worker = worker.name(), at = %worker.address, "joined");
        }
    }

    /// This source is one of those who know the worker.
    fn tells_of(&self, state: &mut State, worker: &Member) {
        let peer = state.named(worker.name());
        if let Some(sources) = peer.and_then(|peer| state.sources(peer.id)) {
            sources.insert(self.source);
        }
    }

    /// This source has the worker no more. It leaves when no source has it.
    fn leave(&self, worker: &Member) {
        self.change(worker, |state, now, id| {
            let Some(sources) = state.sources(id) else { return };
            if sources.remove(&self.source) && sources.is_empty() {
                state.leave(now, id);
            }
        });
    }

    /// Changes what is known of a worker, unless it has left or another one has its name.
    fn change(
        &self,
        worker: &Member,
        change: impl FnOnce(&mut State, Time, WorkerId),
    ) -> Option<Arc<Peer>> {
        self.selector.with(|state, now| {
            let peer = state.named(worker.name()).filter(|peer| peer.leads_to(worker))?;
            change(state, now, peer.id);
            Some(peer)
        })
    }
}

impl Follower for SelectorFollower {
    fn apply(&self, event: ClusterEvent) {
        let worker = &event.worker;
        match event.change {
            Change::Joined => self.join(worker),
            Change::Left => self.leave(worker),
            Change::Unhealthy => {
                let peer = self
                    .change(worker, |state, now, id| state.balancer.set_healthy(now, id, false));
                if let Some(peer) = peer {
                    peer.connections().close_idle();
                }
            }
            Change::Draining => {
                self.change(worker, |state, now, id| state.balancer.set_draining(now, id, true));
            }
            Change::Report { load, idle, draining } => {
                if self.selector.with(|state, _| state.named(worker.name()).is_none()) {
                    self.join(worker);
                }
                let peer = self.change(worker, |state, now, id| {
                    self.tells_of(state, worker);
                    let balancer = &mut state.balancer;
                    let idle: Vec<(FunctionId, u32)> = idle
                        .iter()
                        .map(|(name, count)| (balancer.function(name), *count))
                        .collect();
                    balancer.snapshot(now, id, load, idle);
                    balancer.set_draining(now, id, draining);
                    balancer.set_healthy(now, id, true);
                });
                if let Some(peer) = peer {
                    peer.connections().sweep();
                }
            }
            Change::Idle { function } => {
                self.change(worker, |state, now, id| {
                    let function = state.balancer.function(&function);
                    state.balancer.worker_idle(now, id, function);
                });
            }
            Change::Evicted { function } => {
                self.change(worker, |state, now, id| {
                    let function = state.balancer.function(&function);
                    state.balancer.worker_evicted(now, id, function);
                });
            }
            Change::Offered { ticket } => {
                let ticket = Ticket(ticket);
                self.change(worker, |state, now, id| state.balancer.offered(now, ticket, id));
            }
            // Of a kind that is not known yet.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use openlambda_core::balancing::retry::RetryConfig;
    use openlambda_core::balancing::{WorkerInfo, WorkerLoad};
    use openlambda_core::time::SystemClock;

    use super::*;
    use crate::policies::RoundRobin;
    use crate::workers::HttpClient;

    struct Told {
        selector: Arc<Selector>,
        follower: SelectorFollower,
    }

    impl Told {
        fn new() -> Told {
            let (policy, clock) = (Box::new(RoundRobin::new()), Arc::new(SystemClock::new()));
            let (retries, name) = (RetryConfig::default(), "balancer".to_owned());
            let selector = Selector::new(policy, 0, retries, name, HttpClient::new(None), clock);
            Told { follower: SelectorFollower::new(Arc::clone(&selector), 0), selector }
        }

        /// The states of all workers, and where they are, after the change.
        fn after(&self, worker: &Arc<Member>, change: Change) -> Vec<(String, String)> {
            self.follower.apply(ClusterEvent::new(Arc::clone(worker), change));
            let workers = self.selector.status("").workers.into_iter();
            workers.map(|worker| (worker.state, worker.url)).collect()
        }
    }

    fn member(incarnation: u64, port: u16) -> Arc<Member> {
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        Arc::new(Member::new(WorkerInfo::new("one", 4), incarnation, address))
    }

    fn report() -> Change {
        Change::Report { load: WorkerLoad::default(), idle: Vec::new(), draining: false }
    }

    fn one(state: &str, port: u16) -> Vec<(String, String)> {
        vec![(state.to_owned(), format!("http://127.0.0.1:{port}"))]
    }

    #[test]
    fn a_worker_is_what_was_said_of_it_last() {
        let (told, worker) = (Told::new(), member(1, 1));
        assert_eq!(told.after(&worker, Change::Unhealthy), [], "it has not joined");
        assert_eq!(told.after(&worker, Change::Joined), one("ready", 1));
        assert_eq!(told.after(&worker, Change::Unhealthy), one("unhealthy", 1));
        assert_eq!(told.after(&worker, report()), one("ready", 1));
        assert_eq!(told.after(&worker, Change::Draining), one("draining", 1));
        assert_eq!(told.after(&worker, report()), one("ready", 1));
        assert_eq!(told.after(&worker, Change::Left), []);
    }

    #[test]
    fn what_is_said_of_a_worker_whose_name_another_one_has_is_passed_over() {
        let (told, old) = (Told::new(), member(1, 1));
        for new in [member(2, 1), member(1, 2)] {
            let port = new.address.port_u16().unwrap();
            told.after(&old, Change::Joined);
            assert_eq!(told.after(&new, Change::Joined), one("ready", port));
            for late in [Change::Unhealthy, Change::Draining, report(), Change::Left] {
                assert_eq!(told.after(&old, late), one("ready", port));
            }
            assert_eq!(told.after(&new, Change::Left), []);
            assert_eq!(told.after(&old, report()), one("ready", 1), "the name is free again");
        }
    }
}
