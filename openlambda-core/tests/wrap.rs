//! What a disturbed registry or sandbox factory does to those who use it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::sync::Arc;

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
    Disturbance, Disturbed, DisturbedFactory, DisturbedRegistry, Faulty, Limited, Operation,
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
