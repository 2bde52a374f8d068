//! How containers end: from the engine's stream of events, one stream for a whole factory.
//!
//! ```text
//!        ┌──▶ list: what ended, or is gone, while the stream was down
//!        │      │
//!        │      ▼
//!        │    events since then ──▶ die ─▶ status and cause of the one that died
//!        │      │
//!        └──────┴─ the engine went away: again, until it is back
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bollard::models::{ContainerSummaryStateEnum, EventMessage};
use bollard::query_parameters::EventsOptions;
use futures_util::StreamExt;
use openlambda_core::sandbox::Exit;
use openlambda_core::time::Clock;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::engine::{Engine, worker_label};

/// How long an engine that is away is left alone.
const PATIENCE: Duration = Duration::from_millis(200);

/// The ends of one factory's containers. Listens until dropped.
#[derive(Debug)]
pub(super) struct Deaths {
    shared: Arc<Shared>,
    _listener: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    worker: String,
    clock: Arc<dyn Clock>,
    /// By container id.
    living: Mutex<BTreeMap<String, watch::Sender<Option<Exit>>>>,
    /// Could not be removed while the engine was away.
    leftovers: Mutex<BTreeSet<String>>,
}

/// The end of one container.
#[derive(Debug)]
pub(super) struct Death {
    id: String,
    exit: watch::Receiver<Option<Exit>>,
    shared: Arc<Shared>,
}

impl Drop for Death {
    fn drop(&mut self) {
        self.shared.living.lock().remove(&self.id);
    }
}

impl Deaths {
    /// Listens to the events of the worker's containers. Must be called within a tokio runtime.
    pub(super) fn listen(engine: Engine, worker: &str, clock: Arc<dyn Clock>) -> Arc<Self> {
        let shared = Arc::new(Shared {
            engine,
            worker: worker.to_owned(),
            clock,
            living: Mutex::default(),
            leftovers: Mutex::default(),
        });
        let listener = AbortOnDropHandle::new(tokio::spawn(listen(Arc::clone(&shared))));
        Arc::new(Deaths { shared, _listener: listener })
    }

    /// From now on its end is noticed. To be called before it is started.
    pub(super) fn of(&self, id: &str) -> Death {
        let (sender, exit) = watch::channel(None);
        self.shared.living.lock().insert(id.to_owned(), sender);
        Death { id: id.to_owned(), exit, shared: Arc::clone(&self.shared) }
    }

    /// Other code knows how it ended. The first report counts.
    pub(super) fn tell(&self, id: &str, exit: Exit) {
        self.shared.tell(id, exit);
    }

    /// The engine is away: it is removed when the engine is back.
    pub(super) fn remove_later(&self, id: &str) {
        self.shared.leftovers.lock().insert(id.to_owned());
    }
}

impl Death {
    /// Resolves when it has ended.
    pub(super) async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or(Exit::Destroyed),
            Err(_) => Exit::Lost("no task listens to the engine any more".to_owned()),
        }
    }
}

impl Shared {
    fn tell(&self, id: &str, exit: Exit) {
        if let Some(sender) = self.living.lock().get(id) {
            sender.send_if_modified(|told| {
                let first = told.is_none();
                if first {
                    *told = Some(exit);
                }
                first
            });
        }
    }

    fn is_living(&self, id: &str) -> bool {
        self.living.lock().get(id).is_some_and(|sender| sender.borrow().is_none())
    }
}

async fn listen(shared: Arc<Shared>) {
    let mut away = false;
    loop {
        // A second early: the engine's clock is ours, but it counts whole seconds.
        let since = (shared.clock.unix_millis() / 1000).saturating_sub(1);
        let caught_up = catch_up(&shared).await;
        if caught_up {
            if std::mem::take(&mut away) {
                tracing::info!("the engine is back");
            }
            let filters = HashMap::from([
                ("type".to_owned(), vec!["container".to_owned()]),
                ("event".to_owned(), vec!["die".to_owned()]),
                ("label".to_owned(), vec![worker_label(&shared.worker)]),
            ]);
            let options = EventsOptions {
                since: Some(since.to_string()),
                filters: Some(filters),
                until: None,
            };
            let mut events = shared.engine.docker.events(Some(options));
            while let Some(Ok(event)) = events.next().await {
                take(&shared, event);
            }
        }
        if !std::mem::replace(&mut away, true) {
            tracing::warn!("the engine's events have ended; listening again when it is back");
        }
        tokio::time::sleep(PATIENCE).await;
    }
}

/// Catches up on what happened while the stream was down. Returns whether the engine answers.
async fn catch_up(shared: &Arc<Shared>) -> bool {
    let known: Vec<String> = shared.living.lock().keys().cloned().collect();
    let Ok(listed) = shared.engine.list(&worker_label(&shared.worker)).await else { return false };
    let mut there = BTreeMap::new();
    for container in listed {
        if let Some(id) = container.id {
            there.insert(id, container.state);
        }
    }
    for id in known.iter().filter(|id| shared.is_living(id)) {
        use ContainerSummaryStateEnum as State;
        match there.get(id) {
            None => shared.tell(id, Exit::Lost("its container was removed".to_owned())),
            Some(Some(State::EXITED | State::DEAD)) => {
                tokio::spawn(examine(Arc::clone(shared), id.clone(), None));
            }
            Some(_) => {}
        }
    }
    let leftovers = std::mem::take(&mut *shared.leftovers.lock());
    for id in leftovers.into_iter().filter(|id| there.contains_key(id)) {
        if let Err(error) = shared.engine.remove(&id).await {
            tracing::warn!(%error, container = id, "cannot remove what is left of a sandbox");
        }
    }
    true
}

fn take(shared: &Arc<Shared>, event: EventMessage) {
    let Some(actor) = event.actor else { return };
    let (Some(id), attributes) = (actor.id, actor.attributes.unwrap_or_default()) else { return };
    if event.action.as_deref() != Some("die") || !shared.is_living(&id) {
        return;
    }
    match attributes.get("exitCode").and_then(|code| code.parse().ok()) {
        Some(0) => shared.tell(&id, Exit::Status(0)),
        // The event does not say what killed it; the engine's record does.
        code => drop(tokio::spawn(examine(Arc::clone(shared), id, code))),
    }
}

async fn examine(shared: Arc<Shared>, id: String, code: Option<i64>) {
    let state = match shared.engine.docker.inspect_container(&id, None).await {
        Ok(inspected) => inspected.state.unwrap_or_default(),
        Err(_) => Default::default(),
    };
    let exit = match (code.or(state.exit_code), state.oom_killed) {
        (code, Some(true)) if code != Some(0) => Exit::OutOfMemory,
        (Some(code), _) => exit_of_code(code),
        (None, _) => Exit::Lost("its container was removed".to_owned()),
    };
    shared.tell(&id, exit);
}

/// The engine tells a signal as 128 and its number, as shells do. A program that ends itself with
/// such a status cannot be told apart.
fn exit_of_code(code: i64) -> Exit {
    let code = i32::try_from(code).unwrap_or(i32::MAX);
    match code - 128 {
        signal @ 1..=64 => Exit::Signal(signal),
        _ => Exit::Status(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_statuses_or_signals() {
        assert_eq!(exit_of_code(3), Exit::Status(3));
        assert_eq!(exit_of_code(128), Exit::Status(128));
        assert_eq!(exit_of_code(137), Exit::Signal(9));
        assert_eq!(exit_of_code(255), Exit::Status(255));
    }
}
