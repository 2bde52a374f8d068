//! The variables that a function finds.

use std::collections::BTreeMap;
use std::io;

use openlambda_core::manifest::Style;
use openlambda_core::sandbox::{SandboxError, SandboxSpec, Work};

use crate::errors::unsupported;
use crate::sys::MARK;

/// What functions find in `PATH`, whatever ours is.
const FUNCTION_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where things are, as the function sees them.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) code: String,
    pub(crate) home: String,
    pub(crate) tmp: String,
    pub(crate) runtimes: String,
    /// Python packages that the operator gives to all functions.
    pub(crate) packages: Vec<String>,
}

/// The environment of an instance, without the address of the Runtime API.
///
/// # Errors
///
/// No program can be started with the manifest's own variables.
pub(crate) fn environment(
    spec: &SandboxSpec,
    places: &Places,
    mark: &str,
    volumes: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, SandboxError> {
    let manifest = &*spec.manifest;
    manifest.check_environment().map_err(|error| unsupported(error.to_string()))?;
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: &str| env.insert(key.to_owned(), value.to_owned());
    set("PATH", FUNCTION_PATH);
    set("LANG", "C.UTF-8");
    set("TZ", ":UTC");
    set("HOME", &places.home);
    set("TMPDIR", &places.tmp);
    set("AWS_EXECUTION_ENV", "OpenLambda");
    // Clients read one or the other, and a function that names one means both.
    let regions = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    let region = regions.iter().find_map(|name| manifest.environment.get(*name));
    for name in regions {
        set(name, region.map_or("local", String::as_str));
    }
    for (key, value) in &manifest.environment {
        set(key, value);
    }
    // Those that follow are not for manifests to set (`Manifest::parse`).
    let name = spec.function.name();
    let version = spec.version.map_or_else(|| "$LATEST".to_owned(), |v| v.to_string());
    let style = match spec.work {
        Work::Compile => "compile",
        _ => manifest.style.unwrap_or(Style::Lambda).as_str(),
    };
    set("_HANDLER", manifest.handler.as_deref().unwrap_or_default());
    set("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", &manifest.memory_mb.to_string());
    set("AWS_LAMBDA_FUNCTION_NAME", name);
    set("AWS_LAMBDA_FUNCTION_VERSION", &version);
    set("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand");
    set("AWS_LAMBDA_LOG_GROUP_NAME", &format!("/aws/lambda/{name}"));
    set("AWS_LAMBDA_LOG_STREAM_NAME", mark);
    set("LAMBDA_RUNTIME_DIR", &places.runtimes);
    set("LAMBDA_TASK_ROOT", &places.code);
    set("OPENLAMBDA_STYLE", style);
    if !places.packages.is_empty() {
        set("OPENLAMBDA_PYTHON_PACKAGES", &places.packages.join(":"));
    }
    set(MARK, mark);
    // With one slot it is not there, as on AWS: clients take it, whatever it says, for the wish to have
    // a process of its own for each slot.
    let slots = "AWS_LAMBDA_MAX_CONCURRENCY";
    match manifest.concurrency {
        1 => drop(env.remove(slots)),
        several => drop(env.insert(slots.to_owned(), several.to_string())),
    }
    for volume in &manifest.volumes {
        if let Some(place) = volumes.get(&volume.name) {
            env.insert(volume.variable(), place.clone());
        }
    }
    Ok(env)
}

/// What a worker's processes, cgroups and containers are marked with stands in environments, paths
/// and labels.
///
/// # Errors
///
/// The mark is empty or holds something else than letters, digits and `._/-`.
pub(crate) fn check_mark(mark: &str) -> io::Result<()> {
    let valid = mark.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b));
    if !mark.is_empty() && valid {
        return Ok(());
    }
    let message =
        format!("\"{mark}\" cannot mark processes; use letters, digits, dots, slashes, _ and -");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}
