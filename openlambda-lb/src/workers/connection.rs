//! One connection to a worker, polled by the call that uses it: [`Connection`].

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use openlambda_core::invocation::BoxError;
use openlambda_core::serving::Stream;
use tokio::task::unconstrained;

/// Why there is no reply.
#[derive(Debug)]
pub(crate) enum SendError {
    /// There is no connection.
    Connect(BoxError),
    /// The connection ended, with nothing of the request written.
    Unsent(BoxError),
    /// The connection ended, and the worker may have got the request.
    Broken(BoxError),
}

#[derive(Debug)]
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// Dropped when it has ended: with it goes a request that it has not looked at, and whoever sent
    /// that gets it back.
    ///
    /// Boxed: connections move from call to body to pool, and a driver is nearly a kilobyte.
    driver: Option<Box<http1::Connection<TokioIo<Stream>, Full<Bytes>>>>,
}

impl Connection {
    /// Begins to speak HTTP with the other end of `stream`.
    pub(super) async fn over(stream: Stream) -> Result<Self, SendError> {
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(|error| SendError::Unsent(error.into()))?;
        Ok(Connection { sender, driver: Some(Box::new(driver)) })
    }

    /// Sends the request and waits for the head of the reply. An error may have the request with it:
    /// then nothing of it was written.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        // However much else this task has done: a reply that is there is taken.
        let mut reply = pin!(unconstrained(self.sender.try_send_request(request)));
        poll_fn(|cx| {
            self.poll(cx);
            // It comes by the poll above or not at all; that need not wake us once more.
            reply.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await
    }

    /// Moves what is on its way, in both directions.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if self.driver.as_mut().is_some_and(|driver| Pin::new(&mut **driver).poll(cx).is_ready()) {
            self.driver = None;
        }
    }

    /// Whether it has ended, as far as its last user saw.
    pub(super) fn has_ended(&self) -> bool {
        self.driver.is_none()
    }

    /// Whether another request can be sent: the last reply is at its end, and neither side has
    /// closed it.
    pub(super) fn is_open(&mut self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}
