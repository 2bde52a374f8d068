//! `ol describe`, `ol versions`, `ol alias`, `ol rollback`: the versions of a function.
//!
//! Versions never change and their numbers are never used again. So a rollback publishes the code of
//! an earlier version as the newest version: from then on a call of the name alone runs it, every other
//! reference keeps its meaning, and `ol versions` shows the rollback. It costs no storage, since bundles
//! are stored by digest.

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use futures_util::stream;
use openlambda_core::bundle;
use openlambda_core::function::{FunctionName, FunctionRef, NameError, Qualifier, Version};
use openlambda_core::registry::{Registry, RegistryError, Resolved, VersionInfo};

use super::lookup::{
    aliases_of, near, no_alias, no_version, not_there, refresh, url_of, versions_of,
};
use super::times::utc;
use super::{Common, block_on, print, print_json, table};
use crate::Catalog;
use crate::error::{CliError, Context, Result};
use crate::terminal::say;

#[derive(Args, Debug)]
pub(super) struct DescribeArgs {
    /// The function: NAME, NAMESPACE/NAME, NAME:VERSION, NAME:ALIAS
    function: FunctionRef,
    #[command(flatten)]
    common: Common,
}

pub(super) fn describe(args: &DescribeArgs, catalog: &Catalog) -> Result<ExitCode> {
    let state = args.common.dir()?.running()?;
    let registry = state.open_registry(catalog)?;
    let name = &args.function.name;
    let (resolved, versions, aliases) = block_on(async {
        let versions = versions_of(&registry, name).await?;
        let resolved = resolve(&registry, &args.function).await?;
        Ok((resolved, versions, aliases_of(&registry, name).await?))
    })?;
    let info = versions.iter().find(|info| info.version == resolved.version);
    let (bytes, published_ms) = info.map_or((None, None), |info| (info.bytes, info.published_ms));
    let url = url_of(&state, &args.function);
    if args.common.json {
        print_json(&serde_json::json!({
            "name": name,
            "version": resolved.version,
            "digest": resolved.digest,
            "bytes": bytes,
            "published_ms": published_ms,
            "url": url,
            "aliases": map(&aliases),
            "manifest": resolved.manifest,
            "versions": versions,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{name} version {}\n", resolved.version);
    let pointing: Vec<String> =
        aliases.iter().map(|(alias, version)| format!("{alias} = {version}")).collect();
    for (what, value) in [
        ("url", url),
        ("digest", resolved.digest.to_string()),
        ("size", bytes.map_or_else(unknown, size)),
        ("published", published_ms.map_or_else(unknown, utc)),
        ("versions", versions.len().to_string()),
        ("aliases", if pointing.is_empty() { "none".to_owned() } else { pointing.join(", ") }),
    ] {
        text.push_str(&format!("{what:<10} {value}\n"));
    }
    let manifest = toml::to_string(&resolved.manifest);
    let manifest = manifest.context(|| "the manifest cannot be shown".to_owned())?;
    text.push_str(&format!("\n# ol.toml, with all defaults\n{manifest}"));
    print(&text);
    Ok(ExitCode::SUCCESS)
}

#[derive(Args, Debug)]
pub(super) struct VersionsArgs {
    /// The function
    function: FunctionName,
    #[command(flatten)]
    common: Common,
}

pub(super) fn versions(args: &VersionsArgs, catalog: &Catalog) -> Result<ExitCode> {
    let state = args.common.dir()?.running()?;
    let registry = state.open_registry(catalog)?;
    let name = &args.function;
    let (versions, aliases) = block_on(async {
        Ok((versions_of(&registry, name).await?, aliases_of(&registry, name).await?))
    })?;
    if args.common.json {
        print_json(&serde_json::json!({
            "name": name,
            "versions": versions,
            "aliases": map(&aliases),
        }));
        return Ok(ExitCode::SUCCESS);
    }
    let newest = versions.last().map(|info| info.version);
    let row = |info: &VersionInfo| {
        let pointing = aliases.iter().filter(|(_, version)| *version == info.version);
        let mut names: Vec<String> = pointing
            .map(|(alias, _)| {
                FunctionRef {
                    name: name.clone(),
                    qualifier: Qualifier::Alias(alias.as_str().into()),
                }
                .to_string()
            })
            .collect();
        if Some(info.version) == newest {
            names.insert(0, name.to_string());
        }
        let digest: String = info.digest.hex().chars().take(12).collect();
        vec![
            info.version.to_string(),
            info.published_ms.map_or_else(unknown, utc),
            info.bytes.map_or_else(unknown, size),
            digest,
            names.join(", "),
        ]
    };
    let rows: Vec<Vec<String>> = versions.iter().map(row).collect();
    print(&table(&["VERSION", "PUBLISHED", "SIZE", "DIGEST", "CALLED BY"], &rows));
    Ok(ExitCode::SUCCESS)
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("change").args(["version", "remove"])))]
pub(super) struct AliasArgs {
    // Indices, because completions take an argument out and put it back as the last one.
    /// The function
    #[arg(index = 1)]
    function: FunctionName,
    /// The alias; without one, all are shown
    #[arg(index = 2)]
    alias: Option<String>,
    /// The version to point it at; without one, the alias is shown
    #[arg(index = 3, value_parser = version)]
    version: Option<Version>,
    /// Remove the alias
    #[arg(long, requires = "alias")]
    remove: bool,
    /// Change it only if it points there now; none: if there is no such alias
    #[arg(long, value_name = "VERSION|none", requires = "change", value_parser = expected)]
    expected: Option<Expected>,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug)]
struct Expected(Option<Version>);

fn version(text: &str) -> std::result::Result<Version, String> {
    text.parse()
        .map(Version)
        .map_err(|_| "write a version's number, as `ol versions` shows it".to_owned())
}

fn expected(text: &str) -> std::result::Result<Expected, String> {
    match text {
        "none" => Ok(Expected(None)),
        number => number
            .parse()
            .map(|number| Expected(Some(Version(number))))
            .map_err(|_| "write a version's number, or none".to_owned()),
    }
}

pub(super) fn alias(args: &AliasArgs, catalog: &Catalog) -> Result<ExitCode> {
    let state = args.common.dir()?.running()?;
    let registry = state.open_to_change(catalog, "ol alias")?;
    let name = &args.function;
    let alias = match &args.alias {
        Some(alias) if args.version.is_some() || args.remove => alias,
        wanted => {
            let aliases = block_on(async {
                versions_of(&registry, name).await?;
                aliases_of(&registry, name).await
            })?;
            return show_aliases(args, wanted.as_deref(), aliases);
        }
    };
    let reference: FunctionRef = qualified(name, alias)
        .ok()
        .filter(|reference| matches!(reference.qualifier, Qualifier::Alias(_)))
        .ok_or_else(|| {
            CliError::new(format!(
                "\"{alias}\" is not an alias; use letters, digits, dots, _ and -, a letter first"
            ))
            .by_the_call()
        })?;
    block_on(async {
        let versions = versions_of(&registry, name).await?;
        if let Some(version) = args.version
            && versions.iter().all(|info| info.version != version)
        {
            return Err(no_version(name, &version.to_string(), None));
        }
        let aliases = aliases_of(&registry, name).await?;
        let at = aliases.iter().find(|(known, _)| known == alias).map(|(_, version)| *version);
        if args.remove && at.is_none() && args.expected.is_none() {
            return Err(no_alias(name, alias, near(alias, &aliases)));
        }
        // Without --expected it is what it points to now: a change by somebody else in between is
        // still refused.
        let expected = args.expected.map_or(at, |Expected(expected)| expected);
        let set = registry.set_alias(name, alias, args.version, expected).await;
        set.map_err(|error| match error {
            RegistryError::Conflict { at, .. } => CliError::new(format!(
                "{reference} {} now, not {}; nothing was changed",
                points(at),
                expected.map_or("to nothing".to_owned(), |version| format!("to version {version}")),
            )),
            error => CliError::caused(format!("cannot set {reference}"), error),
        })?;
        refresh(&state, &reference).await
    })?;
    let url = url_of(&state, &reference);
    if args.common.json {
        print_json(&serde_json::json!({
            "name": name,
            "alias": alias,
            "version": args.version,
            "url": url,
        }));
    } else if let Some(version) = args.version {
        print(&format!("{url}\n"));
        say!("{reference} is version {version}");
    } else {
        say!("{reference} is removed");
    }
    Ok(ExitCode::SUCCESS)
}

fn show_aliases(
    args: &AliasArgs,
    wanted: Option<&str>,
    mut aliases: Vec<(String, Version)>,
) -> Result<ExitCode> {
    if let Some(wanted) = wanted {
        if aliases.iter().all(|(alias, _)| alias != wanted) {
            return Err(no_alias(&args.function, wanted, near(wanted, &aliases)));
        }
        aliases.retain(|(alias, _)| alias == wanted);
    }
    if args.common.json {
        print_json(&serde_json::json!({ "name": args.function, "aliases": map(&aliases) }));
    } else {
        let row = |(alias, version): &(String, Version)| vec![alias.clone(), version.to_string()];
        let rows: Vec<Vec<String>> = aliases.iter().map(row).collect();
        print(&table(&["ALIAS", "VERSION"], &rows));
    }
    Ok(ExitCode::SUCCESS)
}

fn points(at: Option<Version>) -> String {
    at.map_or("does not exist".to_owned(), |version| format!("points to version {version}"))
}

#[derive(Args, Debug)]
pub(super) struct RollbackArgs {
    /// The function
    #[arg(index = 1)]
    function: FunctionName,
    /// The version to go back to, or an alias of it [default: the one before the newest]
    #[arg(index = 2)]
    version: Option<String>,
    #[command(flatten)]
    common: Common,
}

pub(super) fn rollback(args: &RollbackArgs, catalog: &Catalog) -> Result<ExitCode> {
    let state = args.common.dir()?.running()?;
    let registry = state.open_to_change(catalog, "ol rollback")?;
    let name = &args.function;
    let (target, published) = block_on(async {
        let versions = versions_of(&registry, name).await?;
        let target = match &args.version {
            Some(version) => {
                qualified(name, version).context(|| format!("\"{version}\" is not a version"))?
            }
            None => {
                let before = versions.iter().rev().nth(1).ok_or_else(|| {
                    CliError::new(format!(
                        "{name} has one version only, so there is none to go back to; \
                         `ol versions {name}` shows it"
                    ))
                })?;
                FunctionRef { name: name.clone(), qualifier: Qualifier::Version(before.version) }
            }
        };
        let target = resolve(&registry, &target).await?;
        let published = publish_again(&registry, &target).await?;
        refresh(&state, &name.clone().into()).await?;
        Ok((target, published))
    })?;
    let url = url_of(&state, &name.clone().into());
    if args.common.json {
        print_json(&serde_json::json!({
            "name": name,
            "version": published.version,
            "digest": published.digest,
            "url": url,
            "code_of": target.version,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!("{url}\n"));
    if published.new {
        say!("{name} version {} runs the code of version {}", published.version, target.version);
    } else {
        say!(
            "{name} version {} has the code of version {} already",
            published.version,
            target.version
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Publishes the code of a version as the newest one.
async fn publish_again(
    registry: &Arc<dyn Registry>,
    target: &Resolved,
) -> Result<openlambda_core::registry::Published> {
    let name = &target.name;
    let folder = tempfile::tempdir().context(|| "cannot make a temporary folder".to_owned())?;
    let fetched = registry.fetch(&target.digest, folder.path()).await;
    fetched.context(|| format!("cannot fetch version {}", target.version))?;
    let mut tar = Vec::new();
    let packed = bundle::pack_dir(folder.path(), &mut tar);
    let packed = packed.context(|| format!("cannot pack version {}", target.version))?;
    if packed.digest != target.digest {
        // An archive that was uploaded may hold what packing a folder leaves out.
        return Err(CliError::new(format!(
            "version {} of {name} holds files that `ol` does not pack; deploy its folder instead",
            target.version
        )));
    }
    let tar = stream::once(async { Ok(Bytes::from(tar)) });
    let published = registry.publish(name, Box::pin(tar)).await;
    published.context(|| format!("cannot publish {name}"))
}

/// `name` with a version or an alias.
fn qualified(name: &FunctionName, qualifier: &str) -> std::result::Result<FunctionRef, NameError> {
    format!("{name}:{qualifier}").parse()
}

async fn resolve(registry: &Arc<dyn Registry>, reference: &FunctionRef) -> Result<Resolved> {
    match registry.resolve(reference).await {
        Err(RegistryError::NotFound { .. }) => Err(not_there(registry, reference).await),
        resolved => resolved.context(|| format!("cannot look {reference} up")),
    }
}

fn map(aliases: &[(String, Version)]) -> serde_json::Map<String, serde_json::Value> {
    aliases.iter().map(|(alias, version)| (alias.clone(), version.0.into())).collect()
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}
