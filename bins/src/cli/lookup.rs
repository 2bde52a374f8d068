//! How commands find a cluster's registry and balancer, and what they ask them.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use openlambda_core::config::nearest;
use openlambda_core::function::{FunctionName, FunctionRef, Qualifier, Version};
use openlambda_core::registry::{Listing, Registry, RegistryError, VersionInfo};
use openlambda_core::wire;

use crate::cluster::ClusterState;
use crate::error::{CliError, Context, Result};
use crate::http_client;

/// Where a function is called.
pub(super) fn url_of(state: &ClusterState, function: &FunctionRef) -> String {
    format!("{}{}", state.url, wire::run_path(function))
}

/// Makes the balancer look a function up again, so that the next call sees what was just changed.
pub(super) async fn refresh(state: &ClusterState, function: &FunctionRef) -> Result<()> {
    let url = format!("{}{}", state.url, wire::REFRESH_PATH);
    let request = http::Request::post(&url).body(Bytes::from(function.to_string()));
    let answer = http_client::send(
        request.context(|| format!("{url} is not an address"))?,
        state.secret.as_ref(),
    )
    .await?;
    match answer.status() {
        // After `ol rm` it is not there any more, which is right.
        StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
        status => Err(CliError::new(format!(
            "the balancer could not look {function} up ({status}): {}",
            String::from_utf8_lossy(answer.body()).trim()
        ))),
    }
}

pub(super) async fn list_all(registry: &Arc<dyn Registry>) -> Result<Vec<Listing>> {
    registry.list().await.context(|| "cannot list the functions".to_owned())
}

/// That there is no such function, and which one may be meant.
pub(super) async fn no_function(registry: &Arc<dyn Registry>, name: &FunctionName) -> CliError {
    let known = match list_all(registry).await {
        Ok(known) => known,
        Err(error) => return error,
    };
    let known: Vec<String> = known.iter().map(|listing| listing.name.to_string()).collect();
    let hint = match nearest(&name.to_string(), known.iter().map(String::as_str)) {
        Some(nearest) => format!("did you mean \"{nearest}\"?"),
        None => "`ol ls` shows what there is".to_owned(),
    };
    CliError::new(format!("there is no function \"{name}\"; {hint}"))
}

/// That what `reference` names is not there, and what may be meant.
pub(super) async fn not_there(registry: &Arc<dyn Registry>, reference: &FunctionRef) -> CliError {
    let name = &reference.name;
    if let Err(error) = versions_of(registry, name).await {
        return error;
    }
    match &reference.qualifier {
        Qualifier::Version(version) => no_version(name, &version.to_string(), None),
        Qualifier::Alias(alias) => match aliases_of(registry, name).await {
            Ok(aliases) => no_version(name, &format!("\"{alias}\""), near(alias, &aliases)),
            Err(error) => error,
        },
        _ => no_function(registry, name).await,
    }
}

/// That a function has no such version, or no alias that points to one; `near`: what may be meant.
pub(super) fn no_version(name: &FunctionName, what: &str, near: Option<&str>) -> CliError {
    let hint = match near {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("`ol versions {name}` lists them"),
    };
    CliError::new(format!("{name} has no version {what}; {hint}"))
}

/// That a function has no such alias.
pub(super) fn no_alias(name: &FunctionName, alias: &str, near: Option<&str>) -> CliError {
    let hint = match near {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("`ol alias {name}` lists those it has"),
    };
    CliError::new(format!("{name} has no alias \"{alias}\"; {hint}"))
}

/// The alias that may be meant.
pub(super) fn near<'a>(alias: &str, known: &'a [(String, Version)]) -> Option<&'a str> {
    nearest(alias, known.iter().map(|(known, _)| known.as_str()))
}

/// Where the function's aliases point.
pub(super) async fn aliases_of(
    registry: &Arc<dyn Registry>,
    name: &FunctionName,
) -> Result<Vec<(String, Version)>> {
    let list = list_all(registry).await?;
    let listing = list.into_iter().find(|listing| listing.name == *name);
    Ok(listing.map_or(Vec::new(), |listing| listing.aliases.into_iter().collect()))
}

pub(super) async fn versions_of(
    registry: &Arc<dyn Registry>,
    name: &FunctionName,
) -> Result<Vec<VersionInfo>> {
    match registry.versions(name).await {
        Err(RegistryError::NotFound { .. }) => Err(no_function(registry, name).await),
        versions => versions.context(|| format!("cannot list the versions of {name}")),
    }
}
