//! Turns a worker's stream of events into [`ClusterEvent`]s.
//!
//! ```text
//!  announced ─▶ connecting ─ first snapshot ─▶ joined, healthy ◀──── snapshot ────┐
//!  or configured   ▲  │                          │      │                         │
//!                  │  └ backoff 50 ms … 2 s      │      └ silent too long ─▶ unhealthy
//!                  │                             │                                │
//!                  └────── stream broke: unhealthy at once ◀──────────────────────┘
//!                  └ no stream for 60 s: leaves for good, unless it is configured
//! ```
//!
//! The stream is the health check: its end is seen at once when a worker dies, and its silence when
//! a worker hangs.

use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::header::HeaderValue;
use http::uri::Authority;
use http::{Request, StatusCode, Uri};
use openlambda_core::backoff::Backoff;
use openlambda_core::balancing::{Change, ClusterEvent, Member, WorkerInfo};
use openlambda_core::failure::{Failure, FailureKind, chain};
use openlambda_core::invocation::{BoxError, empty_body};
use openlambda_core::random::fresh_seed;
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_core::wire::{self, WorkerEvent};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::lines::Lines;
use super::source::Follower;
use crate::workers::client::HttpClient;

/// The pauses between attempts to reach a worker whose stream broke.
const BACKOFF: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);

/// How long a worker may take to begin its stream.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stream that is silent for this time is given up and opened again: the machine may be gone.
const DEAD_STREAM: Duration = Duration::from_secs(10);

/// Watches workers. Clones watch by the same name.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    client: HttpClient,
    clock: Arc<SystemClock>,
    /// The name of the balancer whose streams they are.
    balancer: String,
    /// A worker is unhealthy when it has sent nothing for this time.
    silence: Duration,
    /// A worker that was not reached for this time has left for good.
    forget: Duration,
}

/// A worker that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    /// The name that it must have. Without one it has any, and is never given up.
    name: Option<Arc<str>>,
    address: Authority,
    weight: f64,
    capacity: u32,
    /// Which start of it this is: as announced, then as its snapshots say.
    member: Mutex<Option<Arc<Member>>>,
    /// It announced itself again: do not wait for the end of the pause.
    nudge: Notify,
}

impl Watched {
    /// The worker at this address, whatever its name is.
    pub(super) fn at(address: Authority, weight: f64, capacity: u32) -> Self {
        let (member, nudge) = (Mutex::default(), Notify::new());
        Watched { name: None, address, weight, capacity, member, nudge }
    }

    /// This worker, for as long as it is there.
    pub(super) fn named(member: Arc<Member>) -> Self {
        let WorkerInfo { name, weight, capacity, .. } = member.info.clone();
        let address = member.address.clone();
        let (member, nudge) = (Mutex::new(Some(member)), Notify::new());
        Watched { name: Some(name), address, weight, capacity, member, nudge }
    }

    pub(super) fn address(&self) -> &Authority {
        &self.address
    }

    /// Which start of a worker this is, where that is known.
    pub(super) fn member(&self) -> Option<Arc<Member>> {
        self.member.lock().clone()
    }

    /// Tries to reach it now, if it is not reached.
    pub(super) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// What the log calls it.
    fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(self.address.as_str())
    }

    /// The worker by the identity that a snapshot tells.
    fn identify(&self, name: &str, incarnation: u64) -> Result<Arc<Member>, BoxError> {
        let mut known = self.member.lock();
        if let Some(member) = &*known
            && member.name() == name
            && member.incarnation == incarnation
        {
            return Ok(Arc::clone(member));
        }
        if let Some(expected) = &self.name
            && **expected != *name
        {
            return Err(format!("{} is another worker: {name}", self.address).into());
        }
        // Replies name it.
        HeaderValue::from_str(name)?;
        let mut info = WorkerInfo::new(name, self.capacity);
        info.weight = self.weight;
        let member = Arc::new(Member::new(info, incarnation, self.address.clone()));
        *known = Some(Arc::clone(&member));
        Ok(member)
    }
}

impl Watcher {
    /// For the balancer of this name, by which workers know whose stream it is. A worker that has sent
    /// nothing is unhealthy after the first of the two times, and has left after the second.
    pub(crate) fn new(
        client: HttpClient,
        clock: Arc<SystemClock>,
        balancer: String,
        [silence, forget]: [Duration; 2],
    ) -> Self {
        Watcher { client, clock, balancer, silence, forget }
    }

    /// One stream after another, until the worker has left for good. Dropped, it has left as well.
    pub(super) async fn watch(&self, worker: &Watched, follower: &Arc<dyn Follower>) {
        let mut joined = None;
        let backoff = Backoff::new(BACKOFF, fresh_seed());
        let mut signs = Signs { backoff, alive: self.clock.now(), failed: false };
        loop {
            let Err(error) = self.stream(worker, follower, &mut joined, &mut signs).await;
            if let Some(joined) = &joined {
                joined.tell(Change::Unhealthy);
            }
            let gone = self.clock.now().since(signs.alive) > self.forget;
            let error = chain(&*error);
            // Once in a row of failures: each attempt would say the same.
            match std::mem::replace(&mut signs.failed, true) {
                false => tracing::warn!(worker = worker.label(), error, "cannot be followed"),
                true => tracing::debug!(worker = worker.label(), error, "cannot be followed"),
            }
            if gone && worker.name.is_some() {
                tracing::info!(worker = worker.label(), "has left");
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(signs.backoff.pause()) => {}
                () = worker.nudge.notified() => {}
            }
        }
    }

    /// One stream of events, until it breaks.
    async fn stream(
        &self,
        worker: &Watched,
        follower: &Arc<dyn Follower>,
        joined: &mut Option<Joined>,
        signs: &mut Signs,
    ) -> Result<Infallible, BoxError> {
        let mut lines = tokio::time::timeout(PATIENCE, self.connect(worker)).await??;
        let mut event = tokio::time::timeout(PATIENCE, lines.next()).await??;
        if !matches!(event, WorkerEvent::Snapshot { .. }) {
            return Err("the stream does not begin with a snapshot".into());
        }
        loop {
            signs.backoff.reset();
            signs.failed = false;
            signs.alive = self.clock.now();
            tell(worker, follower, joined, event)?;
            event = match tokio::time::timeout(self.silence, lines.next()).await {
                Ok(event) => event?,
                Err(_) => {
                    if let Some(joined) = joined {
                        tracing::warn!(worker = worker.label(), "silent for {:?}", self.silence);
                        joined.tell(Change::Unhealthy);
                    }
                    // But the stream stands: with the next snapshot it is healthy again.
                    tokio::time::timeout(DEAD_STREAM, lines.next()).await??
                }
            };
        }
    }

    async fn connect(&self, worker: &Watched) -> Result<Lines, BoxError> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(worker.address.clone())
            .path_and_query(format!("{}?balancer={}", wire::EVENTS_PATH, self.balancer))
            .build()?;
        let mut request = Request::new(empty_body());
        *request.uri_mut() = uri;
        let reply = self.client.request(request).await?;
        if reply.status() != StatusCode::OK {
            return Err(format!("{} answered {}", wire::EVENTS_PATH, reply.status()).into());
        }
        Ok(Lines::of(reply.into_body()))
    }
}

/// Tells the follower what the worker says.
fn tell(
    worker: &Watched,
    follower: &Arc<dyn Follower>,
    joined: &mut Option<Joined>,
    event: WorkerEvent,
) -> Result<(), BoxError> {
    let change = match event {
        WorkerEvent::Snapshot { name, incarnation, load, idle, draining } => {
            let member = worker.identify(&name, incarnation)?;
            if joined.as_ref().is_none_or(|joined| !joined.worker.is(&member)) {
                // Leaves under its old identity first.
                *joined = None;
                *joined = Some(Joined::tell_of(member, Arc::clone(follower)));
            }
            Change::Report { load, idle, draining }
        }
        WorkerEvent::Idle { function } => Change::Idle { function },
        WorkerEvent::Evicted { function } => Change::Evicted { function },
        WorkerEvent::Offered { ticket } => Change::Offered { ticket },
        WorkerEvent::Draining => Change::Draining,
        // Of a kind that is not known yet.
        _ => return Ok(()),
    };
    if let Some(joined) = joined {
        joined.tell(change);
    }
    Ok(())
}

/// When the worker last sent something, and how long to wait before the next attempt to reach it.
struct Signs {
    backoff: Backoff,
    alive: Time,
    /// The last attempt to reach it failed.
    failed: bool,
}

/// A worker that was told to have joined; it leaves when this is dropped, also when its task is aborted.
struct Joined {
    worker: Arc<Member>,
    follower: Arc<dyn Follower>,
}

impl Joined {
    fn tell_of(worker: Arc<Member>, follower: Arc<dyn Follower>) -> Self {
        let joined = Joined { worker, follower };
        joined.tell(Change::Joined);
        joined
    }

    fn tell(&self, change: Change) {
        self.follower.apply(ClusterEvent::new(Arc::clone(&self.worker), change));
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.tell(Change::Left);
    }
}

/// The address in a worker's URL.
pub(super) fn address_of(url: &str) -> Result<Authority, Failure> {
    let uri: Option<Uri> = url.parse().ok();
    let valid = uri.filter(|uri| {
        uri.scheme_str() == Some("http") && uri.port().is_some() && uri.path() == "/"
    });
    valid.and_then(|uri| uri.authority().cloned()).ok_or_else(|| {
        let message = format!("{url:?} is not a worker's address; write http://host:port");
        Failure::new(FailureKind::BadRequest, message)
    })
}
