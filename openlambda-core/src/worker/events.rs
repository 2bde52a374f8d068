//! What a worker tells its balancers: where it is, and what it holds.
//!
//! A balancer subscribes by a long GET of [`wire::EVENTS_PATH`]; a broken stream tells it at once
//! that the worker is gone. Each subscriber has a bounded buffer: one that is too slow loses
//! events, and the next snapshot repairs its picture.
//!
//! A stream may be a balancer's own, by its name: offers go there and nowhere else, and the end of
//! the last one is the end of that balancer's reservations.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;

use crate::wire::{self, Announcement, WorkerEvent};

/// Events that a subscriber may be behind.
const BACKLOG: usize = 1024;

/// The balancers that listen.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    streams: Vec<Stream>,
    next: usize,
    closed: bool,
}

#[derive(Debug)]
struct Stream {
    balancer: Option<String>,
    lines: mpsc::Sender<Bytes>,
}

impl Subscribers {
    /// A new subscriber's events, one JSON line each. Ends when the worker does.
    pub(super) fn subscribe(&self, balancer: Option<String>) -> mpsc::Receiver<Bytes> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let mut list = self.lock();
        if !list.closed {
            list.streams.push(Stream { balancer, lines: sender });
        }
        receiver
    }

    /// Tells one subscriber, each in turn: an idle notice is a lease to one balancer.
    pub(super) fn tell_one(&self, event: impl FnOnce() -> WorkerEvent) {
        let mut list = self.lock();
        list.streams.retain(|stream| !stream.lines.is_closed());
        if list.streams.is_empty() {
            return;
        }
        list.next = (list.next + 1) % list.streams.len();
        // A full buffer loses the event; see the module's documentation.
        let _ = list.streams[list.next].lines.try_send(line(&event()));
    }

    /// Whether it is this balancer's turn to be told by [`tell_one`](Self::tell_one). If so the turn is
    /// taken: the caller tells it in another way.
    pub(super) fn takes_turn(&self, balancer: &[u8]) -> bool {
        let mut list = self.lock();
        list.streams.retain(|stream| !stream.lines.is_closed());
        let next = (list.next + 1) % list.streams.len().max(1);
        let name = list.streams.get(next).and_then(|stream| stream.balancer.as_deref());
        let its = name.is_some_and(|name| name.as_bytes() == balancer);
        if its {
            list.next = next;
        }
        its
    }

    /// Tells one balancer, on its newest stream.
    pub(super) fn tell_balancer(&self, balancer: &str, event: &WorkerEvent) {
        if let Some(stream) = self.lock().of(balancer) {
            let _ = stream.lines.try_send(line(event));
        }
    }

    /// Whether the balancer has a stream.
    pub(super) fn listens(&self, balancer: &str) -> bool {
        self.lock().of(balancer).is_some()
    }

    /// Tells every subscriber.
    pub(super) fn tell_all(&self, event: &WorkerEvent) {
        let mut list = self.lock();
        let line = line(event);
        list.streams.retain(|stream| !stream.lines.is_closed());
        for stream in &list.streams {
            let _ = stream.lines.try_send(line.clone());
        }
    }

    /// Ends every subscriber's stream.
    pub(super) fn close(&self) {
        let mut list = self.lock();
        list.closed = true;
        list.streams.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn of(&self, balancer: &str) -> Option<&Stream> {
        let mut streams = self.streams.iter().rev();
        streams.find(|stream| {
            stream.balancer.as_deref() == Some(balancer) && !stream.lines.is_closed()
        })
    }
}

/// An event as a line.
pub(super) fn line(event: &WorkerEvent) -> Bytes {
    let mut text = serde_json::to_vec(event).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// Announces the worker to each balancer until the value is dropped: at once, quickly again until a
/// balancer has heard it, then with every heartbeat, so that a balancer that was restarted learns
/// of the worker.
pub(super) fn announce(
    balancers: Vec<String>,
    announcement: Announcement,
    heartbeat: Duration,
) -> Announcers {
    let body = Bytes::from(serde_json::to_vec(&announcement).unwrap_or_default());
    let announce = |balancer: String| {
        let body = body.clone();
        tokio::spawn(async move {
            let mut known = false;
            loop {
                let told = announce_once(&balancer, body.clone()).await;
                if told.is_ok() != known {
                    known = told.is_ok();
                    match &told {
                        Ok(()) => tracing::info!(balancer, "announced"),
                        Err(why) => tracing::warn!(balancer, why, "cannot announce"),
                    }
                }
                let soon = heartbeat.min(Duration::from_millis(100));
                tokio::time::sleep(if known { heartbeat } else { soon }).await;
            }
        })
    };
    Announcers(balancers.into_iter().map(announce).collect())
}

/// The tasks that announce; dropping it ends them.
#[derive(Debug)]
pub(super) struct Announcers(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Announcers {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

async fn announce_once(balancer: &str, body: Bytes) -> Result<(), String> {
    let request = http::Request::post(format!("{balancer}{}", wire::ANNOUNCE_PATH))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    // A client of its own each time: the pool would keep a connection that a restarted balancer
    // does not know, and this is once in a heartbeat.
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = tokio::time::timeout(Duration::from_secs(2), client.request(request)).await;
    let answer = answer.map_err(|_| "no answer in 2 s".to_owned())?;
    let answer = answer.map_err(|error| crate::failure::chain(&error))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    if status.is_success() {
        return Ok(());
    }
    Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim()))
}
