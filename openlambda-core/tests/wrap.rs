//! What a disturbed registry or sandbox factory does to those who use it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::sync::Arc;
use std::time::Duration;

use openlambda_core::failure::Started;
use openlambda_core::function::Digest;
use openlambda_core::invocation::{Invocation, RequestIds};
use openlambda_core::manifest::Manifest;
use openlambda_core::memory::{MemoryRegistry, MemorySandboxFactory};
use openlambda_core::registry::{Registry, RegistryError};
use openlambda_core::sandbox::{
    Exit, NoLog, Sandbox, SandboxErrorKind, SandboxFactory, SandboxSpec,
};
use openlambda_core::wrap::{
    Delay, Disturbance, Disturbed, DisturbedFactory, DisturbedRegistry, Faulty, Limited, Operation,
    Slow,
};

async fn registry() -> (Arc<MemoryRegistry>, Digest) {
    let registry = MemoryRegistry::new();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f.py"), "def f(event):\n    return event\n").unwrap();
    let published = registry.publish_dir(&"f".parse().unwrap(), folder.path()).await.unwrap();
    (Arc::new(registry), published.digest)
}

#[tokio::test]
async fn a_faulty_registry_fails_in_the_chosen_operations_alone() {
    let (registry, digest) = registry().await;
    let faulty: DisturbedRegistry = Disturbed::new(registry, Faulty::new(1.0, 7));
    let faulty = faulty.only([Operation::Fetch]);
    assert_eq!(faulty.kind(), "memory");
    assert!(faulty.resolve(&"f".parse().unwrap()).await.is_ok());
    let into = tempfile::tempdir().unwrap();
    let error = faulty.fetch(&digest, into.path()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_limited_registry_counts_what_is_under_way() {
    let (registry, digest) = registry().await;
    let limited: DisturbedRegistry = Disturbed::new(registry, Limited::refusing(1));
    let bundle = limited.get(&digest).await.unwrap();
    let error = limited.list().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable(_)), "{error:?}");
    drop(bundle);
    assert_eq!(limited.list().await.unwrap().len(), 1);
}

/// Else the operations that fail would be the fast ones.
#[tokio::test(start_paused = true)]
async fn delays_and_faults_of_one_seed_have_nothing_to_do_with_each_other() {
    let registry: DisturbedRegistry =
        Disturbed::new(Arc::new(MemoryRegistry::new()), Faulty::new(0.1, 7));
    let slow = Slow::by(Delay::Exponential { mean: Duration::from_millis(20) }, 7);
    let registry: DisturbedRegistry = Disturbed::new(Arc::new(registry), slow);
    let (mut failed, mut fine) = (Vec::new(), Vec::new());
    for _ in 0..2000 {
        let begin = tokio::time::Instant::now();
        let result = registry.list().await;
        if result.is_err() { &mut failed } else { &mut fine }.push(begin.elapsed().as_secs_f64());
    }
    let mean = |times: &[f64]| times.iter().sum::<f64>() / times.len() as f64;
    let ratio = mean(&failed) / mean(&fine);
    assert!((0.7..1.4).contains(&ratio), "those that fail take {ratio} times as long");
}

#[tokio::test]
async fn a_limit_may_be_as_large_as_one_likes() {
    let (registry, _) = registry().await;
    let free: DisturbedRegistry = Disturbed::new(registry, Limited::waiting(usize::MAX));
    assert_eq!(free.list().await.unwrap().len(), 1);
}

fn factory(disturbance: impl Disturbance) -> DisturbedFactory {
    let functions = MemorySandboxFactory::new();
    functions.register("f".parse().unwrap(), Ok);
    Disturbed::new(Arc::new(functions), disturbance)
}

fn spec() -> SandboxSpec {
    let (name, manifest) =
        ("f".parse().unwrap(), Manifest { concurrency: 2, ..Manifest::default() });
    let digest = Digest::from_bytes([0; 32]);
    SandboxSpec::new(name, digest, "/".into(), Arc::new(manifest), Arc::new(NoLog))
}

fn call() -> Invocation {
    Invocation::new(RequestIds::new(7).next(), "f".parse().unwrap(), "1")
}

#[tokio::test]
async fn a_faulty_factory_makes_nothing_or_loses_instances() {
    let broken = factory(Faulty::new(1.0, 7)).only([Operation::Create]);
    let error = broken.create(spec()).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Resources, Started::No));

    let frail = factory(Faulty::new(1.0, 7)).only([Operation::Invoke]);
    let sandbox = frail.create(spec()).await.unwrap().sandbox;
    let error = sandbox.invoke(call()).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Exited, Started::No));
    assert!(!error.reusable);
    assert_eq!(sandbox.exited().await, Exit::Destroyed);
    frail.shutdown().await;
}

#[tokio::test]
async fn what_is_disturbed_may_change_for_the_sandboxes_that_are_made_next() {
    let factory = factory(Faulty::new(1.0, 7)).only([]);
    let before = factory.create(spec()).await.unwrap().sandbox;
    let factory = factory.only([Operation::Invoke]);
    let after = factory.create(spec()).await.unwrap().sandbox;
    assert!(before.invoke(call()).await.is_ok());
    let error = after.invoke(call()).await.unwrap_err();
    assert_eq!(error.kind, SandboxErrorKind::Exited);
    factory.shutdown().await;
}

#[tokio::test]
async fn a_limited_factory_refuses_calls_until_another_is_done() {
    let limited = factory(Limited::refusing(1));
    let sandbox: Arc<dyn Sandbox> = limited.create(spec()).await.unwrap().sandbox;
    let first = sandbox.invoke(call()).await.unwrap();
    let error = sandbox.invoke(call()).await.unwrap_err();
    assert_eq!((error.kind, error.started), (SandboxErrorKind::Busy, Started::No));
    assert!(error.reusable);
    first.done.await;
    sandbox.invoke(call()).await.unwrap();
    limited.shutdown().await;
}
