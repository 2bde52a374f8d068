//! How clients connect to the cluster's servers: [`Connector`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower_service::Service;

use super::identity::{Place, Secret, prove};
use crate::invocation::BoxError;

/// Connects by TCP to the host and port of a URL, to each address of a name if need be, and
/// [proves](prove) there that it belongs to the cluster. For clients of hyper and of tonic.
#[derive(Clone, Debug)]
pub struct Connector {
    tcp: HttpConnector,
    secret: Option<Secret>,
    limit: Duration,
}

impl Connector {
    /// With `secret`, servers that do not know it are refused. `limit`: how long it may take to connect and
    /// to prove that, together.
    pub fn new(secret: Option<Secret>, limit: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(limit));
        Connector { tcp, secret, limit }
    }

    /// How long it may take to connect.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The same, with another limit.
    #[must_use]
    pub fn within(&self, limit: Duration) -> Self {
        Connector::new(self.secret.clone(), limit)
    }

    /// Proves the same to the server at the other end of a stream that was made in another way.
    ///
    /// # Errors
    ///
    /// Those of [`prove`], and that the server has taken longer than the limit.
    pub async fn prove<S>(&self, stream: &mut S, place: Place, name: &str) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.prove_within(self.limit, stream, place, name).await
    }

    /// The same, in what is left of the limit.
    async fn prove_within<S>(
        &self,
        left: Duration,
        stream: &mut S,
        place: Place,
        name: &str,
    ) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(secret) = &self.secret else { return Ok(()) };
        let proved = tokio::time::timeout(left, prove(stream, secret, place, name)).await;
        proved.unwrap_or_else(|_| {
            let told =
                format!("it did not prove within {:?} that it is of this cluster", self.limit);
            Err(io::Error::new(io::ErrorKind::TimedOut, told))
        })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        let host = uri.host().unwrap_or_default();
        let name = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let connecting = self.tcp.call(uri);
        let begun = Instant::now();
        Box::pin(async move {
            let mut stream = connecting.await?.into_inner();
            let place = stream.peer_addr()?.into();
            let left = this.limit.saturating_sub(begun.elapsed());
            let proved = this.prove_within(left, &mut stream, place, &name).await;
            proved.map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    io::Error::new(error.kind(), format!("{name} is not of this cluster: {error}"))
                }
                // It is gone, or busy.
                kind => io::Error::new(kind, format!("{name}: {error}")),
            })?;
            Ok(TokioIo::new(stream))
        })
    }
}
