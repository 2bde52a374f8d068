//! `ol-registry`: assembles a native registry from its settings and serves.

use std::sync::Arc;

use openlambda_registry::native::{NativeRegistry, ServeConfig, Store, serve};

use super::{audit_log, listen, say_ready, secret_in, stop_signal};
use crate::error::{CliError, Context, Result};
use crate::settings::{Given, Registry, Settings, check_registry};

pub(crate) async fn run(given: Given<Registry>) -> Result<()> {
    let config = Settings::complete(given, None)?.config()?;
    let (settings, allow) = (config.registry, config.allow.allow());
    check_registry(&settings)?;
    let store = settings.store.clone().ok_or_else(|| {
        CliError::new("--store is missing; pass the folder where bundles are to be kept")
            .by_the_call()
    })?;
    let secret = secret_in(settings.secret_file.as_deref())?;
    let mut config = ServeConfig::default();
    config.secret = Some(secret);
    config.hosts.clone_from(&settings.hosts);
    config.patience = settings.patience();
    config.audit = audit_log(settings.audit_log.as_deref())?;
    let stop = stop_signal()?;
    let listener = listen(settings.listen).await?;
    let place = store.display().to_string();
    let store = tokio::task::spawn_blocking(move || Store::open(&store)).await;
    let store = store
        .context(|| "opening the store failed".to_owned())?
        .context(|| format!("cannot open the store in {place}"))?;
    say_ready(&listener)?;
    let registry = Arc::new(NativeRegistry::new(store.allowing(allow)));
    serve(registry, listener, config, stop).await.context(|| "the registry ended".to_owned())
}
