//! The sock kind honours the sandbox contract, as root and as an ordinary user. The suite counts its
//! process's descriptors and threads, so it has one of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/containers.rs"]
mod containers;
#[path = "common/contract.rs"]
mod contract;

use std::collections::BTreeMap;
use std::sync::Arc;

use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
use openlambda_core::sandbox::{SandboxFactory, SandboxSpec};
use openlambda_sandbox::sock::SockFactory;
use openlambda_sandbox::sys::marked_processes;

use common::{Setup, setup};
use containers::{again_as_an_ordinary_user, alone_in, config, inventory, is_root};

struct Containers(Setup);

impl Fixture for Containers {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        Arc::new(SockFactory::new(config(&self.0)).unwrap())
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        contract::spec(&self.0, scenario)
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
