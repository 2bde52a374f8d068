//! WebSockets of ASGI applications, through balancer and worker: by PyPI's `websockets` as the client, and by
//! hand where a client does what none should.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Cluster, HttpClient, client, kill, post, raw, raw_inside, texts, wait_for};
use crate::drain::stats;
use crate::page::{Driver, WebServer};
use crate::web::install;

/// What it does is in the path.
const APP: &str = r#"
import asyncio, json, os

async def app(scope, receive, send):
    path = scope["path"].rpartition("/")[2]
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        return await send({"type": "http.response.body", "body": b"plain"})
    assert (await receive()) == {"type": "websocket.connect"}
    if path == "reject":
        return await send({"type": "websocket.close"})
    if path == "deny":
        start = {"status": 401, "headers": [(b"x-why", b"no ticket")]}
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": b"who ", "more_body": True})
        return await send({"type": "websocket.http.response.body", "body": b"are you?"})
    if path == "early":
        raise ValueError("before it accepts")
    if path == "silent":
        return
    if path == "never":
        await asyncio.sleep(3600)
    if path == "late":
        await send({"type": "websocket.send", "text": "too early"})
    offered = scope["subprotocols"]
    accept = {"headers": [(b"x-own", b"yes")], "subprotocol": offered[-1] if offered else None}
    await send({"type": "websocket.accept", **accept})
    if path == "scope":
        kinds = {str: str, bytes: lambda value: value.decode("latin-1")}
        plain = lambda value: kinds[type(value)](value) if type(value) in kinds else value
        told = {key: plain(scope[key]) for key in scope if key not in ("headers", "openlambda.context")}
        told["headers"] = {name.decode(): value.decode() for name, value in scope["headers"]}
        await send({"type": "websocket.send", "text": json.dumps(told)})
    if path == "both":
        async def push():
            for n in range(300):
                await send({"type": "websocket.send", "bytes": b"%03d" % n + bytes(10_000)})
        pushes = asyncio.create_task(push())
    if path == "pushes":
        while True:
            await send({"type": "websocket.send", "text": "tick"})
            await asyncio.sleep(0.01)
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("left", path, message["code"], message["reason"], flush=True)
            return
        text = message["text"]
        if text == "raise":
            raise ValueError("as asked")
        if text == "exit":
            os._exit(3)
        if text == "close":
            return await send({"type": "websocket.close", "code": 4001, "reason": "bye"})
        if text == "return":
            return
        if text == "ignore":
            while (await receive())["type"] != "websocket.disconnect":
                pass
            await asyncio.sleep(3600)
        if path == "both":
            text, message["bytes"] = message["bytes"][:3].decode(), None
        await send({"type": "websocket.send", "text": text, "bytes": message["bytes"]})
"#;

const MANIFEST: &str = "style = \"asgi\"\nconcurrency = 250\nmax_instances = 1\n";

/// A cluster of one worker with this application as `app`.
fn start(sandbox: &str, manifest: &str) -> Cluster {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", sandbox]);
    cluster.deploy("app", &[("app.py", APP), ("ol.toml", manifest)]);
    cluster
}

/// Where its worker listens.
fn worker(cluster: &Cluster) -> SocketAddr {
    let url = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

/// Runs the body of `async def main(url)` with PyPI's client. Returns what it does, by way of JSON.
fn run(cluster: &Cluster, body: &str) -> Value {
    static PACKAGES: OnceLock<TempDir> = OnceLock::new();
    let packages = PACKAGES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        install(folder.path(), &["websockets==15.0.1"]);
        folder
    });
    let body: String = body.lines().map(|line| format!("    {line}\n")).collect();
    let script = format!(
        "import asyncio, json, sys
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
async def closed(ws):
    try:
        while True: await ws.recv()
    except ConnectionClosed as error:
        return [error.rcvd.code, error.rcvd.reason] if error.rcvd else None
async def main(url):
{body}
print(json.dumps(asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60))))
"
    );
    let url = format!("ws://{}/run/app", cluster.address());
    let output = Command::new("/usr/bin/python3")
        .args(["-c", &script, &url])
        .env("PYTHONPATH", packages.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{:?}", texts(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Waits until the function's log has this.
fn logged(cluster: &Cluster, text: &str) {
    let found = wait_for(|| cluster.place.ol(&["logs", "app"]).contains(text).then_some(()));
    assert!(found.is_some(), "no {text:?} in: {}", cluster.place.ol(&["logs", "app"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_and_closes_pass_both_ways() {
    for sandbox in ["sock", "process"] {
        let cluster = start(sandbox, MANIFEST);
        let said = run(
            &cluster,
            r#"async with connect(url + "/a%20b/scope?x=1&y", subprotocols=["one", "two"], additional_headers={"X-Asked": "1"}) as ws:
    scope = json.loads(await ws.recv())
    head = [ws.subprotocol, ws.response.headers["x-own"], ws.response.headers["x-openlambda-start"]]
    echoed = []
    for message in "text ✓", b"\0\xff", "", b"", "x" * 125, "x" * 126, b"y" * 70_000, ["in ", "three ", "parts"], [b"1", b"2"]:
        await ws.send(message)
        whole = "".join(message) if message and message[0] == "in " else b"".join(message) if message and message[0] == b"1" else message
        echoed.append(await ws.recv() == whole)
    await asyncio.wait_for(await ws.ping(b"are you there?"), 20)
    await ws.close(3999, "enough")
    own = [ws.close_code, ws.close_reason]
async with connect(url + "/large", max_size=None) as ws:
    large = b"z" * (6 << 20)
    await ws.send(large)
    echoed.append(await ws.recv() == large)
async with connect(url + "/close") as ws:
    await ws.send("close")
    theirs = await closed(ws)
async with connect(url + "/return") as ws:
    await ws.send("return")
    returned = await closed(ws)
return [scope, head, echoed, own, theirs, returned]"#,
        );
        let scope = &said[0];
        for (key, value) in [
            ("type", "websocket"),
            ("scheme", "ws"),
            ("http_version", "1.1"),
            ("path", "/run/app/a b/scope"),
            ("raw_path", "/run/app/a%20b/scope"),
            ("query_string", "x=1&y"),
            ("root_path", "/run/app"),
        ] {
            assert_eq!(scope[key], value, "{scope}");
        }
        assert_eq!(scope["subprotocols"], json!(["one", "two"]));
        assert_eq!(scope["client"][0], "127.0.0.1");
        assert_eq!(scope["server"][0], "127.0.0.1");
        assert_eq!(scope["server"][1], cluster.address().port());
        assert_eq!(scope["state"], json!({}));
        assert_eq!(scope["headers"]["x-asked"], "1");
        assert_eq!(scope["headers"]["host"], cluster.address().to_string());
        assert_eq!(scope["headers"]["sec-websocket-version"], "13");
        assert_eq!(said[1], json!(["two", "yes", "cold"]));
        assert_eq!(said[2], json!(vec![true; 10]), "{sandbox}");
        assert_eq!(said[3], json!([3999, "enough"]));
        assert_eq!(said[4], json!([4001, "bye"]));
        assert_eq!(said[5], json!([1000, ""]));
        logged(&cluster, "left scope 3999 enough");
        // Plain requests are served beside.
        let plain = post(&client(), &format!("{}/run/app", cluster.url), "").await;
        assert_eq!((plain.status, &*plain.body), (200, "plain"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_may_send_at_once_and_a_slow_reader_slows_the_other_down() {
    let cluster = start("sock", MANIFEST);
    let said = run(
        &cluster,
        r#"async with connect(url + "/both") as ws:
    async def send():
        for n in range(300):
            await ws.send(b"%03d" % n + bytes(10_000))
    sends = asyncio.create_task(send())
    pushed, echoed = [], []
    while len(pushed) + len(echoed) < 600:
        message = await ws.recv()
        (echoed if isinstance(message, str) else pushed).append(int(message[:3]))
    await sends
return [pushed == list(range(300)), echoed == list(range(300))]"#,
    );
    assert_eq!(said, json!([true, true]));
    // What a client does not read is waited for, where it is made.
    let worker = cluster.worker_pid("worker-1").unwrap();
    let balancer = cluster.status()["balancer_pid"].as_i64().unwrap() as i32;
    let memory = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    };
    let before = memory(worker) + memory(balancer);
    let mut socket = Socket::open(cluster.address(), "/run/app/echo");
    let sends = {
        let mut other = socket.0.try_clone().unwrap();
        std::thread::spawn(move || {
            let message = frame(0x82, &vec![7; 1 << 20]);
            // 200 MiB, of which nobody reads the echo until all is sent or the way is full.
            (0..200).take_while(|_| other.write_all(&message).is_ok()).count()
        })
    };
    std::thread::sleep(Duration::from_secs(3));
    let grown = (memory(worker) + memory(balancer)).saturating_sub(before);
    assert!(grown < 50, "{grown} MiB wait for a client that does not read");
    let mut echoed = 0;
    while echoed < 200 {
        let (opcode, data) = socket.read().unwrap();
        assert!(opcode == 0x82 && data.len() == 1 << 20);
        echoed += 1;
    }
    assert_eq!(sends.join().unwrap(), 200);
}

/// A client by hand.
struct Socket(TcpStream);

/// A request for a WebSocket, with other lines in place of those of the same name, or beside them.
fn handshake(target: &str, lines: &[(&str, &str)]) -> String {
    let usual = [
        ("Host", "example.org"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let kept = usual.iter().filter(|(name, _)| lines.iter().all(|(other, _)| other != name));
    let head: String =
        kept.chain(lines).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET {target} HTTP/1.1\r\n{head}\r\n")
}

/// A frame as a client sends it, by its first byte.
fn frame(first: u8, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match data.len() {
        0..126 => frame.push(0x80 | data.len() as u8),
        126..65536 => {
            frame.push(0x80 | 126);
            frame.extend((data.len() as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((data.len() as u64).to_be_bytes());
        }
    }
    let mask = [1, 2, 3, 4];
    frame.extend(mask);
    frame.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

impl Socket {
    fn open(address: SocketAddr, target: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(handshake(target, &[]).as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&head));
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        // As RFC 6455 has it for this key.
        assert!(head.contains("sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        Socket(stream)
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The first byte and the data of the next frame, if there is one.
    fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).ok()?;
        assert!(head[1] < 0x80, "a server does not mask");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                u64::from(u16::from_be_bytes(length))
            }
            127 => {
                let mut length = [0; 8];
                self.0.read_exact(&mut length).unwrap();
                u64::from_be_bytes(length)
            }
            length => u64::from(length),
        };
        let mut data = vec![0; length as usize];
        self.0.read_exact(&mut data).unwrap();
        Some((head[0], data))
    }

    /// The code of the close frame that comes next, and last.
    fn closed(&mut self) -> Option<u16> {
        let (first, data) = self.read()?;
        assert_eq!(first, 0x88, "{data:?}");
        assert!(self.read().is_none(), "a close is the last frame");
        Some(u16::from_be_bytes(data[..2].try_into().unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_is_closed_with_its_code_and_harms_no_other() {
    for sandbox in ["sock", "process"] {
        let cluster = start(sandbox, MANIFEST);
        let address = cluster.address();
        let mut bystander = Socket::open(address, "/run/app/bystander");
        let mut unmasked = vec![0x81, 2];
        unmasked.extend(b"hi");
        let parts = |parts: &[(u8, &[u8])]| {
            parts.iter().flat_map(|(first, data)| frame(*first, data)).collect()
        };
        let mut large = vec![0x82, 0xff];
        large.extend(((6_u64 << 20) + 1).to_be_bytes());
        let mut endless = vec![0x82, 0xff];
        endless.extend(u64::MAX.to_be_bytes());
        let mut together = frame(0x02, &vec![0; 4 << 20]);
        together.extend(&frame(0x80, &vec![0; 3 << 20])[..14]);
        let cases: Vec<(&str, Vec<u8>, u16)> = vec![
            ("not masked", unmasked, 1002),
            ("a reserved bit", frame(0xc1, b"x"), 1002),
            ("no such opcode", frame(0x83, b"x"), 1002),
            ("no such control frame", frame(0x8b, b"x"), 1002),
            ("a long ping", frame(0x89, &[0; 126]), 1002),
            ("a ping in parts", frame(0x09, b"x"), 1002),
            ("a continuation of nothing", frame(0x80, b"x"), 1002),
            ("a text within a text", parts(&[(0x01, b"a"), (0x81, b"b")]), 1002),
            ("a close of one byte", frame(0x88, &[3]), 1002),
            ("a close that may not be sent", frame(0x88, &1005_u16.to_be_bytes()), 1002),
            ("a close with no such code", frame(0x88, &2999_u16.to_be_bytes()), 1002),
            ("a reason that is not UTF-8", frame(0x88, &[3, 0xe8, 0xff]), 1007),
            ("a text that is not UTF-8", frame(0x81, &[0xff]), 1007),
            ("half a character", parts(&[(0x01, &[0xe2, 0x82]), (0x80, b"")]), 1007),
            ("a large message", large, 1009),
            ("an endless message", endless, 1009),
            ("large parts", together, 1009),
        ];
        for (what, bytes, code) in cases {
            let mut socket = Socket::open(address, "/run/app/bad");
            socket.send(&bytes);
            assert_eq!(socket.closed(), Some(code), "{sandbox}: {what}");
        }
        // What only looks odd is taken.
        let mut socket = Socket::open(address, "/run/app/odd");
        socket.send(&frame(0x01, &[0xe2, 0x82]));
        socket.send(&frame(0x89, b"in between"));
        socket.send(&frame(0x8a, b"not asked for"));
        socket.send(&frame(0x80, &[0xac]));
        assert_eq!(socket.read(), Some((0x8a, b"in between".to_vec())));
        assert_eq!(socket.read(), Some((0x81, "€".as_bytes().to_vec())));
        for byte in frame(0x81, b"byte by byte") {
            socket.send(&[byte]);
        }
        assert_eq!(socket.read(), Some((0x81, b"byte by byte".to_vec())));
        socket.send(&frame(0x88, b""));
        assert_eq!(socket.read(), Some((0x88, Vec::new())));
        logged(&cluster, "left odd 1005");
        bystander.send(&frame(0x81, b"still here"));
        assert_eq!(bystander.read(), Some((0x81, b"still here".to_vec())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_an_ordinary_reply() {
    let cluster = start("process", "style = \"asgi\"\nconcurrency = 8\ntimeout_seconds = 2\n");
    let address = cluster.address();
    let event = "def f(event):\n    return \"plain\"\n";
    let wsgi = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'plain']\n";
    let node = "exports.handler = async () => 'plain';\n";
    cluster.deploy("event", &[("f.py", event)]);
    cluster.deploy("http", &[("f.py", event), ("ol.toml", "event = \"http\"")]);
    cluster.deploy("wsgi", &[("app.py", wsgi), ("ol.toml", "style = \"wsgi\"")]);
    cluster.deploy("node", &[("index.js", node)]);
    cluster
        .deploy("post", &[("app.py", APP), ("ol.toml", "style = \"asgi\"\nmethods = [\"POST\"]")]);
    let page = "style = \"asgi\"\n[cors]\nallow_origins = [\"https://a.example\"]\n";
    cluster.deploy("page", &[("app.py", APP), ("ol.toml", page)]);
    let close = ("Connection", "Upgrade, close");
    for (target, lines, status, has) in [
        ("app/reject", &[][..], 403, ""),
        ("app/deny", &[], 401, "x-why: no ticket"),
        ("app/deny", &[], 401, "are you?"),
        ("app/early", &[], 500, "before it accepts"),
        ("app/silent", &[], 500, "without websocket.accept or websocket.close"),
        ("app/late", &[], 500, "out of order"),
        ("app/never", &[], 504, "\"timeout\""),
        ("nothing", &[], 404, "not_found"),
        ("event", &[], 501, "takes no WebSockets"),
        ("http", &[], 501, "no_websocket"),
        ("wsgi", &[], 501, "x-openlambda-started: no"),
        ("node", &[], 501, "x-openlambda-error: client"),
        ("post", &[], 405, "allow: POST"),
        ("app", &[("Sec-WebSocket-Version", "8")], 400, "sec-websocket-version: 13"),
        ("app", &[("Sec-WebSocket-Key", "short")], 400, "16 random bytes"),
        ("app", &[("Content-Length", "2")], 400, "no body"),
        ("app", &[("Origin", "https://a.example")], 403, "allow_origins"),
        ("app", &[("Origin", "null")], 403, "forbidden"),
        ("page", &[("Origin", "https://b.example")], 403, "allow_origins"),
        ("page", &[("Origin", "https://a.example")], 101, ""),
        ("app", &[("Origin", "http://example.org")], 101, ""),
        // What asks for no WebSocket, or for another protocol, is a plain request.
        ("app", &[("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")], 200, "plain"),
        ("app", &[("Upgrade", "TLS/1.0")], 200, "plain"),
        ("app", &[("Connection", "close")], 200, "plain"),
    ] {
        let mut lines = lines.to_vec();
        if lines.iter().all(|(name, _)| *name != "Connection") {
            lines.push(close);
        }
        let request = handshake(&format!("/run/{target}"), &lines);
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let body = if request.contains("Content-Length: 2") { "ab" } else { "" };
        stream.write_all(body.as_bytes()).unwrap();
        if status == 101 {
            stream.write_all(&frame(0x88, &1000_u16.to_be_bytes())).unwrap();
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{answer}");
        assert!(answer.contains(has), "{request}{answer}");
    }
    // Any other method is a plain request, too.
    let other = handshake("/run/app", &[close]).replacen("GET", "PUT", 1);
    assert!(raw(address, other.as_bytes()).contains("plain"));
    // At a worker's own port there are none, nor at paths that are no calls.
    let answer = raw_inside(worker(&cluster), handshake("/run/app", &[close]).as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("plain"), "{answer}");
    for path in ["/livez", "/readyz"] {
        let answer = raw(address, handshake(path, &[close, ("Host", "localhost")]).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

/// One slot on one worker: who has it is told by who does not.
const ONE_SLOT: &str = "style = \"asgi\"\nmax_instances = 1\nqueue = 1\ntimeout_seconds = 20\n";

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_held_as_long_as_the_socket_is_open_and_given_back_whoever_leaves() {
    for sandbox in ["sock", "process"] {
        let cluster = start(sandbox, ONE_SLOT);
        let (address, url) = (cluster.address(), format!("{}/run/app", cluster.url));
        let client: HttpClient = client();
        let free = async |what: &str| {
            let plain = post(&client, &url, "").await;
            assert_eq!((plain.status, &*plain.body), (200, "plain"), "{sandbox}: {what}");
        };
        let worker = worker(&cluster);
        let waiting = |count: u64| {
            let stats = || stats(worker)["counts"]["waiting"].as_u64().unwrap();
            assert!(wait_for(|| (stats() == count).then_some(())).is_some(), "{}", stats());
        };
        let mut socket = Socket::open(address, "/run/app/waits");
        let waits = {
            let (client, url) = (client.clone(), url.clone());
            tokio::spawn(async move { post(&client, &url, "").await })
        };
        waiting(1);
        socket.send(&frame(0x81, b"still mine"));
        assert_eq!(socket.read().unwrap().1, b"still mine");
        assert!(!waits.is_finished(), "{sandbox}");
        // Without a word, as a client whose process is killed.
        drop(socket);
        assert_eq!(waits.await.unwrap().body, "plain");
        logged(&cluster, "left waits 1006");

        // One that waits for its handshake to be answered, and leaves.
        let held = Socket::open(address, "/run/app/held");
        let mut queued = TcpStream::connect(address).unwrap();
        queued.write_all(handshake("/run/app/queued", &[]).as_bytes()).unwrap();
        waiting(1);
        drop(queued);
        waiting(0);
        drop(held);
        free("whoever waited has left").await;
        assert!(!cluster.place.ol(&["logs", "app"]).contains("queued"));

        // An application that only sends learns it by sending.
        let mut socket = Socket::open(address, "/run/app/pushes");
        assert_eq!(socket.read().unwrap().1, b"tick");
        drop(socket);
        free("its client has left").await;

        let mut socket = Socket::open(address, "/run/app/raises");
        socket.send(&frame(0x81, b"raise"));
        assert_eq!(socket.closed(), Some(1011));
        free("it has raised").await;
        logged(&cluster, "function_error: ValueError: as asked");

        // The instance ends: so does the connection, and the next call gets another instance.
        let mut socket = Socket::open(address, "/run/app/exits");
        socket.send(&frame(0x81, b"exit"));
        assert_eq!(socket.read(), None);
        free("its instance has ended").await;
        logged(&cluster, "sandbox_crashed");
        let log = cluster.place.ol(&["logs", "app"]);
        assert!(!log.contains("WebSocketDisconnect") && !log.contains("ClientLeft"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_is_closed_when_its_time_is_over_and_others_live_on() {
    for sandbox in ["sock", "process"] {
        let cluster = start(sandbox, &format!("{MANIFEST}timeout_seconds = 3\n"));
        let address = cluster.address();
        let mut socket = Socket::open(address, "/run/app/first");
        let mut ignores = Socket::open(address, "/run/app/ignores");
        ignores.send(&frame(0x81, b"ignore"));
        std::thread::sleep(Duration::from_millis(1500));
        let mut later = Socket::open(address, "/run/app/later");
        let (first, data) = socket.read().unwrap();
        assert_eq!((first, &data[..2]), (0x88, &1001_u16.to_be_bytes()[..]));
        let reason = std::str::from_utf8(&data[2..]).unwrap();
        assert!(reason.contains("time limit of 3 s"), "{reason}");
        assert_eq!(ignores.closed(), Some(1001));
        logged(&cluster, "closed after its time limit of 3 s; raise timeout_seconds");
        logged(&cluster, "left first 1001");
        // The one that does not return then is made to, and its instance is not ended for that.
        logged(&cluster, "TimeoutError: the application went on");
        later.send(&frame(0x81, b"alive"));
        assert_eq!(later.read().unwrap().1, b"alive", "{sandbox}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_shuts_down_says_so_and_a_function_that_is_removed_finishes() {
    for sandbox in ["sock", "process"] {
        let cluster = start(sandbox, MANIFEST);
        let address = cluster.address();
        let mut socket = Socket::open(address, "/run/app/removed");
        cluster.place.ol(&["rm", "app"]);
        assert!(
            raw(address, handshake("/run/app", &[]).replace("Upgrade\r\n", "close\r\n").as_bytes())
                .starts_with("HTTP/1.1 404")
        );
        socket.send(&frame(0x81, b"goes on"));
        assert_eq!(socket.read().unwrap().1, b"goes on");
        socket.send(&frame(0x88, &1000_u16.to_be_bytes()));
        assert_eq!(socket.closed(), Some(1000));

        cluster.deploy("app", &[("app.py", APP), ("ol.toml", MANIFEST)]);
        let back = |pid: i32| {
            let back = wait_for(|| {
                let ready = cluster.status()["workers"][0]["state"] == "ready";
                (ready && cluster.worker_pid("worker-1") != Some(pid)).then_some(())
            });
            assert!(back.is_some(), "{}", cluster.status());
        };
        // A worker that is told to end tells them, and one that is killed cannot.
        let pid = cluster.worker_pid("worker-1").unwrap();
        let mut socket = Socket::open(address, "/run/app/drained");
        kill(pid, Signal::TERM);
        assert_eq!(socket.closed(), Some(1001));
        back(pid);
        let pid = cluster.worker_pid("worker-1").unwrap();
        let mut socket = Socket::open(address, "/run/app/killed");
        kill(pid, Signal::KILL);
        assert_eq!(socket.read(), None);
        back(pid);
        let mut socket = Socket::open(address, "/run/app/stopped");
        let balancer = cluster.status()["balancer_pid"].as_i64().unwrap() as i32;
        kill(balancer, Signal::TERM);
        assert_eq!(socket.closed(), Some(1001), "{sandbox}");
        let up = wait_for(|| {
            (cluster.status()["balancer_pid"].as_i64()? as i32 != balancer).then_some(())
        });
        assert!(up.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_open_sockets_leave_nothing_behind() {
    for sandbox in ["sock", "process"] {
        let cluster = start(sandbox, MANIFEST);
        let address = cluster.address();
        let pids = [
            cluster.worker_pid("worker-1").unwrap(),
            cluster.status()["balancer_pid"].as_i64().unwrap() as i32,
        ];
        let open = || pids.map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
        // All slots have had a call, and so have their connections.
        let warm = |count: usize| -> Vec<Socket> {
            (0..count).map(|_| Socket::open(address, "/run/app/many")).collect()
        };
        drop(warm(200));
        let settled = |limit: [usize; 2]| {
            let settled = wait_for(|| {
                let now = open();
                (now[0] <= limit[0] && now[1] <= limit[1]).then_some(())
            });
            assert!(settled.is_some(), "{sandbox}: {:?}, {limit:?}", open());
        };
        // The worker's connections to the instance's slots stay, whatever they do.
        let base = {
            let mut last = open();
            wait_for(|| {
                std::thread::sleep(Duration::from_millis(500));
                let now = open();
                let same = now == last;
                last = now;
                same.then_some(())
            });
            last
        };
        let mut sockets = warm(200);
        assert!(open()[1] >= base[1] + 200, "they are open");
        for (n, socket) in sockets.iter_mut().enumerate() {
            socket.send(&frame(0x81, format!("number {n}").as_bytes()));
        }
        for (n, socket) in sockets.iter_mut().enumerate() {
            assert_eq!(socket.read().unwrap().1, format!("number {n}").as_bytes());
        }
        // Half of them close, half vanish.
        for (n, mut socket) in sockets.into_iter().enumerate() {
            if n % 2 == 0 {
                socket.send(&frame(0x88, &1000_u16.to_be_bytes()));
                assert_eq!(socket.closed(), Some(1000));
            }
        }
        settled(base);
        // And the slots are free.
        drop(warm(200));
        settled(base);
    }
}

/// As its documentation has it.
const FASTAPI: &str = r#"
from fastapi import FastAPI, WebSocket, WebSocketException, status

app = FastAPI()

@app.websocket("/echo/{name}")
async def echo(websocket: WebSocket, name: str, greeting: str = "Hello"):
    if name == "nobody":
        raise WebSocketException(code=status.WS_1008_POLICY_VIOLATION)
    await websocket.accept()
    while True:
        text = await websocket.receive_text()
        await websocket.send_json({"greeting": f"{greeting}, {name}", "text": text})
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_fastapi_endpoint_runs_unchanged() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let files = [("main.py", FASTAPI), ("ol.toml", "style = \"asgi\"\nconcurrency = 8")];
    let folder = cluster.place.function("app", &files);
    install(&folder, &["fastapi==0.121.0"]);
    cluster.place.ol(&["deploy", folder.to_str().unwrap()]);
    let said = run(
        &cluster,
        r#"async with connect(url + "/echo/Ada?greeting=Hi") as ws:
    await ws.send("one")
    told = json.loads(await ws.recv())
refused = []
for path in "/echo/nobody", "/none":
    try:
        await connect(url + path)
    except InvalidStatus as error:
        refused.append(error.response.status_code)
return [told, refused]"#,
    );
    assert_eq!(said, json!([{"greeting": "Hi, Ada", "text": "one"}, [403, 403]]));
    // A client that closes is no failure, though the endpoint does not look out for it.
    assert!(!cluster.place.ol(&["logs", "app"]).contains("function_error"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_s_page_has_one_if_its_origin_is_allowed() {
    let cluster = start("sock", MANIFEST);
    let folder =
        cluster.place.function("page", &[("index.html", "<!doctype html><title>page</title>")]);
    let server = WebServer::start(&folder);
    let manifest = format!("{MANIFEST}[cors]\nallow_origins = [\"{}\"]\n", server.url);
    cluster.deploy("allows", &[("app.py", APP), ("ol.toml", &manifest)]);
    let driver = Driver::start();
    let browser = driver.open(&format!("{}/index.html", server.url)).await;
    let script = format!(
        "window.said = [];
        for (const name of ['app', 'allows']) {{
            const socket = new WebSocket('ws://{}/run/' + name + '/echo', ['a', 'b']);
            socket.onopen = () => socket.send(socket.protocol + ' \u{2713}');
            socket.onmessage = (event) => {{
                window.said.push(name + ': ' + event.data);
                socket.close(3001, 'enough');
            }};
            socket.onclose = (event) => window.said.push(`${{name}}: ${{event.code}} ${{event.wasClean}}`);
        }}",
        cluster.address()
    );
    browser.script(&script).await;
    let expected = json!(["allows: 3001 true", "allows: b \u{2713}", "app: 1006 false"]);
    browser.wait("return [...window.said].sort()", &expected).await;
    let log = wait_for(|| {
        cluster.place.ol(&["logs", "allows"]).contains("left echo 3001 enough").then_some(())
    });
    assert!(log.is_some());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_says_everything_louder() {
    let cluster = Cluster::start(&["--workers", "1"]);
    cluster.deploy_example("asgi");
    let mut socket = Socket::open(cluster.address(), "/run/asgi");
    socket.send(&frame(0x81, b"hello"));
    assert_eq!(socket.read().unwrap(), (0x81, b"HELLO".to_vec()));
}
