//! The in-memory registry honours the contract.

use std::sync::Arc;

use async_trait::async_trait;
use openlambda_core::conformance::registry::{Fixture, suite};
use openlambda_core::memory::MemoryRegistry;
use openlambda_core::registry::Registry;

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
