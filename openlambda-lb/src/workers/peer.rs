//! One worker, and every request that the balancer makes to it: [`Peer`].

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use openlambda_core::balancing::{Member, WorkerId, WorkerLoad};
use openlambda_core::failure::chain;
use openlambda_core::invocation::{Body, BoxError, empty_body, full_body};
use openlambda_core::time::Clock;
use openlambda_core::wire::{self, Reservation, ReservationKey};

use super::client::HttpClient;
use super::connection::SendError;
use super::connections::{Connections, WorkerBody};

/// A reservation or its cancellation that a worker has not taken by then is given up.
const RESERVATION_LIMIT: Duration = Duration::from_secs(2);

/// The longest answer between the project's own processes, bytes.
const LONGEST_ANSWER: usize = 64 << 10;

/// A worker and the way to it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: WorkerId,
    pub(crate) name: Arc<str>,
    /// The name as a header's value.
    pub(crate) header: HeaderValue,
    member: Arc<Member>,
    connections: Arc<Connections>,
    client: HttpClient,
}

impl Peer {
    /// The way to `member`, which the balancer knows as `id`. No connection is made before it is needed.
    pub(super) fn new(
        id: WorkerId,
        member: Arc<Member>,
        header: HeaderValue,
        client: HttpClient,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let (address, incarnation) = (member.address.clone(), member.incarnation);
        let connector = client.connector().clone();
        let connections = Connections::new(address, incarnation, connector, clock);
        let name = Arc::clone(&member.info.name);
        Arc::new(Peer { id, name, header, member, connections, client })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &Authority {
        self.connections.authority()
    }

    /// Whether that is the worker which this leads to.
    pub(super) fn leads_to(&self, member: &Member) -> bool {
        self.member.is(member)
    }

    /// Whether that is said of the worker which is known already, to the letter.
    pub(super) fn is_told_as(&self, member: &Member) -> bool {
        *self.member == *member
    }

    /// Its connections that wait for calls.
    pub(super) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }
}

/// Calls.
impl Peer {
    /// Sends a call whose URI is a path and whose body is at hand, and waits for the head of the reply; see
    /// [`Connections::send`].
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<WorkerBody>, SendError> {
        self.connections.send(request).await
    }

    /// The same, where the body is still on its way.
    pub(crate) async fn stream(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, SendError> {
        let path = std::mem::take(request.uri_mut()).into_parts().path_and_query;
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = self.uri(path);
        self.client.request(request).await.map_err(|error| {
            let never_written = error
                .source()
                .and_then(|cause| cause.downcast_ref::<hyper::Error>())
                .is_some_and(hyper::Error::is_canceled);
            match () {
                () if error.is_connect() => SendError::Connect(error.into()),
                () if never_written => SendError::Unsent(error.into()),
                () => SendError::Broken(error.into()),
            }
        })
    }
}

/// What the balancer itself asks and tells.
impl Peer {
    /// Its load, if it says.
    pub(super) async fn ask_load(&self) -> Option<WorkerLoad> {
        let mut request = Request::new(empty_body());
        *request.uri_mut() = self.uri(PathAndQuery::from_static(wire::LOAD_PATH));
        let reply = self.client.request(request).await.ok()?;
        let body = Limited::new(reply.into_body(), LONGEST_ANSWER).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }

    /// Has a place kept for a call.
    pub(super) async fn reserve(&self, reservation: &Reservation) {
        let body = serde_json::to_vec(reservation).unwrap_or_default();
        self.tell(Method::POST, wire::RESERVATIONS_PATH.to_owned(), body).await;
    }

    /// Gives a place back.
    pub(super) async fn cancel(&self, key: &ReservationKey) {
        self.tell(Method::DELETE, format!("{}/{key}", wire::RESERVATIONS_PATH), Vec::new()).await;
    }

    /// What does not get through is not repeated.
    async fn tell(&self, method: Method, path: String, body: Vec<u8>) {
        let said = self.request(method, path, body);
        if let Ok(Err(error)) = tokio::time::timeout(RESERVATION_LIMIT, said).await {
            tracing::debug!(worker = %self.name, error = chain(&*error), "no reservation");
        }
    }

    /// Reads that it was heard, so that the connection can be used again.
    async fn request(&self, method: Method, path: String, body: Vec<u8>) -> Result<(), BoxError> {
        let request = Request::builder().method(method).uri(self.uri(path.try_into()?));
        let reply = self.client.request(request.body(full_body(body))?).await?;
        let status = reply.status();
        Limited::new(reply.into_body(), LONGEST_ANSWER).collect().await?;
        if status.is_success() { Ok(()) } else { Err(format!("it answered {status}").into()) }
    }

    fn uri(&self, path: PathAndQuery) -> Uri {
        let uri = Uri::builder().scheme("http").authority(self.address().clone());
        uri.path_and_query(path).build().expect("each part is valid")
    }
}
