//! What each function is, a second time: files from which the tables can be made again.
//!
//! `functions/<namespace>:<name>.json` has the function's row and those of its versions, and a line with the
//! SHA-256 of what is before it. It is on the disk before the transaction commits that says the same, and
//! carries that change's revision. So after a crash one file may be one change ahead of the tables; a file
//! that is further ahead says that the tables are not those that were acknowledged last.
//!
//! Each change writes one file whose size grows with the function's versions, about 600 bytes for each.
//!
//! Of a function that was deleted the numbers are left that were given out. `functions/deleted.json` has those of
//! all such functions, about 100 bytes for each, and is written at each deletion. Where a function has a file as
//! well, the later of the two holds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use openlambda_core::function::{Digest, FunctionName};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::rows::{FunctionRow, VersionRow};

/// The folder of the files, in the store's.
pub(super) const RECORDS: &str = "functions";

/// The file in that folder for the functions that were deleted.
const DELETED: &str = "deleted.json";

/// A function as its file has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: FunctionName,
    /// The revision of the change that wrote it.
    pub(super) revision: u64,
    pub(super) function: FunctionRow,
    pub(super) versions: BTreeMap<u64, VersionRow>,
}

impl Record {
    /// Whether both say the same of the function.
    pub(super) fn agrees(&self, other: &Record) -> bool {
        (&self.name, &self.function, &self.versions)
            == (&other.name, &other.function, &other.versions)
    }

    /// The file of the function with this name.
    pub(super) fn path(root: &Path, name: &FunctionName) -> PathBuf {
        root.join(RECORDS).join(format!("{}:{}.json", name.namespace(), name.name()))
    }

    /// Whether the function was deleted.
    pub(super) fn is_deleted(&self) -> bool {
        self.function.newest.is_none() && self.versions.is_empty()
    }

    /// The file in which this belongs.
    pub(super) fn place(&self, root: &Path) -> PathBuf {
        match self.is_deleted() {
            true => root.join(RECORDS).join(DELETED),
            false => Record::path(root, &self.name),
        }
    }

    /// Writes it into its file and waits until the disk has it. `temporary` is a path for the file until it is
    /// whole.
    pub(super) fn write(&self, root: &Path, temporary: &Path) -> io::Result<Written> {
        if !self.is_deleted() {
            return write(root, self.place(root), self, temporary);
        }
        let mut deleted: Vec<Record> = match read(&self.place(root)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        deleted.retain(|record| record.name != self.name);
        deleted.push(self.clone());
        let mut written = write_deleted(root, &deleted, temporary)?;
        written.needless = Some(Record::path(root, &self.name));
        Ok(written)
    }
}

/// Writes the file of all functions that were deleted.
pub(super) fn write_deleted(
    root: &Path,
    deleted: &[Record],
    temporary: &Path,
) -> io::Result<Written> {
    write(root, root.join(RECORDS).join(DELETED), deleted, temporary)
}

/// Reads a file.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] when it is damaged.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the file is damaged");
    let text = fs::read(path)?;
    let text = text.strip_suffix(b"\n").ok_or_else(damaged)?;
    let end = text.iter().rposition(|byte| *byte == b'\n').ok_or_else(damaged)?;
    let (line, sum) = (&text[..end], &text[end + 1..]);
    if hex(line).as_bytes() != sum {
        return Err(damaged());
    }
    Ok(serde_json::from_slice(line)?)
}

/// Writes a file and waits until the disk has it.
fn write(
    root: &Path,
    path: PathBuf,
    content: &(impl Serialize + ?Sized),
    temporary: &Path,
) -> io::Result<Written> {
    let mut text = serde_json::to_vec(content)?;
    let sum = hex(&text);
    text.push(b'\n');
    text.extend_from_slice(sum.as_bytes());
    text.push(b'\n');
    let before = temporary.with_extension("before");
    let prepared = (|| {
        let mut options = File::options();
        let mut file = options.write(true).create_new(true).mode(0o600).open(temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        match fs::hard_link(&path, &before) {
            Ok(()) => Ok(Some(before)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    })();
    if prepared.is_err() {
        let _ = fs::remove_file(temporary);
    }
    // From here on there is something to be put back.
    let written = Written { path, before: prepared?, needless: None, stands: false };
    fs::rename(temporary, &written.path)?;
    File::open(root.join(RECORDS))?.sync_all()?;
    Ok(written)
}

fn hex(text: &[u8]) -> String {
    Digest::from_bytes(Sha256::digest(text).into()).hex()
}

/// A file whose change has not committed: Drop puts what it was before back.
pub(super) struct Written {
    path: PathBuf,
    before: Option<PathBuf>,
    /// Not needed any more once the change has committed.
    needless: Option<PathBuf>,
    stands: bool,
}

impl Written {
    /// The change has committed.
    pub(super) fn stands(mut self) {
        self.stands = true;
        // What is left, the next opening removes.
        let _ = self.needless.take().map(fs::remove_file);
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        // What cannot be put back, the next opening writes anew from the tables.
        let _ = match (self.stands, self.before.take()) {
            (true, Some(before)) => fs::remove_file(before),
            (true, None) => Ok(()),
            (false, Some(before)) => fs::rename(before, &self.path),
            (false, None) => fs::remove_file(&self.path),
        };
    }
}

/// What all files say.
#[derive(Default)]
pub(super) struct Files {
    /// Each function once, and the file that has it.
    pub(super) records: BTreeMap<FunctionName, (PathBuf, Record)>,
    /// Files that cannot be read.
    pub(super) damaged: Vec<PathBuf>,
    /// Files of functions that were deleted later.
    pub(super) older: Vec<PathBuf>,
}

impl Files {
    /// Reads all that are there.
    pub(super) fn read(root: &Path) -> io::Result<Files> {
        let mut files = Files::default();
        for entry in fs::read_dir(root.join(RECORDS))? {
            let path = entry?.path();
            let is_shared = path.file_name().is_some_and(|name| name == DELETED);
            let found = match is_shared {
                true => read::<Vec<Record>>(&path),
                false => read(&path).map(|record| vec![record]),
            };
            match found {
                Ok(found)
                    if found
                        .iter()
                        .all(|record| is_shared || Record::path(root, &record.name) == path) =>
                {
                    found.into_iter().for_each(|record| files.add(&path, record));
                }
                _ => files.damaged.push(path),
            }
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path, record: Record) {
        let known = self.records.get(&record.name).map(|(_, known)| known.revision);
        if known.is_some_and(|known| known >= record.revision) {
            if !path.ends_with(DELETED) {
                self.older.push(path.to_owned());
            }
            return;
        }
        let before = self.records.insert(record.name.clone(), (path.to_owned(), record));
        self.older.extend(before.map(|(path, _)| path).filter(|path| !path.ends_with(DELETED)));
    }
}
