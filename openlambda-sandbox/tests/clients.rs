//! Runtime clients that AWS publishes, as they come from PyPI and crates.io, in every kind of sandbox.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;
#[path = "common/containers.rs"]
mod containers;
#[path = "common/engine.rs"]
mod engine;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use openlambda_core::sandbox::{Exit, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory};
use openlambda_sandbox::docker::DockerFactory;
use openlambda_sandbox::sock::SockFactory;
use serde_json::{Value, json};

use common::{Setup, call, invocation, read, setup};
use engine::Engine;

async fn ask(sandbox: &dyn Sandbox, event: Value) -> Value {
    let reply = call(sandbox, &event.to_string()).await;
    let reply = reply.unwrap_or_else(|error| panic!("{}", openlambda_core::failure::chain(&error)));
    serde_json::from_str(&reply).unwrap()
}

async fn failing(sandbox: &dyn Sandbox, event: Value) -> SandboxError {
    let error = call(sandbox, &event.to_string()).await.unwrap_err();
    assert_eq!((error.kind, error.reusable), (SandboxErrorKind::Function, true), "{error}");
    error
}

/// Runs what `uses` does with an instance of the function in `code`, in each kind of sandbox.
async fn in_every_kind(code: &Path, uses: impl AsyncFn(&Setup, &dyn Sandbox, &str)) {
    let setup = setup();
    let engine = Engine::shared().await;
    let docker = engine.config(&setup.dir.path().join("docker"), &setup.mark);
    let kinds: [Box<dyn SandboxFactory>; 2] = [
        Box::new(SockFactory::new(containers::config(&setup)).unwrap()),
        Box::new(DockerFactory::connect(docker).await.unwrap()),
    ];
    let kinds = kinds.iter().map(|kind| &**kind).chain([&*setup.factory as &dyn SandboxFactory]);
    for kind in kinds {
        let created = kind.create(setup.spec_of(code)).await.unwrap_or_else(|error| {
            let said = setup.lines.texts();
            panic!("{}: {}\n{said:?}", kind.kind(), openlambda_core::failure::chain(&error))
        });
        uses(&setup, &*created.sandbox, kind.kind()).await;
        drop(created);
        kind.shutdown().await;
    }
    assert_eq!(engine.containers(&setup.mark), [""; 0]);
    assert_eq!(setup.leftovers(), [""; 0]);
}

/// Where a client finds the Runtime API: the constant address where the network is its own.
fn is_address_of(kind: &str, address: &str) -> bool {
    match kind {
        "process" => address.starts_with("127.0.0.1:") && address != "127.0.0.1:9001",
        _ => address == "127.0.0.1:9001",
    }
}

/// Asked for by name, as its documentation has it.
#[tokio::test(flavor = "multi_thread")]
async fn awslambdaric_runs_unchanged() {
    const CODE: &str = "
import os
def handler(event, context):
    print('printed')
    if event == 'raise': raise ValueError('no luck')
    if event == 'huge': return 'x' * (7 << 20)
    return {'event': event, 'id': context.aws_request_id, 'name': context.function_name,
            'memory': context.memory_limit_in_mb, 'left': context.get_remaining_time_in_millis() > 0,
            'api': os.environ['AWS_LAMBDA_RUNTIME_API']}
";
    let code = tempfile::tempdir().unwrap();
    let install = Command::new("/usr/bin/python3")
        .args(["-m", "pip", "install", "--quiet", "--no-cache-dir", "--target"])
        .arg(code.path())
        .arg("awslambdaric")
        .output()
        .unwrap();
    assert!(install.status.success(), "{install:?}");
    for (file, text) in [
        ("app.py", CODE),
        ("bootstrap", "#!/bin/sh\nexec /usr/bin/python3 -m awslambdaric app.handler\n"),
        ("ol.toml", "timeout_seconds = 60"),
    ] {
        fs::write(code.path().join(file), text).unwrap();
    }
    readable(code.path(), "bootstrap");
    in_every_kind(code.path(), async |setup, sandbox, kind| {
        for event in [json!({"a": "ü"}), json!(null), json!("x".repeat(1 << 20))] {
            let mut reply = ask(sandbox, event.clone()).await;
            let address = reply["api"].take();
            assert!(is_address_of(kind, address.as_str().unwrap()), "{kind}: {address}");
            let expected = json!({
                "event": event, "id": "r", "name": "tested", "memory": "128", "left": true, "api": null,
            });
            assert!(reply == expected, "{kind}: {reply}");
        }
        assert!(setup.lines.texts().iter().any(|line| line == "printed"), "{kind}");
        let told = failing(sandbox, json!("raise")).await.function_error.unwrap();
        assert_eq!((&*told.kind, &*told.message), ("ValueError", "no luck"), "{kind}");
        assert_eq!(ask(sandbox, json!(2)).await["event"], 2, "{kind}");
        // It gives up when a reply is refused, as it does on AWS.
        let error = call(sandbox, "\"huge\"").await.unwrap_err();
        assert_eq!(error.kind, SandboxErrorKind::BadReply, "{kind}: {error}");
        assert_eq!(sandbox.exited().await, Exit::Status(1), "{kind}");
    })
    .await;
}

/// The example that is written with it.
#[tokio::test(flavor = "multi_thread")]
async fn lambda_runtime_runs_unchanged() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/lambda-rust");
    let code = tempfile::tempdir().unwrap();
    // A folder of its own, which stays for the next time.
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lambda-rust");
    let built = Command::new("sh")
        .arg(example.join("build.sh"))
        .arg(code.path())
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    readable(code.path(), "bootstrap");
    in_every_kind(code.path(), async |setup, sandbox, kind| {
        for n in 0..3 {
            let id = format!("request-{n}");
            let call = invocation(&id, r#"{"name": "Zoë"}"#);
            let (reply, done) = read(sandbox.invoke(call).await.unwrap()).await;
            let expected = json!({"message": "Hello, Zoë!", "request": id, "function": "tested"});
            assert_eq!(serde_json::from_str::<Value>(&reply).unwrap(), expected, "{kind}");
            assert!(done.reusable);
        }
        let printed = "called with {\"name\":\"Zoë\"}";
        assert!(setup.lines.texts().iter().any(|line| line == printed), "{kind}");
        let told = failing(sandbox, json!(null)).await.function_error.unwrap();
        assert!(told.message.starts_with("there is no name"), "{kind}: {}", told.message);
        assert_eq!(ask(sandbox, json!({"name": "x"})).await["message"], "Hello, x!", "{kind}");
    })
    .await;
}

/// Lets the users that sandboxes are into a folder that was made for us alone.
fn readable(folder: &Path, program: &str) {
    use std::os::unix::fs::PermissionsExt;
    for path in [folder.to_owned(), folder.join(program)] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}
