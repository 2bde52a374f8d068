//! Conversations over real sockets, with a client so small that it can break every rule.

use std::future::Future;
use std::io::{self, Write};
use std::pin::Pin;
use std::sync::atomic::AtomicU32;
use std::task::Poll;

use futures_util::future::join_all;
use futures_util::stream;
use http::HeaderName;
use http::header::{ALLOW, CONTENT_TYPE};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use openlambda_core::invocation::{BoxError, RequestHead, empty_body, full_body};
use openlambda_core::sandbox::{LogSink, LogStream};
use openlambda_core::time::SystemClock;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::super::answer::PRELUDE_LIMIT;
use super::super::{Listener, REPLY_LIMIT, Serving};
use super::*;
use crate::output::tests::Lines;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Over {
    Unix,
    Tcp,
}

/// An API that is served, and where.
struct Setup {
    api: RuntimeApi,
    serving: Serving,
    dir: tempfile::TempDir,
    port: Option<u16>,
}

impl Setup {
    async fn new(over: Over, slots: u32) -> Setup {
        Setup::with_event(over, slots, EventFormat::Body).await
    }

    async fn with_event(over: Over, slots: u32, event: EventFormat) -> Setup {
        Setup::with_config(over, RuntimeApiConfig { slots, event, ..config() }).await
    }

    async fn with_config(over: Over, config: RuntimeApiConfig) -> Setup {
        let api = RuntimeApi::new(config);
        let dir = tempfile::tempdir().unwrap();
        let (listener, port) = match over {
            Over::Unix => {
                (Listener::Unix(UnixListener::bind(dir.path().join("api")).unwrap()), None)
            }
            Over::Tcp => {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
                let port = listener.local_addr().unwrap().port();
                (Listener::Tcp(listener), Some(port))
            }
        };
        Setup { serving: api.serve(listener), api, dir, port }
    }

    async fn client(&self) -> Client {
        let stream: Box<dyn Stream> = match self.port {
            Some(port) => Box::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap()),
            None => Box::new(UnixStream::connect(self.dir.path().join("api")).await.unwrap()),
        };
        Client(BufReader::new(stream))
    }

    /// The worker's end, in a task of its own: reply and completion.
    fn invoke(&self, id: &str, body: &str) -> JoinHandle<Result<(Seen, Completion), SandboxError>> {
        let (api, invocation) = (self.api.clone(), invocation(id, body));
        tokio::spawn(async move {
            let reply = api.invoke(invocation).await?;
            let (status, headers) = (reply.status.as_u16(), reply.headers);
            let body = reply.body.collect().await.unwrap().to_bytes();
            Ok((Seen { status, headers, body }, reply.done.await))
        })
    }

    fn busy(&self) -> u32 {
        self.api.shared.state.lock().busy
    }

    async fn polls_wait(&self, count: usize) {
        eventually("the polls wait", || {
            let state = self.api.shared.state.lock();
            state.polls.iter().filter(|poll| !poll.is_closed()).count() == count
        })
        .await;
    }
}

fn config() -> RuntimeApiConfig {
    RuntimeApiConfig {
        slots: 1,
        event: EventFormat::Body,
        routes: Vec::new(),
        function: "ns/tested".parse().unwrap(),
        version: None,
        clock: Arc::new(SystemClock::new()),
        running: Running::default(),
        output: None,
    }
}

fn invocation(id: &str, body: &str) -> Invocation {
    Invocation {
        id: id.parse().unwrap(),
        function: "ns/tested".parse().unwrap(),
        deadline: Time::MAX,
        deadline_unix_ms: 4_102_444_800_123,
        head: RequestHead { path: "/".to_owned(), ..RequestHead::default() },
        body: full_body(body.to_owned()),
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// An HTTP/1.1 client that sends what it is told.
struct Client(BufReader<Box<dyn Stream>>);

/// A status, headers and body, from either end.
#[derive(Debug)]
struct Seen {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Seen {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The status and the `errorType` of a refusal.
    fn refusal(&self) -> (u16, String) {
        assert!(!self.json()["errorMessage"].as_str().unwrap().is_empty());
        (self.status, self.json()["errorType"].as_str().unwrap().to_owned())
    }

    fn id(&self) -> String {
        self.headers["lambda-runtime-aws-request-id"].to_str().unwrap().to_owned()
    }
}

impl Client {
    async fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(bytes.as_ref()).await?;
        self.0.flush().await
    }

    async fn head(&mut self, method: &str, path: &str, headers: &str) {
        let head =
            format!("{method} /2018-06-01/runtime/{path} HTTP/1.1\r\nHost: w\r\n{headers}\r\n");
        self.write(head).await.unwrap();
    }

    /// Asks for an event without waiting for it.
    async fn ask(&mut self) {
        self.head("GET", "invocation/next", "").await;
    }

    async fn next(&mut self) -> Seen {
        self.ask().await;
        self.read().await.unwrap()
    }

    async fn post(&mut self, path: &str, headers: &str, body: impl AsRef<[u8]>) -> Seen {
        let length = body.as_ref().len();
        self.head("POST", path, &format!("{headers}Content-Length: {length}\r\n")).await;
        self.write(body).await.unwrap();
        self.read().await.unwrap()
    }

    async fn respond(&mut self, id: &str, body: &str) -> Seen {
        self.post(&format!("invocation/{id}/response"), "", body).await
    }

    /// The head of a streamed response; chunks follow.
    async fn stream(&mut self, id: &str, headers: &str) {
        let headers = format!(
            "Transfer-Encoding: chunked\r\nLambda-Runtime-Function-Response-Mode: streaming\r\n\
             {headers}"
        );
        self.head("POST", &format!("invocation/{id}/response"), &headers).await;
    }

    async fn chunk(&mut self, data: impl AsRef<[u8]>) {
        let data = data.as_ref();
        let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
        chunk.extend_from_slice(data);
        chunk.extend_from_slice(b"\r\n");
        self.write(chunk).await.unwrap();
    }

    async fn end(&mut self, trailers: &str) -> Seen {
        self.write(format!("0\r\n{trailers}\r\n")).await.unwrap();
        self.read().await.unwrap()
    }

    async fn read(&mut self) -> io::Result<Seen> {
        within(async {
            let mut lines = Vec::new();
            loop {
                let mut line = String::new();
                if self.0.read_line(&mut line).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if line == "\r\n" {
                    break;
                }
                lines.push(line.trim_end().to_owned());
            }
            let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
            let headers: HeaderMap = lines[1..]
                .iter()
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
                .collect();
            let length: usize = headers["content-length"].to_str().unwrap().parse().unwrap();
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await?;
            Ok(Seen { status, headers, body: body.into() })
        })
        .await
    }
}

const INTEGRATION: &str = "Content-Type: application/vnd.awslambda.http-integration-response\r\n";
const JSON_ERROR: &str =
    r#"{"errorMessage": "no luck", "errorType": "ValueError", "stackTrace": ["line 1"]}"#;

/// A test that waits for what never comes says so.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it comes within a minute")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..20_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never happened: {what}");
}

/// Polls it once.
async fn begin<T>(future: &mut Pin<Box<impl Future<Output = T>>>) {
    let pending = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending()));
    assert!(pending.await, "it is over before it began");
}

async fn outcome<T>(task: JoinHandle<T>) -> T {
    within(task).await.unwrap()
}

#[tokio::test]
async fn events_are_handed_out_and_answers_come_back_over_both_kinds_of_socket() {
    for over in [Over::Unix, Over::Tcp] {
        let setup = Setup::new(over, 1).await;
        let mut client = setup.client().await;
        // The poll is there first, then the invocation; and the other way round.
        client.ask().await;
        within(setup.api.ready()).await.unwrap();
        for n in 0..3 {
            let invoked = setup.invoke(&format!("r{n}"), &n.to_string());
            let event = client.read().await.unwrap();
            assert_eq!((event.status, event.id()), (200, format!("r{n}")));
            assert_eq!(event.body, n.to_string());
            let posted = client.respond(&event.id(), r#"{"a": 1}"#).await;
            assert_eq!((posted.status, posted.json()), (202, json!({"status": "OK"})));
            let (reply, done) = outcome(invoked).await.unwrap();
            assert_eq!((reply.status, &*reply.body), (200, &br#"{"a": 1}"#[..]));
            assert_eq!(reply.headers[CONTENT_TYPE], "application/json");
            assert!(done.reusable && done.failure.is_none());
            client.ask().await;
        }
        let invoked = setup.invoke("bad", "");
        let event = client.read().await.unwrap();
        assert_eq!(event.body, "null");
        let posted = client.post("invocation/bad/error", "", JSON_ERROR).await;
        assert_eq!((posted.status, posted.json()), (202, json!({"status": "OK"})));
        let error = outcome(invoked).await.unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Function, Started::Yes));
        assert!(error.reusable);
        let told = error.function_error.unwrap();
        assert_eq!((&*told.kind, &*told.message), ("ValueError", "no luck"));
        assert_eq!(told.stack_trace, ["line 1"]);
    }
}

#[tokio::test]
async fn errors_need_no_particular_form() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    for (header, body, kind, message) in [
        ("", "plain words", "Unknown", "plain words"),
        ("Lambda-Runtime-Function-Error-Type: A.B\r\n", "{}", "A.B", "{}"),
        ("", r#"{"errorMessage": "m", "trace": [1, "x"]}"#, "Unknown", "m"),
        ("", "", "Unknown", ""),
    ] {
        let invoked = setup.invoke("r", "1");
        client.next().await;
        assert_eq!(client.post("invocation/r/error", header, body).await.status, 202);
        let error = outcome(invoked).await.unwrap_err();
        assert!(error.reusable);
        let told = error.function_error.unwrap();
        assert_eq!((&*told.kind, &*told.message), (kind, message));
    }
    let invoked = setup.invoke("r", "1");
    client.next().await;
    client.post("invocation/r/error", "OpenLambda-Exiting: 1\r\n", JSON_ERROR).await;
    let error = outcome(invoked).await.unwrap_err();
    assert_eq!((error.kind, error.reusable), (SandboxErrorKind::Function, false));
}

#[tokio::test]
async fn next_carries_what_clients_rely_on() {
    let setup = Setup::new(Over::Tcp, 1).await;
    let mut client = setup.client().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (sent, name, got) in [
        (None, "trace-id", None),
        (
            Some(("traceparent", trace)),
            "trace-id",
            Some("Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1"),
        ),
        (Some(("x-amzn-trace-id", "Root=1-2-3")), "trace-id", Some("Root=1-2-3")),
        (Some(("traceparent", "00-zz-1-01")), "trace-id", None),
        // {"a": "ü"}
        (
            Some(("x-amz-client-context", "eyJhIjogIsO8In0=")),
            "client-context",
            Some("{\"a\": \"ü\"}"),
        ),
        // Line breaks between the tokens, which a header cannot hold.
        (Some(("x-amz-client-context", "ewogImEiOiAxCn0=")), "client-context", Some("{\"a\":1}")),
        (Some(("x-amz-client-context", "!")), "client-context", None),
    ] {
        let mut invocation = invocation("r1", "{}");
        if let Some((name, value)) = sent {
            invocation.head.headers.insert(name, value.parse().unwrap());
        }
        let api = setup.api.clone();
        let invoked = tokio::spawn(async move { api.invoke(invocation).await.map(|_| ()) });
        let event = client.next().await;
        let types: Vec<_> = event.headers.get_all(CONTENT_TYPE).iter().collect();
        assert_eq!(types, ["application/json"]);
        assert_eq!(event.headers["lambda-runtime-aws-request-id"], "r1");
        assert_eq!(event.headers["lambda-runtime-deadline-ms"], "4102444800123");
        let arn = &event.headers["lambda-runtime-invoked-function-arn"];
        assert_eq!(arn, "arn:aws:lambda:local:000000000000:function:tested");
        let value = event.headers.get(format!("lambda-runtime-{name}"));
        assert_eq!(value.map(HeaderValue::as_bytes), got.map(str::as_bytes), "{sent:?}");
        client.respond("r1", "1").await;
        outcome(invoked).await.unwrap();
    }
}

#[tokio::test]
async fn a_failed_initialisation_is_told_once_and_ends_the_conversation() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    let posted = client.post("init/error", "", JSON_ERROR).await;
    assert_eq!((posted.status, posted.json()), (202, json!({"status": "OK"})));
    let error = within(setup.api.ready()).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Init, Started::No));
    assert_eq!(error.function_error.unwrap().message, "no luck");
    let refused = (403, "InvalidStateTransition".to_owned());
    assert_eq!(client.post("init/error", "", JSON_ERROR).await.refusal(), refused);
    assert_eq!(client.next().await.refusal(), refused);
    let error = outcome(setup.invoke("r", "1")).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
    // The exit that follows does not hide the reason.
    setup.api.close(&Exit::Status(1));
    assert_eq!(within(setup.api.ready()).await.unwrap_err().kind, SandboxErrorKind::Init);

    let setup = Setup::new(Over::Unix, 1).await;
    let (mut client, mut other) = (setup.client().await, setup.client().await);
    other.ask().await;
    within(setup.api.ready()).await.unwrap();
    assert_eq!(client.post("init/error", "", JSON_ERROR).await.refusal(), refused);
    assert!(setup.api.ready().await.is_ok());
}

#[tokio::test]
async fn what_breaks_the_order_is_refused_and_harms_nobody() {
    let setup = Setup::new(Over::Unix, 1).await;
    let (mut client, mut other) = (setup.client().await, setup.client().await);
    let unknown = (400, "InvalidRequestID".to_owned());
    let out_of_order = (403, "InvalidStateTransition".to_owned());
    assert_eq!(client.respond("nothing", "1").await.refusal(), unknown);

    let invoked = setup.invoke("r1", "1");
    eventually("it is queued", || !setup.api.shared.state.lock().queued.is_empty()).await;
    // A good guess does not make it known.
    assert_eq!(client.respond("r1", "1").await.refusal(), unknown);
    assert_eq!(client.next().await.id(), "r1");
    assert_eq!(client.next().await.refusal(), out_of_order);
    assert_eq!(other.next().await.refusal(), out_of_order);
    assert_eq!(other.respond("r2", "1").await.refusal(), unknown);

    // While one answer is on its way, another is too late.
    client.head("POST", "invocation/r1/response", "Content-Length: 5\r\n").await;
    client.write("\"a").await.unwrap();
    eventually("the answer is claimed", || {
        let state = setup.api.shared.state.lock();
        state.calls.values().any(|call| matches!(call.stage, CallStage::Answering))
    })
    .await;
    assert_eq!(other.respond("r1", "2").await.refusal(), out_of_order);
    client.write("bc\"").await.unwrap();
    assert_eq!(client.read().await.unwrap().status, 202);
    assert_eq!(outcome(invoked).await.unwrap().0.body, "\"abc\"");

    assert_eq!(client.respond("r1", "1").await.refusal(), out_of_order);
    assert_eq!(client.post("invocation/r1/error", "", "{}").await.refusal(), out_of_order);

    for (method, path, status, allow) in [
        ("GET", "nothing", 404, None),
        ("POST", "invocation/r1/what", 404, None),
        ("GET", "invocation", 404, None),
        ("POST", "invocation/next", 405, Some("GET")),
        ("GET", "invocation/r1/response", 405, Some("POST")),
        ("PUT", "invocation/r1/error", 405, Some("POST")),
        ("GET", "init/error", 405, Some("POST")),
    ] {
        client.head(method, path, "Content-Length: 0\r\n").await;
        let seen = client.read().await.unwrap();
        assert_eq!(seen.refusal().0, status, "{method} {path}");
        let allowed = seen.headers.get(ALLOW).map(|allow| allow.to_str().unwrap());
        assert_eq!(allowed, allow, "{method} {path}");
    }
    client.write("GET /2015-01-01/x HTTP/1.1\r\nHost: w\r\n\r\n").await.unwrap();
    assert_eq!(client.read().await.unwrap().status, 404);

    // After all that the conversation goes on.
    let invoked = setup.invoke("r2", "2");
    assert_eq!(client.next().await.id(), "r2");
    assert_eq!(other.respond("r2", "3").await.status, 202);
    assert_eq!(outcome(invoked).await.unwrap().0.body, "3");
}

#[tokio::test]
async fn replies_over_six_mebibytes_are_refused_and_the_slot_is_free() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    let fits = "x".repeat(REPLY_LIMIT);
    let invoked = setup.invoke("r", "1");
    client.next().await;
    assert_eq!(client.respond("r", &fits).await.status, 202);
    assert!(outcome(invoked).await.unwrap().0.body == fits, "the largest reply came back changed");

    let too_large = format!("{fits}x");
    for what in ["response", "error"] {
        for chunked in [false, true] {
            let invoked = setup.invoke("r", "1");
            client.next().await;
            let path = format!("invocation/r/{what}");
            let refused = if chunked {
                client.head("POST", &path, "Transfer-Encoding: chunked\r\n").await;
                client.chunk(&too_large).await;
                client.end("").await
            } else {
                client.post(&path, "", &too_large).await
            };
            assert_eq!(refused.refusal(), (413, "RequestEntityTooLarge".to_owned()));
            let error = outcome(invoked).await.unwrap_err();
            let kind = match what {
                "error" => SandboxErrorKind::Function,
                _ => SandboxErrorKind::BadReply,
            };
            assert_eq!((error.kind, error.started), (kind, Started::Yes));
            assert!(error.reusable && error.message.contains("6 MiB"), "{error}");
            assert_eq!(setup.busy(), 0);
        }
    }
    // The same connection goes on; so does one that was refused before all was sent.
    let invoked = setup.invoke("r", "1");
    client.next().await;
    client.respond("r", "2").await;
    assert_eq!(outcome(invoked).await.unwrap().0.body, "2");
}

#[tokio::test]
async fn an_endless_reply_is_cut_off() {
    let setup = Setup::new(Over::Tcp, 1).await;
    let mut client = setup.client().await;
    let invoked = setup.invoke("r", "1");
    client.next().await;
    client.head("POST", "invocation/r/response", "Transfer-Encoding: chunked\r\n").await;
    let mut chunk = format!("{:x}\r\n", 1 << 20).into_bytes();
    chunk.resize(chunk.len() + (1 << 20), b'x');
    chunk.extend_from_slice(b"\r\n");
    within(async { while client.write(&chunk).await.is_ok() {} }).await;
    let error = outcome(invoked).await.unwrap_err();
    assert_eq!((error.kind, error.reusable), (SandboxErrorKind::BadReply, true));
    let mut client = setup.client().await;
    let invoked = setup.invoke("r", "1");
    client.next().await;
    client.respond("r", "2").await;
    assert_eq!(outcome(invoked).await.unwrap().0.body, "2");
}

/// On one thread: nothing else runs between the end of the client and the arrival of the event.
#[tokio::test]
async fn an_event_for_a_poll_that_has_just_gone_goes_to_the_next() {
    for over in [Over::Unix, Over::Tcp] {
        let setup = Setup::new(over, 1).await;
        for round in 0..20 {
            let mut gone = setup.client().await;
            gone.ask().await;
            setup.polls_wait(1).await;
            let mut invoked = Box::pin(setup.api.invoke(invocation("r", "7")));
            if over == Over::Tcp {
                // Its last packet takes a moment, even on one machine.
                drop(gone);
                setup.polls_wait(0).await;
                begin(&mut invoked).await;
            } else if round % 2 == 0 {
                drop(gone);
                begin(&mut invoked).await;
            } else {
                begin(&mut invoked).await;
                drop(gone);
            }
            let invoked = async { within(invoked).await.unwrap().body.collect().await.unwrap() };
            let mut client = setup.client().await;
            let (body, ()) = tokio::join!(invoked, async {
                // Until its end is noticed, the gone client's event counts as delivered.
                let mut event = client.next().await;
                while event.status == 403 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    event = client.next().await;
                }
                assert_eq!((event.id(), &*event.body), ("r".to_owned(), &b"7"[..]));
                assert_eq!(client.respond("r", "8").await.status, 202);
            });
            assert_eq!(body.to_bytes(), "8", "{over:?} {round}");
            assert_eq!(setup.busy(), 0);
        }
    }
}

#[tokio::test]
async fn an_event_that_nobody_wants_any_more_is_not_handed_out_again() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut gone = setup.client().await;
    gone.ask().await;
    setup.polls_wait(1).await;
    let mut invoked = Box::pin(setup.api.invoke(invocation("unwanted", "7")));
    begin(&mut invoked).await;
    drop((gone, invoked));
    eventually("the slot is free", || setup.busy() == 0).await;
    let mut client = setup.client().await;
    let invoked = setup.invoke("wanted", "1");
    assert_eq!(client.next().await.id(), "wanted");
    client.respond("wanted", "2").await;
    assert_eq!(outcome(invoked).await.unwrap().0.body, "2");
}

#[tokio::test]
async fn a_dropped_call_is_taken_back_before_delivery_and_keeps_its_slot_after() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    let invoked = setup.invoke("before", "1");
    eventually("it is queued", || !setup.api.shared.state.lock().queued.is_empty()).await;
    invoked.abort();
    eventually("the slot is free", || setup.busy() == 0).await;

    let invoked = setup.invoke("after", "1");
    assert_eq!(client.next().await.id(), "after");
    invoked.abort();
    assert!(invoked.await.unwrap_err().is_cancelled());
    for _ in 0..3 {
        let error = outcome(setup.invoke("other", "1")).await.unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Busy, Started::No));
    }
    assert_eq!(client.respond("after", "1").await.status, 202);
    assert_eq!(setup.busy(), 0);
    let invoked = setup.invoke("other", "1");
    assert_eq!(client.next().await.id(), "other");
    client.respond("other", "2").await;
    assert_eq!(outcome(invoked).await.unwrap().0.body, "2");
}

#[tokio::test]
async fn closing_fails_what_is_open_and_tells_whether_it_had_started() {
    let setup = Setup::new(Over::Unix, 3).await;
    let [mut delivered, mut answering, mut polling] =
        [setup.client().await, setup.client().await, setup.client().await];
    let one = setup.invoke("delivered", "1");
    assert_eq!(delivered.next().await.id(), "delivered");
    let mut two = Box::pin(setup.api.invoke(invocation("answering", "1")));
    begin(&mut two).await;
    assert_eq!(answering.next().await.id(), "answering");
    answering.stream("answering", "").await;
    answering.chunk("begun").await;
    let three = setup.invoke("queued", "1");
    eventually("it is queued", || setup.busy() == 3).await;
    // Its head is there: from here on it is the body that breaks off.
    let streamed = within(two).await.unwrap();
    setup.api.close(&Exit::Signal(9));
    drop(setup.serving);

    let error = outcome(one).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::Yes));
    assert!(!error.reusable && error.message.contains("signal 9"), "{error}");
    let error = outcome(three).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
    within(streamed.body.collect()).await.expect_err("the body ended as if it were whole");
    assert!(!within(streamed.done).await.reusable);
    let error = setup.api.invoke(invocation("r", "1")).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
    assert_eq!(setup.api.pause().unwrap_err().kind, SandboxErrorKind::Exited);
    within(polling.read()).await.expect_err("somebody still serves");

    let setup = Setup::new(Over::Unix, 1).await;
    let mut polling = setup.client().await;
    polling.ask().await;
    setup.polls_wait(1).await;
    setup.api.close(&Exit::Destroyed);
    assert_eq!(polling.read().await.unwrap().status, 403);
    assert_eq!(within(setup.api.ready()).await.unwrap_err().kind, SandboxErrorKind::Exited);
}

#[tokio::test]
async fn a_completion_tells_how_a_streamed_reply_ended() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    let mut invoked = Box::pin(setup.api.invoke(invocation("r", "1")));
    begin(&mut invoked).await;
    client.next().await;
    client.stream("r", "").await;
    let reply = within(invoked).await.unwrap();
    setup.api.close(&Exit::OutOfMemory);
    let done = within(reply.done).await;
    assert!(!done.reusable);
    let failure = done.failure.unwrap();
    assert_eq!(failure.started, Started::Yes);
    assert!(failure.message.contains("out of memory"), "{failure}");
}

#[tokio::test]
async fn streamed_replies_have_a_prelude_and_flow_as_they_are_written() {
    let setup = Setup::new(Over::Tcp, 1).await;
    let mut client = setup.client().await;
    let prelude = json!({
        "statusCode": 201, "headers": {"x-a": "1"}, "cookies": ["a=1", "b=2"],
    });
    let mut invoked = Box::pin(setup.api.invoke(invocation("r", "1")));
    begin(&mut invoked).await;
    client.next().await;
    client.stream("r", INTEGRATION).await;
    // The prelude and its end come in pieces.
    let prelude = prelude.to_string();
    let (one, two) = prelude.split_at(10);
    client.chunk(one).await;
    client.chunk(two).await;
    client.chunk([0; 5]).await;
    client.chunk(b"\0\0\0first").await;
    let mut reply = within(invoked).await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.headers["x-a"]), (201, &"1".parse().unwrap()));
    assert_eq!(reply.headers.get_all("set-cookie").iter().count(), 2);
    let first = within(reply.body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "first");
    for n in 0..5 {
        client.chunk(format!("part {n}")).await;
        let frame = within(reply.body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), format!("part {n}"));
    }
    assert_eq!(setup.busy(), 1, "the handler is not through");
    assert_eq!(client.end("").await.status, 202);
    assert!(within(reply.body.frame()).await.is_none());
    let done = within(reply.done).await;
    assert!(done.reusable && done.failure.is_none());
    assert_eq!(setup.busy(), 0);

    // Without the integration's type the bytes are the body.
    let invoked = setup.invoke("r", "1");
    client.next().await;
    client.stream("r", "Content-Type: text/css\r\n").await;
    client.chunk(b"a\0\0\0\0\0\0\0\0b").await;
    client.end("").await;
    let (reply, _) = outcome(invoked).await.unwrap();
    assert_eq!((reply.status, &reply.headers[CONTENT_TYPE]), (200, &"text/css".parse().unwrap()));
    assert_eq!(reply.body, &b"a\0\0\0\0\0\0\0\0b"[..]);

    // A reply without a body, and one over the limit of buffered ones.
    for size in [0, REPLY_LIMIT * 2] {
        let invoked = setup.invoke("r", "1");
        client.next().await;
        client.stream("r", INTEGRATION).await;
        client.chunk(b"{\"statusCode\": 200}\0\0\0\0\0\0\0\0").await;
        for _ in 0..size / 65_536 {
            client.chunk([b'x'; 65_536]).await;
        }
        assert_eq!(client.end("").await.status, 202);
        let (reply, _) = outcome(invoked).await.unwrap();
        assert_eq!(reply.body.len(), size / 65_536 * 65_536);
    }
}

#[tokio::test]
async fn a_streamed_reply_without_a_valid_prelude_is_a_bad_one() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    let endless = "x".repeat(PRELUDE_LIMIT * 3);
    for bad in ["no prelude", "{}\0\0\0\0\0\0\0\0", "{\"statusCode\": 200}\0\0\0", &endless] {
        let invoked = setup.invoke("r", "1");
        client.next().await;
        client.stream("r", INTEGRATION).await;
        client.chunk(bad).await;
        assert_eq!(client.end("").await.status, 202);
        let error = outcome(invoked).await.unwrap_err();
        assert_eq!((error.kind, error.reusable), (SandboxErrorKind::BadReply, true));
        assert!(error.message.contains("prelude"), "{error}");
    }
}

#[tokio::test]
async fn an_error_in_the_trailers_breaks_a_streamed_reply_off() {
    let setup = Setup::new(Over::Tcp, 1).await;
    let mut client = setup.client().await;
    // {"errorMessage": "no", "errorType": "E"}
    let base64 = "eyJlcnJvck1lc3NhZ2UiOiAibm8iLCAiZXJyb3JUeXBlIjogIkUifQ==";
    for (body, told) in [(base64, ("E", "no")), ("plain words", ("Midway", "plain words"))] {
        let mut invoked = Box::pin(setup.api.invoke(invocation("r", "1")));
        begin(&mut invoked).await;
        client.next().await;
        let trailer = "Trailer: Lambda-Runtime-Function-Error-Type\r\n";
        client.stream("r", &format!("{INTEGRATION}{trailer}")).await;
        client.chunk(b"{\"statusCode\": 200}\0\0\0\0\0\0\0\0begun").await;
        let reply = within(invoked).await.unwrap();
        let trailers = format!(
            "Lambda-Runtime-Function-Error-Type: Midway\r\n\
             Lambda-Runtime-Function-Error-Body: {body}\r\n"
        );
        assert_eq!(client.end(&trailers).await.status, 202);
        let broken = within(reply.body.collect()).await.unwrap_err();
        assert!(broken.to_string().contains(told.1), "{broken}");
        let done = within(reply.done).await;
        assert!(done.reusable, "the code lives on");
        let error = done.failure.unwrap().function_error.unwrap();
        assert_eq!((&*error.kind, &*error.message), told);
    }
}

#[tokio::test]
async fn a_reply_whose_reader_is_gone_is_read_to_its_end() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    let mut invoked = Box::pin(setup.api.invoke(invocation("r", "1")));
    begin(&mut invoked).await;
    client.next().await;
    client.stream("r", "").await;
    let reply = within(invoked).await.unwrap();
    drop(reply.body);
    // Far more than all buffers on the way hold.
    for _ in 0..200 {
        within(client.chunk([b'x'; 65_536])).await;
    }
    assert_eq!(setup.busy(), 1);
    assert_eq!(client.end("").await.status, 202);
    assert!(within(reply.done).await.reusable);
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_told_and_costs_the_instance() {
    for streamed in [false, true] {
        let setup = Setup::new(Over::Unix, 1).await;
        let mut client = setup.client().await;
        let mut invoked = Box::pin(setup.api.invoke(invocation("r", "1")));
        begin(&mut invoked).await;
        client.next().await;
        if streamed {
            client.stream("r", "").await;
            client.chunk("begun").await;
            let reply = within(invoked).await.unwrap();
            drop(client);
            within(reply.body.collect()).await.unwrap_err();
            let done = within(reply.done).await;
            assert!(!done.reusable && done.failure.is_some());
        } else {
            client.head("POST", "invocation/r/response", "Content-Length: 9\r\n").await;
            client.write("begun").await.unwrap();
            drop(client);
            let error = within(invoked).await.unwrap_err();
            assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::Yes));
            assert!(!error.reusable);
        }
        assert_eq!(setup.busy(), 0);
    }
}

#[tokio::test]
async fn an_instance_is_asked_after_failures_of_its_calls_until_it_is_spent() {
    let setup = Setup::new(Over::Unix, 1).await;
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    setup.api.ask_after_failures(move || counted.fetch_add(1, Ordering::SeqCst) == 1);
    // One that is over already, as after `close`.
    let failure = ended(&Exit::Destroyed, Started::Yes).into();
    setup.api.shared.end("unknown", false, None, Some(failure));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    let mut client = setup.client().await;
    for (id, reusable, times) in [("a", true, 1), ("b", false, 2), ("c", false, 2)] {
        let invoked = setup.invoke(id, "1");
        client.next().await;
        let told = client.post(&format!("invocation/{id}/error"), "", JSON_ERROR).await;
        assert_eq!(told.status, 202);
        assert_eq!(outcome(invoked).await.unwrap_err().reusable, reusable);
        assert_eq!(asked.load(Ordering::SeqCst), times);
    }
}

#[tokio::test]
async fn slots_run_side_by_side_and_are_answered_in_any_order() {
    let setup = Setup::new(Over::Unix, 3).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(setup.client().await);
    }
    for _ in 0..20 {
        let invoked: Vec<_> =
            (0..3).map(|n| setup.invoke(&format!("r{n}"), &n.to_string())).collect();
        let events = join_all(clients.iter_mut().map(Client::next)).await;
        let mut ids: Vec<_> = events.iter().map(Seen::id).collect();
        let error = outcome(setup.invoke("r3", "1")).await.unwrap_err();
        assert_eq!(error.kind, SandboxErrorKind::Busy);
        assert_eq!(clients[0].next().await.status, 403);
        // Whoever got it, another may answer it.
        ids.rotate_left(1);
        for (client, id) in clients.iter_mut().zip(&ids).rev() {
            assert_eq!(client.respond(id, &format!("\"{id}\"")).await.status, 202);
        }
        for (n, invoked) in invoked.into_iter().enumerate() {
            assert_eq!(outcome(invoked).await.unwrap().0.body, format!("\"r{n}\""));
        }
    }
}

#[tokio::test]
async fn two_calls_with_the_same_id_are_two_calls() {
    let setup = Setup::new(Over::Unix, 2).await;
    let mut client = setup.client().await;
    let one = setup.invoke("same", "1");
    assert_eq!(client.next().await.id(), "same");
    let two = setup.invoke("same", "2");
    let event = client.next().await;
    assert_eq!((event.id().as_str(), &*event.body), ("same.2", &b"2"[..]));
    assert_eq!(client.respond("same", "\"one\"").await.status, 202);
    assert_eq!(client.respond("same", "\"again\"").await.status, 403);
    assert_eq!(client.respond("same.2", "\"two\"").await.status, 202);
    assert_eq!(outcome(one).await.unwrap().0.body, "\"one\"");
    assert_eq!(outcome(two).await.unwrap().0.body, "\"two\"");
    // One after the other, both have it as it is.
    let three = setup.invoke("same", "3");
    assert_eq!(client.next().await.id(), "same");
    client.respond("same", "3").await;
    assert_eq!(outcome(three).await.unwrap().0.body, "3");
}

#[tokio::test]
async fn a_request_that_cannot_be_handed_over_frees_its_slot() {
    let setup = Setup::new(Over::Unix, 1).await;
    let error = outcome(setup.invoke("r", "{")).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::BadRequest, Started::No));
    let frames: [Result<Frame<Bytes>, BoxError>; 2] =
        [Ok(Frame::data("\"begun".into())), Err("gone".into())];
    let broken = StreamBody::new(stream::iter(frames)).boxed_unsync();
    let error =
        setup.api.invoke(Invocation { body: broken, ..invocation("r", "") }).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::BodyLost, Started::No));
    // A body that never comes holds the slot for as long as somebody waits for it.
    let never = StreamBody::new(stream::pending()).boxed_unsync();
    let mut invoked = Box::pin(setup.api.invoke(Invocation { body: never, ..invocation("r", "") }));
    begin(&mut invoked).await;
    assert_eq!(setup.busy(), 1);
    assert_eq!(setup.api.pause().unwrap_err().kind, SandboxErrorKind::Busy);
    drop(invoked);
    assert_eq!(setup.busy(), 0);

    setup.api.pause().unwrap();
    let error = outcome(setup.invoke("r", "1")).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Paused, Started::No));
    setup.api.resume().unwrap();
    let mut client = setup.client().await;
    let invoked = setup.invoke("r", "1");
    client.next().await;
    client.respond("r", "2").await;
    assert_eq!(outcome(invoked).await.unwrap().0.body, "2");
}

#[tokio::test]
async fn http_functions_set_status_and_headers() {
    let setup = Setup::with_event(Over::Unix, 1, EventFormat::Http).await;
    let mut client = setup.client().await;
    let api = setup.api.clone();
    let asked = Invocation { body: empty_body(), ..invocation("r", "") };
    let invoked = tokio::spawn(async move { api.invoke(asked).await });
    let event = client.next().await.json();
    assert_eq!(
        (&event["rawPath"], &event["requestContext"]["requestId"]),
        (&json!("/"), &json!("r"))
    );
    client.respond("r", r#"{"statusCode": 404, "headers": {"x-a": "1"}, "body": "no"}"#).await;
    let reply = outcome(invoked).await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.headers["x-a"]), (404, &"1".parse().unwrap()));
    assert_eq!(reply.body.collect().await.unwrap().to_bytes(), "no");
    let invoked = setup.invoke("r", "");
    client.next().await;
    assert_eq!(client.respond("r", r#"{"statusCode": 7}"#).await.status, 202);
    let error = outcome(invoked).await.unwrap_err();
    assert_eq!((error.kind, error.reusable), (SandboxErrorKind::BadReply, true));
}

/// A client that opens a connection for every request, as curl in a shell does.
#[tokio::test]
async fn connections_may_come_and_go() {
    let setup = Setup::new(Over::Tcp, 1).await;
    for n in 0..100 {
        let invoked = setup.invoke("r", &n.to_string());
        assert_eq!(setup.client().await.next().await.body, n.to_string());
        assert_eq!(setup.client().await.respond("r", "1").await.status, 202);
        outcome(invoked).await.unwrap();
    }
    // Idle ones in between do not keep others out.
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(setup.client().await);
    }
    let invoked = setup.invoke("r", "1");
    let mut client = setup.client().await;
    client.next().await;
    client.respond("r", "2").await;
    assert_eq!(outcome(invoked).await.unwrap().0.body, "2");
}

/// Other people's clients may pipeline.
#[tokio::test]
async fn a_reply_and_the_next_question_may_come_in_one_piece() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    client.ask().await;
    for n in 0..20 {
        let invoked = setup.invoke("r", &n.to_string());
        let event = client.read().await.unwrap();
        assert_eq!((event.id(), event.body), ("r".to_owned(), Bytes::from(n.to_string())));
        let base = "/2018-06-01/runtime/invocation";
        let both = format!(
            "POST {base}/r/response HTTP/1.1\r\nHost: w\r\nContent-Length: 1\r\n\r\n7\
             GET {base}/next HTTP/1.1\r\nHost: w\r\n\r\n"
        );
        client.write(both).await.unwrap();
        assert_eq!(outcome(invoked).await.unwrap().0.body, "7");
        assert_eq!(client.read().await.unwrap().status, 202);
        setup.polls_wait(1).await;
    }
}

/// Our own bootstraps get the next event in answer to their reply.
#[tokio::test]
async fn the_next_event_may_answer_a_reply() {
    let setup = Setup::new(Over::Unix, 1).await;
    let mut client = setup.client().await;
    client.ask().await;
    let then = "OpenLambda-Next: 1\r\n";
    for n in 0..20 {
        let invoked = setup.invoke("r", &n.to_string());
        let event = client.read().await.unwrap();
        assert_eq!((event.status, event.id()), (200, "r".to_owned()));
        assert_eq!(event.body, n.to_string());
        client.head("POST", "invocation/r/response", &format!("{then}Content-Length: 1\r\n")).await;
        client.write("7").await.unwrap();
        // The reply does not wait for the event.
        assert_eq!(outcome(invoked).await.unwrap().0.body, "7");
        setup.polls_wait(1).await;
    }
    // What cannot be taken is told at once, and the event waits for who asks for it.
    let invoked = setup.invoke("r", "1");
    client.read().await.unwrap();
    let told = client.post("invocation/r/response", then, vec![b' '; REPLY_LIMIT + 1]).await;
    assert_eq!(told.refusal(), (413, "RequestEntityTooLarge".to_owned()));
    assert!(outcome(invoked).await.is_err());
    let invoked = setup.invoke("r2", "2");
    assert_eq!(client.next().await.id(), "r2");
    // A client that goes away while it waits loses nothing.
    client.head("POST", "invocation/r2/response", &format!("{then}Content-Length: 1\r\n")).await;
    client.write("8").await.unwrap();
    assert_eq!(outcome(invoked).await.unwrap().0.body, "8");
    setup.polls_wait(1).await;
    drop(client);
    let invoked = setup.invoke("r3", "3");
    let mut another = setup.client().await;
    assert_eq!(another.next().await.id(), "r3");
    another.respond("r3", "9").await;
    assert_eq!(outcome(invoked).await.unwrap().0.body, "9");
}

/// A clock that takes its time, as a thread does that has lost its processor.
#[derive(Debug)]
struct Dawdling(SystemClock);

impl Clock for Dawdling {
    fn now(&self) -> Time {
        std::thread::sleep(Duration::from_millis(50));
        self.0.now()
    }

    fn unix_millis(&self) -> u64 {
        self.0.unix_millis()
    }
}

/// Code may print as soon as it has the event, however slow we are.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_first_line_of_a_call_is_its_own() {
    let lines = Arc::new(Lines::default());
    let log: Arc<dyn LogSink> = Arc::<Lines>::clone(&lines);
    let (running, (out, mut writer), (err, _err)) =
        (Running::default(), io::pipe().unwrap(), io::pipe().unwrap());
    let name = "ns/tested".parse().unwrap();
    let output = FunctionOutput::new(out.into(), err.into(), &name, &log, &running).unwrap();
    let clock = Arc::new(Dawdling(SystemClock::new()));
    let config = RuntimeApiConfig { clock, running, output: Some(Arc::new(output)), ..config() };
    let setup = Setup::with_config(Over::Unix, config).await;
    let mut client = setup.client().await;
    let printed = Arc::clone(&lines);
    let code = tokio::spawn(async move {
        let event = client.next().await;
        writer.write_all(b"at once\n").unwrap();
        eventually("the line is read", || !printed.all().is_empty()).await;
        client.respond(&event.id(), "1").await
    });
    setup.polls_wait(1).await;
    // Not in a task: whom a task wakes may have to wait for its thread, and we want to be overtaken.
    within(setup.api.invoke(invocation("r", "1"))).await.unwrap();
    outcome(code).await;
    assert_eq!(lines.all(), [(Some("r".to_owned()), LogStream::Stdout, "at once".to_owned())]);
}
