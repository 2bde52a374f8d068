//! WebSockets (RFC 6455): [`Handshake`], a client's request for one, and what goes on when it has one.
//!
//! ```text
//!  client ── GET, Upgrade: websocket ──▶ balancer ── GET, x-openlambda-websocket, a body without end ─▶ worker
//!         ◀─ 101, or any other reply ──          ◀─ the same header, a reply without end, or any other ──
//!         ── frames ───────────────────────────────▶ the request's body
//!         ◀────────────────────────────────── frames the reply's body
//! ```
//!
//! The balancer passes bytes and knows nothing of frames: the function's runtime checks them. To the worker a
//! WebSocket is a call whose request and reply stream, so whatever goes for calls goes for it, up to the 101:
//! any failure is an ordinary reply, and the call may be tried on another worker if it has not started. It is
//! held to its function's time limit as all calls are.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HeaderValue, ORIGIN, TRAILER, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use openlambda_core::failure::{Failure, FailureKind};
use openlambda_core::invocation::{Body, BoxError, empty_body};
use openlambda_core::serving::Upgrade;
use openlambda_core::wire;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio_util::sync::CancellationToken;

use super::body::{FromClient, ToWorker};
use super::cors::Caller;
use super::reply::ReplyBody;
use super::resolver::Resolution;

/// How much of what a client sends is read at once, bytes.
const PIECE: usize = 16 << 10;

/// How long a client may take to close its connection when the WebSocket is over. Closed before, with something
/// on its way here, the connection would be reset, and the client might lose what it was told last.
const FAREWELL: Duration = Duration::from_secs(2);

/// A client's request for a WebSocket.
#[derive(Debug)]
pub(super) struct Handshake {
    upgrade: Upgrade,
    /// What is wrong with it.
    fault: Option<Failure>,
    from_client: FromClient,
}

impl Handshake {
    /// That of `request`, if it is one.
    pub(super) fn of(request: &mut Request<Body>) -> Option<Self> {
        let upgrade = Upgrade::of(request)?;
        let headers = request.headers();
        if !wire::asks_for_websocket(request.method(), request.version(), headers) {
            return None;
        }
        let fault = wire::refuse_handshake(headers).err();
        Some(Handshake { upgrade, fault, from_client: FromClient::default() })
    }

    /// What the client will send.
    ///
    /// # Errors
    ///
    /// The handshake is not as it should be.
    pub(super) fn body(&self) -> Result<FromClient, Failure> {
        self.fault.clone().map_or_else(|| Ok(self.from_client.clone()), Err)
    }

    /// Browsers ask nobody before a page opens a WebSocket, to whatever place, and let it read what comes: so it
    /// is for us to keep pages of other origins away, where plain calls leave that to browsers.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Forbidden`], if the page that asks has another origin than it asks at, and the function
    /// does not allow that.
    pub(super) fn refuse_strangers(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        function: &Resolution,
    ) -> Result<(), Failure> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let place = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let names = ["x-forwarded-host", "host"].map(|name| headers.get(name));
        let same = place.is_some_and(|(_, place)| {
            names
                .iter()
                .flatten()
                .any(|name| name.as_bytes().eq_ignore_ascii_case(place.as_bytes()))
        });
        if same || function.cors.as_ref().is_some_and(|cors| cors.admits(caller)) {
            return Ok(());
        }
        let message = "a page of another origin asks for a WebSocket, and the function does not allow it; name \
                       the origin in allow_origins under [cors] in its manifest";
        Err(Failure::new(FailureKind::Forbidden, message))
    }

    /// Whether the worker has accepted it. Then the client is to get the answer by [`switch`](Self::switch).
    pub(super) fn is_accepted(response: &mut Response<ReplyBody>) -> bool {
        let accepted = response.headers_mut().remove(wire::WEBSOCKET).is_some();
        if accepted {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.remove(TRAILER);
        }
        accepted
    }

    /// The worker has answered in another way: nothing comes from the client. The reply may still be on its way,
    /// which it would not be for long if the request broke off.
    pub(super) fn decline(&self) {
        if let Some(to_worker) = self.from_client.sender() {
            let _ = to_worker.try_send(None);
        }
    }

    /// Tells the client to switch, and passes on what it sends and is sent from then on.
    pub(super) fn switch(self, response: Response<ReplyBody>) -> Response<Body> {
        let (parts, reply) = response.into_parts();
        let from_client = self.from_client.sender();
        self.upgrade.then(move |client, stops| pass(client, from_client, reply, stops));
        Response::from_parts(parts, empty_body())
    }
}

/// Adds to an answer to a faulty handshake which version is understood (RFC 6455, section 4.4).
pub(super) fn tell_version<B>(response: &mut Response<B>) {
    if response.status() == StatusCode::BAD_REQUEST {
        response.headers_mut().insert("sec-websocket-version", HeaderValue::from_static("13"));
    }
}

/// Passes bytes both ways, until the worker's end is over or the client reads no more.
async fn pass(
    client: TokioIo<Upgraded>,
    to_worker: Option<ToWorker>,
    mut reply: ReplyBody,
    stops: CancellationToken,
) {
    let (mut reads, mut writes) = tokio::io::split(client);
    let to_client = async {
        while let Some(frame) = reply.frame().await {
            let Ok(mut data) = frame?.into_data() else { continue };
            writes.write_all_buf(&mut data).await?;
            writes.flush().await?;
        }
        Ok::<_, BoxError>(writes.shutdown().await?)
    };
    let from_client = async {
        if let Some(to_worker) = to_worker {
            let last = from_client(&mut reads, &to_worker, stops).await;
            let _ = to_worker.send(last).await;
        }
        // The rest of the reply is on its way.
        std::future::pending::<()>().await;
    };
    let over = tokio::select! {
        over = to_client => over,
        () = from_client => return,
    };
    match over {
        // The client answers our last frame, and closes.
        Ok(()) => drop(tokio::time::timeout(FAREWELL, pass_over(reads)).await),
        Err(error) => tracing::debug!(error = &*error, "a WebSocket broke off"),
    }
}

/// Passes on what a client sends. Returns with what it is to end: trailers, perhaps.
async fn from_client(
    reads: &mut ReadHalf<TokioIo<Upgraded>>,
    to_worker: &ToWorker,
    stops: CancellationToken,
) -> Option<Frame<Bytes>> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let count = tokio::select! {
            count = reads.read_buf(&mut buffer) => count,
            () = stops.cancelled() => return Some(Frame::trailers(wire::going_away())),
        };
        // It has left, or has nothing more to say.
        if !count.is_ok_and(|count| count > 0) {
            return None;
        }
        let piece = Some(Frame::data(buffer.split().freeze()));
        let sent = tokio::select! {
            sent = to_worker.send(piece) => sent,
            () = stops.cancelled() => return Some(Frame::trailers(wire::going_away())),
        };
        if sent.is_err() {
            // The worker takes no more; what it still says is passed on.
            return None;
        }
    }
}

async fn pass_over(mut reads: ReadHalf<TokioIo<Upgraded>>) {
    let mut buffer = vec![0; PIECE];
    while reads.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
}
