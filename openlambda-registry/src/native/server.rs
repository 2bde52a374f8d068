//! The server: a [`NativeRegistry`] over gRPC.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use http::Uri;
use openlambda_core::audit::{Actor, AuditLog, Audited};
use openlambda_core::failure::FailureKind;
use openlambda_core::function::{FunctionName, FunctionRef, NameError, Version};
use openlambda_core::invocation::BoxError;
use openlambda_core::registry::{Registry, RegistryError, RegistryEvent, Revision};
use openlambda_core::serving::identity::Host;
use openlambda_core::serving::{
    Access, Caller, Door, Identity, Patience, Principal, Resource, Secret,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::NativeRegistry;
use super::protocol::{BY, to_status, v1};

/// How often a connection is asked whether anybody is there, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The most that the headers of one request may take.
const HEADER_LIMIT: u32 = 16 << 10;

/// The most requests at once on one connection: a balancer has one for all its uploads.
const MOST_REQUESTS: u32 = 4096;

/// What each connection of HTTP/2 begins with, bytes (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// How a registry is served. Every field has a default.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ServeConfig {
    /// The cluster's secret: with one, only those who know it are served.
    pub secret: Option<Secret>,
    /// The names, beside the listener's own address, by which clients reach it; see [`Host`].
    pub hosts: Vec<Host>,
    /// Where changes are written down.
    pub audit: Option<AuditLog>,
    /// How many clients there may be at once, and how slow. `head` is how long one may take until it speaks
    /// HTTP/2 and, where there is a secret, has shown that it knows it.
    pub patience: Patience,
}

/// Serves `registry` on `listener` until `stop` resolves; then finishes the requests under way, and
/// ends those that watch.
///
/// # Errors
///
/// That the transport failed as a whole.
pub async fn serve(
    registry: Arc<NativeRegistry>,
    listener: TcpListener,
    config: ServeConfig,
    stop: impl Future<Output = ()>,
) -> Result<(), BoxError> {
    let stopped = CancellationToken::new();
    let stopping = stopped.clone().drop_guard();
    let ServeConfig { secret, hosts, audit, patience } = config;
    let service = Service { registry, audit, stopped };
    let access = Access::new(secret.clone(), Vec::new());
    let admit = move |request| admit(&access, request);
    let service = v1::registry_server::RegistryServer::with_interceptor(service, admit);
    let (asks, head) = (secret.is_some(), patience.head);
    let door = Door::new(listener, patience).and_secret(secret, hosts);
    let incoming = door.into_connections();
    let incoming =
        incoming.map(move |caller| Ok::<_, io::Error>(Connection::new(caller, asks, head)));
    let stop = async move {
        stop.await;
        drop(stopping);
    };
    tonic::transport::Server::builder()
        // Who does not answer is gone, or pretends to speak the protocol.
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_header_list_size(HEADER_LIMIT)
        .max_concurrent_streams(MOST_REQUESTS)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop)
        .await?;
    Ok(())
}

/// Lets a request in, or says why not.
fn admit(access: &Access, request: Request<()>) -> Result<Request<()>, Status> {
    let client = request.extensions().get::<Client>();
    let Some(client) = client else {
        return Err(Status::internal("the connection is not known"));
    };
    let caller = client.principal();
    if caller == Principal::Cluster {
        return Ok(request);
    }
    let headers = request.metadata().clone().into_headers();
    let (peer, uri) = (client.peer.ip(), Uri::from_static("/"));
    let admitted = access.admit(caller, peer, &uri, &headers, Resource::Control);
    match admitted {
        Ok(_) => {
            client.admitted.store(true, Ordering::Relaxed);
            Ok(request)
        }
        Err(failure) if failure.kind == FailureKind::Unauthorized => {
            Err(Status::unauthenticated(failure.message))
        }
        Err(failure) => Err(Status::permission_denied(failure.message)),
    }
}

/// A client's connection.
///
/// HTTP/2 has no bound on how long a client takes to begin, and none on how long it stays without a request.
/// So those who are not of the cluster could hold all connections that there are, each with one byte.
struct Connection {
    caller: Caller,
    client: Client,
    /// Who does not know the secret is not to stay.
    asks: bool,
    /// What has not come of the [`PREFACE`], bytes.
    preface: usize,
    /// Until it is known that the client may stay.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Connection {
    /// `head`: how long the client may take until it is known that it may stay.
    fn new(caller: Caller, asks: bool, head: Duration) -> Self {
        let (identity, peer) = (caller.identity().clone(), caller.peer());
        let client = Client { identity, peer, admitted: Arc::default() };
        let deadline = (head < Duration::MAX).then(|| Box::pin(tokio::time::sleep(head)));
        Connection { caller, client, asks, preface: PREFACE, deadline }
    }

    /// Whether it speaks the protocol and, where it has to, has shown that it knows the secret.
    fn may_stay(&self) -> bool {
        self.preface == 0 && (!self.asks || self.client.is_known())
    }
}

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        self.client.clone()
    }
}

/// Who is at the other end.
#[derive(Clone)]
struct Client {
    identity: Identity,
    peer: SocketAddr,
    /// A request has had the secret in it.
    admitted: Arc<AtomicBool>,
}

impl Client {
    fn principal(&self) -> Principal {
        self.identity.principal()
    }

    fn is_known(&self) -> bool {
        self.principal() == Principal::Cluster || self.admitted.load(Ordering::Relaxed)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.caller).poll_read(cx, buffer);
        if this.deadline.is_none() {
            return read;
        }
        this.preface = this.preface.saturating_sub(buffer.filled().len() - before);
        if this.may_stay() {
            this.deadline = None;
        } else if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            let message = "the client has not shown in time that it is of the cluster";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.caller).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.caller).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.caller.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.caller).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.caller).poll_shutdown(cx)
    }
}

#[derive(Debug)]
struct Service {
    registry: Arc<NativeRegistry>,
    audit: Option<AuditLog>,
    stopped: CancellationToken,
}

impl Service {
    /// The registry, as the one who makes this request changes it.
    fn changed_by<T>(&self, request: &Request<T>) -> Arc<dyn Registry> {
        let registry: Arc<dyn Registry> = self.registry.clone();
        let Some(audit) = &self.audit else { return registry };
        let by = request.metadata().get(BY).and_then(|by| by.to_str().ok()).unwrap_or_default();
        let from = request.extensions().get::<Client>().map(|client| client.peer.to_string());
        let by = by.chars().take(LONGEST_NAME).collect();
        Arc::new(Audited::new(
            registry,
            audit.clone(),
            Actor { by, from: from.unwrap_or_default() },
        ))
    }
}

/// The longest name that a client gives itself, characters.
const LONGEST_NAME: usize = 200;

#[tonic::async_trait]
impl v1::registry_server::Registry for Service {
    async fn publish(
        &self,
        request: Request<Streaming<v1::PublishPart>>,
    ) -> Result<Response<v1::Published>, Status> {
        let registry = self.changed_by(&request);
        let mut parts = request.into_inner();
        let first = parts.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("an empty request"))?;
        let name: FunctionName = first.function.parse().map_err(bad_name)?;
        let bundle = stream::unfold((Some(first), Some(parts)), |(first, parts)| async {
            let mut parts = parts?;
            let part = match first {
                Some(first) => Ok(Some(first)),
                None => parts.message().await,
            };
            let (data, parts) = match part {
                // It may carry bytes, as all do.
                Ok(Some(part)) => (Ok(part.data), (!part.last).then_some(parts)),
                Ok(None) => (Err(io::Error::other("the sender broke off")), Some(parts)),
                Err(status) => (Err(io::Error::other(status)), Some(parts)),
            };
            Some((data, (None, parts)))
        });
        let published = registry.publish(&name, bundle.boxed()).await.map_err(to_status)?;
        Ok(Response::new(v1::Published {
            version: published.version.0,
            digest: published.digest.to_string(),
            new: published.new,
        }))
    }

    async fn resolve(
        &self,
        request: Request<v1::Reference>,
    ) -> Result<Response<v1::Resolved>, Status> {
        let reference: FunctionRef = request.into_inner().text.parse().map_err(bad_name)?;
        let resolved = self.registry.resolve(&reference).await.map_err(to_status)?;
        let manifest_json = serde_json::to_string(&resolved.manifest);
        Ok(Response::new(v1::Resolved {
            function: resolved.name.to_string(),
            version: resolved.version.0,
            digest: resolved.digest.to_string(),
            manifest_json: manifest_json.map_err(|error| Status::internal(error.to_string()))?,
            born: resolved.born.map(|born| born.0),
        }))
    }

    type FetchStream = BoxStream<'static, Result<v1::Piece, Status>>;

    async fn fetch(
        &self,
        request: Request<v1::BundleDigest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let digest = request.into_inner().digest.parse().map_err(bad_name)?;
        let bundle = self.registry.get(&digest).await.map_err(to_status)?;
        let broken = |error| to_status(RegistryError::of_stream(error));
        Ok(Response::new(bundle.map_ok(|data| v1::Piece { data }).map_err(broken).boxed()))
    }

    async fn list(
        &self,
        _request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::Listings>, Status> {
        let list = self.registry.list().await.map_err(to_status)?;
        let functions = list.into_iter().map(|listing| v1::Listing {
            function: listing.name.to_string(),
            version: listing.version.0,
            digest: listing.digest.to_string(),
            aliases: listing.aliases.into_iter().map(|(alias, at)| (alias, at.0)).collect(),
        });
        Ok(Response::new(v1::Listings { functions: functions.collect() }))
    }

    async fn versions(
        &self,
        request: Request<v1::FunctionName>,
    ) -> Result<Response<v1::VersionList>, Status> {
        let name = request.into_inner().function.parse().map_err(bad_name)?;
        let versions = self.registry.versions(&name).await.map_err(to_status)?;
        let versions = versions.into_iter().map(|info| v1::VersionInfo {
            version: info.version.0,
            digest: info.digest.to_string(),
            bytes: info.bytes,
            published_ms: info.published_ms,
        });
        Ok(Response::new(v1::VersionList { versions: versions.collect() }))
    }

    async fn delete(
        &self,
        request: Request<v1::FunctionName>,
    ) -> Result<Response<v1::Done>, Status> {
        let registry = self.changed_by(&request);
        let name = request.into_inner().function.parse().map_err(bad_name)?;
        registry.delete(&name).await.map_err(to_status)?;
        Ok(Response::new(v1::Done {}))
    }

    async fn set_alias(
        &self,
        request: Request<v1::AliasChange>,
    ) -> Result<Response<v1::Done>, Status> {
        let registry = self.changed_by(&request);
        let change = request.into_inner();
        let name = change.function.parse().map_err(bad_name)?;
        let (version, expected) = (change.version.map(Version), change.expected.map(Version));
        let set = registry.set_alias(&name, &change.alias, version, expected).await;
        set.map_err(to_status)?;
        Ok(Response::new(v1::Done {}))
    }

    type WatchStream = BoxStream<'static, Result<v1::Event, Status>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (first, from) = match request.into_inner().from {
            Some(from) => (None, Revision(from)),
            None => {
                // What came before is unknown to the watcher; this says from where on it watches.
                let revision = self.registry.store().events().last();
                (Some(RegistryEvent::Lagged { revision }), revision)
            }
        };
        let over = self.stopped.clone().cancelled_owned();
        let events = stream::iter(first).chain(self.registry.watch(from));
        let events = events.take_until(Box::pin(over)).map(|event| {
            let json = serde_json::to_string(&event);
            json.map(|json| v1::Event { json }).map_err(|error| Status::internal(error.to_string()))
        });
        Ok(Response::new(events.boxed()))
    }
}

fn bad_name(error: NameError) -> Status {
    Status::invalid_argument(error.to_string())
}

#[cfg(test)]
mod tests {
    use openlambda_core::serving::Serving;

    use super::super::Store;
    use super::*;

    /// Clients of other programs put the bundle's end into the message that says it is the last.
    #[tokio::test(flavor = "multi_thread")]
    async fn the_last_message_of_a_publication_may_carry_bytes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("f.py"), "").unwrap();
        let mut tar = Vec::new();
        openlambda_core::bundle::pack_dir(folder.path(), &mut tar).unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let registry = Arc::new(NativeRegistry::new(store));
        let serving = Serving::start(async move |listener, stop| {
            serve(registry, listener, ServeConfig::default(), stop).await.unwrap();
        })
        .unwrap();
        let url = serving.url().to_owned();
        let endpoint = tonic::transport::Endpoint::from_shared(url).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let mut client = v1::registry_client::RegistryClient::new(channel);
        let part = |name: &str, data: &[u8], last| v1::PublishPart {
            function: name.to_owned(),
            data: data.to_vec().into(),
            last,
        };
        let (begin, end) = tar.split_at(tar.len() / 2);
        let two = vec![part("f", begin, false), part("", end, true)];
        let one = vec![part("g", &tar, true)];
        for parts in [two, one] {
            client.publish(stream::iter(parts)).await.unwrap();
        }
    }
}
