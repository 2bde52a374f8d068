//! What the start of a sandbox costs: create, first answer, destroy, one after the other.
//!
//! * `starts/KIND/noop`: a static program that answers `null`;
//! * `starts/KIND/python`: a function in Python;
//! * `starts/KIND/resume`: a paused instance is resumed, answers, and is paused again.
//!
//! `ol bench start` compares kinds side by side, many starts at once, and with other programs.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use openlambda_core::function::Digest;
use openlambda_core::invocation::{Invocation, RequestHead, full_body};
use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::{NoLog, Sandbox, SandboxFactory, SandboxSpec};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_sandbox::NOOP_BOOTSTRAP;
use openlambda_sandbox::process::{ProcessConfig, ProcessFactory};
use openlambda_sandbox::sock::{SockConfig, SockFactory};
use openlambda_sandbox::sys::Spawner;
use tokio::runtime::Runtime;

fn starts(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let folder = tempfile::tempdir().expect("a folder");
    // Sandboxes are other users.
    open(folder.path(), 0o755);
    let functions = [
        ("noop", function(&folder.path().join("noop"), "bootstrap", NOOP_BOOTSTRAP)),
        ("python", function(&folder.path().join("python"), "f.py", b"def f(event): return None\n")),
    ];
    let kinds = runtime.block_on(async { kinds(folder.path()) });
    let mut group = c.benchmark_group("starts");
    group.sample_size(50);
    for factory in &kinds {
        let factory = &**factory;
        for (name, spec) in &functions {
            group.bench_function(format!("{}/{name}", factory.kind()), |b| {
                b.iter(|| {
                    runtime.block_on(async {
                        let sandbox = create(factory, spec).await;
                        call(&*sandbox).await;
                        sandbox.destroy().await;
                    });
                });
            });
        }
        if factory.capabilities().pause {
            let sandbox = runtime.block_on(create(factory, &functions[0].1));
            group.bench_function(format!("{}/resume", factory.kind()), |b| {
                b.iter(|| {
                    runtime.block_on(async {
                        sandbox.pause().await.expect("it is idle");
                        sandbox.resume().await.expect("it is paused");
                        call(&*sandbox).await;
                    });
                });
            });
            runtime.block_on(sandbox.destroy());
        }
    }
    group.finish();
    for factory in &kinds {
        runtime.block_on(factory.shutdown());
    }
}

/// What can be measured on this machine: without isolation, and lean containers.
fn kinds(folder: &Path) -> [Arc<dyn SandboxFactory>; 2] {
    let (clock, spawner) = (Arc::new(SystemClock::new()), Spawner::start().expect("a thread"));
    let mark = |kind| format!("bench-starts-{kind}-{}", std::process::id());
    let process = folder.join("process");
    let process = ProcessConfig::new(process, mark("process"), spawner.clone(), clock.clone());
    let sock = SockConfig::new(folder.join("sock"), mark("sock"), spawner, clock);
    [
        Arc::new(ProcessFactory::new(process).expect("a writable folder")),
        Arc::new(SockFactory::new(sock).expect("a writable folder")),
    ]
}

/// A function of one file.
fn function(code: &Path, file: &str, content: &[u8]) -> SandboxSpec {
    std::fs::create_dir(code).expect("a new folder");
    open(code, 0o755);
    std::fs::write(code.join(file), content).expect("a writable folder");
    open(&code.join(file), 0o755);
    let manifest = Arc::new(Manifest::load(code).expect("a valid function"));
    let (name, digest) = ("bench".parse().expect("a name"), Digest::from_bytes([0; 32]));
    SandboxSpec::new(name, digest, code.to_owned(), manifest, Arc::new(NoLog))
}

fn open(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
}

async fn create(factory: &dyn SandboxFactory, spec: &SandboxSpec) -> Arc<dyn Sandbox> {
    let created = factory.create(spec.clone()).await;
    created.unwrap_or_else(|error| panic!("{}: {error}; see ol doctor", factory.kind())).sandbox
}

async fn call(sandbox: &dyn Sandbox) {
    let invocation = Invocation {
        id: "bench".parse().expect("an id"),
        function: "bench".parse().expect("a name"),
        deadline: Time::MAX,
        deadline_unix_ms: SystemClock::new().unix_millis() + 60_000,
        head: RequestHead::default(),
        body: full_body("null"),
        websocket: None,
    };
    let reply = sandbox.invoke(invocation).await.expect("it answers");
    assert!(reply.status.is_success());
    assert!(reply.done.await.reusable);
}

criterion_group!(benches, starts);
criterion_main!(benches);
