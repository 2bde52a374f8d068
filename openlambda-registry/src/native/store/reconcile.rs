//! Whether the tables and the functions' files say the same, and what follows when they do not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;

use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::registry::RegistryError;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable};

use super::records::{Files, RECORDS, Record, write_deleted};
use super::rows::{
    BUNDLES, FUNCTIONS, FunctionRow, Place, VERSIONS, VersionRow, last_revision, storage,
};
use super::{Store, StoreError};

/// All that the tables hold.
pub(super) struct Content {
    /// Those whose rows are all as they were written.
    pub(super) records: Vec<Record>,
    /// The revision of the last change.
    pub(super) last: u64,
    /// What is wrong with the tables, if anything is.
    pub(super) wrong: Vec<String>,
}

impl Content {
    /// Reads every row.
    ///
    /// # Errors
    ///
    /// The tables cannot be read at all.
    pub(super) fn read(transaction: &ReadTransaction) -> Result<Content, RegistryError> {
        let mut wrong = Vec::new();
        let mut versions = BTreeMap::<String, BTreeMap<u64, VersionRow>>::new();
        for row in transaction.open_table(VERSIONS).map_err(storage)?.iter().map_err(storage)? {
            let (key, row) = row.map_err(storage)?;
            let (name, version) = key.value();
            match Place::Version(name, version).open(row.value()) {
                Ok(row) => {
                    versions.entry(name.to_owned()).or_default().insert(version, row);
                }
                Err(error) => wrong.push(error.to_string()),
            }
        }
        let mut counts = BTreeMap::<Digest, u64>::new();
        for row in versions.values().flat_map(BTreeMap::values) {
            *counts.entry(row.digest).or_default() += 1;
        }
        let last = last_revision(transaction)?;
        let mut records = Vec::new();
        for row in transaction.open_table(FUNCTIONS).map_err(storage)?.iter().map_err(storage)? {
            let (key, row) = row.map_err(storage)?;
            let text = key.value();
            let versions = versions.remove(text).unwrap_or_default();
            let function: FunctionRow = match Place::Function(text).open(row.value()) {
                Ok(function) => function,
                Err(error) => {
                    wrong.push(error.to_string());
                    continue;
                }
            };
            let named = function.aliases.values().map(|version| version.0).chain(function.newest);
            let missing = named.filter(|version| !versions.contains_key(version)).min();
            match (text.parse::<FunctionName>(), missing) {
                (Ok(name), None) => {
                    records.push(Record { name, revision: last, function, versions })
                }
                (Ok(name), Some(missing)) => {
                    wrong.push(format!("version {} of {name} is missing", Version(missing)));
                }
                (Err(error), _) => wrong.push(error.to_string()),
            }
        }
        wrong.extend(versions.keys().map(|name| format!("function {name} is missing")));
        for row in transaction.open_table(BUNDLES).map_err(storage)?.iter().map_err(storage)? {
            let (key, row) = row.map_err(storage)?;
            let digest = Digest::from_bytes(*key.value());
            match Place::Bundle(key.value()).open_number(row.value()) {
                Ok(count) if counts.remove(&digest) == Some(count) => {}
                Ok(_) => wrong.push(format!("bundle {digest} is counted wrongly")),
                Err(error) => wrong.push(error.to_string()),
            }
        }
        wrong.extend(counts.keys().map(|digest| format!("bundle {digest} is not counted")));
        Ok(Content { records, last, wrong })
    }

    /// The bundles that versions name.
    pub(super) fn digests(&self) -> Vec<Digest> {
        let rows = self.records.iter().flat_map(|record| record.versions.values());
        let mut digests: Vec<Digest> = rows.map(|row| row.digest).collect();
        digests.sort_unstable();
        digests.dedup();
        digests
    }
}

impl Store {
    /// Writes functions' files that do not say what the tables say, as one is after a crash. Returns what the
    /// tables hold, with all that is in doubt: as long as anything is, no bundle may be removed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Behind`], or that files cannot be read or written.
    pub(super) fn reconcile(&self, database: &Database) -> Result<Content, StoreError> {
        let folder = self.root.join(RECORDS);
        let io_error = |source: io::Error| StoreError::Io { path: folder.clone(), source };
        let broken = |error: RegistryError| {
            let source = io::Error::other(error);
            StoreError::Io { path: self.root.join(super::rows::TABLES), source }
        };
        let transaction = database.begin_read().map_err(storage).map_err(broken)?;
        let mut content = Content::read(&transaction).map_err(broken)?;
        let files = Files::read(&self.root).map_err(io_error)?;
        let Files { records: mut files, damaged: mut unreadable, older } = files;
        let newest = files.values().map(|(_, record)| record.revision).max().unwrap_or_default();
        if newest > content.last + 1 {
            let (tables, files) = (content.last, newest);
            return Err(StoreError::Behind { dir: self.root.clone(), tables, files });
        }
        let mut stale = Vec::new();
        // Of deleted functions all are written, if one is otherwise.
        let mut deleted_are_stale = false;
        for record in &content.records {
            let path = record.place(&self.root);
            let was_readable = unreadable.len();
            unreadable.retain(|unreadable| *unreadable != path);
            deleted_are_stale |= record.is_deleted() && unreadable.len() < was_readable;
            match files.remove(&record.name) {
                Some((_, file)) if file.agrees(record) => {}
                file => {
                    let said_deleted = file.is_some_and(|(_, file)| file.is_deleted());
                    deleted_are_stale |= record.is_deleted() || said_deleted;
                    stale.extend((!record.is_deleted()).then_some(record));
                }
            }
        }
        // Whose rows are damaged is known by its file alone.
        let is_damaged = !content.wrong.is_empty();
        for (path, file) in files.into_values() {
            if file.revision == content.last + 1 && !is_damaged && !file.is_deleted() {
                // A first publication that a crash has cut off.
                fs::remove_file(&path).map_err(io_error)?;
            } else {
                content.wrong.push(format!("function {} is missing in the tables", file.name));
            }
        }
        for path in unreadable {
            content.wrong.push(format!("{} is damaged, and no function has it", path.display()));
        }
        // Files that tables which cannot be trusted would be written over are what those are made of again.
        if is_damaged {
            stale.clear();
            deleted_are_stale = false;
        }
        for record in &stale {
            let written = record.write(&self.root, &self.temporary().path);
            written.map_err(io_error)?.stands();
        }
        let deleted = || content.records.iter().filter(|record| record.is_deleted());
        if deleted_are_stale {
            let all: Vec<Record> = deleted().cloned().collect();
            let written = write_deleted(&self.root, &all, &self.temporary().path);
            written.map_err(io_error)?.stands();
        }
        let needless: Vec<_> =
            deleted().map(|record| Record::path(&self.root, &record.name)).collect();
        for path in older.iter().filter(|path| !is_damaged && needless.contains(path)) {
            fs::remove_file(path).map_err(io_error)?;
        }
        if !stale.is_empty() {
            File::open(&folder).and_then(|folder| folder.sync_all()).map_err(io_error)?;
        }
        for wrong in &content.wrong {
            tracing::error!(
                dir = %self.root.display(),
                "{wrong}; nothing is changed until `ol registry rebuild` has made the tables anew"
            );
        }
        Ok(content)
    }
}
