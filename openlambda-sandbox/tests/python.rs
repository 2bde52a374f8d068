//! What functions bring that could get in the way of the runtimes: files that are called as Python's own
//! modules are, a `__main__.py`, children of every kind. In `process` and in `sock`, as root and, by the
//! last test, as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use std::sync::Arc;

use futures_util::future::join_all;
use openlambda_core::sandbox::{Sandbox, SandboxErrorKind, SandboxFactory, SandboxSpec};
use openlambda_sandbox::process::ProcessFactory;
use openlambda_sandbox::{Python, Pythons, find_python};
use serde_json::{Value, json};

use common::{Setup, call, invocation, read};
use containers::{
    Containers, again_as_an_ordinary_user, ask, containers, containers_with, elsewhere,
};

fn factories(containers: &Containers) -> [&dyn SandboxFactory; 2] {
    [&*containers.factory, &*containers.setup.factory]
}

async fn create(factory: &dyn SandboxFactory, spec: SandboxSpec) -> Arc<dyn Sandbox> {
    let created = factory.create(spec).await;
    created.unwrap_or_else(|error| panic!("{}", openlambda_core::failure::chain(&error))).sandbox
}

async fn shut_down(containers: &Containers) {
    for factory in factories(containers) {
        factory.shutdown().await;
    }
}

/// Names of modules that a runtime in Python could want, and a function could have.
const NAMES: [&str; 40] = [
    "__future__",
    "_collections_abc",
    "_weakrefset",
    "ast",
    "asyncio",
    "base64",
    "binascii",
    "bootstrap",
    "codecs",
    "collections",
    "contextlib",
    "contextvars",
    "copyreg",
    "enum",
    "functools",
    "importlib",
    "inspect",
    "io",
    "itertools",
    "json",
    "keyword",
    "linecache",
    "logging",
    "openlambda_bootstrap",
    "operator",
    "os",
    "queue",
    "re",
    "select",
    "selectors",
    "site",
    "sitecustomize",
    "socket",
    "ssl",
    "threading",
    "token",
    "tokenize",
    "traceback",
    "types",
    "web",
];

fn bringing(setup: &Setup, names: &[&str], code: &str, manifest: &str) -> SandboxSpec {
    let files: Vec<String> = names.iter().map(|name| format!("{name}.py")).collect();
    let mut all = vec![("f.py", code), ("ol.toml", manifest)];
    all.extend(files.iter().map(|file| (&**file, "V = 'brought'")));
    setup.spec(&all)
}

/// Whatever the files beside a handler are called, its errors are told and the next call is warm.
#[tokio::test(flavor = "multi_thread")]
async fn files_called_as_pythons_own_modules_are_harm_nothing() {
    let containers = containers();
    let event = "
calls = 0
def f(event):
    global calls
    calls += 1
    if event == 'raise': raise ValueError('the real error')
    if event == 'print': print('\\ud800'.encode('utf-8', 'surrogatepass').decode('utf-8', 'surrogateescape'))
    if event == 'surrogate': return '\\ud800'
    if event == 'missing': import not_there
    if event == 'pieces': return (piece for piece in ['a', 'b'])
    if event == 'break': return (1 // int(piece) and piece for piece in ['1', '0'])
    if isinstance(event, dict): return __import__(event['import']).V
    return calls
";
    let each: Vec<Vec<&str>> =
        NAMES.iter().map(|name| vec![*name]).chain([NAMES.to_vec()]).collect();
    for names in &each {
        let sandbox =
            create(&*containers.setup.factory, bringing(&containers.setup, names, event, "")).await;
        let error = call(&*sandbox, "\"raise\"").await.unwrap_err();
        let told = error.function_error.unwrap();
        assert_eq!((&*told.kind, &*told.message), ("ValueError", "the real error"), "{names:?}");
        assert!(
            error.reusable && told.stack_trace.join("").contains("raise ValueError"),
            "{told:?}"
        );
        let error = call(&*sandbox, "\"missing\"").await.unwrap_err();
        assert!(error.message.contains("No module named 'not_there'"), "{names:?}: {error}");
        assert_eq!(call(&*sandbox, "\"surrogate\"").await.unwrap(), "\"\\ud800\"", "{names:?}");
        assert_eq!(ask(&*sandbox, json!("how many")).await, 4, "{names:?}");
        // Those that no Python has loaded before are what the function finds.
        if let ["token" | "types" | "enum" | "re" | "traceback" | "json" | "socket"] = names[..] {
            assert_eq!(ask(&*sandbox, json!({"import": names[0]})).await, "brought");
        }
    }
    let asgi = "
async def app(scope, receive, send):
    if scope['type'] == 'lifespan': return
    if scope['path'] == '/raise': raise ValueError('the real error')
    await send({'type': 'http.response.start', 'status': 200})
    await send({'type': 'http.response.body', 'body': scope['path'].encode()})
";
    let wsgi = "
def app(environ, start_response):
    if environ['PATH_INFO'] == '/raise': raise ValueError('the real error')
    start_response('200 OK', [])
    return [environ['PATH_INFO'].encode()]
";
    for factory in factories(&containers) {
        for (code, style) in [(event, "event"), (asgi, "asgi"), (wsgi, "wsgi"), (asgi, "")] {
            let handler = if style == "event" { "f.f" } else { "f.app" };
            let manifest = match style {
                // The application is found by its name.
                "" => "handler = \"f.f\"\nstyle = \"event\"".to_owned(),
                _ => format!("handler = \"{handler}\"\nstyle = \"{style}\"\nconcurrency = 2"),
            };
            let spec = bringing(&containers.setup, &NAMES, code, &manifest);
            let sandbox = create(factory, spec).await;
            let request = |path: &str, body: &str| {
                let mut request = invocation("r", body.to_owned());
                request.head.path = path.to_owned();
                request
            };
            for _ in 0..2 {
                let error = sandbox.invoke(request("/raise", "\"raise\"")).await.unwrap_err();
                assert!(error.message.contains("the real error"), "{style}: {error}");
                let reply = sandbox.invoke(request("/a%20b", "1")).await.unwrap();
                assert_eq!(reply.status, 200);
                let (body, completion) = read(reply).await;
                assert!(
                    completion.reusable && (style == "event" || body == "/a b"),
                    "{style}: {body}"
                );
            }
            if style == "event" {
                let reply = sandbox.invoke(request("/", "\"pieces\"")).await.unwrap();
                assert_eq!(read(reply).await.0, "ab");
                let broken = sandbox.invoke(request("/", "\"break\"")).await.unwrap().done.await;
                let failure = broken.failure.unwrap();
                assert!(failure.message.contains("ZeroDivisionError"), "{failure:?}");
            }
            sandbox.destroy().await;
        }
    }
    shut_down(&containers).await;
}

/// A handler in `__main__.py` is found, and what is meant for a program does not run.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_be_in_main() {
    let containers = containers();
    let code = "
import multiprocessing, os, sys
def square(n): return n * n
def f(event):
    with multiprocessing.get_context(event).Pool(2) as pool: squares = pool.map(square, [1, 2, 3])
    return [squares, ran, sys.modules['__main__'].f is f]
ran = 'as a module'
if __name__ == '__main__': ran = 'as a program'
";
    let manifest =
        "handler = \"__main__.f\"\nstyle = \"event\"\nmemory_mb = 512\nruntime = \"python\"";
    for factory in factories(&containers) {
        let spec = containers.setup.spec(&[("__main__.py", code), ("ol.toml", manifest)]);
        let sandbox = create(factory, spec).await;
        for method in ["fork", "spawn", "forkserver"] {
            let expected = json!([[1, 4, 9], "as a module", true]);
            assert_eq!(ask(&*sandbox, json!(method)).await, expected, "{method}");
        }
    }
    let manifest = "handler = \"__main__.f\"\nstyle = \"event\"\nruntime = \"python\"";
    for (files, message) in [
        (vec![("ol.toml", manifest)], "No module named '__main__'; add __main__.py"),
        (
            vec![("__main__.py", "def g(): pass"), ("ol.toml", manifest)],
            "'f' is missing in module '__main__'",
        ),
        (
            vec![("__main__.py", "def f(: pass"), ("ol.toml", manifest)],
            "Syntax error in module '__main__'",
        ),
    ] {
        let error = containers.setup.try_create(containers.setup.spec(&files)).await.unwrap_err();
        assert!(error.message.contains(message), "{error}");
    }
    shut_down(&containers).await;
}

/// What a function can import: beside its own packages what the operator gives to all, and nothing that happens
/// to be installed on the machine (where `.ci/deps` has installed pip).
#[tokio::test(flavor = "multi_thread")]
async fn a_function_sees_its_own_packages_and_the_operators_but_not_the_machines() {
    let code = r#"
import importlib, os, subprocess, sys
def can(name):
    try: return importlib.import_module(name).__name__ == name
    except ImportError: return False
import mine, both, all_get
def f(event):
    if event == "imports": return [can(name) for name in ("pip", "json", "sqlite3", "mine", "all_get")]
    if event == "both": return [both.V, all_get.V]
    if event == "path": return [p for p in sys.path if p.endswith("-packages")]
    if event == "child":
        asked = "import importlib.util; print(importlib.util.find_spec('pip'))"
        return subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True).stdout.strip()
    folder = "/usr/lib/python3/dist-packages"
    return os.listdir(folder) if os.path.isdir(folder) else []
"#;
    let given = tempfile::tempdir().unwrap();
    let packages = given.path().join("for all");
    std::fs::create_dir(&packages).unwrap();
    for (name, text) in [("all_get.py", "V = 'given'"), ("both.py", "V = 'given'")] {
        std::fs::write(packages.join(name), text).unwrap();
        readable(&packages.join(name), 0o644);
    }
    readable(&packages, 0o755);
    let containers = containers_with(|config| config.python_packages = vec![packages.clone()]);
    let mut config = common::config(given.path(), &format!("{}-given", containers.setup.mark));
    config.python_packages = vec![packages];
    let process = ProcessFactory::new(config).unwrap();
    let factories: [&dyn SandboxFactory; 2] = [&*containers.factory, &process];
    for factory in factories {
        let own = [("f.py", code), ("mine.py", ""), ("both.py", "V = 'own'")];
        let sandbox = create(factory, containers.spec(&own)).await;
        let imports = json!([false, true, true, true, true]);
        assert_eq!(ask(&*sandbox, json!("imports")).await, imports, "{}", factory.kind());
        assert_eq!(ask(&*sandbox, json!("both")).await, json!(["own", "given"]));
        assert_eq!(ask(&*sandbox, json!("path")).await, json!([]));
        if factory.kind() == "sock" {
            // Not even for a program that looks where the machine has them.
            assert_eq!(ask(&*sandbox, json!("child")).await, "None");
            assert_eq!(ask(&*sandbox, json!("folder")).await, json!([]));
        }
        sandbox.destroy().await;
        // What the author names goes first.
        let manifest = "[environment]\nPYTHONPATH = \"vendor\"\n";
        let own = [
            ("f.py", code),
            ("mine.py", ""),
            ("vendor/both.py", "V = 'named'"),
            ("ol.toml", manifest),
        ];
        let sandbox = create(factory, containers.spec(&own)).await;
        assert_eq!(ask(&*sandbox, json!("both")).await, json!(["named", "given"]));
        sandbox.destroy().await;
    }
    process.shutdown().await;
    shut_down(&containers).await;
}

/// A Python may be in somebody's own folder, as `~/.local`: functions see its program and its library, not what is
/// beside those, and not the packages in it.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_python_in_a_folder_of_its_own_only_what_it_needs_is_shown() {
    let usual = Python::ask(&find_python().unwrap()).unwrap();
    let home = elsewhere();
    let at = |path: &str| home.path().join(path);
    let library = format!("lib/python3.{}", usual.minor);
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        assert!(std::process::Command::new(program).args(arguments).status().unwrap().success());
    };
    for folder in ["bin", "lib", "share"] {
        std::fs::create_dir(at(folder)).unwrap();
    }
    run("cp", &[usual.real.as_ref(), at("bin/python3").as_ref()]);
    run("cp", &["-rL".as_ref(), usual.home.join(&library).as_ref(), at("lib").as_ref()]);
    std::fs::create_dir_all(at(&library).join("site-packages")).unwrap();
    std::fs::write(at(&library).join("site-packages/beside.py"), "").unwrap();
    for secret in ["secret", "share/secret"] {
        std::fs::write(at(secret), "secret").unwrap();
        readable(&at(secret), 0o644);
    }
    let code = r#"
import os, subprocess, sys
home = os.path.dirname(os.path.dirname(sys.executable))
def f(event):
    asked = "import json, importlib.util; print(importlib.util.find_spec('beside'))"
    child = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    return [home, sorted(os.listdir(home)), child.stdout.strip()]
"#;
    let containers = containers_with(|config| config.python = at("bin/python3"));
    let sandbox = containers.create(containers.spec(&[("f.py", code)])).await;
    let seen = json!([home.path(), ["bin", "lib"], "None"]);
    assert_eq!(ask(&*sandbox, Value::Null).await, seen);
    sandbox.destroy().await;
    shut_down(&containers).await;
    // A worker's own files are not among what is shown.
    let containers = containers_with(|config| {
        config.python = at("bin/python3");
        config.state_dir = at("lib/state");
    });
    let error = containers.try_create(containers.spec(&[("f.py", code)])).await.unwrap_err();
    assert_eq!(error.kind, SandboxErrorKind::Unsupported);
    assert!(error.message.contains("are files of the worker; use another"), "{error:?}");
    shut_down(&containers).await;
}

/// `runtime = "python3.N"`, for each that this machine has, and for one that none has.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_runs_in_the_version_of_python_that_it_names() {
    let there = Pythons::new(None, Vec::new()).all();
    assert!(!there.is_empty(), ".ci/deps installs one");
    let containers = containers();
    let code = "import subprocess, sys\ndef f(event):\n    if event: raise ValueError(event)\n    asked = [sys.executable, '-c', 'import sys; print(sys.version_info[1])']\n    return [sys.version_info[1], int(subprocess.check_output(asked))]";
    for factory in factories(&containers) {
        for python in &there {
            let manifest = format!("runtime = \"python3.{}\"", python.minor);
            let spec = containers.spec(&[("f.py", code), ("ol.toml", &manifest)]);
            let sandbox = create(factory, spec).await;
            let both = json!([python.minor, python.minor]);
            assert_eq!(ask(&*sandbox, json!(0)).await, both, "{python:?}");
            let error = call(&*sandbox, "\"told\"").await.unwrap_err().function_error.unwrap();
            assert_eq!(error.stack_trace.len(), 1, "none of its runtime's: {error:?}");
            sandbox.destroy().await;
        }
        let spec = containers.spec(&[("f.py", code), ("ol.toml", "runtime = \"python3.99\"")]);
        let error = factory.create(spec).await.unwrap_err();
        let told = openlambda_core::failure::chain(&error);
        let minor = there[0].minor;
        assert!(told.contains("this machine has no Python 3.99, which runtime = "), "{told}");
        assert!(told.contains(&format!("but 3.{minor}")), "{told}");
        assert_eq!(error.kind, SandboxErrorKind::Unsupported);
    }
    shut_down(&containers).await;
}

fn readable(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Children of every kind do their work, and none of them asks the worker for events.
#[tokio::test(flavor = "multi_thread")]
async fn children_do_not_answer_calls() {
    let containers = containers();
    let code = r#"
import concurrent.futures, multiprocessing, os, subprocess, sys, threading
def square(n): return n * n
def who(n): return [n, os.getpid() != parent()]
def parent(): return os.getppid()
def late(n):
    import not_installed_anywhere
def f(event):
    kind, n = event
    if kind == "pool":
        with multiprocessing.get_context("spawn").Pool(2) as pool: return pool.map(square, [n, n + 1])
    if kind == "forkserver":
        with multiprocessing.get_context("forkserver").Pool(2) as pool: return pool.map(square, [n, n + 1])
    if kind == "executor":
        with concurrent.futures.ProcessPoolExecutor(2) as pool: return list(pool.map(square, [n, n + 1]))
    if kind == "executor spawn":
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool: return list(pool.map(square, [n, n + 1]))
    if kind == "again":
        done = subprocess.run([sys.executable, "-S", *sys.orig_argv[1:]], capture_output=True, text=True)
        return [done.returncode, "the function's runtime, which the worker starts" in done.stderr]
    if kind == "path":
        queue = multiprocessing.get_context("spawn").Queue()
        child = multiprocessing.get_context("spawn").Process(target=path, args=(queue,))
        child.start(); told = queue.get(); child.join()
        return told
    return n
def path(queue): queue.put([p for p in sys.path if p.endswith("-packages")])
"#;
    for factory in factories(&containers) {
        for concurrency in [1_u64, 3] {
            let manifest = format!("concurrency = {concurrency}\nmemory_mb = 1024\ncpus = 2");
            let spec = containers.setup.spec(&[("f.py", code), ("ol.toml", &manifest)]);
            let sandbox = create(factory, spec).await;
            for kind in ["pool", "forkserver", "executor", "executor spawn"] {
                // Calls go on in the other slots, while children run and afterwards.
                let calls = (0..concurrency).map(|n| {
                    let sandbox = &sandbox;
                    async move {
                        if n == 0 {
                            let squares = ask(&**sandbox, json!([kind, 5])).await;
                            assert_eq!(squares, json!([25, 36]), "{kind}");
                            return;
                        }
                        for k in 0..40 {
                            let event = json!(["echo", n * 100 + k]);
                            assert_eq!(ask(&**sandbox, event).await, n * 100 + k, "{kind}");
                        }
                    }
                });
                join_all(calls).await;
            }
            assert_eq!(ask(&*sandbox, json!(["again", 0])).await, json!([1, true]));
            assert_eq!(ask(&*sandbox, json!(["path", 0])).await, json!([]));
            for n in 0..5 {
                assert_eq!(ask(&*sandbox, json!(["echo", n])).await, n);
            }
            sandbox.destroy().await;
        }
    }
    shut_down(&containers).await;
}

/// The same for Node.js, whose children by default run again what runs now.
#[tokio::test(flavor = "multi_thread")]
async fn children_of_node_do_not_answer_calls() {
    let containers = containers();
    let code = "
const cluster = require('cluster');
const { fork } = require('child_process');
const { Worker } = require('worker_threads');
const once = (emitter, name) => new Promise((resolve) => emitter.once(name, (...told) => resolve(told)));
exports.f = async ([kind, n]) => {
  if (kind === 'cluster') return (await once(cluster.fork(), 'exit'))[0];
  if (kind === 'again') return (await once(fork(process.argv[1], { silent: true }), 'exit'))[0];
  if (kind === 'child') {
    const child = fork(__dirname + '/child.js');
    child.send(n);
    const [told] = await once(child, 'message');
    child.disconnect();
    return told;
  }
  if (kind === 'thread') return (await once(new Worker(__dirname + '/thread.js', { workerData: n }), 'message'))[0];
  return n;
};
";
    let files = [
        ("f.js", code),
        ("child.js", "process.on('message', (n) => process.send(n * n));"),
        (
            "thread.js",
            "const w = require('worker_threads'); w.parentPort.postMessage(w.workerData * w.workerData);",
        ),
        ("ol.toml", "handler = \"f.f\"\nconcurrency = 2\nmemory_mb = 512"),
    ];
    for factory in factories(&containers) {
        let sandbox = create(factory, containers.setup.spec(&files)).await;
        for (kind, expected) in [("cluster", 1), ("again", 1), ("child", 49), ("thread", 49)] {
            let echoes = async {
                for n in 0..40 {
                    assert_eq!(ask(&*sandbox, json!(["echo", n])).await, n, "{kind}");
                }
            };
            let (told, ()) = tokio::join!(ask(&*sandbox, json!([kind, 7])), echoes);
            assert_eq!(told, Value::from(expected), "{kind}");
        }
    }
    shut_down(&containers).await;
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
