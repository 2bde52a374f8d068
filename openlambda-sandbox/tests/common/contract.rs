//! The functions that the contract's suite runs in every kind of sandbox.
#![allow(unreachable_pub, reason = "it is a module of several binaries")]

use std::time::Duration;

use openlambda_core::conformance::sandbox::Scenario;
use openlambda_core::sandbox::SandboxSpec;

use super::common::Setup;

const COMMANDS: &str = r#"
import os, time
def f(event):
    op = event.get("op") if isinstance(event, dict) else None
    if op == "sleep": time.sleep(event["ms"] / 1000)
    if op == "raise": raise ValueError(event["message"])
    if op == "exit": os._exit(3)
    return event
"#;

/// What is made for a scenario.
pub fn spec(setup: &Setup, scenario: Scenario) -> SandboxSpec {
    let code = match scenario {
        Scenario::InitRaises => "raise RuntimeError('no luck')".to_owned(),
        Scenario::InitHangs => "import time\ntime.sleep(1000)".to_owned(),
        _ => COMMANDS.to_owned(),
    };
    let slots = if scenario == Scenario::ThreeSlots { 3 } else { 1 };
    let manifest = format!("concurrency = {slots}");
    let mut spec = setup.spec(&[("f.py", &code), ("ol.toml", &manifest)]);
    if scenario == Scenario::InitHangs {
        spec.init_timeout = Duration::from_millis(300);
    }
    spec
}
