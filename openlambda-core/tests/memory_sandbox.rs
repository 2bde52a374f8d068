//! The in-memory sandbox honours the contract.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openlambda_core::conformance::sandbox::{Fixture, Scenario, suite};
use openlambda_core::failure::FunctionError;
use openlambda_core::function::Digest;
use openlambda_core::manifest::Manifest;
use openlambda_core::memory::{MemoryFunction, MemorySandboxFactory};
use openlambda_core::sandbox::{NoLog, SandboxFactory, SandboxSpec};
use openlambda_core::wrap::{Delay, Disturbed, DisturbedFactory, Limited, Slow};

struct Closures;

async fn command(body: Bytes) -> Result<Bytes, FunctionError> {
    let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
    match event["op"].as_str() {
        Some("sleep") => {
            let ms = event["ms"].as_u64().unwrap();
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        Some("raise") => return Err(raised(event["message"].as_str().unwrap())),
        Some("exit") => panic!("told to exit"),
        _ => {}
    }
    Ok(body)
}

fn raised(message: &str) -> FunctionError {
    FunctionError { message: message.to_owned(), kind: "Error".to_owned(), stack_trace: vec![] }
}

impl Fixture for Closures {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        let factory = MemorySandboxFactory::new();
        factory.register_async("commands".parse().unwrap(), command);
        let raises =
            MemoryFunction::from_async(command).with_init(|| async { Err(raised("no luck")) });
        factory.register_function("initraises".parse().unwrap(), raises);
        let hangs = MemoryFunction::from_async(command).with_init(std::future::pending);
        factory.register_function("inithangs".parse().unwrap(), hangs);
        Arc::new(factory)
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        let slots = if scenario == Scenario::ThreeSlots { 3 } else { 1 };
        let name = match scenario {
            Scenario::InitRaises => "initraises",
            Scenario::InitHangs => "inithangs",
            _ => "commands",
        };
        let manifest = Manifest { concurrency: slots, ..Manifest::default() };
        let digest = Digest::from_bytes([0; 32]);
        let name = name.parse().unwrap();
        let log = Arc::new(NoLog);
        let mut spec = SandboxSpec::new(name, digest, "/".into(), Arc::new(manifest), log);
        spec.init_timeout = Duration::from_millis(200);
        spec
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closures_pass_the_suite() {
    suite(&Closures).await;
    suite(&Wrapped).await;

    // Closures that block have a thread of their own, and a panic in one ends its instance alone.
    let factory = MemorySandboxFactory::new();
    factory.register("commands".parse().unwrap(), |body| match &*body {
        b"\"panic\"" => panic!("told to panic"),
        _ => Ok(body),
    });
    let blocking = Blocking(factory);
    openlambda_core::conformance::sandbox::bodies_come_back(&blocking).await;
}

/// Slow, and with a limit that is never reached: still a kind of sandbox.
struct Wrapped;

impl Fixture for Wrapped {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        let slow = Slow::by(Delay::Fixed(Duration::from_millis(1)), 7);
        let slow: DisturbedFactory = Disturbed::new(Closures.factory(), slow);
        let limited: DisturbedFactory = Disturbed::new(Arc::new(slow), Limited::refusing(100));
        Arc::new(limited)
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        Closures.spec(scenario)
    }

    fn rounds(&self) -> u64 {
        10
    }
}

struct Blocking(MemorySandboxFactory);

impl Fixture for Blocking {
    fn factory(&self) -> Arc<dyn SandboxFactory> {
        Arc::new(self.0.clone())
    }

    fn spec(&self, scenario: Scenario) -> SandboxSpec {
        Closures.spec(scenario)
    }
}
