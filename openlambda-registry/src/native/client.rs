//! The client: a registry that asks a server over gRPC.

use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use openlambda_core::backoff::Backoff;
use openlambda_core::bundle::{self, PIECE};
use openlambda_core::function::{Digest, FunctionName, FunctionRef, Version};
use openlambda_core::random::fresh_seed;
use openlambda_core::registry::{
    Bundle, BundleStream, Listing, Published, Registry, RegistryError, RegistryEvent, Resolved,
    Revision, VersionInfo,
};
use openlambda_core::serving::{Connector, Secret};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use super::protocol::{BY, from_status, v1};
use v1::registry_client::RegistryClient;

/// How long a request may take that carries no bundle.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it may take to connect, and to prove that both ends are of one cluster.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How often a server is asked whether it is there, and how long it may take to answer: a connection that
/// died without a word is known within both together, and until then old versions are used.
const ASK_WHETHER_THERE: Duration = Duration::from_secs(1);
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// The pauses before watching again after the connection broke.
const WATCH_AGAIN: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_millis(400);

/// How long a registry that is just starting again is waited for, and the pauses between the
/// questions.
const RESTART: Duration = Duration::from_millis(1600);
const ASK_AGAIN: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(800);

/// `ol-registry`, from afar. Clones share two connections, one of them for bundles on their way in: who
/// sends those slowly, and fills what is on its way, holds up nobody who looks up names. They are made
/// when they are needed and made anew when they break. They belong to the tokio runtime that first uses
/// them.
#[derive(Clone, Debug)]
pub struct RemoteRegistry {
    endpoint: Endpoint,
    secret: Option<Secret>,
    /// Who it says that it is.
    by: Option<MetadataValue<Ascii>>,
    client: Arc<OnceLock<RegistryClient<Channel>>>,
    uploads: Arc<OnceLock<RegistryClient<Channel>>>,
}

impl RemoteRegistry {
    /// The registry at `url`, `http://host:port`. Does not connect yet.
    ///
    /// # Errors
    ///
    /// That it is no such URL.
    pub fn connect(url: &str) -> Result<Self, RegistryError> {
        let valid = url.strip_prefix("http://").is_some_and(|rest| !rest.is_empty());
        let endpoint = Endpoint::from_shared(url.to_owned()).ok().filter(|_| valid);
        let endpoint = endpoint.ok_or_else(|| {
            let message = format!("\"{url}\" is not a registry's address; write http://host:port");
            RegistryError::Unsupported(message)
        })?;
        let endpoint = endpoint
            // Finds a machine that is gone, also while only a watch is open.
            .http2_keep_alive_interval(ASK_WHETHER_THERE)
            .keep_alive_timeout(ANSWER_LIMIT)
            .keep_alive_while_idle(true);
        let (client, uploads) = (Arc::default(), Arc::default());
        Ok(RemoteRegistry { endpoint, secret: None, by: None, client, uploads })
    }

    /// The same, of the cluster that has this secret: it proves that it knows it, and asks no server that
    /// does not.
    pub fn with_secret(self, secret: Option<Secret>) -> Self {
        let (client, uploads) = (Arc::default(), Arc::default());
        RemoteRegistry { secret, client, uploads, ..self }
    }

    /// The same, under a name for the registry's audit log: the user and program that make changes.
    /// Characters that are not ASCII are left out.
    pub fn acting_as(self, by: &str) -> Self {
        let by: String = by.chars().filter(|letter| matches!(letter, ' '..='~')).collect();
        RemoteRegistry { by: by.parse().ok(), ..self }
    }

    /// A request that changes something.
    fn change<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(by) = &self.by {
            request.metadata_mut().insert(BY, by.clone());
        }
        request
    }

    fn client(&self) -> RegistryClient<Channel> {
        self.connected(&self.client)
    }

    fn connected(&self, client: &OnceLock<RegistryClient<Channel>>) -> RegistryClient<Channel> {
        // Connecting, lazily too, needs a runtime: here there is one.
        let connect = || {
            let connector = Connector::new(self.secret.clone(), CONNECT_LIMIT);
            RegistryClient::new(self.endpoint.connect_with_connector_lazy(connector))
        };
        client.get_or_init(connect).clone()
    }

    /// Asks, and asks again while the registry is just starting anew. Only for what may be done
    /// twice.
    async fn ask<T, F: Future<Output = Result<tonic::Response<T>, tonic::Status>>>(
        &self,
        mut ask: impl FnMut(RegistryClient<Channel>) -> F,
    ) -> Result<T, RegistryError> {
        let (mut backoff, mut waited) = (Backoff::new(ASK_AGAIN, fresh_seed()), Duration::ZERO);
        loop {
            let error = match tokio::time::timeout(PATIENCE, ask(self.client())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => from_status(status),
                Err(_) => {
                    let message = format!("it did not answer within {PATIENCE:?}");
                    return Err(RegistryError::Unavailable(message.into()));
                }
            };
            if !matches!(error, RegistryError::Unavailable(_)) || waited >= RESTART {
                return Err(error);
            }
            let pause = backoff.pause();
            waited += pause;
            tokio::time::sleep(pause).await;
        }
    }
}

/// Sends a chunk of a bundle in messages that gRPC takes: a caller that reads a whole file into one chunk
/// need not know how large a message may be.
async fn send_pieces(
    parts: &mpsc::Sender<v1::PublishPart>,
    mut data: Bytes,
) -> Result<(), mpsc::error::SendError<v1::PublishPart>> {
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(PIECE));
        parts.send(v1::PublishPart { data: piece, ..v1::PublishPart::default() }).await?;
    }
    Ok(())
}

#[async_trait]
impl Registry for RemoteRegistry {
    fn kind(&self) -> &'static str {
        "native"
    }

    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        self.publish(name, bundle::stream(bundle)).await
    }

    // The server canonicalises.
    async fn publish(
        &self,
        name: &FunctionName,
        mut bundle: BundleStream,
    ) -> Result<Published, RegistryError> {
        let (parts, receiver) = mpsc::channel(4);
        let function = name.to_string();
        // Ends when the bundle does, when it breaks off, or when the server wants no more of it.
        let send = async move {
            let part = |data| v1::PublishPart { data, ..v1::PublishPart::default() };
            let first = v1::PublishPart { function, ..part(Bytes::new()) };
            let mut sent = parts.send(first).await;
            while sent.is_ok() {
                sent = match bundle.next().await {
                    Some(Ok(data)) => send_pieces(&parts, data).await,
                    // Without the last part the server takes nothing.
                    Some(Err(error)) => return Some(error),
                    None => {
                        let last = v1::PublishPart { last: true, ..part(Bytes::new()) };
                        let _ = parts.send(last).await;
                        return None;
                    }
                };
            }
            None
        };
        let mut client = self.connected(&self.uploads);
        let publish = client.publish(self.change(ReceiverStream::new(receiver)));
        let (broken, published) = tokio::join!(send, publish);
        if let Some(error) = broken {
            return Err(RegistryError::BadBundle { reason: format!("it broke off: {error}") });
        }
        let published = published.map_err(from_status)?.into_inner();
        Ok(Published {
            version: Version(published.version),
            digest: parse(&published.digest)?,
            new: published.new,
        })
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let text = reference.to_string();
        let resolved = self
            .ask(|mut client| {
                let reference = v1::Reference { text: text.clone() };
                async move { client.resolve(reference).await }
            })
            .await?;
        let manifest = serde_json::from_str(&resolved.manifest_json).map_err(|error| {
            let message = format!(
                "the registry sent a manifest of another release ({error}); run the same release on \
                 both sides"
            );
            RegistryError::Unavailable(message.into())
        })?;
        let (name, digest) = (parse(&resolved.function)?, parse(&resolved.digest)?);
        let mut known = Resolved::new(name, Version(resolved.version), digest, manifest);
        known.born = resolved.born.map(Version);
        Ok(known)
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        let text = digest.to_string();
        let pieces = self
            .ask(|mut client| {
                let digest = v1::BundleDigest { digest: text.clone() };
                async move { client.fetch(digest).await }
            })
            .await?;
        let broken = |status| io::Error::other(from_status(status));
        Ok(pieces.map_ok(|piece| piece.data).map_err(broken).boxed())
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        let list =
            self.ask(|mut client| async move { client.list(v1::ListRequest {}).await }).await?;
        let listing = |listing: v1::Listing| {
            let aliases = listing.aliases.into_iter().map(|(alias, at)| (alias, Version(at)));
            Ok(Listing {
                name: parse(&listing.function)?,
                version: Version(listing.version),
                digest: parse(&listing.digest)?,
                aliases: aliases.collect(),
            })
        };
        list.functions.into_iter().map(listing).collect()
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let function = name.to_string();
        let list = self
            .ask(|mut client| {
                let name = v1::FunctionName { function: function.clone() };
                async move { client.versions(name).await }
            })
            .await?;
        let info = |version: v1::VersionInfo| {
            let mut info = VersionInfo::new(Version(version.version), parse(&version.digest)?);
            (info.bytes, info.published_ms) = (version.bytes, version.published_ms);
            Ok(info)
        };
        list.versions.into_iter().map(info).collect()
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let function = v1::FunctionName { function: name.to_string() };
        self.client().delete(self.change(function)).await.map_err(from_status)?;
        Ok(())
    }

    async fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        let change = v1::AliasChange {
            function: name.to_string(),
            alias: alias.to_owned(),
            version: version.map(|version| version.0),
            expected: expected.map(|version| version.0),
        };
        self.client().set_alias(self.change(change)).await.map_err(from_status)?;
        Ok(())
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        let cursor = (from != Revision::NOW).then_some(from.0);
        let backoff = Backoff::new(WATCH_AGAIN, fresh_seed());
        let start = Watching { registry: self.clone(), cursor, events: None, backoff };
        let next = |mut watching: Watching| async move {
            let Watching { registry, cursor, events, backoff } = &mut watching;
            let mut client = registry.client();
            loop {
                let stream = match events {
                    Some(stream) => stream,
                    None => match client.watch(v1::WatchRequest { from: *cursor }).await {
                        Ok(stream) => events.insert(stream.into_inner()),
                        Err(_) => {
                            tokio::time::sleep(backoff.pause()).await;
                            continue;
                        }
                    },
                };
                let event = match stream.message().await {
                    Ok(Some(event)) => serde_json::from_str::<RegistryEvent>(&event.json).ok(),
                    Ok(None) | Err(_) => {
                        // From where it was: what happens meanwhile is told afterwards.
                        *events = None;
                        tokio::time::sleep(backoff.pause()).await;
                        continue;
                    }
                };
                backoff.reset();
                // An event of a later release: something happened that is not understood.
                let revision = Revision(cursor.map_or(0, |cursor| cursor + 1));
                let event = event.unwrap_or(RegistryEvent::Lagged { revision });
                *cursor = Some(event.revision().0);
                return Some((event, watching));
            }
        };
        Box::pin(stream::unfold(start, next))
    }

    fn cache_for(&self) -> Duration {
        super::CACHE_FOR
    }
}

/// One who watches, over one connection after another.
struct Watching {
    registry: RemoteRegistry,
    /// The revision of the last change that was told.
    cursor: Option<u64>,
    events: Option<tonic::Streaming<v1::Event>>,
    backoff: Backoff,
}

fn parse<T: std::str::FromStr<Err = openlambda_core::function::NameError>>(
    text: &str,
) -> Result<T, RegistryError> {
    text.parse().map_err(strange)
}

/// The other end speaks, but not as we do.
fn strange(error: impl Into<openlambda_core::invocation::BoxError>) -> RegistryError {
    RegistryError::Unavailable(error.into())
}
