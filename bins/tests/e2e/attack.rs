//! Requests that no honest client sends, straight to every port: each is refused or cut off, nothing
//! crashes, memory stays bounded, and nobody gets what is another's.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use openlambda_core::registry::Registry;
use openlambda_registry::native::RemoteRegistry;
use serde_json::json;

use crate::common::{
    Cluster, Daemon, Place, client, connect, inside, post, raw_inside, secret, send, wait_for,
};
use crate::table::wait_for_call;

/// What a server answers to these bytes, after which nothing more comes. It may cut the connection
/// off before it has read all of them; it must not wait for ever.
fn attack(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!(
                    "it neither answered nor closed: {}",
                    bytes[..100.min(bytes.len())].escape_ascii()
                )
            }
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// The statuses of the answers that came over one connection.
fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

/// A cluster whose daemons are to be the same processes at the end.
struct Site {
    cluster: Cluster,
    worker: SocketAddr,
    registry: SocketAddr,
    pids: Vec<i64>,
}

impl Site {
    fn start(kind: &str) -> Self {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", kind]);
        let status = cluster.status();
        let worker = status["workers"][0]["url"].as_str().unwrap();
        let registry = status["registry"]["spec"].as_str().unwrap();
        let address = |url: &str| url.rsplit_once('/').unwrap().1.parse().unwrap();
        let (worker, registry) = (address(worker), address(registry));
        let pids = pids(&cluster);
        Site { cluster, worker, registry, pids }
    }

    /// Balancer and worker, which speak HTTP/1.1.
    fn servers(&self) -> [(&'static str, SocketAddr); 2] {
        [("balancer", self.cluster.address()), ("worker", self.worker)]
    }

    /// Nothing was started again, and none has taken much memory.
    fn unharmed(&self) {
        assert_eq!(pids(&self.cluster), self.pids, "something was started again");
        for pid in &self.pids {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
            assert!(peak < 256 << 10, "process {pid} has taken {peak} KiB");
        }
    }
}

/// Balancer, registry, worker.
fn pids(cluster: &Cluster) -> Vec<i64> {
    let status = cluster.status();
    let pids = [&status["balancer_pid"], &status["registry"]["pid"], &status["workers"][0]["pid"]];
    pids.map(|pid| pid.as_i64().unwrap()).to_vec()
}

const COUNTS: &str = "
def f(event):
    print('called')
    return {'statusCode': 200, 'body': event.get('body', '')}
";

/// A request with these headers, behind a `Host`.
fn with(headers: &str, body: &str) -> Vec<u8> {
    format!("POST /run/counts HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}").into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_refused_and_cut_off() {
    let site = Site::start("process");
    let url = site.cluster.deploy("counts", &[("f.py", COUNTS), ("ol.toml", "event = \"http\"")]);
    let noise: Vec<u8> =
        (0..100_000u64).map(|n| (openlambda_core::hash::mix(n, 7) & 0xff) as u8).collect();
    let many_lines = format!("GET /livez HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000));
    let long_line = format!("GET /livez HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(10 << 20));
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20));
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20), &["400"]),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(), &["", "400"]),
        ("noise", noise, &["400"]),
        ("zeros", vec![0; 1 << 20], &["400"]),
        ("no version", b"GET /livez\r\n\r\n".to_vec(), &["400"]),
        ("HTTP/0.9", b"GET / HTTP/0.9\r\n\r\n".to_vec(), &["400"]),
        ("many header lines", many_lines.into_bytes(), &["431"]),
        ("a header of 10 MiB", long_line.into_bytes(), &["431"]),
        ("a path of 1 MiB", long_path.into_bytes(), &["414", "431"]),
        ("a folded header", with("X-A: 1\r\n b\r\nContent-Length: 0\r\n", ""), &["400"]),
        ("a space before the colon", with("Content-Length : 0\r\n", ""), &["400"]),
        ("a name that is none", with("a b: c\r\n", ""), &["400"]),
        ("NUL in a header", with("X-A: \0\r\nContent-Length: 0\r\n", ""), &["400"]),
        ("NUL in a path", b"POST /run/cou\0nts HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &["400"]),
        ("two lengths", with("Content-Length: 1\r\nContent-Length: 2\r\n", "ab"), &["400"]),
        ("a list of lengths", with("Content-Length: 1, 2\r\n", "ab"), &["400"]),
        ("a negative length", with("Content-Length: -1\r\n", ""), &["400"]),
        ("a signed length", with("Content-Length: +1\r\n", "a"), &["400"]),
        ("an endless length", with("Content-Length: 99999999999999999999999\r\n", ""), &["400"]),
        (
            "the largest length",
            with("Content-Length: 18446744073709551615\r\n", ""),
            &["400", "413", "431"],
        ),
        ("an unknown coding", with("Transfer-Encoding: cow\r\n", "a"), &["400"]),
        ("chunked not last", with("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"), &["400"]),
        (
            "chunked twice",
            with("Transfer-Encoding: chunked, chunked\r\n", "1\r\na\r\n0\r\n\r\n"),
            &["", "400"],
        ),
        (
            "chunked in two lines",
            with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            &["", "400"],
        ),
        (
            "a coding before it",
            with("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            &["", "400"],
        ),
        ("two hosts", with("Host: y\r\nContent-Length: 0\r\n", ""), &["", "400"]),
        ("one host twice", with("Host: x\r\nContent-Length: 0\r\n", ""), &["", "400"]),
        ("half a body", with("Content-Length: 10\r\n", "half"), &["", "400"]),
        ("half a large body", with("Content-Length: 1000000\r\n", "half"), &["", "400"]),
        (
            "a huge chunk",
            with("Transfer-Encoding: chunked\r\n", "ffffffffffffffff\r\nabc"),
            &["", "400", "413"],
        ),
        (
            "a chunk of no size",
            with("Transfer-Encoding: chunked\r\n", "xyz\r\nabc\r\n0\r\n\r\n"),
            &["", "400"],
        ),
        ("half a chunk", with("Transfer-Encoding: chunked\r\n", "100\r\nabc"), &["", "400"]),
        (
            "an endless chunk extension",
            with("Transfer-Encoding: chunked\r\n", &format!("1;{}\r\na\r\n", "x".repeat(1 << 20))),
            &["", "400"],
        ),
        (
            "endless trailers",
            with(
                "Transfer-Encoding: chunked\r\n",
                &format!("1\r\na\r\n0\r\n{}\r\n", "a: b\r\n".repeat(100_000)),
            ),
            &["", "400"],
        ),
    ];
    let strangers = site.servers().map(|(server, address)| (server, address, false));
    let insiders = site.servers().map(|(server, address)| (server, address, true));
    for (server, address, inside) in strangers.into_iter().chain(insiders) {
        let connects =
            || if inside { connect(address) } else { TcpStream::connect(address).unwrap() };
        for (what, bytes, expected) in &cases {
            let answers = attack(connects(), bytes);
            let got = statuses(&answers);
            assert!(got.len() < 2, "{server}, {what}: more than one answer: {answers}");
            let got = got.first().copied().unwrap_or_default();
            // What is cut off while the client still sends may lose its answer on the way.
            let lost = got.is_empty() && bytes.len() > 64 << 10;
            // A worker knows no stranger by this `Host`.
            let refused = got == "403" && server == "worker" && !inside;
            let fits = expected.contains(&got) || lost || refused;
            assert!(fits, "{server}, {what}: {answers:?}");
        }
    }
    // What would come behind a request that readers understand differently is never read.
    for (server, address) in site.servers() {
        for headers in [
            "Host: x\r\nContent-Length: 0\r\n",
            "Host: y\r\nContent-Length: 0\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ] {
            let body = if headers.contains("chunked") { "0\r\n\r\n" } else { "" };
            let next = with("Content-Length: 0\r\n", "");
            let answer = raw_inside(address, &[with(headers, body), next].concat());
            assert_eq!(statuses(&answer), ["400"], "{server}, {headers}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{server}, {headers}: {answer}");
        }
    }
    // The registry speaks HTTP/2 only: it closes, whatever this is.
    for (what, bytes, _) in &cases {
        let answers = attack(connect(site.registry), bytes);
        assert!(statuses(&answers).is_empty(), "registry, {what}: {answers:?}");
    }
    // None of them was a call.
    let logged = site.cluster.place.ol(&["logs", "counts"]);
    assert_eq!(logged.matches("called").count(), 0, "{logged}");
    assert_eq!(post(&client(), &url, "x").await.body, "x");
    site.unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_inside_of_a_request_is_never_a_second_one_behind_the_balancer() {
    let site = Site::start("process");
    let client = client();
    let secret =
        site.cluster.deploy("secret", &[("f.py", "def f(event):\n    return 'tenant two'\n")]);
    let url = site.cluster.deploy("counts", &[("f.py", COUNTS), ("ol.toml", "event = \"http\"")]);
    assert_eq!(post(&client, &secret, "").await.body, "\"tenant two\"");
    let inner = "POST /run/secret HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    let chunked = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
    let both = |first: &str, second: &str, body: &str| {
        with(&format!("{first}\r\n{second}\r\nConnection: close\r\n"), body)
    };
    let (te, cl) = ("Transfer-Encoding: chunked", format!("Content-Length: {}", inner.len()));
    for (server, address) in site.servers() {
        // A body that looks like a request is a body, whichever way it is framed.
        for request in [
            both(&cl, "X-A: b", inner),
            both(te, "X-A: b", &chunked),
            both(te, &cl, &chunked),
            both(&cl, te, &chunked),
        ] {
            let answer = raw_inside(address, &request);
            assert_eq!(statuses(&answer).len(), 1, "{server}: {answer}");
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(inner), "{answer}");
            assert!(!answer.contains("tenant two"), "{server}: {answer}");
        }
        // What stands behind the end of the first request, where another reader sees its body, is
        // never read as one: the connection is over.
        for request in [
            both(te, &format!("Content-Length: {}", inner.len() + 5), &format!("0\r\n\r\n{inner}")),
            with(
                &format!("{te}\r\nContent-Length: {}\r\n", inner.len() + 5),
                &format!("0\r\n\r\n{inner}"),
            ),
            with(
                &format!("Content-Length: {}\r\n{te}\r\n", inner.len() + 5),
                &format!("0\r\n\r\n{inner}"),
            ),
        ] {
            let answer = raw_inside(address, &request);
            assert_eq!(statuses(&answer).len(), 1, "{server}: {answer}");
            assert!(!answer.contains("tenant two"), "{server}: {answer}");
        }
    }
    // The worker got as many calls as the balancer and its own clients have sent, and not one more.
    let calls = |answer: &str| answer.lines().filter(|line| line.contains("called")).count();
    wait_for(|| (calls(&site.cluster.place.ol(&["logs", "counts"])) == 14).then_some(()))
        .unwrap_or_else(|| panic!("{}", site.cluster.place.ol(&["logs", "counts"])));
    assert_eq!(post(&client, &url, "x").await.body, "x");
    site.unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let site = Site::start("process");
    let manifest = "event = \"http\"\nmax_instances = 2";
    site.cluster.deploy("counts", &[("f.py", COUNTS), ("ol.toml", manifest)]);
    for (server, address) in site.servers() {
        let mut burst = Vec::new();
        for n in 0..100 {
            let close = if n == 99 { "Connection: close\r\n" } else { "" };
            burst.extend(with(&format!("{close}Content-Length: 4\r\n"), &format!("n{n:03}")));
        }
        let answers = raw_inside(address, &burst);
        let bodies: Vec<_> = answers
            .split("HTTP/1.1 200 OK")
            .skip(1)
            .map(|answer| answer.split_once("\r\n\r\n").unwrap().1)
            .collect();
        let expected: Vec<_> = (0..100).map(|n| format!("n{n:03}")).collect();
        assert_eq!(bodies, expected, "{server}");
    }
    site.unharmed();
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_but_valid_requests_get_what_they_ask_for_and_no_more() {
    let site = Site::start("process");
    site.cluster.deploy("counts", &[("f.py", COUNTS), ("ol.toml", "event = \"http\"")]);
    for (server, address) in site.servers() {
        let ask = |line: &str, headers: &str| {
            raw_inside(
                address,
                format!("{line} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").as_bytes(),
            )
        };
        // Waits for the word to go on, and gets it.
        let mut stream = connect(address);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let expects = "Expect: 100-continue\r\nContent-Length: 4\r\nConnection: close\r\n";
        stream.write_all(&with(expects, "")).unwrap();
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).unwrap();
        assert_eq!(go_on, *b"HTTP/1.1 100 Continue\r\n\r\n", "{server}");
        stream.write_all(b"body").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("body"), "{answer}");

        // No switch to another protocol, and no tunnel.
        let upgrade = "Host: x\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n";
        for upgrade in [upgrade, "Host: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"]
        {
            let answer = ask("POST /run/counts", upgrade);
            assert!(answer.starts_with("HTTP/1.1 200"), "{server}: {answer}");
        }
        for target in ["example.org:443", "127.0.0.1:22"] {
            let answer = ask(&format!("CONNECT {target}"), &format!("Host: {target}\r\n"));
            assert!(answer.starts_with("HTTP/1.1 4"), "{server}: {answer}");
        }
        // A name that is not this machine's, or an empty one, is as good as any; clients have to send one.
        let nameless = if server == "balancer" { "400" } else { "200" };
        for (host, status) in
            [("Host: evil.example\r\n", "200"), ("Host: \r\n", "200"), ("", nameless)]
        {
            let answer = ask("POST /run/counts", host);
            let expected = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&expected), "{server}, {host:?}: {answer}");
        }
        // Paths are compared as they are: nothing leads out of a function.
        for (path, expected) in [
            ("/run/counts/../../internal/cluster", "200"),
            ("/run/counts/%2e%2e/%2e%2e/internal/events", "200"),
            ("/run/counts//internal/events", "200"),
            ("/run/../internal/events", "400"),
            ("/run/%2e%2e/internal/events", "400"),
            ("/run/counts%00", "400"),
            ("/run/counts%2f..%2fsecret", "400"),
            ("//internal/events", "404"),
            ("/./internal/events", "404"),
            ("/internal%2fevents", "404"),
            ("/INTERNAL/events", "404"),
            ("/run", "400"),
            ("*", "4"),
        ] {
            let answer = ask(&format!("POST {path}"), "Host: x\r\n");
            let status = format!("HTTP/1.1 {expected}");
            assert!(answer.starts_with(&status), "{server}, {path}: {answer}");
        }
    }
    site.unharmed();
}

/// What the project's own processes say to each other is not for those whose requests come through a
/// proxy, and not for pages in a browser.
#[tokio::test(flavor = "multi_thread")]
async fn internal_paths_are_for_the_projects_own_processes() {
    let site = Site::start("process");
    let client = client();
    let url = site.cluster.deploy("counts", &[("f.py", COUNTS), ("ol.toml", "event = \"http\"")]);
    let announcement = json!({
        "name": "intruder", "incarnation": 1, "url": "http://127.0.0.1:1", "weight": 1e6,
        "capacity": 1000,
    });
    let reservation = json!({ "key": "b/1", "function": "counts", "digest": "sha256:00" });
    let relayed = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.1")];
    let pages =
        [("origin", "http://evil.example"), ("origin", "null"), ("sec-fetch-site", "same-origin")];
    for (address, method, path, body) in [
        (site.cluster.address(), "POST", "/internal/workers", announcement.to_string()),
        (site.cluster.address(), "POST", "/internal/refresh", "counts".to_owned()),
        (site.cluster.address(), "GET", "/internal/cluster", String::new()),
        (site.worker, "GET", "/internal/events?balancer=b", String::new()),
        (site.worker, "GET", "/internal/load", String::new()),
        (site.worker, "POST", "/internal/reservations", reservation.to_string()),
        (site.worker, "DELETE", "/internal/reservations/b/1", String::new()),
    ] {
        // Whoever does not know the secret, and a page that has come to know it.
        let headers = relayed.map(|header| (header, 401)).into_iter();
        let headers = headers.chain([(("accept", "*/*"), 401)]);
        for ((name, value), status) in headers.chain(pages.map(|header| (header, 403))) {
            let mut request = http::Request::builder()
                .method(method)
                .uri(format!("http://{address}{path}"))
                .header(name, value);
            if status == 403 {
                request = request.header("authorization", secret().bearer());
            }
            let answer = send(&client, request.body(body.clone()).unwrap()).await.unwrap();
            assert_eq!(answer.status, status, "{method} {path}, {name}: {answer:?}");
        }
    }
    // Nobody was let into the cluster.
    let workers = site.cluster.status()["workers"].as_array().unwrap().len();
    assert_eq!(workers, 1);
    // The balancer hands none of its own paths, and none of the worker's, on.
    for path in ["/internal/events", "/internal/load", "/internal/reservations/b/1"] {
        let request = http::Request::get(format!("{}{path}", site.cluster.url)).body("").unwrap();
        assert_eq!(send(&inside(), request).await.unwrap().status, 404, "{path}");
    }
    assert_eq!(post(&client, &url, "x").await.body, "x");
    site.unharmed();
}

/// Answers when it is told to over its volume, and says its address.
const VICTIM: &str = "
import os, time
def f(event):
    gate = os.path.join(os.environ['OPENLAMBDA_VOLUME_GATE'], 'open')
    open(gate + '.waits', 'w').close()
    while not os.path.exists(gate): time.sleep(0.01)
    return 'mine'
";

/// Tries to answer somebody else's call.
const FORGER: &str = r#"#!/usr/bin/python3
import http.client, json, os
def ask(method, path, body=None):
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    api.request(method, "/2018-06-01/runtime/invocation/" + path, body)
    answer = api.getresponse()
    return answer.status, answer.headers.get("Lambda-Runtime-Aws-Request-Id"), answer.read().decode()
while True:
    _, id, event = ask("GET", "next")
    other = json.loads(event)
    told = [ask("POST", f"{other}/{what}", '"forged"')[0] for what in ("response", "error")]
    ask("POST", f"{id}/response", json.dumps(told))
"#;

#[tokio::test(flavor = "multi_thread")]
async fn no_sandbox_answers_for_another() {
    for kind in ["process", "sock"] {
        let site = Site::start(kind);
        let client = client();
        let manifest = "[[volumes]]\nname = \"gate\"\npath = \"/gate\"";
        let victim = site.cluster.deploy("victim", &[("f.py", VICTIM), ("ol.toml", manifest)]);
        let forger = site.cluster.deploy("forger", &[("bootstrap", FORGER)]);
        let request = http::Request::post(&victim).header("x-openlambda-request-id", "the-victims");
        let request = request.body("1").unwrap();
        let call = {
            let client = client.clone();
            tokio::spawn(async move { send(&client, request).await.unwrap() })
        };
        let volumes = site.cluster.place.data_dir().join("volumes/default/victim/gate");
        wait_for(|| volumes.join("open.waits").exists().then_some(())).unwrap();
        let forged = post(&client, &forger, "\"the-victims\"").await;
        assert_eq!(forged.json(), json!([400, 400]), "{kind}");
        // An id that two calls share is two calls, each with its own answer.
        let request = http::Request::post(&forger).header("x-openlambda-request-id", "the-victims");
        let twin = send(&client, request.body("\"the-victims.2\"").unwrap()).await.unwrap();
        assert_eq!(twin.json(), json!([400, 400]), "{kind}");
        std::fs::write(volumes.join("open"), "").unwrap();
        let answer = call.await.unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "\"mine\""), "{kind}: {answer:?}");
        site.unharmed();
    }
}

/// Archives that are small as they come, uploaded as a script does it, and by way of a program of
/// Python's own, for each kind of header.
#[tokio::test(flavor = "multi_thread")]
async fn bundles_of_strangers_harm_no_registry() {
    const MAKES: &str = r#"
import gzip, io, sys, tarfile
kind, out = sys.argv[1], io.BytesIO()
def tar(format, add):
    with tarfile.open(fileobj=out, mode="w", format=format) as archive: add(archive)
def file(archive, name, content=b"", **more):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in more.items(): setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))
GNU, PAX = tarfile.GNU_FORMAT, tarfile.PAX_FORMAT
if kind == "deep": tar(GNU, lambda a: file(a, "a/" * 10_000 + "f.py"))
elif kind == "deep pax": tar(PAX, lambda a: file(a, "a/" * 10_000 + "f.py"))
elif kind == "long name": tar(GNU, lambda a: file(a, "a" * (300 << 20)))
elif kind == "long link": tar(GNU, lambda a: file(a, "l", type=tarfile.SYMTYPE, linkname="a" * (100 << 20)))
elif kind == "long pax": tar(PAX, lambda a: file(a, "f.py", pax_headers={"comment": "a" * (300 << 20)}))
elif kind == "brackets": tar(GNU, lambda a: [file(a, "f.py"), file(a, "ol.yaml", b"[" * 50_000)])
elif kind == "dashes": tar(GNU, lambda a: [file(a, "f.py"), file(a, "ol.yaml", b"- " * 200_000)])
elif kind == "fewer dashes": tar(GNU, lambda a: [file(a, "f.py"), file(a, "ol.yaml", b"- " * 30_000)])
elif kind == "toml": tar(GNU, lambda a: [file(a, "f.py"), file(a, "ol.toml", b"methods = " + b"[" * 50_000)])
elif kind == "aliases":
    yaml = b"environment:\n  A: &a " + b"x" * 24_000 + b"\n" + b"".join(b"  B%d: *a\n" % n for n in range(3500))
    tar(GNU, lambda a: [file(a, "f.py"), file(a, "ol.yaml", yaml)])
elif kind == "volumes":
    volumes = b"".join(b'[[volumes]]\nname = "v%d"\npath = "/s%d%s"\n' % (n, n, b"/a" * 150) for n in range(100))
    tar(GNU, lambda a: [file(a, "f.py"), file(a, "ol.toml", volumes)])
sys.stdout.buffer.write(gzip.compress(out.getvalue(), 1))
"#;
    let site = Site::start("process");
    let client = client();
    for (kind, why) in [
        ("deep", "is a path of"),
        ("deep pax", "is a path of"),
        ("long name", "over 1024 KiB"),
        ("long link", "over 1024 KiB"),
        ("long pax", "over 1024 KiB"),
        ("brackets", "opens too many"),
        ("dashes", "over 64 KiB"),
        ("fewer dashes", "opens too many"),
        ("toml", "ol.toml"),
        ("aliases", "over 32 KiB"),
        ("volumes", "16 is the most"),
    ] {
        let made =
            std::process::Command::new("python3").args(["-c", MAKES, kind]).output().unwrap();
        assert!(made.status.success() && made.stdout.len() < 4 << 20, "{kind}: {made:?}");
        let url = format!("{}/registry/hostile", site.cluster.url);
        let answer = send(&inside(), http::Request::post(url).body(made.stdout).unwrap()).await;
        let answer = answer.unwrap();
        assert_eq!(answer.status, 400, "{kind}: {answer:?}");
        assert!(answer.body.contains(why) && answer.body.len() < 1000, "{kind}: {answer:?}");
    }
    let url = site.cluster.deploy("good", &[("f.py", "def f(event): return 'well'")]);
    assert_eq!(post(&client, &url, "").await.body, "\"well\"");
    site.unharmed();
}

/// What a function says in headers stays inside of its reply.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_cannot_be_split() {
    let site = Site::start("process");
    let client = client();
    let code = "import json\ndef f(event):\n    return json.loads(event['body'])\n";
    let url = site.cluster.deploy("splits", &[("f.py", code), ("ol.toml", "event = \"http\"")]);
    for (name, value) in [
        ("X-A", "b\r\nX-Evil: 1"),
        ("X-A", "b\r\n\r\nHTTP/1.1 200 OK\r\n\r\nowned"),
        ("X-A: b\r\nX-Evil", "1"),
        ("X-A", "\u{0}"),
    ] {
        let reply = json!({ "statusCode": 200, "headers": { name: value }, "body": "b" });
        let answer = post(&client, &url, &reply.to_string()).await;
        assert_eq!((answer.status, answer.json()["error"].as_str()), (502, Some("bad_reply")));
        assert!(!answer.headers.contains_key("x-evil"), "{answer:?}");
    }
    // A length, or a coding, that is not the body's would make the rest pass for another's reply.
    for (name, value) in
        [("Content-Length", "1"), ("Content-Length", "1000"), ("Transfer-Encoding", "chunked")]
    {
        let reply = json!({ "statusCode": 200, "headers": { name: value }, "body": "whole" });
        for address in [site.cluster.address(), site.worker] {
            let body = reply.to_string();
            let request = format!(
                "POST /run/splits HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}\
                 GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let answers = raw_inside(address, request.as_bytes());
            assert_eq!(statuses(&answers), ["200", "200"], "{name}: {answers}");
            assert!(answers.contains("\r\n\r\nwholeHTTP/1.1 200"), "{name}: {answers}");
        }
    }
    site.unharmed();
}

/// Slow on purpose: heads that never end, on more connections than a server takes. Each is given up,
/// and those who come after them are served.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_given_up_and_do_not_shut_others_out() {
    let place = Place::new();
    let functions = place.function("echo", &[("f.py", "def f(event):\n    return event\n")]);
    let registry = format!("dir={}", functions.parent().unwrap().display());
    let state = place.data_dir().join("worker");
    let worker = Daemon::start(
        env!("CARGO_BIN_EXE_ol-worker"),
        &[
            "--name=w",
            "--sandbox=process",
            "--most-connections=30",
            "--head-seconds=6",
            "--state-dir",
            state.to_str().unwrap(),
            "--registry",
            &registry,
        ],
    );
    let lb = Daemon::start(
        env!("CARGO_BIN_EXE_ol-lb"),
        &[
            "--registry",
            &registry,
            "--worker",
            &worker.url,
            "--most-connections=30",
            "--head-seconds=2",
        ],
    );
    let store = place.data_dir().join("store");
    let remote = Daemon::start(
        env!("CARGO_BIN_EXE_ol-registry"),
        &["--store", store.to_str().unwrap(), "--most-connections=30", "--head-seconds=2"],
    );
    let url = format!("{}/run/echo", lb.url);
    assert_eq!(wait_for_call(&client(), &url, "1").await.body, "1");
    // HTTP/2 has no head that has to end: it is the preface that does not, or the secret that does not come.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let attacks = [
        (lb.address(), &b"POST /run/echo HTTP/1.1\r\nHost: x\r\nX-A: "[..], &b"a"[..]),
        (worker.address(), b"GET /stats HTTP/1.1\r\nX-A: ", b"a"),
        (remote.address(), b"", b""),
        (remote.address(), b"P", b""),
        (remote.address(), preface, b"\0\0\x08\x06\0\0\0\0\0whoisit?"),
    ];
    let attackers = attacks.map(|(address, begin, more)| {
        tokio::task::spawn_blocking(move || slow(address, 60, begin, more))
    });
    // A client that comes behind them; each call over a connection of its own.
    for n in 0..3 {
        let answer = wait_for_call(&client(), &url, &n.to_string()).await;
        assert_eq!(answer.body, n.to_string());
    }
    let registry = RemoteRegistry::connect(&remote.url).unwrap();
    let registry = registry.with_secret(Some(secret().known()));
    // It waits for its turn among those who have come before it.
    let mut listed = registry.list().await;
    for _ in 0..10 {
        if listed.is_err() {
            listed = registry.list().await;
        }
    }
    assert_eq!(listed.unwrap().len(), 0);
    for attacker in attackers {
        attacker.await.unwrap();
    }
    assert_eq!(post(&client(), &url, "1").await.body, "1");
    // By the connection that it has made among them.
    assert_eq!(registry.list().await.unwrap().len(), 0);
}

/// Opens so many connections, says `begin` on each and then `more` again and again, until all have
/// been closed.
fn slow(address: SocketAddr, connections: usize, begin: &[u8], more: &[u8]) {
    let mut open: Vec<_> = (0..connections)
        .map(|_| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(begin).unwrap();
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let all_closed = wait_for_long(|| {
        open.retain_mut(|stream| {
            // An answer like 408 is no end yet.
            let over = match stream.read(&mut [0; 4096]) {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
            };
            !over && stream.write_all(more).is_ok()
        });
        open.is_empty().then_some(())
    });
    assert!(all_closed.is_some(), "{} connections to {address} are still open", open.len());
}

/// Three servers' time-outs, one after another where connections wait for each other.
fn wait_for_long<T>(mut ready: impl FnMut() -> Option<T>) -> Option<T> {
    (0..3).find_map(|_| wait_for(&mut ready))
}
