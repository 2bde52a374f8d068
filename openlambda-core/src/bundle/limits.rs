//! How large a bundle may be: [`Limits`].

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::bufread::GzDecoder;
use thiserror::Error;

use super::error::BundleError;
use crate::manifest::MANIFEST_FILES;

/// How large a bundle may be. A decompression bomb is refused at the limit, not when the disk is
/// full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The uncompressed tar, bytes.
    pub bytes: u64,
    /// Files, folders and links.
    pub entries: usize,
}

impl Default for Limits {
    /// 512 MiB (AWS Lambda allows 250 MB) and 100,000 entries.
    fn default() -> Self {
        Limits { bytes: 512 << 20, entries: 100_000 }
    }
}

/// What may describe one entry, bytes: its header and all that stands before or behind that, like a
/// long name, extended attributes, the map of a sparse file. All of it is held in memory at once.
pub(super) const HEADERS_LIMIT: u64 = 1 << 20;

pub(super) fn is_manifest(path: &str) -> bool {
    MANIFEST_FILES.contains(&path)
}

pub(super) fn too_large(limits: Limits) -> BundleError {
    BundleError::TooLarge(format!(
        "it is over {} MiB unpacked; deploy less, or fetch large data at run time",
        limits.bytes >> 20
    ))
}

/// The limit was reached inside of a decoder, which knows only I/O errors.
pub(super) fn read_error(error: io::Error) -> BundleError {
    let inner = error.get_ref();
    if let Some(OverLimit(bytes)) = inner.and_then(|inner| inner.downcast_ref()) {
        return too_large(Limits { bytes: *bytes, ..Limits::default() });
    }
    match inner.and_then(|inner| inner.downcast_ref()) {
        Some(LongHeaders) => BundleError::TooLarge(LongHeaders.to_string()),
        None => BundleError::Read(error),
    }
}

/// Tells apart whether reading or writing failed.
pub(super) fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<u64, BundleError> {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                to.write_all(&buffer[..count]).map_err(BundleError::Write)?;
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_error(error)),
        }
    }
}

/// The archive without its compression, up to the limit.
pub(super) fn plain<'a>(
    archive: impl Read + 'a,
    limits: Limits,
) -> Result<Limited<Box<dyn Read + 'a>>, BundleError> {
    let mut archive = BufReader::with_capacity(64 << 10, archive);
    let start = archive.fill_buf().map_err(BundleError::Read)?;
    // Headers and padding count too, but a bundle at the limit must get through.
    let bytes = limits.bytes.saturating_add(1024 * limits.entries as u64);
    if start.starts_with(&[0x1f, 0x8b]) {
        // What comes counts too: it may be no end of members with nothing in them.
        let packed = BufReader::with_capacity(64 << 10, Limited::new(archive, bytes));
        return Ok(Limited::new(Box::new(Members::new(packed)), bytes));
    }
    Ok(Limited::new(Box::new(archive), bytes))
}

/// What gzip makes: members one after another, and zeros behind them where something has filled up the
/// last block.
struct Members<R> {
    /// `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    fn new(packed: R) -> Self {
        Members { member: Some(GzDecoder::new(packed)) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(mut member) = self.member.take() {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                self.member = Some(member);
                return Ok(count);
            }
            let mut packed = member.into_inner();
            match packed.fill_buf()?.first() {
                None => {}
                Some(0) => only_zeros(packed)?,
                Some(_) => self.member = Some(GzDecoder::new(packed)),
            }
        }
        Ok(0)
    }
}

/// Programs do not agree on what means something behind zeros, so nothing may.
fn only_zeros(mut packed: impl BufRead) -> io::Result<()> {
    loop {
        let zeros = packed.fill_buf()?;
        if zeros.iter().any(|byte| *byte != 0) {
            let why = "something stands behind the zeros at the end of the archive; pack it anew";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let count = zeros.len();
        if count == 0 {
            return Ok(());
        }
        packed.consume(count);
    }
}

/// What may follow the end of an archive at least, bytes: programs fill up the last record of a tape.
const PADDING_LIMIT: u64 = 16 << 20;

/// Reads what follows the end of an archive, which means nothing. But it has to come: who breaks off
/// there has not said that this is all, and the compression's own checksum stands behind it.
pub(super) fn read_rest(
    mut archive: Limited<Box<dyn Read + '_>>,
    limits: Limits,
) -> Result<(), BundleError> {
    archive.limit = limits.bytes;
    archive.left = limits.bytes.max(PADDING_LIMIT);
    io::copy(&mut archive, &mut io::sink()).map_err(read_error)?;
    Ok(())
}

/// Fails when more than a number of bytes come.
pub(super) struct Limited<R> {
    pub(super) inner: R,
    pub(super) left: u64,
    pub(super) limit: u64,
}

#[derive(Debug, Error)]
#[error("it is over the limit of {0} bytes")]
pub(super) struct OverLimit(pub(super) u64);

impl<R> Limited<R> {
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Limited { inner, left: limit, limit }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(OverLimit(self.limit))),
        }
        Ok(count)
    }
}

#[derive(Debug, Error)]
#[error(
    "an entry's name and attributes take over {} KiB; pack without extended attributes and without \
     maps of sparse files",
    HEADERS_LIMIT >> 10
)]
pub(super) struct LongHeaders;
