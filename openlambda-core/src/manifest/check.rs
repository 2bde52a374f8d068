//! What values a manifest may have.

use super::cors::Cors;
use super::{Manifest, ManifestError};

impl Manifest {
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
        for method in self.methods.iter().flatten() {
            if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase()) {
                return wrong(format!("method \"{method}\" is not valid; write it as \"GET\""));
            }
        }
        for key in self.environment.keys() {
            let valid = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !valid {
                return wrong(format!(
                    "environment variable \"{key}\" is not valid; use letters, digits and _"
                ));
            }
        }
        for volume in &self.volumes {
            if crate::function::FunctionName::new("v", &volume.name).is_err() {
                return wrong(format!(
                    "volume name \"{}\" is not valid; use letters, digits, dots, _ and -",
                    volume.name
                ));
            }
            if !volume.path.starts_with('/') || volume.path.split('/').any(|part| part == "..") {
                return wrong(format!(
                    "volume path \"{}\" is not valid; use an absolute path without \"..\"",
                    volume.path
                ));
            }
        }
        self.cors.as_ref().map_or(Ok(()), Cors::check)
    }
}
