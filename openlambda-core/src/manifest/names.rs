//! The file names of manifests, and how large they may be.

/// The manifest's file name within a function's folder.
pub const MANIFEST_FILE: &str = "ol.toml";

/// The same for OpenLambda's own form; see [`Manifest::parse_yaml`](super::Manifest::parse_yaml). A function has one or none of both.
pub const YAML_FILE: &str = "ol.yaml";

/// Both names.
pub const MANIFEST_FILES: [&str; 2] = [MANIFEST_FILE, YAML_FILE];

/// The largest manifest, bytes. It goes along with each resolution of its function.
pub const MANIFEST_LIMIT: usize = 64 << 10;

/// What the variables of [`Manifest::environment`](super::Manifest::environment) may take together,
/// bytes: names and values, and two for each. The kernel hands a program its arguments and environment
/// in 2 MiB, 128 KiB for each text, and a kind of sandbox has some of its own; AWS Lambda allows 4 KiB.
pub const ENVIRONMENT_LIMIT: usize = 32 << 10;

/// What is said of a larger one, whose text begins so.
pub(crate) fn too_long(text: &[u8]) -> String {
    let within = &text[..text.len().min(MANIFEST_LIMIT)];
    let line = 1 + within.iter().filter(|byte| **byte == b'\n').count();
    format!(
        "is over 64 KiB in line {line}; a manifest is a few lines, and data belongs into a file beside it"
    )
}
