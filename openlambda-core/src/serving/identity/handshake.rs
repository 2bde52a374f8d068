//! The [handshake](super), from both sides: [`prove`] for clients, [`Greeting`] for servers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hmac::Mac;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::place::{Place, Places};
use super::secret::{Secret, hex, random};

/// How each line begins. No request of HTTP does.
const MAGIC: &str = "openlambda/1 ";

/// A nonce and a proof, in hexadecimal digits.
const NONCE: usize = 32;
const PROOF: usize = 64;

/// The longest line, with its end: a name has up to 253 characters.
const LONGEST: usize = 512;

/// The client's last line, with its end.
const LAST: usize = MAGIC.len() + PROOF + 1;

/// What both sides prove that they know the secret for.
#[derive(Debug, Default)]
struct Terms {
    client: String,
    server: String,
    /// Where the client has connected to, and the name by which it did.
    place: String,
    name: String,
}

impl Terms {
    fn proof(&self, secret: &Secret, side: &[u8]) -> String {
        let [client, server, place, name] =
            [&self.client, &self.server, &self.place, &self.name].map(String::as_bytes);
        hex(&secret.mac([side, client, server, place, name]).finalize().into_bytes())
    }

    fn holds(&self, secret: &Secret, side: &[u8], proof: &str) -> bool {
        let (ours, proof) = (self.proof(secret, side), proof.as_bytes());
        // Compared by their codes, so that the time does not tell where they differ.
        let ours = secret.mac([b"compare", ours.as_bytes()]).finalize().into_bytes();
        secret.mac([b"compare", proof]).verify(&ours).is_ok()
    }
}

const SERVER: &[u8] = b"openlambda server";
const CLIENT: &[u8] = b"openlambda client";

/// Begins a connection to the server at `place`, which was looked up by `name`, `HOST:PORT`: makes sure that
/// it knows the secret, and proves the same to it. What comes next is the server's protocol. It waits for as
/// long as the server takes.
///
/// # Errors
///
/// The other end does not know the secret, or is another one than that of `place`
/// ([`PermissionDenied`](io::ErrorKind::PermissionDenied)); the connection broke.
pub async fn prove<S>(stream: &mut S, secret: &Secret, place: Place, name: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let client = hex(&random::<16>()?);
    let (place, name) = (place.to_string(), name.to_owned());
    let mut terms = Terms { client, server: String::new(), place, name };
    let hello = format!("{MAGIC}{} {} {}\n", terms.client, terms.place, terms.name);
    if hello.len() > LONGEST || hello.matches([' ', '\n']).count() != 4 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the server's name is no host and port",
        ));
    }
    stream.write_all(hello.as_bytes()).await?;
    stream.flush().await?;
    // Before it has our proof, the other end sends one line and no more.
    let mut line = Vec::with_capacity(LONGEST);
    while !line.ends_with(b"\n") {
        let mut more = [0; LONGEST];
        let room = LONGEST - line.len();
        let read = stream.read(&mut more[..room]).await?;
        line.extend_from_slice(&more[..read]);
        let begins = line.starts_with(&MAGIC.as_bytes()[..line.len().min(MAGIC.len())]);
        if read == 0 && begins {
            let told = "the other end closed the connection before it had proved itself";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, told));
        }
        if !begins || (line.len() == LONGEST && !line.ends_with(b"\n")) {
            return Err(stranger(
                "the other end does not speak as a daemon of a cluster with a secret",
            ));
        }
    }
    let line = String::from_utf8_lossy(&line[MAGIC.len()..line.len() - 1]).into_owned();
    match line.split_once(' ') {
        Some(("refused", why)) => {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Some((server, proof)) if server.len() == NONCE => {
            terms.server = server.to_owned();
            if terms.holds(secret, SERVER, proof) {
                let last = format!("{MAGIC}{}\n", terms.proof(secret, CLIENT));
                stream.write_all(last.as_bytes()).await?;
                return stream.flush().await;
            }
        }
        _ => {}
    }
    Err(stranger("the other end has another secret"))
}

fn stranger(why: &str) -> io::Error {
    let message = format!("{why}; name the same secret on both sides, with --secret-file");
    io::Error::new(io::ErrorKind::PermissionDenied, message)
}

/// The server's side of one connection: the handshake, if the client begins with it.
#[derive(Debug)]
pub(crate) struct Greeting {
    secret: Secret,
    /// Where the server is reached.
    places: Places,
    /// How long all of it may take once it has begun.
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    step: Step,
    terms: Terms,
    /// What has been read and not been used.
    read: Vec<u8>,
    /// What is to be sent.
    reply: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The first bytes decide what this is.
    Hello,
    /// The reply is on its way.
    Reply,
    /// It was a refusal.
    Refused,
    /// The client's proof is awaited.
    Proof,
    /// What was read goes to whoever speaks the protocol.
    Rest {
        /// The client has proved itself.
        proved: bool,
    },
}

impl Greeting {
    pub(crate) fn new(secret: Secret, places: Places, limit: Duration) -> Box<Self> {
        Box::new(Greeting {
            secret,
            places,
            limit,
            deadline: None,
            step: Step::Hello,
            terms: Terms::default(),
            read: Vec::new(),
            reply: Vec::new(),
        })
    }

    /// Goes on until it is over: then `out` has the first bytes of the protocol, or none at the end of the
    /// connection. Says whether the client has proved that it knows the secret. To be called again while
    /// something [is left](Self::is_over).
    pub(crate) fn poll_read<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        let before = out.filled().len();
        let proved = ready!(self.poll_decided(stream, cx, out))?;
        if out.filled().len() == before {
            if self.read.is_empty() {
                ready!(Pin::new(stream).poll_read(cx, out))?;
            } else {
                let fits = self.read.len().min(out.remaining());
                out.put_slice(&self.read[..fits]);
                self.read.drain(..fits);
            }
        }
        Poll::Ready(Ok(proved))
    }

    /// Goes on until it is known who the client is: for servers that write before they read. What is read
    /// meanwhile is kept.
    pub(crate) fn poll_write<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        let mut room = [0; LONGEST];
        let mut out = ReadBuf::new(&mut room);
        let proved = ready!(self.poll_decided(stream, cx, &mut out))?;
        // It was read first.
        self.read.splice(..0, out.filled().iter().copied());
        Poll::Ready(Ok(proved))
    }

    /// Until it is known who the client is. What a stranger has sent is in `out` then, if it could be told
    /// at once that it is one; all else is kept.
    fn poll_decided<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        loop {
            match self.step {
                Step::Hello => {
                    let before = out.filled().len();
                    ready!(self.read_more(stream, cx, out))?;
                    let came = &out.filled()[before..];
                    if came.is_empty() || (self.read.is_empty() && !begins(came)) {
                        // The usual stranger, whose bytes are where they belong.
                        self.step = Step::Rest { proved: false };
                        continue;
                    }
                    self.read.extend_from_slice(came);
                    out.set_filled(before);
                    if !begins(&self.read) {
                        self.step = Step::Rest { proved: false };
                    } else if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                        self.answer(end)?;
                    } else if self.read.len() > LONGEST {
                        return Poll::Ready(Err(broken("its greeting has no end")));
                    }
                }
                Step::Reply | Step::Refused => {
                    while !self.reply.is_empty() {
                        let sent = Pin::new(&mut *stream).poll_write(cx, &self.reply);
                        let sent = ready!(self.in_time(sent, cx))?;
                        if sent == 0 {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        self.reply.drain(..sent);
                    }
                    let flushed = Pin::new(&mut *stream).poll_flush(cx);
                    ready!(self.in_time(flushed, cx))?;
                    if self.step == Step::Refused {
                        return Poll::Ready(Err(broken("it has connected to another place")));
                    }
                    self.step = Step::Proof;
                }
                Step::Proof => {
                    if self.read.len() < LAST {
                        let before = out.filled().len();
                        ready!(self.read_more(stream, cx, out))?;
                        let came = &out.filled()[before..];
                        if came.is_empty() {
                            // It does not like what it has heard.
                            self.read.clear();
                            self.step = Step::Rest { proved: false };
                        }
                        self.read.extend_from_slice(came);
                        out.set_filled(before);
                        continue;
                    }
                    let rest = self.read.split_off(LAST);
                    let line = std::mem::replace(&mut self.read, rest);
                    let proof = std::str::from_utf8(&line[..LAST - 1]).ok();
                    let proof = proof.and_then(|line| line.strip_prefix(MAGIC));
                    if !proof.is_some_and(|proof| self.terms.holds(&self.secret, CLIENT, proof)) {
                        return Poll::Ready(Err(broken("it does not know the cluster's secret")));
                    }
                    self.step = Step::Rest { proved: true };
                }
                Step::Rest { proved } => return Poll::Ready(Ok(proved)),
            }
        }
    }

    /// Whether nothing is left of it, so that the stream can be read as it is.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.step, Step::Rest { .. }) && self.read.is_empty()
    }

    /// Reads what there is. The first read is bounded by whoever owns the connection.
    fn read_more<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(stream).poll_read(cx, out);
        if self.read.is_empty() && self.step == Step::Hello { read } else { self.in_time(read, cx) }
    }

    fn in_time<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() || self.limit == Duration::MAX {
            return polled;
        }
        let limit = self.limit;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client's greeting took too long",
        )))
    }

    /// Answers the client's first line, which ends at `end`.
    fn answer(&mut self, end: usize) -> io::Result<()> {
        let line = self.read.drain(..=end).collect::<Vec<_>>();
        let line = std::str::from_utf8(&line[MAGIC.len()..end]).unwrap_or_default();
        let mut words = line.split(' ');
        let (Some(nonce), Some(place), Some(name), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(broken("its greeting is not one"));
        };
        let Some(at) = place.parse().ok().filter(|_| nonce.len() == NONCE) else {
            return Err(broken("its greeting is not one"));
        };
        let [client, place, name] = [nonce, place, name].map(str::to_owned);
        self.terms = Terms { client, server: String::new(), place, name };
        if !self.places.has(at, &self.terms.name) {
            // The client's own words alone: it may be a stranger, who is not to learn where the server is.
            let why = format!(
                "the server is not at {at}, {}; if something forwards that to it, name it with --host (a worker's \
                 --advertise)",
                self.terms.name
            );
            self.reply = format!("{MAGIC}refused {why}\n").into_bytes();
            self.step = Step::Refused;
            return Ok(());
        }
        self.terms.server = hex(&random::<16>()?);
        let proof = self.terms.proof(&self.secret, SERVER);
        self.reply = format!("{MAGIC}{} {proof}\n", self.terms.server).into_bytes();
        self.step = Step::Reply;
        Ok(())
    }
}

/// Whether these first bytes are, or may become, a greeting.
fn begins(bytes: &[u8]) -> bool {
    let length = bytes.len().min(MAGIC.len());
    bytes[..length] == MAGIC.as_bytes()[..length]
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client is refused: {why}"))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;

    use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

    use super::*;
    use crate::serving::{Caller, Door, Patience, Principal};

    fn secret(letter: &str) -> Secret {
        format!("{letter}123456789abcdef0123456789abcdef").parse().unwrap()
    }

    async fn door(patience: Patience) -> (Door, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (Door::new(listener, patience).and_secret(Some(secret("k")), []), port)
    }

    async fn prove(stream: &mut TcpStream, secret: &Secret, port: u16) -> io::Result<()> {
        let place = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into();
        super::prove(stream, secret, place, &format!("localhost:{port}")).await
    }

    async fn connect(door: &Door, port: u16) -> (TcpStream, Caller) {
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        (client, door.accept(|error| panic!("{error}")).await)
    }

    #[tokio::test]
    async fn both_sides_know_each_other_and_what_comes_next_is_whole() {
        let (door, port) = door(Patience::default()).await;
        // With the proof in one piece, or before it is asked for.
        for pause in [false, true] {
            let (mut client, mut served) = connect(&door, port).await;
            let sends = async {
                prove(&mut client, &secret("k"), port).await.unwrap();
                if pause {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                client.write_all(b"GET /").await.unwrap();
                client
            };
            let reads = async {
                let mut text = [0; 5];
                // A buffer that is smaller than what came.
                served.read_exact(&mut text[..2]).await.unwrap();
                let first = served.identity().principal();
                served.read_exact(&mut text[2..]).await.unwrap();
                (text, first, served)
            };
            let (mut client, (text, principal, mut served)) = tokio::join!(sends, reads);
            assert_eq!((&text, principal), (b"GET /", Principal::Cluster));
            served.write_all(b"200").await.unwrap();
            let mut reply = [0; 3];
            client.read_exact(&mut reply).await.unwrap();
            assert_eq!(&reply, b"200");
            client.write_all(b"x").await.unwrap();
            assert_eq!(served.read_u8().await.unwrap(), b'x');
        }
    }

    proptest::proptest! {
        /// Whatever a stranger sends, in whatever pieces, and whichever way the server looks first: it gets
        /// all of it, or the connection ends; and nobody is taken for one of the cluster.
        #[test]
        fn no_bytes_of_a_stranger_are_lost_or_believed(
            begins in proptest::sample::select(vec!["", "o", MAGIC, "openlambda/1 00000000000000000000000000000000 "]),
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400),
            piece in 1..100_usize,
            room in 1..50_usize,
            writes_first in proptest::bool::ANY,
        ) {
            let sent = [begins.as_bytes(), &bytes].concat();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let told = runtime.block_on(async {
                let (mut client, mut server) = tokio::io::duplex(piece);
                let places = Places { here: None, forwarded: Arc::default() };
                let mut greeting = Greeting::new(secret("k"), places, Duration::MAX);
                let sends = async {
                    let _ = client.write_all(&sent).await;
                    let _ = client.shutdown().await;
                    let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
                };
                let reads = async move {
                    if writes_first {
                        poll_fn(|cx| greeting.poll_write(&mut server, cx)).await?;
                    }
                    let mut got = Vec::new();
                    loop {
                        let mut room = vec![0; room];
                        let mut out = ReadBuf::new(&mut room);
                        let proved = poll_fn(|cx| greeting.poll_read(&mut server, cx, &mut out)).await?;
                        assert!(!proved);
                        if out.filled().is_empty() {
                            return Ok::<_, io::Error>(got);
                        }
                        got.extend_from_slice(out.filled());
                    }
                };
                tokio::join!(sends, reads).1
            });
            match told {
                Ok(got) => proptest::prop_assert!(got == sent || (got.is_empty() && sent.starts_with(MAGIC.as_bytes()))),
                Err(error) => proptest::prop_assert!(sent.starts_with(MAGIC.as_bytes()), "{error}"),
            }
        }
    }

    /// As one of HTTP/2 does.
    #[tokio::test]
    async fn a_server_that_writes_first_waits_until_it_knows_the_client() {
        let (door, port) = door(Patience::default()).await;
        for (proves, greeting) in
            [(true, ""), (false, "PRI"), (false, "openlambda/1"), (false, "o")]
        {
            let (mut client, mut served) = connect(&door, port).await;
            let speaks = async {
                if proves {
                    prove(&mut client, &secret("k"), port).await.unwrap();
                }
                client.write_all(greeting.as_bytes()).await.unwrap();
                client.write_all(b" x").await.unwrap();
                client.shutdown().await.unwrap();
                let mut text = String::new();
                client.read_to_string(&mut text).await.unwrap();
                text
            };
            let answers = async {
                served.write_all(b"SETTINGS").await.unwrap();
                let mut text = String::new();
                served.read_to_string(&mut text).await.unwrap();
                let principal = served.identity().principal();
                drop(served);
                (text, principal == Principal::Cluster)
            };
            let (heard, read) = tokio::join!(speaks, answers);
            assert_eq!((&*heard, read), ("SETTINGS", (format!("{greeting} x"), proves)));
        }
    }

    #[tokio::test]
    async fn strangers_are_served_as_such_in_however_many_pieces_they_come() {
        let (door, port) = door(Patience::default()).await;
        let requests: [&[&[u8]]; 4] = [
            &[b"GET / HTTP/1.1\r\n"],
            &[b"o", b"penlambda/2", b" x"],
            &[b"openlambda/1"],
            &[b"openlambda/0 HTTP\n"],
        ];
        for pieces in requests {
            let (mut client, mut served) = connect(&door, port).await;
            let sends = async move {
                for piece in pieces {
                    client.write_all(piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let mut text = Vec::new();
            let (_, read) = tokio::join!(sends, served.read_to_end(&mut text));
            read.unwrap();
            assert_eq!(text, pieces.concat());
            assert_eq!(served.identity().principal(), Principal::Anyone);
        }
    }

    #[tokio::test]
    async fn who_has_another_secret_is_refused_by_either_side() {
        let (door, port) = door(Patience::default()).await;
        let (mut client, mut served) = connect(&door, port).await;
        let reads = async {
            let _ = served.read_u8().await;
            served.identity().principal()
        };
        let proves = async {
            let error = prove(&mut client, &secret("x"), port).await.unwrap_err();
            drop(client);
            error.to_string()
        };
        let (error, principal) = tokio::join!(proves, reads);
        assert_eq!(
            error,
            "the other end has another secret; name the same secret on both sides, with --secret-file"
        );
        assert_eq!(principal, Principal::Anyone);

        // One that does not look at the server's proof.
        for proof in ["0".repeat(PROOF), "\0".repeat(PROOF)] {
            let (mut client, mut served) = connect(&door, port).await;
            let sends = async {
                let hello =
                    format!("{MAGIC}{} 127.0.0.1:{port} localhost:{port}\n", "0".repeat(NONCE));
                client.write_all(hello.as_bytes()).await.unwrap();
                let mut reply = [0; MAGIC.len() + NONCE + 1 + PROOF + 1];
                client.read_exact(&mut reply).await.unwrap();
                client.write_all(format!("{MAGIC}{proof}\nGET /").as_bytes()).await.unwrap();
            };
            let (_, read) = tokio::join!(sends, served.read_u8());
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    /// A server that says what it was told to say: what it has heard by then, and what the client says.
    async fn impostor(reply: &[u8]) -> (String, io::Error) {
        let (mut client, mut server) = tokio::io::duplex(4096);
        server.write_all(reply).await.unwrap();
        server.shutdown().await.unwrap();
        let (key, place) = (secret("k"), SocketAddr::from((Ipv4Addr::LOCALHOST, 80)).into());
        let error = super::prove(&mut client, &key, place, "localhost:80").await.unwrap_err();
        drop(client);
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        (heard, error)
    }

    #[tokio::test]
    async fn a_server_that_cannot_prove_itself_learns_nothing() {
        let [place, name] = ["127.0.0.1:80", "localhost:80"].map(str::to_owned);
        let right = Terms { client: "c".into(), server: "0".repeat(NONCE), place, name };
        let replayed = format!("{MAGIC}{} {}\n", right.server, right.proof(&secret("k"), SERVER));
        let endless = format!("{MAGIC}{}\n", "0".repeat(600));
        for (reply, kind) in [
            ("HTTP/1.1 400 Bad Request\r\n\r\n", io::ErrorKind::PermissionDenied),
            (&*replayed, io::ErrorKind::PermissionDenied),
            (&*endless, io::ErrorKind::PermissionDenied),
            ("openlambda/1 ", io::ErrorKind::UnexpectedEof),
            ("", io::ErrorKind::UnexpectedEof),
        ] {
            let (heard, error) = impostor(reply.as_bytes()).await;
            assert_eq!(error.kind(), kind, "{error}");
            // The greeting, which has nothing of the secret in it, and no proof.
            let words: Vec<_> = heard.split([' ', '\n']).collect();
            assert_eq!((words.len(), words[0], words[4]), (5, "openlambda/1", ""), "{heard}");
            assert_eq!(&words[2..4], ["127.0.0.1:80", "localhost:80"]);
        }
    }

    #[tokio::test]
    async fn what_is_handed_on_from_another_place_is_refused() {
        let key = secret("k");
        for (forwarded, place, name, proved) in [
            (&[][..], "127.0.0.1:PORT", "localhost:PORT", true),
            (&[], "127.0.0.1:PORT", "anything", true),
            // A relay at another port, or at the same port of another address.
            (&[], "127.0.0.1:9", "localhost:9", false),
            (&[], "127.0.0.2:PORT", "localhost:PORT", false),
            (&[], "[::1]:PORT", "localhost:PORT", false),
            (&[], "local:PORT", "localhost:PORT", false),
            // Named by the operator: by its address, or by its name wherever that leads.
            (&["10.0.0.7:80"], "10.0.0.7:80", "w1.lan:80", true),
            (&["10.0.0.7:80"], "10.0.0.7:81", "w1.lan:81", false),
            (&["W1.lan:80"], "10.0.0.7:80", "w1.lan:80", true),
            (&["w1.lan:80"], "10.0.0.7:80", "w2.lan:80", false),
            (&["w1.lan"], "10.0.0.7:80", "w1.lan:80", false),
            (&["[2001:db8::1]:80"], "[2001:db8::1]:80", "x", true),
        ] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let forwarded = forwarded.iter().map(|host: &&str| host.parse().unwrap());
            let door = Door::new(listener, Patience::default());
            let door = door.and_secret(Some(key.clone()), forwarded);
            let (mut client, mut served) = connect(&door, port).await;
            let [place, name] = [place, name].map(|text| text.replace("PORT", &port.to_string()));
            let proves = async {
                super::prove(&mut client, &key, place.parse().unwrap(), &name).await?;
                client.write_all(b"x").await
            };
            let (told, read) = tokio::join!(proves, served.read_u8());
            assert_eq!(told.is_ok(), proved, "{place} {name}: {told:?}");
            assert_eq!(read.is_ok(), proved, "{place} {name}");
            if let Err(error) = told {
                let (why, next) = (format!("the server is not at {place}, {name}"), "with --host");
                let error = error.to_string();
                assert!(error.contains(&why) && error.contains(next), "{error}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_greeting_that_stops_is_given_up() {
        let patience = Patience { head: Duration::from_secs(3), ..Patience::default() };
        let (door, port) = door(patience).await;
        let hello = format!("{MAGIC}{} 127.0.0.1:{port} localhost:{port}\n", "0".repeat(NONCE));
        for greeting in [&hello[..5], &hello[..20], &hello] {
            let (mut client, mut served) = connect(&door, port).await;
            client.write_all(greeting.as_bytes()).await.unwrap();
            let error = served.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{greeting}");
        }
        let (mut client, mut served) = connect(&door, port).await;
        client.write_all(format!("{MAGIC}{}", "0".repeat(LONGEST)).as_bytes()).await.unwrap();
        assert_eq!(served.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn by_a_socket_with_a_file_the_user_is_known() {
        let (door, port) = door(Patience::default()).await;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let door = door.and_socket(UnixListener::bind(&path).unwrap());
        let mut client = UnixStream::connect(&path).await.unwrap();
        let mut served = door.accept(|error| panic!("{error}")).await;
        assert_eq!(served.identity().principal(), Principal::Cluster);
        client.write_all(b"openlambda/1").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'o');
        // By a port, the same process has to say more.
        let (_client, served) = connect(&door, port).await;
        assert_eq!(served.identity().principal(), Principal::Anyone);
    }
}
