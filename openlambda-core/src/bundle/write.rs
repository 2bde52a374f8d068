//! Writes the canonical form.

use std::io::{self, Read, Write};

use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

use super::error::{BundleError, refuse};
use crate::function::Digest;

/// Writes a canonical tar and hashes it.
pub(super) struct Writer<W: Write> {
    pub(super) tar: tar::Builder<HashingWriter<W>>,
}

pub(super) struct HashingWriter<W> {
    pub(super) inner: W,
    pub(super) hash: Sha256,
    pub(super) bytes: u64,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(data)?;
        self.hash.update(&data[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W) -> Self {
        let out = HashingWriter { inner: out, hash: Sha256::new(), bytes: 0 };
        Writer { tar: tar::Builder::new(out) }
    }

    pub(super) fn folder(&mut self, path: &str) -> Result<(), BundleError> {
        let mut header = header(EntryType::Directory, 0, 0o755);
        // A folder's path ends with a slash, as tar programs write it.
        let result = self.tar.append_data(&mut header, format!("{path}/"), io::empty());
        result.map_err(BundleError::Write)
    }

    pub(super) fn link(&mut self, path: &str, target: &str) -> Result<(), BundleError> {
        let mut header = header(EntryType::Symlink, 0, 0o777);
        self.tar.append_link(&mut header, path, target).map_err(BundleError::Write)
    }

    pub(super) fn file(
        &mut self,
        path: &str,
        bytes: u64,
        executable: bool,
        content: impl Read,
    ) -> Result<(), BundleError> {
        let mut header = header(EntryType::Regular, bytes, if executable { 0o755 } else { 0o644 });
        let mut content = Counted { inner: content.take(bytes), bytes: 0 };
        self.tar.append_data(&mut header, path, &mut content).map_err(BundleError::Write)?;
        if content.bytes != bytes {
            return Err(refuse(path, "changed while it was read; try again"));
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(Digest, u64), BundleError> {
        let mut out = self.tar.into_inner().map_err(BundleError::Write)?;
        out.flush().map_err(BundleError::Write)?;
        Ok((Digest::from_bytes(out.hash.finalize().into()), out.bytes))
    }
}

pub(super) struct Counted<R> {
    pub(super) inner: R,
    pub(super) bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

pub(super) fn header(kind: EntryType, bytes: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
