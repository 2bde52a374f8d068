//! Lean containers, for real.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use openlambda_core::sandbox::SandboxFactory;
use openlambda_core::time::SystemClock;
use openlambda_sandbox::sock::{SockConfig, SockFactory};
use openlambda_sandbox::sys::Spawner;

use common::{Setup, call, setup};

fn factory(setup: &Setup) -> SockFactory {
    let clock = Arc::new(SystemClock::new());
    let state = setup.dir.path().join("sock");
    let config = SockConfig::new(state, &setup.mark, Spawner::start().unwrap(), clock);
    SockFactory::new(config).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hello() {
    let setup = setup();
    let factory = factory(&setup);
    eprintln!("{:?} {:?}", factory.capabilities(), factory.withheld());
    factory.probe().await.unwrap();
    eprintln!("probed");
    let spec = setup.spec(&[(
        "f.py",
        "import os\ndef f(event): return [os.getuid(), os.listdir('/'), os.getcwd(), event]",
    )]);
    let created = factory.create(spec).await;
    eprintln!("{created:?} {:?}", setup.lines.texts());
    let created = created.unwrap();
    eprintln!("{:?}", call(&*created.sandbox, "1").await);
    created.sandbox.destroy().await;
    factory.shutdown().await;
}
