//! Which parts of a cluster do not answer, and why, as far as it can be seen.
//!
//! A process that is stopped (SIGSTOP, a debugger, a laptop's lid) keeps its ports: connections are
//! accepted by the kernel, and nothing comes. So whoever waits is told which part it is.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use openlambda_core::registry::Registry;
use openlambda_registry::native::RemoteRegistry;

use crate::cluster::{ClusterState, DataDir};
use crate::http_client;
use crate::terminal::say;

/// After how much waiting a command looks for what it may be waiting for, and how long that may take.
const LOOK_AFTER: Duration = Duration::from_millis(700);
const LOOK_FOR: Duration = Duration::from_millis(800);

/// A part that did not answer in time.
#[derive(Debug)]
pub(crate) struct Silent {
    /// `the balancer`, `worker-1`, …
    pub(crate) name: String,
    pid: Option<u32>,
}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) if is_stopped(pid) => write!(
                f,
                "{} does not answer: its process is stopped; `kill -CONT {pid}` lets it go on",
                self.name
            ),
            Some(pid) => write!(f, "{} (process {pid}) takes long to answer", self.name),
            None => write!(f, "{} takes long to answer", self.name),
        }
    }
}

/// Asks every part of the cluster, all at once. One that is being started again refuses, which is an
/// answer.
pub(crate) async fn silent_parts(state: &ClusterState, within: Duration) -> Vec<Silent> {
    let alive = async |url: &str| {
        let request = http::Request::get(format!("{url}/livez")).body(Bytes::new());
        let Ok(request) = request else { return true };
        let asked = http_client::send(request, state.secret.as_ref());
        tokio::time::timeout(within, asked).await.is_ok()
    };
    let registry = async {
        let Some(url) = state.registry.spec.strip_prefix("native=") else { return true };
        let Ok(registry) = RemoteRegistry::connect(url) else { return true };
        let registry = registry.with_secret(state.secret.clone());
        // Whether there is such a function does not matter.
        let Ok(any) = "ol".parse() else { return true };
        tokio::time::timeout(within, registry.resolve(&any)).await.is_ok()
    };
    let workers = join_all(state.workers.iter().map(|worker| alive(&worker.url)));
    let (balancer, registry, workers) = tokio::join!(alive(&state.url), registry, workers);
    let mut silent = Vec::new();
    if is_stopped(state.pid) {
        silent.push(Silent { name: "the supervisor".to_owned(), pid: Some(state.pid) });
    }
    if !balancer {
        silent.push(Silent { name: "the balancer".to_owned(), pid: state.balancer_pid });
    }
    if !registry {
        silent.push(Silent { name: "the registry".to_owned(), pid: state.registry.pid });
    }
    for (worker, answers) in state.workers.iter().zip(workers) {
        if !answers {
            silent.push(Silent { name: worker.id.clone(), pid: worker.pid });
        }
    }
    silent
}

/// For a command that may wait for a part of the cluster: if it still runs after a moment, it looks
/// whether one does not answer, and says so. The command itself goes on.
pub(crate) fn tell(dir: &DataDir) {
    let dir = dir.clone();
    std::thread::spawn(move || {
        std::thread::sleep(LOOK_AFTER);
        // While it starts or stops there is nothing to wait for here.
        let Ok(state) = dir.running() else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let Ok(runtime) = runtime else { return };
        for part in runtime.block_on(silent_parts(&state, LOOK_FOR)) {
            say!("ol: {part}");
        }
    });
}

/// Whether a process is stopped, by a signal or a debugger.
pub(crate) fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name of the program stands in brackets, and may hold any itself.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}
