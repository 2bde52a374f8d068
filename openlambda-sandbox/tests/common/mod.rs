//! What the tests of process sandboxes share.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "it is a module of several binaries")]

use std::ffi::OsStr;
use std::fs;
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use openlambda_core::function::Digest;
use openlambda_core::invocation::{Completion, Invocation, Reply, RequestHead, full_body};
use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::{
    LogLine, LogSink, LogStream, Sandbox, SandboxError, SandboxFactory, SandboxSpec,
};
use openlambda_core::time::{Clock, SystemClock, Time};
use openlambda_sandbox::process::{ProcessConfig, ProcessFactory};
use openlambda_sandbox::sys::{Child, CommandSpec, Output, Spawner, processes_with_mark};
use tempfile::TempDir;

/// A factory with its state in a temporary folder.
pub struct Setup {
    pub dir: TempDir,
    pub mark: String,
    pub factory: Arc<ProcessFactory>,
    pub lines: Arc<Lines>,
}

#[derive(Debug, Default)]
pub struct Lines(pub Mutex<Vec<(Option<String>, LogStream, String)>>);

impl LogSink for Lines {
    fn line(&self, line: LogLine<'_>) {
        let id = line.request_id.map(str::to_owned);
        self.0.lock().unwrap().push((id, line.stream, line.text.to_owned()));
    }
}

impl Lines {
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(.., text)| text.clone()).collect()
    }
}

pub fn own_mark() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn config(dir: &Path, mark: &str) -> ProcessConfig {
    let spawner = Spawner::start().unwrap();
    ProcessConfig::new(dir.join("state"), mark, spawner, Arc::new(SystemClock::new()))
}

/// Runs one test of this program again in a process of its own, with a variable that tells it to be
/// the worker that is killed.
pub async fn start_worker(
    spawner: &Spawner,
    test: &str,
    variable: &str,
    value: impl AsRef<OsStr>,
    tmp: Option<&Path>,
) -> Child {
    let mut worker = CommandSpec::new(std::env::current_exe().unwrap())
        .arg("--exact")
        .arg(test)
        .arg("--nocapture")
        .env(variable, value);
    if let Some(tmp) = tmp {
        worker = worker.env("TMPDIR", tmp);
    }
    worker.inherit_env = true;
    worker.stderr = Output::Inherit;
    spawner.spawn(worker).await.unwrap()
}

pub fn setup() -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let mark = own_mark();
    let factory = Arc::new(ProcessFactory::new(config(dir.path(), &mark)).unwrap());
    Setup { dir, mark, factory, lines: Arc::default() }
}

impl Setup {
    /// The spec of a function with these files.
    pub fn spec(&self, files: &[(&str, &str)]) -> SandboxSpec {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let code = self.dir.path().join(format!("code{n}"));
        fs::create_dir(&code).unwrap();
        for (name, text) in files {
            let path = code.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            // Whatever our umask is, as the unpacked bundle has them.
            let mode = if *name == "bootstrap" { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
        }
        self.spec_of(&code)
    }

    /// The spec of the function in a folder.
    pub fn spec_of(&self, code: &Path) -> SandboxSpec {
        let manifest = Arc::new(Manifest::load(code).unwrap());
        let log: Arc<dyn LogSink> = Arc::<Lines>::clone(&self.lines);
        let name = "tested".parse().unwrap();
        let digest = Digest::from_bytes([7; 32]);
        let mut spec = SandboxSpec::new(name, digest, code.to_owned(), manifest, log);
        spec.init_timeout *= patience();
        spec
    }

    pub async fn create(&self, spec: SandboxSpec) -> Arc<dyn Sandbox> {
        self.try_create(spec).await.unwrap_or_else(|error| {
            panic!("{}\n{:?}", openlambda_core::failure::chain(&error), self.lines.texts())
        })
    }

    pub async fn try_create(&self, spec: SandboxSpec) -> Result<Arc<dyn Sandbox>, SandboxError> {
        self.factory.create(spec).await.map(|created| created.sandbox)
    }

    /// Processes and folders of instances.
    pub fn leftovers(&self) -> Vec<String> {
        let processes = processes_with_mark(&self.mark);
        let processes = processes.iter().map(|pid| format!("process {pid:?}"));
        let folders = fs::read_dir(self.dir.path().join("state/sandboxes")).unwrap();
        processes.chain(folders.map(|f| f.unwrap().path().display().to_string())).collect()
    }
}

/// How many files and folders are below this one.
pub fn files_below(folder: &Path) -> usize {
    let mut files = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // One of an instance may go while we look.
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            files += 1;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
        }
    }
    files
}

pub fn invocation(id: &str, body: impl Into<Bytes>) -> Invocation {
    Invocation {
        id: id.parse().unwrap(),
        function: "tested".parse().unwrap(),
        deadline: Time::MAX,
        deadline_unix_ms: SystemClock::new().unix_millis() + 30_000,
        head: RequestHead { path: "/".to_owned(), ..RequestHead::default() },
        body: full_body(body),
        websocket: None,
    }
}

pub async fn read(reply: Reply) -> (String, Completion) {
    let body = reply.body.collect().await.unwrap().to_bytes();
    (String::from_utf8(body.into()).unwrap(), reply.done.await)
}

pub async fn call(sandbox: &dyn Sandbox, body: &str) -> Result<String, SandboxError> {
    let reply = sandbox.invoke(invocation("r", body.to_owned())).await?;
    Ok(read(reply).await.0)
}

/// How many times slower than a processor this machine may be: an emulated one is.
fn patience() -> u32 {
    let named = std::env::var("OPENLAMBDA_TEST_PATIENCE");
    named.map_or(1, |factor| factor.parse().expect("it is a number"))
}

pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..3000 * patience() {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never happened: {what}");
}
