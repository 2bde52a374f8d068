//! Unpacks a bundle into a folder.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::archive::each_entry;
use super::entries::{Checker, Kind, path_of, target_of};
use super::error::{BundleError, refuse};
use super::limits::{Limited, Limits, copy};
use crate::function::Digest;

/// Unpacks a bundle, as [`pack_dir`](super::pack_dir) or [`canonicalise`](super::canonicalise) wrote it, into the empty folder `into`.
///
/// # Errors
///
/// [`BundleError`]; the folder's content is undefined then. [`BundleError::Damaged`] when the bytes
/// are not those of `digest`: the source of the bytes need not be trusted.
pub fn unpack(bundle: impl Read, digest: &Digest, into: &Path) -> Result<(), BundleError> {
    let mut checker = Checker::new(Limits::default());
    let limited = Limited::new(bundle, checker.limits.bytes);
    let hashing =
        Hashing { inner: BufReader::with_capacity(64 << 10, limited), hash: Sha256::new() };
    let hashing = each_entry(hashing, |entry, names| {
        let path = path_of(&names.path)?;
        let place = into.join(&path);
        match entry.header().entry_type() {
            EntryType::Directory => {
                checker.folder(&path)?;
                match fs::create_dir(&place) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(BundleError::Write(error));
                    }
                    _ => set_mode(&place, 0o755)?,
                }
            }
            EntryType::Symlink => {
                let target = target_of(&path, names.target.as_deref())?;
                checker.add(path, Kind::Link { target: target.clone() })?;
                std::os::unix::fs::symlink(target, &place).map_err(BundleError::Write)?;
            }
            EntryType::Regular => {
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                checker.add(path, Kind::File { bytes: entry.size(), executable })?;
                let mode = if executable { 0o755 } else { 0o644 };
                let mut file = File::options()
                    .write(true)
                    .create_new(true)
                    .open(&place)
                    .map_err(BundleError::Write)?;
                set_mode(&place, mode)?;
                copy(entry, &mut file)?;
            }
            _ => return Err(refuse(&path, "is not allowed in a bundle; publish it again")),
        }
        Ok(())
    })?;
    let found = hashing.digest().map_err(BundleError::Read)?;
    if found != *digest {
        return Err(BundleError::Damaged { wanted: *digest, found });
    }
    set_mode(into, 0o755)
}

/// Whatever our umask is: sandboxes read it as other users.
fn set_mode(path: &Path, mode: u32) -> Result<(), BundleError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(BundleError::Write)
}

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

impl<R: Read> Hashing<R> {
    /// The digest of everything, also of what a tar reader leaves unread after the last entry.
    fn digest(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_bytes(self.hash.finalize().into()))
    }
}
