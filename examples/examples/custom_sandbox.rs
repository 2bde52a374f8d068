//! The smallest legal sandbox: a function is a shell script that gets the body on its standard
//! input and answers on its standard output, one process per invocation.
//!
//! | the bundle's file | when it runs |
//! |---|---|
//! | `init.sh`, if there is one | once, when an instance is made |
//! | `run.sh` | for each call; a status other than 0 is an error, a signal ends the instance |
//!
//! What the contract asks for and is easily forgotten: a slot stays busy while the script runs, even
//! when nobody waits for the answer any more; a crash is told to every later call; Drop ends what
//! still runs; `shutdown` waits for what was only dropped, too.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openlambda_core::failure::{FunctionError, Started};
use openlambda_core::function::Digest;
use openlambda_core::invocation::{
    Completion, Invocation, Reply, RequestHead, RequestId, RequestIds, StartKind, full_body,
};
use openlambda_core::manifest::{Manifest, Network};
use openlambda_core::sandbox::{
    Capabilities, Created, Exit, LogLine, LogStream, NoLog, Report, Sandbox, SandboxError,
    SandboxErrorKind, SandboxFactory, SandboxSpec, Usage, collect_body,
};
use openlambda_core::time::{Clock, SystemClock, Time};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::{oneshot, watch};

/// Makes sandboxes that run scripts.
#[derive(Debug)]
struct ShellFactory {
    clock: Arc<SystemClock>,
    /// What was made and is not gone; `None` after the shutdown.
    made: Mutex<Option<Vec<Arc<Instance>>>>,
}

impl ShellFactory {
    fn new() -> Self {
        ShellFactory { clock: Arc::new(SystemClock::new()), made: Mutex::new(Some(Vec::new())) }
    }

    fn made(&self) -> MutexGuard<'_, Option<Vec<Arc<Instance>>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        use SandboxErrorKind as K;
        if !self.capabilities().networks.contains(&spec.manifest.network) {
            let message = "scripts share this machine's network; set network = \"host\"";
            return Err(SandboxError::new(K::Unsupported, message));
        }
        if !spec.code.join("run.sh").is_file() {
            let message = "there is no run.sh; add the script that answers";
            return Err(SandboxError::new(K::Init, message));
        }
        let begin = self.clock.now();
        let init = spec.code.join("init.sh");
        if init.is_file() {
            let too_late = tokio::time::sleep(spec.init_timeout);
            let ran = run(&init, Bytes::new(), too_late).await.map_err(broken)?;
            let output = ran.ok_or_else(|| {
                let message = format!("init.sh took over {:?}; do less in it", spec.init_timeout);
                SandboxError::new(K::InitTimeout, message)
            })?;
            if !output.status.success() {
                return Err(raised(K::Init, &output));
            }
        }
        let instance = Arc::new(Instance {
            spec,
            clock: Arc::clone(&self.clock),
            busy: watch::channel(0).0,
            exit: watch::channel(None).0,
        });
        match &mut *self.made() {
            Some(made) => {
                made.retain(|instance| !instance.is_gone());
                made.push(Arc::clone(&instance));
            }
            None => return Err(SandboxError::new(K::Resources, "the worker is shutting down")),
        }
        Ok(Created {
            sandbox: Arc::new(ShellSandbox { instance }),
            start: StartKind::Cold,
            create: Duration::ZERO,
            init: self.clock.now().since(begin),
        })
    }

    // A worker that was killed takes no scripts along: a real factory marks its processes, so that
    // the next one finds them. See openlambda_sandbox::process.
    async fn reclaim(&self) -> Report {
        Report::default()
    }

    async fn shutdown(&self) {
        let made = self.made().take().unwrap_or_default();
        for instance in &made {
            instance.end(Exit::Destroyed);
        }
        for instance in made {
            instance.gone().await;
        }
    }
}

/// The owner's handle; Drop ends the instance.
#[derive(Debug)]
struct ShellSandbox {
    instance: Arc<Instance>,
}

impl Drop for ShellSandbox {
    fn drop(&mut self) {
        self.instance.end(Exit::Destroyed);
    }
}

#[async_trait]
impl Sandbox for ShellSandbox {
    async fn invoke(&self, invocation: Invocation) -> Result<Reply, SandboxError> {
        let slot = self.instance.reserve()?;
        let body = collect_body(invocation.body).await?;
        let (answer, answered) = oneshot::channel();
        // A task of its own: dropping `invoke` must not free the slot while the script runs.
        tokio::spawn(async move {
            let instance = Arc::clone(&slot.0);
            let begin = instance.clock.now();
            let result = instance.answer(&invocation.id, body).await;
            let run = instance.clock.now().since(begin);
            // Free before anybody hears that it is over.
            drop(slot);
            let _ = answer.send((run, result));
        });
        let lost = |_| ended(&Exit::Lost("the runtime is shutting down".into()), Started::Maybe);
        let (run, result) = answered.await.map_err(lost)?;
        let output = result.map_err(|error| SandboxError { run, ..error })?;
        let done = Completion { run, reusable: true, failure: None };
        Ok(Reply {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            body: full_body(output),
            done: Box::pin(async { done }),
        })
    }

    async fn exited(&self) -> Exit {
        self.instance.exited().await
    }

    fn slots(&self) -> u32 {
        self.instance.spec.manifest.concurrency
    }

    async fn pause(&self) -> Result<(), SandboxError> {
        Err(SandboxError::new(SandboxErrorKind::Unsupported, "scripts cannot be paused"))
    }

    async fn resume(&self) -> Result<(), SandboxError> {
        self.instance.alive()
    }

    async fn set_memory_limit(&self, _bytes: u64) -> Result<(), SandboxError> {
        Err(SandboxError::new(SandboxErrorKind::Unsupported, "scripts have no memory limit"))
    }

    async fn usage(&self) -> Result<Usage, SandboxError> {
        self.instance.alive()?;
        Ok(Usage { memory_bytes: 0, processes: *self.instance.busy.borrow() })
    }

    async fn destroy(&self) {
        self.instance.end(Exit::Destroyed);
        self.instance.gone().await;
    }
}

struct Instance {
    spec: SandboxSpec,
    clock: Arc<SystemClock>,
    /// Slots that are taken.
    busy: watch::Sender<u32>,
    exit: watch::Sender<Option<Exit>>,
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").field("function", &self.spec.function).finish_non_exhaustive()
    }
}

/// A taken slot; free again when dropped.
struct Slot(Arc<Instance>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.busy.send_modify(|busy| *busy -= 1);
    }
}

impl Instance {
    fn alive(&self) -> Result<(), SandboxError> {
        match &*self.exit.borrow() {
            Some(exit) => Err(ended(exit, Started::No)),
            None => Ok(()),
        }
    }

    fn reserve(self: &Arc<Self>) -> Result<Slot, SandboxError> {
        self.alive()?;
        let slots = self.spec.manifest.concurrency;
        let free = self.busy.send_if_modified(|busy| {
            let free = *busy < slots;
            *busy += u32::from(free);
            free
        });
        let message = "the script is running already; use another instance, or wait";
        free.then(|| Slot(Arc::clone(self)))
            .ok_or_else(|| SandboxError::new(SandboxErrorKind::Busy, message))
    }

    /// Runs the script once, to its end or the instance's.
    async fn answer(&self, id: &RequestId, body: Bytes) -> Result<Bytes, SandboxError> {
        let script = self.spec.code.join("run.sh");
        let mut exit = None;
        let ends = async { exit = Some(self.exited().await) };
        let Some(output) = run(&script, body, ends).await.map_err(broken)? else {
            return Err(ended(&exit.unwrap_or(Exit::Destroyed), Started::Yes));
        };
        if let Some(signal) = output.status.signal() {
            let exit = Exit::Signal(signal);
            self.end(exit.clone());
            return Err(ended(&exit, Started::Yes));
        }
        if !output.status.success() {
            return Err(raised(SandboxErrorKind::Function, &output));
        }
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            let (function, id) = (&self.spec.function, Some(id.as_str()));
            self.spec.log.line(LogLine::new(function, id, LogStream::Stderr, line));
        }
        Ok(output.stdout.into())
    }

    fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|now| {
            let alive = now.is_none();
            now.get_or_insert(exit);
            alive
        });
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok().and_then(|exit| exit.clone()).unwrap_or(Exit::Destroyed)
    }

    /// Resolves when no script of it runs.
    async fn gone(&self) {
        let _ = self.busy.subscribe().wait_for(|busy| *busy == 0).await;
    }

    fn is_gone(&self) -> bool {
        self.exit.borrow().is_some() && *self.busy.borrow() == 0
    }
}

/// Runs a script with `input`. When `stop` comes first, kills it and returns `None`; so does
/// dropping the future.
async fn run(
    script: &Path,
    input: Bytes,
    stop: impl Future<Output = ()>,
) -> io::Result<Option<Output>> {
    let mut command = Command::new("/bin/sh");
    command.arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own, so that what the script starts ends with it.
    let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let talk = async {
        let write = async {
            // A script need not read what it gets.
            if let Some(mut stdin) = stdin {
                let _ = stdin.write_all(&input).await;
            }
        };
        let read = async {
            match stdout {
                Some(mut stdout) => stdout.read_to_end(&mut output).await,
                None => Ok(0),
            }
        };
        let read_errors = async {
            match stderr {
                Some(mut stderr) => stderr.read_to_end(&mut errors).await,
                None => Ok(0),
            }
        };
        // At the same time, or a script that answers before it has read all would block us both.
        let ((), read, read_errors, status) = tokio::join!(write, read, read_errors, child.wait());
        read.and(read_errors).and(status)
    };
    let status = tokio::select! {
        status = talk => Some(status?),
        () = stop => None,
    };
    drop(group);
    child.wait().await?;
    Ok(status.map(|status| Output { status, stdout: output, stderr: errors }))
}

/// A process group that is killed when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // Whoever is left of it. The kernel hands out numbers in turn, so this one is not another's
        // yet when the script has just ended.
        let _ = self.0.map(|group| kill_process_group(group, Signal::KILL));
    }
}

/// What a script that failed said of it.
fn raised(kind: SandboxErrorKind, output: &Output) -> SandboxError {
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let status = output.status.to_string();
    let error = FunctionError { message: message.clone(), kind: status, stack_trace: Vec::new() };
    SandboxError::new(kind, message).with_function_error(error)
}

fn broken(error: io::Error) -> SandboxError {
    let message = "the script cannot be run";
    SandboxError::new(SandboxErrorKind::Resources, message).with_source(error)
}

fn ended(exit: &Exit, started: Started) -> SandboxError {
    let message = format!("the instance {exit}");
    SandboxError { started, ..SandboxError::new(SandboxErrorKind::Exited, message) }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let code = tempfile::tempdir()?;
    let script =
        "read name; test -n \"$name\" || { echo no name >&2; exit 1; }; echo Hello, $name!";
    std::fs::write(code.path().join("run.sh"), script)?;

    let factory = ShellFactory::new();
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
                let body = collect_body(reply.body).await?;
                print!("{}", String::from_utf8_lossy(&body));
            }
            Err(error) => println!("failed: {error}"),
        }
    }
    factory.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
    use tempfile::TempDir;

    use super::*;

    /// Commands are short; what is longer is text to return.
    const COMMANDS: &str = r#"
        body=$(cat; echo .)
        body=${body%.}
        if [ ${#body} -lt 100 ]; then
            case $body in
            *'"op": "sleep"'*)
                ms=$(echo "$body" | tr -dc 0-9)
                sleep $((ms / 1000)).$(printf %03d $((ms % 1000))) ;;
            *'"op": "raise"'*)
                echo "$body" | sed 's/.*"message": "\([^"]*\)".*/\1/' >&2
                exit 1 ;;
            *'"op": "exit"'*) kill -9 $$ ;;
            esac
        fi
        printf %s "$body"
    "#;

    struct Scripts(TempDir);

    impl Fixture for Scripts {
        fn factory(&self) -> Arc<dyn SandboxFactory> {
            Arc::new(ShellFactory::new())
        }

        fn spec(&self, scenario: Scenario) -> SandboxSpec {
            // A folder of its own for each: other instances may be reading theirs.
            let code = tempfile::tempdir_in(self.0.path()).unwrap().keep();
            std::fs::write(code.join("run.sh"), COMMANDS).unwrap();
            let init = match scenario {
                Scenario::InitRaises => "echo no luck >&2; exit 1",
                Scenario::InitHangs => "sleep 1000",
                _ => "",
            };
            std::fs::write(code.join("init.sh"), init).unwrap();
            let concurrency = if scenario == Scenario::ThreeSlots { 3 } else { 1 };
            let manifest = Arc::new(Manifest { concurrency, ..Manifest::default() });
            let name = "suite".parse().unwrap();
            let digest = Digest::from_bytes([0; 32]);
            let mut spec = SandboxSpec::new(name, digest, code, manifest, Arc::new(NoLog));
            if scenario == Scenario::InitHangs {
                spec.init_timeout = Duration::from_millis(300);
            }
            spec
        }
    }

    // The only test here: the suite counts this process's descriptors, threads and children.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_sandbox_honours_the_contract() {
        suite(&Scripts(tempfile::tempdir().unwrap())).await;
    }
}
