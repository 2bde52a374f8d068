//! What a lean container may use, and that nothing of it is left, however it ends. As root and, by the
//! last test, as an ordinary user: what is not enforced then is asked of the capabilities.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use openlambda_core::conformance::times;
use openlambda_core::sandbox::{
    Exit, LogLine, LogSink, SandboxErrorKind, SandboxFactory, SandboxSpec,
};
use openlambda_sandbox::sock::SockFactory;
use openlambda_sandbox::sys::{Pid, Signal, Spawner, marked_processes, processes_with_mark};
use serde_json::{Value, json};

use common::{Setup, call, eventually, setup, start_worker};
use containers::{
    Containers, again_as_an_ordinary_user, alone, ask, cgroups, config, containers, inventory,
    is_root,
};

/// Runs what it is told, and says how it ended.
const TRY: &str = r#"
import errno, os, resource, signal, subprocess, sys, threading, time
def f(event):
    try:
        space = dict(globals())
        exec(event, space)
        return space.get("result")
    except OSError as error:
        return errno.errorcode[error.errno]
"#;

fn trying(containers: &Containers, manifest: &str) -> SandboxSpec {
    containers.spec(&[("f.py", TRY), ("ol.toml", manifest)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_takes_more_memory_than_its_limit_is_killed_and_known_for_it() {
    let containers = containers();
    assert!(containers.factory.capabilities().memory_limit);
    // By the kernel where there is a cgroup, also one that was delegated; or by somebody who looks.
    let by_kernel = containers.factory.capabilities().cpu_limit;
    let looks = |said: &String| said.contains("memory is looked at");
    assert_eq!(by_kernel, !containers.factory.withheld().iter().any(looks));
    let own = [
        "kept = []\nwhile True: kept.append(b'x' * (1 << 20))",
        // Files in /tmp are memory too, and so are those in /dev/shm.
        "while True:\n    with open('/dev/shm/x', 'ab', 0) as file:\n        try: file.write(b'x' * (1 << 20))\n        except OSError: time.sleep(0.01)",
        "with open('/tmp/x', 'wb') as file:\n    while True: file.write(b'x' * (1 << 20)); file.flush()",
        "import mmap\nm = mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE)\nfor n in range(0, 1 << 30, 4096): m[n] = 1",
    ];
    // Of no process's own. Somebody who looks cannot see it, so it is not made.
    let shared = [
        "import mmap\nm = mmap.mmap(-1, 1 << 30)\nfor n in range(0, 1 << 30, 4096): m[n] = 1",
        "fd = os.memfd_create('x')\nwhile True: os.write(fd, b'x' * (1 << 20))",
    ];
    if !by_kernel {
        let sandbox = containers.create(trying(&containers, "memory_mb = 48")).await;
        for take in shared {
            assert_eq!(ask(&*sandbox, json!(take)).await, "ENOSYS", "{take}");
        }
    }
    for take in own.into_iter().chain(shared.into_iter().filter(|_| by_kernel)) {
        let sandbox = containers.create(trying(&containers, "memory_mb = 48\ntmp_mb = 512")).await;
        let error = call(&*sandbox, &json!(take).to_string()).await.unwrap_err();
        assert_eq!(error.kind, SandboxErrorKind::OutOfMemory, "{take}: {error}");
        assert_eq!(sandbox.exited().await, Exit::OutOfMemory);
        sandbox.destroy().await;
    }
    if !by_kernel {
        // In many processes whose parents have gone. Of these version 1's kernel ends one by one.
        let take = "
for n in range(8):
    if os.fork() == 0:
        if os.fork() == 0: kept = b'x' * (12 << 20); time.sleep(1000)
        os._exit(0)
time.sleep(1000)";
        let sandbox = containers.create(trying(&containers, "memory_mb = 48")).await;
        let error = call(&*sandbox, &json!(take).to_string()).await.unwrap_err();
        assert_eq!(error.kind, SandboxErrorKind::OutOfMemory);
    }
    // Its cgroup is used again, and the next one that ends by itself is not taken for one of these.
    let sandbox = containers.create(trying(&containers, "memory_mb = 48")).await;
    let error = call(&*sandbox, "\"os._exit(3)\"").await.unwrap_err();
    assert_eq!((error.kind, sandbox.exited().await), (SandboxErrorKind::Exited, Exit::Status(3)));
    // What many share counts once, a file that is mapped too.
    let sandbox = containers.create(trying(&containers, "memory_mb = 64\ntmp_mb = 512")).await;
    let share = "
kept = b'x' * (20 << 20)
with open('/tmp/x', 'wb') as file: file.write(b'x' * (12 << 20))
import mmap
mapped = mmap.mmap(os.open('/tmp/x', os.O_RDWR), 12 << 20)
for n in range(0, 12 << 20, 4096): mapped[n] = 1
children = []
for n in range(6):
    if (child := os.fork()) == 0: time.sleep(1000)
    children.append(child)
result = len(children)
import builtins; builtins.kept = kept, mapped
";
    assert_eq!(ask(&*sandbox, json!(share)).await, 6);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ask(&*sandbox, json!("result = 1")).await, 1);
    // A limit below what is in use is refused, or costs the instance; one above is taken.
    let sandbox = containers.create(trying(&containers, "memory_mb = 48")).await;
    sandbox.set_memory_limit(256 << 20).await.unwrap();
    let take = json!("kept = b'x' * (100 << 20)\nresult = len(kept)");
    assert_eq!(ask(&*sandbox, take).await, 100 << 20);
    sandbox.set_memory_limit(64 << 20).await.unwrap();
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_counted_by_instance_and_a_fork_bomb_stays_in_its_own() {
    let containers = containers();
    let spec = trying(&containers, "processes = 20");
    let other = containers.create(trying(&containers, "processes = 2")).await;
    // All of one function, that is of one user on the machine: each has its 20.
    let fill = "
result = 1
try:
    for n in range(1000):
        subprocess.Popen(['/bin/sleep', '1000'])
        result += 1
except OSError as error: result = [result, errno.errorcode[error.errno]]
import builtins; builtins.kept = result
";
    let full = join_all((0..4).map(|_| containers.create(spec.clone()))).await;
    for sandbox in &full {
        assert_eq!(ask(&**sandbox, json!(fill)).await, json!([20, "EAGAIN"]));
        assert_eq!(sandbox.usage().await.unwrap().processes, 20);
        assert!(sandbox.usage().await.unwrap().memory_bytes > 1 << 20);
    }
    // Threads count, too.
    let threads = "
result = 1
try:
    while True:
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(); result += 1
except RuntimeError as error: result = [result, str(error)]
";
    let sandbox = containers.create(spec.clone()).await;
    assert_eq!(ask(&*sandbox, json!(threads)).await, json!([20, "can't start new thread"]));

    let bomb = "
if os.fork() == 0:
    os.setsid()
    while True:
        try: os.fork()
        except OSError: pass
result = 'lit'
";
    let bombs = join_all((0..3).map(|_| containers.create(spec.clone()))).await;
    for bomb_of in &bombs {
        assert_eq!(ask(&**bomb_of, json!(bomb)).await, "lit");
    }
    for n in 0..20 {
        assert_eq!(ask(&*other, json!(format!("result = {n}"))).await, n);
        assert!(bombs[0].usage().await.unwrap().processes <= 20);
    }
    let fresh = containers.create(spec).await;
    assert_eq!(ask(&*fresh, json!("result = 1")).await, 1);
    join_all(bombs.iter().chain(&full).map(|sandbox| sandbox.destroy())).await;
    let left = marked_processes(&[&containers.setup.mark]);
    let programs = left.iter().map(|process| &process.mark);
    let programs = programs.filter(|mark| !mark.ends_with("/nursery") && !mark.ends_with("/init"));
    assert_eq!(programs.count(), 3, "those that live on");
    containers.factory.shutdown().await;
    assert_eq!(processes_with_mark(&containers.setup.mark), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_loops_are_held_back() {
    let containers = containers();
    if !containers.factory.capabilities().cpu_limit {
        assert!(!is_root());
        return;
    }
    let sandbox = containers.create(trying(&containers, "cpus = 0.25")).await;
    let spin = "for n in range(3): subprocess.Popen(['/bin/sh', '-c', 'while :; do :; done'])";
    ask(&*sandbox, json!(spin)).await;
    let throttled = || {
        let groups = cgroups(&containers.setup.mark);
        let read = |name| groups.iter().filter_map(move |g| fs::read_to_string(g.join(name)).ok());
        let quota = read("cpu.cfs_quota_us").chain(read("cpu.max")).any(|q| q.starts_with("25000"));
        assert!(quota, "{groups:?}");
        let count = |text: String| {
            let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled "));
            count.map_or(0, |count| count.parse::<u64>().unwrap())
        };
        read("cpu.stat").map(count).max().unwrap_or(0)
    };
    eventually("it is held back again and again", || async { throttled() > 5 }).await;
    // It still answers.
    assert_eq!(ask(&*sandbox, json!("result = 1")).await, 1);
    containers.factory.shutdown().await;
}

#[derive(Debug, Default)]
struct Counted(AtomicUsize);

impl LogSink for Counted {
    fn line(&self, line: LogLine<'_>) {
        self.0.fetch_add(line.text.len() + 1, Ordering::Relaxed);
    }
}

fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_of_output_neither_blocks_nor_fills_memory() {
    let test = "a_gigabyte_of_output_neither_blocks_nor_fills_memory";
    if !alone(test) {
        return;
    }
    let containers = containers();
    let counted = Arc::new(Counted::default());
    let mut spec = trying(&containers, "");
    spec.log = Arc::<Counted>::clone(&counted);
    let sandbox = containers.create(spec).await;
    let before = resident();
    let print = "
line = b'x' * 65535 + b'\\n'
for n in range(1 << 13): os.write(1, line); os.write(2, line)
";
    ask(&*sandbox, json!(print)).await;
    assert_eq!(counted.0.load(Ordering::Relaxed), 1 << 30);
    assert!(resident() < before + (64 << 20), "{before} {}", resident());
    // What has no line's end is cut.
    ask(&*sandbox, json!("for n in range(1 << 10): os.write(1, b'x' * 65536)")).await;
    assert!(resident() < before + (64 << 20), "{before} {}", resident());
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tmp_is_bounded_in_bytes_and_in_files() {
    let containers = containers();
    let sandbox = containers.create(trying(&containers, "tmp_mb = 8")).await;
    let bytes = "
with open('/tmp/x', 'wb', 0) as file:
    for n in range(1000): file.write(b'x' * (1 << 20))
";
    assert_eq!(ask(&*sandbox, json!(bytes)).await, "ENOSPC");
    assert_eq!(ask(&*sandbox, json!("result = os.stat('/tmp/x').st_size")).await, 8 << 20);
    let files = "
os.unlink('/tmp/x')
result = 0
try:
    while True:
        os.close(os.open(f'/tmp/{result}', os.O_CREAT)); result += 1
except OSError as error: result = [result, errno.errorcode[error.errno]]
";
    // The folder itself is one.
    assert_eq!(ask(&*sandbox, json!(files)).await, json!([8 * 256 + 1023, "ENOSPC"]));
    // Shared memory is a place of its own, as large as the memory.
    let shared = "
from multiprocessing import shared_memory
m = shared_memory.SharedMemory(create=True, size=4096); m.buf[0] = 1; m.close(); m.unlink()
place = os.statvfs('/dev/shm')
result = place.f_blocks * place.f_frsize
";
    assert_eq!(ask(&*sandbox, json!(shared)).await, 128 << 20);
    let files = "
result = 0
try:
    while True:
        os.close(os.open(f'/dev/shm/{result}', os.O_CREAT)); result += 1
except OSError as error: result = [result, errno.errorcode[error.errno]]
";
    assert_eq!(ask(&*sandbox, json!(files)).await, json!([128 * 256 + 1023, "ENOSPC"]));
    containers.factory.shutdown().await;
}

/// A counter that writes to a volume for ever, as a thread, as a child and as one that has made an
/// environment, a session and a group of its own.
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
def count():
    sys.argv = ["", "/v/thread"]
    exec(COUNT, {})
def f(event):
    if event == "begin":
        threading.Thread(target=count, daemon=True).start()
        python = ["/usr/bin/python3", "-S", "-c", COUNT]
        subprocess.Popen([*python, "/v/child"])
        subprocess.Popen(["setsid", "--fork", *python, "/v/session"], env={}).wait()
    return event
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_does_not_run_and_can_be_ended() {
    let containers = containers();
    let manifest = "[[volumes]]\nname = \"v\"\npath = \"/v\"";
    let sandbox =
        containers.create(containers.spec(&[("f.py", COUNTERS), ("ol.toml", manifest)])).await;
    ask(&*sandbox, json!("begin")).await;
    let folder = containers.setup.dir.path().join("sock/volumes/default/tested/v");
    let counts = || {
        ["thread", "child", "session"].map(|name| {
            // A file that is being written is empty for a moment.
            let read = || fs::read_to_string(folder.join(name)).unwrap_or_default();
            (0..100).map(|_| read()).find(|text| !text.is_empty()).unwrap_or_default()
        })
    };
    let all_advance = async || {
        let before = counts();
        eventually("all of it runs", || async {
            let after = counts();
            after.iter().zip(&before).all(|(after, before)| !after.is_empty() && after != before)
        })
        .await;
    };
    for round in 0..3 {
        all_advance().await;
        sandbox.pause().await.unwrap();
        let before = counts();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(counts(), before);
        sandbox.resume().await.unwrap();
        assert_eq!(ask(&*sandbox, json!(round)).await, round);
    }
    all_advance().await;
    sandbox.pause().await.unwrap();
    sandbox.destroy().await;
    // Whatever moment of a pause it is ended at.
    for round in 0..30 {
        let sandbox = containers.create(trying(&containers, "")).await;
        let pause = async { drop(sandbox.pause().await) };
        let destroy = async {
            tokio::time::sleep(Duration::from_micros(37 * round)).await;
            sandbox.destroy().await;
        };
        tokio::join!(pause, destroy);
    }
    containers.factory.shutdown().await;
    assert_eq!(processes_with_mark(&containers.setup.mark), []);
    assert_eq!(cgroups(&containers.setup.mark), [""; 0].map(std::path::PathBuf::from));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_rounds_leave_everything_as_it_was() {
    if !alone("hundreds_of_rounds_leave_everything_as_it_was") {
        return;
    }
    let containers = containers();
    let manifest = "[[volumes]]\nname = \"v\"\npath = \"/v\"";
    let (lone, host) = (trying(&containers, manifest), trying(&containers, "network = \"host\""));
    let containers = &containers;
    let rounds = async |count: usize| {
        for round in 0..count / 4 {
            let one = async |n: usize| {
                let spec = if n == 3 { &host } else { &lone };
                let sandbox = containers.create(spec.clone()).await;
                assert_eq!(ask(&*sandbox, json!("result = 1")).await, 1);
                match round % 3 {
                    0 => sandbox.destroy().await,
                    1 => drop(
                        call(&*sandbox, "\"os.kill(os.fork() or os._exit(0), 0); os._exit(1)\"")
                            .await,
                    ),
                    _ => drop(sandbox),
                }
            };
            join_all((0..4).map(one)).await;
        }
    };
    // The pool fills, and threads of the runtime come.
    rounds(40).await;
    let settled = async || {
        eventually("all are gone", || async {
            let left = marked_processes(&[&containers.setup.mark]);
            left.iter().all(|process| process.mark.ends_with("/nursery"))
        })
        .await;
        // And the pool has been filled.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut now = inventory(&containers.setup);
        for (name, place) in [("own descriptors", "/proc/self/fd"), ("threads", "/proc/self/task")]
        {
            now.insert(name.to_owned(), fs::read_dir(place).unwrap().count());
        }
        now
    };
    let before = settled().await;
    rounds(if is_root() { 500 } else { 200 }).await;
    let after = settled().await;
    // The pool holds at most as many more as were used at once.
    for (name, count) in &after {
        let room = match &**name {
            "cgroups" => 4 * 4,
            "threads" => 2,
            "own descriptors" => 4 * 8,
            _ => 0,
        };
        assert!(*count <= before[name] + room, "{name}: {before:?} {after:?}");
    }
    containers.factory.shutdown().await;
    let left = inventory(&containers.setup);
    assert_eq!((left["processes"], left["cgroups"]), (0, 0));
}

fn nursery(mark: &str) -> Vec<Pid> {
    let found = marked_processes(&[mark]);
    found.iter().filter(|p| p.mark.ends_with("/nursery")).map(|p| p.pid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_nursery_every_sandbox_ends_and_the_next_has_a_new_one() {
    let containers = containers();
    for round in 0..3 {
        let spec = trying(&containers, "");
        let sandboxes = join_all((0..3).map(|_| containers.create(spec.clone()))).await;
        let pids = processes_with_mark(&containers.setup.mark);
        if round % 2 == 1 {
            sandboxes[2].pause().await.unwrap();
        }
        let calls =
            join_all(sandboxes[..2].iter().map(|sandbox| call(&**sandbox, "\"time.sleep(1000)\"")));
        let kill = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            // The home and the network maker. What a create forks looks like them until it is something else.
            let nursery = loop {
                let found = nursery(&containers.setup.mark);
                assert!(found.len() >= 2, "{found:?}");
                if found.len() == 2 {
                    break found;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            };
            // The home is the older one; alone, or both.
            let end = if round < 2 { &nursery[..1] } else { &nursery[..] };
            for pid in end {
                rustix::process::kill_process(*pid, Signal::KILL).unwrap();
            }
        };
        // A create is under way, too: it works or fails, and does not hang.
        let create = containers.try_create(spec.clone());
        let (calls, (), created) = tokio::join!(calls, kill, create);
        for call in calls {
            assert_eq!(call.unwrap_err().kind, SandboxErrorKind::Exited);
        }
        for sandbox in &sandboxes {
            assert_eq!(sandbox.exited().await, Exit::Signal(9));
            sandbox.destroy().await;
        }
        drop(created);
        eventually("all that was born there is dead", || async {
            pids.iter().all(|pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists())
        })
        .await;
        let sandbox = containers.create(spec).await;
        assert_eq!(ask(&*sandbox, json!("result = 'again'")).await, "again");
        sandbox.destroy().await;
    }
    containers.factory.shutdown().await;
    assert_eq!(processes_with_mark(&containers.setup.mark), []);
}

/// The folder that a worker of the next test works in. The test runs itself as that worker.
const FOLDER: &str = "OPENLAMBDA_SOCK_DEATH_TEST";

fn worker_in(folder: &Path) -> Containers {
    let setup = Setup {
        mark: format!("sock-death/{}", folder.file_name().unwrap().to_string_lossy()),
        ..setup()
    };
    let mut config = config(&setup);
    config.state_dir = folder.join("state");
    config.volumes_dir = folder.join("state/volumes");
    Containers { factory: Arc::new(SockFactory::new(config).unwrap()), setup }
}

/// Makes instances of every kind until it is killed.
async fn work(folder: &Path) {
    let containers = worker_in(folder);
    containers.factory.reclaim().await;
    let mut kept = Vec::new();
    for round in 0.. {
        let manifest = if round % 3 == 0 { "network = \"host\"" } else { "" };
        let spec = trying(&containers, manifest);
        for sandbox in join_all((0..2).map(|_| containers.create(spec.clone()))).await {
            ask(
                &*sandbox,
                json!("subprocess.Popen(['setsid', '--fork', 'sleep', '1000'], env={}).wait()"),
            )
            .await;
            if kept.len() % 2 == 0 {
                sandbox.pause().await.unwrap();
            }
            kept.push(sandbox);
        }
        if round == 1 {
            fs::write(folder.join("ready"), "").unwrap();
        }
        if kept.len() > 6 {
            kept.clear();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_leaves_nothing_behind_the_next_one() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return work(Path::new(&folder)).await;
    }
    let spawner = Spawner::start().unwrap();
    for round in 0..8 * times() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join(format!("{}-{round}", std::process::id()));
        fs::create_dir_all(folder.join("tmp")).unwrap();
        let test = "a_worker_that_is_killed_leaves_nothing_behind_the_next_one";
        let tmp = folder.join("tmp");
        let worker = start_worker(&spawner, test, FOLDER, &folder, Some(&tmp)).await;
        let complete = round % 2 == 1;
        if complete {
            eventually("instances run", || async { folder.join("ready").exists() }).await;
        } else {
            let state = folder.join("state/runtimes");
            eventually("it begins", || async { state.exists() }).await;
            tokio::time::sleep(Duration::from_micros(23_917 * round % 180_000)).await;
        }
        assert_eq!(worker.status(), None, "the worker ended by itself");
        worker.signal(Signal::KILL);
        worker.wait().await;

        let containers = worker_in(&folder);
        let mark = &containers.setup.mark;
        let report = containers.factory.reclaim().await;
        assert_eq!(report.failed, [""; 0]);
        // By what a sandbox cannot change: what it runs is in its process namespace.
        eventually("its processes are dead", || async { processes_with_mark(mark).is_empty() })
            .await;
        let sleeping = || {
            let all = fs::read_dir("/proc").unwrap().flatten();
            let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
            let folder = folder.display().to_string();
            lines.filter(|line| String::from_utf8_lossy(line).contains(&folder)).count()
        };
        assert_eq!(sleeping(), 0);
        // The new factory's own folders are there, and no group is in them.
        let left = cgroups(mark);
        let inner = left
            .iter()
            .filter(|group| group.parent().is_some_and(|p| left.contains(&p.to_owned())));
        assert_eq!(inner.count(), 0, "{left:?}");
        assert_eq!(fs::read_dir(folder.join("state/sandboxes")).unwrap().count(), 0);
        assert_eq!(containers.factory.reclaim().await, Default::default(), "a second time");
        let sandbox = containers.create(trying(&containers, "")).await;
        assert_eq!(ask(&*sandbox, json!("result = 1")).await, 1);
        containers.factory.shutdown().await;
        assert_eq!((processes_with_mark(mark), cgroups(mark)), (vec![], vec![]));
    }
}

/// A factory that is dropped without a word leaves as little as one that is shut down.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_factory_leaves_nothing() {
    let containers = containers();
    let sandbox = containers.create(trying(&containers, "")).await;
    assert_eq!(ask(&*sandbox, json!("result = 1")).await, Value::from(1));
    let Containers { setup, factory } = containers;
    drop((sandbox, factory));
    eventually("nothing is left", || async {
        processes_with_mark(&setup.mark).is_empty() && cgroups(&setup.mark).is_empty()
    })
    .await;
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
