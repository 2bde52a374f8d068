//! Functions that misbehave: each call ends with a message that says what happened, the next one
//! succeeds, and the worker never notices.

use std::fs;
use std::path::Path;

use openlambda_core::bundle;
use serde_json::{Value, json};

use crate::common::{Answer, Cluster, HttpClient, OL, client, inside, post, send, wait_for};

/// The kinds of sandbox that each function tries.
const KINDS: [&str; 2] = ["process", "sock"];

/// One call that goes wrong, or only looks as if.
struct Case {
    /// The event that makes the function misbehave.
    event: Value,
    status: u16,
    /// The failure's code; empty for a reply.
    code: &'static str,
    /// What the message, or the reply, says.
    says: &'static [&'static str],
}

const fn fails(
    event: Value,
    status: u16,
    code: &'static str,
    says: &'static [&'static str],
) -> Case {
    Case { event, status, code, says }
}

fn replies(event: Value, says: &'static [&'static str]) -> Case {
    Case { event, status: 200, code: "", says }
}

impl Case {
    fn check(&self, answer: &Answer) {
        let Case { event, status, code, says } = self;
        assert_eq!(answer.status, *status, "{event}: {answer:?}");
        let text = match *code {
            "" => answer.body.clone(),
            code => {
                let body = answer.json();
                assert_eq!(body["error"], code, "{event}: {answer:?}");
                assert_eq!(body["request_id"], answer.header("x-openlambda-request-id"));
                assert_eq!(answer.header("x-openlambda-error"), "function", "{event}: {answer:?}");
                body["message"].as_str().unwrap().to_owned()
            }
        };
        for part in *says {
            assert!(text.contains(part), "{event}: {part:?} is not in {text:?}");
        }
    }
}

/// A cluster of one worker, which must be the same process at the end.
struct Site {
    cluster: Cluster,
    client: HttpClient,
    worker: i32,
}

impl Site {
    fn start(kind: &str) -> Self {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", kind]);
        let worker = cluster.worker_pid("worker-1").unwrap();
        Site { cluster, client: client(), worker }
    }

    /// Calls the function with each case's event, and after each with "good", which it answers.
    async fn try_all(&self, url: &str, cases: &[Case]) {
        for case in cases {
            case.check(&post(&self.client, url, &case.event.to_string()).await);
            self.answers(url, &case.event).await;
        }
    }

    async fn answers(&self, url: &str, after: &Value) {
        let answer = post(&self.client, url, "\"good\"").await;
        assert_eq!((answer.status, &*answer.body), (200, "\"well\""), "after {after}: {answer:?}");
    }

    fn deploy_python(&self, name: &str, code: &str, manifest: &str) -> String {
        self.cluster.deploy(name, &[("f.py", code), ("ol.toml", manifest)])
    }

    fn worker_lives(&self) {
        assert_eq!(self.cluster.worker_pid("worker-1"), Some(self.worker), "it was started again");
    }

    /// The lines that the function has printed, once there are any that `wanted` wants.
    fn log(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = wait_for(|| {
            let lines = self.cluster.place.ol(&["logs", name, "--json"]);
            lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .find(|line| wanted(line))
        });
        found.unwrap_or_else(|| panic!("{}", self.cluster.place.ol(&["logs", name])))
    }
}

/// What a handler in Python does wrong while it runs.
const HANDLER: &str = r#"
import ctypes, json, os, signal, sys, threading, time
AFTER = []
def deep(): return deep()
def nested(depth):
    value = []
    for _ in range(depth): value = [value]
    return value
def on():
    while True:
        AFTER.append(1); print("still here"); time.sleep(0.001)
def f(event):
    if event == "good": return "well"
    if event == "not utf-8": os.write(1, b"\xff\xfe no end")
    elif event == "closes stdout": os.close(1); print("nobody reads this")
    elif event == "closes all": os.closerange(0, 3)
    elif event == "forks": [os.fork() or time.sleep(1000) for _ in range(3)]
    elif event == "forks and both return":
        if os.fork() == 0: return "I am the child"
    elif event == "ignores signals":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
        while True: pass
    elif event == "leaves": os._exit(0)
    elif event == "exits": sys.exit(0)
    elif event == "SystemExit": raise SystemExit("enough")
    elif event == "crashes": ctypes.string_at(0)
    elif event == "recursion": deep()
    elif event == "no JSON": return {1, 2}
    elif event == "too deep": return nested(100_000)
    elif event == "too large": return "x" * (7 << 20)
    elif event == "thread":
        threading.Thread(target=on, daemon=True).start()
    elif event == "thread raises":
        threading.Thread(target=deep).start()
    elif event == "closes the API": os.closerange(3, 256); return "never sent"
    return "well"
"#;

async fn handlers(kind: &str) {
    let site = Site::start(kind);
    let url = site.deploy_python("misbehaves", HANDLER, "timeout_seconds = 2");
    site.try_all(
        &url,
        &[
            replies(json!("not utf-8"), &["well"]),
            fails(json!("closes stdout"), 500, "function_error", &["Bad file descriptor"]),
            replies(json!("closes all"), &["well"]),
            replies(json!("forks"), &["well"]),
            replies(json!("forks and both return"), &["well"]),
            fails(json!("ignores signals"), 504, "timeout", &["raise timeout_seconds"]),
            fails(json!("leaves"), 502, "sandbox_crashed", &["status 0", "see the function's log"]),
            fails(json!("exits"), 500, "function_error", &["exited with 0"]),
            fails(json!("SystemExit"), 500, "function_error", &["exited with 'enough'"]),
            fails(json!("crashes"), 502, "sandbox_crashed", &["signal 11"]),
            fails(json!("recursion"), 500, "function_error", &["maximum recursion depth"]),
            fails(json!("no JSON"), 500, "function_error", &["set is not JSON serializable"]),
            fails(json!("too deep"), 500, "function_error", &["Unable to marshal", "recursion"]),
            fails(json!("too large"), 502, "bad_reply", &["over 6 MiB", "return less"]),
            replies(json!("thread"), &["well"]),
            replies(json!("thread raises"), &["well"]),
            fails(json!("closes the API"), 502, "sandbox_crashed", &["see the function's log"]),
        ],
    )
    .await;
    let line = site.log("misbehaves", |line| line["text"].as_str().unwrap().ends_with("no end"));
    assert_eq!(line["text"], "\u{fffd}\u{fffd} no end");
    site.log("misbehaves", |line| line["text"] == "still here");
    site.worker_lives();
}

/// What goes wrong before a handler is called.
async fn starts(kind: &str) {
    let site = Site::start(kind);
    let python = |name: &str, code: &str, manifest: &str| site.deploy_python(name, code, manifest);
    for (url, says) in [
        (python("raises", "raise ValueError('at import')", ""), &["ValueError", "at import"][..]),
        (python("exits", "import sys; sys.exit(0)", ""), &["f.py exited with 0"]),
        (python("leaves", "import os; os._exit(0)", ""), &["status 0 before it asked"]),
        (
            python("missing", "def f(event): pass", "runtime = \"python\"\nhandler = \"g.f\""),
            &["Unable to import module 'g'", "No module named 'g'"],
        ),
        (
            python("nameless", "def g(event): pass", ""),
            &["Handler 'f' is missing in module 'f'", "define it in f.py"],
        ),
        (
            site.cluster.deploy(
                "silent",
                &[
                    ("bootstrap", "#!/bin/sh\nexec sleep 1000\n"),
                    ("ol.toml", "timeout_seconds = 2"),
                ],
            ),
            &["did not ask for its first event", "raise timeout_seconds"],
        ),
        (
            site.cluster.deploy("ends", &[("bootstrap", "#!/bin/sh\necho bye\n")]),
            &["status 0 before it asked for its first event", "its last words: bye"],
        ),
        (
            site.cluster.deploy("no-program", &[("bootstrap", "#!/no/such/program\n")]),
            &["the file bootstrap cannot be run", "names its interpreter"],
        ),
        // The same as a deployment that goes past the check of `ol deploy`.
        (
            upload(&site, "syntax", &[("f.py", "def f(event):\n    return (\n")]).await,
            &["Syntax error in module 'f'", "f.py, line 2"],
        ),
        (
            upload(&site, "not-executable", &[("bootstrap", "#!/bin/sh\n")]).await,
            &["not executable", "chmod +x bootstrap"],
        ),
    ] {
        let answer = post(&site.client, &url, "1").await;
        fails(json!(url), 500, "init_error", says).check(&answer);
        assert_eq!(answer.header("x-openlambda-started"), "no", "{answer:?}");
    }
    let folder = site.cluster.place.function("told", &[("f.py", "def f(event):\n  return (\n")]);
    let message = site.cluster.place.fails(&["deploy", folder.to_str().unwrap()]);
    assert!(message.contains("f.py, line 2") && message.contains("never closed"), "{message}");
    let good = python("good", "def f(event): return 'well'", "");
    site.answers(&good, &json!("all of them")).await;
    site.worker_lives();
}

/// Uploads a function as a script without `ol` does. Returns its URL.
async fn upload(site: &Site, name: &str, files: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        fs::write(folder.path().join(file), text).unwrap();
    }
    let mut tar = Vec::new();
    bundle::pack_dir(folder.path(), &mut tar).unwrap();
    let url = format!("{}/registry/{name}", site.cluster.url);
    let answer = send(&inside(), http::Request::post(url).body(tar).unwrap()).await.unwrap();
    assert_eq!(answer.status, 201, "{answer:?}");
    format!("{}/run/{name}", site.cluster.url)
}

/// What a bootstrap of one's own does wrong with the Runtime API. It replies with what it was told.
const BOOTSTRAP: &str = r#"#!/usr/bin/python3
import http.client, json, os, socket, time
address = os.environ["AWS_LAMBDA_RUNTIME_API"]
def ask(method, path, body=None, headers={}):
    api = http.client.HTTPConnection(address)
    api.request(method, "/2018-06-01/runtime/" + path, body, headers)
    answer = api.getresponse()
    return answer.status, answer.headers.get("Lambda-Runtime-Aws-Request-Id"), answer.read().decode()
def respond(id, body, headers={}):
    status, _, text = ask("POST", f"invocation/{id}/response", body, headers)
    return [status, text]
def raw(data):
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)))
    answer = b""
    try:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536): answer += part
    except OSError:
        pass  # It was cut off before it had said everything.
    return answer.decode().split("\r\n")[0]
last = None
while True:
    _, id, event = ask("GET", "invocation/next")
    event = json.loads(event)
    reply = "well"
    if event == "asks twice": reply = ask("GET", "invocation/next")[::2]
    elif event == "another's": reply = respond("somebody-elses", '"stolen"')
    elif event == "the last one's": reply = respond(last, '"late"')
    elif event == "init error": reply = ask("POST", "init/error", "{}")[::2]
    elif event == "no such path": reply = [ask("GET", path)[0] for path in ("", "x", "../../internal/events", "invocation//response", "invocation/next/next")]
    elif event == "garbage":
        raw(b"GET /" + b"x" * 10_000_000)
        raw(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000)
        reply = raw(b"\x16\x03\x01 hello\r\n\r\n")
    elif event == "7 MiB": respond(id, b'"' + b"x" * (7 << 20) + b'"'); continue
    elif event == "error of 7 MiB": ask("POST", f"invocation/{id}/error", json.dumps({"errorMessage": "x" * (7 << 20)})); continue
    elif event == "no JSON": respond(id, "<html>"); continue
    elif event == "not utf-8": respond(id, b'"\xff"'); continue
    elif event == "breaks off":
        raw(f"POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf".encode())
        continue
    elif event == "twice": respond(id, '"first"'); last = respond(id, '"second"'); continue
    elif event == "what did twice get": reply, last = last, id
    elif event == "leaves": os._exit(0)
    elif event == "never answers": time.sleep(1000)
    respond(id, json.dumps(reply))
    last = id
"#;

async fn bootstraps(kind: &str) {
    let site = Site::start(kind);
    let manifest = "timeout_seconds = 2\nmax_instances = 1";
    let url = site.cluster.deploy("own", &[("bootstrap", BOOTSTRAP), ("ol.toml", manifest)]);
    site.answers(&url, &json!("nothing")).await;
    // Not followed by a good call: the next one tells what the second answer got.
    replies(json!("twice"), &["first"]).check(&post(&site.client, &url, "\"twice\"").await);
    let got = post(&site.client, &url, "\"what did twice get\"").await;
    replies(json!("twice"), &["403", "answered already"]).check(&got);
    site.try_all(
        &url,
        &[
            replies(json!("asks twice"), &["403", "answer the last invocation first"]),
            replies(json!("another's"), &["400", "InvalidRequestID"]),
            replies(json!("the last one's"), &["403", "answered already"]),
            replies(json!("init error"), &["403", "the initialisation is over"]),
            replies(json!("no such path"), &["[404, 404, 404, 405, 404]"]),
            replies(json!("garbage"), &["HTTP/1.1 400"]),
            fails(json!("7 MiB"), 502, "bad_reply", &["over 6 MiB", "return less"]),
            fails(json!("error of 7 MiB"), 500, "function_error", &["over 6 MiB"]),
            // As on AWS, what is no JSON is text, or bytes.
            replies(json!("no JSON"), &["<html>"]),
            replies(json!("not utf-8"), &["\"\u{fffd}\""]),
            fails(json!("breaks off"), 502, "sandbox_crashed", &["broke off its reply"]),
            fails(json!("leaves"), 502, "sandbox_crashed", &["status 0"]),
            fails(json!("never answers"), 504, "timeout", &["raise timeout_seconds"]),
        ],
    )
    .await;
    site.worker_lives();
}

/// A gigabyte in lines of 16 KiB, or 16 MiB without an end, of bytes that take six in JSON.
const PRINTS: &str = r#"
import os
def f(event):
    if event == "good": return "well"
    if event == "a gigabyte": piece, times = b"x" * 16383 + b"\n", 65536
    else: piece, times = b"\x01" * 16384, 1024
    for _ in range(times): os.write(1, piece)
    return "printed"
"#;

async fn prints(kind: &str) {
    let site = Site::start(kind);
    let url = site.deploy_python("prints", PRINTS, "timeout_seconds = 300");
    site.answers(&url, &json!("nothing")).await;
    let cases = ["a gigabyte", "no end"].map(|event| replies(json!(event), &["printed"]));
    site.try_all(&url, &cases).await;
    let status = fs::read_to_string(format!("/proc/{}/status", site.worker)).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 128 << 10, "the worker has taken {peak} KiB");
    let logs = site.cluster.place.data_dir().join("workers/worker-1/logs");
    let files = size(&logs);
    assert!(files > 1 << 20 && files < 40 << 20, "its log has {files} bytes");
    site.worker_lives();
}

fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.metadata().unwrap() {
        metadata if metadata.is_dir() => size(&entry.path()),
        metadata => metadata.len(),
    });
    sizes.sum()
}

/// Replies with heads that no client takes. `INSTANCE` tells instances apart.
const HEADS: &str = r#"
import os
INSTANCE = os.urandom(8).hex()
def f(event):
    kind = event.get("body")
    if kind == "long": headers = {"x": "a" * (1 << 20)}
    elif kind == "many": headers = {f"x-{n}": "a" for n in range(101)}
    elif kind == "very many": headers = {f"x-{n}": "a" for n in range(50_000)}
    elif kind == "most": headers = {f"x-{n}": "a" * 780 for n in range(79)}
    else: headers = {}
    return {"statusCode": 200, "headers": headers, "body": INSTANCE}
"#;

async fn heads(kind: &str) {
    let site = Site::start(kind);
    let url = site.deploy_python("heads", HEADS, "event = \"http\"\nmax_instances = 1");
    let first = post(&site.client, &url, "").await;
    for event in ["long", "many", "very many"] {
        let answer = post(&site.client, &url, event).await;
        let says = &["64 KiB together", "fewer"];
        fails(json!(event), 502, "bad_reply", says).check(&answer);
        // The instance lives.
        assert_eq!(post(&site.client, &url, "").await.body, first.body, "after {event}");
    }
    let most = post(&site.client, &url, "most").await;
    assert_eq!((most.status, most.header("x-78").len()), (200, 780), "{most:?}");
    site.worker_lives();
}

/// What it prints, returns and raises would change a terminal's title and clipboard, and hide a line.
const ESCAPES: &str = r#"
def f(event):
    text = "\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07hidden\rshown \x9b31m \u202e"
    print(text)
    if event == "raise": raise ValueError(text)
    return text
"#;

/// `ol` with these arguments and a terminal: what the terminal got.
fn on_a_terminal(site: &Site, args: &[&str]) -> String {
    const PTY: &str = "import pty, sys; pty.spawn(sys.argv[1:])";
    let output = std::process::Command::new("python3")
        .args(["-c", PTY, OL])
        .args(args)
        .env("OPENLAMBDA_DATA_DIR", site.cluster.place.data_dir())
        .env("TERM", "dumb")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_shown_control_characters_and_not_sent_them() {
    let site = Site::start("process");
    let bootstrap = BOOTSTRAP.replace("\"<html>\"", "b\"\\x1b]0;owned\\x07\"");
    let own = site.cluster.deploy("own", &[("bootstrap", &bootstrap)]);
    replies(json!("no JSON"), &["\x1b]0;owned"])
        .check(&post(&site.client, &own, "\"no JSON\"").await);
    let url = site.deploy_python("escapes", ESCAPES, "");
    post(&site.client, &url, "\"print\"").await;
    site.log("escapes", |line| line["text"].as_str().unwrap().starts_with('\x1b'));
    let escapes = ["escapes", "-d", "\"raise\""];
    for (args, shown) in [
        (
            &["logs", "escapes"][..],
            "\\x1b]0;owned\\x07\\x1b]52;c;b3duZWQ=\\x07hidden\\rshown \\x9b31m",
        ),
        (&["logs", "escapes", "--json"], "\\u001b]0;owned\\u0007"),
        (&["invoke", "own", "-d", "\"no JSON\""], "\\x1b]0;owned\\x07"),
        (&["invoke", escapes[0], "-d", "\"print\"", "--json"], "\\u001b]0;owned"),
        (&["invoke", escapes[0], escapes[1], escapes[2]], "ValueError"),
        (&["frob\x1b]0;owned\x07"], "unrecognized subcommand"),
        (&["ls", "--frob\u{202e}"], "\\u{202e}"),
    ] {
        let sent = on_a_terminal(&site, args);
        assert!(sent.contains(shown), "{args:?}: {sent:?}");
        let sent = sent.replace("\r\n", "\n");
        let obeyed = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
        assert_eq!(sent.chars().find(obeyed), None, "{args:?}: {sent:?}");
    }
    // A file gets what was printed.
    assert!(site.cluster.place.ol(&["logs", "escapes"]).contains("\x1b]0;owned\x07"));
    assert!(site.cluster.place.ol(&["invoke", "own", "-d", "\"no JSON\""]).starts_with('\x1b'));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_with_a_head_that_no_client_takes_is_the_function_s_fault() {
    for kind in KINDS {
        heads(kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_that_misbehave_harm_nobody() {
    for kind in KINDS {
        handlers(kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_that_cannot_start_say_why() {
    for kind in KINDS {
        starts(kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstraps_that_break_the_protocol_are_told_and_harm_nobody() {
    for kind in KINDS {
        bootstraps(kind).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_of_output_fills_neither_memory_nor_disk() {
    for kind in KINDS {
        prints(kind).await;
    }
}
