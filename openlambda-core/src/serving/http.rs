//! HTTP/1.1 on the connections that a [`Door`] lets in: [`HttpServer`], the one accept loop of worker,
//! balancer and sandboxes.
//!
//! ```text
//!  the door is open ─ a client comes in ─▶ a task: its requests, one after the other ─▶ it leaves
//!         │ stop                                │
//!  the door is closed ─ each is told ─▶ its task ends with the request that it is at
//!         │ all have ended, or `drain` is over   │
//!        end ──────────────────────────────▶ what is open is cut
//! ```
//!
//! A connection that goes on in another protocol ([`Upgrade`](super::Upgrade)) does so in its task, and is told of
//! the stop, too.

use std::convert::Infallible;
use std::error::Error;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::departure::Phase;
use super::door::cannot_accept;
use super::flushing::Flush;
use super::told::Told;
use super::upgrade::Switch;
use super::{Caller, Door, Steady, Stream};
use crate::failure::chain;

/// How a server speaks HTTP. Every field has a default. The [door](super::Patience) bounds connections and
/// how slow clients may be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpConfig {
    /// The largest head of a request, bytes; a larger one is answered with 431. `None`: hyper's bound,
    /// some 400 KiB.
    pub header_limit: Option<usize>,
    /// How long requests under way may take after `stop` has resolved. With zero, connections are cut in
    /// the middle of them; the default is 5 s.
    pub drain: Duration,
    /// Whether a client by TCP that stops sending after its request still gets the reply, instead of being
    /// taken for one that has left. Whether it has is found out all the same, a second later. Of a client of
    /// HTTP/1.0 it is not, until something of the reply is sent to it, unless a proxy says that it relays the
    /// request: a proxy that stops sending is taken for one that has left.
    pub half_close: bool,
    /// Whether replies have a `Date`, which HTTP requires of servers with a clock.
    pub date: bool,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            header_limit: None,
            drain: Duration::from_secs(5),
            half_close: false,
            date: true,
        }
    }
}

/// A server at a door. See the module's documentation.
#[derive(Debug)]
pub struct HttpServer {
    door: Door,
    config: HttpConfig,
}

impl HttpServer {
    /// Serves the connections that come in at `door`, once it [runs](Self::run).
    pub fn new(door: Door, config: HttpConfig) -> Self {
        HttpServer { door, config }
    }

    /// Accepts connections until `stop` resolves, then lets those that are open finish what they have
    /// begun, for at most [`HttpConfig::drain`].
    ///
    /// `welcome` makes the service of each connection, which answers its requests one after the other; if
    /// `welcome` fails, the connection is closed. Each connection is a task. A failure of a connection, or
    /// a panic of its service, ends that connection alone. Bodies of requests may be taken as
    /// [`SteadyBody`](super::SteadyBody).
    ///
    /// **Drop** cuts all connections at once.
    pub async fn run<S, B>(
        self,
        mut welcome: impl FnMut(&Caller) -> io::Result<S>,
        stop: impl Future<Output = ()>,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
        S::Future: Send,
        B: Body<Error: Into<Box<dyn Error + Send + Sync>> + Send, Data: Send> + Send + 'static,
    {
        let HttpServer { door, config } = self;
        let head = door.patience().head;
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout((head < Duration::MAX).then_some(head))
            .auto_date_header(config.date);
        if let Some(limit) = config.header_limit {
            // The buffer alone is no exact bound.
            http.max_header_size(limit).max_buf_size(limit.max(SMALLEST_BUFFER));
        }
        // A connection that nobody will tell to end is not to ask each time it is polled.
        let drains = !config.drain.is_zero();
        let mut connections = JoinSet::new();
        let (mut stop, stops) = (pin!(stop), CancellationToken::new());
        loop {
            let mut stream = tokio::select! {
                stream = door.accept(cannot_accept) => stream,
                () = &mut stop => break,
                // Reaps, so that the set does not grow.
                Some(_) = connections.join_next() => continue,
            };
            let peer = stream.peer();
            let service = match welcome(&stream) {
                Ok(service) => service,
                Err(error) => {
                    tracing::warn!(%peer, %error, "cannot serve a connection");
                    continue;
                }
            };
            let ended = move |result: Result<(), hyper::Error>| {
                if let Err(error) = result {
                    tracing::debug!(%peer, error = chain(&error), "a connection ended");
                }
            };
            let phase = Phase::default();
            // By a Unix socket nobody but those who have left stops sending, and nothing else tells of them.
            let half_close = config.half_close && matches!(stream.stream(), Stream::Tcp(_));
            if half_close {
                stream.may_stop_sending(phase.clone());
            }
            let flush = Flush::default();
            stream.tell_written(flush.clone());
            let switch = Switch::new(phase.clone(), stops.clone());
            let service = Told { service, phase, flush, switch: switch.clone() };
            http.half_close(half_close);
            let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
            let stops = drains.then(|| stops.clone());
            let connection = Steady::new(async move {
                let mut connection = pin!(connection);
                if let Some(stops) = stops {
                    let mut stopped = pin!(stops.cancelled());
                    // All polls have one waker, `Steady`'s, so that the token hears of it once.
                    let mut waits = false;
                    let ended = poll_fn(|cx| match connection.as_mut().poll(cx) {
                        Poll::Ready(result) => Poll::Ready(Some(result)),
                        Poll::Pending if waits && !stops.is_cancelled() => Poll::Pending,
                        Poll::Pending => {
                            waits = true;
                            stopped.as_mut().poll(cx).map(|()| None)
                        }
                    });
                    match ended.await {
                        Some(result) => return result,
                        None => connection.as_mut().graceful_shutdown(),
                    }
                }
                connection.await
            });
            connections.spawn(async move {
                ended(connection.await);
                switch.go_on().await;
            });
        }
        drop(door);
        stops.cancel();
        if drains {
            let all_ended = async { while connections.join_next().await.is_some() {} };
            let in_time = tokio::time::timeout(config.drain, all_ended).await.is_ok();
            if !in_time {
                let open = connections.len();
                tracing::warn!(open, "connections were still open at the end and are cut");
            }
        }
        connections.shutdown().await;
    }
}

/// hyper takes no smaller one.
const SMALLEST_BUFFER: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;

    use bytes::Bytes;
    use http::StatusCode;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
    use tokio::sync::{Semaphore, oneshot};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::serving::{Patience, Upgrade};

    /// A server that answers when it is let to, and tells when it has a request.
    struct Server {
        address: SocketAddr,
        came: Arc<Semaphore>,
        answers: Arc<Semaphore>,
        stop: Option<oneshot::Sender<()>>,
        runs: JoinHandle<()>,
    }

    impl Server {
        async fn start(patience: Patience, config: HttpConfig) -> Server {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            Server::at(Door::new(listener, patience), address, config)
        }

        fn at(door: Door, address: SocketAddr, config: HttpConfig) -> Server {
            let (came, answers) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
            let (stop, stopped) = oneshot::channel::<()>();
            let (tell, may) = (came.clone(), answers.clone());
            let welcome = move |client: &Caller| {
                let (tell, may, peer) = (tell.clone(), may.clone(), client.peer());
                Ok(service_fn(move |_| {
                    let (tell, may) = (tell.clone(), may.clone());
                    async move {
                        tell.add_permits(1);
                        may.acquire().await.unwrap().forget();
                        let body = Full::new(Bytes::from(peer.port().to_string()));
                        Ok(Response::new(body))
                    }
                }))
            };
            let server = HttpServer::new(door, config);
            let stopped = async move {
                let _ = stopped.await;
            };
            let runs = tokio::spawn(async move { server.run(welcome, stopped).await });
            Server { address, came, answers, stop: Some(stop), runs }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        /// Sends a request and waits until the server has it.
        async fn begin(&self, client: &mut TcpStream) {
            client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
            self.came.acquire().await.unwrap().forget();
        }
    }

    async fn rest(mut client: impl AsyncReadExt + Unpin) -> String {
        let mut text = Vec::new();
        // A connection that is cut is at its end.
        let _ = client.read_to_end(&mut text).await;
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn what_has_begun_is_finished_and_nobody_else_comes_in() {
        let mut server = Server::start(Patience::default(), HttpConfig::default()).await;
        let (mut busy, idle) = (server.connect().await, server.connect().await);
        server.begin(&mut busy).await;
        server.stop.take();
        assert_eq!(rest(idle).await, "", "an idle connection ends at once");
        TcpStream::connect(server.address).await.unwrap_err();
        server.answers.add_permits(1);
        let reply = rest(busy).await;
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains("date: "), "{reply}");
        server.runs.await.unwrap();
    }

    #[tokio::test]
    async fn what_takes_too_long_at_the_end_is_cut() {
        for drain in [Duration::ZERO, Duration::from_millis(20)] {
            let config = HttpConfig { drain, date: false, ..HttpConfig::default() };
            let mut server = Server::start(Patience::default(), config).await;
            let mut client = server.connect().await;
            server.answers.add_permits(1);
            server.begin(&mut client).await;
            let mut reply = [0; 1024];
            let length = client.read(&mut reply).await.unwrap();
            let reply = std::str::from_utf8(&reply[..length]).unwrap();
            assert!(!reply.contains("date: "), "{reply}");
            server.begin(&mut client).await;
            server.stop.take();
            assert_eq!(rest(client).await, "");
            server.runs.await.unwrap();
        }
    }

    /// Leaves HTTP where it is asked to: answers one byte, and says bye at the end.
    async fn switch(mut request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let mut response = Response::new(Full::default());
        if let Some(upgrade) = Upgrade::of(&mut request) {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            upgrade.then(|mut client, stops| async move {
                let byte = client.read_u8().await.unwrap();
                client.write_u8(byte).await.unwrap();
                stops.cancelled().await;
                client.write_all(b"bye").await.unwrap();
            });
        }
        Ok(response)
    }

    #[tokio::test]
    async fn a_connection_that_leaves_http_counts_as_before_and_is_told_of_the_stop() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Patience { most_connections: 1, ..Patience::default() };
        let config = HttpConfig { half_close: true, ..HttpConfig::default() };
        let server = HttpServer::new(Door::new(listener, patience), config);
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async move { drop(stopped.await) };
        let runs = tokio::spawn(server.run(|_: &Caller| Ok(service_fn(switch)), stopped));

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut plain = [0; 17];
        client.read_exact(&mut plain).await.unwrap();
        assert_eq!(&plain, b"HTTP/1.1 200 OK\r\n");
        // With the first byte of what follows, which hyper has read by then.
        let upgrade = b"GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n!";
        client.write_all(upgrade).await.unwrap();
        // A client may stop sending here, too; nothing of HTTP is said to it then.
        client.shutdown().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n!") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.contains("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        // It still has the one place.
        let mut other = TcpStream::connect(address).await.unwrap();
        other
            .write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(1500), other.read_u8()).await;
        assert!(waits.is_err(), "{waits:?}");
        drop(stop);
        assert_eq!(rest(client).await, "bye");
        runs.await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_is_dropped_cuts_its_connections() {
        let server = Server::start(Patience::default(), HttpConfig::default()).await;
        let mut client = server.connect().await;
        server.begin(&mut client).await;
        server.runs.abort();
        assert_eq!(rest(client).await, "");
    }

    #[tokio::test]
    async fn a_head_that_is_too_large_is_refused() {
        let config = HttpConfig { header_limit: Some(1000), ..HttpConfig::default() };
        let server = Server::start(Patience::default(), config).await;
        for (filling, status) in [(900, "200"), (1000, "431")] {
            server.answers.add_permits(1);
            let mut client = server.connect().await;
            let head = format!(
                "GET / HTTP/1.1\r\nconnection: close\r\nx: {}\r\n\r\n",
                "x".repeat(filling)
            );
            client.write_all(head.as_bytes()).await.unwrap();
            let reply = rest(client).await;
            assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{reply}");
        }
    }

    #[tokio::test]
    async fn a_unix_socket_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let door = Door::within(UnixListener::bind(&path).unwrap(), Patience::without_end(1));
        let nowhere = (Ipv4Addr::LOCALHOST, 0).into();
        let server = Server::at(door, nowhere, HttpConfig::default());
        server.answers.add_permits(2);
        for _ in 0..2 {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let reply = rest(client).await;
            assert!(reply.ends_with("\r\n\r\n0"), "{reply}");
        }
    }

    #[tokio::test]
    async fn whoever_stops_sending_gets_the_reply_unless_that_means_that_it_has_left() {
        let config = HttpConfig { half_close: true, ..HttpConfig::default() };
        let server = Server::start(Patience::default(), config.clone()).await;
        let via = "via: 1.0 proxy\r\n";
        for (version, header, waits) in
            [("1.1", "", true), ("1.1", via, true), ("1.0", "", true), ("1.0", via, false)]
        {
            let mut client = server.connect().await;
            let request = format!("GET / HTTP/{version}\r\nhost: test\r\n{header}\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
            server.came.acquire().await.unwrap().forget();
            client.shutdown().await.unwrap();
            server.answers.add_permits(usize::from(waits));
            let reply = rest(client).await;
            assert_eq!(reply.contains(" 200 OK\r\n"), waits, "{request}{reply}");
        }

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let door = Door::within(UnixListener::bind(&path).unwrap(), Patience::without_end(1));
        let server = Server::at(door, (Ipv4Addr::LOCALHOST, 0).into(), config);
        let mut client = UnixStream::connect(&path).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        server.came.acquire().await.unwrap().forget();
        client.shutdown().await.unwrap();
        assert_eq!(rest(client).await, "");
    }
}
