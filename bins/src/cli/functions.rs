//! `ol ls` and `ol rm`: lists and deletes functions.

use std::process::ExitCode;

use clap::Args;
use openlambda_core::function::FunctionName;
use openlambda_core::registry::{Listing, RegistryError};

use super::logs;
use super::lookup::{list_all, no_function, refresh, url_of};
use super::{Common, block_on, print, print_json, table};
use crate::Catalog;
use crate::error::{Context, Result};

pub(super) fn list(args: &Common, catalog: &Catalog) -> Result<ExitCode> {
    let state = args.dir()?.running()?;
    let registry = catalog.open_registry(&state.registry.spec)?;
    let functions = block_on(list_all(&registry))?;
    let url_of = |name: &FunctionName| url_of(&state, &name.clone().into());
    if args.json {
        let functions = functions.iter().map(|listing| {
            serde_json::json!({
                "name": listing.name,
                "version": listing.version,
                "digest": listing.digest,
                "aliases": listing.aliases,
                "url": url_of(&listing.name),
            })
        });
        print_json(&serde_json::json!({ "functions": functions.collect::<Vec<_>>() }));
        return Ok(ExitCode::SUCCESS);
    }
    let row = |listing: &Listing| {
        let digest: String = listing.digest.hex().chars().take(12).collect();
        let url = url_of(&listing.name);
        vec![listing.name.to_string(), listing.version.to_string(), digest, url]
    };
    let rows: Vec<Vec<String>> = functions.iter().map(row).collect();
    print(&table(&["FUNCTION", "VERSION", "DIGEST", "URL"], &rows));
    Ok(ExitCode::SUCCESS)
}

#[derive(Args, Debug)]
pub(super) struct RmArgs {
    /// The function
    function: FunctionName,
    /// Remove the data in its volumes too
    #[arg(long)]
    volumes: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn remove(args: &RmArgs, catalog: &Catalog) -> Result<ExitCode> {
    let dir = args.common.dir()?;
    let state = dir.running()?;
    let registry = catalog.open_registry(&state.registry.spec)?;
    let name = &args.function;
    block_on(async {
        match registry.delete(name).await {
            Ok(()) => refresh(&state, &name.clone().into()).await,
            Err(RegistryError::NotFound { .. }) => Err(no_function(&registry, name).await),
            Err(error) => Err(error).context(|| format!("cannot remove {name}")),
        }
    })?;
    for worker in &state.workers {
        for log in logs::files(&dir, &worker.id, name) {
            let _ = std::fs::remove_file(log);
        }
    }
    let volumes = dir.join("volumes").join(name.namespace()).join(name.name());
    if args.volumes {
        match std::fs::remove_dir_all(&volumes) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("cannot remove {}", volumes.display()))?;
            }
            _ => {}
        }
    }
    if args.common.json {
        print_json(&serde_json::json!({ "name": name }));
    } else {
        let kept = if volumes.exists() { "; its volumes are kept" } else { "" };
        eprintln!("{name} is removed{kept}");
    }
    Ok(ExitCode::SUCCESS)
}
