//! WSGI: PEP 3333.

use http::Method;
use openlambda_core::failure::FailureKind;
use serde_json::json;

use crate::{broken, get, kinds, piece, post, request, send, told};

const MANIFEST: (&str, &str) = ("ol.toml", "style = \"wsgi\"\nhandler = \"app.app\"");
const TWO_SLOTS: (&str, &str) =
    ("ol.toml", "style = \"wsgi\"\nhandler = \"app.app\"\nconcurrency = 2");

/// Tells its environ.
const MIRROR: &str = r#"
import json

def app(environ, start_response):
    known = {key: value for key, value in environ.items() if isinstance(value, (str, bool, tuple))}
    known["id"] = environ["openlambda.context"].aws_request_id
    known["left"] = environ["openlambda.context"].get_remaining_time_in_millis() > 0
    known["read"] = environ["wsgi.input"].read().decode("latin-1")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(known).encode()]
"#;

#[tokio::test]
async fn a_request_is_there_as_it_came() {
    kinds(&[("app.py", MIRROR), MANIFEST])
        .each(async |sandbox, _| {
            let headers: &[(&str, &[u8])] = &[
                ("host", b"example.org:8443"),
                ("x-forwarded-proto", b"https"),
                ("x-forwarded-for", b"10.1.2.3, 127.0.0.1"),
                ("content-type", b"text/x-a"),
                ("content-length", b"3"),
                ("cookie", b"a=1"),
                ("cookie", b"b=2"),
                ("x-two", b"one"),
                ("x-two", b"tw\xff"),
                ("x_two", b"spoofed"),
            ];
            let path = "/a%20b/%C3%BC/%zz%2/c%2Fd?x=%20&y=\u{fc}";
            let seen = send(sandbox, request(Method::PUT, path, headers, b"\x00\xff\n")).await;
            let environ = seen.json();
            for (key, value) in [
                ("REQUEST_METHOD", "PUT"),
                ("SCRIPT_NAME", "/run/app one"),
                ("PATH_INFO", "/a b/\u{c3}\u{bc}/%zz%2/c/d"),
                ("QUERY_STRING", "x=%20&y=\u{c3}\u{bc}"),
                ("CONTENT_TYPE", "text/x-a"),
                ("CONTENT_LENGTH", "3"),
                ("SERVER_NAME", "example.org"),
                ("SERVER_PORT", "8443"),
                ("SERVER_PROTOCOL", "HTTP/1.1"),
                ("REMOTE_ADDR", "10.1.2.3"),
                ("HTTP_HOST", "example.org:8443"),
                ("HTTP_COOKIE", "a=1; b=2"),
                ("HTTP_X_TWO", "one,tw\u{ff}"),
                ("wsgi.url_scheme", "https"),
                ("read", "\u{0}\u{ff}\n"),
                ("id", "the-id"),
            ] {
                assert_eq!(environ[key], value, "{key}: {environ}");
            }
            assert_eq!(environ["wsgi.version"], json!([1, 0]));
            assert_eq!(environ["wsgi.multithread"], false);
            assert_eq!(
                (&environ["wsgi.run_once"], &environ["left"]),
                (&json!(false), &json!(true))
            );
            let keys = environ.as_object().unwrap();
            assert!(!keys.contains_key("HTTP_CONTENT_LENGTH"), "{environ}");

            let plain = send(sandbox, get("/")).await.json();
            assert_eq!((&plain["PATH_INFO"], &plain["QUERY_STRING"]), (&json!("/"), &json!("")));
            assert_eq!(plain["wsgi.url_scheme"], "http");
            assert!(!plain.as_object().unwrap().contains_key("CONTENT_LENGTH"), "{plain}");
        })
        .await;
}

/// Its path says how it answers.
const ANSWERS: &str = r#"
import sys, threading
from http import HTTPStatus

closed = []
both = threading.Barrier(2, timeout=30)

class Pieces:
    def __init__(self, *pieces):
        self.pieces = pieces
    def __iter__(self):
        return iter(self.pieces)
    def close(self):
        closed.append(len(self.pieces))

def app(environ, start_response):
    path = environ["PATH_INFO"]
    text = ("Content-Type", "text/plain")
    if path == "/cookies":
        start_response("404 Not Here", [("Set-Cookie", "a=1"), ("set-cookie", "b=\xff"), ("Connection", "close")])
        return [b"none"]
    if path == "/echo":
        start_response("200 OK", [text])
        return [environ["wsgi.input"].read()]
    if path == "/lines":
        start_response("200 OK", [text])
        return reversed([line.upper() for line in environ["wsgi.input"]])
    if path == "/pieces":
        start_response("200 OK", [text])
        return Pieces(b"a", b"", b"b")
    if path == "/closed":
        start_response("200 OK", [text])
        return [str(closed).encode()]
    if path == "/nothing":
        start_response("204 No Content", [])
        return Pieces(b"never sent")
    if path == "/empty":
        start_response("200 OK", [text])
        return []
    if path == "/length":
        start_response("200 OK", [("Content-Length", "5")])
        return Pieces(b"whole")
    if path == "/large":
        start_response("200 OK", [])
        return [b"x" * (9 << 20)]
    if path == "/write":
        write = start_response("200 OK", [])
        write(b"first ")
        write(b"second ")
        return [b"third"]
    if path == "/late":
        def late():
            start_response("203 Late", [])
            yield b"late"
        return late()
    if path == "/stream":
        def stream():
            yield b"first"
            both.wait()
            yield b"second"
        start_response("200 OK", [text])
        return stream()
    if path == "/go":
        both.wait()
        start_response("200 OK", [])
        return [b"gone"]
    if path == "/replaced":
        start_response("200 OK", [("X-A", "1")])
        try:
            raise ValueError("before anything was sent")
        except ValueError:
            start_response("500 Sorry", [("X-B", "2")], sys.exc_info())
        return [b"an error page"]
    if path == "/too-late":
        def stream():
            yield b"first"
            yield b"second"
            try:
                raise ValueError("after the first pieces")
            except ValueError:
                start_response("500 Sorry", [], sys.exc_info())
        start_response("200 OK", [])
        return stream()
    if path == "/raises":
        raise KeyError("no such path")
    if path == "/breaks":
        def stream():
            yield b"first"
            print("about to break")
            raise LookupError("in the middle")
        start_response("200 OK", [])
        return stream()
    if path == "/no-start":
        return [b"data"]
    if path == "/returns-at-once":
        return []
    if path == "/twice":
        start_response("200 OK", [])
        start_response("200 OK", [])
    if path == "/text":
        start_response("200 OK", [])
        return ["text"]
    if path == "/header":
        start_response("200 OK", [("X-A", "b\r\nX-C: d")])
    if path == "/header-name":
        start_response("200 OK", [("X A", "b")])
    if path == "/status":
        start_response("fine", [])
    if path == "/headers":
        start_response("200 OK", [("X-A", "a" * 70000)])
    if path == "/exits":
        raise SystemExit(3)
"#;

#[tokio::test]
async fn replies_are_what_the_application_sends() {
    kinds(&[("app.py", ANSWERS), MANIFEST])
        .each(async |sandbox, _| {
            let seen = send(sandbox, get("/cookies")).await;
            assert_eq!((seen.status, seen.text()), (404, "none"));
            assert_eq!(seen.all("set-cookie"), [&b"a=1"[..], b"b=\xff"]);
            assert!(!seen.headers.contains_key("connection"), "{seen:?}");
            assert!(!seen.headers.contains_key("content-type"), "nothing is added: {seen:?}");

            let every: Vec<u8> = (0..=255).cycle().take(6 << 20).collect();
            assert!(send(sandbox, post("/echo", &every)).await.body == every, "not the same bytes");
            assert_eq!(send(sandbox, post("/lines", b"a\nb\n")).await.text(), "B\nA\n");

            assert_eq!(send(sandbox, get("/pieces")).await.text(), "ab");
            let nothing = send(sandbox, get("/nothing")).await;
            assert_eq!((nothing.status, nothing.text()), (204, ""));
            assert_eq!(send(sandbox, get("/length")).await.text(), "whole");
            let head = send(sandbox, request(Method::HEAD, "/pieces", &[], b"")).await;
            assert_eq!((head.status, head.text()), (200, ""));
            assert_eq!(send(sandbox, get("/closed")).await.text(), "[3, 1, 1, 3]");
            assert_eq!(send(sandbox, get("/empty")).await.text(), "");
            let large = send(sandbox, get("/large")).await;
            assert_eq!((large.status, large.body.len()), (200, 9 << 20));
            assert_eq!(send(sandbox, get("/write")).await.text(), "first second third");
            let late = send(sandbox, get("/late")).await;
            assert_eq!((late.status, late.text()), (203, "late"));
            let replaced = send(sandbox, get("/replaced")).await;
            assert_eq!((replaced.status, replaced.text()), (500, "an error page"));
            assert!(!replaced.headers.contains_key("x-a") && replaced.headers["x-b"] == "2");
        })
        .await;
}

#[tokio::test]
async fn pieces_are_sent_before_the_next_ones_are_made() {
    kinds(&[("app.py", ANSWERS), TWO_SLOTS])
        .each(async |sandbox, _| {
            let mut reply = sandbox.invoke(get("/stream")).await.unwrap();
            assert_eq!(reply.status, 200);
            assert_eq!(piece(&mut reply).await, "first");
            // The second piece is made only when this request, in the other slot, has come.
            assert_eq!(send(sandbox, get("/go")).await.text(), "gone");
            assert_eq!(piece(&mut reply).await, "second");
            assert!(reply.done.await.failure.is_none());
        })
        .await;
}

#[tokio::test]
async fn what_goes_wrong_is_told_and_the_next_request_is_answered() {
    kinds(&[("app.py", ANSWERS), MANIFEST])
        .each(async |sandbox, kinds| {
            let error = told(sandbox, get("/raises")).await;
            assert_eq!((&*error.kind, &*error.message), ("KeyError", "'no such path'"));
            let stack = error.stack_trace.join("");
            assert!(stack.contains("app.py") && stack.contains("in app"), "{stack}");
            assert!(!stack.contains("web.py") && !stack.contains("bootstrap"), "{stack}");
            for (path, kind, message) in [
                ("/no-start", "AssertionError", "before it called start_response"),
                ("/returns-at-once", "RuntimeError", "without calling start_response"),
                ("/twice", "AssertionError", "a second time"),
                ("/text", "TypeError", "str, not bytes; encode it"),
                ("/header", "ValueError", "the header X-A holds control characters"),
                ("/header-name", "ValueError", "'X A' cannot be the name of a header"),
                ("/status", "ValueError", "'200 OK'"),
                ("/headers", "ValueError", "over 64 KiB"),
            ] {
                let error = told(sandbox, get(path)).await;
                assert_eq!(error.kind, kind, "{path}: {error:?}");
                assert!(error.message.contains(message), "{path}: {error:?}");
            }
            for (path, message) in [
                ("/breaks", "LookupError: in the middle"),
                ("/too-late", "ValueError: after the first pieces"),
            ] {
                let reply = sandbox.invoke(get(path)).await.unwrap();
                assert_eq!(reply.status, 200);
                let (why, completion) = broken(reply).await;
                assert_eq!(why, message);
                assert!(completion.reusable, "{completion:?}");
                let failure = completion.failure.unwrap();
                assert_eq!(failure.kind, FailureKind::FunctionError);
                assert!(failure.function_error.unwrap().stack_trace.join("").contains("app.py"));
            }
            assert!(kinds.lines().iter().any(|line| line == "about to break"));
            assert_eq!(send(sandbox, get("/closed")).await.text(), "[]");

            let error = sandbox.invoke(get("/exits")).await.unwrap_err();
            assert!(!error.reusable && error.message.contains("exited with 3"), "{error}");
        })
        .await;
}

/// The standard library's judge of both sides, application and server.
#[tokio::test]
async fn the_validator_of_the_standard_library_has_nothing_to_say() {
    let code = r#"
from wsgiref.validate import validator

def plain(environ, start_response):
    size = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(size)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body, b"!"]

app = validator(plain)
"#;
    kinds(&[("app.py", code), MANIFEST])
        .each(async |sandbox, kinds| {
            assert_eq!(send(sandbox, get("/")).await.text(), "!");
            assert_eq!(send(sandbox, post("/a?b", b"body")).await.text(), "body!");
            assert_eq!(send(sandbox, request(Method::HEAD, "/", &[], b"")).await.text(), "");
            assert_eq!(kinds.lines(), [""; 0], "nothing is printed");
        })
        .await;
}

#[tokio::test]
async fn an_application_that_cannot_be_loaded_says_why() {
    let missing = kinds(&[("app.py", "application = None"), MANIFEST]).fails().await;
    assert_eq!(missing.kind, "Runtime.HandlerNotFound");
    assert!(missing.message.contains("'app' is missing in module 'app'"), "{missing:?}");
    let broken = kinds(&[("app.py", "def app(:"), MANIFEST]).fails().await;
    assert_eq!(broken.kind, "Runtime.UserCodeSyntaxError");
}

/// A module of the application's own may be called as ours is.
#[tokio::test]
async fn a_module_named_web_is_the_function_s_own() {
    let code = r#"
from web import words

def app(environ, start_response):
    start_response("200 OK", [])
    return [words]
"#;
    kinds(&[("app.py", code), ("web.py", "words = b'mine'"), MANIFEST])
        .each(async |sandbox, _| assert_eq!(send(sandbox, get("/")).await.text(), "mine"))
        .await;
}
