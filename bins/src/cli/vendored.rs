//! Tells which packages a function names that are not in its folder.
//!
//! A function sees its own files and the standard library. What `requirements.txt` or `package.json` lists has
//! to be installed beside it, which is easily forgotten: then the first call fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use openlambda_core::files::read_regular;
use openlambda_core::manifest::{Manifest, Runtime};

use crate::terminal::say;

/// The longest file that is read, bytes.
const LENGTH_LIMIT: u64 = 1 << 20;
/// How many names are shown.
const SHOWN: usize = 5;

/// Warns of packages that are missing, with the command that installs them.
pub(super) fn check(folder: &Path, manifest: &Manifest) {
    let (file, missing, next) = match manifest.runtime {
        Some(runtime) if runtime.is_python() => (
            "requirements.txt",
            missing_in_python(folder),
            "pip install -r requirements.txt --target .",
        ),
        Some(Runtime::Node) => ("package.json", missing_in_node(folder), "npm install --omit=dev"),
        _ => return,
    };
    if missing.is_empty() {
        return;
    }
    let more = missing.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let names = missing.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    say!(
        "ol: warning: {file} names {names}{more}, which the folder does not hold; run `{next}` in it, and \
         deploy again"
    );
}

fn text_of(path: &Path) -> Option<String> {
    String::from_utf8(read_regular(path, LENGTH_LIMIT).ok()?).ok()
}

/// The folders that are on a Python function's path.
fn python_folders(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut folders = vec![folder.to_owned(), folder.join("python")];
    for entry in fs::read_dir(folder.join("python/lib")).into_iter().flatten().flatten() {
        folders.push(entry.path().join("site-packages"));
    }
    folders
}

fn missing_in_python(folder: &Path) -> Vec<String> {
    let Some(text) = text_of(&folder.join("requirements.txt")) else { return Vec::new() };
    let mut there = BTreeSet::new();
    for folder in python_folders(folder) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // `flask-3.1.0.dist-info`, and modules that lie there without one.
            let name = match name.strip_suffix(".dist-info").or(name.strip_suffix(".egg-info")) {
                Some(installed) => installed.split('-').next().unwrap_or_default(),
                None => name.split('.').next().unwrap_or_default(),
            };
            there.insert(normal(name));
        }
    }
    text.lines().filter_map(requirement).filter(|name| !there.contains(&normal(name))).collect()
}

/// The package of a line of `requirements.txt` (PEP 508), if the line asks for one on every machine.
fn requirement(line: &str) -> Option<String> {
    let line = line.split(" #").next()?.trim();
    // Options, further files, paths, addresses; and what only some machines need.
    if line.starts_with(['-', '#', '.', '/']) || line.contains("://") || line.contains(';') {
        return None;
    }
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)));
    let name = &line[..end.unwrap_or(line.len())];
    name.starts_with(|c: char| c.is_ascii_alphanumeric()).then(|| name.to_owned())
}

/// A package's name as PEP 503 compares it.
fn normal(name: &str) -> String {
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

fn missing_in_node(folder: &Path) -> Vec<String> {
    let Some(text) = text_of(&folder.join("package.json")) else { return Vec::new() };
    let package: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let names = package["dependencies"].as_object().into_iter().flatten().map(|(name, _)| name);
    let places = ["node_modules", "nodejs/node_modules"].map(|place| folder.join(place));
    let there = |name: &str| places.iter().any(|place| place.join(name).exists());
    names.filter(|name| !there(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_the_folder_does_not_hold_are_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(missing_in_python(folder.path()), [""; 0]);
        let lines = "# web\nFlask>=3 # comment\n-r other.txt\n\nzope.interface[test]==5\n./local\n\
                     git+https://example.org/x\nold-thing ; python_version < '3'\nnumpy\nsix\nMy_Pkg~=1\n";
        fs::write(folder.path().join("requirements.txt"), lines).unwrap();
        for place in ["flask-3.1.0.dist-info", "python/lib/python3.11/site-packages/my_pkg"] {
            fs::create_dir_all(folder.path().join(place)).unwrap();
        }
        fs::write(folder.path().join("six.py"), "").unwrap();
        assert_eq!(missing_in_python(folder.path()), ["zope.interface", "numpy"]);

        assert_eq!(missing_in_node(folder.path()), [""; 0]);
        let text =
            r#"{"dependencies": {"a": "1", "@s/b": "1", "c": "1"}, "devDependencies": {"d": "1"}}"#;
        fs::write(folder.path().join("package.json"), text).unwrap();
        for place in ["node_modules/a", "nodejs/node_modules/@s/b"] {
            fs::create_dir_all(folder.path().join(place)).unwrap();
        }
        assert_eq!(missing_in_node(folder.path()), ["c"]);
    }
}
