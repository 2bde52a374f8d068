//! Makes the tables of a store anew, of its functions' files: [`Store::rebuild`].

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use openlambda_core::function::Digest;
use openlambda_core::registry::RegistryError;
use redb::Database;

use super::records::{Files, Record};
use super::rows::{FACTS, Place, REVISION, TABLES, count, storage, write_function, write_version};
use super::{STORE_FORMAT, Store, StoreError, make_tables};

/// What [`Store::rebuild`] has found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rebuilt {
    /// Functions that are in the tables again, and their versions.
    pub functions: usize,
    /// Versions of them.
    pub versions: usize,
    /// Functions' files that are damaged, where they were put aside: what those say is lost, unless a backup
    /// has it.
    pub damaged: Vec<PathBuf>,
    /// Bundles that versions name and that are not there. To deploy their code again heals them.
    pub missing: Vec<Digest>,
    /// Where the tables are that were there before.
    pub before: Option<PathBuf>,
}

impl Store {
    /// Makes the tables of the store in `dir` anew, of its functions' files. The old tables stay beside them.
    /// All that was acknowledged is in the files; a change that a crash has cut off may be, too. Those who
    /// watch are told that they may have missed changes.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the store is as it was then. [`StoreError::InUse`] while a registry runs on it.
    pub fn rebuild(dir: &Path) -> Result<Rebuilt, StoreError> {
        STORE_FORMAT.check(dir)?;
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        let tables = dir.join(TABLES);
        // Held to the end, so that no registry begins meanwhile.
        let held = match File::open(&tables) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(StoreError::Io { path: tables, source }),
        };
        match held.as_ref().map(File::try_lock) {
            Some(Err(TryLockError::WouldBlock)) => {
                return Err(StoreError::InUse { dir: dir.to_owned() });
            }
            Some(Err(TryLockError::Error(source))) => {
                return Err(StoreError::Io { path: tables, source });
            }
            Some(Ok(())) | None => {}
        }
        let files = Files::read(dir).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(Files::default()),
            _ => Err(error),
        });
        let Files { records, mut damaged, .. } = files.map_err(io_error(dir))?;
        let records: Vec<Record> = records.into_values().map(|(_, record)| record).collect();
        if records.is_empty() {
            return Err(StoreError::NoRecords { dir: dir.to_owned() });
        }
        let new = dir.join(format!("{TABLES}.new"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Io { path: new, source: error });
            }
            _ => {}
        }
        fill(&new, &records).map_err(|error| StoreError::Io {
            path: new.clone(),
            source: io::Error::other(error),
        })?;
        STORE_FORMAT.mark(dir)?;
        let before = match held {
            Some(_) => {
                let mut free = (1..).map(|n| dir.join(format!("{TABLES}.before-{n}")));
                let before = free.find(|path| !path.exists()).unwrap_or_default();
                fs::rename(&tables, &before).map_err(io_error(&tables))?;
                Some(before)
            }
            None => None,
        };
        fs::rename(&new, &tables).map_err(io_error(&new))?;
        // A store with a file that cannot be read takes no changes.
        for path in &mut damaged {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let aside = dir.join(format!("damaged-{name}"));
            fs::rename(&*path, &aside).map_err(io_error(path))?;
            *path = aside;
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(dir))?;
        let rows = || records.iter().flat_map(|record| record.versions.values());
        let named: BTreeSet<Digest> = rows().map(|row| row.digest).collect();
        let is_missing =
            |digest: &Digest| !dir.join("blobs").join(format!("{}.tar", digest.hex())).exists();
        Ok(Rebuilt {
            functions: records.iter().filter(|record| record.function.newest.is_some()).count(),
            versions: rows().count(),
            damaged,
            missing: named.into_iter().filter(is_missing).collect(),
            before,
        })
    }
}

/// Makes tables of files.
fn fill(place: &Path, records: &[Record]) -> Result<(), RegistryError> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600).open(place).map_err(storage)?;
    let database = Database::create(place).map_err(storage)?;
    let transaction = database.begin_write().map_err(storage)?;
    make_tables(&transaction)?;
    for record in records {
        write_function(&transaction, &record.name, &record.function)?;
        for (version, row) in &record.versions {
            write_version(&transaction, &record.name, *version, row)?;
            count(&transaction, &row.digest, 1)?;
        }
    }
    let last = records.iter().map(|record| record.revision).max().unwrap_or_default();
    transaction
        .open_table(FACTS)
        .map_err(storage)?
        .insert(REVISION, Place::Fact(REVISION).seal_number(last))
        .map_err(storage)?;
    transaction.commit().map_err(storage)
}
