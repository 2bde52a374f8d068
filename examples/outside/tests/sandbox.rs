//! The kind of sandbox honours the contract. The suite counts this process's descriptors and threads,
//! so it is the only test here.

use std::sync::Arc;
use std::time::Duration;

use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
use openlambda_core::function::Digest;
use openlambda_core::manifest::Manifest;
use openlambda_core::sandbox::{NoLog, SandboxFactory, SandboxSpec};
use outside::tables;
use tempfile::TempDir;

struct Tables(TempDir);

impl Fixture for Tables {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        Arc::new(tables())
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        let init = match scenario {
            Scenario::InitRaises => "init raise no luck\n",
            Scenario::InitHangs => "init hang\n",
            _ => "",
        };
        let table = format!("{init}sleep sleep ms\nraise raise message\nexit exit\n");
        let code = tempfile::tempdir_in(self.0.path()).unwrap().keep();
        std::fs::write(code.join("table.txt"), table).unwrap();
        let concurrency = if scenario == Scenario::ThreeSlots { 3 } else { 1 };
        let handler = Some("table.txt".to_owned());
        let manifest = Arc::new(Manifest { concurrency, handler, ..Manifest::default() });
        let (name, digest) = ("suite".parse().unwrap(), Digest::from_bytes([0; 32]));
        let mut spec = SandboxSpec::new(name, digest, code, manifest, Arc::new(NoLog));
        if scenario == Scenario::InitHangs {
            spec.init_timeout = Duration::from_millis(300);
        }
        spec
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sandbox_honours_the_contract() {
    suite(&Tables(tempfile::tempdir().unwrap())).await;
}
