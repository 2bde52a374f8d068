//! What values a manifest may have.

use super::cors::Cors;
use super::lists::{is_short, short};
use super::{
    ENVIRONMENT_LIMIT, EventFormat, MANIFEST_LIMIT, Manifest, ManifestError, Volume, routes,
};

/// The most volumes of one function.
const MOST_VOLUMES: usize = 16;
/// The longest path of a volume, bytes.
const VOLUME_PATH_LIMIT: usize = 256;
/// The most parts of a volume's path. Each of them is a folder that a worker makes.
const VOLUME_DEPTH_LIMIT: usize = 16;

/// What sandboxes of one kind or another put into a function's root themselves: programs, libraries
/// and their settings, the kernel's views, the bundle, our bootstraps, the Runtime API's socket.
const SANDBOX_PLACES: [&str; 18] = [
    "usr",
    "bin",
    "sbin",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "etc",
    "dev",
    "proc",
    "sys",
    "boot",
    "var/task",
    "var/runtime",
    "var/run",
    "var/tmp",
    "run/openlambda",
    "opt/node",
];

/// Variables that the platform sets, whatever a manifest says: by them a runtime knows what to run and for
/// whom. (Every other is the function's own, also where we have a default.)
const OWN_VARIABLES: [&str; 15] = [
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_MAX_CONCURRENCY",
    "AWS_LAMBDA_RUNTIME_API",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
    "OPENLAMBDA_MARK",
    "OPENLAMBDA_RUNTIME_SOCKET",
    "OPENLAMBDA_STYLE",
];

impl Manifest {
    /// The first of its variables that cannot be set as it says, and why.
    pub(super) fn wrong_variable(&self) -> Option<(&str, String)> {
        for (key, value) in &self.environment {
            let valid = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            let shown: String = key.escape_debug().take(80).collect();
            let why = if !valid {
                format!("environment variable \"{shown}\" is not valid; use letters, digits and _")
            } else if OWN_VARIABLES.contains(&key.as_str()) {
                format!(
                    "environment variable \"{key}\" cannot be set, because the platform sets it; use \
                     another name"
                )
            } else if value.contains('\0') {
                zero_byte(key)
            } else if takes(key, value) > ENVIRONMENT_LIMIT {
                environment_too_long()
            } else {
                continue;
            };
            return Some((key, why));
        }
        if self.environment_bytes() <= ENVIRONMENT_LIMIT {
            return None;
        }
        let largest = self.environment.iter().max_by_key(|(key, value)| takes(key, value))?;
        Some((largest.0, environment_too_long()))
    }

    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Value(text));
        let positive = [
            ("memory_mb", self.memory_mb, 1 << 20),
            ("processes", u64::from(self.processes), 1 << 20),
            ("tmp_mb", self.tmp_mb, 1 << 20),
            ("concurrency", u64::from(self.concurrency), 1000),
            ("max_instances", u64::from(self.max_instances), 10_000),
        ];
        for (key, value, most) in positive {
            if !(1..=most).contains(&value) {
                return wrong(format!("{key} = {value} is out of range; use 1 to {most}"));
            }
        }
        // A nanosecond at least: less is a time limit of nothing.
        if !(1e-9..=86_400.0).contains(&self.timeout_seconds) {
            return wrong(format!(
                "timeout_seconds = {} is out of range; use more than 0 and at most 86400",
                self.timeout_seconds
            ));
        }
        if !(self.cpus > 0.0 && self.cpus <= 1024.0) {
            return wrong(format!("cpus = {} is out of range; use more than 0", self.cpus));
        }
        if let Some(methods) = &self.methods
            && !is_short(methods)
        {
            return wrong(format!("methods is too long; use {}", short()));
        }
        if self.methods.as_ref().is_some_and(Vec::is_empty) {
            return wrong(
                "methods = [] lets nobody call it; leave it out for any method".to_owned(),
            );
        }
        for method in self.methods.iter().flatten() {
            if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
                return wrong(format!("method \"{method}\" is not valid; write it as \"GET\""));
            }
        }
        if !self.routes.is_empty() && self.event != EventFormat::HttpV1 {
            return wrong(
                "routes are told to functions with event = \"http-v1\" only; set that, or leave routes out"
                    .to_owned(),
            );
        }
        if let Some(why) = routes::fault(&self.routes) {
            return wrong(why);
        }
        if let Some((_, why)) = self.wrong_variable() {
            return wrong(why);
        }
        self.check_volumes()?;
        self.cors.as_ref().map_or(Ok(()), Cors::check)
    }

    /// Whether a program can be started with the environment: a worker asks again at each start, as it
    /// does for [volumes](Manifest::check_volumes).
    ///
    /// # Errors
    ///
    /// [`ManifestError::Value`]: its variables take over [`ENVIRONMENT_LIMIT`], or one has a zero byte.
    pub fn check_environment(&self) -> Result<(), ManifestError> {
        if let Some((key, _)) = self.environment.iter().find(|(_, value)| value.contains('\0')) {
            return Err(ManifestError::Value(zero_byte(key)));
        }
        if self.environment_bytes() > ENVIRONMENT_LIMIT {
            return Err(ManifestError::Value(environment_too_long()));
        }
        Ok(())
    }

    /// What the variables take together: names, values, and two bytes for each.
    pub fn environment_bytes(&self) -> usize {
        self.environment.iter().map(|(key, value)| takes(key, value)).sum()
    }

    /// Whether the whole of it, written out as JSON, goes along with each resolution of its function.
    pub(super) fn check_size(&self) -> Result<(), ManifestError> {
        match serde_json::to_vec(self) {
            Ok(text) if text.len() > MANIFEST_LIMIT => Err(ManifestError::Unclear(format!(
                "the manifest says more than {} KiB when it is written out in full; keep data in a \
                 file beside it",
                MANIFEST_LIMIT >> 10
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a sandbox of any kind can have the volumes: a worker asks again at each start, for
    /// manifests that a registry took before these rules were there.
    ///
    /// # Errors
    ///
    /// [`ManifestError::Value`] names the volume and the rule.
    pub fn check_volumes(&self) -> Result<(), ManifestError> {
        let wrong = |text: String| Err(ManifestError::Value(text));
        if self.volumes.len() > MOST_VOLUMES {
            return wrong(format!(
                "there are {} volumes, and {MOST_VOLUMES} is the most; keep several folders in one",
                self.volumes.len()
            ));
        }
        let mut before: Vec<(&Volume, Vec<&str>)> = Vec::new();
        for volume in &self.volumes {
            let Volume { name, path } = volume;
            if crate::function::FunctionName::new("v", name).is_err() {
                let name: String = name.chars().take(80).collect();
                return wrong(format!(
                    "volume name \"{name}\" is not valid; use 1 to 64 letters, digits, dots, _ and -"
                ));
            }
            if path.len() > VOLUME_PATH_LIMIT || path.split('/').count() > VOLUME_DEPTH_LIMIT + 1 {
                return wrong(format!(
                    "the path of volume \"{name}\" is too long; use at most {VOLUME_PATH_LIMIT} \
                     bytes and {VOLUME_DEPTH_LIMIT} parts"
                ));
            }
            let variable = volume.variable();
            if self.environment.contains_key(&variable) {
                return wrong(format!(
                    "environment variable \"{variable}\" is the one of volume \"{name}\"; rename one"
                ));
            }
            let parts: Vec<&str> = path.split('/').skip(1).collect();
            let valid = |part: &&str| !["", ".", ".."].contains(part) && !part.contains('\0');
            if !path.starts_with('/') || !parts.iter().all(valid) {
                return wrong(format!(
                    "volume path \"{path}\" is not valid; use an absolute path without \".\", \
                     \"..\" and empty parts"
                ));
            }
            let own =
                |place: &&&str| is_above_or_below(&parts, &place.split('/').collect::<Vec<_>>());
            if let Some(own) = SANDBOX_PLACES.iter().find(own) {
                return wrong(format!(
                    "volume path \"{path}\" would hide or change the sandbox's own /{own}; use \
                     another, like /data"
                ));
            }
            if parts == ["tmp"] {
                return wrong(
                    "volume path \"/tmp\" is each instance's own; use a folder below it, or /data"
                        .to_owned(),
                );
            }
            for (other, others) in &before {
                if other.name == *name {
                    return wrong(format!("two volumes are named \"{name}\"; rename one"));
                }
                if other.variable() == variable {
                    return wrong(format!(
                        "volumes \"{}\" and \"{name}\" share the variable {variable}; rename one",
                        other.name
                    ));
                }
                if is_above_or_below(&parts, others) {
                    return wrong(format!(
                        "volume path \"{path}\" and \"{}\" are one inside of the other; give each \
                         a place of its own",
                        other.path
                    ));
                }
            }
            before.push((volume, parts));
        }
        Ok(())
    }
}

/// What a variable takes of [`ENVIRONMENT_LIMIT`].
pub(super) fn takes(key: &str, value: &str) -> usize {
    key.len() + value.len() + 2
}

fn zero_byte(key: &str) -> String {
    format!(
        "environment variable \"{key}\" has a zero byte in it, which no program can be given; encode the \
         value"
    )
}

/// What is said of an environment over [`ENVIRONMENT_LIMIT`].
pub(super) fn environment_too_long() -> String {
    format!(
        "the environment takes over {} KiB; keep what is long in a file of the function",
        ENVIRONMENT_LIMIT >> 10
    )
}

/// Whether one path is the other, or leads to it.
fn is_above_or_below(one: &[&str], other: &[&str]) -> bool {
    one.iter().zip(other).all(|(one, other)| one == other)
}
