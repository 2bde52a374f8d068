//! The connections to one worker, for calls whose body is in memory.
//!
//! Something has to poll a hyper connection. In hyper-util's pool that is a separate task, which each call
//! wakes and is woken by. Here the call polls its connection itself: a connection belongs to a call, then
//! to the body of its reply, and after that it waits unpolled in [`Connections`] for the next call.
//!
//! So a client that does not read its reply would hold up the rest of its own request. That can happen
//! only to calls that stream their body, so those use hyper-util's client.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::uri::Authority;
use http::{Request, Response, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use openlambda_core::serving::identity::Place;
use openlambda_core::serving::{Connector, Quiet, SteadyBody, Stream, local};
use openlambda_core::time::{Clock, Time};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tower::ServiceExt;

use super::client::MOST_IDLE;
use super::connection::{Connection, SendError};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Connections {
    authority: Authority,
    /// Which start of the worker it is.
    incarnation: u64,
    host: HeaderValue,
    connector: Connector,
    clock: Arc<dyn Clock>,
    /// The one that was used last is at the end, and is used next.
    idle: Mutex<Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Time,
}

impl Connections {
    /// To the worker at `authority`, by its [local] socket while this start of it listens there. None is
    /// made before it is needed.
    pub(crate) fn new(
        authority: Authority,
        incarnation: u64,
        connector: Connector,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let host = HeaderValue::from_str(authority.as_str()).expect("what a URL has, a header may");
        Arc::new(Connections {
            authority,
            incarnation,
            host,
            connector,
            clock,
            idle: Mutex::default(),
        })
    }

    /// Where they lead.
    pub(crate) fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Sends a request, whose URI is a path, and waits for the head of the reply. Dropped before
    /// that, or with the rest of the reply unread, the connection is closed: the worker sees that
    /// nobody waits any more.
    ///
    /// # Errors
    ///
    /// [`SendError`]. That a connection was closed while it was idle is none: the request goes over
    /// another one.
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<WorkerBody>, SendError> {
        request.headers_mut().entry(HOST).or_insert_with(|| self.host.clone());
        loop {
            let (mut connection, used) = match self.take() {
                Some(connection) => (connection, true),
                None => (self.connect().await?, false),
            };
            match connection.exchange(request).await {
                Ok(reply) => {
                    let home = Arc::clone(self);
                    return Ok(reply.map(|body| WorkerBody {
                        body: SteadyBody::new(body),
                        connection: Some(connection),
                        ended: false,
                        home,
                    }));
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if used => request = unsent,
                    Some(_) => return Err(SendError::Unsent(error.into_error().into())),
                    None => return Err(SendError::Broken(error.into_error().into())),
                },
            }
        }
    }

    /// By the local socket, or by the port; together they take no longer than one may.
    async fn connect(&self) -> Result<Connection, SendError> {
        let (limit, begun) = (self.connector.limit(), Instant::now());
        let stream = match self.connect_locally(&self.connector.within(limit / 2)).await {
            Some(stream) => Stream::Local(stream),
            None => {
                let left = limit.saturating_sub(begun.elapsed());
                Stream::Tcp(self.connect_by_tcp(self.connector.within(left)).await?)
            }
        };
        Connection::over(stream).await
    }

    /// Whatever is wrong with the local socket, the port says what is wrong with the worker.
    async fn connect_locally(&self, connector: &Connector) -> Option<Quiet> {
        let port = port_here(&self.authority)?;
        let mut stream = local::connect(port, self.incarnation).await.ok()?;
        let (place, name) = (Place::Local(port), self.authority.as_str());
        connector.prove(&mut stream, place, name).await.ok()?;
        Some(stream)
    }

    async fn connect_by_tcp(&self, connector: Connector) -> Result<TcpStream, SendError> {
        let uri = Uri::builder().scheme("http").authority(self.authority.clone());
        let uri = uri.path_and_query("/").build().expect("each part is valid");
        let stream = connector.oneshot(uri).await;
        Ok(stream.map_err(SendError::Connect)?.into_inner())
    }

    /// One that is open, as far as is known.
    fn take(&self) -> Option<Connection> {
        loop {
            let mut last = self.idle.lock().pop()?;
            if self.is_fresh(&last) && last.connection.is_open() {
                return Some(last.connection);
            }
        }
    }

    /// Whether it is still open is asked by who takes it.
    fn give_back(&self, connection: Connection) {
        if !connection.has_ended() {
            let since = self.clock.now();
            self.idle.lock().push(Idle { connection, since });
        }
    }

    /// Closes connections that were idle for too long. It has to be called from time to time.
    pub(crate) fn sweep(&self) {
        let mut idle = self.idle.lock();
        let old = idle.iter().take_while(|idle| !self.is_fresh(idle)).count();
        let old: Vec<Idle> = idle.drain(..old).collect();
        drop(idle);
        drop(old);
    }

    /// Closes all idle connections: the worker may be gone.
    pub(crate) fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }

    fn is_fresh(&self, idle: &Idle) -> bool {
        self.clock.now().since(idle.since) < MOST_IDLE
    }
}

/// The port, if the address is one of this machine alone: elsewhere, the socket beside it may be
/// somebody else's.
fn port_here(authority: &Authority) -> Option<u16> {
    let host = authority.host().trim_matches(['[', ']']);
    let address: IpAddr = host.parse().ok()?;
    authority.port_u16().filter(|_| address.to_canonical().is_loopback())
}

/// The body of a reply, and the connection it comes over.
#[derive(Debug)]
pub(crate) struct WorkerBody {
    body: SteadyBody<Incoming>,
    /// There until the drop.
    connection: Option<Connection>,
    /// Nothing more comes.
    ended: bool,
    home: Arc<Connections>,
}

impl http_body::Body for WorkerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let mut frame = Pin::new(&mut this.body).poll_frame(cx);
        if frame.is_pending()
            && let Some(connection) = &mut this.connection
        {
            connection.poll(cx);
            frame = Pin::new(&mut this.body).poll_frame(cx);
        }
        let frame = ready!(frame);
        // A server does not ask for what comes after trailers.
        this.ended = match &frame {
            None => true,
            Some(frame) => frame.as_ref().is_ok_and(Frame::is_trailers),
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for WorkerBody {
    fn drop(&mut self) {
        // A server does not ask for the end of a body whose length it knows.
        if (self.ended || self.body.is_end_stream())
            && let Some(connection) = self.connection.take()
        {
            self.home.give_back(connection);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use http_body_util::BodyExt;
    use openlambda_core::time::ManualClock;
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::{broadcast, mpsc};

    use super::*;

    fn connector() -> Connector {
        Connector::new(None, Duration::from_secs(2))
    }

    /// A worker that answers each request with the text that is its path, without the `/`, and tells
    /// of connections that were closed.
    struct Worker {
        connections: Arc<Connections>,
        accepted: Arc<AtomicU32>,
        closed: mpsc::UnboundedReceiver<()>,
        /// Sent, all connections that are idle are closed.
        close: broadcast::Sender<()>,
        clock: Arc<ManualClock>,
    }

    impl Worker {
        async fn start() -> Worker {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let authority = listener.local_addr().unwrap().to_string().parse().unwrap();
            let (closing, closed) = mpsc::unbounded_channel();
            let accepted = Arc::new(AtomicU32::new(0));
            let clock = Arc::new(ManualClock::default());
            let count = Arc::clone(&accepted);
            let (close, _) = broadcast::channel(1);
            let closes = close.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    count.fetch_add(1, Ordering::SeqCst);
                    let (closing, mut closes) = (closing.clone(), closes.subscribe());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = answer(stream) => {}
                            _ = closes.recv() => {}
                        }
                        let _ = closing.send(());
                    });
                }
            });
            let connections =
                Connections::new(authority, 1, connector(), Arc::<ManualClock>::clone(&clock));
            Worker { connections, accepted, closed, close, clock }
        }

        async fn send(&self, path: &str) -> Result<Response<WorkerBody>, SendError> {
            let mut request = Request::new(Full::default());
            *request.uri_mut() = path.parse().unwrap();
            self.connections.send(request).await
        }

        async fn call(&self, path: &str) -> Bytes {
            self.send(path).await.unwrap().collect().await.unwrap().to_bytes()
        }

        fn accepted(&self) -> u32 {
            self.accepted.load(Ordering::SeqCst)
        }
    }

    async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => head.extend_from_slice(&buffer[..count]),
            }
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let text = String::from_utf8(std::mem::take(&mut head)).unwrap();
            assert!(text.contains("host: 127.0.0.1:"), "{text}");
            let path = text.split(' ').nth(1).unwrap().trim_start_matches('/');
            let reply = match path {
                "chunked" => "transfer-encoding: chunked\r\n\r\n7\r\nchunked\r\n0\r\n\r\n".into(),
                "trailers" => "transfer-encoding: chunked\r\ntrailer: x\r\n\r\n8\r\ntrailers\r\n\
                               0\r\nx: 1\r\n\r\n"
                    .into(),
                "unfinished" => "content-length: 100\r\n\r\nunf".into(),
                "mute" => continue,
                "break" => return,
                path => format!("content-length: {}\r\n\r\n{path}", path.len()),
            };
            stream.write_all(format!("HTTP/1.1 200 OK\r\n{reply}").as_bytes()).await.unwrap();
            if path == "close" {
                return;
            }
        }
    }

    #[tokio::test]
    async fn a_connection_is_used_again_after_each_kind_of_reply() {
        let worker = Worker::start().await;
        for path in ["a", "chunked", "", "chunked", "b"] {
            assert_eq!(worker.call(&format!("/{path}")).await, path);
        }
        // A server asks for nothing after the trailers.
        let mut reply = worker.send("/trailers").await.unwrap().into_body();
        while !reply.frame().await.unwrap().unwrap().is_trailers() {}
        drop(reply);
        assert_eq!(worker.call("/a").await, "a");
        assert_eq!(worker.accepted(), 1);
    }

    #[tokio::test]
    async fn calls_at_once_have_one_each_and_leave_them_to_later_ones() {
        let worker = Worker::start().await;
        for _ in 0..2 {
            let calls = ["/a", "/b", "/c"].map(|path| worker.call(path));
            assert_eq!(futures_util::future::join_all(calls).await, ["a", "b", "c"]);
        }
        assert_eq!(worker.accepted(), 3);
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_while_idle_costs_no_call() {
        let mut worker = Worker::start().await;
        for n in 1..=50 {
            assert_eq!(worker.call("/close").await, "close");
            assert_eq!(worker.accepted(), n);
            worker.closed.recv().await.unwrap();
            // Until the runtime has asked the system, nobody here knows of it.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// More than a task may look at before it has to let others run: what is not looked at seems open.
    #[tokio::test]
    async fn many_connections_that_were_closed_at_once_cost_no_call() {
        let mut worker = Worker::start().await;
        let calls: Vec<_> = (0..300).map(|_| worker.call("/a")).collect();
        futures_util::future::join_all(calls).await;
        worker.close.send(()).unwrap();
        for _ in 0..300 {
            worker.closed.recv().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let call = tokio::time::timeout(Duration::from_secs(20), worker.call("/a"));
        assert_eq!(call.await.expect("it does not hang"), "a");
    }

    #[tokio::test]
    async fn whoever_gives_up_closes_the_connection() {
        let mut worker = Worker::start().await;
        let reply = worker.send("/unfinished").await.unwrap();
        drop(reply);
        worker.closed.recv().await.unwrap();
        tokio::select! {
            _ = worker.send("/mute") => panic!("it answered"),
            () = async { while worker.accepted() < 2 { tokio::task::yield_now().await } } => {}
        }
        worker.closed.recv().await.unwrap();
        assert_eq!(worker.call("/a").await, "a");
        assert_eq!(worker.accepted(), 3);
    }

    #[tokio::test]
    async fn it_is_known_whether_a_request_was_sent() {
        let worker = Worker::start().await;
        assert!(matches!(worker.send("/break").await, Err(SendError::Broken(_))));
        // Also over a connection that was used before.
        worker.call("/a").await;
        assert!(matches!(worker.send("/break").await, Err(SendError::Broken(_))));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = listener.local_addr().unwrap().to_string().parse().unwrap();
        drop(listener);
        let connections =
            Connections::new(nobody, 1, connector(), Arc::new(ManualClock::default()));
        let reply = connections.send(Request::new(Full::default())).await;
        assert!(matches!(reply, Err(SendError::Connect(_))), "{reply:?}");
    }

    #[tokio::test]
    async fn a_worker_is_reached_by_its_local_socket_and_by_its_port_when_nobody_is_there() {
        let worker = Worker::start().await;
        let port = worker.connections.authority().port_u16().unwrap();
        let listener = local::listen(port, 1).unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                answer(stream).await;
            }
        });
        for path in ["a", "chunked", "close", "b"] {
            assert_eq!(worker.call(&format!("/{path}")).await, path);
        }
        assert_eq!(worker.accepted(), 0);
        server.abort();
        server.await.unwrap_err();
        for path in ["a", "b"] {
            assert_eq!(worker.call(&format!("/{path}")).await, path);
        }
        assert_eq!(worker.accepted(), 1);
    }

    /// It has stopped, or is a stranger's: whichever way, a call is told so in the time for one.
    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_silent_at_both_of_its_doors_costs_the_time_for_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = local::listen(address.port(), 1).unwrap();
        let (limit, secret) = (Duration::from_secs(2), "0123456789abcdef0123456789abcdef");
        let connector = Connector::new(Some(secret.parse().unwrap()), limit);
        let clock = Arc::new(ManualClock::default());
        let authority: Authority = address.to_string().parse().unwrap();
        let connections =
            Connections::new(authority, 1, connector.clone(), Arc::clone(&clock) as _);
        let begun = Instant::now();
        let reply = connections.send(Request::new(Full::default())).await;
        assert!(matches!(reply, Err(SendError::Connect(_))), "{reply:?}");
        assert_eq!(begun.elapsed().as_secs_f64().round() as u64, 2);
        // By the port alone, too.
        drop(silent);
        let begun = Instant::now();
        let reply = connections.send(Request::new(Full::default())).await;
        assert!(matches!(reply, Err(SendError::Connect(_))), "{reply:?}");
        assert_eq!(begun.elapsed().as_secs_f64().round() as u64, 2);
    }

    #[test]
    fn only_a_worker_on_this_machine_has_a_local_socket_here() {
        let port = |authority: &str| port_here(&authority.parse().unwrap());
        for here in ["127.0.0.1:8081", "127.1.2.3:8081", "[::1]:8081"] {
            assert_eq!(port(here), Some(8081), "{here}");
        }
        for elsewhere in ["10.0.0.1:8081", "[fe80::1]:8081", "worker.example:8081"] {
            assert_eq!(port(elsewhere), None, "{elsewhere}");
        }
    }

    #[tokio::test]
    async fn those_that_are_idle_for_long_are_closed() {
        let mut worker = Worker::start().await;
        worker.call("/a").await;
        worker.clock.advance_to(Time::ZERO + MOST_IDLE / 2);
        worker.connections.sweep();
        worker.call("/b").await;
        assert_eq!(worker.accepted(), 1);
        worker.clock.advance_to(Time::ZERO + MOST_IDLE * 2);
        worker.connections.sweep();
        worker.closed.recv().await.unwrap();
        // Nor are they used when nobody has swept.
        worker.call("/c").await;
        worker.clock.advance_to(Time::ZERO + MOST_IDLE * 3);
        worker.call("/d").await;
        assert_eq!(worker.accepted(), 3);
    }
}
