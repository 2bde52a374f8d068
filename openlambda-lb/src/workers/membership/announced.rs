//! Workers that announce themselves over HTTP: [`Announced`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use http::header::HeaderValue;
use openlambda_core::audit::{self, Actor, AuditLog};
use openlambda_core::balancing::{Change, ClusterEvent, Member, WorkerInfo};
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::wire::Announcement;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{AbortHandle, JoinSet};

use super::configured::Configured;
use super::source::{Follower, Source};
use super::watch::{Watched, Watcher, address_of};

/// Announcements that wait to be looked at. One too many is lost, and comes again with the next heartbeat.
const BACKLOG: usize = 4096;

/// The sending end, for announcements.
#[derive(Clone, Debug)]
pub(crate) struct Announcements(mpsc::Sender<(Arc<Member>, SocketAddr)>);

/// A source of workers that announce themselves, periodically while they live.
///
/// A restart (another incarnation under the same name) replaces the worker at once. Two live workers under
/// one name replace each other again and again; the log says so. A worker that the configuration lists
/// too is left to the configuration's source.
#[derive(Debug)]
pub(crate) struct Announced {
    announcements: mpsc::Receiver<(Arc<Member>, SocketAddr)>,
    audit: Arc<OnceLock<AuditLog>>,
    configured: Vec<Arc<Watched>>,
    watcher: Watcher,
    /// Those that are followed, by their name.
    workers: BTreeMap<Arc<str>, (Arc<Watched>, AbortHandle)>,
    /// Returns the worker that was given up.
    tasks: JoinSet<Arc<Watched>>,
}

impl Announcements {
    /// A worker announced itself, `from` there; looked at once the source runs.
    ///
    /// # Errors
    ///
    /// The announcement is not valid, there are too many at once, or the source does not run any more.
    pub(crate) fn take(&self, worker: Announcement, from: SocketAddr) -> Result<(), Failure> {
        let bad = |message: String| Failure::new(FailureKind::BadRequest, message);
        let address = address_of(&worker.url)?;
        if worker.name.is_empty() || HeaderValue::from_str(&worker.name).is_err() {
            return Err(bad(format!("{:?} cannot be a worker's name; use letters", worker.name)));
        }
        if !(worker.weight > 0.0 && worker.weight <= 1e6) {
            let message = format!("weight {} is out of range; use more than 0", worker.weight);
            return Err(bad(message));
        }
        let mut info = WorkerInfo::new(worker.name, worker.capacity);
        info.weight = worker.weight;
        let member = Arc::new(Member::new(info, worker.incarnation, address));
        self.0.try_send((member, from)).map_err(|error| {
            let message = match error {
                TrySendError::Full(_) => {
                    "too many workers announce themselves at once; do it again in a moment"
                }
                TrySendError::Closed(_) => {
                    "this balancer stops and follows nobody any more; announce yourself to another"
                }
            };
            Failure::new(FailureKind::NoWorker, message)
        })
    }
}

impl Announced {
    /// The source, and where it is told.
    pub(crate) fn new(
        configured: &Configured,
        watcher: Watcher,
        audit: Arc<OnceLock<AuditLog>>,
    ) -> (Announcements, Self) {
        let (sender, announcements) = mpsc::channel(BACKLOG);
        let (workers, tasks) = (BTreeMap::new(), JoinSet::new());
        let configured = configured.workers();
        let source = Announced { announcements, audit, configured, watcher, workers, tasks };
        (Announcements(sender), source)
    }

    /// A worker announced itself, most likely one that is followed.
    fn announced(&mut self, member: Arc<Member>, from: SocketAddr, follower: &Arc<dyn Follower>) {
        let same_worker = |watched: &Watched| {
            watched.member().is_some_and(|known| {
                known.name() == member.name() && known.incarnation == member.incarnation
            })
        };
        let same_place = |watched: &Watched| *watched.address() == member.address;
        let configured = self.configured.iter();
        // A configured one is known by its address, also before its first snapshot and when it has just
        // been restarted.
        let mut known = configured.filter(|watched| same_place(watched) || same_worker(watched));
        if let Some(watched) = known.next() {
            return watched.nudge();
        }
        if let Some((watched, task)) = self.workers.get(member.name()) {
            if same_place(watched) && same_worker(watched) {
                return watched.nudge();
            }
            let (old, new) = (watched.address(), &member.address);
            tracing::info!(worker = member.name(), %old, %new, "restarted");
            task.abort();
            // Now, and not when its task comes to its end.
            if let Some(member) = watched.member() {
                follower.apply(ClusterEvent::new(member, Change::Left));
            }
        }
        if let Some(audit) = self.audit.get() {
            let actor = Actor { by: format!("worker {}", member.name()), from: from.to_string() };
            let (worker, address) = (member.name(), member.address.as_str());
            let incarnation = member.incarnation;
            audit.write(&actor, &audit::Change::Announce { worker, address, incarnation });
        }
        let (name, watched) = (Arc::clone(&member.info.name), Arc::new(Watched::named(member)));
        let (watcher, follower) = (self.watcher.clone(), Arc::clone(follower));
        let worker = Arc::clone(&watched);
        let task = self.tasks.spawn(async move {
            watcher.watch(&worker, &follower).await;
            worker
        });
        self.workers.insert(name, (watched, task));
    }

    /// A worker has left for good, unless it was replaced already.
    fn gave_up(&mut self, worker: &Arc<Watched>) {
        self.workers.retain(|_, (watched, _)| !Arc::ptr_eq(watched, worker));
    }
}

#[async_trait]
impl Source for Announced {
    async fn run(mut self: Box<Self>, follower: Arc<dyn Follower>) {
        loop {
            tokio::select! {
                Some((member, from)) = self.announcements.recv() => {
                    self.announced(member, from, &follower);
                }
                Some(ended) = self.tasks.join_next() => {
                    // One that was aborted has been replaced.
                    if let Ok(worker) = ended {
                        self.gave_up(&worker);
                    }
                }
                else => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openlambda_core::time::SystemClock;

    use super::*;
    use crate::workers::HttpClient;

    #[test]
    fn a_worker_is_told_why_nobody_follows_it() {
        let (clock, silence) = (Arc::new(SystemClock::new()), [3, 60].map(Duration::from_secs));
        let watcher = Watcher::new(HttpClient::new(None), clock, "balancer".to_owned(), silence);
        let configured = Configured::new(&[], watcher.clone());
        let (announcements, source) = Announced::new(&configured, watcher, Arc::default());
        let from = SocketAddr::from(([127, 0, 0, 1], 4711));
        let announce = || {
            let announcement = Announcement {
                name: "one".to_owned(),
                incarnation: 1,
                url: "http://127.0.0.1:1".to_owned(),
                weight: 1.0,
                capacity: 4,
            };
            announcements.take(announcement, from)
        };
        for _ in 0..BACKLOG {
            announce().unwrap();
        }
        let full = announce().unwrap_err();
        assert!(full.message.contains("too many workers"), "{full:?}");
        drop(source);
        let ends = announce().unwrap_err();
        assert!(ends.message.contains("this balancer stops"), "{ends:?}");
    }
}
