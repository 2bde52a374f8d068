//! What a warm call costs, and what each hop adds: one Python handler, which returns its event, behind
//! more and more of the platform.
//!
//! | scenario | the way of a call |
//! |---|---|
//! | `python` | client → Unix socket → Python: a minimal HTTP server of a few lines |
//! | `worker, closure` | client → worker → a Rust closure: the worker without a process behind it |
//! | `worker` | client → worker → Python in a process sandbox |
//! | `balancer, worker` | client → balancer → worker → Python in a process sandbox |
//! | `balancer, worker, 32 clients` | the same from 32 at once: the time between two answers |
//!
//! One client sends one call after the other over one kept-alive connection, without a runtime of
//! its own; 32 are as many threads. Balancer and workers have a runtime each, with half as many threads
//! as there are processors, as the daemons have, or with `TOKIO_WORKER_THREADS`; each Python is a
//! process, with the same interpreter and flags.
//!
//! In a virtual machine whose processors halt when idle, each wake of a thread waits for the host to wake
//! a processor, so the benchmark measures the host. Let the guest poll first, as is the kernel's default:
//! `echo 200000 >/sys/module/haltpoll/parameters/guest_halt_poll_ns`.

mod client;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Address, Client};
use criterion::{Criterion, criterion_group, criterion_main};
use openlambda_core::memory::{MemoryRegistry, MemorySandboxFactory};
use openlambda_core::sandbox::SandboxFactory;
use openlambda_core::serving::Serving;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::{Worker, WorkerConfig};
use openlambda_lb::policies::LeastOutstanding;
use openlambda_lb::proxy::{Proxy, ProxyConfig};
use openlambda_sandbox::process::{ProcessConfig, ProcessFactory};
use openlambda_sandbox::sys::{Child, CommandSpec, Spawner};
use tokio::runtime::Runtime;

/// Clients at once.
const CLIENTS: usize = 32;

const HANDLER: &str = "def f(event):\n    return event\n";

/// Serves the handler in the folder argv[1] at the socket argv[2].
const BARE_SERVER: &str = r#"
import json, socket, sys
sys.path.insert(0, sys.argv[1])
from f import f
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[2])
server.listen()
while True:
    connection, _ = server.accept()
    data = b""
    while piece := connection.recv(65536):
        data += piece
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            continue
        headers = dict(line.split(b": ", 1) for line in data[:end - 4].split(b"\r\n")[1:])
        length = int(headers[b"content-length"])
        if len(data) - end < length:
            continue
        event, data = json.loads(data[end:end + length]), data[end + length:]
        reply = json.dumps(f(event)).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(reply)}\r\n\r\n"
        connection.sendall(head.encode() + reply)
"#;

fn warm(c: &mut Criterion) {
    let (servers, scenarios) = Servers::start();
    let mut group = c.benchmark_group("warm");
    for (scenario, address) in &scenarios {
        // Now, since a server closes a connection that is idle for long.
        let mut client = Client::connect(address, "noop");
        group.bench_function(*scenario, |b| b.iter(|| client.call()));
    }
    let (scenario, address) = scenarios.last().expect("there are some");
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Client::connect(address, "noop")).collect();
    group.bench_function(format!("{scenario}, {CLIENTS} clients"), |b| {
        b.iter_custom(|calls| at_once(&mut clients, calls));
    });
    group.finish();
    servers.stop();
}

/// The time that so many calls take, spread over the clients.
#[allow(clippy::disallowed_methods, reason = "a bench measures real time")]
fn at_once(clients: &mut [Client], calls: u64) -> Duration {
    let (all, begin) = (clients.len() as u64, Instant::now());
    std::thread::scope(|scope| {
        for (n, client) in (0..).zip(clients) {
            scope.spawn(move || {
                (0..calls / all + u64::from(n < calls % all)).for_each(|_| client.call())
            });
        }
    });
    begin.elapsed()
}

/// Everything that the clients talk to. Children die with this process, however it ends.
struct Servers {
    python: Child,
    workers: Vec<Serving<std::io::Result<()>>>,
    balancer: Serving,
    for_workers: Runtime,
    for_balancer: Runtime,
    _folder: tempfile::TempDir,
}

/// As a daemon has.
fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        runtime.worker_threads((processors / 2).max(1));
    }
    runtime.enable_all().build().expect("threads")
}

impl Servers {
    fn start() -> (Servers, Vec<(&'static str, Address)>) {
        let (for_workers, for_balancer) = (runtime(), runtime());
        let folder = tempfile::tempdir().expect("a folder");
        let (clock, spawner) = (Arc::new(SystemClock::new()), Spawner::start().expect("a thread"));
        let code = folder.path().join("code");
        std::fs::create_dir(&code).expect("a folder");
        std::fs::write(code.join("f.py"), HANDLER).expect("a file");
        let registry = Arc::new(MemoryRegistry::new());
        let name = "noop".parse().expect("a name");
        for_workers.block_on(registry.publish_dir(&name, &code)).expect("a valid function");

        let (proxy, balancer) = for_balancer.block_on(async {
            let (config, policy) = (ProxyConfig::default(), Box::new(LeastOutstanding::new()));
            let proxy =
                Proxy::new(config, "least-outstanding", policy, registry.clone(), clock.clone());
            let balancer = Serving::start(|listener, stop| proxy.clone().serve(listener, stop));
            (proxy, balancer.expect("a port"))
        });

        let (python, workers) = for_workers.block_on(async {
            let mark = format!("bench-warm-{}", std::process::id());
            let dir = folder.path().join("sandboxes");
            let processes = ProcessConfig::new(dir, mark, spawner.clone(), clock.clone());
            let python = start_python(&spawner, &processes.python, &code, folder.path()).await;
            let processes = Arc::new(ProcessFactory::new(processes).expect("a writable folder"));
            let closures = Arc::new(MemorySandboxFactory::new());
            closures.register_async(name, |event| async { Ok(event) });

            let mut workers = Vec::new();
            let factories: [Arc<dyn SandboxFactory>; 2] = [processes, closures];
            for (n, factory) in factories.into_iter().enumerate() {
                let name = format!("worker-{n}");
                let mut config = WorkerConfig::new(&name, folder.path().join(&name));
                if n == 0 {
                    config.balancers.push(balancer.url().to_owned());
                }
                let worker = Worker::start(config, factory, registry.clone(), clock.clone());
                let worker = worker.await.expect("a writable folder");
                let serving =
                    Serving::start(async move |listener, stop| worker.serve(listener, stop).await);
                workers.push(serving.expect("a port"));
            }
            (python, workers)
        });
        for_balancer.block_on(proxy.ready(1));

        let scenarios = vec![
            ("python", Address::Unix(folder.path().join("bare.sock"))),
            ("worker, closure", Address::Tcp(workers[1].url().to_owned())),
            ("worker", Address::Tcp(workers[0].url().to_owned())),
            ("balancer, worker", Address::Tcp(balancer.url().to_owned())),
        ];
        let servers =
            Servers { python, workers, balancer, for_workers, for_balancer, _folder: folder };
        (servers, scenarios)
    }

    fn stop(self) {
        let Servers { python, workers, balancer, for_workers, for_balancer, _folder } = self;
        for_workers.block_on(async {
            for worker in workers {
                worker.stop().await.expect("the worker served");
            }
        });
        for_balancer.block_on(balancer.stop());
        for_workers.block_on(async {
            python.kill_group();
            python.wait().await;
        });
    }
}

/// The bare server, with the flags that process sandboxes give their interpreters.
async fn start_python(spawner: &Spawner, python: &Path, code: &Path, folder: &Path) -> Child {
    let (script, socket) = (folder.join("bare.py"), folder.join("bare.sock"));
    std::fs::write(&script, BARE_SERVER).expect("a file");
    let mut command = CommandSpec::new(python);
    for flag in ["-S", "-s", "-B"] {
        command = command.arg(flag);
    }
    let command = command.arg(script).arg(code).arg(&socket);
    let child = spawner.spawn(command).await.expect("Python starts");
    while UnixStream::connect(&socket).is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child
}

criterion_group!(benches, warm);
criterion_main!(benches);
