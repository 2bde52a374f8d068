//! What a worker reports to its balancers: where it is, and what it holds.
//!
//! A balancer subscribes by a long GET of [`wire::EVENTS_PATH`]; a broken stream shows it at once that
//! the worker is gone. Each subscriber has a bounded buffer: a slow subscriber loses events, and the
//! next snapshot corrects its view.
//!
//! A stream may name its balancer: the worker offers slots to a balancer on its named streams only, and
//! when the last of them ends, that balancer's reservations end.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::json_lines;
use crate::serving::Connector;
use crate::wire::{self, Announcement, WorkerEvent};
use crate::worker_core::StreamId;

/// Events that a subscriber may be behind.
const BACKLOG: usize = 1024;

/// The streams of events that are open. Who is told what is decided by the
/// [core](crate::worker_core).
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: BTreeMap<StreamId, mpsc::Sender<Bytes>>,
    next: u64,
    closed: bool,
}

impl Streams {
    /// A new stream's events, one JSON line each. Ends when the worker does.
    pub(super) fn open(&mut self) -> (StreamId, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let id = StreamId(self.next);
        self.next += 1;
        if !self.closed {
            self.open.insert(id, sender);
        }
        (id, receiver)
    }

    pub(super) fn ended(&mut self, id: StreamId) {
        self.open.remove(&id);
    }

    /// Tells one. A full buffer loses the event; see the module's documentation.
    pub(super) fn tell(&self, id: StreamId, event: &WorkerEvent) {
        if let Some(stream) = self.open.get(&id) {
            let _ = stream.try_send(line(event));
        }
    }

    /// Tells every one.
    pub(super) fn tell_all(&self, event: &WorkerEvent) {
        let line = line(event);
        for stream in self.open.values() {
            let _ = stream.try_send(line.clone());
        }
    }

    /// Ends every stream.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.open.clear();
    }
}

/// An event as a line.
pub(super) fn line(event: &WorkerEvent) -> Bytes {
    json_lines::line(event).into()
}

/// Announces the worker to each balancer until the tasks are dropped: at once, quickly again until a
/// balancer has heard it, then with every heartbeat, so that a balancer that was restarted learns
/// of the worker.
pub(super) fn announce(
    balancers: Vec<String>,
    announcement: Announcement,
    heartbeat: Duration,
    connector: Connector,
) -> JoinSet<()> {
    let body = Bytes::from(serde_json::to_vec(&announcement).unwrap_or_default());
    let announce = |balancer: String| {
        let (body, connector) = (body.clone(), connector.clone());
        async move {
            // Told once when it changes, and at first.
            let mut known = None;
            loop {
                let told = announce_once(&balancer, body.clone(), connector.clone()).await;
                if known != Some(told.is_ok()) {
                    known = Some(told.is_ok());
                    match &told {
                        Ok(()) => tracing::info!(balancer, "announced"),
                        Err(why) => tracing::warn!(balancer, why, "cannot announce"),
                    }
                }
                let soon = heartbeat.min(Duration::from_millis(100));
                tokio::time::sleep(if told.is_ok() { heartbeat } else { soon }).await;
            }
        }
    };
    balancers.into_iter().map(announce).collect()
}

async fn announce_once(balancer: &str, body: Bytes, connector: Connector) -> Result<(), String> {
    let request = http::Request::post(format!("{balancer}{}", wire::ANNOUNCE_PATH))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|error| error.to_string())?;
    // A client of its own each time: the pool would keep a connection that a restarted balancer
    // does not know, and this is once in a heartbeat.
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
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
