//! What the next tenant of a cell, a cgroup and a network namespace, finds of the last one: nothing but
//! the counters that the module's documentation names. As root and as an ordinary user.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use std::sync::Arc;

use openlambda_core::sandbox::{Exit, Sandbox, SandboxErrorKind, SandboxFactory, SandboxSpec};
use serde_json::{Value, json};

use common::call;
use containers::{Containers, again_as_an_ordinary_user, ask, cgroups, containers_with, is_root};

/// Looks at everything, leaves what it can, or does what it is told.
const TENANT: &str = r#"
import ctypes, glob, mmap, os, socket, struct, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
def read(path):
    try:
        with open(path) as file: return file.read()
    except OSError as error: return type(error).__name__
def below(folder):
    return sorted(os.path.join(place, name) for place, _, files in os.walk(folder) for name in files)
def sockets(path, column):
    return sorted(line.split()[column] for line in read(path).splitlines()[1:])
def look():
    seen = {
        "place": os.stat("/proc/self/ns/net").st_ino,
        # Bound addresses; of Unix sockets names only, since those without are of our own connection.
        "tcp": sockets("/proc/net/tcp", 1), "tcp6": sockets("/proc/net/tcp6", 1),
        "udp": sockets("/proc/net/udp", 1), "udp6": sockets("/proc/net/udp6", 1),
        "raw": sockets("/proc/net/raw", 1),
        "unix": sorted({line.split()[7] for line in read("/proc/net/unix").splitlines()[1:] if line.count(" ") and len(line.split()) > 7}),
        "routes": read("/proc/net/route"), "addresses": read("/proc/net/if_inet6"),
        "local": read("/proc/net/fib_trie"), "neighbours": read("/proc/net/arp"),
        "groups": read("/proc/net/igmp").split("Timer")[0],
        "links": sorted(line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:]),
        "flags": [flag for flag in os.listdir("/sys")],
        "settings": {path: read(path) for path in below("/proc/sys/net") + below("/proc/sys/kernel")
                     if not any(varies in path for varies in VARIES)},
        "mounts": [line.split(" ", 3)[3] for line in read("/proc/self/mountinfo").splitlines()],
        "files": below("/tmp") + below("/dev/shm") + below("/etc") + below("/run") + below("/var"),
        "ipc": [read("/proc/sysvipc/" + name).count("\n") for name in ("msg", "sem", "shm")],
        "host": socket.gethostname(), "groups of control": read("/proc/self/cgroup"),
        "limits": read("/proc/self/limits"), "processes": sorted(n for n in os.listdir("/proc") if n.isdigit()),
    }
    return seen
# The machine's own, which change by themselves.
VARIES = ["random/", "ns_last_pid", "nf_conntrack", "pty/nr", "tcp_mem", "perf_", "fs/", "dentry"]
def leave():
    kept = []
    def keep(what):
        try: kept.append(what())
        except OSError: pass
    with open("/tmp/left", "w") as file: file.write("x" * (1 << 20))
    keep(lambda: open("/dev/shm/left", "w"))
    for kind, address in [(socket.SOCK_STREAM, ("127.0.0.1", 7777)), (socket.SOCK_DGRAM, ("127.0.0.1", 7778))]:
        def bound():
            s = socket.socket(type=kind); s.bind(address)
            if kind == socket.SOCK_STREAM: s.listen()
            return s
        keep(bound)
    def named():
        s = socket.socket(socket.AF_UNIX); s.bind("\0left"); s.listen(); return s
    keep(named)
    def member():
        s = socket.socket(type=socket.SOCK_DGRAM)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("224.0.0.99") + socket.inet_aton("127.0.0.1"))
        return s
    keep(member)
    # Connections whose ends wait for late packets (the listener came second), and some that are never taken.
    for n in range(20):
        keep(lambda: socket.create_connection(("127.0.0.1", 7777)))
        keep(lambda: kept[1].accept()[0].close())
        keep(lambda: socket.create_connection(("127.0.0.1", 9001), 1))
    # System V: shared memory, semaphores, messages.
    libc.shmget(1, 4096, 0o1666); libc.semget(1, 1, 0o1666); libc.msgget(1, 0o1666)
    for path in ["/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/hostname"]:
        keep(lambda: open(path, "w").write("1024 1025"))
    keep(lambda: socket.sethostname("left"))
    # RTM_NEWADDR of 10.0.0.1/8 to loopback.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        payload = struct.pack("BBBBI", 2, 8, 0, 0, 1) + struct.pack("HH4B", 8, 2, 10, 0, 0, 1)
        s.send(struct.pack("IHHII", 16 + len(payload), 20, 5, 1, 0) + payload)
    subprocess.Popen(["setsid", "--fork", "sleep", "1000"], env={}).wait()
    import builtins; builtins.kept = kept
    return "left"
def f(event):
    if event == "look": return look()
    if event == "leave": return leave()
    if event == "fill":
        kept = []
        while True: kept.append(b"x" * (1 << 20))
    if event == "fork":
        n = 1
        try:
            while True: subprocess.Popen(["/bin/sleep", "1000"]); n += 1
        except OSError: return n
    if event == "exit": os._exit(0)
"#;

fn spec(containers: &Containers, manifest: &str) -> SandboxSpec {
    containers.spec(&[("f.py", TENANT), ("ol.toml", manifest)])
}

async fn tenant(containers: &Containers, manifest: &str) -> Arc<dyn Sandbox> {
    containers.create(spec(containers, manifest)).await
}

const SMALL: &str = "memory_mb = 48\nprocesses = 10\ncpus = 0.5\ntmp_mb = 8";

#[tokio::test(flavor = "multi_thread")]
async fn the_next_tenant_of_a_cell_finds_what_the_first_one_found() {
    let containers = containers_with(|config| config.ready_cells = 0);
    let small = spec(&containers, SMALL);
    let first = containers.create(small.clone()).await;
    let found = ask(&*first, json!("look")).await;
    first.destroy().await;
    for end in ["destroy", "exit", "fill"] {
        let manifest = "memory_mb = 96\nprocesses = 40\ncpus = 1.0\ntmp_mb = 64";
        let last = tenant(&containers, manifest).await;
        assert_eq!(ask(&*last, json!("leave")).await, "left");
        if end == "destroy" {
            last.destroy().await;
        } else {
            call(&*last, &json!(end).to_string()).await.unwrap_err();
            let exit = last.exited().await;
            assert_eq!(exit == Exit::OutOfMemory, end == "fill", "{exit:?}");
            last.destroy().await;
        }
        let next = containers.create(small.clone()).await;
        let mut finds = ask(&*next, json!("look")).await;
        for (what, found) in found.as_object().unwrap() {
            assert_eq!(finds[what].take(), *found, "{what}, after {end}");
        }
        next.destroy().await;
    }
    containers.factory.shutdown().await;
}

/// Limits are the new tenant's own, and what happened under the old ones is not held against it.
#[tokio::test(flavor = "multi_thread")]
async fn limits_and_counters_begin_anew() {
    let containers = containers_with(|config| config.ready_cells = 0);
    for round in 0..3 {
        let large = tenant(&containers, "memory_mb = 96\nprocesses = 40").await;
        assert_eq!(ask(&*large, json!("fork")).await, 40);
        if round == 1 {
            large.set_memory_limit(512 << 20).await.unwrap();
        }
        let error = call(&*large, "\"fill\"").await.unwrap_err();
        assert_eq!(error.kind, SandboxErrorKind::OutOfMemory);
        large.destroy().await;

        let small = tenant(&containers, SMALL).await;
        let usage = small.usage().await.unwrap();
        assert_eq!(usage.processes, 1);
        assert!(usage.memory_bytes < 48 << 20, "{usage:?}");
        assert_eq!(ask(&*small, json!("fork")).await, 10);
        // It ends by itself, in a group where others were killed.
        assert_eq!(call(&*small, "\"exit\"").await.unwrap_err().kind, SandboxErrorKind::Exited);
        assert_eq!(small.exited().await, Exit::Status(0));
        small.destroy().await;
        let small = tenant(&containers, SMALL).await;
        let error = call(&*small, "\"fill\"").await.unwrap_err();
        assert_eq!(error.kind, SandboxErrorKind::OutOfMemory);
        // One that was paused when it ended leaves nobody frozen.
        small.destroy().await;
        let paused = tenant(&containers, SMALL).await;
        paused.pause().await.unwrap();
        paused.destroy().await;
        let next = tenant(&containers, SMALL).await;
        assert_ne!(ask(&*next, json!("look")).await, Value::Null);
        next.destroy().await;
    }
    if is_root() {
        // In each hierarchy the worker's folder and one group for all of them.
        let groups = cgroups(&containers.setup.mark);
        assert!(groups.len() <= 4 * 2, "{groups:?}");
    }
    containers.factory.shutdown().await;
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
