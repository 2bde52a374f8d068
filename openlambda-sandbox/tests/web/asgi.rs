//! ASGI 3.

use http::Method;
use openlambda_core::failure::FailureKind;
use serde_json::json;

use crate::{broken, get, kinds, piece, post, request, send, told};

const MANIFEST: (&str, &str) = ("ol.toml", "style = \"asgi\"\nhandler = \"app.app\"");
const EIGHT_SLOTS: (&str, &str) =
    ("ol.toml", "style = \"asgi\"\nhandler = \"app.app\"\nconcurrency = 8");

/// Tells its scope, and what it has received.
const MIRROR: &str = r#"
import json

events = []

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            events.append(message["type"])
            scope["state"]["started"] = "yes"
            await send({"type": message["type"] + ".complete"})
    received = await receive()
    told = {key: value for key, value in scope.items() if isinstance(value, (str, dict, tuple))}
    told["headers"] = [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]]
    told["raw_path"], told["query_string"] = scope["raw_path"].decode(), scope["query_string"].decode()
    told["received"] = [received["type"], received["body"].decode("latin-1"), received["more_body"]]
    told["events"] = events
    told["id"] = scope["openlambda.context"].aws_request_id
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})
    events.append((await receive())["type"])
"#;

#[tokio::test]
async fn a_request_is_there_as_it_came() {
    kinds(&[("app.py", MIRROR), MANIFEST])
        .each(async |sandbox, _| {
            let headers: &[(&str, &[u8])] = &[
                ("host", b"example.org:8443"),
                ("x-forwarded-proto", b"https"),
                ("x-forwarded-for", b"10.1.2.3, 127.0.0.1"),
                ("x-two", b"one"),
                ("x-two", b"tw\xff"),
            ];
            let call = request(Method::PUT, "/a%20b/%C3%BC?x=%20", headers, b"\x00\xff\n");
            let scope = send(sandbox, call).await.json();
            for (key, value) in [
                ("type", json!("http")),
                ("method", json!("PUT")),
                ("http_version", json!("1.1")),
                ("scheme", json!("https")),
                ("root_path", json!("/run/app one")),
                ("path", json!("/run/app one/a b/ü")),
                ("raw_path", json!("/run/app%20one/a%20b/%C3%BC")),
                ("query_string", json!("x=%20")),
                ("client", json!(["10.1.2.3", 0])),
                ("server", json!(["example.org", 8443])),
                ("state", json!({"started": "yes"})),
                ("events", json!(["lifespan.startup"])),
                ("received", json!(["http.request", "\u{0}\u{ff}\n", false])),
                ("id", json!("the-id")),
            ] {
                assert_eq!(scope[key], value, "{key}: {scope}");
            }
            assert_eq!(scope["asgi"]["version"], "3.0");
            let headers = scope["headers"].as_array().unwrap();
            assert!(headers.contains(&json!(["x-two", "one"])), "{scope}");
            assert!(headers.contains(&json!(["x-two", "tw\u{ff}"])), "{scope}");
            // After its reply the application is told that the exchange is over.
            let again = send(sandbox, get("/")).await.json();
            assert_eq!(again["events"], json!(["lifespan.startup", "http.disconnect"]));
        })
        .await;
}

/// Its path says how it answers. It knows no lifespan.
const ANSWERS: &str = r#"
import asyncio, contextvars

gate = asyncio.Event()
seen = contextvars.ContextVar("seen", default="nothing")
inside, most = 0, 0
after = []

async def app(scope, receive, send):
    global inside, most
    assert scope["type"] == "http"
    path = scope["path"].removeprefix(scope["root_path"])

    async def start(status=200, *headers):
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(data=b"", more=False):
        await send({"type": "http.response.body", "body": data, "more_body": more})

    if path == "/cookies":
        await start(404, (b"set-cookie", b"a=1"), (b"set-cookie", b"b=\xff"))
        await body(b"none")
    elif path == "/echo":
        await start()
        await body((await receive())["body"])
    elif path == "/pieces":
        await start()
        for data in b"a", b"", b"b":
            await body(data, True)
        await body()
    elif path == "/length":
        await start(200, (b"content-length", b"5"))
        await body(b"whole", True)
        await body()
    elif path == "/nothing":
        await start(204)
        await body()
    elif path == "/large":
        await start()
        await body(b"x" * (9 << 20))
    elif path == "/stream":
        await start()
        await body(b"first", True)
        await gate.wait()
        gate.clear()
        await body(b"second")
    elif path == "/go":
        gate.set()
        await start()
        await body(b"gone")
    elif path == "/together":
        inside += 1
        most = max(most, inside)
        if inside == 8:
            gate.set()
        await gate.wait()
        inside -= 1
        await start()
        await body(b"%d" % most)
    elif path == "/context":
        before = seen.get()
        seen.set("something")
        await start()
        await body(before.encode())
    elif path == "/after":
        await start()
        await body(b"sent")
        await asyncio.sleep(0)
        after.append("done")
    elif path == "/has-been-after":
        await start()
        await body(repr(after).encode())
    elif path == "/raises":
        raise KeyError("no such path")
    elif path == "/breaks":
        await start()
        await body(b"first", True)
        raise LookupError("in the middle")
    elif path == "/leaves-it-open":
        await start()
        await body(b"first", True)
    elif path == "/no-start":
        await body(b"data")
    elif path == "/returns-at-once":
        return
    elif path == "/header":
        await start(200, (b"x-a", b"b\r\nx-c: d"))
    elif path == "/websocket":
        await send({"type": "websocket.accept"})
    elif path == "/cancels":
        asyncio.current_task().cancel()
        await asyncio.sleep(60)
    elif path == "/exits":
        raise SystemExit(3)
"#;

#[tokio::test]
async fn replies_are_what_the_application_sends() {
    kinds(&[("app.py", ANSWERS), MANIFEST])
        .each(async |sandbox, _| {
            let seen = send(sandbox, get("/cookies")).await;
            assert_eq!((seen.status, seen.text()), (404, "none"));
            assert_eq!(seen.all("set-cookie"), [&b"a=1"[..], b"b=\xff"]);
            let every: Vec<u8> = (0..=255).cycle().take(6 << 20).collect();
            assert!(send(sandbox, post("/echo", &every)).await.body == every, "not the same bytes");
            assert_eq!(send(sandbox, get("/pieces")).await.text(), "ab");
            assert_eq!(send(sandbox, get("/length")).await.text(), "whole");
            assert_eq!(send(sandbox, get("/nothing")).await.status, 204);
            let head = send(sandbox, request(Method::HEAD, "/pieces", &[], b"")).await;
            assert_eq!((head.status, head.text()), (200, ""));
            assert_eq!(send(sandbox, get("/large")).await.body.len(), 9 << 20);
            // What an application does after its reply is done before the slot's next request.
            assert_eq!(send(sandbox, get("/after")).await.text(), "sent");
            assert_eq!(send(sandbox, get("/has-been-after")).await.text(), "['done']");
            for _ in 0..2 {
                assert_eq!(send(sandbox, get("/context")).await.text(), "nothing");
            }
        })
        .await;
}

#[tokio::test]
async fn requests_of_all_slots_are_in_one_event_loop() {
    kinds(&[("app.py", ANSWERS), EIGHT_SLOTS])
        .each(async |sandbox, _| {
            let mut reply = sandbox.invoke(get("/stream")).await.unwrap();
            assert_eq!(piece(&mut reply).await, "first");
            assert_eq!(send(sandbox, get("/go")).await.text(), "gone");
            assert_eq!(piece(&mut reply).await, "second");
            assert!(reply.done.await.failure.is_none());
            let calls = (0..8).map(|_| send(sandbox, get("/together")));
            for seen in futures_util::future::join_all(calls).await {
                assert_eq!(seen.text(), "8");
            }
        })
        .await;
}

#[tokio::test]
async fn what_goes_wrong_is_told_and_the_next_request_is_answered() {
    kinds(&[("app.py", ANSWERS), MANIFEST])
        .each(async |sandbox, _| {
            let error = told(sandbox, get("/raises")).await;
            assert_eq!((&*error.kind, &*error.message), ("KeyError", "'no such path'"));
            let stack = error.stack_trace.join("");
            assert!(stack.contains("app.py") && !stack.contains("web.py"), "{stack}");
            for (path, kind, message) in [
                ("/no-start", "RuntimeError", "http.response.body out of order; send"),
                ("/returns-at-once", "RuntimeError", "before its reply was complete"),
                ("/header", "ValueError", "the header x-a holds control characters"),
                ("/websocket", "RuntimeError", "websocket.accept out of order; send"),
                ("/cancels", "CancelledError", ""),
            ] {
                let error = told(sandbox, get(path)).await;
                assert_eq!(error.kind, kind, "{path}: {error:?}");
                assert!(error.message.contains(message), "{path}: {error:?}");
            }
            for (path, message) in [
                ("/breaks", "LookupError: in the middle"),
                (
                    "/leaves-it-open",
                    "RuntimeError: the application returned before its reply was complete",
                ),
            ] {
                let (why, completion) = broken(sandbox.invoke(get(path)).await.unwrap()).await;
                assert_eq!(why, message);
                assert!(completion.reusable, "{completion:?}");
                assert_eq!(completion.failure.unwrap().kind, FailureKind::FunctionError);
            }
            assert_eq!(send(sandbox, get("/pieces")).await.text(), "ab");
            let error = sandbox.invoke(get("/exits")).await.unwrap_err();
            assert!(!error.reusable && error.message.contains("exited with 3"), "{error}");
        })
        .await;
}

#[tokio::test]
async fn an_application_that_does_not_start_says_why() {
    let code = r#"
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
"#;
    let failed = kinds(&[("app.py", code), MANIFEST]).fails().await;
    assert_eq!((&*failed.kind, &*failed.message), ("Runtime.StartupFailed", "no database"));
    let exits = kinds(&[("app.py", "async def app(*args): raise SystemExit(4)"), MANIFEST]);
    let exits = exits.fails().await;
    assert_eq!(exits.kind, "Runtime.ExitError");
    assert!(exits.message.contains("exited with 4 when it started"), "{exits:?}");
}

/// Prints what becomes of it, so that the log tells.
const ENDLESS: &str = r#"
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        print("told:", (await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})
        print("closed")
        return
    await receive()
    await send({"type": "http.response.start", "status": 200})
    if scope["path"].endswith("/endless"):
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        print("told:", (await receive())["type"])
    await send({"type": "http.response.body", "body": b"last"})
"#;

#[tokio::test]
async fn an_application_is_told_when_its_client_leaves_and_when_it_has_to_end() {
    for slots in [1, 3] {
        let manifest = format!("{}\nconcurrency = {slots}", MANIFEST.1);
        kinds(&[("app.py", ENDLESS), ("ol.toml", &manifest)])
            .each(async |sandbox, kinds| {
                let before = kinds.lines().len();
                let lines = || kinds.lines().split_off(before);
                let mut reply = sandbox.invoke(get("/endless")).await.unwrap();
                assert_eq!(piece(&mut reply).await, "first");
                drop(reply.body);
                let completion = reply.done.await;
                assert!(completion.reusable && completion.failure.is_none(), "{completion:?}");
                assert_eq!(lines(), ["told: http.disconnect"]);
                assert_eq!(send(sandbox, get("/")).await.text(), "last");

                // Also one that is paused, as most are when their end comes.
                sandbox.pause().await.unwrap();
                sandbox.destroy().await;
                let expected = ["told: http.disconnect", "told: lifespan.shutdown", "closed"];
                assert_eq!(lines(), expected);
                let late = sandbox.invoke(get("/")).await.map(|_| ()).unwrap_err();
                assert_eq!(late.started, openlambda_core::failure::Started::No);
            })
            .await;
    }
}

/// One that does not end by itself is ended.
#[tokio::test]
async fn an_application_that_does_not_want_to_end_does_not_live_on() {
    let code = r#"
import asyncio
async def app(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("never")
    await asyncio.Event().wait()
"#;
    kinds(&[("app.py", code), MANIFEST])
        .each(async |sandbox, _| {
            sandbox.destroy().await;
            assert_eq!(sandbox.exited().await, openlambda_core::sandbox::Exit::Destroyed);
        })
        .await;
}
