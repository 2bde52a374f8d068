//! `ol-worker`: assembles a worker from its settings and serves.

use std::path::Path;
use std::sync::Arc;

use openlambda_core::format::Format;
use openlambda_core::sandbox::Isolation;
use openlambda_core::time::SystemClock;
use openlambda_core::worker::Worker as CoreWorker;
use openlambda_sandbox::sys::{MARK, Spawner};

use super::{listen, say_ready, secret_in, stop_signal};
use crate::Catalog;
use crate::catalog::SandboxContext;
use crate::error::{CliError, Context, Result};
use crate::settings::{Given, Settings, Worker, check_worker, is_policy, is_time};

/// The format of a worker's folder, of which functions' logs are kept, and volumes where they have no
/// folder of their own.
const FORMAT: Format = Format { kind: "worker's folder", number: 1 };

pub(crate) async fn run(given: Given<Worker>, catalog: &Catalog) -> Result<()> {
    let given = Settings::complete(given, None)?;
    let all = given.config()?;
    let settings = all.worker;
    check_worker(&settings).map_err(|error| given.blame(error, is_time))?;
    let name = required(settings.name.clone(), "name")?;
    let registry = required(settings.registry.clone(), "registry")?;
    let state_dir = required(settings.state_dir.clone(), "state-dir")?;
    let secret = secret_in(settings.secret_file.as_deref())?;
    let config = settings.config(&name, &state_dir, catalog);
    let mut config = config.map_err(|error| given.blame(error, is_policy))?;
    config.secret = Some(secret.clone());
    config.allow = all.allow.allow();
    FORMAT.check(&state_dir)?;
    let stop = stop_signal()?;
    let registry = catalog.open_registry(&registry, Some(&secret), "ol-worker")?;
    let options = settings.sandbox_options()?;
    let entry = catalog.sandbox_entry(&settings.sandbox, &options)?;
    std::fs::create_dir_all(&state_dir)
        .context(|| format!("cannot use {}; pass another --state-dir", state_dir.display()))?;
    FORMAT.mark(&state_dir)?;
    let spawner = Spawner::start().context(|| "cannot start the spawning thread".to_owned())?;
    let clock = Arc::new(SystemClock::new());
    let factory = (entry.build)(SandboxContext {
        volumes_dir: settings.volumes_dir.clone().unwrap_or_else(|| state_dir.join("volumes")),
        mark: mark(&name, &state_dir),
        state_dir,
        spawner,
        clock: clock.clone(),
        options,
    })
    .context(|| format!("the sandbox \"{}\" does not work here", entry.name))?;
    if factory.capabilities().isolation == Isolation::None {
        tracing::warn!(
            "sandbox {} does not isolate functions from this machine: run trusted code only",
            entry.name
        );
    }
    let listener = listen(settings.listen).await?;
    let worker = CoreWorker::start(config, factory, registry, clock)
        .await
        .context(|| "the worker does not start".to_owned())?;
    say_ready(&listener)?;
    worker.serve(listener, stop).await.context(|| "the worker ended".to_owned())
}

fn required<T>(value: Option<T>, flag: &str) -> Result<T> {
    value.ok_or_else(|| {
        CliError::new(format!("--{flag} is missing; pass it or put it in --config")).by_the_call()
    })
}

/// The mark of everything that the worker starts: below its own, which a supervisor gave it, or made
/// from its folder, so that a restart finds what a crash left.
fn mark(name: &str, state_dir: &Path) -> String {
    std::env::var(MARK).unwrap_or_else(|_| {
        let folder = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let hash = openlambda_core::hash::stable_hash(0, folder.as_os_str().as_encoded_bytes());
        format!("ol-{hash:016x}-{name}")
    })
}
