//! A worker that speaks just enough of the protocol to misbehave in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use openlambda_core::balancing::WorkerLoad;
use openlambda_core::wire::WorkerEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a fake worker does with a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Act {
    /// Closes the connection without reading from it.
    CloseUnread,
    /// Reads the request and closes.
    ReadAndClose,
    /// Reads the request and sends these bytes, then closes.
    Answer(&'static str),
    /// Reads the request, sends these bytes, and nothing more.
    Hang(&'static str),
}

pub(super) const HALF_HEAD: Act = Act::Answer("HTTP/1.1 200 OK\r\ncontent-le");
pub(super) const BREAKS_OFF: Act =
    Act::Answer("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nfive!");
pub(super) const DRAINS: Act = Act::Answer(
    "HTTP/1.1 503 Service Unavailable\r\nx-openlambda-error: worker\r\nx-openlambda-started: no\r\n\
     content-length: 35\r\n\r\n{\"error\":\"draining\",\"message\":\"so\"}",
);
/// Refuses, but the body, which says why, never comes to its end.
pub(super) const REFUSES_AND_BREAKS: Act = Act::Answer(
    "HTTP/1.1 503 Service Unavailable\r\nx-openlambda-error: worker\r\nx-openlambda-started: no\r\n\
     content-length: 35\r\n\r\n{\"error\":",
);
pub(super) const REFUSES_AND_HANGS: Act = Act::Hang(
    "HTTP/1.1 503 Service Unavailable\r\nx-openlambda-error: worker\r\nx-openlambda-started: no\r\n\
     content-length: 35\r\n\r\n{\"error\":",
);
/// A function's own 503.
pub(super) const OWN_503: Act =
    Act::Answer("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno");

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Events {
    Beat,
    Silent,
    Drain,
    Broken,
}

/// A worker that speaks just enough: a stream of events, and an answer of some kind.
pub(super) struct Fake {
    pub(super) name: String,
    pub(super) incarnation: u64,
    pub(super) address: String,
    pub(super) seen: Arc<Seen>,
    pub(super) events: watch::Sender<Events>,
    pub(super) listening: JoinHandle<()>,
}

#[derive(Default)]
pub(super) struct Seen {
    /// Streams of events that were asked for.
    pub(super) streams: AtomicUsize,
    /// Calls whose head came.
    pub(super) calls: AtomicUsize,
    /// Connections of calls that the other side has closed.
    pub(super) closed: AtomicUsize,
    /// The bytes of the last one's body.
    pub(super) body: AtomicUsize,
    /// What was said about reservations, in the order in which it came.
    pub(super) reservations: watch::Sender<Vec<&'static str>>,
}

impl Fake {
    pub(super) async fn start(name: &str, incarnation: u64, act: Act) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::<Seen>::default();
        let events = watch::channel(Events::Beat).0;
        let listening = {
            let (name, seen) = (name.to_owned(), seen.clone());
            let events = events.clone();
            let mut first = true;
            tokio::spawn(async move {
                loop {
                    let Ok((stream, _)) = listener.accept().await else { return };
                    // The first one is the stream of events.
                    if act == Act::CloseUnread && !std::mem::take(&mut first) {
                        seen.calls.fetch_add(1, Ordering::SeqCst);
                        continue;
                    }
                    let (name, seen) = (name.clone(), seen.clone());
                    let events = events.clone();
                    tokio::spawn(async move {
                        serve_one(stream, act, &name, incarnation, &seen, events).await
                    });
                }
            })
        };
        Fake { name: name.to_owned(), incarnation, address, seen, events, listening }
    }

    pub(super) fn calls(&self) -> usize {
        self.seen.calls.load(Ordering::SeqCst)
    }

    /// Listens no more; the stream of events stands.
    pub(super) async fn refuse_connections(&mut self) {
        self.listening.abort();
        let _ = (&mut self.listening).await;
    }
}

async fn serve_one(
    mut stream: TcpStream,
    act: Act,
    name: &str,
    incarnation: u64,
    seen: &Seen,
    events: watch::Sender<Events>,
) -> Option<()> {
    let mut read = Vec::new();
    let end = loop {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    if head.starts_with("get /internal/events") {
        seen.streams.fetch_add(1, Ordering::SeqCst);
        return tell(stream, name, incarnation, events.subscribe()).await;
    }
    if head.starts_with("delete /internal/reservations/") {
        seen.reservations.send_modify(|said| said.push("cancelled"));
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.ok()?;
        return None;
    }
    if head.starts_with("post /internal/reservations") {
        // A network that lets what is said later overtake it.
        let _ = seen.reservations.subscribe().wait_for(|said| !said.is_empty()).await;
        seen.reservations.send_modify(|said| said.push("reserved"));
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.ok()?;
        return None;
    }
    seen.calls.fetch_add(1, Ordering::SeqCst);
    let length = head
        .split_once("content-length: ")
        .map(|(_, rest)| rest.split_once("\r\n").unwrap().0.parse::<usize>().unwrap());
    let whole = |read: &[u8]| match length {
        Some(length) => read.len() >= end + length,
        None => !head.contains("chunked") || read.ends_with(b"0\r\n\r\n"),
    };
    while !whole(&read) {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    seen.body.store(read.len() - end, Ordering::SeqCst);
    match act {
        Act::CloseUnread | Act::ReadAndClose => {}
        Act::Answer(text) => stream.write_all(text.as_bytes()).await.ok()?,
        Act::Hang(text) => {
            stream.write_all(text.as_bytes()).await.ok()?;
            // Until the other side gives up.
            while stream.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
            seen.closed.fetch_add(1, Ordering::SeqCst);
        }
    }
    Some(())
}

async fn tell(
    mut stream: TcpStream,
    name: &str,
    incarnation: u64,
    mut events: watch::Receiver<Events>,
) -> Option<()> {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.ok()?;
    loop {
        let now = *events.borrow_and_update();
        let snapshot = WorkerEvent::Snapshot {
            name: name.to_owned(),
            incarnation,
            load: WorkerLoad::default(),
            idle: Vec::new(),
            draining: now == Events::Drain,
        };
        let line = format!("{}\n", serde_json::to_string(&snapshot).unwrap());
        let chunk = format!("{:x}\r\n{line}\r\n", line.len());
        match now {
            Events::Broken => return None,
            Events::Silent => {}
            _ => stream.write_all(chunk.as_bytes()).await.ok()?,
        }
        let pause = tokio::time::sleep(Duration::from_millis(50));
        tokio::select! {
            () = pause => {}
            changed = events.changed() => changed.ok()?,
        }
    }
}
