//! The smallest legal sandbox: a function is a shell script that gets the body on its standard
//! input and answers on its standard output, one process per invocation.
//!
//! | the bundle's file | when it runs |
//! |---|---|
//! | `init.sh`, if there is one | once, when an instance is made |
//! | `run.sh` | for each call; a status other than 0 is an error, a signal ends the instance |
//!
//! `openlambda_core::sandbox::kit` keeps the rest of the contract: a slot stays busy while the script
//! runs, even if no client waits for it any more; every call after a crash fails; Drop; shutdown.

use std::io::{self, Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::Response;
use openlambda_core::failure::FunctionError;
use openlambda_core::manifest::Network;
use openlambda_core::sandbox::kit::{Call, Fault, Handler, Simple, try_once};
use openlambda_core::sandbox::{
    Capabilities, Exit, LogStream, SandboxError, SandboxFactory, SandboxSpec,
};
use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::tempfile;
use tokio::process::Command;
use tokio::sync::RwLock;

/// Makes sandboxes that run scripts.
fn shell() -> Simple {
    let mut capabilities = Capabilities::none();
    capabilities.networks = vec![Network::None, Network::Host];
    Simple::new("shell", capabilities, |spec| async move {
        let instance = Instance { spec, running: Arc::default() };
        if instance.spec.code.join("init.sh").is_file() {
            let (status, _, errors) = instance.run("init.sh", &[]).await?;
            if !status.success() {
                return Err(SandboxError::init(raised(status, &errors)));
            }
        }
        Ok(instance)
    })
}

struct Instance {
    spec: Arc<SandboxSpec>,
    /// Read by every script that runs.
    running: Arc<RwLock<()>>,
}

#[async_trait]
impl Handler for Instance {
    async fn answer(&self, call: Call) -> Result<Response<Bytes>, Fault> {
        let (status, answer, errors) = self.run("run.sh", &call.body).await?;
        if let Some(signal) = status.signal() {
            return Err(Fault::Ended(Exit::Signal(signal)));
        }
        if !status.success() {
            return Err(Fault::Raised(raised(status, &errors)));
        }
        self.spec.print(Some(&call.id), LogStream::Stderr, &errors);
        Ok(Response::new(answer.into()))
    }

    async fn clean(&self) {
        // A script that was killed takes a moment to end.
        drop(self.running.write().await);
    }
}

impl Instance {
    /// Runs a script: its status, standard output and standard error.
    async fn run(&self, script: &str, body: &[u8]) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        // Not pipes: a script need not read its input, and no task has to read its output meanwhile.
        let [mut input, mut answer, mut errors] = [tempfile()?, tempfile()?, tempfile()?];
        input.write_all(body)?;
        input.rewind()?;
        let mut command = Command::new("/bin/sh");
        command.arg(self.spec.code.join(script)).stdin(input);
        command.stdout(answer.try_clone()?).stderr(errors.try_clone()?);
        let running = Arc::clone(&self.running).read_owned().await;
        // A process group of its own, so that processes that the script starts end with it.
        let mut child = command.process_group(0).spawn()?;
        let group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let ended = tokio::spawn(async move { (child.wait().await, drop(running)).0 });
        let status = ended.await??;
        drop(group);
        let (mut answered, mut said) = (Vec::new(), Vec::new());
        for (file, bytes) in [(&mut answer, &mut answered), (&mut errors, &mut said)] {
            file.rewind()?;
            file.read_to_end(bytes)?;
        }
        Ok((status, answered, said))
    }
}

/// A process group that is killed when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // The processes that it left. The kernel hands out numbers in turn, so this one is not another's
        // yet when the script has just ended.
        let _ = self.0.map(|group| kill_process_group(group, Signal::KILL));
    }
}

fn raised(status: ExitStatus, errors: &[u8]) -> FunctionError {
    FunctionError::new(status.to_string(), String::from_utf8_lossy(errors).trim())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let code = tempfile::tempdir()?;
    let script =
        "read name; test -n \"$name\" || { echo no name >&2; exit 1; }; echo Hello, $name!";
    std::fs::write(code.path().join("run.sh"), script)?;
    let factory = shell();
    for name in ["world\n", "\n"] {
        match try_once(&factory, code.path(), name).await {
            Ok(answer) => print!("{}", String::from_utf8_lossy(&answer)),
            Err(error) => println!("failed: {error}"),
        }
    }
    factory.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
    use openlambda_core::function::Digest;
    use openlambda_core::manifest::Manifest;
    use openlambda_core::sandbox::NoLog;
    use tempfile::TempDir;

    use super::*;

    /// Commands are short; a longer event is text to return.
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
            Arc::new(shell())
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
