//! The docker kind honours the sandbox contract. One test, since the suite counts this process's
//! descriptors and threads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/contract.rs"]
mod contract;
#[path = "common/engine.rs"]
mod engine;

use std::collections::BTreeMap;
use std::sync::Arc;

use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
use openlambda_core::sandbox::{SandboxFactory, SandboxSpec};
use openlambda_sandbox::docker::DockerFactory;
use openlambda_sandbox::sys::processes_with_mark;
use tokio::runtime::Handle;

use common::{Setup, files_below, setup};
use engine::Engine;

struct Containers {
    setup: Setup,
    engine: Engine,
    /// What the engine runs containers with, if it is not `runc`.
    runtime: Option<&'static str>,
    rounds: u64,
}

impl Fixture for Containers {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        let mut config =
            self.engine.config(&self.setup.dir.path().join("docker"), &self.setup.mark);
        config.runtime = self.runtime.map(str::to_owned);
        let connect = DockerFactory::connect(config);
        tokio::task::block_in_place(|| Arc::new(Handle::current().block_on(connect).unwrap()))
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        contract::spec(&self.setup, scenario)
    }

    fn leftovers(&self) -> Vec<String> {
        let containers = self.engine.containers(&self.setup.mark);
        let containers = containers.iter().map(|id| format!("container {id}"));
        let processes = processes_with_mark(&self.setup.mark);
        let processes = processes.iter().map(|pid| format!("process {pid:?}"));
        let folders = std::fs::read_dir(self.setup.dir.path().join("docker/sandboxes")).unwrap();
        let folders = folders.map(|f| f.unwrap().path().display().to_string());
        containers.chain(processes).chain(folders).collect()
    }

    fn holdings(&self) -> BTreeMap<String, usize> {
        let files = files_below(&self.setup.dir.path().join("docker"));
        BTreeMap::from([("files".to_owned(), files)])
    }

    fn rounds(&self) -> u64 {
        self.rounds
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_pass_the_suite() {
    let engine = Engine::with_image().await;
    let mut containers = Containers { setup: setup(), engine, runtime: None, rounds: 60 };
    suite(&containers).await;
    // A kernel of their own costs them a second each.
    containers = Containers { setup: setup(), runtime: Some("runsc"), rounds: 6, ..containers };
    suite(&containers).await;
}
