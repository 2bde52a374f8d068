//! What stands before an entry of a tar and describes it: long names of GNU tar, attributes of pax
//! (POSIX.1-2001, "pax Interchange Format").
//!
//! The `tar` crate reads attributes line by line, but a value may have line breaks, and it passes over
//! what it cannot read. Two readers that understand an archive differently are a way past checks, so
//! what it has read is looked at again here, and all that is not understood is refused.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader};

use tar::{EntryType, Header};

use super::error::{BundleError, refuse};
use super::limits::read_error;

const BLOCK: usize = 512;

/// The names of an entry.
pub(super) struct Names {
    pub(super) path: Vec<u8>,
    pub(super) target: Option<Vec<u8>>,
    /// Something before its header describes it.
    pub(super) described: bool,
}

/// Reads the names of an entry out of `held`: what a tar reader has read to find it, from the place
/// `start` of the archive on.
///
/// # Errors
///
/// Attributes that are broken, or that mean what is not unpacked here.
pub(super) fn names_of(
    entry: &tar::Entry<'_, impl io::Read>,
    held: &[u8],
    start: u64,
) -> Result<Names, BundleError> {
    let header = entry.header();
    let (path, target) = (header.path_bytes(), header.link_name_bytes());
    let named = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    let broken = || refuse(&named, "has broken pax attributes; pack the archive anew");
    let mut names =
        Names { path: path.into_owned(), target: target.map(Cow::into_owned), described: false };
    let (mut by_gnu, mut size) = ((false, false), None);
    let mut left = held.get(to_next_block(start)..).unwrap_or_default();
    while let Some((block, rest)) = left.split_at_checked(BLOCK) {
        let before = Header::from_byte_slice(block);
        let kind = before.entry_type();
        let describes =
            kind.is_gnu_longname() || kind.is_gnu_longlink() || kind == EntryType::XHeader;
        if !describes || (before.as_gnu().is_none() && before.as_ustar().is_none()) {
            break;
        }
        let length = before.entry_size().ok().and_then(|length| usize::try_from(length).ok());
        let content = length.and_then(|length| rest.get(..length)).ok_or_else(broken)?;
        left = rest.get(content.len().next_multiple_of(BLOCK)..).unwrap_or_default();
        names.described = true;
        match kind {
            EntryType::GNULongName => by_gnu.0 = true,
            EntryType::GNULongLink => by_gnu.1 = true,
            _ => {
                for record in records(content) {
                    let (key, value) = record.ok_or_else(broken)?;
                    match key {
                        // To some readers it means that the header says it.
                        b"path" | b"linkpath" if value.is_empty() => return Err(broken()),
                        b"path" => names.path = value.to_vec(),
                        b"linkpath" => names.target = Some(value.to_vec()),
                        b"size" => {
                            let value = std::str::from_utf8(value).ok();
                            let digits = |text: &&str| text.bytes().all(|b| b.is_ascii_digit());
                            let value = value.filter(digits).and_then(|text| text.parse().ok());
                            size = Some(value.ok_or_else(broken)?);
                        }
                        key if key.starts_with(b"GNU.sparse.") => {
                            let why = "is a sparse file in the form of pax; pack without --sparse";
                            return Err(refuse(&named, why));
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    // The reader's own size has to be this one.
    let is_sparse = header.entry_type().is_gnu_sparse();
    let expected = match size {
        Some(size) => Some(size),
        None => header.entry_size().ok(),
    };
    if (is_sparse && size.is_some()) || (!is_sparse && expected != Some(entry.size())) {
        return Err(broken());
    }
    if by_gnu.0 {
        names.path = entry.path_bytes().into_owned();
    }
    if by_gnu.1 {
        names.target = entry.link_name_bytes().map(Cow::into_owned);
    }
    Ok(names)
}

/// Looks at attributes of all entries that follow: comments, times and owners, as `git archive` and GNU tar
/// write them. They are not held, and mean nothing here, so none may name a file or say how large it is.
///
/// # Errors
///
/// They are broken, one of them means what is not unpacked here, or something describes their own entry:
/// to some readers that would describe the next one.
pub(super) fn check_global(attributes: impl io::Read, names: &Names) -> Result<(), BundleError> {
    let shown = String::from_utf8_lossy(&names.path[..names.path.len().min(200)]).into_owned();
    let broken = || refuse(&shown, "has broken pax attributes; pack the archive anew");
    if names.described {
        return Err(broken());
    }
    let mut left = BufReader::new(attributes);
    // Up to a sign, which is not in what is returned.
    let up_to = |left: &mut BufReader<_>, sign: u8, most: u64| {
        let mut text = Vec::new();
        let read = io::Read::take(left, most).read_until(sign, &mut text).map_err(read_error)?;
        let ended = text.pop_if(|last| *last == sign).is_some();
        Ok::<_, BundleError>((ended.then_some(text), read as u64))
    };
    while !left.fill_buf().map_err(read_error)?.is_empty() {
        let (length, digits) = up_to(&mut left, b' ', 21)?;
        let length = length.filter(|text| text.iter().all(u8::is_ascii_digit));
        let length = length.and_then(|text| std::str::from_utf8(&text).ok()?.parse::<u64>().ok());
        let length = length.and_then(|length| length.checked_sub(digits)).ok_or_else(broken)?;
        // No program's keys are as long.
        let (key, read) = up_to(&mut left, b'=', length.min(1 << 10))?;
        let key = key.filter(|key| !key.is_empty()).ok_or_else(broken)?;
        let says_which = [&b"path"[..], b"linkpath", b"size"].contains(&&*key);
        if says_which || key.starts_with(b"GNU.sparse.") {
            let key = String::from_utf8_lossy(&key);
            let why = format!("says {key} of all files that follow; pack without that pax option");
            return Err(refuse(&shown, why));
        }
        let value = (length - read).checked_sub(1).ok_or_else(broken)?;
        let skipped = io::copy(&mut io::Read::take(&mut left, value), &mut io::sink());
        let mut end = [0];
        let ends = io::Read::read(&mut left, &mut end).map_err(read_error)? == 1 && end == *b"\n";
        if skipped.map_err(read_error)? != value || !ends {
            return Err(broken());
        }
    }
    Ok(())
}

/// Whether what was read from `start` on, where no entry was found, is the mark of an archive's end.
pub(super) fn is_end(held: &[u8], start: u64) -> bool {
    let block = held.get(to_next_block(start)..).and_then(|left| left.get(..BLOCK));
    block.is_some_and(|block| block.iter().all(|byte| *byte == 0))
}

fn to_next_block(at: u64) -> usize {
    (at.next_multiple_of(BLOCK as u64) - at) as usize
}

/// The records `length key=value\n`; the last is `None` where one is broken.
fn records(mut content: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    std::iter::from_fn(move || {
        if content.is_empty() {
            return None;
        }
        let record = record(content);
        content = record.map_or(&[], |(_, _, rest)| rest);
        Some(record.map(|(key, value, _)| (key, value)))
    })
}

/// The first record's key and value, and what follows it.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // No length has more digits than one of 1 MiB.
    let digits = content.iter().take(8).take_while(|byte| byte.is_ascii_digit()).count();
    let length: usize = std::str::from_utf8(&content[..digits]).ok()?.parse().ok()?;
    let (record, rest) = content.split_at_checked(length)?;
    let text = record.get(digits..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    Some((&text[..equals], &text[equals + 1..], rest))
}
