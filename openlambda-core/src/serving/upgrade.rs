//! Connections that go on in another protocol: [`Upgrade`].
//!
//! Hyper hands a connection over when the answer to its request has status 101. What goes on with it then runs in
//! the connection's own task, so that it counts at the [`Door`](super::Door), and ends with its
//! [`HttpServer`](super::HttpServer), as the connection does.

use std::sync::Arc;

use futures_core::future::BoxFuture;
use http::Request;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::departure::Phase;

/// What a request carries that may go on in another protocol: one with `Upgrade` of HTTP/1.1.
#[derive(Debug)]
pub struct Upgrade {
    connection: OnUpgrade,
    switch: Switch,
}

impl Upgrade {
    /// How to go on with the connection of `request`, once. `None` if it does not ask for that, or has not come
    /// through an [`HttpServer`](super::HttpServer).
    pub fn of<B>(request: &mut Request<B>) -> Option<Self> {
        // Nearly no request has any of these.
        let switch = request.extensions_mut().remove::<Switch>()?;
        Some(Upgrade { connection: hyper::upgrade::on(request), switch })
    }

    /// Goes on with what `protocol` makes of the connection and of a token that is cancelled when the server
    /// stops; then it has the server's [drain](super::HttpConfig::drain) to end. To be called before the
    /// request is answered with 101, and before nothing else.
    pub fn then<F>(
        self,
        protocol: impl FnOnce(TokioIo<Upgraded>, CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let Upgrade { connection, switch } = self;
        switch.phase.over();
        let stops = switch.stops.clone();
        *switch.next.lock() = Some(Box::pin(async move {
            match connection.await {
                Ok(connection) => protocol(TokioIo::new(connection), stops).await,
                Err(error) => tracing::debug!(%error, "a client left before it could switch"),
            }
        }));
    }
}

/// Between a connection's task and the requests on it.
#[derive(Clone)]
pub(super) struct Switch {
    phase: Phase,
    stops: CancellationToken,
    next: Arc<Mutex<Option<BoxFuture<'static, ()>>>>,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Switch")
    }
}

impl Switch {
    /// For a connection that is in `phase`, of a server that is at its end when `stops` is.
    pub(super) fn new(phase: Phase, stops: CancellationToken) -> Self {
        Switch { phase, stops, next: Arc::default() }
    }

    /// Lets a request that asks for it switch.
    pub(super) fn offer<B>(&self, request: &mut Request<B>) {
        if request.extensions().get::<OnUpgrade>().is_some() {
            request.extensions_mut().insert(self.clone());
        }
    }

    /// The connection has spoken its last HTTP: what goes on with it, if anything does.
    pub(super) async fn go_on(&self) {
        let next = self.next.lock().take();
        if let Some(next) = next {
            next.await;
        }
    }
}
