//! What each function is, a second time: files from which the tables can be made again.
//!
//! `functions/<namespace>:<name>.json` has the function's row and those of its versions, and a line with the
//! SHA-256 of what is before it. It is on the disk before the transaction commits that says the same, and
//! carries that change's revision. So after a crash one file may be one change ahead of the tables; a file
//! that is further ahead says that the tables are not those that were acknowledged last.
//!
//! Each change writes one file whose size grows with the function's versions, about 600 bytes for each.

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

/// A function as its file has it.
#[derive(Debug, Serialize, Deserialize)]
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

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] when it is damaged.
    pub(super) fn read(path: &Path) -> io::Result<Record> {
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

    /// Writes the file and waits until the disk has it. `temporary` is a path for it until it is whole.
    pub(super) fn write(&self, root: &Path, temporary: &Path) -> io::Result<Written> {
        let mut text = serde_json::to_vec(self)?;
        let sum = hex(&text);
        text.push(b'\n');
        text.extend_from_slice(sum.as_bytes());
        text.push(b'\n');
        let path = Record::path(root, &self.name);
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
        let written = Written { path, before: prepared?, stands: false };
        fs::rename(temporary, &written.path)?;
        File::open(root.join(RECORDS))?.sync_all()?;
        Ok(written)
    }
}

fn hex(text: &[u8]) -> String {
    Digest::from_bytes(Sha256::digest(text).into()).hex()
}

/// A file whose change has not committed: Drop puts what it was before back.
pub(super) struct Written {
    path: PathBuf,
    before: Option<PathBuf>,
    stands: bool,
}

impl Written {
    /// The change has committed.
    pub(super) fn stands(mut self) {
        self.stands = true;
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

/// Every file in the folder, in no order, and what it says.
pub(super) fn read_all(root: &Path) -> io::Result<Vec<(PathBuf, io::Result<Record>)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root.join(RECORDS))? {
        let path = entry?.path();
        let record =
            Record::read(&path).and_then(|record| match Record::path(root, &record.name) == path {
                true => Ok(record),
                false => Err(io::Error::other("the file is not where its function's file belongs")),
            });
        all.push((path, record));
    }
    Ok(all)
}
