//! `ol registry`: checks the store of a native registry that does not run, and makes its tables anew.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use openlambda_registry::native::{Checked, Rebuilt, Store, StoreError};

use super::{Common, print, print_json};
use crate::error::{Context, Result};
use crate::terminal::say;

#[derive(Debug, Subcommand)]
pub(super) enum RegistryCommand {
    /// Read all that the store has, and say what is damaged; the cluster has to be down
    Check(CheckArgs),
    /// Make a lost or damaged index anew, of the files that stand beside the bundles; the cluster has to be down
    Rebuild(StoreArgs),
}

#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    /// Folder of the store [default: where the cluster's registry keeps it]
    #[arg(long, value_name = "DIR", env = "OPENLAMBDA_REGISTRY_DIR")]
    store: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Make the index anew if it is lost or damaged
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    store: StoreArgs,
}

impl StoreArgs {
    fn folder(&self) -> Result<PathBuf> {
        if let Some(store) = &self.store {
            return Ok(store.clone());
        }
        let dir = self.common.dir_alone()?;
        let daemons = dir.daemons_table();
        let named =
            daemons.as_ref().and_then(|table| table.get("registry")?.get("store")?.as_str());
        Ok(named.map_or_else(|| dir.join("registry"), PathBuf::from))
    }
}

pub(super) fn registry(command: &RegistryCommand) -> Result<ExitCode> {
    match command {
        RegistryCommand::Check(args) => check(args),
        RegistryCommand::Rebuild(args) => {
            let rebuilt = rebuild(&args.folder()?)?;
            tell(&rebuilt);
            if args.common.json {
                print_json(&as_json(&rebuilt));
            }
            Ok(exit(rebuilt.damaged.is_empty() && rebuilt.missing.is_empty()))
        }
    }
}

/// 0: all is well, 1: something is not.
fn check(args: &CheckArgs) -> Result<ExitCode> {
    let folder = args.store.folder()?;
    let checked = match look(&folder) {
        Err(StoreError::InUse { dir }) => return in_use(dir),
        Ok(checked) if checked.wrong.is_empty() || !args.repair => checked,
        Err(error) if !args.repair => {
            return Err(error).context(|| format!("cannot open the store in {}", folder.display()));
        }
        Ok(_) | Err(_) => {
            tell(&rebuild(&folder)?);
            look(&folder).context(|| format!("cannot open the store in {}", folder.display()))?
        }
    };
    if args.store.common.json {
        let damaged = checked.damaged.iter().map(
            |(digest, versions)| serde_json::json!({ "digest": digest, "versions": versions }),
        );
        print_json(&serde_json::json!({
            "bundles": checked.bundles,
            "damaged": damaged.collect::<Vec<_>>(),
            "wrong": checked.wrong,
        }));
    } else {
        for (digest, versions) in &checked.damaged {
            let versions = versions.join(", ");
            print(&format!(
                "bundle {digest} of {versions} is damaged or missing; deploy that code again, which heals it\n"
            ));
        }
        for wrong in &checked.wrong {
            print(&format!("{wrong}; run ol registry rebuild\n"));
        }
        if checked.is_whole() {
            print(&format!("{} bundles and the index are whole\n", checked.bundles));
        }
    }
    Ok(exit(checked.is_whole()))
}

fn look(folder: &Path) -> std::result::Result<Checked, StoreError> {
    let store = Store::open(folder)?;
    store.check().map_err(|error| StoreError::Io {
        path: folder.to_owned(),
        source: std::io::Error::other(error),
    })
}

fn in_use<T>(dir: PathBuf) -> Result<T> {
    Err(StoreError::InUse { dir }).context(|| "the registry runs; run ol down first".to_owned())
}

fn rebuild(folder: &Path) -> Result<Rebuilt> {
    match Store::rebuild(folder) {
        Err(StoreError::InUse { dir }) => in_use(dir),
        rebuilt => rebuilt.context(|| format!("the index in {} stays", folder.display())),
    }
}

fn tell(rebuilt: &Rebuilt) {
    say!("made the index anew: {} functions, {} versions", rebuilt.functions, rebuilt.versions);
    if let Some(before) = &rebuilt.before {
        say!("the old one is {}", before.display());
    }
    for file in &rebuilt.damaged {
        say!("{} is damaged; deploy its function again, or restore a backup", file.display());
    }
    for digest in &rebuilt.missing {
        say!("bundle {digest} is missing; deploy its code again");
    }
}

fn as_json(rebuilt: &Rebuilt) -> serde_json::Value {
    serde_json::json!({
        "functions": rebuilt.functions,
        "versions": rebuilt.versions,
        "damaged": rebuilt.damaged,
        "missing": rebuilt.missing,
        "before": rebuilt.before,
    })
}

fn exit(is_whole: bool) -> ExitCode {
    if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
