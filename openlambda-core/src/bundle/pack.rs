//! Packs a folder into a bundle.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Packed;
use super::entries::{Checker, Kind, path_of, target_of};
use super::error::{BundleError, refuse};
use super::ignore::{Ignore, is_left_out};
use super::limits::Limits;
use super::write::Writer;
use crate::manifest::Manifest;

/// Packs the function in the folder `dir` as a bundle, but for what [`Ignore`] leaves out.
///
/// # Errors
///
/// [`BundleError`]; `out` may have got a part by then.
pub fn pack_dir(dir: &Path, out: impl Write) -> Result<Packed, BundleError> {
    pack_dir_telling(dir, out, |_| {})
}

/// [`pack_dir`], which tells how many bytes the files have together before it reads the first.
///
/// # Errors
///
/// As [`pack_dir`]'s.
pub fn pack_dir_telling(
    dir: &Path,
    out: impl Write,
    tell: impl FnOnce(u64),
) -> Result<Packed, BundleError> {
    let mut found = Checker::new(Limits::default());
    let mut left_out = Vec::new();
    collect(dir, &Ignore::of(dir)?, &mut found, &mut left_out)?;
    left_out.sort();
    let manifest = Manifest::load(dir)?;
    let mut writer = Writer::new(out);
    let size = |kind: &Kind| if let Kind::File { bytes, .. } = kind { *bytes } else { 0 };
    tell(found.entries.values().map(size).sum());
    for (path, kind) in &found.entries {
        match kind {
            Kind::Folder => writer.folder(path)?,
            Kind::Link { target } => writer.link(path, target)?,
            Kind::File { bytes, executable } => {
                let file = File::open(dir.join(path)).map_err(|error| {
                    refuse(path, format!("cannot be read ({error}); make it readable"))
                })?;
                writer.file(path, *bytes, *executable, file)?;
            }
        }
    }
    let (digest, bytes) = writer.finish()?;
    Ok(Packed { digest, manifest, bytes, left_out })
}

/// Lists what is in a folder.
fn collect(
    dir: &Path,
    ignore: &Ignore,
    found: &mut Checker,
    left_out: &mut Vec<String>,
) -> Result<(), BundleError> {
    let mut folders = vec![String::new()];
    while let Some(below) = folders.pop() {
        let named = |error: io::Error| match &*below {
            "" => BundleError::Read(error),
            below => refuse(below, format!("cannot be read ({error}); make it readable")),
        };
        for entry in fs::read_dir(dir.join(&below)).map_err(named)? {
            let entry = entry.map_err(named)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                let why = "has a name that is not UTF-8; rename it";
                return Err(refuse(&name.to_string_lossy(), why));
            };
            let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
            if is_left_out(&path) {
                continue;
            }
            let kind = entry.file_type().map_err(named)?;
            if ignore.patterns_leave_out(&path, kind.is_dir()) {
                left_out.push(if kind.is_dir() { path + "/" } else { path });
                continue;
            }
            let path = path_of(path.as_bytes())?;
            let metadata = entry.metadata().map_err(named)?;
            let kind = metadata.file_type();
            if kind.is_dir() {
                found.folder(&path)?;
                folders.push(path);
            } else if kind.is_file() {
                let executable = metadata.permissions().mode() & 0o111 != 0;
                found.add(path, Kind::File { bytes: metadata.len(), executable })?;
            } else if kind.is_symlink() {
                let target = fs::read_link(entry.path()).map_err(named)?;
                let target = target_of(&path, Some(target.as_os_str().as_encoded_bytes()))?;
                found.add(path, Kind::Link { target })?;
            } else {
                let why = "is neither a file nor a folder nor a link; move it out of the folder";
                return Err(refuse(&path, why));
            }
        }
    }
    Ok(())
}
