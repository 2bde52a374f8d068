//! The process kind honours the sandbox contract. One test, since the suite counts this process's
//! descriptors and threads.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
use openlambda_core::sandbox::{SandboxFactory, SandboxSpec};
use openlambda_sandbox::process::ProcessFactory;

use common::{Setup, config, files_below, setup};

const COMMANDS: &str = r#"
import os, time
def f(event):
    op = event.get("op") if isinstance(event, dict) else None
    if op == "sleep": time.sleep(event["ms"] / 1000)
    if op == "raise": raise ValueError(event["message"])
    if op == "exit": os._exit(3)
    return event
"#;

struct Processes(Setup);

impl Fixture for Processes {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        Arc::new(ProcessFactory::new(config(self.0.dir.path(), &self.0.mark)).unwrap())
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
        self.0.leftovers()
    }

    fn holdings(&self) -> BTreeMap<String, usize> {
        BTreeMap::from([("files".to_owned(), files_below(&self.0.dir.path().join("state")))])
    }

    fn rounds(&self) -> u64 {
        500
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_pass_the_suite() {
    suite(&Processes(setup())).await;
}
