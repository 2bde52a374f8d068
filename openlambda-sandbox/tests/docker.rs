//! Containers of a real engine.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "common/engine.rs"]
mod engine;

use openlambda_core::sandbox::SandboxFactory;
use openlambda_sandbox::docker::DockerFactory;

use common::{call, setup};
use engine::Engine;

#[tokio::test(flavor = "multi_thread")]
async fn hello() {
    let engine = Engine::with_image().await;
    let setup = setup();
    let config = engine.config(&setup.dir.path().join("docker"), &setup.mark);
    let factory = DockerFactory::connect(config).await.unwrap();
    eprintln!("{:?} {:?}", factory.capabilities(), factory.withheld());
    let spec = setup.spec(&[(
        "f.py",
        "import os\ndef f(event):\n  print('hi')\n  return [os.getuid(), os.listdir('/'), os.getcwd(), event]",
    )]);
    for _ in 0..5 {
        let created = factory.create(spec.clone()).await.unwrap();
        eprintln!("{:?} {:?}", created.create, created.init);
        eprintln!("{:?}", call(&*created.sandbox, "1").await);
        eprintln!("{:?}", setup.lines);
        let t = std::time::Instant::now();
        created.sandbox.destroy().await;
        eprintln!("destroy {:?}", t.elapsed());
    }
    factory.shutdown().await;
}
