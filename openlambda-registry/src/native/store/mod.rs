//! Functions, versions and bundles in one folder.
//!
//! ```text
//! <dir>/FORMAT             the format of all this, and the release that brought it into that
//!       meta.redb          names, versions, aliases, the last changes: one transaction a change
//!       functions/         the same for each function, of which the tables can be made again
//!       blobs/<hex>.tar    canonical bundles, by digest
//!       tmp/               incoming bundles; emptied when the store opens
//! ```
//!
//! # Why what was acknowledged survives
//!
//! A bundle is written to `tmp/`, synced, renamed into `blobs/`, and the folder synced, *before* the
//! transaction that names it commits; so is the function's file in `functions/`; the commit syncs too. A
//! crash in between leaves a bundle without a name, which the next [`Store::open`] removes, and a file that
//! says more than the tables, which it writes anew. A deletion commits first and removes bundles afterwards,
//! so no version ever names a missing bundle.
//!
//! # When the disk fails
//!
//! A disk that is full, or fails otherwise, breaks the tables' file off: redb does nothing more with it
//! until it is opened anew. So the next change opens it anew, as soon as the disk takes something again;
//! what was acknowledged is in it, and what failed is not, or is told to those who watch. Until then what
//! can be read is read.
//!
//! # When the disk changes what it was given
//!
//! Each row has a sum, each function's file too, and a bundle's digest is one: so nothing is read that was not
//! written. Opening reads all rows. If one is damaged, or the files know functions that the tables do not,
//! nothing is changed and no bundle is removed until [`Store::rebuild`] has made the tables anew of the files;
//! what is whole is read. Without tables, or with tables that are older than the files, a store that has bundles
//! does not open.
//!
//! # Releases
//!
//! [`STORE_FORMAT`] is the format that this release reads and writes; a later format is refused before
//! anything is touched. The tables name *their* format as well (the fact `format`), so that one
//! transaction can change both. A release that changes the format marks the folder first: after a crash
//! in between, the folder has the new number and the tables have the old one, so that earlier releases
//! refuse the folder and the next opening completes the change. A new key of a row or of a manifest is a
//! new format too, unless rows that do not use it leave it out: an earlier release refuses a manifest
//! with an unknown key, and would drop an unknown key of a function's row.

mod check;
mod error;
mod rebuild;
mod reconcile;
mod records;
mod rows;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use openlambda_core::allow::{Allow, Stored};
use openlambda_core::bundle::{self, Packed};
use openlambda_core::format::Format;
use openlambda_core::function::{
    DEFAULT_NAMESPACE, Digest, FunctionName, FunctionRef, Qualifier, Version, check_alias,
};
use openlambda_core::registry::{
    Bundle, EventLog, Listing, Published, RegistryError, RegistryEvent, Resolved, VersionInfo,
    admit,
};
use openlambda_core::time::{Clock, SystemClock};
use parking_lot::{Mutex, MutexGuard, RwLock};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};

use records::{RECORDS, Record};
use rows::{
    BUNDLES, EVENT_LOG, FACTS, FORMAT, FUNCTIONS, FunctionRow, Place, REVISION, TABLES, VERSIONS,
    VersionRow, count, last_revision, read_function, read_version, seal_all, storage,
    write_function, write_version,
};

pub use check::Checked;
pub use error::StoreError;
pub use rebuild::Rebuilt;

/// The format of a store's folder.
pub const STORE_FORMAT: Format = Format { kind: "registry store", number: 2 };

/// What a disk has to take before the tables are opened anew, bytes: opening may write, and while it
/// fails nothing can be read either.
const PROBE: usize = 256 << 10;

/// Changes that a watcher may be behind.
const EVENTS: usize = 4096;

/// Stores functions in a folder. Shared between threads; all methods block for the disk.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    /// Locked for writing only while it is opened anew; `None` when that failed too.
    database: RwLock<Option<Database>>,
    events: EventLog,
    limits: bundle::Limits,
    allow: Allow,
    clock: SystemClock,
    next_temporary: AtomicU64,
    /// Why nothing may be changed: what is wrong with the tables.
    doubt: RwLock<Option<String>>,
    /// Held from a change's first rename to its last removal, so that a bundle that is published
    /// cannot be removed by a deletion that did not know of it.
    /// It holds what namespaces with a quota keep, as far as that was asked for since one of their
    /// functions was deleted.
    writing: Mutex<BTreeMap<String, Stored>>,
}

/// Held by the one who changes the tables; what is known of namespaces' quotas.
type Writing<'a> = MutexGuard<'a, BTreeMap<String, Stored>>;

impl Store {
    /// Opens the store in the folder `dir`, which is made if it is missing, and removes what a crash
    /// has left in it. What a later release wrote is left as it is.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let root = dir.to_owned();
        let tables = root.join(TABLES);
        // A store says its format only after it has tables. Without them every bundle is one that nobody
        // names, and would go.
        let said = STORE_FORMAT.check(&root)?.is_some();
        let empty = match fs::metadata(&tables) {
            Ok(file) => file.len() == 0,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(source) => return Err(StoreError::Io { path: tables, source }),
        };
        // Opening an empty file would make tables in it, so it is told apart before.
        let holds = holds_bundles(&root);
        if empty && (holds || said) {
            return Err(StoreError::NoTables { dir: root });
        }
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        fs::create_dir_all(&root).map_err(io_error(&root))?;
        // Bundles are nobody else's, whatever folder they are in.
        for folder in [root.join("blobs"), root.join("tmp")] {
            let mut folders = fs::DirBuilder::new();
            folders.recursive(true).mode(0o700).create(&folder).map_err(io_error(&folder))?;
        }
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(0o600);
        options.open(&tables).map_err(io_error(&tables))?;
        let database = Database::create(tables).map_err(|error| match error {
            redb::DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { dir: root.clone() },
            other => StoreError::Database { dir: root.clone(), source: Box::new(other.into()) },
        })?;
        let store = Store {
            events: EventLog::new(EVENTS, [], 0),
            root,
            database: RwLock::new(Some(database)),
            limits: bundle::Limits::default(),
            allow: Allow::default(),
            clock: SystemClock::new(),
            next_temporary: AtomicU64::new(0),
            doubt: RwLock::default(),
            writing: Mutex::default(),
        };
        let broken = |source: redb::Error| StoreError::Database {
            dir: store.root.clone(),
            source: Box::new(source),
        };
        let unreadable = |error: RegistryError| StoreError::Io {
            path: store.root.join(TABLES),
            source: io::Error::other(error),
        };
        let (said, made) = store.format().map_err(broken)?;
        if made && holds {
            return Err(StoreError::NoTables { dir: store.root });
        }
        if let Some(said) = said.filter(|said| *said > u64::from(STORE_FORMAT.number)) {
            let said = u32::try_from(said).unwrap_or(u32::MAX);
            return Err(STORE_FORMAT.later(store.root.clone(), said, None).into());
        }
        // Again: another release may have opened it since the first look.
        STORE_FORMAT.mark(&store.root)?;
        let folder = store.root.join(RECORDS);
        let mut folders = fs::DirBuilder::new();
        folders.recursive(true).mode(0o700).create(&folder).map_err(io_error(&folder))?;
        store.remove_leftovers("tmp", &[])?;
        store.prepare(made, said).map_err(unreadable)?;
        store.look_through(store.database.read().as_ref())?;
        let read = |database: &Database| Ok(read_events(database));
        let (events, last) = store.opened(read).map_err(broken)?.map_err(unreadable)?;
        Ok(Store { events: EventLog::new(EVENTS, events, last), ..store })
    }

    /// The same store, which takes what this allows: by default, what [`Allow::default`] does.
    pub fn allowing(self, allow: Allow) -> Store {
        Store { allow, ..self }
    }

    /// See [`Registry::publish`](openlambda_core::registry::Registry::publish).
    ///
    /// # Errors
    ///
    /// [`RegistryError::BadBundle`], [`RegistryError::NotAllowed`], [`RegistryError::Storage`].
    pub fn publish(
        &self,
        name: &FunctionName,
        archive: impl Read,
    ) -> Result<Published, RegistryError> {
        let temporary = self.temporary();
        let write =
            |file: &mut BufWriter<File>| Ok(bundle::canonicalise(archive, self.limits, file)?);
        let packed = temporary.write(write)?;
        self.add(name, temporary, packed)
    }

    /// See [`Registry::put`](openlambda_core::registry::Registry::put).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotAllowed`], [`RegistryError::Storage`].
    pub fn put(&self, name: &FunctionName, mut bundle: Bundle) -> Result<Published, RegistryError> {
        let temporary = self.temporary();
        temporary.write(|file| io::copy(&mut bundle, file).map_err(storage))?;
        let Bundle { digest, manifest, bytes, .. } = bundle;
        self.add(name, temporary, Packed { digest, manifest, bytes, left_out: Vec::new() })
    }

    /// Makes a file in `tmp/` the next version of `name`.
    fn add(
        &self,
        name: &FunctionName,
        temporary: Temporary,
        packed: Packed,
    ) -> Result<Published, RegistryError> {
        let digest = packed.digest;
        let (manifest, bytes) = (&packed.manifest, packed.bytes);
        admit(&self.allow, name, manifest, bytes, || File::open(&temporary.path))?;
        let row = VersionRow {
            digest,
            manifest: packed.manifest,
            bytes: Some(packed.bytes),
            published_ms: Some(self.clock.unix_millis()),
        };
        let mut writing = self.writing.lock();
        let transaction = self.begin_write(&mut writing)?;
        let namespace = name.namespace();
        let (version, event) = {
            let mut function = read_function(&transaction, name)?.unwrap_or_default();
            if let Some(newest) = function.newest
                && read_version(&transaction, name, newest)?.is_some_and(|row| row.digest == digest)
            {
                // Over the old one, which may be damaged or missing: to deploy again is how that is healed.
                self.keep(temporary, &digest)?;
                return Ok(Published { version: Version(newest), digest, new: false });
            }
            if self.allow.bounds_what_is_stored(namespace) {
                if !writing.contains_key(namespace) {
                    writing.insert(namespace.to_owned(), self.stored(&transaction, namespace)?);
                }
                let checked =
                    self.allow.check_stored(namespace, &writing[namespace], &digest, bytes);
                checked.map_err(|over| RegistryError::NotAllowed { reason: over.to_string() })?;
            }
            self.keep(temporary, &digest)?;
            function.last += 1;
            if function.newest.is_none() {
                function.born = Some(function.last);
            }
            function.newest = Some(function.last);
            let version = Version(function.last);
            write_function(&transaction, name, &function)?;
            write_version(&transaction, name, version.0, &row)?;
            count(&transaction, &digest, 1)?;
            let event = self.write_event(&transaction, |revision| RegistryEvent::Published {
                revision,
                name: name.clone(),
                version,
                digest,
            })?;
            (version, event)
        };
        self.commit(transaction, name, event)?;
        if let Some(stored) = writing.get_mut(namespace) {
            stored.add(digest, bytes);
        }
        drop(writing);
        Ok(Published { version, digest, new: true })
    }

    /// See [`Registry::resolve`](openlambda_core::registry::Registry::resolve).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`], [`RegistryError::Storage`].
    pub fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let missing = || RegistryError::NotFound { what: format!("function \"{reference}\"") };
        self.read(|transaction| {
            let functions = transaction.open_table(FUNCTIONS).map_err(storage)?;
            let versions = transaction.open_table(VERSIONS).map_err(storage)?;
            let text = reference.name.to_string();
            let function = functions.get(&*text).map_err(storage)?.ok_or_else(missing)?;
            let function: FunctionRow = Place::Function(&text).open(function.value())?;
            let found = |number: u64| -> Result<Option<Resolved>, RegistryError> {
                let Some(row) = versions.get((&*text, number)).map_err(storage)? else {
                    return Ok(None);
                };
                let VersionRow { digest, manifest, .. } =
                    Place::Version(&text, number).open(row.value())?;
                let version = Version(number);
                let mut found = Resolved::new(reference.name.clone(), version, digest, manifest);
                found.born = function.born.map(Version);
                Ok(Some(found))
            };
            let number = match &reference.qualifier {
                Qualifier::Latest => function.newest,
                Qualifier::Version(version) => Some(version.0),
                Qualifier::Alias(alias) => function.aliases.get(&**alias).map(|version| version.0),
                Qualifier::Digest(wanted) => {
                    // The newest of that digest; few versions back, as a rule.
                    for row in
                        versions.range((&*text, 0)..=(&*text, u64::MAX)).map_err(storage)?.rev()
                    {
                        let (key, row) = row.map_err(storage)?;
                        let place = Place::Version(&text, key.value().1);
                        let row: VersionRow = place.open(row.value())?;
                        if row.digest == *wanted {
                            return found(key.value().1)?.ok_or_else(missing);
                        }
                    }
                    None
                }
                _ => None,
            };
            found(number.ok_or_else(missing)?)?.ok_or_else(missing)
        })
    }

    /// The canonical tar with this digest, for reading. Whether it still has that digest, its reader has to
    /// find out.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`] when no version has it, [`RegistryError::Damaged`] when it is missing, [`RegistryError::Storage`].
    pub fn bundle(&self, digest: &Digest) -> Result<File, RegistryError> {
        match File::open(self.blob(digest)) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let named = self.read(|transaction| {
                    let bundles = transaction.open_table(BUNDLES).map_err(storage)?;
                    Ok(bundles.get(digest.as_bytes()).map_err(storage)?.is_some())
                })?;
                Err(match named {
                    true => RegistryError::damaged(digest),
                    false => RegistryError::NotFound { what: format!("bundle {digest}") },
                })
            }
            Err(error) => Err(storage(error)),
        }
    }

    /// See [`Registry::list`](openlambda_core::registry::Registry::list).
    ///
    /// # Errors
    ///
    /// [`RegistryError::Storage`].
    pub fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        self.read(|transaction| {
            let functions = transaction.open_table(FUNCTIONS).map_err(storage)?;
            let versions = transaction.open_table(VERSIONS).map_err(storage)?;
            let mut list = Vec::new();
            for row in functions.iter().map_err(storage)? {
                let (name, row) = row.map_err(storage)?;
                let row: FunctionRow = Place::Function(name.value()).open(row.value())?;
                let Some(newest) = row.newest else { continue };
                let version = versions.get((name.value(), newest)).map_err(storage)?;
                let version =
                    version.ok_or_else(|| storage(io::Error::other("a version is missing")))?;
                let place = Place::Version(name.value(), newest);
                let VersionRow { digest, .. } = place.open(version.value())?;
                let name = name.value().parse().map_err(storage)?;
                let version = Version(newest);
                list.push(Listing { name, version, digest, aliases: row.aliases });
            }
            // The table is in the order of the names' texts, which is another one.
            list.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(list)
        })
    }

    /// See [`Registry::versions`](openlambda_core::registry::Registry::versions).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`], [`RegistryError::Storage`].
    pub fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        self.read(|transaction| {
            let versions = transaction.open_table(VERSIONS).map_err(storage)?;
            let text = name.to_string();
            let mut found = Vec::new();
            for row in versions.range((&*text, 0)..=(&*text, u64::MAX)).map_err(storage)? {
                let (key, row) = row.map_err(storage)?;
                let row: VersionRow = Place::Version(&text, key.value().1).open(row.value())?;
                let mut info = VersionInfo::new(Version(key.value().1), row.digest);
                (info.bytes, info.published_ms) = (row.bytes, row.published_ms);
                found.push(info);
            }
            // A function that is deleted has a row of its own, but no versions.
            if found.is_empty() {
                return Err(RegistryError::NotFound { what: format!("function \"{name}\"") });
            }
            Ok(found)
        })
    }

    /// See [`Registry::delete`](openlambda_core::registry::Registry::delete).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`], [`RegistryError::Storage`].
    pub fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let mut writing = self.writing.lock();
        let transaction = self.begin_write(&mut writing)?;
        let mut unused = Vec::new();
        let event = {
            let function = read_function(&transaction, name)?.filter(|row| row.newest.is_some());
            let Some(function) = function else {
                return Err(RegistryError::NotFound { what: format!("function \"{name}\"") });
            };
            let kept = FunctionRow { last: function.last, ..FunctionRow::default() };
            write_function(&transaction, name, &kept)?;
            let text = name.to_string();
            let mut versions = transaction.open_table(VERSIONS).map_err(storage)?;
            let all = (&*text, 0)..=(&*text, u64::MAX);
            let mut digests = Vec::new();
            for row in versions.range(all.clone()).map_err(storage)? {
                let (key, row) = row.map_err(storage)?;
                let place = Place::Version(&text, key.value().1);
                digests.push(place.open::<VersionRow>(row.value())?.digest);
            }
            versions.retain_in(all, |_, _| false).map_err(storage)?;
            for digest in digests {
                if count(&transaction, &digest, -1)? == 0 {
                    unused.push(digest);
                }
            }
            self.write_event(&transaction, |revision| RegistryEvent::Deleted {
                revision,
                name: name.clone(),
            })?
        };
        self.commit(transaction, name, event)?;
        writing.remove(name.namespace());
        for digest in unused {
            // What is being read stays readable; what is left here, the next opening removes.
            let _ = fs::remove_file(self.blob(&digest));
        }
        Ok(())
    }

    /// See [`Registry::set_alias`](openlambda_core::registry::Registry::set_alias).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`], [`RegistryError::Conflict`], [`RegistryError::Unsupported`] for
    /// a name that is no alias, [`RegistryError::Storage`].
    pub fn set_alias(
        &self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        check_alias(alias).map_err(|error| RegistryError::Unsupported(error.to_string()))?;
        let mut writing = self.writing.lock();
        let transaction = self.begin_write(&mut writing)?;
        let event = {
            let missing = |what: String| RegistryError::NotFound { what };
            let function = read_function(&transaction, name)?.filter(|row| row.newest.is_some());
            let mut function = function.ok_or_else(|| missing(format!("function \"{name}\"")))?;
            let at = function.aliases.get(alias).copied();
            if at != expected {
                return Err(RegistryError::Conflict { alias: alias.to_owned(), at });
            }
            match version {
                Some(version) if read_version(&transaction, name, version.0)?.is_none() => {
                    return Err(missing(format!("version {version} of {name}")));
                }
                Some(version) => function.aliases.insert(alias.to_owned(), version),
                None => function.aliases.remove(alias),
            };
            write_function(&transaction, name, &function)?;
            self.write_event(&transaction, |revision| RegistryEvent::Aliased {
                revision,
                name: name.clone(),
                alias: alias.to_owned(),
                version,
            })?
        };
        self.commit(transaction, name, event)
    }

    /// The changes, for those who watch.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// What the functions of a namespace have here: O(all versions).
    fn stored(
        &self,
        transaction: &WriteTransaction,
        namespace: &str,
    ) -> Result<Stored, RegistryError> {
        let mut stored = Stored::default();
        let versions = transaction.open_table(VERSIONS).map_err(storage)?;
        for row in versions.iter().map_err(storage)? {
            let (key, row) = row.map_err(storage)?;
            let (name, version) = key.value();
            if name.split_once('/').map_or(DEFAULT_NAMESPACE, |(its, _)| its) != namespace {
                continue;
            }
            let row: VersionRow = Place::Version(name, version).open(row.value())?;
            let bytes = match row.bytes {
                Some(bytes) => bytes,
                None => fs::metadata(self.blob(&row.digest)).map_err(storage)?.len(),
            };
            stored.add(row.digest, bytes);
        }
        Ok(stored)
    }

    /// What `work` makes of the tables as they are opened now.
    fn opened<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        self.database.read().as_ref().map_or(Err(redb::Error::PreviousIo), work)
    }

    /// Reads; once more when the tables have to be opened anew for it.
    fn read<T>(
        &self,
        work: impl Fn(&ReadTransaction) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let read = || {
            let database = self.database.read();
            let database = database.as_ref().ok_or_else(|| storage(redb::Error::PreviousIo))?;
            work(&database.begin_read().map_err(storage)?)
        };
        match read() {
            Err(error) if is_broken_off(&error) => {
                self.open_anew(&mut self.writing.lock())?;
                read()
            }
            done => done,
        }
    }

    /// Begins a change, if need be in tables that are opened anew.
    fn begin_write(&self, writing: &mut Writing<'_>) -> Result<WriteTransaction, RegistryError> {
        if let Some(wrong) = &*self.doubt.read() {
            return Err(storage(io::Error::other(format!(
                "nothing can be changed: {wrong}; stop the registry and run `ol registry rebuild`"
            ))));
        }
        let begin = || self.opened(|database| Ok(database.begin_write()?)).map_err(storage);
        match begin() {
            Err(error) if is_broken_off(&error) => {
                self.open_anew(writing)?;
                begin()
            }
            begun => begun,
        }
    }

    /// Makes a change last, of which `event` tells: first in the function's file, then in the tables.
    fn commit(
        &self,
        transaction: WriteTransaction,
        name: &FunctionName,
        event: RegistryEvent,
    ) -> Result<(), RegistryError> {
        let record = record_of(&transaction, name, event.revision().0)?;
        let written = record.write(&self.root, &self.temporary().path).map_err(storage)?;
        transaction.commit().map_err(storage)?;
        written.stands();
        self.events.add(|_| event);
        Ok(())
    }

    /// Looks through tables that have just been opened, and removes bundles that nobody names.
    fn look_through(&self, database: Option<&Database>) -> Result<(), StoreError> {
        let Some(database) = database else { return Ok(()) };
        let content = self.reconcile(database)?;
        *self.doubt.write() = content.wrong.first().cloned();
        if content.wrong.is_empty() {
            self.remove_leftovers("blobs", &content.digests())?;
        }
        Ok(())
    }

    /// Opens the tables anew after the disk has failed. See the module's documentation.
    fn open_anew(&self, writing: &mut Writing<'_>) -> Result<(), RegistryError> {
        // Another thread may have done it while this one waited.
        if self.opened(|database| Ok(database.begin_write()?)).is_ok() {
            return Ok(());
        }
        self.temporary().write(|file| file.write_all(&[0; PROBE]).map_err(storage))?;
        let mut database = self.database.write();
        // Closed before it is opened: only one may have it open.
        *database = None;
        // Not created: without its file, every bundle would be one that nobody names.
        let opened = Database::open(self.root.join(TABLES)).map_err(storage)?;
        // A change that failed at its very end may be in the tables nevertheless. Those who watch are told of
        // it before anybody reads it, so that nobody knows it and then keeps what was before it.
        writing.clear();
        let (events, _) = read_events(&opened)?;
        let known = self.events.last();
        for event in events.into_iter().filter(|event| event.revision() > known) {
            self.events.add(|_| event);
        }
        self.look_through(Some(&opened)).map_err(storage)?;
        *database = Some(opened);
        drop(database);
        tracing::warn!(dir = %self.root.display(), "the tables were opened anew: the disk had failed");
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(format!("{}.tar", digest.hex()))
    }

    /// Puts a bundle that is on the disk where bundles are, and waits until the disk has it there.
    fn keep(&self, temporary: Temporary, digest: &Digest) -> Result<(), RegistryError> {
        temporary.keep(&self.blob(digest)).map_err(storage)?;
        File::open(self.root.join("blobs")).and_then(|dir| dir.sync_all()).map_err(storage)
    }

    fn temporary(&self) -> Temporary {
        let n = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        Temporary { path: self.root.join("tmp").join(n.to_string()) }
    }

    /// The format that the tables say they have, if they say one; and whether there are none yet.
    fn format(&self) -> Result<(Option<u64>, bool), redb::Error> {
        self.opened(|database| {
            let transaction = database.begin_read()?;
            let said = match transaction.open_table(FACTS) {
                Ok(facts) => facts.get(FORMAT)?.map(|format| format.value()),
                Err(redb::TableError::TableDoesNotExist(_)) => None,
                Err(error) => return Err(error.into()),
            };
            match transaction.open_table(FUNCTIONS) {
                Ok(_) => Ok((said, false)),
                Err(redb::TableError::TableDoesNotExist(_)) => Ok((said, true)),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Makes the tables that are missing, and brings those of an earlier format into this one.
    fn prepare(&self, made: bool, said: Option<u64>) -> Result<(), RegistryError> {
        let transaction = self.opened(|database| Ok(database.begin_write()?)).map_err(storage)?;
        make_tables(&transaction)?;
        if !made && said.unwrap_or(1) < 2 {
            seal_all(&transaction)?;
        }
        transaction.commit().map_err(storage)
    }

    /// Writes down the next change.
    fn write_event(
        &self,
        transaction: &WriteTransaction,
        make: impl FnOnce(openlambda_core::registry::Revision) -> RegistryEvent,
    ) -> Result<RegistryEvent, RegistryError> {
        let revision = self.events.last().0 + 1;
        let event = make(openlambda_core::registry::Revision(revision));
        let mut events = transaction.open_table(EVENT_LOG).map_err(storage)?;
        events.insert(revision, &*Place::Event(revision).seal(&event)?).map_err(storage)?;
        if let Some(old) = revision.checked_sub(EVENTS as u64) {
            events.remove(old).map_err(storage)?;
        }
        let mut facts = transaction.open_table(FACTS).map_err(storage)?;
        let sealed = Place::Fact(REVISION).seal_number(revision);
        facts.insert(REVISION, sealed).map_err(storage)?;
        Ok(event)
    }

    /// Removes what is in a folder but the bundles that are `named`.
    fn remove_leftovers(&self, folder: &str, named: &[Digest]) -> Result<(), StoreError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        let mut named: Vec<String> = named.iter().map(|digest| digest.hex()).collect();
        named.sort();
        let folder = self.root.join(folder);
        for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let entry = entry.map_err(io_error(&folder))?;
            let kept = |name: &str| {
                let hex = name.strip_suffix(".tar").unwrap_or_default();
                named.binary_search_by(|known| known.as_str().cmp(hex)).is_ok()
            };
            if !entry.file_name().to_str().is_some_and(kept) {
                fs::remove_file(entry.path()).map_err(io_error(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// Whether the tables have to be opened anew: redb does nothing more with a file once that has failed.
fn is_broken_off(error: &RegistryError) -> bool {
    use redb::{Error, StorageError, TableError, TransactionError};
    let RegistryError::Storage(error) = error else { return false };
    let storage = match (error.downcast_ref(), error.downcast_ref(), error.downcast_ref()) {
        (Some(TransactionError::Storage(error)), ..) | (_, Some(TableError::Storage(error)), _) => {
            error
        }
        (.., Some(error)) => error,
        _ => return matches!(error.downcast_ref(), Some(Error::PreviousIo)),
    };
    matches!(storage, StorageError::PreviousIo)
}

/// Whether there are bundles in the store's folder.
fn holds_bundles(root: &Path) -> bool {
    fs::read_dir(root.join("blobs")).is_ok_and(|mut bundles| bundles.next().is_some())
}

/// A file in `tmp/`, removed by Drop unless it was kept.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    /// Makes the file of what `write` writes, and waits until the disk has it.
    fn write<T>(
        &self,
        write: impl FnOnce(&mut BufWriter<File>) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut file = BufWriter::new(File::create(&self.path).map_err(storage)?);
        let written = write(&mut file)?;
        file.flush().map_err(storage)?;
        file.get_ref().sync_all().map_err(storage)?;
        Ok(written)
    }

    fn keep(self, place: &Path) -> io::Result<()> {
        // Over one of the same digest, should it be there: it has the same bytes.
        fs::rename(&self.path, place)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the tables that are missing, in this release's format.
fn make_tables(transaction: &WriteTransaction) -> Result<(), RegistryError> {
    transaction.open_table(FUNCTIONS).map_err(storage)?;
    transaction.open_table(VERSIONS).map_err(storage)?;
    transaction.open_table(BUNDLES).map_err(storage)?;
    transaction.open_table(EVENT_LOG).map_err(storage)?;
    let mut facts = transaction.open_table(FACTS).map_err(storage)?;
    facts.insert(FORMAT, u64::from(STORE_FORMAT.number)).map_err(storage)?;
    Ok(())
}

/// A function as a change leaves it.
fn record_of(
    transaction: &WriteTransaction,
    name: &FunctionName,
    revision: u64,
) -> Result<Record, RegistryError> {
    let function = read_function(transaction, name)?.unwrap_or_default();
    let text = name.to_string();
    let table = transaction.open_table(VERSIONS).map_err(storage)?;
    let mut versions = BTreeMap::new();
    for row in table.range((&*text, 0)..=(&*text, u64::MAX)).map_err(storage)? {
        let (key, row) = row.map_err(storage)?;
        let version = key.value().1;
        versions.insert(version, Place::Version(&text, version).open(row.value())?);
    }
    Ok(Record { name: name.clone(), revision, function, versions })
}

/// The last changes, and the revision of the last one.
fn read_events(database: &Database) -> Result<(Vec<RegistryEvent>, u64), RegistryError> {
    let transaction = database.begin_read().map_err(storage)?;
    let last = last_revision(&transaction)?;
    let mut events = Vec::new();
    for row in transaction.open_table(EVENT_LOG).map_err(storage)?.iter().map_err(storage)? {
        let (key, row) = row.map_err(storage)?;
        // One that cannot be read ends those before it: watchers are told that they are lost.
        match Place::Event(key.value()).open(row.value()) {
            Ok(event) => events.push(event),
            Err(_) => events.clear(),
        }
    }
    Ok((events, last))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use openlambda_core::manifest::Manifest;

    use super::*;

    /// Earlier releases of the same format could not read rows that hold more, or would drop it. A change
    /// of these texts needs another number in [`STORE_FORMAT`]; a key that is left out where it says
    /// nothing changes none of them.
    #[test]
    fn what_rows_hold_is_pinned() {
        let function = FunctionRow {
            last: 3,
            newest: Some(3),
            aliases: BTreeMap::from([("live".to_owned(), Version(2))]),
            born: Some(1),
        };
        let version = VersionRow {
            digest: Digest::from_bytes([7; 32]),
            manifest: Manifest::default(),
            bytes: Some(2048),
            published_ms: Some(1),
        };
        assert_eq!(serde_json::to_string(&function).unwrap(), FUNCTION_ROW);
        assert_eq!(serde_json::to_string(&version).unwrap(), VERSION_ROW);
    }

    #[test]
    fn what_a_store_makes_is_its_user_s_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let store = Store::open(&root).unwrap();
        store.publish(&"f".parse().unwrap(), &*tar("1")).unwrap();
        for (name, expected) in
            [("FORMAT", 0o600), (TABLES, 0o600), ("blobs", 0o700), (RECORDS, 0o700), ("tmp", 0o700)]
        {
            let mode = fs::metadata(root.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, expected, "{name}");
        }
    }

    fn tar(content: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("f.py"), content).unwrap();
        let mut tar = Vec::new();
        bundle::pack_dir(dir.path(), &mut tar).unwrap();
        tar
    }

    /// Whoever reads a change knows of its event: also of a change that was in the tables although it seemed
    /// to have failed.
    #[test]
    fn tables_that_are_opened_anew_are_read_when_their_events_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let name: FunctionName = "f".parse().unwrap();
        let latest = FunctionRef::latest(name.clone());
        let store = Store::open(dir.path()).unwrap();
        store.publish(&name, &*tar("1")).unwrap();
        // What another has changed stands for what this one takes for failed.
        let changes_unseen = |content: &str| {
            *store.database.write() = None;
            Store::open(dir.path()).unwrap().publish(&name, &*tar(content)).unwrap();
        };
        for version in 2..40 {
            changes_unseen(&version.to_string());
            std::thread::scope(|threads| {
                for _ in 0..4 {
                    threads.spawn(|| {
                        assert_eq!(store.resolve(&latest).unwrap().version, Version(version));
                        assert_eq!(store.events().last().0, version);
                    });
                }
            });
        }
        // Nobody reads tables whose events cannot be read.
        changes_unseen("unknown");
        let tables = Database::open(dir.path().join(TABLES)).unwrap();
        let transaction = tables.begin_write().unwrap();
        transaction.delete_table(EVENT_LOG).unwrap();
        transaction.commit().unwrap();
        drop(tables);
        *store.database.write() = None;
        for _ in 0..2 {
            let error = store.resolve(&latest).unwrap_err();
            assert!(matches!(error, RegistryError::Storage(_)), "{error:?}");
        }
    }

    const FUNCTION_ROW: &str = r#"{"last":3,"newest":3,"aliases":{"live":2},"born":1}"#;
    const VERSION_ROW: &str = concat!(
        r#"{"digest":"sha256:0707070707070707070707070707070707070707070707070707070707070707","manifest":{"#,
        r#""runtime":null,"handler":null,"style":null,"event":"body","timeout_seconds":30.0,"memory_mb":128,"#,
        r#""processes":64,"cpus":1.0,"tmp_mb":64,"concurrency":1,"max_instances":16,"queue":1024,"#,
        r#""network":"none","reuse":true,"methods":null,"packages":[],"colour":"","environment":{},"#,
        r#""volumes":[],"cors":null},"bytes":2048,"published_ms":1}"#,
    );
}
