//! The last changes of a registry, kept for its watchers.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_core::stream::BoxStream;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{RegistryEvent, Revision};

/// Keeps a registry's last changes and tells watchers of them, in order.
///
/// A watcher that is so far behind that changes it has not seen are gone gets one
/// [`RegistryEvent::Lagged`] in their place. Clones share the log.
#[derive(Clone, Debug)]
pub struct EventLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    most: usize,
    state: Mutex<State>,
    /// The revision of the last change.
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    events: VecDeque<RegistryEvent>,
    last: u64,
}

impl EventLog {
    /// A log that keeps the last `most` changes and goes on after `events`, the last of which has
    /// the revision `last`.
    pub fn new(most: usize, events: impl IntoIterator<Item = RegistryEvent>, last: u64) -> Self {
        let mut state = State { events: events.into_iter().collect(), last };
        while state.events.len() > most {
            state.events.pop_front();
        }
        let (last, _) = watch::channel(last);
        EventLog { shared: Arc::new(Shared { most, state: Mutex::new(state), last }) }
    }

    /// Adds the change that `make` makes from its revision.
    pub fn add(&self, make: impl FnOnce(Revision) -> RegistryEvent) -> RegistryEvent {
        let mut state = self.shared.state.lock();
        state.last += 1;
        let event = make(Revision(state.last));
        if state.events.len() == self.shared.most {
            state.events.pop_front();
        }
        state.events.push_back(event.clone());
        let last = state.last;
        drop(state);
        self.shared.last.send_replace(last);
        event
    }

    /// The revision of the last change; 0 when there was none.
    pub fn last(&self) -> Revision {
        Revision(self.shared.state.lock().last)
    }

    /// The changes after `from`, as they come: what
    /// [`Registry::watch`](crate::registry::Registry::watch) returns. Ends when the log and all its
    /// clones are gone.
    pub fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        let cursor = if from == Revision::NOW { self.last().0 } else { from.0 };
        let (shared, last) = (Arc::downgrade(&self.shared), self.shared.last.subscribe());
        let next = move |(mut cursor, shared, mut last): (u64, std::sync::Weak<Shared>, _)| async move {
            loop {
                let log = EventLog { shared: shared.upgrade()? };
                if let Some(event) = log.after(cursor) {
                    cursor = event.revision().0;
                    return Some((event, (cursor, shared, last)));
                }
                drop(log);
                watch::Receiver::changed(&mut last).await.ok()?;
            }
        };
        Box::pin(stream::unfold((cursor, shared, last), next))
    }

    /// The first change after `cursor`, or that it is gone.
    fn after(&self, cursor: u64) -> Option<RegistryEvent> {
        let state = self.shared.state.lock();
        if cursor == state.last {
            return None;
        }
        let first = state.events.front().map_or(state.last + 1, |event| event.revision().0);
        // A cursor from the future is of another log: of a registry that was made anew.
        if cursor > state.last || cursor + 1 < first {
            let revision = if cursor > state.last { state.last } else { first - 1 };
            return Some(RegistryEvent::Lagged { revision: Revision(revision) });
        }
        state.events.get((cursor + 1 - first) as usize).cloned()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    fn deleted(revision: u64) -> RegistryEvent {
        RegistryEvent::Deleted { revision: Revision(revision), name: "f".parse().unwrap() }
    }

    fn add(log: &EventLog) {
        log.add(|revision| deleted(revision.0));
    }

    #[tokio::test]
    async fn a_watcher_gets_every_change_in_order_or_is_told_that_some_are_lost() {
        let log = EventLog::new(3, [], 0);
        let mut early = log.watch(Revision(0));
        let mut now = log.watch(Revision::NOW);
        assert!(now.next().now_or_never().is_none());
        add(&log);
        assert_eq!(now.next().await, Some(deleted(1)));
        assert_eq!(early.next().await, Some(deleted(1)));
        for _ in 0..5 {
            add(&log);
        }
        assert_eq!(early.next().await, Some(RegistryEvent::Lagged { revision: Revision(3) }));
        for revision in 4..=6 {
            assert_eq!(early.next().await, Some(deleted(revision)));
        }
        assert_eq!(log.watch(Revision(5)).next().await, Some(deleted(6)));
        let mut future = log.watch(Revision(99));
        assert_eq!(future.next().await, Some(RegistryEvent::Lagged { revision: Revision(6) }));
        assert!(future.next().now_or_never().is_none());
        drop(log);
        assert_eq!(early.next().await, None);
    }

    #[tokio::test]
    async fn a_log_goes_on_after_older_changes() {
        let log = EventLog::new(2, (1..=4).map(deleted), 4);
        add(&log);
        let mut watch = log.watch(Revision(0));
        assert_eq!(watch.next().await, Some(RegistryEvent::Lagged { revision: Revision(3) }));
        assert_eq!(watch.next().await, Some(deleted(4)));
        assert_eq!(watch.next().await, Some(deleted(5)));
    }
}
