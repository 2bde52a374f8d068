//! `ol ls` and `ol rm`: lists and deletes functions.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use openlambda_core::function::FunctionName;
use openlambda_core::registry::{Listing, RegistryError};

use super::logs;
use super::lookup::{list_all, no_function, refresh, url_of};
use super::{Common, block_on, print, print_json, table};
use crate::Catalog;
use crate::error::{Context, Result};
use crate::terminal::say;
use crate::volumes::put_aside;

pub(super) fn list(args: &Common, catalog: &Catalog) -> Result<ExitCode> {
    let state = args.dir()?.running()?;
    let registry = state.open_registry(catalog)?;
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
    /// Remove the data in its volumes too, and what earlier functions of this name have left
    #[arg(long)]
    volumes: bool,
    #[command(flatten)]
    common: Common,
}

pub(super) fn remove(args: &RmArgs, catalog: &Catalog) -> Result<ExitCode> {
    let dir = args.common.dir()?;
    let state = dir.running()?;
    let registry = state.open_to_change(catalog, "ol rm")?;
    let name = &args.function;
    let last = block_on(async {
        let last = registry.resolve(&name.clone().into()).await.ok();
        match registry.delete(name).await {
            Ok(()) => refresh(&state, &name.clone().into()).await.map(|()| last),
            Err(RegistryError::NotFound { .. }) => Err(no_function(&registry, name).await),
            Err(error) => Err(error).context(|| format!("cannot remove {name}")),
        }
    })?;
    for worker in &state.workers {
        for log in logs::files(&dir, &worker.id, name) {
            let _ = std::fs::remove_file(log);
        }
    }
    let _ = std::fs::remove_dir_all(dir.page_of(name));
    let namespace = dir.join("volumes").join(name.namespace());
    if args.volumes {
        remove_volumes(&namespace, name)?;
    }
    let kept = match last {
        Some(last) => put_aside(&namespace, name, &last)
            .context(|| format!("cannot put the volumes of {name} aside; move them yourself"))?,
        None => None,
    };
    if args.common.json {
        let (volumes, back) = kept.unzip();
        print_json(&serde_json::json!({ "name": name, "volumes": volumes, "back": back }));
        return Ok(ExitCode::SUCCESS);
    }
    match kept {
        Some((kept, back)) => say!(
            "{name} is removed; its volumes are kept, and the next function of this name gets new ones. \
             For one that is to have them, before you deploy it: mv {} {}",
            kept.display(),
            back.display()
        ),
        None => say!("{name} is removed"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes the volumes of all functions that had this name.
fn remove_volumes(namespace: &Path, name: &FunctionName) -> Result<()> {
    for entry in std::fs::read_dir(namespace).into_iter().flatten().flatten() {
        let folder = entry.file_name();
        let of = folder.to_str().map(|folder| folder.split('@').next().unwrap_or_default());
        if of == Some(name.name()) {
            let path = entry.path();
            openlambda_sandbox::trees::remove(&path)
                .context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}
