//! Processes in a sandbox: orphans, signals, ends, and the init of lean containers, which sees to them and
//! is no way in. As root and, by the last test, as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "common/attempts.rs"]
mod attempts;
mod common;
#[path = "common/containers.rs"]
mod containers;

use std::fs;
use std::os::unix::fs::MetadataExt;

use openlambda_core::sandbox::{Exit, SandboxErrorKind, SandboxFactory, SandboxSpec};
use openlambda_sandbox::sys::{MarkedProcess, marked_processes};
use serde_json::{Value, json};

use attempts::{TRY, all_fail, attempt, result, trying};
use common::{Setup, call, invocation, read};
use containers::{Containers, again_as_an_ordinary_user, ask, containers, is_root};

/// Both kinds of sandboxes: what is asked of one is asked of the other.
fn factories(containers: &Containers) -> [&dyn SandboxFactory; 2] {
    [&*containers.factory, &*containers.setup.factory]
}

fn spec(setup: &Setup, name: &str, code: &str, manifest: &str) -> SandboxSpec {
    setup.spec(&[(name, code), ("ol.toml", manifest)])
}

async fn shut_down(containers: &Containers) {
    for factory in factories(containers) {
        factory.shutdown().await;
    }
}

const ORPHANS_PYTHON: &str = "
import subprocess
def f(event):
    for n in range(4): subprocess.run(['setsid', '--fork', 'true'], check=True)
    return event
";
const ORPHANS_NODE: &str = "
const { spawnSync } = require('child_process');
exports.f = async (event) => {
  for (let n = 0; n < 4; n++) {
    const { status } = spawnSync('setsid', ['--fork', 'true']);
    if (status !== 0) throw new Error(`setsid: ${status}`);
  }
  return event;
};
";

/// Whoever leaves orphans can do so for ever: they are waited for.
#[tokio::test(flavor = "multi_thread")]
async fn orphans_do_not_stay() {
    let containers = containers();
    for factory in factories(&containers) {
        for (name, code, calls) in [("f.py", ORPHANS_PYTHON, 125), ("f.js", ORPHANS_NODE, 40)] {
            let manifest = "handler = \"f.f\"\nstyle = \"lambda\"\nprocesses = 30";
            let manifest = if name == "f.py" { "processes = 30" } else { manifest };
            let created = factory.create(spec(&containers.setup, name, code, manifest)).await;
            let sandbox = created.unwrap().sandbox;
            for n in 0..calls {
                assert_eq!(ask(&*sandbox, json!(n)).await, n, "{name}");
            }
            sandbox.destroy().await;
        }
    }
    shut_down(&containers).await;
}

/// The exit of a function that ends itself in some way.
async fn exit(factory: &dyn SandboxFactory, spec: SandboxSpec) -> Exit {
    let sandbox = factory.create(spec).await.unwrap().sandbox;
    let error = call(&*sandbox, "1").await.unwrap_err();
    assert_eq!(error.kind, SandboxErrorKind::Exited, "{error}");
    sandbox.exited().await
}

/// A function's program is a process like any other: signals do what they do.
#[tokio::test(flavor = "multi_thread")]
async fn signals_act_on_a_program_and_the_worker_is_told_which_or_the_status() {
    let containers = containers();
    for factory in factories(&containers) {
        for (code, expected) in [
            ("os.kill(os.getpid(), 9)", Exit::Signal(9)),
            ("os.kill(os.getpid(), 15)", Exit::Signal(15)),
            ("signal.raise_signal(signal.SIGUSR1)", Exit::Signal(10)),
            ("signal.alarm(1); time.sleep(100)", Exit::Signal(14)),
            ("os.kill(os.getpid(), 64); time.sleep(100)", Exit::Signal(64)),
            ("os.abort()", Exit::Signal(6)),
            ("import ctypes; ctypes.string_at(0)", Exit::Signal(11)),
            ("subprocess.run(['kill', '-9', str(os.getpid())]); time.sleep(100)", Exit::Signal(9)),
            ("os._exit(3)", Exit::Status(3)),
            // Not what a shell makes of a signal.
            ("os._exit(137)", Exit::Status(137)),
            ("os._exit(255)", Exit::Status(255)),
            ("os._exit(0)", Exit::Status(0)),
            // Its children's ends are not its own.
            ("subprocess.run(['sh', '-c', 'kill -9 $$']); os._exit(4)", Exit::Status(4)),
            ("os.execv('/bin/sh', ['sh', '-c', 'kill -15 $$'])", Exit::Signal(15)),
        ] {
            let code = format!("import os, signal, subprocess, time\ndef f(event): {code}");
            let spec = spec(&containers.setup, "f.py", &code, "");
            assert_eq!(exit(factory, spec).await, expected, "{} {code}", factory.kind());
        }
        for (code, expected) in [
            ("process.kill(process.pid, 'SIGKILL')", Exit::Signal(9)),
            (
                "process.kill(process.pid, 'SIGTERM'); await new Promise((r) => setTimeout(r, 1e5))",
                Exit::Signal(15),
            ),
            ("process.abort()", Exit::Signal(6)),
        ] {
            let code = format!("exports.f = async () => {{ {code} }};");
            let spec = spec(&containers.setup, "f.js", &code, "handler = \"f.f\"");
            assert_eq!(exit(factory, spec).await, expected, "{} {code}", factory.kind());
        }
        // A program that has a handler keeps it.
        let code = "
import os, signal
seen = []
signal.signal(signal.SIGTERM, lambda signal, frame: seen.append(signal))
def f(event):
    os.kill(os.getpid(), 15)
    return seen
";
        let created = factory.create(spec(&containers.setup, "f.py", code, "")).await;
        let sandbox = created.unwrap().sandbox;
        assert_eq!(ask(&*sandbox, Value::Null).await, json!([15]));
        sandbox.destroy().await;
    }
    shut_down(&containers).await;
}

/// What is sent to the first process reaches the program, which used to be the first.
#[tokio::test(flavor = "multi_thread")]
async fn the_init_passes_signals_on() {
    let containers = containers();
    let code = "
import os, signal, time
seen = []
for number in (1, 2, 10, 15, 40): signal.signal(number, lambda number, frame: seen.append(number))
def f(event):
    for number in (1, 2, 10, 15, 40):
        os.kill(1, number)
        end = time.time() + 10
        while number not in seen and time.time() < end: time.sleep(0.01)
    return seen
";
    let sandbox = containers.create(containers.spec(&[("f.py", code)])).await;
    assert_eq!(ask(&*sandbox, Value::Null).await, json!([1, 2, 10, 15, 40]));
    let end = spec(
        &containers.setup,
        "f.py",
        "import os, time\ndef f(event): os.kill(os.getppid(), 15); time.sleep(100)",
        "",
    );
    assert_eq!(exit(&*containers.factory, end).await, Exit::Signal(15));
    shut_down(&containers).await;
}

/// A manifest's `processes` are the function's own.
#[tokio::test(flavor = "multi_thread")]
async fn the_init_does_not_count_among_processes() {
    let containers = containers();
    let manifest = "processes = 2";
    let sandbox = containers.create(spec(&containers.setup, "f.py", TRY, manifest)).await;
    assert_eq!(sandbox.usage().await.unwrap().processes, 1);
    let two = "
child = subprocess.Popen(['sleep', '1000'])
try: os.fork(); result = 'three'
except OSError: result = 'two'
import builtins; builtins.kept = child
";
    assert_eq!(result(&*sandbox, two).await, "two");
    assert_eq!(sandbox.usage().await.unwrap().processes, 2);
    result(&*sandbox, "kept.kill(); kept.wait()").await;
    assert_eq!(result(&*sandbox, "result = subprocess.run(['true']).returncode").await, 0);
    shut_down(&containers).await;
}

/// Whoever leaves processes running until there is room for no other gets a new instance.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_can_start_no_process_is_not_used_again() {
    let containers = containers();
    let leave = "
import subprocess
def f(event): subprocess.Popen(['sleep', '1000'])
";
    let web = "
import subprocess
def app(environ, start_response):
    try: subprocess.Popen(['sleep', '1000']); start_response('200 OK', [])
    except OSError: start_response('500 Internal Server Error', [])
    return [b'']
";
    let threads = "
import threading, time
def f(event): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
";
    for (code, manifest) in
        [(leave, ""), (threads, ""), (web, "handler = \"f.app\"\nstyle = \"wsgi\"\n")]
    {
        let manifest = format!("{manifest}processes = 5");
        let sandbox = containers.create(spec(&containers.setup, "f.py", code, &manifest)).await;
        let mut calls = 0;
        let reusable = loop {
            calls += 1;
            match sandbox.invoke(invocation("r", "null")).await {
                Ok(reply) if reply.status.is_success() => {
                    assert!(read(reply).await.1.reusable);
                }
                Ok(reply) => break read(reply).await.1.reusable,
                Err(error) => break error.reusable,
            }
        };
        assert_eq!((calls, reusable), (5, false), "{code}");
        let said = containers.setup.lines.texts();
        assert!(said.iter().any(|line| line.contains("raise processes in ol.toml")), "{said:?}");
        containers.setup.lines.0.lock().unwrap().clear();
        sandbox.destroy().await;
    }
    // What fails for another reason is used again, also where most are in use.
    let most = "import subprocess\ndef f(event): subprocess.Popen(['sleep', '1000']); raise ValueError(event)";
    let alone = "def f(event): raise ValueError(event)";
    for (code, manifest) in [
        (most, "processes = 5"),
        (alone, "processes = 1"),
        (alone, "processes = 3\nconcurrency = 3"),
    ] {
        let sandbox = containers.create(spec(&containers.setup, "f.py", code, manifest)).await;
        for _ in 0..3 {
            assert!(call(&*sandbox, "1").await.unwrap_err().reusable, "{manifest}");
        }
    }
    shut_down(&containers).await;
}

/// Nothing of the first process can be looked at from inside, whatever it is looked at by, and from the
/// first moment on.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_the_init_can_be_looked_at() {
    let containers = containers();
    // As early as there is anybody: in the first instructions of the function's program.
    let script = r#"#!/bin/sh
for what in environ maps auxv syscall stack personality timers io; do
    read -r line < /proc/1/$what && echo "$what: $line"
done
for fd in 0 1 2 3 4 5 6 7 8 9; do readlink /proc/1/fd/$fd && echo looked; done
for folder in root cwd map_files; do ls -l /proc/1/$folder/ && echo looked; done
exec /usr/bin/python3 -S -c '
import os
for what in ("mem", "maps", "environ", "pagemap", "smaps"):
    try: print(what, os.pread(os.open(f"/proc/1/{what}", 0), 64, 0x200000))
    except OSError as error: print(what, error.errno)'
"#;
    for _ in 0..10 {
        let printed = containers.printed(script, "").await;
        let told: Vec<_> = printed
            .iter()
            .filter(|line| {
                !["denied", "No such", "Operation not permitted", "total"]
                    .iter()
                    .any(|refused| line.contains(refused))
            })
            .collect();
        assert_eq!(
            told,
            ["mem 13", "maps 13", "environ 13", "pagemap 13", "smaps 13"],
            "{printed:?}"
        );
    }
    let sandbox = trying(&containers).await;
    let all = "
result = {}
for folder, folders, files in os.walk('/proc/1'):
    for name in files + folders:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            try: result[path] = os.readlink(path)
            except OSError as error: assert error.errno in (errno.EACCES, errno.EPERM), error
            continue
        if name in folders: continue
        for mode in (os.O_RDONLY, os.O_WRONLY):
            try:
                fd = os.open(path, mode)
                told = os.read(fd, 100000).decode(errors='replace') if mode == os.O_RDONLY else 'opened for writing'
                if told.strip(): result[path] = told
            except OSError as error: pass
";
    let found = result(&*sandbox, all).await;
    // What the kernel tells of every process; nothing of it is about what the process has.
    let harmless = [
        "arch_status",
        "autogroup",
        "cgroup",
        "children",
        "cmdline",
        "comm",
        "coredump_filter",
        "cpu_resctrl_groups",
        "cpuset",
        "gid_map",
        "limits",
        "loginuid",
        "mountinfo",
        "mounts",
        "mountstats",
        "oom_adj",
        "oom_score",
        "oom_score_adj",
        "projid_map",
        "sched",
        "schedstat",
        "sessionid",
        "setgroups",
        "stat",
        "statm",
        "status",
        "timens_offsets",
        "timerslack_ns",
        "uid_map",
        "wchan",
        "latency",
        "ksm_stat",
        "ksm_merging_pages",
        "patch_state",
    ];
    for (path, told) in found.as_object().unwrap() {
        let name = path.rsplit('/').next().unwrap();
        let of_network = path.contains("/net/");
        assert!(harmless.contains(&name) || of_network, "{path}: {told}");
        assert_ne!(*told, "opened for writing", "{path}");
    }
    assert_eq!(found["/proc/1/cmdline"], "ol-init\u{0}2\u{0}");
    assert_eq!(found["/proc/1/comm"], "ol-init\n");
    let looking = "nobody may look into it";
    all_fail(
        &*sandbox,
        &[
            ("os.open('/proc/1/fdinfo/0', 0)", "EACCES", looking),
            ("os.listdir('/proc/1/map_files')", "EACCES EPERM", looking),
            ("os.listdir('/proc/1/root/')", "EACCES", looking),
            ("os.listdir('/proc/1/task/1/root/')", "EACCES", looking),
            ("os.open('/proc/1/fd/0', os.O_WRONLY)", "EACCES", looking),
            ("os.open('/proc/1/exe', 0)", "EACCES", looking),
            ("os.open('/proc/1/ns/user', 0)", "EACCES", looking),
            ("os.readlink('/proc/1/ns/user')", "EACCES", looking),
            ("subprocess.run(['/proc/1/exe'])", "EACCES", looking),
        ],
    )
    .await;
    // Without root its user is also the one to whom the kernel gives the folder: there is a descriptor.
    let (ended, listed) = attempt(&*sandbox, "result = os.listdir('/proc/1/fd')").await;
    assert!(ended == "EACCES" || !is_root() && listed == json!(["0"]), "{ended} {listed}");
    // Its limits and its place in line for a core can be lowered.
    let line = "
resource.prlimit(1, resource.RLIMIT_CPU, (1000, 1000))
result = []
for raise_it in [
    lambda: os.setpriority(os.PRIO_PROCESS, 1, -1),
    lambda: os.sched_setscheduler(1, os.SCHED_FIFO, os.sched_param(1)),
    lambda: resource.prlimit(1, resource.RLIMIT_NICE, (20, 20)),
    lambda: resource.prlimit(1, resource.RLIMIT_SIGPENDING, (1, 1)),
]:
    try: raise_it(); result.append('raised')
    except (OSError, ValueError): pass
";
    assert_eq!(result(&*sandbox, line).await, json!([]));
    // It does not end or stop by anything that is done to it.
    let storm = "
for n in range(2000):
    for number in (1, 2, 3, 9, 11, 17, 18, 19, 23, 31, 34, 64):
        if number not in (1, 2, 3, 11, 23, 31, 34, 64) or n == 0 and not signal.signal(number, signal.SIG_IGN) == 5: os.kill(1, number)
result = read('/proc/1/stat').split(') ')[1][0]
";
    let (ended, state) = attempt(&*sandbox, storm).await;
    assert!(ended == "done" && (state == "S" || state == "R"), "{ended} {state}");
    assert_eq!(result(&*sandbox, "result = subprocess.run(['true']).returncode").await, 0);
    shut_down(&containers).await;
}

/// Seen by the worker, who may: it has given up all that it came with.
#[tokio::test(flavor = "multi_thread")]
async fn the_init_holds_nothing_of_the_nursery() {
    let containers = containers();
    let secret = "another function's secret";
    let other =
        spec(&containers.setup, "f.py", TRY, &format!("[environment]\nSECRET = \"{secret}\""));
    let _other = containers.create(other).await;
    let sandbox = containers.create(spec(&containers.setup, "f.py", TRY, "processes = 7")).await;
    result(&*sandbox, "result = 1").await;
    let inits = || {
        let all = marked_processes(&[&containers.setup.mark]);
        all.into_iter().filter(|process| process.mark.ends_with("/init")).collect::<Vec<_>>()
    };
    assert_eq!(inits().len(), 2);
    for MarkedProcess { pid, .. } in inits() {
        let place = format!("/proc/{}", pid.as_raw_nonzero());
        let read = |name: &str| fs::read_to_string(format!("{place}/{name}")).unwrap();
        let maps = read("maps");
        let known = [
            "/memfd:ol-init (deleted)",
            "[stack]",
            "[vdso]",
            "[vvar]",
            "[vvar_vclock]",
            "[vsyscall]",
        ];
        for line in maps.lines() {
            assert!(known.iter().any(|name| line.ends_with(name)), "{maps}");
            assert!(!line.contains("rw-p") || line.ends_with("[stack]"), "{maps}");
        }
        let fds: Vec<_> =
            fs::read_dir(format!("{place}/fd")).unwrap().map(|fd| fd.unwrap()).collect();
        assert_eq!(fds.len(), 1, "{fds:?}");
        assert!(fs::read_link(fds[0].path()).unwrap().to_string_lossy().starts_with("pipe:"));
        let environ = read("environ");
        assert!(
            environ.starts_with("OPENLAMBDA_MARK=") && environ.matches('=').count() == 1,
            "{environ}"
        );
        let status = read("status");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().to_owned()
        };
        for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(value(capabilities), "0000000000000000", "{capabilities}");
        }
        assert_eq!((value("NoNewPrivs:"), value("Seccomp:")), ("1".to_owned(), "2".to_owned()));
        assert!(value("VmRSS:").trim_end_matches(" kB").parse::<u64>().unwrap() < 100, "{status}");
        // Its files are not its user's, who may not look at it.
        let of_root = fs::metadata(format!("{place}/environ")).unwrap().uid() == 0;
        assert_eq!(of_root, is_root());
    }
    shut_down(&containers).await;
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
