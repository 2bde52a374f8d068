//! Process sandboxes with real processes: what functions find, what they may do wrong, and that
//! nothing of them is left.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use openlambda_core::failure::{FunctionError, Started};
use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::{
    Exit, LogLine, LogSink, LogStream, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory,
};
use openlambda_sandbox::process::ProcessFactory;
use openlambda_sandbox::sys::processes_with_mark;
use serde_json::{Value, json};

use common::{Setup, call, config, eventually, invocation, own_mark, read, setup};

async fn ask(sandbox: &dyn Sandbox, event: Value) -> Value {
    let reply = call(sandbox, &event.to_string()).await.unwrap();
    serde_json::from_str(&reply).unwrap()
}

/// What the handler said, of a call that fails.
async fn told(sandbox: &dyn Sandbox, event: Value) -> (SandboxError, FunctionError) {
    let mut error = call(sandbox, &event.to_string()).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Function, Started::Yes), "{error}");
    let told = *error.function_error.take().unwrap();
    (error, told)
}

async fn clean(setup: &Setup) {
    eventually("nothing is left", || async { setup.leftovers().is_empty() }).await;
}

#[tokio::test]
async fn handlers_of_every_style_are_called_as_they_expect() {
    let setup = setup();
    let event = setup.create(setup.spec(&[("f.py", "def f(event): return [event]")])).await;
    assert_eq!(ask(&*event, json!({"a": 1})).await, json!([{"a": 1}]));

    let code = "def handler(conn, event): return [conn, event]";
    let legacy = setup.create(setup.spec(&[("lambda_func.py", code)])).await;
    assert_eq!(ask(&*legacy, json!("x")).await, json!([null, "x"]));

    let code = r#"
def lambda_handler(event, context):
    left = context.get_remaining_time_in_millis()
    return {
        "event": event, "left": 0 < left <= 30000, "id": context.aws_request_id,
        "name": context.function_name, "version": context.function_version,
        "memory": context.memory_limit_in_mb, "arn": context.invoked_function_arn,
        "trace": context.trace_id, "client": context.client_context.custom,
        "title": context.client_context.client.app_title,
    }
"#;
    let lambda = setup.create(setup.spec(&[("lambda_function.py", code)])).await;
    let mut call = invocation("the-id", "1");
    let headers = [
        ("x-amzn-trace-id", "Root=1-a-b"),
        // {"custom": {"ü": 1}, "client": {"app_title": "t"}}
        (
            "x-amz-client-context",
            "eyJjdXN0b20iOiB7IsO8IjogMX0sICJjbGllbnQiOiB7ImFwcF90aXRsZSI6ICJ0In19",
        ),
    ];
    for (name, value) in headers {
        call.head.headers.insert(name, value.parse().unwrap());
    }
    let (reply, done) = read(lambda.invoke(call).await.unwrap()).await;
    let expected = json!({
        "event": 1, "left": true, "id": "the-id", "name": "tested", "version": "$LATEST",
        "memory": "128", "arn": "arn:aws:lambda:local:000000000000:function:tested",
        "trace": "Root=1-a-b", "client": {"ü": 1}, "title": "t",
    });
    assert_eq!(serde_json::from_str::<Value>(&reply).unwrap(), expected);
    assert!(done.reusable);

    // A handler of a name of its own, deep inside a package.
    let deep = setup.spec(&[
        ("ol.toml", "handler = \"app.web.main.run\"\nmemory_mb = 64"),
        ("app/web/main.py", "from app.words import w\ndef run(e, context): return [w, e]"),
        ("app/words.py", "w = 'word'"),
    ]);
    let deep = setup.create(deep).await;
    assert_eq!(ask(&*deep, json!(2)).await, json!(["word", 2]));
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn http_functions_answer_with_status_headers_and_bytes() {
    let setup = setup();
    let code = r#"
import base64
def lambda_handler(event, context):
    return {"statusCode": 418, "headers": {"x-path": event["rawPath"]}, "isBase64Encoded": True,
            "body": base64.b64encode(event["body"].encode()).decode()}
"#;
    let spec = setup.spec(&[("ol.toml", "event = \"http\""), ("lambda_function.py", code)]);
    let sandbox = setup.create(spec).await;
    let reply = sandbox.invoke(invocation("r", "any body, ü")).await.unwrap();
    assert_eq!((reply.status.as_u16(), &reply.headers["x-path"]), (418, &"/".parse().unwrap()));
    assert_eq!(read(reply).await.0, "any body, ü");
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn what_a_generator_yields_is_streamed() {
    let setup = setup();
    let code = r#"
import threading

both = threading.Barrier(2, timeout=30)

def f(event):
    path = event["rawPath"]
    if path == "/go":
        both.wait()
        return {"statusCode": 204}
    return pieces(path)

def pieces(path):
    if path == "/raises":
        raise KeyError("before the first piece")
    if path == "/nothing":
        return
    if path == "/head":
        yield {"statusCode": 201, "headers": {"content-type": "text/x-a"}, "cookies": ["a=1", "b=2"]}
    if path == "/bad-head":
        yield {"statusCode": 7}
    if path == "/bytes":
        yield b"\xff"
        return
    if path == "/number":
        yield "first"
        yield 2
    yield "first ü "
    if path == "/breaks":
        raise LookupError("in the middle " + "ä" * 20000)
    if path == "/exits":
        raise SystemExit(3)
    if path == "/gate":
        both.wait()
    yield b"second"
"#;
    let files = [("f.py", code), ("ol.toml", "event = \"http\"\nconcurrency = 2")];
    let sandbox = setup.create(setup.spec(&files)).await;
    let send = async |path: &str| {
        let mut call = invocation("r", "");
        call.head.path = path.to_owned();
        sandbox.invoke(call).await
    };
    for (path, status, kind, text) in [
        ("/text", 200, "text/plain; charset=utf-8", "first ü second"),
        ("/head", 201, "text/x-a", "first ü second"),
        ("/nothing", 200, "application/octet-stream", ""),
    ] {
        let reply = send(path).await.unwrap();
        assert_eq!(reply.status.as_u16(), status);
        assert_eq!(reply.headers["content-type"], kind);
        let cookies = reply.headers.get_all("set-cookie").iter().count();
        assert_eq!(cookies, if path == "/head" { 2 } else { 0 });
        assert_eq!(read(reply).await.0, text);
    }
    let bytes = send("/bytes").await.unwrap().body.collect().await.unwrap().to_bytes();
    assert_eq!(&*bytes, b"\xff");

    // The second piece is made only when the other call has come.
    let mut gate = send("/gate").await.unwrap();
    let first = gate.body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "first ü ");
    assert_eq!(send("/go").await.unwrap().status, 204);
    assert_eq!(read(gate).await.0, "second");

    let error = send("/raises").await.unwrap_err();
    assert_eq!(error.function_error.unwrap().kind, "KeyError");
    assert_eq!(send("/bad-head").await.unwrap_err().kind, SandboxErrorKind::BadReply);
    for (path, kind, reusable) in [
        ("/breaks", "LookupError", true),
        ("/number", "TypeError", true),
        ("/exits", "Runtime.ExitError", false),
    ] {
        let reply = send(path).await.unwrap();
        assert!(reply.body.collect().await.is_err(), "{path}");
        let completion = reply.done.await;
        assert_eq!(completion.reusable, reusable, "{completion:?}");
        let told = completion.failure.unwrap().function_error.unwrap();
        assert_eq!(told.kind, kind);
        // A piece of the wrong type is found outside of the handler.
        assert_eq!(told.stack_trace.is_empty(), path == "/number", "{told:?}");
    }
    setup.factory.shutdown().await;
    clean(&setup).await;
}

/// As one that was written for AWS: TCP, nothing but the documented variables.
const PYTHON_BOOTSTRAP: &str = r#"#!/usr/bin/python3
import http.client, json, os
connection = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
base = "/2018-06-01/runtime/invocation/"
while True:
    connection.request("GET", base + "next")
    event = connection.getresponse()
    body = json.loads(event.read())
    id = event.headers["Lambda-Runtime-Aws-Request-Id"]
    if body == "fail":
        what, body = "error", {"errorMessage": "as asked", "errorType": "Asked"}
    else:
        what, body = "response", {"echo": body, "type": event.headers["Content-Type"]}
    connection.request("POST", base + id + "/" + what, json.dumps(body))
    assert connection.getresponse().read() == b'{"status":"OK"}'
"#;

/// In a shell, with a connection for every request.
const SHELL_BOOTSTRAP: &str = r#"#!/bin/bash
echo "starting" >&2
while true; do
    exec 3<>"/dev/tcp/${AWS_LAMBDA_RUNTIME_API/:/\/}"
    printf 'GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n' >&3
    id= length=0
    while IFS= read -r line <&3 && line=${line%$'\r'} && [ -n "$line" ]; do
        case ${line,,} in
            lambda-runtime-aws-request-id:*) id=${line#*: } ;;
            content-length:*) length=${line#*: } ;;
        esac
    done
    IFS= read -r -N "$length" event <&3
    exec 3>&-
    echo "got $event"
    reply="\"shell: $length\""
    exec 3<>"/dev/tcp/${AWS_LAMBDA_RUNTIME_API/:/\/}"
    printf 'POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' "$id" ${#reply} "$reply" >&3
    cat <&3 >/dev/null
    exec 3>&-
done
"#;

#[tokio::test]
async fn bootstraps_of_ones_own_speak_the_runtime_api_over_tcp() {
    let setup = setup();
    let python = setup.create(setup.spec(&[("bootstrap", PYTHON_BOOTSTRAP)])).await;
    for n in 0..3 {
        let expected = json!({"echo": n, "type": "application/json"});
        assert_eq!(ask(&*python, json!(n)).await, expected);
    }
    let (error, words) = told(&*python, json!("fail")).await;
    assert!(error.reusable);
    assert_eq!((&*words.kind, &*words.message), ("Asked", "as asked"));

    let shell = setup.create(setup.spec(&[("bootstrap", SHELL_BOOTSTRAP)])).await;
    for _ in 0..3 {
        assert_eq!(ask(&*shell, json!("event")).await, "shell: 7");
    }
    assert!(setup.lines.texts().iter().any(|line| line == "got \"event\""));
    shell.destroy().await;

    use std::os::unix::fs::PermissionsExt;
    let missing = setup.spec(&[("bootstrap", "")]);
    fs::remove_file(missing.code.join("bootstrap")).unwrap();
    let plain = setup.spec(&[("bootstrap", "#!/bin/sh\n")]);
    fs::set_permissions(plain.code.join("bootstrap"), fs::Permissions::from_mode(0o644)).unwrap();
    for (spec, kind, hint) in [
        (missing, "Runtime.InvalidEntrypoint", "add one"),
        (plain, "Runtime.InvalidEntrypoint", "chmod +x"),
        (setup.spec(&[("bootstrap", "#!/no/such\n")]), "Runtime.InvalidEntrypoint", "#!/bin/sh"),
        // What is neither a program nor names one is run by the shell, as everywhere.
        (setup.spec(&[("bootstrap", "no-such-command")]), "Runtime.ExitError", "status 127"),
        (
            setup.spec(&[("bootstrap", "#!/bin/sh\necho out; echo why >&2; exit 7\n")]),
            "Runtime.ExitError",
            "exited with status 7 before it asked for its first event; its last words: why",
        ),
    ] {
        let error = setup.try_create(spec).await.unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Init, Started::No));
        assert!(error.message.contains(hint), "{error}");
        assert_eq!(error.function_error.unwrap().kind, kind);
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn the_environment_is_what_is_documented_and_nothing_of_ours() {
    assert!(std::env::vars().count() > 3, "there is something to hide");
    let setup = setup();
    let code = "
import os, sys
def f(event):
    return {'env': dict(os.environ), 'cwd': os.getcwd(), 'argv': sys.argv[1:],
            'stdin': sys.stdin.read(), 'fds': sorted(map(int, os.listdir('/proc/self/fd')))}
";
    let manifest = r#"
[environment]
GREETING = "hellö"
TZ = "Europe/Vienna"
[[volumes]]
name = "my-data.1"
path = "/data"
"#;
    let mut spec = setup.spec(&[("f.py", code), ("ol.toml", manifest)]);
    // A registry may hold what is refused at deploy by now.
    let environment = &mut Arc::make_mut(&mut spec.manifest).environment;
    for (name, value) in [
        ("AWS_LAMBDA_FUNCTION_NAME", "another"),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "9"),
        ("OPENLAMBDA_MARK", "none"),
    ] {
        environment.insert(name.to_owned(), value.to_owned());
    }
    let task_root = spec.code.display().to_string();
    let sandbox = setup.create(spec).await;
    let found = ask(&*sandbox, Value::Null).await;
    let env = found["env"].as_object().unwrap();
    let mut expected = vec![
        "AWS_DEFAULT_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_REGION",
        "GREETING",
        "HOME",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
        "LANG",
        "OPENLAMBDA_MARK",
        "OPENLAMBDA_STYLE",
        "OPENLAMBDA_VOLUME_MY_DATA_1",
        "PATH",
        "TMPDIR",
        "TZ",
        "_HANDLER",
    ];
    expected.sort_unstable();
    let mut names: Vec<_> = env.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, expected);
    let mark = format!("{}/1", setup.mark);
    for (name, value) in [
        ("GREETING", "hellö"),
        ("TZ", "Europe/Vienna"),
        ("AWS_LAMBDA_FUNCTION_NAME", "tested"),
        ("OPENLAMBDA_MARK", &*mark),
        ("_HANDLER", "f.f"),
        ("LAMBDA_TASK_ROOT", &*task_root),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ] {
        assert_eq!(env[name], value, "{name}");
    }
    assert_eq!(found["cwd"], task_root);
    assert_eq!((&found["argv"], &found["stdin"]), (&json!([]), &json!("")));
    // Its three, its connection, and the folder that listdir reads.
    assert_eq!(found["fds"], json!([0, 1, 2, 3, 4]));
    assert!(Path::new(env["OPENLAMBDA_VOLUME_MY_DATA_1"].as_str().unwrap()).is_dir());
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn instances_share_their_code_and_volumes_and_nothing_else() {
    let setup = setup();
    let code = "
import os, tempfile
def f(event):
    volume = os.environ['OPENLAMBDA_VOLUME_V']
    for folder in (os.environ['HOME'], tempfile.gettempdir(), volume):
        with open(folder + '/file', 'a') as file: file.write('x')
    os.makedirs(os.environ['HOME'] + '/deep/deeper')
    return [os.environ['HOME'], tempfile.gettempdir(), os.path.getsize(volume + '/file')]
";
    let files = [("f.py", code), ("ol.toml", "[[volumes]]\nname = \"v\"\npath = \"/v\"")];
    let spec = setup.spec(&files);
    let one = setup.create(spec.clone()).await;
    let two = setup.create(spec).await;
    let (one_found, two_found) = (ask(&*one, json!(1)).await, ask(&*two, json!(1)).await);
    assert_ne!((&one_found[0], &one_found[1]), (&two_found[0], &two_found[1]));
    assert_eq!((&one_found[2], &two_found[2]), (&json!(1), &json!(2)));
    one.destroy().await;
    assert!(!Path::new(one_found[0].as_str().unwrap()).exists());
    assert!(Path::new(two_found[0].as_str().unwrap()).exists());
    drop(two);
    clean(&setup).await;
    // A new instance finds the volume as it was.
    let three = setup.create(setup.spec(&files)).await;
    assert_eq!(ask(&*three, json!(1)).await[2], 3);
    setup.factory.shutdown().await;
    assert_eq!(setup.leftovers(), [""; 0]);
}

#[tokio::test]
async fn a_state_folder_may_have_a_long_path() {
    let setup = setup();
    let mut config = config(setup.dir.path(), &own_mark());
    config.state_dir = setup.dir.path().join("long".repeat(40)).join("Ü ".repeat(20));
    let factory = ProcessFactory::new(config).unwrap();
    let spec = setup.spec(&[("f.py", "def f(event): return event")]);
    let sandbox = factory.create(spec).await.unwrap().sandbox;
    assert_eq!(ask(&*sandbox, json!("x")).await, "x");
    factory.shutdown().await;
}

#[tokio::test]
async fn what_is_printed_reaches_the_log_line_by_line_with_its_request() {
    let setup = setup();
    let code = r#"
import os, subprocess, sys
print("at the start")
def f(event):
    print("one\ntwo"); print("err", event, file=sys.stderr)
    os.write(1, b"raw \xff\n")
    subprocess.run(["/bin/echo", "from a child"])
    sys.stdout.write("no end")
"#;
    let sandbox = setup.create(setup.spec(&[("f.py", code)])).await;
    for id in ["first", "second"] {
        read(sandbox.invoke(invocation(id, "5")).await.unwrap()).await;
    }
    let expected =
        |id: Option<&str>, stream, text: &str| (id.map(str::to_owned), stream, text.to_owned());
    let lines = setup.lines.0.lock().unwrap().clone();
    let (out, err): (Vec<_>, Vec<_>) =
        lines.into_iter().partition(|(_, stream, _)| *stream == LogStream::Stdout);
    let mut all = vec![expected(None, LogStream::Stdout, "at the start")];
    for id in ["first", "second"] {
        for text in ["one", "two", "raw \u{fffd}", "from a child", "no end"] {
            all.push(expected(Some(id), LogStream::Stdout, text));
        }
    }
    assert_eq!(out, all);
    let texts = ["first", "second"].map(|id| expected(Some(id), LogStream::Stderr, "err 5"));
    assert_eq!(err, texts);
    setup.factory.shutdown().await;
}

/// Whatever the threads of the runtime do meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_line_is_of_the_invocation_that_printed_it_under_load() {
    let setup = setup();
    let code = r#"
import os
def said(event):
    os.write(event["n"] % 2 + 1, (event["id"] + "\n").encode() * (event["n"] % 3))
    os.write(2 - event["n"] % 2, event["id"].encode())
def streamed(event):
    yield "a"
    said(event)
def f(event):
    if event["n"] % 5 == 0:
        return streamed(event)
    said(event)
"#;
    let mut calls = Vec::new();
    let mut printed = 0;
    for instance in 0..4 {
        let sandbox = setup.create(setup.spec(&[("f.py", code)])).await;
        printed += (0..500).map(|n| n % 3 + 1).sum::<usize>();
        calls.push(tokio::spawn(async move {
            for n in 0..500 {
                let id = format!("{instance}-{n}");
                let event = json!({"id": id, "n": n}).to_string();
                read(sandbox.invoke(invocation(&id, event)).await.unwrap()).await;
            }
        }));
    }
    for instance in calls {
        instance.await.unwrap();
    }
    let lines = setup.lines.0.lock().unwrap().clone();
    assert_eq!(lines.len(), printed);
    for (id, _, text) in lines {
        assert_eq!(id, Some(text));
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn exceptions_are_told_with_type_message_and_stack() {
    let setup = setup();
    let code = r#"
class Odd(Exception):
    def __str__(self): raise ValueError("not even this")
class Base(BaseException): pass
def inner(event):
    exec(event)
def f(event):
    try:
        inner(event)
    except ZeroDivisionError as error:
        raise RuntimeError("divided") from error
"#;
    let sandbox = setup.create(setup.spec(&[("f.py", code)])).await;
    for (raise, kind, message) in [
        ("raise ValueError('quite wrong')", "ValueError", "quite wrong"),
        ("raise ValueError('ü 中 🦀')", "ValueError", "ü 中 🦀"),
        ("raise ValueError", "ValueError", ""),
        ("raise KeyError('k')", "KeyError", "'k'"),
        ("1 / 0", "RuntimeError", "divided"),
        ("raise Odd", "Odd", "the exception cannot be shown as text"),
        ("raise Base('b')", "Base", "b"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("raise ValueError('\\ud800')", "ValueError", "\u{fffd}"),
        ("import not_there", "ModuleNotFoundError", "No module named 'not_there'"),
        ("x = (", "SyntaxError", "'(' was never closed (<string>, line 1)"),
        ("raise ValueError('x' * 1_000_000)", "ValueError", &*"x".repeat(1_000_000)),
    ] {
        let (error, told) = told(&*sandbox, json!(raise)).await;
        assert!(error.reusable);
        assert_eq!((&*told.kind, &*told.message), (kind, message), "{raise}");
        let trace = told.stack_trace.join("");
        assert!(trace.contains("f.py\", line") && trace.contains("in f\n"), "{trace}");
        assert!(!trace.contains("bootstrap"), "{trace}");
    }
    let (_, deep) = told(&*sandbox, json!("global r\ndef r(): r()\nr()")).await;
    assert_eq!(deep.kind, "RecursionError");
    assert!(deep.stack_trace.len() < 100, "repeated lines are told once");
    let (error, huge) = told(&*sandbox, json!("raise ValueError('x' * 8_000_000)")).await;
    assert!(error.reusable && huge.message.contains("6 MiB"), "{}", huge.message);
    assert_eq!(ask(&*sandbox, json!("pass")).await, Value::Null);
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn a_function_that_cannot_start_says_why() {
    let setup = setup();
    let own = "handler = \"f.f\"";
    for (code, manifest, kind, message) in [
        ("def f(event:\n  pass", "", "Runtime.UserCodeSyntaxError", "Syntax error in module 'f'"),
        ("g = 1", "", "Runtime.HandlerNotFound", "Handler 'f' is missing in module 'f'"),
        ("f = 1", "", "Runtime.HandlerNotFound", "is not callable"),
        ("import nope", "", "Runtime.ImportModuleError", "No module named 'nope'"),
        ("from os import nope", "", "Runtime.ImportModuleError", "cannot import name 'nope'"),
        ("raise ValueError('at import')", "", "ValueError", "at import"),
        ("import sys; sys.exit(3)", "", "Runtime.ExitError", "exited with 3"),
        ("print('last'); import os; os._exit(4)", "", "Runtime.ExitError", "status 4"),
        (
            "import os, sys; print('words', file=sys.stderr); os.kill(os.getpid(), 11)",
            "",
            "Runtime.ExitError",
            "was ended by signal 11 before it asked for its first event; its last words: words",
        ),
        ("def r(): r()\nr()", own, "RecursionError", "maximum recursion depth"),
        (
            "pass",
            "runtime = \"python\"\nhandler = \"nodot\"",
            "Runtime.MalformedHandlerName",
            "module.function",
        ),
        (
            "pass",
            "runtime = \"python\"\nhandler = \"no.such.f\"",
            "Runtime.ImportModuleError",
            "Unable to import module 'no.such': No module named 'no'; add no/such.py, or correct handler",
        ),
        (
            "import nomp.array",
            own,
            "Runtime.ImportModuleError",
            "No module named 'nomp'; if it is a package, install it with pip install --target in",
        ),
    ] {
        let error = setup
            .try_create(setup.spec(&[("f.py", code), ("ol.toml", manifest)]))
            .await
            .unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Init, Started::No), "{code}");
        let told = error.function_error.unwrap();
        assert_eq!(told.kind, kind, "{code}: {}", told.message);
        assert!(told.message.contains(message), "{code}: {}", told.message);
        if code.starts_with("raise") {
            assert!(told.stack_trace.join("").contains("f.py\", line 1"), "{:?}", told.stack_trace);
        }
        assert_eq!(setup.leftovers(), [""; 0], "{code}");
    }
    let mut spec = setup.spec(&[("f.py", "print('thinking')\nwhile True: pass")]);
    spec.init_timeout = Duration::from_millis(700);
    let error = setup.try_create(spec).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::InitTimeout, Started::No));
    assert!(error.message.contains("its last words: thinking"), "{error}");
    assert_eq!(setup.leftovers(), [""; 0]);
}

#[tokio::test]
async fn an_exit_in_the_handler_is_told_and_ends_the_instance() {
    let setup = setup();
    let code = "
import os, signal, sys
def f(event):
    if event == 'close': os.closerange(3, 100)
    elif event == 'kill': signal.raise_signal(signal.SIGSEGV)
    elif event == 'now': os._exit(5)
    elif event == 'exit()': exit()
    else: sys.exit(event)
";
    for slots in [1, 2] {
        let manifest = format!("concurrency = {slots}");
        let files = [("f.py", code), ("ol.toml", &manifest)];
        for (event, exit) in [
            (json!(7), Exit::Status(7)),
            (json!(null), Exit::Status(0)),
            (json!("why"), Exit::Status(1)),
            (json!("exit()"), Exit::Status(0)),
        ] {
            let sandbox = setup.create(setup.spec(&files)).await;
            let (error, told) = told(&*sandbox, event.clone()).await;
            assert!(!error.reusable);
            assert_eq!(told.kind, "Runtime.ExitError");
            assert_eq!(sandbox.exited().await, exit, "{event}");
            let error = call(&*sandbox, "1").await.unwrap_err();
            assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
        }
        // Without a word: the end of the process is the answer.
        for (event, exit) in [
            (json!("now"), Exit::Status(5)),
            (json!("kill"), Exit::Signal(11)),
            (json!("close"), Exit::Status(1)),
        ] {
            let sandbox = setup.create(setup.spec(&files)).await;
            let error = call(&*sandbox, &event.to_string()).await.unwrap_err();
            assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::Yes));
            assert!(!error.reusable);
            assert_eq!(sandbox.exited().await, exit, "{event}");
        }
    }
    clean(&setup).await;
}

#[derive(Debug, Default)]
struct Counted(AtomicUsize);

impl LogSink for Counted {
    fn line(&self, line: LogLine<'_>) {
        self.0.fetch_add(line.text.len(), Ordering::Relaxed);
    }
}

#[tokio::test]
async fn endless_output_neither_blocks_nor_fills_memory() {
    let setup = setup();
    let code = "
import os
def f(event):
    piece = (event['piece'] * 65536).encode()
    for _ in range(event['times']): os.write(event['fd'], piece)
";
    let mut spec = setup.spec(&[("f.py", code)]);
    let counted = Arc::new(Counted::default());
    spec.log = Arc::<Counted>::clone(&counted);
    let sandbox = setup.create(spec).await;
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
    };
    let before = resident();
    // One line without an end, and many short ones.
    for (fd, piece, times) in [(1, "x", 2048), (2, "short\n", 50)] {
        ask(&*sandbox, json!({"fd": fd, "piece": piece, "times": times})).await;
        let grown = resident().saturating_sub(before);
        assert!(grown < 64, "{grown} MiB more for 128 MiB of output");
    }
    assert_eq!(counted.0.load(Ordering::Relaxed), (128 << 20) + 50 * 65536 * "short".len());
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn a_child_that_prints_for_ever_holds_up_nobody_and_dies_with_the_instance() {
    let setup = setup();
    let code = "
import subprocess
def f(event):
    if event == 'start': subprocess.Popen(['/usr/bin/yes'])
    return event
";
    let mut spec = setup.spec(&[("f.py", code)]);
    let counted = Arc::new(Counted::default());
    spec.log = Arc::<Counted>::clone(&counted);
    let sandbox = setup.create(spec).await;
    ask(&*sandbox, json!("start")).await;
    for n in 0..50 {
        assert_eq!(ask(&*sandbox, json!(n)).await, n);
    }
    let printed = counted.0.load(Ordering::Relaxed);
    eventually("it goes on printing", || async {
        counted.0.load(Ordering::Relaxed) > printed + (1 << 20)
    })
    .await;
    sandbox.destroy().await;
    assert_eq!(setup.leftovers(), [""; 0]);
}

#[tokio::test]
async fn forked_children_do_not_speak_for_the_handler_and_die_with_the_instance() {
    let setup = setup();
    let code = r#"
import os, sys, time
def f(event):
    if event == "count": return os.getpid()
    pid = os.fork()
    if pid == 0:
        if event == "return": return "child"
        if event == "raise": raise ValueError("child")
        if event == "exit": sys.exit(3)
        if event == "sleep": time.sleep(1000)
    elif event != "sleep":
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return ["parent", status]
    return "parent"
"#;
    for slots in [1, 3] {
        let manifest = format!("concurrency = {slots}");
        let spec = setup.spec(&[("f.py", code), ("ol.toml", &manifest)]);
        let sandbox = setup.create(spec).await;
        let pid = ask(&*sandbox, json!("count")).await;
        for _ in 0..3 {
            assert_eq!(ask(&*sandbox, json!("return")).await, json!(["parent", 0]));
            assert_eq!(ask(&*sandbox, json!("raise")).await, json!(["parent", 1]));
            assert_eq!(ask(&*sandbox, json!("exit")).await, json!(["parent", 3]));
            assert_eq!(ask(&*sandbox, json!("count")).await, pid);
        }
        for _ in 0..3 {
            assert_eq!(ask(&*sandbox, json!("sleep")).await, "parent");
        }
        eventually("it and its children run", || async {
            sandbox.usage().await.unwrap().processes == 4
        })
        .await;
        assert!(sandbox.usage().await.unwrap().memory_bytes > 4 << 20);
        sandbox.destroy().await;
        assert_eq!(setup.leftovers(), [""; 0]);
    }
}

/// A counter that writes to a file for ever, as a thread, a child and a grandchild in a session of
/// its own.
const COUNTERS: &str = r#"
import os, subprocess, sys, threading
COUNT = '''
import sys, time
n = 0
while True:
    n += 1
    with open(sys.argv[1], "w") as file: file.write(str(n))
    time.sleep(0.002)
'''
def f(folder):
    def count():
        sys.argv = ["", folder + "/thread"]
        exec(COUNT, {})
    threading.Thread(target=count, daemon=True).start()
    python = ["/usr/bin/python3", "-S", "-c", COUNT]
    subprocess.Popen([*python, folder + "/child"])
    subprocess.Popen(["setsid", "--fork", *python, folder + "/session"]).wait()
"#;

fn counts(folder: &Path) -> [String; 3] {
    ["thread", "child", "session"].map(|name| {
        // A file that is being written is empty for a moment.
        let read = || fs::read_to_string(folder.join(name)).unwrap_or_default();
        (0..100).map(|_| read()).find(|text| !text.is_empty()).unwrap_or_default()
    })
}

async fn all_advance(folder: &Path) {
    let before = counts(folder);
    eventually("all of it runs", || async {
        let after = counts(folder);
        after.iter().zip(&before).all(|(after, before)| !after.is_empty() && after != before)
    })
    .await;
}

#[tokio::test]
async fn pausing_stops_everything_and_resuming_lets_it_go_on() {
    let setup = setup();
    let sandbox = setup.create(setup.spec(&[("f.py", COUNTERS)])).await;
    let folder = tempfile::tempdir().unwrap();
    ask(&*sandbox, json!(folder.path())).await;
    for _ in 0..3 {
        all_advance(folder.path()).await;
        sandbox.pause().await.unwrap();
        let before = counts(folder.path());
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(counts(folder.path()), before);
        sandbox.resume().await.unwrap();
    }
    all_advance(folder.path()).await;
    // A paused one can be ended.
    sandbox.pause().await.unwrap();
    sandbox.destroy().await;
    assert_eq!(setup.leftovers(), [""; 0]);
}

#[tokio::test]
async fn what_left_for_a_session_of_its_own_is_found_and_killed() {
    let setup = setup();
    let code = r#"
import os, subprocess, sys
def f(event):
    for _ in range(3):
        subprocess.Popen(["setsid", "--fork", "sleep", "1000"]).wait()
    if event == "exit": sys.exit(0)
"#;
    // However the instance ends.
    for end in ["destroy", "drop", "exit", "shutdown"] {
        let sandbox = setup.create(setup.spec(&[("f.py", code)])).await;
        let reply = call(&*sandbox, &json!(end).to_string()).await;
        assert_eq!(reply.is_err(), end == "exit");
        if end != "exit" {
            assert_eq!(processes_with_mark(&setup.mark).len(), 4);
        }
        match end {
            "destroy" => sandbox.destroy().await,
            "shutdown" => setup.factory.shutdown().await,
            _ => {
                drop(sandbox);
                clean(&setup).await;
            }
        }
        assert_eq!(setup.leftovers(), [""; 0], "{end}");
    }
}

#[tokio::test]
async fn results_are_json_or_an_error_that_says_why() {
    let setup = setup();
    let code = r#"
import datetime, enum, collections
class Colour(enum.IntEnum): RED = 3
cycle = []; cycle.append(cycle)
deep = []
for _ in range(100_000): deep = [deep]
def f(event): return eval(event)
"#;
    let sandbox = setup.create(setup.spec(&[("f.py", code)])).await;
    for (result, json) in [
        ("None", "null"),
        ("(1, 2.5, True)", "[1, 2.5, true]"),
        ("{1: 'a', None: 2, 'ü': '🦀'}", r#"{"1": "a", "null": 2, "ü": "🦀"}"#),
        ("'\\ud83e\\udd80'.encode('utf-16', 'surrogatepass').decode('utf-16')", r#""🦀""#),
        ("'\\ud800 ü'", r#""\ud800 \u00fc""#),
        ("'\\x00\\n\\\"'", r#""\u0000\n\"""#),
        ("2**200", "1606938044258990275541962092341162602522202993782792835301376"),
        ("1e400 - 1e400 if False else 1e300", "1e+300"),
        ("Colour.RED", "3"),
        ("collections.OrderedDict(b=1, a=2)", r#"{"b": 1, "a": 2}"#),
        ("''", r#""""#),
    ] {
        assert_eq!(call(&*sandbox, &json!(result).to_string()).await.unwrap(), json, "{result}");
    }
    for (result, message) in [
        ("{1, 2}", "Object of type set is not JSON serializable"),
        ("b'x'", "Object of type bytes is not JSON serializable"),
        ("[datetime.date(2024, 1, 1)]", "Object of type date is not JSON serializable"),
        ("f", "Object of type function is not JSON serializable"),
        ("{(1, 2): 3}", "keys must be str, int, float, bool or None, not tuple"),
        ("cycle", "Circular reference detected"),
        ("deep", "recursion"),
        ("float('nan')", "Out of range float values are not JSON compliant"),
        ("[1e999]", "Out of range float values are not JSON compliant"),
        ("{'\\ud800': {1}}", "Object of type set is not JSON serializable"),
    ] {
        let (error, told) = told(&*sandbox, json!(result)).await;
        assert!(error.reusable);
        assert_eq!(told.kind, "Runtime.MarshalError", "{result}");
        assert!(told.message.starts_with("Unable to marshal response: "), "{}", told.message);
        assert!(told.message.contains(message), "{result}: {}", told.message);
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn events_arrive_as_they_were_sent() {
    let setup = setup();
    let sandbox = setup.create(setup.spec(&[("f.py", "def f(event): return repr(event)")])).await;
    for (event, repr) in [
        ("", "None"),
        (" \n [ ] \n", "[]"),
        (r#""\ud83e\udd80 🦀 \u0000""#, r"'🦀 🦀 \x00'"),
        (r#""\ud800""#, r"'\ud800'"),
        ("1e5", "100000.0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        (r#"{"a": 1, "a": 2}"#, "{'a': 2}"),
        ("[true, false, null, -0.0]", "[True, False, None, -0.0]"),
    ] {
        let reply = call(&*sandbox, event).await;
        let reply = reply.unwrap_or_else(|error| panic!("{event}: {error}"));
        assert_eq!(serde_json::from_str::<String>(&reply).unwrap(), repr, "{event}");
    }
    for bad in ["{", "NaN", "[1,]", "\"\u{1}\"", &"[".repeat(100_000)] {
        let error = call(&*sandbox, bad).await.unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::BadRequest, Started::No));
    }
    setup.factory.shutdown().await;
}

#[tokio::test]
async fn a_handler_may_ruin_its_own_interpreter_but_not_its_answer() {
    let setup = setup();
    let code = r#"
import builtins, os, signal, sys, warnings
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def f(event):
    exec(event)
    return "answered"
"#;
    let sandbox = setup.create(setup.spec(&[("f.py", code)])).await;
    for ruin in [
        "sys.stdout = None",
        "sys.stderr.close()",
        "os.close(1)",
        "os.close(2)",
        "os.chdir('/')",
        "sys.path.clear(); sys.meta_path.clear(); sys.modules.pop('json', None)",
        "sys.setrecursionlimit(60)",
        "os.environ.clear()",
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    ] {
        assert_eq!(ask(&*sandbox, json!(ruin)).await, "answered", "{ruin}");
        assert_eq!(ask(&*sandbox, json!("pass")).await, "answered", "after {ruin}");
    }
    sandbox.destroy().await;
    assert_eq!(setup.leftovers(), [""; 0]);
}

#[tokio::test]
async fn what_this_kind_cannot_do_is_refused_with_the_next_step() {
    let setup = setup();
    let files = [("f.py", "def f(event): pass"), ("ol.toml", "network = \"bridge\"")];
    let error = setup.try_create(setup.spec(&files)).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Unsupported, Started::No));
    assert!(error.message.contains("network = \"host\""), "{error}");
    let mut spec = setup.spec(&[("f.py", "def f(event): pass")]);
    spec.manifest = Arc::new(Manifest::default());
    let error = setup.try_create(spec).await.unwrap_err();
    assert_eq!(error.kind, SandboxErrorKind::Unsupported);
    assert_eq!(setup.leftovers(), [""; 0]);
    for mark in ["", "a b", "a\0b", "a=b"] {
        let error = ProcessFactory::new(config(setup.dir.path(), mark)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
    let mut without = config(setup.dir.path(), &setup.mark);
    without.python = "/no/such/python".into();
    let factory = ProcessFactory::new(without).unwrap();
    let error = factory.create(setup.spec(&[("f.py", "def f(event): pass")])).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Resources, Started::No));
    assert!(openlambda_core::failure::chain(&error).contains("/no/such/python"), "{error}");
    assert_eq!(setup.leftovers(), [""; 0]);
}

/// As root this holds anyway; as any other user it does not by itself.
#[tokio::test]
async fn folders_that_a_function_has_locked_are_removed_too() {
    let setup = setup();
    let code = "
import os
def f(event):
    home = os.environ['HOME']
    os.makedirs(home + '/a/b/c')
    with open(home + '/a/b/file', 'w') as file: file.write('x')
    os.symlink('/', home + '/a/link')
    os.chmod(home + '/a/b/c', 0); os.chmod(home + '/a/b', 0o500); os.chmod(home + '/a', 0)
    os.chmod(home, 0o500)
";
    let sandbox = setup.create(setup.spec(&[("f.py", code)])).await;
    ask(&*sandbox, json!(1)).await;
    sandbox.destroy().await;
    assert_eq!(setup.leftovers(), [""; 0]);
}

/// Whatever moment a create is given up at, and whatever moment the factory is shut down at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_is_given_up_or_overtaken_by_a_shutdown_leaves_nothing() {
    // Its grandchild shows whether the sandbox was swept, not just its process killed.
    let code = r#"#!/bin/sh
setsid --fork sleep 1000
exec sleep 1000
"#;
    for round in 0..40 {
        let setup = setup();
        let spec = setup.spec(&[("bootstrap", code)]);
        let create = setup.factory.create(spec);
        let moment = Duration::from_micros(250 * round);
        if round % 2 == 0 {
            tokio::time::timeout(moment, create).await.expect_err("it never asks for an event");
            clean(&setup).await;
        } else {
            let shutdown = async {
                tokio::time::sleep(moment).await;
                setup.factory.shutdown().await;
                assert_eq!(setup.leftovers(), [""; 0], "shutdown resolved too early");
            };
            let (created, ()) = tokio::join!(create, shutdown);
            let error = created.unwrap_err();
            assert_eq!((error.kind, error.started), (SandboxErrorKind::Resources, Started::No));
            assert_eq!(setup.leftovers(), [""; 0]);
        }
    }
}
