//! `ol-lb`: assembles a balancer from its settings and serves.

use std::sync::Arc;

use openlambda_core::time::SystemClock;
use openlambda_lb::proxy::{AccessLog, Proxy};

use super::{listen, say_ready, stop_signal};
use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::settings::{Balancer, Given, Settings, check_balancer};

pub(crate) async fn run(given: Given<Balancer>, catalog: &Catalog) -> Result<()> {
    let config = Settings::complete(given, None)?.config()?;
    let settings = config.balancer;
    check_balancer(&settings)?;
    let stop = stop_signal()?;
    let registry = settings
        .registry
        .as_deref()
        .ok_or_else(|| CliError::new("--registry is missing; pass native=URL or dir=FOLDER"))?;
    let registry = catalog.open_registry_within(registry, config.allow.allow())?;
    let built = catalog.policies().build(&settings.policy)?;
    let listener = listen(settings.listen).await?;
    let clock = Arc::new(SystemClock::new());
    let policy = settings.policy.name.clone();
    let proxy = Proxy::new(settings.config(), policy, built, registry, clock);
    if let Some(place) = &settings.access_log {
        let log = AccessLog::open(place)
            .context(|| format!("cannot write {}; pass another --access-log", place.display()))?;
        proxy.write_access_log(log);
    }
    say_ready(&listener)?;
    proxy.serve(listener, stop).await;
    Ok(())
}
