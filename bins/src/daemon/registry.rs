//! `ol-registry`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use openlambda_registry::native::{NativeRegistry, Store, serve};
use serde::Deserialize;

use super::{listen, say_ready, stop_signal};
use crate::error::{CliError, Context, Result};
use crate::settings::{Settings, complete};

/// The options of `ol-registry`, on the command line and in its file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Options {
    /// Read options from this TOML file; flags and the environment go before it.
    #[arg(long, value_name = "FILE.toml")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1:9000].
    #[arg(long, value_name = "ADDR", env = "OPENLAMBDA_REGISTRY_LISTEN")]
    listen: Option<SocketAddr>,
    /// Folder of the store.
    #[arg(long, value_name = "DIR", env = "OPENLAMBDA_REGISTRY_DIR")]
    store: Option<PathBuf>,
}

impl Settings for Options {
    fn defaults() -> String {
        r#"listen = "127.0.0.1:9000""#.to_owned()
    }

    fn or(self, other: Options) -> Options {
        Options {
            config: self.config,
            listen: self.listen.or(other.listen),
            store: self.store.or(other.store),
        }
    }
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let file = options.config.clone();
    let options = complete(options, file.as_deref())?;
    let store = options.store.ok_or_else(|| {
        CliError::new("--store is missing; pass the folder where bundles are to be kept")
    })?;
    let stop = stop_signal()?;
    let address = options.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 9000)));
    let listener = listen(address).await?;
    let place = store.display().to_string();
    let store = tokio::task::spawn_blocking(move || Store::open(&store)).await;
    let store = store
        .context(|| "opening the store failed".to_owned())?
        .context(|| format!("cannot open the store in {place}"))?;
    say_ready(&listener)?;
    let registry = Arc::new(NativeRegistry::new(store));
    serve(registry, listener, stop).await.context(|| "the registry ended".to_owned())
}
