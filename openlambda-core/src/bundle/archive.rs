//! Reads a tar entry by entry, each with its names: [`each_entry`].

use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::rc::Rc;

use super::describe::{Names, is_end, names_of};
use super::error::BundleError;
use super::limits::{HEADERS_LIMIT, LongHeaders, read_error};

/// What a tar reader reads: counts what it takes to find the next entry, which it holds in memory,
/// and lets the content of entries through.
pub(super) struct Headers<R> {
    inner: R,
    allowance: Allowance,
    held: Rc<RefCell<Held>>,
}

/// What the reader has read to find the present entry.
#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// Where in the archive it begins, and where the reader is.
    start: u64,
    at: u64,
}

/// How much the reader may read as headers; `None` while it reads content. The reader has one end of
/// it, whoever asks for entries the other.
type Allowance = Rc<Cell<Option<u64>>>;

impl<R: Read> Read for Headers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut held = self.held.borrow_mut();
        let Some(allowance) = self.allowance.get() else {
            let count = self.inner.read(buffer)?;
            held.at += count as u64;
            return Ok(count);
        };
        if allowance == 0 && !buffer.is_empty() {
            return Err(io::Error::other(LongHeaders));
        }
        let most = buffer.len().min(usize::try_from(allowance).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.allowance.set(Some(allowance - count as u64));
        held.at += count as u64;
        held.bytes.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

/// Reads a tar entry by entry: `each` gets them in order with their names, and with at most [`HEADERS_LIMIT`] read to find
/// the next one. Returns what it was read from.
///
/// # Errors
///
/// Those of `each`; the archive is broken or has no end, or describes an entry at too great length.
pub(super) fn each_entry<R: Read>(
    archive: R,
    mut each: impl FnMut(&mut tar::Entry<'_, Headers<R>>, Names) -> Result<(), BundleError>,
) -> Result<R, BundleError> {
    let allowance = Allowance::default();
    let held = Rc::new(RefCell::new(Held::default()));
    let headers =
        Headers { inner: archive, allowance: Rc::clone(&allowance), held: Rc::clone(&held) };
    let mut tar = tar::Archive::new(headers);
    let mut entries = tar.entries().map_err(BundleError::Read)?;
    loop {
        allowance.set(Some(HEADERS_LIMIT));
        {
            let mut held = held.borrow_mut();
            held.bytes.clear();
            held.start = held.at;
        }
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(read_error)?;
        allowance.set(None);
        let names = {
            let held = held.borrow();
            names_of(&entry, &held.bytes, held.start)?
        };
        each(&mut entry, names)?;
        // Or it would count as what leads to the next one.
        io::copy(&mut entry, &mut io::sink()).map_err(read_error)?;
    }
    // Or one that was cut between two entries would pass for a whole one.
    let ended = {
        let held = held.borrow();
        is_end(&held.bytes, held.start)
    };
    if !ended {
        let why = "the archive has no end, so something may be missing; pack it anew";
        return Err(BundleError::Read(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
    }
    allowance.set(None);
    Ok(tar.into_inner().inner)
}
