//! Containers of a real engine.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/engine.rs"]
mod engine;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use openlambda_core::failure::Started;
use openlambda_core::sandbox::{
    Exit, Isolation, LogLine, LogSink, Sandbox, SandboxError, SandboxErrorKind, SandboxFactory,
    SandboxSpec, Work,
};
use openlambda_sandbox::docker::{BASE_IMAGE, DockerFactory, build_base_image};
use openlambda_sandbox::sys::{Signal, Spawner, processes_with_mark};
use serde_json::{Value, json};

use common::{Setup, call, eventually, invocation, setup, start_worker};
use engine::Engine;

/// The folder that a worker of the death test works in, and the engine that it uses. The test runs
/// itself as that worker.
const FOLDER: &str = "OPENLAMBDA_DOCKER_DEATH_TEST";

struct Docker {
    engine: Arc<Engine>,
    setup: Setup,
    factory: DockerFactory,
}

/// A factory on the engine that all tests share.
async fn docker() -> Docker {
    let engine = Engine::shared().await;
    let setup = setup();
    let factory = connect(&engine, &setup).await;
    Docker { engine, setup, factory }
}

async fn connect(engine: &Engine, setup: &Setup) -> DockerFactory {
    DockerFactory::connect(engine.config(&state(setup), &setup.mark)).await.unwrap()
}

fn state(setup: &Setup) -> PathBuf {
    setup.dir.path().join("docker")
}

impl Docker {
    async fn create(&self, files: &[(&str, &str)]) -> Arc<dyn Sandbox> {
        create(&self.factory, self.setup.spec(files)).await.unwrap_or_else(|error| {
            panic!("{} {:?}", openlambda_core::failure::chain(&error), self.setup.lines.texts())
        })
    }

    async fn refused(&self, spec: SandboxSpec) -> SandboxError {
        create(&self.factory, spec).await.expect_err("it cannot start")
    }

    /// Nothing may be left of anything.
    async fn end(self) {
        self.factory.shutdown().await;
        assert_eq!(self.engine.containers(&self.setup.mark), [""; 0]);
        assert_eq!(fs::read_dir(state(&self.setup).join("sandboxes")).unwrap().count(), 0);
    }
}

async fn create(
    factory: &DockerFactory,
    spec: SandboxSpec,
) -> Result<Arc<dyn Sandbox>, SandboxError> {
    factory.create(spec).await.map(|created| created.sandbox)
}

async fn ask(sandbox: &dyn Sandbox, event: Value) -> Value {
    let reply = call(sandbox, &event.to_string()).await;
    let reply = reply.unwrap_or_else(|error| panic!("{}", openlambda_core::failure::chain(&error)));
    serde_json::from_str(&reply).unwrap()
}

/// Its reply is what a worker puts beside the files.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_compiled_in_a_container() {
    let docker = docker().await;
    assert!(docker.factory.capabilities().compiles);
    let files =
        [("f.py", "import os\nos._exit(3)\n"), ("g.py", "def g(:\n"), ("h/i.py", "x = 1\n")];
    let mut spec = docker.setup.spec(&files);
    spec.work = Work::Compile;
    let sandbox = create(&docker.factory, spec).await.unwrap();
    let list = json!(["f.py", "g.py", "no.py", "h/i.py"]).to_string();
    let reply = sandbox.invoke(invocation("compile", list)).await.unwrap();
    let told = reply.body.collect().await.unwrap().to_bytes();
    let end = told.iter().position(|byte| *byte == b'\n').unwrap();
    assert!(told.starts_with(b"cpython-3"), "{told:?}");
    let (mut rest, mut numbers) = (&told[end + 1..], Vec::new());
    while let Some((number, after)) = rest.split_first_chunk() {
        let (length, after) = after.split_first_chunk().unwrap();
        let (content, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        // The flags: a hash, which is not compared.
        assert_eq!(content[4..8], [1, 0, 0, 0]);
        numbers.push(u32::from_le_bytes(*number));
        rest = after;
    }
    assert_eq!(numbers, [0, 3]);
    sandbox.destroy().await;
    docker.end().await;
}

/// What the machine has installed is not in the image; what the operator gives is mounted.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_has_pythons_library_and_the_operators_packages() {
    let Docker { engine, setup, factory } = docker().await;
    factory.shutdown().await;
    let packages = setup.dir.path().join("for all");
    fs::create_dir(&packages).unwrap();
    fs::write(packages.join("all_get.py"), "V = 'given'").unwrap();
    let mut config = engine.config(&state(&setup), &setup.mark);
    config.python_packages = vec![packages];
    let docker = Docker { factory: DockerFactory::connect(config).await.unwrap(), engine, setup };
    let code = r#"
import glob, sqlite3, sys
import all_get
def f(event):
    try: import pip
    except ImportError: pip = None
    return [all_get.V, pip is None, glob.glob("/usr/**/*-packages", recursive=True)]
"#;
    let sandbox = docker.create(&[("f.py", code)]).await;
    assert_eq!(ask(&*sandbox, json!(1)).await, json!(["given", true, []]));
    sandbox.destroy().await;
    docker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_is_an_ordinary_user_in_a_place_of_its_own() {
    let docker = docker().await;
    const CODE: &str = r#"
import os, socket
def refused(path):
    try:
        with open(path, "w"): return False
    except OSError as error: return error.strerror
def reach(host):
    try: socket.create_connection((host, 80), timeout=5).close()
    except OSError as error: return error.strerror
def f(event):
    status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
    with open("/tmp/program", "w") as file: file.write('#!/bin/sh\nexit 5\n')
    os.chmod("/tmp/program", 0o755)
    tmp = os.statvfs("/tmp")
    print("to the log")
    with open("/dev/stdout", "w") as out: out.write("by its name\n")
    return {
        "ids": [os.getuid(), os.getgid()], "parent": os.getppid(), "cwd": os.getcwd(),
        "capabilities": [status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privs": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
        "task": refused("/var/task/f.py"), "new": refused("/var/task/new"), "etc": refused("/etc/x"),
        "runtime": refused("/var/runtime/ol-init"), "sockets": sorted(os.listdir("/run/openlambda")),
        "tmp": tmp.f_blocks * tmp.f_frsize, "runs": os.waitstatus_to_exitcode(os.system("/tmp/program")),
        "links": sorted(os.listdir("/sys/class/net")), "outside": reach("93.184.216.34"),
        "processes": sum(name.isdigit() for name in os.listdir("/proc")),
        "environment": dict(os.environ),
    }
"#;
    const MANIFEST: &str = "tmp_mb = 32\n[environment]\nGREETING = \"hello\"";
    let sandbox = docker.create(&[("f.py", CODE), ("ol.toml", MANIFEST)]).await;
    let mut told = ask(&*sandbox, json!(1)).await;
    let environment = told.as_object_mut().unwrap().remove("environment").unwrap();
    let expected = json!({
        "ids": [1000, 1000], "parent": 1, "cwd": "/var/task", "capabilities": vec!["0000000000000000"; 4],
        "no_new_privs": "1", "seccomp": "2", "task": "Read-only file system",
        "new": "Read-only file system", "etc": "Read-only file system",
        "runtime": "Read-only file system", "sockets": ["api.sock"], "tmp": 32 << 20, "runs": 5,
        "links": ["lo"], "outside": "Network is unreachable", "processes": 2,
    });
    assert_eq!(told, expected);
    for (name, value) in [
        ("GREETING", "hello"),
        ("HOME", "/tmp"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("AWS_LAMBDA_FUNCTION_NAME", "tested"),
        ("OPENLAMBDA_MARK", &format!("{}/1", docker.setup.mark)),
    ] {
        assert_eq!(environment[name], value);
    }
    // Read before the call was over, so that it is told apart from the next one's.
    let line = |text: &str| {
        (Some("r".to_owned()), openlambda_core::sandbox::LogStream::Stdout, text.to_owned())
    };
    assert_eq!(*docker.setup.lines.0.lock().unwrap(), [line("to the log"), line("by its name")]);
    sandbox.destroy().await;
    docker.end().await;
}

/// `ol-init` stays: as in the other kinds, orphans do not, and signals act.
#[tokio::test(flavor = "multi_thread")]
async fn orphans_do_not_stay_and_signals_act() {
    let docker = docker().await;
    const CODE: &str = r#"
import os, signal
seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
def f(event):
    if event == "end": os.kill(os.getpid(), 9)
    if event == "pass on":
        os.kill(1, signal.SIGUSR1)
        signal.sigtimedwait([], 0.5)
        return seen
    for n in range(10):
        child = os.fork()
        if child == 0:
            if os.fork() == 0: os._exit(0)
            os._exit(0)
        os.waitpid(child, 0)
    return event
"#;
    let sandbox = docker.create(&[("f.py", CODE), ("ol.toml", "processes = 8")]).await;
    for n in 0..20 {
        assert_eq!(ask(&*sandbox, json!(n)).await, n);
    }
    assert_eq!(ask(&*sandbox, json!("pass on")).await, json!([10]));
    call(&*sandbox, "\"end\"").await.unwrap_err();
    assert_eq!(sandbox.exited().await, Exit::Signal(9));
    docker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_running_out_of_memory_is_told() {
    let docker = docker().await;
    let capabilities = docker.factory.capabilities();
    assert!(capabilities.memory_limit && capabilities.process_limit && capabilities.cpu_limit);
    assert_eq!(capabilities.isolation, Isolation::Namespaces);
    assert_eq!(docker.factory.withheld(), [""; 0]);
    const CODE: &str = r#"
import os, time
kept = []
def f(event):
    if event == "fork":
        children = []
        try:
            for _ in range(100):
                pid = os.fork()
                if pid == 0: time.sleep(60); os._exit(0)
                children.append(pid)
        except OSError as error: return [len(children), error.strerror]
        finally:
            for pid in children: os.kill(pid, 9); os.waitpid(pid, 0)
    for _ in range(event): kept.append(b"x" * (1 << 20))
    return len(kept)
"#;
    const MANIFEST: &str = "memory_mb = 64\nprocesses = 8\ncpus = 0.5";
    for _ in 0..3 {
        let sandbox = docker.create(&[("f.py", CODE), ("ol.toml", MANIFEST)]).await;
        // One of the eight is the function itself.
        assert_eq!(
            ask(&*sandbox, json!("fork")).await,
            json!([7, "Resource temporarily unavailable"])
        );
        assert_eq!(ask(&*sandbox, json!(20)).await, 20);
        let usage = sandbox.usage().await.unwrap();
        assert!((20 << 20..64 << 20).contains(&usage.memory_bytes), "{usage:?}");
        assert_eq!(usage.processes, 1);
        sandbox.set_memory_limit(256 << 20).await.unwrap();
        assert_eq!(ask(&*sandbox, json!(100)).await, 120);
        let error = call(&*sandbox, "1000").await.unwrap_err();
        assert_eq!((error.kind, error.started), (SandboxErrorKind::OutOfMemory, Started::Yes));
        assert_eq!(sandbox.exited().await, Exit::OutOfMemory);
    }
    docker.end().await;
}

/// Counts what is printed.
#[derive(Debug, Default)]
struct Counted(AtomicUsize);

impl LogSink for Counted {
    fn line(&self, line: LogLine<'_>) {
        self.0.fetch_add(line.text.len() + 1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_a_fork_bomb_and_a_gigabyte_of_output_harm_their_own_container_alone() {
    let docker = docker().await;
    const CODE: &str = r#"
import os, subprocess
def f(event):
    if event == "loop":
        for n in range(3): subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"])
    if event == "throttled":
        for place in ["cpu/cpu.stat", "cpu.stat"]:
            if os.path.exists("/sys/fs/cgroup/" + place):
                lines = open("/sys/fs/cgroup/" + place).read().splitlines()
                return next(int(line.split()[1]) for line in lines if line.startswith("nr_throttled"))
    if event == "bomb" and os.fork() == 0:
        os.setsid()
        while True:
            try: os.fork()
            except OSError: pass
    if event == "print":
        line = b"x" * 65535 + b"\n"
        for n in range(1 << 13): os.write(1, line); os.write(2, line)
    return event
"#;
    const MANIFEST: &str = "processes = 20\ncpus = 0.25";
    let create = || docker.create(&[("f.py", CODE), ("ol.toml", MANIFEST)]);
    let counted = Arc::new(Counted::default());
    let mut spec = docker.setup.spec(&[("f.py", CODE)]);
    spec.log = Arc::<Counted>::clone(&counted);
    let (looping, bomb, other) = tokio::join!(create(), create(), create());
    let printing = docker.factory.create(spec).await.unwrap().sandbox;
    assert_eq!(ask(&*looping, json!("loop")).await, "loop");
    assert_eq!(ask(&*bomb, json!("bomb")).await, "bomb");
    assert_eq!(ask(&*printing, json!("print")).await, "print");
    assert_eq!(counted.0.load(Ordering::Relaxed), 1 << 30);
    for n in 0..5 {
        assert_eq!(ask(&*other, json!(n)).await, n);
        assert!(bomb.usage().await.unwrap().processes <= 20);
    }
    eventually("it is held back again and again", || async {
        ask(&*looping, json!("throttled")).await.as_u64().unwrap() > 5
    })
    .await;
    for sandbox in [looping, bomb, other, printing] {
        sandbox.destroy().await;
    }
    docker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_container_does_nothing() {
    let docker = docker().await;
    const CODE: &str = r#"
import threading, time
count = 0
def work():
    global count
    while True: count += 1; time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
def f(event): return [count, time.monotonic()]
"#;
    let sandbox = docker.create(&[("f.py", CODE)]).await;
    let begin = ask(&*sandbox, json!(null)).await;
    sandbox.pause().await.unwrap();
    assert_eq!(docker.engine.client(&["ps", "--quiet", "--filter", "status=paused"]).len(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    sandbox.resume().await.unwrap();
    let end = ask(&*sandbox, json!(null)).await;
    let counted = end[0].as_i64().unwrap() - begin[0].as_i64().unwrap();
    let seconds = end[1].as_f64().unwrap() - begin[1].as_f64().unwrap();
    assert!(seconds > 2.0, "{seconds}");
    // It would have been 2000 on an idle machine; the time before and after the pause is short.
    assert!(counted < 1000, "{counted} steps in {seconds} seconds of which 2 were paused");
    docker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_outlive_the_container() {
    let docker = docker().await;
    const CODE: &str = r#"
import os
def f(event):
    path = os.environ["OPENLAMBDA_VOLUME_KEPT"]
    with open(path + "/file", "a") as file: file.write(event)
    with open("/data/file") as file: return file.read()
"#;
    const MANIFEST: &str = "[[volumes]]\nname = \"kept\"\npath = \"/data\"";
    for expected in ["x", "xx"] {
        let sandbox = docker.create(&[("f.py", CODE), ("ol.toml", MANIFEST)]).await;
        assert_eq!(ask(&*sandbox, json!("x")).await, expected);
        sandbox.destroy().await;
    }
    let file = state(&docker.setup).join("volumes/default/tested/kept/file");
    assert_eq!(fs::read_to_string(file).unwrap(), "xx");
    docker.end().await;
}

/// In a shell, with a connection for every request.
const SHELL_BOOTSTRAP: &str = r#"#!/bin/bash
while true; do
    exec 3<>"/dev/tcp/${AWS_LAMBDA_RUNTIME_API/:/\/}"
    printf 'GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n' >&3
    id= length=0
    while IFS=$': \r' read -r name value <&3 && [ -n "$name" ]; do
        case "${name,,}" in
            lambda-runtime-aws-request-id) id=$value ;;
            content-length) length=$value ;;
        esac
    done
    IFS= read -r -N "$length" event <&3
    exec 3>&-
    echo "got $event"
    exec 3<>"/dev/tcp/${AWS_LAMBDA_RUNTIME_API/:/\/}"
    printf 'POST /2018-06-01/runtime/invocation/%s/response HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' "$id" ${#event} "$event" >&3
    cat <&3 >/dev/null
    exec 3>&-
done
"#;

/// The folder of a function that is one static program.
fn noop(setup: &Setup) -> PathBuf {
    let folder = setup.dir.path().join("noop");
    fs::create_dir_all(&folder).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/noop_bootstrap.rs");
    let compiled = std::process::Command::new("rustc")
        .args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "strip=symbols",
            "-C",
            "target-feature=+crt-static",
        ])
        .arg("-o")
        .arg(folder.join("bootstrap"))
        .arg(source)
        .status();
    assert!(compiled.unwrap().success());
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstraps_of_ones_own_find_the_runtime_api() {
    let docker = docker().await;
    let noop = noop(&docker.setup);
    for network in ["none", "host"] {
        let manifest = format!("network = \"{network}\"");
        let shell = docker.create(&[("bootstrap", SHELL_BOOTSTRAP), ("ol.toml", &manifest)]).await;
        for n in 0..3 {
            assert_eq!(ask(&*shell, json!([n])).await, json!([n]));
        }
        assert!(docker.setup.lines.texts().contains(&"got [2]".to_owned()));
        fs::write(noop.join("ol.toml"), &manifest).unwrap();
        let noop = create(&docker.factory, docker.setup.spec_of(&noop)).await.unwrap();
        assert_eq!(ask(&*noop, json!(1)).await, Value::Null);
        noop.destroy().await;
        shell.destroy().await;
    }
    for (bootstrap, kind, hint) in [
        ("#!/no/such\n", "Runtime.InvalidEntrypoint", "#!/bin/sh"),
        (
            "#!/bin/sh\necho why >&2; exit 7\n",
            "Runtime.ExitError",
            "exited with status 7 before it asked for its first event; its last words: why",
        ),
    ] {
        let error = docker.refused(docker.setup.spec(&[("bootstrap", bootstrap)])).await;
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Init, Started::No));
        assert!(error.message.contains(hint), "{error}");
        assert_eq!(error.function_error.unwrap().kind, kind);
    }
    docker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn web_applications_answer_with_status_headers_and_pieces() {
    let docker = docker().await;
    const WSGI: &str = r#"
def app(environ, start_response):
    start_response("418 Teapot", [("x-query", environ["QUERY_STRING"]), ("x-kind", "wsgi")])
    yield environ["PATH_INFO"].encode() + b" "
    yield environ["wsgi.input"].read()
"#;
    const ASGI: &str = r#"
async def app(scope, receive, send):
    if scope["type"] != "http": return
    body = (await receive())["body"]
    headers = [(b"x-query", scope["query_string"]), (b"x-kind", b"asgi")]
    await send({"type": "http.response.start", "status": 418, "headers": headers})
    await send({"type": "http.response.body", "body": scope["path"].encode() + b" ", "more_body": True})
    await send({"type": "http.response.body", "body": body})
"#;
    for (kind, code) in [("wsgi", WSGI), ("asgi", ASGI)] {
        let manifest = format!("style = \"{kind}\"\nhandler = \"f:app\"");
        let sandbox = docker.create(&[("f.py", code), ("ol.toml", &manifest)]).await;
        for n in 0..3 {
            let mut request = invocation(&format!("request-{n}"), format!("body {n}"));
            request.head.path = "/sub/path".to_owned();
            request.head.query = Some(format!("n={n}"));
            let reply = sandbox.invoke(request).await.unwrap();
            assert_eq!(reply.status, 418);
            assert_eq!(reply.headers["x-query"], format!("n={n}"));
            assert_eq!(reply.headers["x-kind"], kind);
            let body = reply.body.collect().await.unwrap().to_bytes();
            // An ASGI application's path is whole, what it is mounted at included.
            assert!(body.ends_with(format!("/sub/path body {n}").as_bytes()), "{body:?}");
            assert!(reply.done.await.reusable);
        }
        sandbox.destroy().await;
    }
    docker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_in_node_need_an_image_that_has_it() {
    let docker = docker().await;
    const CODE: &str = "
exports.handler = async (event) => {
    console.log('printed');
    if (event === 'throw') throw new TypeError('as asked');
    return [event, process.cwd(), process.getuid(), require('os').tmpdir()];
};
";
    let files = [("index.js", CODE), ("ol.toml", "processes = 16")];
    let error = docker.refused(docker.setup.spec(&files)).await;
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Resources, Started::No));
    for next in [BASE_IMAGE, "OPENLAMBDA_DOCKER_IMAGE", "ol image build --with"] {
        assert!(error.message.contains(next), "{error}");
    }
    // Another that has this machine's own.
    let image = "openlambda-node:latest";
    let node = openlambda_sandbox::find_node().expect("there is a Node.js; .ci/deps installs it");
    build_base_image(&docker.engine.socket(), image, &[node]).await.unwrap();
    let setup = setup();
    let mut config = docker.engine.config(&state(&setup), &setup.mark);
    config.image = image.to_owned();
    let factory = DockerFactory::connect(config).await.unwrap();
    for network in ["none", "host"] {
        let manifest = format!("processes = 16\nnetwork = \"{network}\"");
        let spec = setup.spec(&[("index.js", CODE), ("ol.toml", &manifest)]);
        let sandbox = create(&factory, spec).await.unwrap();
        for n in 0..3 {
            assert_eq!(ask(&*sandbox, json!(n)).await, json!([n, "/var/task", 1000, "/tmp"]));
        }
        let told = call(&*sandbox, "\"throw\"").await.unwrap_err().function_error.unwrap();
        assert_eq!((&*told.kind, &*told.message), ("TypeError", "as asked"));
        assert!(setup.lines.texts().contains(&"printed".to_owned()));
        sandbox.destroy().await;
    }
    factory.shutdown().await;
    docker.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_others_remove_is_told() {
    let docker = docker().await;
    let sandbox = docker.create(&[("f.py", "import time\ndef f(event): time.sleep(event)")]).await;
    let id = docker.engine.containers(&docker.setup.mark).remove(0);
    let running = sandbox.invoke(invocation("r", "600"));
    let removing = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        docker.engine.client(&["rm", "--force", &id]);
    };
    let (error, ()) = tokio::join!(running, removing);
    assert_eq!(error.unwrap_err().kind, SandboxErrorKind::Exited);
    assert_eq!(sandbox.exited().await, Exit::Signal(9));
    docker.end().await;
}

/// Makes containers until it is killed.
async fn work(folder: &Path, socket: &Path) {
    let (setup, config) = worker(folder, socket);
    let factory = DockerFactory::connect(config).await.unwrap();
    let spec = setup.spec(&[("f.py", "def f(event): return event")]);
    let mut kept = Vec::new();
    for round in 0.. {
        kept.push(create(&factory, spec.clone()).await.unwrap());
        if round == 1 {
            kept[0].pause().await.unwrap();
            fs::write(folder.join("ready"), "").unwrap();
        }
    }
}

fn worker(folder: &Path, socket: &Path) -> (Setup, openlambda_sandbox::docker::DockerConfig) {
    let setup = setup();
    let mark = format!("docker-death/{}", folder.file_name().unwrap().to_string_lossy());
    let clock = Arc::new(openlambda_core::time::SystemClock::new());
    let mut config =
        openlambda_sandbox::docker::DockerConfig::new(folder.join("state"), mark, clock);
    config.socket = socket.to_owned();
    (setup, config)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_leaves_is_found_by_the_next() {
    if let Some(value) = std::env::var_os(FOLDER) {
        let value = value.into_string().unwrap();
        let (folder, socket) = value.split_once(',').unwrap();
        return work(Path::new(folder), Path::new(socket)).await;
    }
    let engine = Engine::shared().await;
    let folder = tempfile::tempdir().unwrap();
    let value = format!("{},{}", folder.path().display(), engine.socket().display());
    let test = "what_a_killed_worker_leaves_is_found_by_the_next";
    let spawner = Spawner::start().unwrap();
    let child = start_worker(&spawner, test, FOLDER, value, None).await;
    let ready = || async { folder.path().join("ready").exists() };
    eventually("the worker has made containers", ready).await;
    child.signal(Signal::KILL);
    child.wait().await;
    let (_, config) = worker(folder.path(), &engine.socket());
    let mark = config.worker_mark.clone();
    assert!(engine.containers(&mark).len() >= 2);
    let factory = DockerFactory::connect(config).await.unwrap();
    let report = factory.reclaim().await;
    assert_eq!(report.failed, [""; 0]);
    assert!(report.removed.iter().filter(|name| name.starts_with("container")).count() >= 2);
    assert_eq!(engine.containers(&mark), [""; 0]);
    assert!(processes_with_mark(&mark).is_empty());
    assert_eq!(fs::read_dir(folder.path().join("state/sandboxes")).unwrap().count(), 0);
    factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_goes_away_and_comes_back() {
    let setup = setup();
    let mut engine = Engine::bare().await;
    let factory = connect(&engine, &setup).await;
    let spec = setup.spec(&[("f.py", "def f(event): return event")]);
    let advice = |error: SandboxError, next: &str| {
        assert_eq!((error.kind, error.started), (SandboxErrorKind::Resources, Started::No));
        assert!(error.message.contains(next), "{error}");
    };
    advice(factory.probe().await.unwrap_err(), "ol image build");
    advice(create(&factory, spec.clone()).await.unwrap_err(), "ol image build");
    build_base_image(&engine.socket(), BASE_IMAGE, &[]).await.unwrap();
    factory.probe().await.unwrap();

    let one = create(&factory, spec.clone()).await.unwrap();
    let two = create(&factory, spec.clone()).await.unwrap();
    let running =
        || async { engine.client(&["ps", "--quiet", "--filter", "status=running"]).len() == 2 };
    eventually("the engine has written down that both run", running).await;
    engine.kill().await;
    // Calls do not pass through the engine.
    assert_eq!(ask(&*one, json!(1)).await, 1);
    advice(create(&factory, spec.clone()).await.unwrap_err(), "start it");
    let elsewhere = engine.config(&state(&setup).join("other"), "other");
    advice(DockerFactory::connect(elsewhere).await.unwrap_err(), "start it");
    // It ends although nobody can be asked to end it.
    one.destroy().await;
    assert!(call(&*one, "1").await.is_err());

    engine.start().await;
    // This engine ends what ran when it died.
    two.exited().await;
    let three = create(&factory, spec).await.unwrap();
    assert_eq!(ask(&*three, json!(3)).await, 3);
    three.destroy().await;
    drop(two);
    let clean = || async { engine.containers(&setup.mark).is_empty() };
    eventually("all containers are gone", clean).await;
    factory.shutdown().await;
    assert!(processes_with_mark(&setup.mark).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_with_a_kernel_of_its_own() {
    let engine = Engine::shared().await;
    let setup = setup();
    let mut config = engine.config(&state(&setup), &setup.mark);
    config.runtime = Some("no-such".to_owned());
    let error = DockerFactory::connect(config.clone()).await.unwrap_err();
    assert!(error.message.contains("daemon.json"), "{error}");

    config.runtime = Some("runsc".to_owned());
    let factory = DockerFactory::connect(config).await.unwrap();
    assert_eq!(factory.capabilities().isolation, Isolation::Kernel);
    let docker = Docker { engine, setup, factory };
    let python = docker.create(&[(
        "f.py",
        "import os\ndef f(event):\n    print('hello', flush=True)\n    return [event, os.uname().release, os.getuid()]",
    )])
    .await;
    let told = ask(&*python, json!(1)).await;
    assert_eq!((&told[0], &told[2]), (&json!(1), &json!(1000)));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_ne!(told[1], kernel.trim(), "it is the machine's own kernel");
    let printed = || async { docker.setup.lines.texts().contains(&"hello".to_owned()) };
    eventually("its output comes", printed).await;
    python.pause().await.unwrap();
    python.resume().await.unwrap();
    assert_eq!(ask(&*python, json!(2)).await[0], 2);
    let noop = create(&docker.factory, docker.setup.spec_of(&noop(&docker.setup))).await.unwrap();
    assert_eq!(ask(&*noop, json!(1)).await, Value::Null);
    python.destroy().await;
    noop.destroy().await;
    docker.end().await;
}
