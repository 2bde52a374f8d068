//! Who the workers are: announcements, and the stream of events that each worker sends.
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
//! a worker hangs. A restart (another incarnation under the same name) replaces the worker at once.
//! Two live workers under one name would replace each other again and again; the log says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use http::header::HeaderValue;
use http::uri::Authority;
use http::{Request, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use openlambda_core::balancing::{WorkerId, WorkerInfo};
use openlambda_core::failure::{Failure, FailureKind, chain};
use openlambda_core::invocation::{BoxError, empty_body};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_core::wire::{self, Announcement, WorkerEvent};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::selector::Selector;
use crate::proxy::HttpClient;

/// How often a worker announces itself, so that a balancer that restarted learns of it.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// The pauses between attempts to reach a worker whose stream broke.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long a worker may take to begin its stream.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stream that is silent for so long is given up and made anew: the machine may be gone.
const DEAD_STREAM: Duration = Duration::from_secs(10);

/// A worker that was not reached for so long has left for good.
const GIVE_UP: Duration = Duration::from_secs(60);

/// The longest line of events.
const LONGEST_LINE: usize = 16 << 20;

/// What is assumed of a configured worker, whose events do not tell how much it can take.
const CONFIGURED_CAPACITY: u32 = 64;

/// Follows the workers and tells the selector of them.
#[derive(Debug)]
pub(crate) struct Membership {
    selector: Arc<Selector>,
    client: HttpClient,
    clock: Arc<SystemClock>,
    silence: Duration,
    /// Announced ones by name, configured ones by URL.
    members: Mutex<BTreeMap<String, (Arc<Member>, AbortHandle)>>,
}

/// A worker that is followed.
#[derive(Debug)]
struct Member {
    key: String,
    authority: Authority,
    weight: f64,
    capacity: u32,
    configured: bool,
    /// Name and incarnation: as announced, then as the worker's snapshots say.
    identity: Mutex<Option<(String, u64)>>,
    /// The worker announced itself again: do not wait for the end of the pause.
    nudge: Notify,
}

impl Membership {
    pub(crate) fn new(
        selector: Arc<Selector>,
        client: HttpClient,
        clock: Arc<SystemClock>,
        silence: Duration,
    ) -> Arc<Self> {
        Arc::new(Membership { selector, client, clock, silence, members: Mutex::default() })
    }

    /// Begins to follow the configured workers.
    pub(crate) fn start(self: &Arc<Self>, urls: &[String]) {
        for url in urls {
            match authority_of(url) {
                Ok(authority) => self.follow(Member {
                    key: url.clone(),
                    authority,
                    weight: 1.0,
                    capacity: CONFIGURED_CAPACITY,
                    configured: true,
                    identity: Mutex::default(),
                    nudge: Notify::new(),
                }),
                Err(failure) => tracing::error!(%failure, "a configured worker is left out"),
            }
        }
    }

    /// Ends following all workers; they leave.
    pub(crate) fn stop(&self) {
        for (_, (_, task)) in std::mem::take(&mut *lock(&self.members)) {
            task.abort();
        }
    }

    /// A worker announced itself.
    pub(crate) fn announced(self: &Arc<Self>, worker: Announcement) -> Result<(), Failure> {
        let bad = |message: String| Failure::new(FailureKind::BadRequest, message);
        let authority = authority_of(&worker.url)?;
        if worker.name.is_empty() || HeaderValue::from_str(&worker.name).is_err() {
            return Err(bad(format!("{:?} cannot be a worker's name; use letters", worker.name)));
        }
        if !(worker.weight > 0.0 && worker.weight <= 1e6) {
            let message = format!("weight {} is out of range; use more than 0", worker.weight);
            return Err(bad(message));
        }
        let identity = Some((worker.name.clone(), worker.incarnation));
        let replaced = {
            let mut members = lock(&self.members);
            let known = members.values().find(|(member, _)| {
                let same_place = member.authority == authority;
                let same_worker = *lock(&member.identity) == identity;
                // A configured one is known by its address, also before its first snapshot and when
                // it has just been restarted.
                if member.configured {
                    same_place || same_worker
                } else {
                    same_place && same_worker
                }
            });
            if let Some((member, _)) = known {
                member.nudge.notify_one();
                return Ok(());
            }
            members.remove(&worker.name)
        };
        if let Some((member, task)) = replaced {
            tracing::info!(worker = %worker.name, old = %member.authority, new = %authority, "restarted");
            task.abort();
            self.selector.leave_by_name(&worker.name);
        }
        self.follow(Member {
            key: worker.name,
            authority,
            weight: worker.weight,
            capacity: worker.capacity,
            configured: false,
            identity: Mutex::new(identity),
            nudge: Notify::new(),
        });
        Ok(())
    }

    fn follow(self: &Arc<Self>, member: Member) {
        let member = Arc::new(member);
        let mut members = lock(&self.members);
        let (this, followed) = (Arc::clone(self), Arc::clone(&member));
        let task = tokio::spawn(async move { this.run(&followed).await }).abort_handle();
        if let Some((_, old)) = members.insert(member.key.clone(), (member, task)) {
            old.abort();
        }
    }

    /// One stream after another, until the worker has left for good.
    async fn run(self: &Arc<Self>, member: &Arc<Member>) {
        let mut joined = None;
        let mut signs = Signs { pause: BACKOFF.0, alive: self.clock.now() };
        loop {
            let Err(error) = self.stream(member, &mut joined, &mut signs).await;
            if let Some(Joined { id, .. }) = &joined {
                self.selector.set_healthy(*id, false);
            }
            let gone = self.clock.now().since(signs.alive) > GIVE_UP;
            tracing::debug!(worker = %member.key, error = chain(&*error), "no events");
            if gone && !member.configured {
                tracing::info!(worker = %member.key, "has left");
                let mut members = lock(&self.members);
                if members.get(&member.key).is_some_and(|(known, _)| Arc::ptr_eq(known, member)) {
                    members.remove(&member.key);
                }
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(signs.pause) => {}
                () = member.nudge.notified() => {}
            }
            signs.pause = (signs.pause * 2).min(BACKOFF.1);
        }
    }

    /// One stream of events, until it breaks.
    async fn stream(
        self: &Arc<Self>,
        member: &Member,
        joined: &mut Option<Joined>,
        signs: &mut Signs,
    ) -> Result<std::convert::Infallible, BoxError> {
        let mut lines = tokio::time::timeout(PATIENCE, self.connect(member)).await??;
        let first = tokio::time::timeout(PATIENCE, lines.next()).await??;
        if !matches!(first, WorkerEvent::Snapshot { .. }) {
            return Err("the stream does not begin with a snapshot".into());
        }
        let mut event = first;
        loop {
            *signs = Signs { pause: BACKOFF.0, alive: self.clock.now() };
            self.apply(member, joined, event)?;
            event = match tokio::time::timeout(self.silence, lines.next()).await {
                Ok(event) => event?,
                Err(_) => {
                    if let Some(Joined { id, .. }) = joined {
                        tracing::warn!(worker = %member.key, "silent for {:?}", self.silence);
                        self.selector.set_healthy(*id, false);
                    }
                    // But the stream stands: with the next snapshot it is healthy again.
                    tokio::time::timeout(DEAD_STREAM, lines.next()).await??
                }
            };
        }
    }

    async fn connect(&self, member: &Member) -> Result<Lines, BoxError> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(member.authority.clone())
            .path_and_query(format!("{}?balancer={}", wire::EVENTS_PATH, self.selector.name()))
            .build()?;
        let mut request = Request::new(empty_body());
        *request.uri_mut() = uri;
        let reply = self.client.request(request).await?;
        if reply.status() != StatusCode::OK {
            return Err(format!("{} answered {}", wire::EVENTS_PATH, reply.status()).into());
        }
        Ok(Lines { body: reply.into_body(), buffer: BytesMut::new(), searched: 0 })
    }

    fn apply(
        self: &Arc<Self>,
        member: &Member,
        joined: &mut Option<Joined>,
        event: WorkerEvent,
    ) -> Result<(), BoxError> {
        let selector = &self.selector;
        match (event, &*joined) {
            (WorkerEvent::Snapshot { name, incarnation, load, idle, draining }, _) => {
                let id = self.identify(member, joined, (name, incarnation))?;
                selector.snapshot(id, load, &idle);
                selector.set_draining(id, draining);
                selector.set_healthy(id, true);
            }
            (WorkerEvent::Idle { function }, Some(Joined { id, .. })) => {
                selector.idle(*id, &function);
            }
            (WorkerEvent::Evicted { function }, Some(Joined { id, .. })) => {
                selector.evicted(*id, &function);
            }
            (WorkerEvent::Offered { ticket }, Some(Joined { id, .. })) => {
                selector.offered(*id, ticket);
            }
            (WorkerEvent::Draining, Some(Joined { id, .. })) => selector.set_draining(*id, true),
            _ => {}
        }
        Ok(())
    }

    /// Joins the worker that a snapshot comes from, or finds that it has.
    fn identify(
        self: &Arc<Self>,
        member: &Member,
        joined: &mut Option<Joined>,
        identity: (String, u64),
    ) -> Result<WorkerId, BoxError> {
        if let Some(joined) = joined
            && joined.identity == identity
            // Unless another one took its name and has left again.
            && self.selector.knows(&identity.0)
        {
            return Ok(joined.id);
        }
        if !member.configured && identity.0 != member.key {
            let message = format!("{} is another worker: {}", member.authority, identity.0);
            return Err(message.into());
        }
        let header = HeaderValue::from_str(&identity.0)?;
        // Leaves under its old identity first.
        *joined = None;
        *lock(&member.identity) = Some(identity.clone());
        let mut info = WorkerInfo::new(identity.0.as_str(), member.capacity);
        info.weight = member.weight;
        let id = self.selector.join(info, header, member.authority.clone(), identity.1);
        tracing::info!(worker = %identity.0, at = %member.authority, "joined");
        *joined = Some(Joined { id, identity, selector: Arc::clone(&self.selector) });
        Ok(id)
    }
}

/// When a worker was heard of last, and how long to wait before the next attempt to reach it.
struct Signs {
    pause: Duration,
    alive: Time,
}

/// A worker's place in the cluster; it leaves when this is dropped, also when its task is aborted.
struct Joined {
    id: WorkerId,
    identity: (String, u64),
    selector: Arc<Selector>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.selector.leave(self.id);
    }
}

/// A body as lines of JSON.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// So much of the buffer holds no end of a line.
    searched: usize,
}

impl Lines {
    /// The next event. Cancel-safe: what was read is kept.
    async fn next(&mut self) -> Result<WorkerEvent, BoxError> {
        loop {
            let end = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(serde_json::from_slice(&line)?);
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LONGEST_LINE {
                return Err("a line of events has no end".into());
            }
            let frame = self.body.frame().await.ok_or("the stream ended")??;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }
}

fn authority_of(url: &str) -> Result<Authority, Failure> {
    let uri: Option<Uri> = url.parse().ok();
    let valid = uri.filter(|uri| {
        uri.scheme_str() == Some("http") && uri.port().is_some() && uri.path() == "/"
    });
    valid.and_then(|uri| uri.authority().cloned()).ok_or_else(|| {
        let message = format!("{url:?} is no worker's address; write http://host:port");
        Failure::new(FailureKind::BadRequest, message)
    })
}

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
