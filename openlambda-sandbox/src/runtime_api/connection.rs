//! The code's end of the conversation as HTTP/1.1: connections and paths.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderName, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use openlambda_core::serving::{Caller, Door, HttpConfig, HttpServer, Patience};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::answer::read_error;
use super::conversation::{RuntimeApi, Shared};
use super::headers::NEXT;
use super::peer::Peer;
use super::refusal::{Refusal, Told, accepted, json_response, whole};
use crate::raw;

const MODE: HeaderName = HeaderName::from_static("lambda-runtime-function-response-mode");

impl RuntimeApi {
    /// Serves the code on `listener`, until what is returned is dropped. Must be called within a
    /// tokio runtime.
    pub fn serve(&self, listener: Listener) -> Serving {
        // Each slot needs one connection; a few more are for clients that open one per request. None is
        // given up: `next` is a long poll, and a handler may take its time to stream.
        let patience = Patience::without_end(self.shared.config.slots as usize + 32);
        let door = match listener {
            Listener::Unix(listener) => Door::within(listener, patience),
            Listener::Tcp(listener) => Door::new(listener, patience),
        };
        let (stop, stopped) = oneshot::channel();
        let serves = tokio::spawn(serve(Arc::clone(&self.shared), door, stopped));
        Serving { serves: AbortOnDropHandle::new(serves), stop }
    }
}

/// Where a [`RuntimeApi`] listens.
#[derive(Debug)]
pub enum Listener {
    /// On a Unix socket.
    Unix(UnixListener),
    /// On a port, of the loopback interface.
    Tcp(TcpListener),
}

/// Serves until dropped; then its connections are closed.
#[derive(Debug)]
pub struct Serving {
    serves: AbortOnDropHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Serving {
    /// Ends it, and waits until nothing is accepted any more and all connections are closed.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = self.serves.await;
    }
}

/// Serves the code, until this is dropped.
async fn serve(shared: Arc<Shared>, door: Door, stopped: oneshot::Receiver<()>) {
    let mut config = HttpConfig::default();
    // Clients have a clock, and each line of a head is one to take apart.
    config.date = false;
    // When the code is gone, nobody is left to be answered.
    config.drain = Duration::ZERO;
    let welcome = |client: &Caller| {
        let peer = Arc::new(Peer::of(client.stream())?);
        let shared = Arc::clone(&shared);
        Ok(service_fn(move |request| {
            let (shared, peer) = (Arc::clone(&shared), Arc::clone(&peer));
            async move {
                let answer = route(shared, &peer, request).await;
                Ok::<_, Infallible>(answer.unwrap_or_else(|refusal| whole(refusal.into_response())))
            }
        }))
    };
    // A connection that breaks off is told by what it leaves unanswered.
    HttpServer::new(door, config).run(welcome, async { drop(stopped.await) }).await;
}

async fn route(
    shared: Arc<Shared>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Response<Told>, Refusal> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let path = path.strip_prefix("/2018-06-01/runtime/").ok_or(Refusal::NotFound)?;
    let only = |method: Method, name| {
        if head.method == method { Ok(()) } else { Err(Refusal::NotAllowed(name)) }
    };
    if path == "invocation/next" {
        only(Method::GET, "GET")?;
        if head.headers.contains_key(raw::RAW) {
            shared.takes_raw.store(true, Ordering::SeqCst);
        }
        if head.headers.contains_key(raw::FAREWELL) {
            shared.says_farewell.store(true, Ordering::SeqCst);
        }
        if head.headers.contains_key(raw::WEBSOCKET) {
            shared.takes_websockets.store(true, Ordering::SeqCst);
        }
        return Ok(whole(shared.next(peer).await?.into_response()));
    }
    if path.strip_prefix("invocation/") == Some(raw::DEPARTED) {
        only(Method::GET, "GET")?;
        let id = serde_json::json!({ "id": shared.departed().await });
        return Ok(whole(json_response(StatusCode::OK, id.to_string())));
    }
    if path == "init/error" {
        only(Method::POST, "POST")?;
        let error = read_error(&head.headers, body).await?;
        shared.init_failed(error)?;
        return Ok(whole(accepted()));
    }
    let (id, what) = path
        .strip_prefix("invocation/")
        .and_then(|path| path.split_once('/'))
        .ok_or(Refusal::NotFound)?;
    match what {
        "response" | "error" => only(Method::POST, "POST")?,
        _ => return Err(Refusal::NotFound),
    }
    let claim = shared.claim(id)?;
    if what == "error" {
        return claim.error(&head.headers, body).await.map(whole);
    }
    let streams = head.headers.get(MODE).is_some_and(|mode| mode.as_bytes() == b"streaming");
    if streams {
        return claim.stream(&head.headers, body).await;
    }
    claim.response(&head.headers, body).await?;
    if head.headers.contains_key(NEXT) {
        return Ok(whole(shared.next(peer).await?.into_response()));
    }
    Ok(whole(accepted()))
}
