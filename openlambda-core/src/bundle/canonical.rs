//! Makes a bundle from any tar.

use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

use tar::EntryType;

use super::Packed;
use super::archive::each_entry;
use super::describe::check_global;
use super::entries::{Checker, Kind, path_of, target_of};
use super::error::{BundleError, refuse};
use super::limits::{Limits, copy, is_manifest, plain, read_error, read_rest};
use super::write::Writer;
use crate::manifest::{MANIFEST_LIMIT, Manifest, SOURCE_LIMIT, too_long};

/// Reads a tar, plain or gzipped, from anybody, and writes the bundle that it stands for.
///
/// The content of its files is spooled in an unnamed temporary file, since a canonical order needs
/// all names first.
///
/// # Errors
///
/// [`BundleError`]; nothing was written to `out` unless writing itself failed.
pub fn canonicalise(
    archive: impl Read,
    limits: Limits,
    out: impl Write,
) -> Result<Packed, BundleError> {
    let mut checker = Checker::new(limits);
    let mut spool = BufWriter::new(tempfile::tempfile().map_err(BundleError::Write)?);
    let mut places = BTreeMap::<String, u64>::new();
    let mut spooled = 0;
    let mut manifests = BTreeMap::<String, Vec<u8>>::new();
    let rest = each_entry(plain(archive, limits)?, |entry, names| {
        let kind = entry.header().entry_type();
        // It has no path, whatever name its writer has given it.
        if kind == EntryType::XGlobalHeader {
            return check_global(entry, &names);
        }
        let path = path_of(&names.path)?;
        if path.is_empty() {
            return match kind {
                EntryType::Directory => Ok(()),
                _ => Err(refuse(&path, "is no name for a file; pack the archive anew")),
            };
        }
        match kind {
            EntryType::Directory => checker.folder(&path)?,
            EntryType::Symlink => {
                let target = target_of(&path, names.target.as_deref())?;
                checker.add(path, Kind::Link { target })?;
            }
            EntryType::Link => {
                if is_manifest(&path) {
                    return Err(refuse(&path, "is a hard link; put the manifest itself there"));
                }
                // A second name of a file that came before: the bundle holds it twice.
                let target = target_of(&path, names.target.as_deref())?;
                let of = path_of(target.as_bytes())?;
                let (Some(kind @ Kind::File { .. }), Some(place)) =
                    (checker.entries.get(&of).cloned(), places.get(&of).copied())
                else {
                    return Err(refuse(
                        &path,
                        "is a hard link to no file of the bundle; pack a copy",
                    ));
                };
                places.insert(path.clone(), place);
                checker.add(path, kind)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let bytes = entry.size();
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                places.insert(path.clone(), spooled);
                checker.add(path.clone(), Kind::File { bytes, executable })?;
                let copied = if is_manifest(&path) {
                    let mut text = Vec::new();
                    let most = MANIFEST_LIMIT as u64 + 1;
                    entry.take(most).read_to_end(&mut text).map_err(read_error)?;
                    if text.len() > MANIFEST_LIMIT {
                        return Err(refuse(&path, too_long(&text)));
                    }
                    spool.write_all(&text).map_err(BundleError::Write)?;
                    let length = text.len() as u64;
                    manifests.insert(path.clone(), text);
                    length
                } else {
                    copy(entry, &mut spool)?
                };
                if copied != bytes {
                    return Err(refuse(&path, "is cut short; pack the archive anew"));
                }
                spooled += copied;
            }
            _ => {
                return Err(refuse(
                    &path,
                    "is neither a file nor a folder nor a link; leave it out of the bundle",
                ));
            }
        }
        Ok(())
    })?;
    read_rest(rest, limits)?;
    let text = |file: &str| match manifests.get(file) {
        Some(text) => std::str::from_utf8(text)
            .map(|text| Some(text.to_owned()))
            .map_err(|_| refuse(file, "is not UTF-8; save it as UTF-8")),
        None => Ok(None),
    };
    let has = |file: &str| matches!(checker.entries.get(file), Some(Kind::File { .. }));
    let mut spool = spool.into_inner().map_err(|error| BundleError::Write(error.into_error()))?;
    let source = |file: &str| {
        let Some(Kind::File { bytes, .. }) = checker.entries.get(file) else { return None };
        let mut source = Vec::new();
        (&spool).seek(SeekFrom::Start(*places.get(file)?)).ok()?;
        (&spool).take(SOURCE_LIMIT.min(*bytes)).read_to_end(&mut source).ok()?;
        Some(String::from_utf8_lossy(&source).into_owned())
    };
    let manifest = Manifest::of_files(text, source, has)?;
    let mut writer = Writer::new(out);
    for (path, kind) in &checker.entries {
        match kind {
            Kind::Folder => writer.folder(path)?,
            Kind::Link { target } => writer.link(path, target)?,
            Kind::File { bytes, executable } => {
                let place = places.get(path).copied().unwrap_or_default();
                spool.seek(SeekFrom::Start(place)).map_err(BundleError::Read)?;
                writer.file(path, *bytes, *executable, &mut spool)?;
            }
        }
    }
    let (digest, bytes) = writer.finish()?;
    Ok(Packed { digest, manifest, bytes, left_out: Vec::new() })
}
