//! Removes from the worker what is deleted in the registry, instead of keeping it until it is evicted by
//! age or for memory.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::dispatch::Dispatcher;
use crate::backoff::Backoff;
use crate::function::FunctionName;
use crate::random::fresh_seed;
use crate::registry::{Registry, RegistryEvent, Revision};

/// The pauses before following a registry again that ended its stream of changes.
const FOLLOW_AGAIN: RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_secs(1);

/// Follows the registry's changes for as long as it is polled. A registry that announces none, as a
/// folder that anybody edits, leaves instances and code to age and budget.
pub(super) async fn follow(registry: Arc<dyn Registry>, dispatcher: Arc<Dispatcher>) {
    let mut backoff = Backoff::new(FOLLOW_AGAIN, fresh_seed());
    loop {
        let mut events = registry.watch(Revision::NOW);
        while let Some(event) = events.next().await {
            backoff.reset();
            match event {
                RegistryEvent::Deleted { name, .. } => dispatcher.deleted(|known| *known == name),
                // A deletion may be among what was lost.
                RegistryEvent::Lagged { .. } => match registry.list().await {
                    Ok(list) => {
                        let listed: BTreeSet<FunctionName> =
                            list.into_iter().map(|listing| listing.name).collect();
                        dispatcher.deleted(|known| !listed.contains(known));
                    }
                    Err(error) => tracing::warn!(%error, "cannot list the registry's functions"),
                },
                _ => {}
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}
