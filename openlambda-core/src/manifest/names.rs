//! The file names of manifests.

/// The manifest's file name within a function's folder.
pub const MANIFEST_FILE: &str = "ol.toml";

/// The same for OpenLambda's own form; see [`Manifest::parse_yaml`](super::Manifest::parse_yaml). A function has one or none of both.
pub const YAML_FILE: &str = "ol.yaml";

/// Both names.
pub const MANIFEST_FILES: [&str; 2] = [MANIFEST_FILE, YAML_FILE];
