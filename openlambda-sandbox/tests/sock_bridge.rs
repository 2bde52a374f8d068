//! Lean containers with `network = "bridge"`. Each test has a machine of its own, namespaces from which
//! nothing leads out but to a world that the test makes too:
//!
//! ```text
//! sandboxes ── ol…-… : machine : uplink 203.0.113.1 ──── 203.0.113.2, 169.254.169.254 : world
//!                         └──── docker0 172.17.0.1 ───── 172.17.0.2 : container
//! ```
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use futures_util::future::join_all;
use openlambda_core::manifest::Network;
use openlambda_core::sandbox::{
    Sandbox, SandboxError, SandboxErrorKind, SandboxFactory, SandboxSpec,
};
use openlambda_sandbox::sock::{SockFactory, remove_network_rules};
use openlambda_sandbox::sys::{Signal, Spawner, processes_with_mark};
use serde_json::{Value, json};

use common::{Setup, call, eventually, setup, start_worker};
use containers::{
    Containers, again_as_an_ordinary_user, alone_in, ask, config, containers, is_root,
};

/// Somebody on a network: it answers at port 80 with the address it sees, and connects where it is told.
const NEIGHBOUR: &str = r#"
import socket, subprocess, sys, threading
print("there", flush=True)
for words in sys.stdin.readline().split(","):
    subprocess.run(["ip", *words.split()], check=True)
server = socket.create_server(("0.0.0.0", 80))
def serve():
    while True:
        s, peer = server.accept()
        s.sendall(peer[0].encode()); s.close()
threading.Thread(target=serve, daemon=True).start()
print("serves", flush=True)
for line in sys.stdin:
    try: print(socket.create_connection(line.split(), 2).recv(99).decode(), flush=True)
    except OSError as error: print(type(error).__name__, flush=True)
"#;

struct Neighbour {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Neighbour {
    /// One in a network of its own, to which `device` here leads.
    fn new(device: &str, commands: &str) -> Neighbour {
        let mut process = Command::new("unshare")
            .args(["--net", "--", "/usr/bin/python3", "-c", NEIGHBOUR])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let pid = process.id().to_string();
        let mut neighbour = Neighbour { process, to, from: BufReader::new(from) };
        assert_eq!(neighbour.line(), "there");
        run("ip", &format!("link add {device} type veth peer name eth0 netns {pid}"));
        run("ip", &format!("link set {device} up"));
        assert_eq!(neighbour.ask(commands), "serves");
        neighbour
    }

    fn ask(&mut self, line: &str) -> String {
        writeln!(self.to, "{line}").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(program: &str, words: &str) -> String {
    let output = Command::new(program).args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {words}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the test as root of a machine of its own. Whether we are there.
fn on_a_machine(test: &str) -> bool {
    is_root() && alone_in(test, &["unshare", "--net", "--mount", "--"])
}

/// The machine's way to the world.
fn world() -> Neighbour {
    run("ip", "link set lo up");
    let world = Neighbour::new(
        "uplink",
        "link set lo up,link set eth0 up,addr add 203.0.113.2/24 dev eth0,\
         addr add 169.254.169.254/32 dev eth0,route add default via 203.0.113.1",
    );
    run("ip", "addr add 203.0.113.1/24 dev uplink");
    run("ip", "route add default via 203.0.113.2");
    world
}

/// A container of another engine, at a bridge, with a port that the machine publishes for it.
fn container() -> Neighbour {
    run("ip", "link add docker0 type bridge");
    run("ip", "link set docker0 up");
    run("ip", "addr add 172.17.0.1/16 dev docker0");
    let container = Neighbour::new(
        "container",
        "link set eth0 up,addr add 172.17.0.2/16 dev eth0,route add default via 172.17.0.1",
    );
    run("ip", "link set container master docker0");
    run("nft", "add table ip published");
    let hook = "{ type nat hook prerouting priority dstnat; }";
    run("nft", &format!("add chain ip published prerouting {hook}"));
    let rule = "ip daddr 203.0.113.1 tcp dport 8080 dnat to 172.17.0.2:80";
    run("nft", &format!("add rule ip published prerouting {rule}"));
    container
}

/// Says what it finds at addresses, all at once.
const REACH: &str = r#"
import os, socket, subprocess, threading
def reach(address, found):
    try: found[":".join(map(str, address))] = socket.create_connection(address, 2).recv(99).decode()
    except OSError as error: found[":".join(map(str, address))] = type(error).__name__
def f(event):
    if event == "address":
        s = socket.socket(type=socket.SOCK_DGRAM); s.connect(("203.0.113.2", 1))
        return s.getsockname()[0]
    if event == "listen":
        def serve(server):
            while True: server.accept()[0].sendall(b"a sandbox")
        threading.Thread(target=serve, args=[socket.create_server(("0.0.0.0", 5555))], daemon=True).start()
        return None
    if event == "resolver": return open("/etc/resolv.conf").read()
    if event == "keep": return subprocess.Popen(["setsid", "--fork", "sleep", "1000"], env={}).wait()
    if event == "devices": return [name for _, name in socket.if_nameindex()]
    found = {}
    threads = [threading.Thread(target=reach, args=[tuple(address), found]) for address in event]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return found
"#;

fn bridged(containers: &Containers) -> SandboxSpec {
    containers.spec(&[("f.py", REACH), ("ol.toml", "network = \"bridge\"")])
}

/// What the machine has of bridged networks: devices, tables, rules.
fn traces() -> Vec<String> {
    let devices = run("ip", "-oneline link show");
    let devices = devices.lines().filter(|line| line.contains(": ol"));
    let tables = run("nft", "list tables inet");
    let rules = run("iptables", "--wait --list-rules FORWARD");
    let ours = |line: &&str| line.contains("openlambda/");
    let found = devices.chain(tables.lines().filter(ours)).chain(rules.lines().filter(ours));
    found.map(str::to_owned).collect()
}

async fn no_trace_is_left() {
    // The kernel removes devices some time after their namespace's last process.
    eventually("nothing is left of bridged networks", || async { traces().is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridged_sandbox_reaches_the_world_and_nothing_else() {
    if !on_a_machine("a_bridged_sandbox_reaches_the_world_and_nothing_else") {
        return;
    }
    let (mut world, _container) = (world(), container());
    let machine = TcpListener::bind("0.0.0.0:7777").unwrap();
    std::thread::spawn(move || {
        for stream in machine.incoming() {
            let _ = stream.unwrap().write_all(b"the machine");
        }
    });
    for closed in [false, true] {
        // As Docker's engine has it.
        run("iptables", if closed { "-P FORWARD DROP" } else { "-P FORWARD ACCEPT" });
        let containers = containers();
        assert!(containers.factory.capabilities().networks.contains(&Network::Bridge));
        let spec = bridged(&containers);
        let (sandbox, other) =
            tokio::join!(containers.create(spec.clone()), containers.create(spec.clone()));
        let own = ask(&*sandbox, json!("address")).await;
        let others = ask(&*other, json!("address")).await;
        assert_ne!(own, others);
        ask(&*other, json!("listen")).await;
        let gateway = |address: &Value| {
            let address: std::net::Ipv4Addr = address.as_str().unwrap().parse().unwrap();
            std::net::Ipv4Addr::from(address.to_bits() & !1).to_string()
        };
        let found = ask(
            &*sandbox,
            json!([
                ["203.0.113.2", 80],
                ["203.0.113.1", 7777],
                ["172.17.0.1", 7777],
                [gateway(&own), 7777],
                [gateway(&others), 7777],
                ["127.0.0.1", 7777],
                [others, 5555],
                ["169.254.169.254", 80],
                ["172.17.0.2", 80],
                ["203.0.113.1", 8080]
            ]),
        )
        .await;
        let mut expected = json!({
            // What the world sees is the machine's address.
            "203.0.113.2:80": "203.0.113.1",
            "203.0.113.1:7777": "TimeoutError",
            "172.17.0.1:7777": "TimeoutError",
            "127.0.0.1:7777": "ConnectionRefusedError",
            "169.254.169.254:80": "TimeoutError",
            "172.17.0.2:80": "TimeoutError",
            "203.0.113.1:8080": "TimeoutError",
        });
        expected[format!("{}:7777", gateway(&own))] = json!("TimeoutError");
        expected[format!("{}:7777", gateway(&others))] = json!("TimeoutError");
        expected[format!("{}:5555", others.as_str().unwrap())] = json!("TimeoutError");
        assert_eq!(found, expected, "closed: {closed}");
        // What was out of reach is there, for others; and nobody gets in.
        assert_eq!(world.ask("203.0.113.1 7777"), "the machine");
        if !closed {
            assert_eq!(world.ask("203.0.113.1 8080"), "203.0.113.2");
        }
        assert_eq!(world.ask(&format!("{} 5555", others.as_str().unwrap())), "TimeoutError");
        // Of two devices there is one to the machine, without addresses of IPv6.
        let devices = ask(&*sandbox, json!("devices")).await;
        assert!(devices.as_array().unwrap().contains(&json!("eth0")), "{devices}");
        assert_eq!(run("ip", "-6 addr show scope link type veth").matches("ol").count(), 0);

        // One without such a network has none, beside it.
        let lone = containers.create(containers.spec(&[("f.py", REACH)])).await;
        let found = ask(&*lone, json!([["203.0.113.2", 80]])).await;
        assert_eq!(found["203.0.113.2:80"], "OSError");
        containers.factory.shutdown().await;
        no_trace_is_left().await;
    }
}

/// Keeps what fits into sockets of TCP whose buffers have grown: those of who reads fast do, and stay so.
/// Beside the loopback that has no room for it, since a bridged network's buffers are the machine's.
const GROW: &str = r#"
import socket, threading
kept, held = [], 0
def f(event):
    global held
    if event == "held": return held
    s = socket.socket(type=socket.SOCK_DGRAM); s.connect(("203.0.113.2", 1))
    server = socket.create_server((s.getsockname()[0], 0)); kept.append(server)
    piece, place = bytes(1 << 18), bytearray(1 << 18)
    def read(s):
        left = 64 << 20
        while left: left -= s.recv_into(place, min(left, len(place)))
    while held < 100 << 20:
        one = socket.create_connection(server.getsockname()); other = server.accept()[0]
        kept.extend([one, other])
        reader = threading.Thread(target=read, args=[other]); reader.start()
        for n in range(256): one.sendall(piece)
        reader.join(); one.setblocking(False)
        try:
            while True: held += one.send(piece)
        except BlockingIOError: pass
    return held
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_sockets_of_a_bridged_network_is_bounded() {
    if !on_a_machine("what_waits_in_sockets_of_a_bridged_network_is_bounded") {
        return;
    }
    let _world = world();
    // By cgroups, where the machine has them, and by the watchdog.
    for watched in [false, true] {
        if watched {
            run("mount", "-t tmpfs tmpfs /sys/fs/cgroup");
        }
        let containers = containers();
        let manifest = "network = \"bridge\"\nmemory_mb = 64";
        let spec = containers.spec(&[("f.py", GROW), ("ol.toml", manifest)]);
        let sandbox = containers.create(spec).await;
        let ended = |error: &SandboxError| {
            assert_eq!(error.kind, SandboxErrorKind::OutOfMemory, "watched: {watched}: {error}");
        };
        match call(&*sandbox, "null").await {
            Err(error) => ended(&error),
            Ok(_) => {
                eventually("it ends", || async {
                    call(&*sandbox, "\"held\"").await.inspect_err(ended).is_err()
                })
                .await;
            }
        }
        sandbox.destroy().await;
        containers.factory.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn name_servers_are_those_that_can_be_reached() {
    if !on_a_machine("name_servers_are_those_that_can_be_reached") {
        return;
    }
    let _world = world();
    let containers = containers();
    // As systemd-resolved has it, whose server is at the machine's loopback.
    let local = containers.setup.dir.path().join("resolv.conf");
    fs::write(&local, "nameserver 127.0.0.53\n").unwrap();
    run("mount", &format!("--bind {} /etc/resolv.conf", local.display()));
    run("mount", "-t tmpfs tmpfs /run");
    fs::create_dir_all("/run/systemd/resolve").unwrap();
    fs::write("/run/systemd/resolve/resolv.conf", "nameserver 203.0.113.2\n").unwrap();
    let lone = containers.create(containers.spec(&[("f.py", REACH)])).await;
    let sandbox = containers.create(bridged(&containers)).await;
    assert_eq!(ask(&*lone, json!("resolver")).await, "nameserver 127.0.0.53\n");
    assert_eq!(ask(&*sandbox, json!("resolver")).await, "nameserver 203.0.113.2\n");
    containers.factory.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_the_machine_and_networks_go_with_their_sandboxes() {
    if !on_a_machine("workers_share_the_machine_and_networks_go_with_their_sandboxes") {
        return;
    }
    let _world = world();
    let (one, two) = (containers(), containers());
    let reach = async |sandbox: &Arc<dyn Sandbox>| {
        let found = ask(&**sandbox, json!([["203.0.113.2", 80]])).await;
        assert_eq!(found["203.0.113.2:80"], "203.0.113.1");
    };
    let (of_one, of_two) = (bridged(&one), bridged(&two));
    let mut addresses = Vec::new();
    for _ in 0..5 {
        let (first, second) = tokio::join!(one.create(of_one.clone()), two.create(of_two.clone()));
        for sandbox in [&first, &second] {
            reach(sandbox).await;
            addresses.push(ask(&**sandbox, json!("address")).await.to_string());
        }
        first.destroy().await;
        drop(second);
    }
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 10, "an address was used twice: {addresses:?}");
    // Those that wait for the next ones are there still: four of each worker.
    let devices = || traces().iter().filter(|trace| trace.contains(": ol")).count();
    eventually("those in use are gone", || async { devices() == 8 }).await;

    // Whoever is left is not harmed by the other's end, nor by that of its nursery.
    two.factory.shutdown().await;
    let sandbox = one.create(of_one.clone()).await;
    reach(&sandbox).await;
    let nursery = processes_with_mark(&one.setup.mark);
    for pid in nursery {
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }
    sandbox.exited().await;
    let sandbox = one.create(of_one.clone()).await;
    reach(&sandbox).await;
    // Many at once.
    let many = join_all((0..20).map(|_| one.create(of_one.clone()))).await;
    join_all(many.iter().map(reach)).await;
    let Containers { setup: _setup, factory } = one;
    drop((sandbox, many, factory));
    no_trace_is_left().await;
}

/// The folder that a worker of the next test works in. The test runs itself as that worker.
const FOLDER: &str = "OPENLAMBDA_BRIDGE_DEATH_TEST";

fn worker_in(folder: &Path) -> Containers {
    let setup = Setup { mark: "bridge-death/w1".to_owned(), ..setup() };
    let mut config = config(&setup);
    config.state_dir = folder.join("state");
    config.volumes_dir = folder.join("state/volumes");
    Containers { factory: Arc::new(SockFactory::new(config).unwrap()), setup }
}

async fn work(folder: &Path) {
    let containers = worker_in(folder);
    containers.factory.reclaim().await;
    let spec = bridged(&containers);
    let sandboxes = join_all((0..3).map(|_| containers.create(spec.clone()))).await;
    ask(&*sandboxes[0], json!("keep")).await;
    sandboxes[1].pause().await.unwrap();
    fs::write(folder.join("ready"), "").unwrap();
    loop {
        drop(containers.create(spec.clone()).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_a_worker_that_was_killed_go_at_the_next_start() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return work(Path::new(&folder)).await;
    }
    let test = "rules_of_a_worker_that_was_killed_go_at_the_next_start";
    if !on_a_machine(test) {
        return;
    }
    let _world = world();
    run("iptables", "-P FORWARD DROP");
    let spawner = Spawner::start().unwrap();
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        fs::create_dir(folder.join("tmp")).unwrap();
        let worker = start_worker(&spawner, test, FOLDER, folder, Some(&folder.join("tmp"))).await;
        eventually("instances run", || async { folder.join("ready").exists() }).await;
        worker.signal(Signal::KILL);
        worker.wait().await;
        assert!(traces().iter().any(|trace| trace.contains("bridge-death/w1")));

        let containers = worker_in(folder);
        // Others' are not touched.
        assert_eq!(remove_network_rules("bridge-death/w").removed, [""; 0]);
        if round < 2 {
            let report = containers.factory.reclaim().await;
            assert_eq!(report.failed, [""; 0]);
            assert!(report.removed.iter().any(|it| it.contains("table inet")), "{report:?}");
        } else {
            // Whoever cleans up after a whole cluster knows where its marks begin.
            containers.factory.reclaim().await;
            assert_eq!(remove_network_rules("bridge-death").failed, [""; 0]);
        }
        no_trace_is_left().await;
        let sandbox = containers.create(bridged(&containers)).await;
        let found = ask(&*sandbox, json!([["203.0.113.2", 80]])).await;
        assert_eq!(found["203.0.113.2:80"], "203.0.113.1");
        containers.factory.shutdown().await;
        no_trace_is_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_root_a_bridged_network_is_refused_with_the_reason() {
    if is_root() {
        return again_as_an_ordinary_user("nothing");
    }
    let containers = containers();
    assert!(!containers.factory.capabilities().networks.contains(&Network::Bridge));
    let error = containers.try_create(bridged(&containers)).await.unwrap_err();
    assert_eq!(error.kind, SandboxErrorKind::Unsupported);
    assert!(error.message.contains("run the worker as root"), "{error}");
    assert!(containers.factory.withheld().iter().any(|it| it.contains("run the worker as root")));
    containers.factory.shutdown().await;
}
