//! The in-memory registry honours the contract.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use openlambda_core::conformance::registry::{Fixture, suite};
use openlambda_core::memory::MemoryRegistry;
use openlambda_core::registry::Registry;
use openlambda_core::wrap::{Delay, Disturbed, DisturbedRegistry, Limited, Slow};

struct Memory;

#[async_trait]
impl Fixture for Memory {
    async fn empty(&self) -> Arc<dyn Registry> {
        Arc::new(MemoryRegistry::new())
    }

    async fn reopened(&self) -> Option<Arc<dyn Registry>> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_passes_the_suite() {
    suite(&Memory).await;
}

/// Slow, and one thing at a time: still a registry.
struct Wrapped;

#[async_trait]
impl Fixture for Wrapped {
    async fn empty(&self) -> Arc<dyn Registry> {
        let slow = Slow::by(Delay::Exponential { mean: Duration::from_millis(1) }, 7);
        let slow: DisturbedRegistry = Disturbed::new(Arc::new(MemoryRegistry::new()), slow);
        let limited: DisturbedRegistry = Disturbed::new(Arc::new(slow), Limited::waiting(1));
        Arc::new(limited)
    }

    async fn reopened(&self) -> Option<Arc<dyn Registry>> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_registry_passes_the_suite() {
    suite(&Wrapped).await;
}
