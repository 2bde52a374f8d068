//! How Node.js runs a function: where `node` is found, its arguments, and the error where it is missing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openlambda_core::manifest::{Manifest, Style};
use openlambda_core::sandbox::{SandboxError, SandboxErrorKind};

use crate::errors::unsupported;

/// Our bootstrap for Node.js.
pub(crate) const NODE_BOOTSTRAP: &str = include_str!("../runtimes/node/bootstrap.cjs");

/// The same below the folder of bootstraps.
pub(crate) const NODE_BOOTSTRAP_PATH: &str = "node/bootstrap.cjs";

/// The fewest processes and threads that Node.js starts with: itself, V8's and libuv's helpers.
const FEWEST_PROCESSES: u32 = 16;

/// The Node.js of this machine: the system's, or else the first in our `PATH`, with its real path.
///
/// A program that only finds another one (a script, or a shim that looks at the name it is called by) is
/// skipped, since sandboxes do not have the files that it looks for.
pub fn find_node() -> Option<PathBuf> {
    let system = ["/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    find_in(system.into_iter().chain(std::env::split_paths(&path)))
}

fn find_in(folders: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    const NAMES: [&str; 2] = ["node", "nodejs"];
    let is_node = |path: &PathBuf| {
        let named = path.file_name().is_some_and(|name| NAMES.iter().any(|known| name == *known));
        named && is_program(path).unwrap_or(false)
    };
    folders
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .filter_map(|path| fs::canonicalize(path).ok())
        .find(is_node)
}

fn is_program(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 && &magic == b"\x7fELF")
}

/// Whether Node.js can run what the manifest asks for.
///
/// # Errors
///
/// What it asks for that it cannot have, and what to write instead.
pub(crate) fn check(manifest: &Manifest) -> Result<(), SandboxError> {
    if !matches!(manifest.style, None | Some(Style::Lambda | Style::Event)) {
        return Err(unsupported(
            "functions in Node.js are called as handler(event, context); remove style from ol.toml, \
             or set style = \"lambda\"",
        ));
    }
    if manifest.processes < FEWEST_PROCESSES {
        return Err(unsupported(format!(
            "Node.js starts about a dozen threads, more than processes = {} in ol.toml allows; set \
             processes = {FEWEST_PROCESSES} or more",
            manifest.processes
        )));
    }
    Ok(())
}

/// What Node.js is told before the bootstrap's path: to collect garbage before the manifest's memory
/// is used up. By itself it goes by the machine's memory, and is killed with its garbage. Worth the few
/// milliseconds for which V8 does not take compiled code from a build with other settings.
pub(crate) fn arguments(manifest: &Manifest) -> Vec<String> {
    let options = manifest.environment.get("NODE_OPTIONS").map(|options| options.replace('_', "-"));
    if options.is_some_and(|options| options.contains("--max-old-space-size")) {
        return Vec::new();
    }
    // The rest is for the interpreter itself, and for buffers, which are not on V8's heap.
    let (old, young) = (manifest.memory_mb * 3 / 4, (manifest.memory_mb / 20).clamp(1, 64));
    vec![format!("--max-old-space-size={old}"), format!("--max-semi-space-size={young}")]
}

/// The error for sandboxes that run this machine's Node.js, where there is none.
#[cfg(any(feature = "process", feature = "sock"))]
pub(crate) fn missing() -> SandboxError {
    let message = "this worker's machine has no Node.js, which this function needs; install it (apt-get \
                   install nodejs) and start the worker again";
    SandboxError::new(SandboxErrorKind::Resources, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_through_links_and_not_taken_for_a_shim() {
        let folder = tempfile::tempdir().unwrap();
        let make = |path: &str, content: &[u8], mode: u32| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        make("script/node", b"#!/bin/sh\nexec somewhere/node", 0o755);
        make("plain/node", b"\x7fELF", 0o644);
        let shim = make("shims/all-in-one", b"\x7fELF", 0o755);
        std::os::unix::fs::symlink(shim, folder.path().join("shims/node")).unwrap();
        let real = make("versions/22/bin/nodejs", b"\x7fELF", 0o755);
        fs::create_dir(folder.path().join("current")).unwrap();
        std::os::unix::fs::symlink(&real, folder.path().join("current/node")).unwrap();
        let find = |names: &[&str]| find_in(names.iter().map(|name| folder.path().join(name)));
        assert_eq!(find(&["none", "script", "plain", "shims"]), None);
        assert_eq!(find(&["shims", "current"]), fs::canonicalize(real).ok());
    }

    #[test]
    fn memory_bounds_the_heap_unless_the_author_says_how() {
        let mut manifest = Manifest::default();
        assert_eq!(arguments(&manifest), ["--max-old-space-size=96", "--max-semi-space-size=6"]);
        let mut set = |options: &str| {
            manifest.environment.insert("NODE_OPTIONS".to_owned(), options.to_owned());
            arguments(&manifest).len()
        };
        assert_eq!(set("--enable-source-maps"), 2);
        assert_eq!(set("--max_old_space_size=500"), 0);
    }
}
