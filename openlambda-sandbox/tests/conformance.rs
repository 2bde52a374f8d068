//! The process kind honours the sandbox contract. One test, since the suite counts this process's
//! descriptors and threads.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;
#[path = "common/contract.rs"]
mod contract;

use std::collections::BTreeMap;
use std::sync::Arc;

use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
use openlambda_core::sandbox::{SandboxFactory, SandboxSpec};
use openlambda_sandbox::process::ProcessFactory;

use common::{Setup, config, files_below, setup};

struct Processes(Setup);

impl Fixture for Processes {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        Arc::new(ProcessFactory::new(config(self.0.dir.path(), &self.0.mark)).unwrap())
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        contract::spec(&self.0, scenario)
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
