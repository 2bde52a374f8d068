//! The smallest legal sandbox: a function is a shell script that gets the body on its standard
//! input and answers on its standard output, one process per invocation.
//!
//! What the contract asks for and is easily forgotten: a slot stays busy while the script runs, even
//! when nobody waits for the answer any more; `exited` resolves; Drop ends what still runs.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openlambda_core::failure::FunctionError;
use openlambda_core::function::Digest;
use openlambda_core::invocation::{
    Completion, Invocation, Reply, RequestHead, RequestIds, StartKind, full_body,
};
use openlambda_core::manifest::{Manifest, Network};
use openlambda_core::sandbox::{
    Capabilities, Created, Exit, NoLog, Report, Sandbox, SandboxError, SandboxErrorKind,
    SandboxFactory, SandboxSpec, Usage, collect_body,
};
use openlambda_core::time::{Clock, SystemClock, Time};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::{oneshot, watch};

#[derive(Debug)]
struct ShellFactory {
    clock: Arc<SystemClock>,
}

#[async_trait]
impl SandboxFactory for ShellFactory {
    fn kind(&self) -> &'static str {
        "shell"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::none();
        capabilities.networks = vec![Network::None, Network::Host];
        capabilities
    }

    async fn create(&self, spec: SandboxSpec) -> Result<Created, SandboxError> {
        let script = spec.code.join("run.sh");
        if !script.is_file() {
            let message = "there is no run.sh; add the script that answers";
            return Err(SandboxError::new(SandboxErrorKind::Init, message));
        }
        let sandbox = Arc::new(ShellSandbox {
            script,
            busy: Arc::default(),
            exit: watch::channel(None).0,
            clock: Arc::clone(&self.clock),
        });
        let (create, init) = (Duration::ZERO, Duration::ZERO);
        Ok(Created { sandbox, start: StartKind::Cold, create, init })
    }

    async fn reclaim(&self) -> Report {
        Report::default()
    }

    // A real factory destroys what it has made; see MemorySandboxFactory.
    async fn shutdown(&self) {}
}

#[derive(Debug)]
struct ShellSandbox {
    script: PathBuf,
    busy: Arc<AtomicBool>,
    exit: watch::Sender<Option<Exit>>,
    clock: Arc<SystemClock>,
}

/// The one slot; free again when dropped.
struct Slot(Arc<AtomicBool>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Drop for ShellSandbox {
    fn drop(&mut self) {
        self.exit.send_replace(Some(Exit::Destroyed));
    }
}

#[async_trait]
impl Sandbox for ShellSandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        use SandboxErrorKind as K;
        if self.exit.borrow().is_some() {
            return Err(SandboxError::new(K::Exited, "the sandbox is destroyed"));
        }
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(SandboxError::new(K::Busy, "the script is running already"));
        }
        let slot = Slot(Arc::clone(&self.busy));
        let body = collect_body(invocation.body).await?;
        let begin = self.clock.now();
        let (answer, answered) = oneshot::channel();
        let (script, mut exit) = (self.script.clone(), self.exit.subscribe());
        // A task of its own: dropping `invoke` must not free the slot while the script runs.
        tokio::spawn(async move {
            let result = tokio::select! {
                result = run(script, body) => result,
                _ = exit.wait_for(Option::is_some) => {
                    Err(SandboxError::new(K::Exited, "the sandbox was destroyed"))
                }
            };
            drop(slot);
            let _ = answer.send(result);
        });
        let lost = |_| SandboxError::new(K::Exited, "the runtime is shutting down");
        let output = answered.await.map_err(lost)??;
        let run = self.clock.now().since(begin);
        let done = Completion { run, reusable: true, failure: None };
        Ok(Reply {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            body: full_body(output),
            done: Box::pin(async { done }),
        })
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let _ = exit.wait_for(Option::is_some).await;
        Exit::Destroyed
    }

    fn slots(&self) -> u32 {
        1
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        Err(SandboxError::new(SandboxErrorKind::Unsupported, "scripts cannot be paused"))
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        Ok(())
    }

    async fn set_memory_limit(&self, _bytes: u64) -> Result<(), SandboxError> {
        Err(SandboxError::new(SandboxErrorKind::Unsupported, "scripts have no memory limit"))
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        Ok(Usage::default())
    }

    async fn destroy(&self) {
        self.exit.send_replace(Some(Exit::Destroyed));
        while self.busy.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn run(script: PathBuf, body: Bytes) -> Result<Bytes, SandboxError> {
    let broken = |error| {
        SandboxError::new(SandboxErrorKind::Resources, "the script cannot be run")
            .with_source(error)
    };
    let mut command = Command::new("/bin/sh");
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().map_err(broken)?;
    let mut stdin = child.stdin.take();
    // At the same time, or a script that answers before it has read all would block both.
    let write = async move {
        if let Some(stdin) = &mut stdin {
            let _ = stdin.write_all(&body).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), write);
    let output = output.map_err(broken)?;
    if output.status.success() {
        return Ok(output.stdout.into());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = output.status.to_string();
    let error = FunctionError { message, kind, stack_trace: Vec::new() };
    Err(SandboxError::new(SandboxErrorKind::Function, error.message.clone())
        .with_function_error(error))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let code = tempfile::tempdir()?;
    let script =
        "read name; test -n \"$name\" || { echo no name >&2; exit 1; }; echo Hello, $name!";
    std::fs::write(code.path().join("run.sh"), script)?;

    let factory = ShellFactory { clock: Arc::new(SystemClock::new()) };
    let spec = SandboxSpec::new(
        "greet".parse()?,
        Digest::from_bytes([0; 32]),
        code.path().to_owned(),
        Arc::new(Manifest::default()),
        Arc::new(NoLog),
    );
    let sandbox = factory.create(spec).await?.sandbox;
    let ids = RequestIds::new(1);
    for name in ["world\n", "\n"] {
        let invocation = Invocation {
            id: ids.next(),
            function: "greet".parse()?,
            deadline: Time::MAX,
            deadline_unix_ms: u64::MAX,
            head: RequestHead::default(),
            body: full_body(name),
        };
        match sandbox.invoke(invocation).await {
            Ok(reply) => {
                use http_body_util::BodyExt;
                let body = reply.body.collect().await.map_err(|error| error.to_string())?;
                print!("{}", String::from_utf8_lossy(&body.to_bytes()));
            }
            Err(error) => println!("failed: {error}"),
        }
    }
    sandbox.destroy().await;
    Ok(())
}
