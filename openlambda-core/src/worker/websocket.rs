//! What a client sends over its WebSocket, on its way from the balancer to the sandbox.
//!
//! Bytes pass unread, a few pieces at a time; the frames in them are the function's runtime's to check. A task
//! moves them, not the call: who waits for a slot would not see that its client has left.

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::invocation::Body;
use crate::wire;

/// How many pieces wait for the sandbox, beside the one that the connection has. Each is at most as large as a
/// connection's buffer.
const PIECES: usize = 1;

/// The client's end of a WebSocket that a call may get.
#[derive(Debug)]
pub(super) struct FromClient {
    /// What it sends.
    pub(super) body: Body,
    /// Cancelled when it has left, or said all.
    pub(super) left: CancellationToken,
}

/// Moves what comes in `body`, until the other end is dropped. Once `draining` is cancelled nothing more is moved,
/// and the other end is told so.
pub(super) fn from_client(body: Incoming, draining: CancellationToken) -> FromClient {
    let (sender, mut receiver) = mpsc::channel(PIECES);
    let left = CancellationToken::new();
    tokio::spawn(pass_on(body, sender, draining, left.clone()));
    let pieces = stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|piece| Some(Ok(piece?))));
    FromClient { body: StreamBody::new(pieces).boxed_unsync(), left }
}

async fn pass_on(
    mut body: Incoming,
    sender: mpsc::Sender<Frame<Bytes>>,
    draining: CancellationToken,
    left: CancellationToken,
) {
    loop {
        let place = tokio::select! {
            place = sender.reserve() => place,
            () = draining.cancelled() => break,
        };
        // It is gone when the call is over.
        let Ok(place) = place else { break };
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = sender.closed() => break,
            () = draining.cancelled() => break,
        };
        match frame {
            Some(Ok(frame)) => place.send(frame),
            Some(Err(_)) | None => return left.cancel(),
        }
    }
    if !sender.is_closed() {
        let _ = sender.send(Frame::trailers(wire::going_away())).await;
    }
    drop(sender);
    // A connection that is closed with something unread is reset, and the balancer might lose the rest of the
    // reply. It closes the connection when it has that.
    while let Some(Ok(_)) = body.frame().await {}
    left.cancel();
}
