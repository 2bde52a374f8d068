//! Where a server accepts its connections, within bounds: [`Door`].

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_core::Stream as Sequence;
use futures_util::future::select;
use futures_util::stream;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::identity::{Greeting, Host, Place, Places};
use super::{Caller, Identity, Patient, Principal, Quiet, Secret, Stream};

/// How long a server waits when the system fails to give it a connection, most likely because there are no
/// descriptors: calls that end give some back.
const BREATH: Duration = Duration::from_millis(20);

/// Bounds on the number of clients and on how slow they may be. Every field has a default; a time of
/// [`Duration::MAX`] means for ever.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Patience {
    /// Connections at once. One more waits, not accepted, until another ends.
    pub most_connections: usize,
    /// How long a client may take for the head of a request, and be silent between two requests.
    pub head: Duration,
    /// How long a client may read nothing of what it is sent.
    pub write: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            most_connections: 10_000,
            // Proxies keep connections for a minute (nginx: 60 s): whoever closes first loses the
            // request that is on its way.
            head: Duration::from_secs(75),
            write: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// No bounds on time: for clients that wait by protocol, and whose end is noticed in another way.
    pub fn without_end(most_connections: usize) -> Self {
        Patience { most_connections, head: Duration::MAX, write: Duration::MAX }
    }
}

/// Listeners that count the connections that they let in, and learn who comes.
#[derive(Debug)]
pub struct Door {
    tcp: Option<TcpListener>,
    local: Option<Local>,
    local_first: AtomicBool,
    patience: Patience,
    secret: Option<Secret>,
    /// By which names clients reach it, of what hands connections on.
    forwarded: Arc<[Host]>,
    /// For how many more connections there is room.
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Local {
    listener: UnixListener,
    /// Who may connect is known by the file, and who does by the kernel.
    by_user: bool,
}

impl Door {
    /// Lets clients in by TCP.
    pub fn new(listener: TcpListener, patience: Patience) -> Self {
        Door::of(Some(listener), None, patience)
    }

    /// Lets clients in by a Unix socket alone.
    pub fn within(listener: UnixListener, patience: Patience) -> Self {
        Door::of(None, Some(Local { listener, by_user: false }), patience)
    }

    /// Lets clients in by a [local](super::local) socket, too. They are asked for the secret as those by
    /// TCP are, since sandboxed processes of the same user may get there.
    pub fn and_local(self, listener: UnixListener) -> Self {
        Door { local: Some(Local { listener, by_user: false }), ..self }
    }

    /// Lets clients in by a Unix socket that has a file, too. Those of this process's user, and root, are
    /// the cluster.
    pub fn and_socket(self, listener: UnixListener) -> Self {
        Door { local: Some(Local { listener, by_user: true }), ..self }
    }

    /// Learns of each connection whether its client knows the secret. Those of `forwarded` that have a port
    /// are other places than the listener's own by which clients reach it, because something forwards them.
    pub fn and_secret(
        self,
        secret: Option<Secret>,
        forwarded: impl IntoIterator<Item = Host>,
    ) -> Self {
        Door { secret, forwarded: forwarded.into_iter().collect(), ..self }
    }

    fn of(tcp: Option<TcpListener>, local: Option<Local>, patience: Patience) -> Self {
        let most = patience.most_connections.clamp(1, Semaphore::MAX_PERMITS);
        let (local_first, room) = (AtomicBool::new(false), Arc::new(Semaphore::new(most)));
        Door { tcp, local, local_first, patience, secret: None, forwarded: Arc::default(), room }
    }

    /// How the server treats clients that connect.
    pub fn patience(&self) -> &Patience {
        &self.patience
    }

    /// The connections one after another, without an end, for a server that does not speak HTTP/1.1 and
    /// accepts by itself; others use [`HttpServer`](super::HttpServer). Failures are logged.
    pub fn into_connections(self) -> impl Sequence<Item = Caller> + Send {
        stream::unfold(self, |door| async move { Some((door.accept(cannot_accept).await, door)) })
    }

    /// The next connection, when there is a place for it. A failure of the system is passed to `failed`, and
    /// accepting continues after a moment.
    ///
    /// Dropping the future loses no connection.
    pub async fn accept(&self, failed: impl Fn(io::Error)) -> Caller {
        let place = Arc::clone(&self.room).acquire_owned().await.ok();
        loop {
            match self.next().await {
                Ok((stream, peer, known)) => {
                    let Patience { head, write, .. } = self.patience;
                    let (identity, greeting) = match (&self.secret, known) {
                        (_, Some(known)) => (known, None),
                        (None, None) => (Identity::of(Principal::Anyone), None),
                        (Some(secret), None) => {
                            let forwarded = Arc::clone(&self.forwarded);
                            let places = Places { here: self.place_of(&stream), forwarded };
                            let greeting = Greeting::new(secret.clone(), places, head);
                            (Identity::to_be_told(), Some(greeting))
                        }
                    };
                    let stream = Patient::new(stream, peer, head, write, place);
                    return Caller::new(stream, identity, greeting);
                }
                Err(error) => {
                    failed(error);
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    /// Where a connection has come in.
    fn place_of(&self, stream: &Stream) -> Option<Place> {
        match stream {
            Stream::Tcp(stream) => stream.local_addr().ok().map(Place::from),
            Stream::Local(_) => {
                let port = self.tcp.as_ref()?.local_addr().ok()?.port();
                Some(Place::Local(port))
            }
        }
    }

    async fn next(&self) -> io::Result<(Stream, SocketAddr, Option<Identity>)> {
        let tcp = async {
            let Some(listener) = &self.tcp else { return pending().await };
            let (stream, peer) = listener.accept().await?;
            // A listener for both kinds of addresses has 127.0.0.1 as ::ffff:127.0.0.1: one client, one name.
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            // Replies are written in whole pieces; waiting for more only delays them.
            let _ = stream.set_nodelay(true);
            Ok((Stream::Tcp(stream), peer, None))
        };
        let Some(Local { listener, by_user }) = &self.local else { return tcp.await };
        let local = async {
            let stream = listener.accept().await?.0;
            let known = by_user.then(|| known_by_user(&stream)).transpose()?;
            let stream = Quiet::new(stream)?;
            Ok((Stream::Local(stream), (Ipv4Addr::LOCALHOST, 0).into(), known))
        };
        // The one is first as often as the other, so that neither waits for the other's crowd.
        if self.local_first.fetch_not(Ordering::Relaxed) {
            select(pin!(local), pin!(tcp)).await.factor_first().0
        } else {
            select(pin!(tcp), pin!(local)).await.factor_first().0
        }
    }
}

/// Who connects by a socket with a file: the kernel says which user it is.
fn known_by_user(stream: &UnixStream) -> io::Result<Identity> {
    let user = stream.peer_cred()?.uid();
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&user);
    let principal = if ours { Principal::Cluster } else { Principal::Anyone };
    Ok(Identity::of_user(principal, user))
}

/// Logs that the system failed to give a connection.
pub(super) fn cannot_accept(error: io::Error) {
    tracing::warn!(%error, "cannot accept a connection; trying again");
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::serving::local;

    const LONG: Duration = Duration::from_secs(600);

    async fn door(patience: Patience) -> (Door, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        (Door::new(listener, patience), address)
    }

    #[tokio::test]
    async fn one_more_waits_until_another_ends() {
        let (door, address) = door(Patience { most_connections: 2, head: LONG, write: LONG }).await;
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let enter = async || door.accept(|error| panic!("{error}")).await;
        let (one, two) = (enter().await, enter().await);
        assert_eq!(one.peer(), clients[0].local_addr().unwrap());
        let mut third = std::pin::pin!(enter());
        tokio::select! {
            biased;
            _ = &mut third => panic!("there was no place"),
            () = tokio::task::yield_now() => {}
        }
        drop(two);
        assert_eq!(third.await.peer(), clients[2].local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_client_has_the_same_address_at_a_listener_of_both_kinds() {
        let Ok(listener) = TcpListener::bind("[::]:0").await else { return };
        let port = listener.local_addr().unwrap().port();
        let door = Door::new(listener, Patience::default());
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let served = door.accept(|error| panic!("{error}")).await;
        assert_eq!(served.peer(), client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn a_crowd_at_the_port_leaves_room_for_who_comes_by_the_local_socket() {
        let (door, address) = door(Patience::default()).await;
        let door = door.and_local(local::listen(address.port(), 1).unwrap());
        let mut clients = Vec::new();
        let mut local_clients = Vec::new();
        for _ in 0..4 {
            clients.push(TcpStream::connect(address).await.unwrap());
            local_clients.push(local::connect(address.port(), 1).await.unwrap());
        }
        let mut local = 0;
        for _ in 0..4 {
            let served = door.accept(|error| panic!("{error}")).await;
            local += u32::from(served.peer().port() == 0);
        }
        assert_eq!(local, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_takes_nothing_is_given_up() {
        let (silent, active) = (Duration::from_secs(3), Duration::from_secs(5));
        let (door, address) =
            door(Patience { most_connections: 2, head: silent, write: active }).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        let begin = tokio::time::Instant::now();
        let mut served = door.accept(|error| panic!("{error}")).await;
        let error = served.read_u8().await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 3));

        let mut served = door.accept(|error| panic!("{error}")).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        let begin = tokio::time::Instant::now();
        let piece = vec![0; 1 << 20];
        let error = loop {
            // As much as the two sockets hold; then nobody takes more.
            if let Err(error) = served.write_all(&piece).await {
                break error;
            }
        };
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 5));
        // One that has spoken may be silent for as long as its protocol lets it.
        let read = tokio::time::timeout(LONG, served.read_u8()).await;
        assert!(read.is_err(), "{read:?}");
    }
}
