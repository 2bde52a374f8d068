//! Web applications, WSGI and ASGI, in `process` and in `sock` sandboxes: what they get of a request,
//! and what becomes of what they send.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

#[path = "web/asgi.rs"]
mod asgi;
mod common;
#[path = "common/containers.rs"]
mod containers;
#[path = "web/wsgi.rs"]
mod wsgi;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use openlambda_core::failure::FunctionError;
use openlambda_core::invocation::{Completion, Invocation, Reply, full_body};
use openlambda_core::sandbox::{Sandbox, SandboxError, SandboxErrorKind, SandboxFactory};
use serde_json::Value;

use crate::common::invocation;
use crate::containers::{Containers, containers};

/// One sandbox of each kind, of a function with these files. The containers' factories go with it.
struct Kinds {
    containers: Containers,
    files: Vec<(String, String)>,
}

fn kinds(files: &[(&str, &str)]) -> Kinds {
    let files = files.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
    Kinds { containers: containers(), files }
}

impl Kinds {
    fn factories(&self) -> [Arc<dyn SandboxFactory>; 2] {
        let process = Arc::clone(&self.containers.setup.factory);
        [process, Arc::<openlambda_sandbox::sock::SockFactory>::clone(&self.containers.factory)]
    }

    async fn create(&self, factory: &dyn SandboxFactory) -> Result<Arc<dyn Sandbox>, SandboxError> {
        let files: Vec<(&str, &str)> =
            self.files.iter().map(|(name, text)| (&**name, &**text)).collect();
        let created = factory.create(self.containers.spec(&files)).await;
        created.map(|created| created.sandbox)
    }

    /// Runs the same checks against each kind.
    async fn each(&self, check: impl AsyncFn(&dyn Sandbox, &Kinds)) {
        for factory in self.factories() {
            let sandbox = self.create(&*factory).await.unwrap_or_else(|error| {
                let said = self.containers.setup.lines.texts();
                panic!("{}: {}\n{said:?}", factory.kind(), openlambda_core::failure::chain(&error))
            });
            check(&*sandbox, self).await;
            sandbox.destroy().await;
            factory.shutdown().await;
        }
    }

    /// Why no sandbox of either kind starts.
    async fn fails(&self) -> FunctionError {
        let mut told = Vec::new();
        for factory in self.factories() {
            let error = self.create(&*factory).await.unwrap_err();
            assert_eq!(error.kind, SandboxErrorKind::Init, "{error}");
            told.push(*error.function_error.unwrap());
            factory.shutdown().await;
        }
        let last = told.pop().unwrap();
        assert_eq!((&told[0].kind, &told[0].message), (&last.kind, &last.message));
        last
    }

    fn lines(&self) -> Vec<String> {
        self.containers.setup.lines.texts()
    }
}

/// A request, below `/run/app`.
fn request(method: Method, target: &str, headers: &[(&str, &[u8])], body: &[u8]) -> Invocation {
    let mut call = invocation("the-id", "");
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    call.head.method = method;
    call.head.root = "/run/app%20one".to_owned();
    call.head.path = path.to_owned();
    call.head.query = query;
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        call.head.headers.append(name, http::HeaderValue::from_bytes(value).unwrap());
    }
    call.body = full_body(Bytes::copy_from_slice(body));
    call
}

fn get(target: &str) -> Invocation {
    request(Method::GET, target, &[], b"")
}

fn post(target: &str, body: &[u8]) -> Invocation {
    request(Method::POST, target, &[], body)
}

#[derive(Debug)]
struct Seen {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
    completion: Completion,
}

impl Seen {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect()
    }
}

async fn whole(reply: Reply) -> Seen {
    let (status, headers) = (reply.status.as_u16(), reply.headers);
    let body = reply.body.collect().await.unwrap().to_bytes();
    Seen { status, headers, body, completion: reply.done.await }
}

async fn send(sandbox: &dyn Sandbox, call: Invocation) -> Seen {
    let reply = sandbox.invoke(call).await;
    let seen = whole(reply.unwrap_or_else(|error| panic!("{error} {error:?}"))).await;
    assert!(seen.completion.reusable && seen.completion.failure.is_none(), "{seen:?}");
    seen
}

/// What the application said, of a request to which it has no answer.
async fn told(sandbox: &dyn Sandbox, call: Invocation) -> FunctionError {
    let error = sandbox.invoke(call).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind, SandboxErrorKind::Function, "{error}");
    *error.function_error.unwrap()
}

/// The next piece of a streamed reply.
async fn piece(reply: &mut Reply) -> Bytes {
    reply.body.frame().await.unwrap().unwrap().into_data().unwrap()
}

/// How a reply ends that was begun and has failed: what its reader sees, and what the worker is told.
async fn broken(mut reply: Reply) -> (String, Completion) {
    let mut why = String::new();
    while let Some(frame) = reply.body.frame().await {
        if let Err(error) = frame {
            why = error.to_string();
        }
    }
    (why, reply.done.await)
}

/// As the Go project has them: `ol.yaml` names a file, and what it holds says the rest.
#[tokio::test]
async fn a_module_without_f_is_its_application() {
    let wsgi = r#"
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"wsgi " + environ["REQUEST_METHOD"].encode()]
"#;
    let asgi = r#"
class App:
    async def __call__(self, scope, receive, send):
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"asgi " + scope["method"].encode()})
app = App()
"#;
    let entry = ("ol.yaml", "environment:\n  OL_ENTRY_FILE: main.py\n");
    let named =
        ("ol.yaml", "environment:\n  OL_ENTRY_FILE: main.py\n  OL_WSGI_ENTRY: my_wsgi_app\n");
    let other_name = wsgi.replace("def app", "def my_wsgi_app");
    for (files, expected) in [
        (vec![("f.py", wsgi)], "wsgi PUT"),
        (vec![("f.py", asgi)], "asgi PUT"),
        (vec![("main.py", wsgi), entry], "wsgi PUT"),
        (vec![("main.py", asgi), entry], "asgi PUT"),
        (vec![("main.py", &*other_name), named], "wsgi PUT"),
        (vec![("main.py", "def f(event): return event\napp = f"), entry], "{}"),
    ] {
        kinds(&files)
            .each(async |sandbox, _| {
                let seen = send(sandbox, request(Method::PUT, "/", &[], b"{}")).await;
                assert_eq!(seen.text(), expected, "{files:?}");
            })
            .await;
    }
}
