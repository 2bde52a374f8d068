//! `ol-lb`: assembles a balancer from its settings and serves.

use std::sync::Arc;

use openlambda_core::time::SystemClock;
use openlambda_lb::proxy::{AccessLog, Proxy};

use super::{audit_log, listen, say_ready, secret_in, stop_signal};
use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::private;
use crate::settings::{Balancer, Given, Settings, check_balancer, is_time};
use crate::volumes::KeepsVolumes;

pub(crate) async fn run(given: Given<Balancer>, catalog: &Catalog) -> Result<()> {
    let given = Settings::complete(given, None)?;
    let config = given.config()?;
    let settings = config.balancer;
    check_balancer(&settings).map_err(|error| given.blame(error, is_time))?;
    let stop = stop_signal()?;
    let registry = settings
        .registry
        .as_deref()
        .ok_or_else(|| CliError::new("--registry is missing; pass native=URL or dir=FOLDER"))
        .map_err(CliError::by_the_call)?;
    let secret = secret_in(settings.secret_file.as_deref())?;
    let allow = config.allow.allow();
    let registry = catalog.open_registry_within(registry, Some(&secret), "ol-lb", allow)?;
    let registry = match settings.volumes_dir.clone() {
        Some(volumes) => Arc::new(KeepsVolumes::new(registry, volumes)),
        None => registry,
    };
    let built = catalog.policies().build(&settings.policy);
    let built =
        built.map_err(|error| given.blame(error.into(), |name| name == "balancer.policy"))?;
    let listener = listen(settings.listen).await?;
    let clock = Arc::new(SystemClock::new());
    let policy = settings.policy.name.clone();
    let told = settings.config(&config.errors, Some(secret));
    let proxy = Proxy::new(told, policy, built, registry, clock);
    if let Some(place) = &settings.access_log {
        let log = AccessLog::open(place, settings.access_log_mb.get() << 20)
            .context(|| format!("cannot write {}; pass another --access-log", place.display()))?;
        proxy.write_access_log(log);
    }
    if let Some(log) = audit_log(settings.audit_log.as_deref())? {
        proxy.write_audit_log(log);
    }
    if let Some(socket) = &settings.socket {
        match private::listen(socket) {
            Ok(listener) => proxy.listen_at(listener),
            // There are file systems without sockets; the port is as good.
            Err(error) => tracing::warn!(%error, socket = %socket.display(), "no Unix socket"),
        }
    }
    say_ready(&listener)?;
    proxy.serve(listener, stop).await;
    Ok(())
}
