//! The sock kind honours the sandbox contract, as root and as an ordinary user. The suite counts its
//! process's descriptors and threads, so it has one of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
use openlambda_core::sandbox::{SandboxFactory, SandboxSpec};
use openlambda_sandbox::sock::SockFactory;
use openlambda_sandbox::sys::marked_processes;

use common::{Setup, setup};
use containers::{again_as_an_ordinary_user, alone_in, config, inventory, is_root};

const COMMANDS: &str = r#"
import os, time
def f(event):
    op = event.get("op") if isinstance(event, dict) else None
    if op == "sleep": time.sleep(event["ms"] / 1000)
    if op == "raise": raise ValueError(event["message"])
    if op == "exit": os._exit(3)
    return event
"#;

struct Containers(Setup);

impl Fixture for Containers {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        Arc::new(SockFactory::new(config(&self.0)).unwrap())
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        let code = match scenario {
            Scenario::InitRaises => "raise RuntimeError('no luck')".to_owned(),
            Scenario::InitHangs => "import time\ntime.sleep(1000)".to_owned(),
            _ => COMMANDS.to_owned(),
        };
        let slots = if scenario == Scenario::ThreeSlots { 3 } else { 1 };
        let manifest = format!("concurrency = {slots}");
        let mut spec = self.0.spec(&[("f.py", &code), ("ol.toml", &manifest)]);
        if scenario == Scenario::InitHangs {
            spec.init_timeout = Duration::from_millis(300);
        }
        spec
    }

    fn leftovers(&self) -> Vec<String> {
        let processes = marked_processes(&[&self.0.mark]);
        // The nursery lives as long as its factory.
        let born = processes.iter().filter(|process| !process.mark.ends_with("/nursery"));
        let processes = born.map(|process| format!("process {:?}", process.pid));
        let folders = std::fs::read_dir(self.0.dir.path().join("sock/sandboxes")).unwrap();
        processes.chain(folders.map(|f| f.unwrap().path().display().to_string())).collect()
    }

    fn holdings(&self) -> BTreeMap<String, usize> {
        inventory(&self.0)
    }

    fn rounds(&self) -> u64 {
        500
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_pass_the_suite() {
    // Bridged networks are made of a machine's; this one is not to notice.
    let by = ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""];
    if alone_in("containers_pass_the_suite", if is_root() { &by } else { &[] }) {
        suite(&Containers(setup())).await;
    }
}

#[test]
fn everything_again_as_an_ordinary_user() {
    again_as_an_ordinary_user("everything_again_as_an_ordinary_user");
}
