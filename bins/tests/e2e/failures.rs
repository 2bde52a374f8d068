//! What goes wrong in a function is told to its author, in its log under the call's id, and to its callers as
//! much as the author or the operator says.

use serde_json::Value;

use crate::common::{Answer, Cluster, client, post, raw, send, wait_for};

/// The text of the function's log lines of one call, once `last` is among them.
fn told(cluster: &Cluster, name: &str, id: &str, last: &str) -> String {
    let lines = wait_for(|| {
        let text = cluster.place.ol(&["logs", name, "--request-id", id]);
        text.contains(last).then_some(text)
    });
    lines.unwrap_or_else(|| panic!("{last}: {}", cluster.place.ol(&["logs", name, "--long"])))
}

const PYTHON: &str = r#"
import os, sys, time
def inner(event):
    raise ValueError("the first line\nthe second line")
def f(event):
    if event == "raises": inner(event)
    if event == "exits": sys.exit(3)
    if event == "leaves": os._exit(7)
    if event == "is killed": os.abort()
    if event == "is late": time.sleep(60)
    if event == "is no JSON": return {1}
    if event == "wants memory": return len(bytearray(512 << 20))
    return "well"
"#;

const NODE: &str = r#"
function inner() { throw new TypeError("the first line\nthe second line"); }
exports.handler = async (event) => {
    if (event === "raises") inner();
    if (event === "leaves") process.exit(7);
    if (event === "is late") await new Promise((resolve) => setTimeout(resolve, 60000));
    return "well";
};
"#;

async fn authors_are_told(kind: &str) {
    let cluster = Cluster::start(&["--workers", "1", "--sandbox", kind]);
    let client = client();
    let python = cluster.deploy("python", &[("f.py", PYTHON), ("ol.toml", "timeout_seconds = 2")]);
    let node = cluster.deploy("node", &[("index.js", NODE), ("ol.toml", "timeout_seconds = 2")]);
    let memory = ["memory_mb is 128; raise memory_mb"];
    for (name, url, event, expected) in [
        (
            "python",
            &python,
            "raises",
            &["function_error: ValueError: the first line", "the second line", "in inner"][..],
        ),
        ("python", &python, "exits", &["Runtime.ExitError: The handler exited with 3"]),
        ("python", &python, "leaves", &["sandbox_crashed: the instance exited with status 7"]),
        ("python", &python, "is killed", &["sandbox_crashed: the instance was ended by signal 6"]),
        ("python", &python, "is late", &["timeout: ", "raise timeout_seconds"]),
        ("python", &python, "is no JSON", &["Runtime.MarshalError: Unable to marshal response"]),
        ("python", &python, "wants memory", &memory),
        (
            "node",
            &node,
            "raises",
            &["function_error: TypeError: the first line", "the second line", "at inner"],
        ),
        ("node", &node, "leaves", &["The handler called process.exit with 7"]),
        ("node", &node, "is late", &["timeout: ", "raise timeout_seconds"]),
    ] {
        if kind == "process" && event == "wants memory" {
            // It keeps no limit of memory.
            continue;
        }
        let answer = post(&client, url, &serde_json::to_string(event).unwrap()).await;
        assert!(answer.status >= 500, "{event}: {answer:?}");
        let id = answer.header("x-openlambda-request-id");
        let text = told(&cluster, name, id, expected.last().unwrap());
        for part in expected {
            assert!(text.contains(part), "{kind}, {event}: {part:?} is not in {text}");
        }
        // Once: what the worker does to what is late, say, is no failure of its own.
        let codes = ["function_error", "sandbox_crashed", "timeout", "out_of_memory", "bad_reply"];
        let is_first =
            |line: &&str| codes.iter().any(|code| line.starts_with(&format!("{code}: ")));
        assert_eq!(text.lines().filter(is_first).count(), 1, "{kind}, {event}: {text}");
        let answer = post(&client, url, "\"good\"").await;
        assert_eq!((answer.status, &*answer.body), (200, "\"well\""), "after {event}");
    }
    // So is what goes wrong before any call, to the call that waited for it.
    let broken =
        cluster.deploy("broken", &[("f.py", "import sys\ndef g(): raise KeyError('k')\ng()\n")]);
    let answer = post(&client, &broken, "1").await;
    let text = told(&cluster, "broken", answer.header("x-openlambda-request-id"), "in g");
    assert!(text.starts_with("init_error: KeyError: 'k'"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_s_failures_are_in_its_log_in_sock() {
    authors_are_told("sock").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_s_failures_are_in_its_log_in_process() {
    authors_are_told("process").await;
}

const SECRETIVE: &str = r#"
def f(event):
    if event == "streams": return stream()
    password = "hunter2"
    raise ValueError("no luck\nthe password is " + password)
def stream():
    yield "some "
    yield "text"
    raise ValueError("no luck")
"#;

/// What a failure's JSON says: its message, its type, and whether there is a stack.
fn said(answer: &Answer) -> (String, Value, bool) {
    let body = answer.json();
    assert_eq!(body["request_id"], answer.header("x-openlambda-request-id"));
    (
        body["message"].as_str().unwrap().to_owned(),
        body["type"].clone(),
        body["stack_trace"][0].is_string(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_are_told_as_much_as_the_author_or_the_operator_says() {
    let all = "ValueError: no luck\nthe password is hunter2";
    let client = client();
    let starts = "import sys\nprint('hunter2', file=sys.stderr)\nimport os\nos._exit(3)\n";
    for (flags, full) in [(&[][..], true), (&["--error-detail", "type"], false)] {
        let args = [&["--workers", "1", "--sandbox", "process"], flags].concat();
        let cluster = Cluster::start(&args);
        let deploy = |name: &str, manifest: &str| {
            cluster.deploy(name, &[("f.py", SECRETIVE), ("ol.toml", manifest)])
        };
        for (url, full) in [
            (deploy("plain", ""), full),
            (deploy("open", "[errors]\ndetail = \"full\""), true),
            (deploy("closed", "[errors]\ndetail = \"type\""), false),
        ] {
            let answer = post(&client, &url, "1").await;
            let message = if full { all } else { "ValueError: no luck" };
            assert_eq!(said(&answer), (message.into(), "ValueError".into(), full), "{url}");
            assert_eq!(answer.body.contains("hunter2"), full, "{answer:?}");
        }
        let id = post(&client, &format!("{}/run/closed", cluster.url), "1").await;
        let text = told(&cluster, "closed", id.header("x-openlambda-request-id"), "hunter2");
        assert!(text.contains("in f"), "the author is told everything: {text}");
        let ends = cluster.deploy("ends", &[("f.py", starts)]);
        let answer = post(&client, &ends, "1").await;
        assert_eq!((answer.status, answer.body.contains("hunter2")), (500, full), "{answer:?}");
        assert!(said(&answer).0.contains("exited with status 3 before it asked"), "{answer:?}");
    }
}

/// A reply that fails midway is a broken transfer, so that nobody takes it for whole; who takes trailers is
/// told in them instead.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_fails_midway_is_seen_to_fail() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let url = cluster.deploy("streams", &[("f.py", SECRETIVE)]);
    let request = http::Request::post(&url).body("\"streams\"").unwrap();
    let error = send(&client(), request).await;
    assert!(error.is_err(), "{error:?}");
    let ask = |headers: &str| {
        raw(
            cluster.address(),
            format!(
                "POST /run/streams HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n{headers}\r\n\
                 \"streams\""
            )
            .as_bytes(),
        )
    };
    // The last chunk, of length 0, never comes.
    let answer = ask("");
    assert!(answer.contains("text\r\n") && !answer.contains("0\r\n\r\n"), "{answer}");
    let answer = ask("TE: trailers\r\nConnection: TE, close\r\n").to_ascii_lowercase();
    let trailers = answer.split_once("text\r\n0\r\n").map(|(_, trailers)| trailers);
    let trailers = trailers.unwrap_or_else(|| panic!("{answer}"));
    assert!(trailers.contains("x-openlambda-error: function\r\n"), "{answer}");
    assert!(trailers.contains("x-openlambda-failure: function_error\r\n"), "{answer}");
    let id = answer.split_once("x-openlambda-request-id: ").unwrap().1;
    let text = told(&cluster, "streams", id.split("\r\n").next().unwrap(), "in stream");
    assert!(text.contains("function_error: ValueError: no luck"), "{text}");
}

const PRINTS: &str = r#"
import os, sys, time
def f(event):
    if event == "captures":
        ours, theirs = os.pipe(), os.dup(1)
        os.dup2(ours[1], 1)
        for n in range(20):
            print("captured", n)
            print("beside", n, file=sys.stderr)
        os.dup2(theirs, 1)
        return os.read(ours[0], 1000).decode()
    if event == "both":
        for n in range(100):
            print("out", n)
            print("err", n, file=sys.stderr)
        return
    if event == "half":
        # Half of a character, which nobody can encode.
        print("\ud83d", end="")
        return
    print("begins", event)
    print("in", end=" ")
    time.sleep(0.3)
    print("between", event, file=sys.stderr)
    print("parts", event)
"#;

const PRINTS_ASGI: &str = r#"
import asyncio
async def app(scope, receive, send):
    if scope["type"] != "http": return
    event = (await receive())["body"].decode().strip('"')
    print("begins", event)
    print("in", end=" ")
    await asyncio.sleep(0.3)
    print("parts", event)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"null"})
"#;

const PRINTS_NODE: &str = r#"
exports.handler = async (event) => {
    if (event === "both") {
        for (let n = 0; n < 100; n++) {
            console.log("out", n);
            console.error("err", n);
        }
        return;
    }
    console.log("begins", event);
    process.stdout.write("in ");
    await new Promise((resolve) => setTimeout(resolve, 300));
    console.error("between", event);
    console.log("parts", event);
};
"#;

/// The log has the lines of one call in the order in which it printed them, to whichever stream; and calls that
/// overlap in one instance have each their own.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_the_order_of_a_call_s_lines_and_whose_they_are() {
    for kind in ["sock", "process"] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", kind]);
        let client = client();
        let url = cluster.deploy("prints", &[("f.py", PRINTS)]);
        let node = cluster.deploy("prints-node", &[("index.js", PRINTS_NODE)]);
        for (name, url) in [("prints", &url), ("prints-node", &node)].repeat(3) {
            let id = post(&client, url, "\"both\"").await;
            let text = told(&cluster, name, id.header("x-openlambda-request-id"), "err 99");
            let expected: String = (0..100).map(|n| format!("out {n}\nerr {n}\n")).collect();
            assert_eq!(text, expected, "{kind} {name}");
        }
        // What a function has put into the place of its output is none of ours.
        let captured = post(&client, &url, "\"captures\"").await;
        let expected: String = (0..20).map(|n| format!("captured {n}\n")).collect();
        assert_eq!(captured.json(), expected.as_str());
        let manifest = "concurrency = 4\nmax_instances = 1\n";
        let threads = cluster.deploy("threads", &[("f.py", PRINTS), ("ol.toml", manifest)]);
        let asgi = format!("{manifest}style = \"asgi\"\n");
        let tasks = cluster.deploy("tasks", &[("app.py", PRINTS_ASGI), ("ol.toml", &asgi)]);
        // What one call prints ends no other.
        let (half, whole) =
            tokio::join!(post(&client, &threads, "\"half\""), post(&client, &threads, "\"call\""));
        assert_eq!((half.status, whole.status), (200, 200), "{half:?} {whole:?}");
        let loops = cluster.deploy("loops", &[("index.js", PRINTS_NODE), ("ol.toml", manifest)]);
        for (name, url) in [("threads", threads), ("tasks", tasks), ("loops", loops)] {
            let bodies: Vec<String> = (0..12).map(|n| format!("\"call {n}\"")).collect();
            let calls = bodies.iter().map(|body| post(&client, &url, body));
            for (n, answer) in futures_util::future::join_all(calls).await.iter().enumerate() {
                assert_eq!(answer.status, 200, "{answer:?}");
                let id = answer.header("x-openlambda-request-id");
                let text = told(&cluster, name, id, "parts");
                let own = format!("call {n}");
                assert!(text.contains(&format!("begins {own}\n")), "{kind} {name}: {text}");
                assert!(text.contains(&format!("in parts {own}\n")), "{kind} {name}: {text}");
                assert!(text.lines().all(|line| line.ends_with(&own)), "{kind} {name}: {text}");
                assert_eq!(text.lines().count(), if name == "tasks" { 2 } else { 3 }, "{text}");
            }
        }
    }
}
