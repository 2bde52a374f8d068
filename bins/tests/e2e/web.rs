//! Web applications in Python, through balancer and worker.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;

use crate::common::{Answer, Cluster, HttpClient, client, raw, send, texts};

async fn get(client: &HttpClient, url: &str) -> Answer {
    send(client, http::Request::get(url).body("").unwrap()).await.unwrap()
}

/// Tells where it is, and sets two cookies.
const WHERE: &str = r#"
def app(environ, start_response):
    cookies = [("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2")]
    start_response("203 Here", [("Content-Type", "text/plain"), *cookies])
    return [environ["SCRIPT_NAME"].encode(), b" ", environ["PATH_INFO"].encode(), b" ",
            environ["HTTP_HOST"].encode(), b" ", environ["REMOTE_ADDR"].encode()]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_application_knows_where_it_is_whatever_it_is_called_by() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let files = [("app.py", WHERE), ("ol.toml", "style = \"wsgi\"")];
    let folder = cluster.place.function("here", &files);
    cluster.place.ol(&["deploy", folder.to_str().unwrap()]);
    cluster.place.ol(&["alias", "here", "live", "1"]);
    cluster.place.ol(&["deploy", folder.to_str().unwrap(), "--name", "team/there"]);
    let host = cluster.address();
    for (target, expected) in [
        ("/run/here", "/run/here /"),
        ("/run/here/", "/run/here /"),
        ("/run/here/a/b", "/run/here /a/b"),
        ("/runLambda/here/a", "/runLambda/here /a"),
        ("/run/here:live/a", "/run/here:live /a"),
        ("/run/here:1", "/run/here:1 /"),
        ("/ns/team/run/there/a", "/ns/team/run/there /a"),
    ] {
        let answer = get(&client, &format!("{}{target}", cluster.url)).await;
        assert_eq!(answer.status, 203);
        assert_eq!(answer.body, format!("{expected} {host} 127.0.0.1"), "{target}");
        let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1; Path=/", "b=2"]);
        assert_eq!(answer.header("content-type"), "text/plain");
    }
    let head = http::Request::head(format!("{}/run/here", cluster.url)).body("").unwrap();
    let head = send(&client, head).await.unwrap();
    assert_eq!((head.status, &*head.body), (203, ""));
}

/// Declares a length that is not always that of what it sends.
const LENGTHS: &str = r#"
def app(environ, start_response):
    path = environ["PATH_INFO"]
    length = {"/exact": 2_000_000, "/long": 1_000_000, "/small": 10}.get(path, 3_000_000)
    start_response("200 OK", [("Content-Length", str(length))])
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    if path == "/small":
        return [b"short"]
    return iter([b"x" * 1_000_000, b"y" * 1_000_000])
"#;

const ASGI_LENGTHS: &str = r#"
async def app(scope, receive, send):
    length = next((n for end, n in [("/exact", 2_000_000), ("/long", 1_000_000), ("/small", 10)] if scope["path"].endswith(end)), 3_000_000)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(length).encode())]})
    if scope["path"].endswith("/small"):
        return await send({"type": "http.response.body", "body": b"short"})
    if scope["method"] != "HEAD":
        await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"y" * 1_000_000, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
"#;

/// What a client sees of a reply whose application has declared its length: that length, whatever follows.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_an_application_declares_is_kept() {
    for sandbox in ["sock", "process"] {
        let cluster = Cluster::start(&["--workers", "1", "--sandbox", sandbox]);
        cluster.deploy("wsgi", &[("app.py", LENGTHS), ("ol.toml", "style = \"wsgi\"")]);
        cluster.deploy("asgi", &[("app.py", ASGI_LENGTHS), ("ol.toml", "style = \"asgi\"")]);
        let ask = |method: &str, target: &str| {
            let request =
                format!("{method} /run/{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = raw(cluster.address(), request.as_bytes());
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            (length.expect("a length").parse::<usize>().unwrap(), body.len())
        };
        for style in ["wsgi", "asgi"] {
            for (path, length, sent) in [
                ("short", 3_000_000, 2_000_000),
                ("exact", 2_000_000, 2_000_000),
                ("long", 1_000_000, 1_000_000),
                ("small", 10, 5),
            ] {
                let target = format!("{style}/{path}");
                // A whole piece may be lost with the connection that breaks.
                let (told, came) = ask("GET", &target);
                assert_eq!((told, came), (length, sent), "{sandbox} {target}");
            }
            assert_eq!(ask("HEAD", &format!("{style}/any")), (3_000_000, 0), "{sandbox} {style}");
        }
        let log = cluster.place.ol(&["logs", "wsgi"]);
        assert!(log.contains("2000000 bytes and its Content-Length says 3000000"), "{log}");
    }
}

/// Its second piece is made when another request has come.
const STREAMER: &str = r#"
import asyncio

gate = asyncio.Event()

async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]})
    if scope["path"].endswith("/open"):
        gate.set()
    elif scope["path"].endswith("/breaks"):
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        raise ValueError("as asked")
    else:
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        await gate.wait()
        await send({"type": "http.response.body", "body": b"second", "more_body": True})
    await send({"type": "http.response.body", "body": b""})
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_each_piece_when_it_is_sent() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let manifest = ("ol.toml", "style = \"asgi\"\nconcurrency = 2");
    let url = cluster.deploy("streamer", &[("app.py", STREAMER), manifest]);
    let mut stream = TcpStream::connect(cluster.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
        .write_all(b"GET /run/streamer HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(6).any(|window| window == b"first ") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended early: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(get(&client(), &format!("{url}/open")).await.status, 200);
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("second") && answer.ends_with("0\r\n\r\n"), "{answer}");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-a: 1"), "{answer}");

    // One that breaks off is not taken for a whole one, and the next is answered.
    let request = b"GET /run/streamer/breaks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let broken = raw(cluster.address(), request);
    assert!(broken.contains("first") && !broken.ends_with("0\r\n\r\n"), "{broken}");
    assert_eq!(get(&client(), &format!("{url}/open")).await.status, 200);
}

/// In the Go project's form, and in ours: each call finds the instance's variables as they were at first.
#[tokio::test(flavor = "multi_thread")]
async fn without_reuse_each_call_has_a_fresh_sandbox() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let client = client();
    let code = "calls = 0\ndef f(event):\n    global calls\n    calls += 1\n    return calls\n";
    let app = "calls = 0\ndef app(environ, start_response):\n    global calls\n    calls += 1\n    \
               start_response('200 OK', [])\n    for piece in 'calls: ', str(calls):\n        \
               yield piece.encode()\n";
    let yaml = ("ol.yaml", "triggers:\n  http:\n    - method: post\nreuse-sandbox: false\n");
    for (name, files, expected) in [
        ("yaml", [("f.py", code), yaml], "1"),
        ("toml", [("f.py", code), ("ol.toml", "reuse = false")], "1"),
        ("streamed", [("f.py", app), ("ol.toml", "style = \"wsgi\"\nreuse = false")], "calls: 1"),
    ] {
        let url = cluster.deploy(name, &files);
        for _ in 0..3 {
            let answer = crate::common::post(&client, &url, "").await;
            assert_eq!((answer.status, &*answer.body), (200, expected), "{name}");
            assert_eq!(answer.header("x-openlambda-start"), "cold");
        }
    }
    let refused = get(&client, &format!("{}/run/yaml", cluster.url)).await;
    assert_eq!((refused.status, refused.header("allow")), (405, "POST"));
    let folder = cluster.place.function("yaml", &[("ol.yaml", "triggers:\n  htp: []\n")]);
    let error = cluster.place.fails(&["deploy", folder.to_str().unwrap()]);
    let expected = "ol.yaml, line 2: unknown key \"htp\"; did you mean \"http\"?";
    assert!(error.contains(expected), "{error}");
}

/// Installs packages of PyPI's beside a function's code.
pub fn install(folder: &Path, packages: &[&str]) {
    let installed = Command::new("/usr/bin/python3")
        .args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-compile"])
        .arg("--target")
        .arg(folder)
        .args(packages)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(installed.status.success(), "pip: {:?}", texts(&installed));
}

/// As its documentation begins, and with what real ones use: a blueprint, a session, a stream.
const FLASK: &str = r#"
from flask import Blueprint, Flask, jsonify, request, session, stream_with_context, url_for
from markupsafe import escape

app = Flask(__name__)
app.secret_key = "not a secret"
blog = Blueprint("blog", __name__, url_prefix="/blog")

@app.route("/hello/<name>")
def hello(name):
    return f"Hello, {escape(name)}!"

@app.route("/json", methods=["POST"])
def echo():
    return jsonify(got=request.get_json(), url=url_for("blog.page", number=7))

@app.route("/upload", methods=["POST"])
def upload():
    return request.files["file"].read().upper()

@app.route("/login", methods=["POST"])
def login():
    session["user"] = request.form["user"]
    return "", 204

@app.route("/whoami")
def whoami():
    return session.get("user", "nobody")

@app.route("/stream")
def stream():
    return app.response_class(stream_with_context(f"{n}\n" for n in range(3)), mimetype="text/plain")

@app.route("/raises")
def raises():
    return 1 / 0

@blog.route("/<int:number>")
def page(number):
    return f"page {number}"

app.register_blueprint(blog)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn flask_runs_unchanged() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let files = [("app.py", FLASK), ("ol.toml", "style = \"wsgi\"\nconcurrency = 4")];
    let folder = cluster.place.function("flask-app", &files);
    install(&folder, &["flask==3.1.2"]);
    let url = cluster.place.ol(&["deploy", folder.to_str().unwrap()]).trim().to_owned();
    let client = client();
    let post = async |path: &str, kind: &str, body: &str| {
        let request = http::Request::post(format!("{url}{path}")).header("content-type", kind);
        send(&client, request.body(body.to_owned()).unwrap()).await.unwrap()
    };
    assert_eq!(get(&client, &format!("{url}/hello/Zo%C3%AB")).await.body, "Hello, Zoë!");
    assert_eq!(get(&client, &format!("{url}/blog/3")).await.body, "page 3");
    let json = post("/json", "application/json", r#"{"a": [1]}"#).await.json();
    assert_eq!(json, serde_json::json!({"got": {"a": [1]}, "url": "/run/flask-app/blog/7"}));
    let form = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n\
                text\r\n--b--\r\n";
    assert_eq!(post("/upload", "multipart/form-data; boundary=b", form).await.body, "TEXT");
    let login = post("/login", "application/x-www-form-urlencoded", "user=Ada").await;
    assert_eq!((login.status, &*login.body), (204, ""));
    let cookie = login.header("set-cookie").split(';').next().unwrap().to_owned();
    let whoami = http::Request::get(format!("{url}/whoami")).header("cookie", cookie);
    assert_eq!(send(&client, whoami.body("").unwrap()).await.unwrap().body, "Ada");
    assert_eq!(get(&client, &format!("{url}/whoami")).await.body, "nobody");
    assert_eq!(get(&client, &format!("{url}/stream")).await.body, "0\n1\n2\n");
    assert_eq!(get(&client, &format!("{url}/none")).await.status, 404);
    let wrong = http::Request::get(format!("{url}/json")).body("").unwrap();
    let wrong = send(&client, wrong).await.unwrap();
    assert_eq!(wrong.status, 405);
    assert!(wrong.header("allow").contains("POST"), "{wrong:?}");
    // Flask makes a page of an exception, and logs it.
    assert_eq!(get(&client, &format!("{url}/raises")).await.status, 500);
    let logged = crate::common::wait_for(|| {
        let log = cluster.place.ol(&["logs", "flask-app"]);
        log.contains("ZeroDivisionError").then_some(())
    });
    assert!(logged.is_some(), "the exception is in the log");
}

/// As its documentation begins, with a lifespan, validation, a stream and a background task.
const FASTAPI: &str = r#"
import asyncio
from contextlib import asynccontextmanager

from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

done = []

@asynccontextmanager
async def lifespan(app):
    app.state.started = True
    yield

app = FastAPI(lifespan=lifespan)
there, both = 0, asyncio.Event()

class Item(BaseModel):
    name: str
    price: float

@app.get("/items/{number}")
async def item(number: int, q: str | None = None):
    return {"number": number, "q": q, "started": app.state.started}

@app.post("/items")
def make(item: Item):
    return item

@app.get("/stream")
async def stream():
    async def pieces():
        for n in range(3):
            yield f"{n}\n"
    return StreamingResponse(pieces(), media_type="text/plain")

@app.get("/meet")
async def meet():
    global there
    there += 1
    if there == 2:
        both.set()
    await both.wait()
    return "met"

@app.get("/later")
async def later(tasks: BackgroundTasks):
    tasks.add_task(done.append, 1)
    return len(done)

@app.middleware("http")
async def count(request: Request, call_next):
    response = await call_next(request)
    response.headers["x-path"] = request.url.path
    return response
"#;

#[tokio::test(flavor = "multi_thread")]
async fn fastapi_runs_unchanged() {
    let cluster = Cluster::start(&["--workers", "1"]);
    let files = [("main.py", FASTAPI), ("ol.toml", "style = \"asgi\"\nconcurrency = 8")];
    let folder = cluster.place.function("fast", &files);
    install(&folder, &["fastapi==0.121.0"]);
    let url = cluster.place.ol(&["deploy", folder.to_str().unwrap()]).trim().to_owned();
    let client = client();
    let item = get(&client, &format!("{url}/items/3?q=x")).await;
    assert_eq!(item.json(), serde_json::json!({"number": 3, "q": "x", "started": true}));
    assert_eq!(item.header("x-path"), "/run/fast/items/3");
    let wrong = get(&client, &format!("{url}/items/three")).await;
    assert_eq!((wrong.status, &wrong.json()["detail"][0]["loc"][1]), (422, &"number".into()));
    let post = http::Request::post(format!("{url}/items"))
        .header("content-type", "application/json")
        .body(r#"{"name": "tea", "price": 2.5}"#)
        .unwrap();
    let made = send(&client, post).await.unwrap().json();
    assert_eq!(made, serde_json::json!({"name": "tea", "price": 2.5}));
    assert_eq!(get(&client, &format!("{url}/stream")).await.body, "0\n1\n2\n");
    let meet = format!("{url}/meet");
    for met in join_all([get(&client, &meet), get(&client, &meet)]).await {
        assert_eq!(met.body, "\"met\"");
    }
    // Its pages find each other below the function's path.
    assert!(get(&client, &format!("{url}/docs")).await.body.contains("/run/fast/openapi.json"));
    let schema = get(&client, &format!("{url}/openapi.json")).await.json();
    assert_eq!(schema["servers"][0]["url"], "/run/fast");
    let later = format!("{url}/later");
    assert_eq!(get(&client, &later).await.body, "0");
    let done = crate::common::wait_for(|| {
        let output = cluster.place.ol(&["invoke", "fast", "-X", "GET", "--path", "/later"]);
        (output.trim() != "0").then_some(())
    });
    assert!(done.is_some(), "the background task never ran");
}
