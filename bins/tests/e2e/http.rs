//! Headers, bodies and timings on their way through balancer and worker.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::json;

use crate::common::{Cluster, client, inside, post, raw, raw_inside, send, wait_for};

/// Returns its event, or what the event's body says.
const MIRROR: &str = r#"
import json
def f(event):
    return json.loads(event["body"]) if event.get("body") else event
"#;

fn mirror(cluster: &Cluster) -> String {
    cluster.deploy("mirror", &[("f.py", MIRROR), ("ol.toml", "event = \"http\"")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_arrives_as_it_was_sent_but_for_hop_by_hop_headers() {
    let cluster = Cluster::start(&["--workers", "1"]);
    mirror(&cluster);
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = raw(
        cluster.address(),
        format!(
            "PUT /run/mirror/a/b%20c?x=1&y=%20 HTTP/1.1\r\nHost: example.org\r\n\
             Connection: close, X-Private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
             TE: trailers\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\
             Proxy-Authorization: secret\r\nX-OpenLambda-Digest: sha256:00\r\n\
             X-OpenLambda-Request-Id: my-own.id\r\ntraceparent: {trace}\r\ntracestate: a=1\r\n\
             X-Kept: one\r\nX-Kept: two\r\nCookie: k=v\r\nContent-Length: 0\r\n\r\n"
        )
        .as_bytes(),
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let event: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(event["rawPath"], "/a/b%20c");
    assert_eq!(event["rawQueryString"], "x=1&y=%20");
    assert_eq!(event["requestContext"]["http"]["method"], "PUT");
    assert_eq!(event["requestContext"]["requestId"], "my-own.id");
    assert_eq!(event["cookies"], json!(["k=v"]));
    let headers = &event["headers"];
    assert_eq!(headers["host"], "example.org");
    assert_eq!(headers["traceparent"], trace);
    assert_eq!(headers["tracestate"], "a=1");
    assert_eq!(headers["x-kept"], "one,two");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    let names: Vec<&String> = headers.as_object().unwrap().keys().collect();
    for gone in [
        "x-private",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "proxy-authorization",
        "connection",
        "te",
        "transfer-encoding",
        "x-openlambda-digest",
    ] {
        assert!(!names.iter().any(|name| *name == gone), "{gone} is in {names:?}");
    }
    let head = head.to_ascii_lowercase();
    assert!(head.contains("x-openlambda-request-id: my-own.id"), "{head}");
}

/// What WSGI calls the client and the scheme.
const WSGI: &str = "
def app(environ, start):
    start('200 OK', [])
    return [(environ['REMOTE_ADDR'] + ' ' + environ['wsgi.url_scheme']).encode()]
";

/// Where a request comes from is what the connection says, or a proxy that the operator has named: not what
/// its client writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_cannot_say_where_it_comes_from_and_a_trusted_proxy_can() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.jsonl");
    let log = log.to_str().unwrap();
    let lies = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                Forwarded: for=192.0.2.7\r\nX-Real-IP: 192.0.2.7\r\nTrue-Client-IP: 192.0.2.7\r\n";
    for (trusted, client, scheme) in [
        (&[][..], "127.0.0.1", "http"),
        (&["--trusted-proxy", "127.0.0.0/8"], "192.0.2.7", "https"),
    ] {
        let args = ["--workers", "1", "--sandbox", "process", "--access-log", log];
        let cluster = Cluster::start(&[&args[..], trusted].concat());
        mirror(&cluster);
        cluster.deploy(
            "wsgi",
            &[("app.py", WSGI), ("ol.toml", "style = \"wsgi\"\nhandler = \"app.app\"")],
        );
        let ask = |path: &str| {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lies}\r\n");
            let answer = raw(cluster.address(), request.as_bytes());
            answer.split_once("\r\n\r\n").unwrap().1.to_owned()
        };
        let event: serde_json::Value = serde_json::from_str(&ask("/run/mirror")).unwrap();
        assert_eq!(event["requestContext"]["http"]["sourceIp"], client);
        let headers = &event["headers"];
        assert_eq!(headers["x-real-ip"], client);
        assert_eq!(headers["x-forwarded-proto"], scheme);
        assert_eq!(headers["forwarded"], format!("for={client};proto={scheme}"));
        assert_eq!(headers.get("true-client-ip"), None);
        assert_eq!(ask("/run/wsgi"), format!("{client} {scheme}"));
        // Not even by having the balancer take the truth for a matter between itself and the client.
        let request = "GET /run/mirror HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.7\r\n\
                       Connection: close, X-Forwarded-For\r\n\r\n";
        let answer = raw(cluster.address(), request.as_bytes());
        assert!(answer.contains("\"x-forwarded-for\": \"127.0.0.1\""), "{answer}");
        let logged = wait_for(|| {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let line = text.lines().rfind(|line| line.contains("/run/wsgi"))?;
            Some(serde_json::from_str::<serde_json::Value>(line).unwrap()["client"].clone())
        });
        assert_eq!(logged.unwrap(), client);
        std::fs::remove_file(log).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_arrives_as_the_function_made_it() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let url = mirror(&cluster);
    let reply = json!({
        "statusCode": 418,
        "headers": {"X-One": "1", "Connection": "close", "Content-Type": "text/x-tea"},
        "cookies": ["a=1", "b=2"],
        "body": "short and stout",
    });
    let answer = post(&client(), &url, &reply.to_string()).await;
    assert_eq!((answer.status, &*answer.body), (418, "short and stout"));
    assert_eq!((answer.header("x-one"), answer.header("content-type")), ("1", "text/x-tea"));
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert!(!answer.headers.contains_key("connection"));
    assert!(!answer.headers.contains_key("x-openlambda-error"), "418 is the function's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_says_where_it_came_from_and_where_its_time_went() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let (client, url) = (client(), cluster.deploy_example("echo"));
    for start in ["cold", "warm"] {
        let answer = post(&client, &url, "1").await;
        assert_eq!(answer.header("x-openlambda-start"), start);
        assert_eq!(answer.header("x-openlambda-worker"), "worker-1");
        assert_eq!(answer.header("x-openlambda-version"), "1");
        let timing =
            openlambda_core::wire::parse_server_timing(answer.headers.get_all("server-timing"));
        assert!(timing.run > Duration::ZERO);
        let cold = start == "cold";
        assert_eq!((timing.create > Duration::ZERO, timing.init > Duration::ZERO), (cold, cold));
        assert_eq!(timing.pull > Duration::ZERO, cold);
    }
    let head = http::Request::head(&url).body("").unwrap();
    let answer = send(&client, head).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (200, ""));
}

/// Streams a first part, waits for a file, and streams the second.
const STREAMER: &str = r#"#!/usr/bin/python3
import http.client, os, time
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
base = "/2018-06-01/runtime/invocation/"
while True:
    api.request("GET", base + "next")
    event = api.getresponse()
    name = event.read().decode().strip('"')
    def parts():
        yield b'{"statusCode": 201, "headers": {"X-Streamed": "yes"}}' + bytes(8) + b"first "
        while not os.path.exists(name):
            time.sleep(0.01)
        yield b"second"
    api.request("POST", base + event.headers["Lambda-Runtime-Aws-Request-Id"] + "/response",
        body=parts(), encode_chunked=True, headers={
            "Transfer-Encoding": "chunked",
            "Lambda-Runtime-Function-Response-Mode": "streaming",
            "Content-Type": "application/vnd.awslambda.http-integration-response"})
    api.getresponse().read()
"#;

#[test]
fn a_streamed_reply_is_passed_on_as_it_comes() {
    // Without isolation, so that the function sees the file that opens its gate.
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    cluster.deploy("streamer", &[("bootstrap", STREAMER)]);
    let gate = tempfile::tempdir().unwrap();
    let gate = gate.path().join("open");
    let mut stream = TcpStream::connect(cluster.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = format!("{gate:?}");
    let request = format!(
        "POST /run/streamer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTE: trailers\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let mut buffer = [0; 4096];
    while !answer.contains("first ") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended early: {answer}");
        answer.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(!answer.contains("second"));
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("x-streamed: yes"), "{answer}");
    std::fs::write(&gate, "").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    let (_, end) = answer.split_once("second").expect("the rest came");
    assert!(end.to_ascii_lowercase().contains("server-timing: run;dur="), "no trailer: {end:?}");
}

#[test]
fn a_streamed_request_gets_through() {
    let cluster = Cluster::start(&[]);
    cluster.deploy_example("echo");
    let piece = "x".repeat(100_000);
    let mut request =
        b"POST /run/echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    let mut chunk = |text: &str| {
        request.extend_from_slice(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes());
    };
    chunk("\"");
    for _ in 0..50 {
        chunk(&piece);
    }
    chunk("\"");
    chunk("");
    let answer = raw(cluster.address(), &request);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body == format!("\"{}\"", piece.repeat(50)), "the body came back changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_harms_nobody() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let code = "import time\ndef f(event):\n    time.sleep(event)\n    return event\n";
    let url = cluster.deploy("slow", &[("f.py", code), ("ol.toml", "max_instances = 1")]);
    assert_eq!(post(&client, &url, "0").await.body, "0");
    for _ in 0..20 {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        stream
            .write_all(b"POST /run/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n0.1")
            .unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    // What waited is gone from the queue; what ran kept its slot until it had answered.
    assert_eq!(post(&client, &url, "0").await.body, "0");
    let request = http::Request::get(format!("{}/stats", cluster.url)).body("").unwrap();
    let stats = send(&inside(), request).await.unwrap().json();
    assert_eq!((&stats["in_flight"], &stats["policy_defects"]), (&json!(0), &json!(0)));
}

/// A client that has nothing more to say waits for its reply; one that has left does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_sending_gets_its_reply() {
    const SLOW: &str = "
import time
def f(event):
    time.sleep(event['seconds'])
    return event['seconds']
";
    const PIECES: &str = "
import time
def f(event):
    for n in range(3):
        time.sleep(0.3)
        yield str(n)
";
    let cluster = Cluster::start(&["--workers", "1"]);
    cluster.deploy("slow", &[("f.py", SLOW), ("ol.toml", "concurrency = 4")]);
    cluster.deploy("pieces", &[("f.py", PIECES)]);
    let address = cluster.address();
    let ask = |name: &str, body: &str, version: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        let head =
            format!("POST /run/{name} HTTP/{version}\r\nHost: x\r\nContent-Length: {length}");
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    for version in ["1.1", "1.0"] {
        let answer = ask("slow", r#"{"seconds": 0}"#, version);
        assert!(
            answer.starts_with(&format!("HTTP/{version} 200")) && answer.ends_with("\r\n\r\n0"),
            "{answer}"
        );
        let answer = ask("pieces", "1", version);
        assert!(answer.contains(" 200 ") && answer.contains('2'), "{answer}");
    }
    // One that waits long is asked whether it is there, if it may be.
    let answer = ask("slow", r#"{"seconds": 3}"#, "1.1");
    let answer = answer.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&answer);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n3"), "{answer}");
    let answer = ask("slow", r#"{"seconds": 3}"#, "1.0");
    assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("\r\n\r\n3"), "{answer}");
}

/// By the balancer's socket, and through a proxy of HTTP/1.0, who stops sending has left.
#[test]
fn a_client_that_leaves_gives_up_its_place_by_the_balancers_socket_and_through_a_proxy() {
    const WAITS: &str = "
import os, time
def f(event):
    open(event + '.begun', 'w').close()
    while not os.path.exists(event): time.sleep(0.01)
";
    // Without isolation, so that the functions see the file that opens their gate.
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", "process"]);
    // No call is over by itself while we look.
    let settings = "max_instances = 1\ntimeout_seconds = 600";
    cluster.deploy("waits", &[("f.py", WAITS), ("ol.toml", settings)]);
    cluster.deploy("streamer", &[("bootstrap", STREAMER), ("ol.toml", "timeout_seconds = 600")]);
    let folder = tempfile::tempdir().unwrap();
    let gate = folder.path().join("open");
    let body = format!("{gate:?}");
    let stats = |address| {
        let request = b"GET /stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = raw_inside(address, request);
        serde_json::from_str::<serde_json::Value>(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let worker = cluster.status()["workers"][0]["url"].as_str().unwrap().to_owned();
    let worker = worker.strip_prefix("http://").unwrap().parse().unwrap();
    let waiting = |count: u64| {
        let got = wait_for(|| (stats(worker)["counts"]["waiting"] == count).then_some(()));
        assert!(got.is_some(), "{count} do not wait: {}", stats(worker));
    };
    let in_flight = |count: u64| {
        let got = wait_for(|| (stats(cluster.address())["in_flight"] == count).then_some(()));
        assert!(got.is_some(), "{count} are not in flight: {}", stats(cluster.address()));
    };
    let socket = || {
        let stream = UnixStream::connect(cluster.place.data_dir().join("balancer.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    };
    let request = |name: &str, version: &str, more: &str| {
        let length = body.len();
        format!(
            "POST /run/{name} HTTP/{version}\r\nHost: x\r\nConnection: close\r\n{more}\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    // In the middle of a reply of which nothing comes.
    let mut reads = socket();
    reads.write_all(request("streamer", "1.1", "").as_bytes()).unwrap();
    let (mut answer, mut buffer) = (String::new(), [0; 4096]);
    while !answer.contains("first ") {
        let count = reads.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended early: {answer}");
        answer.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    in_flight(1);
    drop(reads);
    in_flight(0);
    // While others wait before them.
    let mut first = socket();
    first.write_all(request("waits", "1.1", "").as_bytes()).unwrap();
    wait_for(|| folder.path().join("open.begun").exists().then_some(())).expect("it begins");
    let mut waits = socket();
    waits.write_all(request("waits", "1.1", "").as_bytes()).unwrap();
    waiting(1);
    drop(waits);
    waiting(0);
    let mut waits = TcpStream::connect(cluster.address()).unwrap();
    waits.write_all(request("waits", "1.0", "X-Forwarded-For: 192.0.2.7\r\n").as_bytes()).unwrap();
    waiting(1);
    drop(waits);
    waiting(0);
    std::fs::write(&gate, "").unwrap();
    let mut answer = String::new();
    first.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Whoever sends all of a request before it reads the answer gets to read it.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_reaches_a_client_that_still_sends() {
    let cluster = Cluster::start(&["--workers", "1"]);
    cluster.deploy(
        "echo",
        &[("f.py", "def f(event): return event"), ("ol.toml", "methods = [\"POST\"]")],
    );
    let body = vec![b' '; 7 << 20];
    let send = |head: &str, chunked: bool| {
        let mut stream = TcpStream::connect(cluster.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        for piece in body.chunks(100_000) {
            if chunked {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).unwrap();
            }
            stream.write_all(piece).unwrap();
            if chunked {
                stream.write_all(b"\r\n").unwrap();
            }
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer.into()).unwrap()
    };
    let length = format!("Content-Length: {}", body.len());
    for (line, framing, status) in [
        ("POST /run/echo", &*length, "413"),
        ("POST /run/echo", "Transfer-Encoding: chunked", "413"),
        ("POST /run/none", "Transfer-Encoding: chunked", "404"),
        ("PUT /run/echo", "Transfer-Encoding: chunked", "405"),
        ("POST /nowhere", &*length, "404"),
    ] {
        let head = format!("{line} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
        let answer = send(&head, framing.starts_with('T'));
        assert_eq!(answer, format!("HTTP/1.1 {status}"), "{head}");
    }
}

/// Which name a request was sent to.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_sees_the_host_that_was_meant_and_never_the_worker() {
    let cluster = Cluster::start(&["--workers", "1"]);
    mirror(&cluster);
    let ask = |request: &str| raw(cluster.address(), request.as_bytes());
    let host = |request: &str| {
        let answer = ask(request);
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let event: serde_json::Value =
            serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"));
        event["headers"].get("host").cloned()
    };
    assert_eq!(host("GET /run/mirror/x HTTP/1.0\r\n\r\n"), None);
    assert_eq!(
        host("GET /run/mirror/x HTTP/1.0\r\nHost: a.example:81\r\n\r\n"),
        Some(json!("a.example:81"))
    );
    let absolute = "GET http://u:p@b.example:82/run/mirror HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    assert_eq!(host(absolute), Some(json!("b.example:82")));
    assert_eq!(host("GET /run/mirror HTTP/1.1\r\nHost:\r\nConnection: close\r\n\r\n"), None);
    for bad in [
        "GET /run/mirror HTTP/1.1\r\n\r\n",
        "GET http://b.example/run/mirror HTTP/1.1\r\n\r\n",
        "GET /run/mirror HTTP/1.1\r\nHost: a b\r\n\r\n",
    ] {
        assert!(ask(bad).starts_with("HTTP/1.1 400"), "{bad}");
    }
    // A body that is told in two ways: the connection is closed after the answer, whatever follows.
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
    ] {
        let one = format!(
            "POST /run/mirror HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"
        );
        let answer = ask(&format!("{one}GET /run/mirror HTTP/1.1\r\nHost: y\r\n\r\n"));
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    }
}
