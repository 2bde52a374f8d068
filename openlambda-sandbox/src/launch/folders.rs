//! The folders of functions and their instances.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(any(feature = "docker", feature = "sock"))]
use openlambda_core::sandbox::Report;
use openlambda_core::sandbox::{SandboxError, SandboxSpec};

use crate::errors::{resources, unsupported};
#[cfg(any(feature = "docker", feature = "sock"))]
use crate::trees;

/// Makes the function's volumes: each one's name and its folder on the machine.
///
/// # Errors
///
/// A folder cannot be made; the manifest has volumes that no sandbox can have.
pub(crate) fn volumes(
    volumes_dir: &Path,
    spec: &SandboxSpec,
) -> Result<BTreeMap<String, PathBuf>, SandboxError> {
    spec.manifest.check_volumes().map_err(|error| unsupported(error.to_string()))?;
    let own = volumes_dir.join(spec.function.namespace()).join(spec.volumes_of());
    let mut volumes = BTreeMap::new();
    for volume in &spec.manifest.volumes {
        let path = own.join(&volume.name);
        fs::create_dir_all(&path)
            .map_err(|error| resources("the volume's folder cannot be made", error))?;
        volumes.insert(volume.name.clone(), path);
    }
    Ok(volumes)
}

/// Where containers find the first of the folders with Python packages that the operator gives to all functions;
/// the others are beside it.
#[cfg(any(feature = "docker", feature = "sock"))]
const PACKAGES: &str = "/var/runtime/packages";

/// The folders with Python packages that the operator gives to all functions: each one's path on the machine,
/// and in a container.
///
/// # Errors
///
/// A path is not UTF-8.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn packages(folders: &[PathBuf]) -> Result<Vec<(String, String)>, SandboxError> {
    let place =
        |(n, folder): (usize, &PathBuf)| Ok((text(&absolute(folder)?)?, format!("{PACKAGES}/{n}")));
    folders.iter().enumerate().map(place).collect()
}

/// The path from the root.
///
/// # Errors
///
/// There is no current folder to begin at.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, SandboxError> {
    std::path::absolute(path).map_err(|error| resources("the code folder cannot be found", error))
}

/// The path as text.
///
/// # Errors
///
/// It is not UTF-8.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn text(path: &Path) -> Result<String, SandboxError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        unsupported(format!("the path {} is not UTF-8; use another folder", path.display()))
    })
}

/// Gives a volume to its function.
///
/// # Errors
///
/// We may not.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn own_volume(path: &Path, id: u32) -> Result<(), SandboxError> {
    use std::os::unix::fs::MetadataExt;
    // The top comes last, so that whoever finds it given finds the rest so too.
    let done = fs::symlink_metadata(path).and_then(|found| match id == 0 || found.uid() == id {
        true => Ok(()),
        false => trees::give(path, id),
    });
    done.map_err(|error| resources("the volume cannot be given to the function", error))
}

/// A folder of an instance; removed by Drop.
#[cfg(any(feature = "docker", feature = "sock"))]
#[derive(Debug)]
pub(crate) struct Folder(pub(crate) PathBuf);

#[cfg(any(feature = "docker", feature = "sock"))]
impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = trees::remove(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a sandbox's folder");
        }
    }
}

/// Removes what the sandboxes of an earlier worker have left in `state_dir`.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn remove_sandboxes(state_dir: &Path, report: &mut Report) {
    for entry in fs::read_dir(state_dir.join("sandboxes")).into_iter().flatten().flatten() {
        let path = entry.path();
        match trees::remove(&path) {
            Ok(()) => report.removed.push(path.display().to_string()),
            Err(error) => report.failed.push(format!("{}: {error}", path.display())),
        }
    }
}
