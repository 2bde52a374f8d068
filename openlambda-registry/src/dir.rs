//! A folder of function folders, for development: a changed file takes effect on the next call.
//!
//! ```text
//! <root>/<name>/                the function <name>
//!       /_ns/<namespace>/<name>/  the function <namespace>/<name>
//! ```
//!
//! There is no state beside the folders: an edit is a publication. A resolution reads every file's
//! metadata, and packs the folder again when something has changed. So
//!
//! * a function has one version, the present one, and no aliases. The version's number is the time of
//!   the last change, in microseconds since 1970: every process on the machine computes the same number,
//!   and a later change gives a higher one;
//! * a bundle can be fetched as long as its folder stays unchanged. If it changes between resolution and
//!   fetch, the error says so, and the next call succeeds;
//! * [`watch`](Registry::watch) reports what was published and deleted through the same handle, and
//!   [`cache_for`](Registry::cache_for) is zero, since an edit is not reported.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use openlambda_core::bundle::{self, Ignore};
use openlambda_core::function::{
    DEFAULT_NAMESPACE, Digest, FunctionName, FunctionRef, Qualifier, Version,
};
use openlambda_core::manifest::Manifest;
use openlambda_core::registry::{
    Bundle, BundleStream, EventLog, Listing, Published, Registry, RegistryError, RegistryEvent,
    Resolved, Revision, VersionInfo,
};
use openlambda_core::time::{Clock, SystemClock};
use parking_lot::Mutex;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::blocking;

/// The folder of the namespaces that are not the default. No function's name begins so.
const NAMESPACES: &str = "_ns";

/// What is on its way into the root, or out of it. No function's name begins so.
const TEMPORARY: &str = ".openlambda-tmp-";

/// Metadata shows a change only as finely as the kernel's clock ticks, at most 10 ms. A folder that
/// changed more recently than this is packed at every resolution.
const RECENT: Duration = Duration::from_millis(100);

/// Functions in a folder. Clones share what is known of it.
#[derive(Clone, Debug)]
pub struct DirRegistry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    clock: SystemClock,
    events: EventLog,
    known: Mutex<BTreeMap<FunctionName, Known>>,
    /// Held while a function is published or deleted.
    changing: Mutex<()>,
    next_temporary: AtomicU64,
}

/// A folder as it was when it was last packed.
#[derive(Clone, Debug)]
struct Known {
    look: Look,
    version: Version,
    digest: Digest,
    manifest: Manifest,
    bytes: u64,
}

/// What metadata shows of a folder: changes when anything in it does.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    hash: u64,
    /// The time of the newest change, microseconds since 1970.
    newest: u64,
}

impl DirRegistry {
    /// The functions in the folder `root`, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// That it cannot be made, or is no folder.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        // What a crash in the middle of a publication has left.
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let name = entry.file_name();
            let left = name.to_str().and_then(|name| name.strip_prefix(TEMPORARY));
            let maker = left.and_then(|left| left.split('-').next()?.parse::<u32>().ok());
            if maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(DirRegistry {
            shared: Arc::new(Shared {
                root: std::path::absolute(root)?,
                clock: SystemClock::new(),
                events: EventLog::new(1024, [], 0),
                known: Mutex::default(),
                changing: Mutex::default(),
                next_temporary: AtomicU64::new(0),
            }),
        })
    }
}

#[async_trait]
impl Registry for DirRegistry {
    fn kind(&self) -> &'static str {
        "dir"
    }

    async fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        let name = name.clone();
        blocking(&self.shared, move |shared| shared.put(&name, bundle)).await
    }

    async fn get(&self, digest: &Digest) -> Result<BundleStream, RegistryError> {
        let digest = *digest;
        let tar = blocking(&self.shared, move |shared| shared.get(&digest)).await?;
        Ok(Box::pin(stream::once(async { Ok(tar.into()) })))
    }

    async fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let reference = reference.clone();
        blocking(&self.shared, move |shared| shared.resolve(&reference)).await
    }

    async fn list(&self) -> Result<Vec<Listing>, RegistryError> {
        blocking(&self.shared, |shared| {
            let mut list = Vec::new();
            for name in shared.names().map_err(storage)? {
                // A folder that is no function (yet) is not listed; calling it says why.
                if let Ok(Known { version, digest, .. }) = shared.look_at(&name) {
                    list.push(Listing { name, version, digest, aliases: BTreeMap::new() });
                }
            }
            Ok(list)
        })
        .await
    }

    async fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let name = name.clone();
        blocking(&self.shared, move |shared| {
            let Known { version, digest, bytes, .. } = shared.look_at(&name)?;
            let mut info = VersionInfo::new(version, digest);
            info.bytes = Some(bytes);
            // The number of a version is the time of its change.
            info.published_ms = Some(version.0 / 1000);
            Ok(vec![info])
        })
        .await
    }

    async fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let name = name.clone();
        blocking(&self.shared, move |shared| shared.delete(&name)).await
    }

    async fn set_alias(
        &self,
        _name: &FunctionName,
        _alias: &str,
        _version: Option<Version>,
        _expected: Option<Version>,
    ) -> Result<(), RegistryError> {
        Err(RegistryError::Unsupported(
            "a folder of functions has no aliases; use the native registry".to_owned(),
        ))
    }

    fn watch(&self, from: Revision) -> BoxStream<'static, RegistryEvent> {
        self.shared.events.watch(from)
    }
}

impl Shared {
    fn folder(&self, name: &FunctionName) -> PathBuf {
        match name.namespace() {
            DEFAULT_NAMESPACE => self.root.join(name.name()),
            namespace => self.root.join(NAMESPACES).join(namespace).join(name.name()),
        }
    }

    /// The folders that could be functions, in order of their names.
    fn names(&self) -> io::Result<Vec<FunctionName>> {
        let folders = |path: &Path| -> io::Result<Vec<String>> {
            let entries = match fs::read_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                entries => entries?,
            };
            let folders = entries.flatten().filter(|entry| entry.path().is_dir());
            Ok(folders.filter_map(|entry| entry.file_name().into_string().ok()).collect())
        };
        let mut names = Vec::new();
        let mut add = |namespace: &str, path: &Path| -> io::Result<()> {
            for name in folders(path)? {
                names.extend(FunctionName::new(namespace, &name).ok());
            }
            Ok(())
        };
        add(DEFAULT_NAMESPACE, &self.root)?;
        for namespace in folders(&self.root.join(NAMESPACES))? {
            add(&namespace, &self.root.join(NAMESPACES).join(&namespace))?;
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// What the folder of a name holds now.
    fn look_at(&self, name: &FunctionName) -> Result<Known, RegistryError> {
        let folder = self.folder(name);
        if !folder.is_dir() {
            return Err(not_found(name));
        }
        // An editor may write while we read: what was read counts only if nothing moved meanwhile.
        for _ in 0..10 {
            let now_us = self.clock.unix_millis() * 1000;
            let look = look(&folder).map_err(storage)?;
            let recent = look.newest + RECENT.as_micros() as u64 > now_us;
            if let Some(known) = self.known.lock().get(name)
                && known.look == look
                && !recent
            {
                return Ok(known.clone());
            }
            let packed = match bundle::pack_dir(&folder, io::sink()) {
                Ok(packed) => packed,
                Err(_) if !folder.is_dir() => return Err(not_found(name)),
                Err(error) => return Err(error.into()),
            };
            if self::look(&folder).map_err(storage)? != look {
                continue;
            }
            let mut known = self.known.lock();
            let before = known.get(name);
            let version = match before {
                Some(before) if before.digest == packed.digest => before.version,
                // Two changes in one tick of the kernel's clock have one time, but two versions.
                Some(before) => Version(look.newest.max(before.version.0 + 1)),
                None => Version(look.newest),
            };
            let (digest, manifest, bytes) = (packed.digest, packed.manifest, packed.bytes);
            let found = Known { look, version, digest, manifest, bytes };
            known.insert(name.clone(), found.clone());
            return Ok(found);
        }
        let message = format!("{} changes all the time; try again", folder.display());
        Err(RegistryError::Unavailable(message.into()))
    }

    fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let Known { version, digest, manifest, .. } = self.look_at(&reference.name)?;
        let is_meant = match &reference.qualifier {
            Qualifier::Latest => true,
            Qualifier::Version(wanted) => *wanted == version,
            Qualifier::Digest(wanted) => *wanted == digest,
            _ => false,
        };
        if !is_meant {
            let what =
                format!("function \"{reference}\" in a folder, which has only the present version");
            return Err(RegistryError::NotFound { what });
        }
        Ok(Resolved::new(reference.name.clone(), version, digest, manifest))
    }

    fn get(&self, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let holders = |known: &BTreeMap<FunctionName, Known>| -> Vec<FunctionName> {
            let holds = |(name, known): (&FunctionName, &Known)| {
                (known.digest == *digest).then(|| name.clone())
            };
            known.iter().filter_map(holds).collect()
        };
        let mut candidates = holders(&self.known.lock());
        let was_known = !candidates.is_empty();
        if !was_known {
            // Another process has resolved it.
            for name in self.names().map_err(storage)? {
                let _ = self.look_at(&name);
            }
            candidates = holders(&self.known.lock());
        }
        let mut changed = was_known;
        for name in candidates {
            let mut tar = Vec::new();
            match bundle::pack_dir(&self.folder(&name), &mut tar) {
                Ok(packed) if packed.digest == *digest => return Ok(tar),
                _ => changed &= self.folder(&name).is_dir(),
            }
        }
        if changed {
            let message = "the function's folder has changed since the call began; call again";
            return Err(RegistryError::Unavailable(message.into()));
        }
        Err(RegistryError::NotFound { what: format!("bundle {digest}") })
    }

    fn put(&self, name: &FunctionName, bundle: Bundle) -> Result<Published, RegistryError> {
        let wanted = bundle.digest;
        let folder = self.folder(name);
        let _changing = self.changing.lock();
        let before = match self.look_at(name) {
            Ok(known) => Some(known),
            // What is there and is no function is replaced too.
            Err(RegistryError::NotFound { .. } | RegistryError::BadBundle { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(before) = &before
            && before.digest == wanted
        {
            let (version, digest) = (before.version, before.digest);
            return Ok(Published { version, digest, new: false });
        }
        let temporary = self.temporary().map_err(storage)?;
        bundle::unpack(bundle, &wanted, &temporary.0)?;
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(storage)?;
        }
        put(&temporary.0, &folder).map_err(storage)?;
        // By Drop: what was there before.
        drop(temporary);
        let Known { version, digest, .. } = self.look_at(name)?;
        self.events.add(|revision| RegistryEvent::Published {
            revision,
            name: name.clone(),
            version,
            digest,
        });
        Ok(Published { version, digest, new: true })
    }

    fn delete(&self, name: &FunctionName) -> Result<(), RegistryError> {
        let _changing = self.changing.lock();
        let temporary = self.temporary().map_err(storage)?;
        match fs::rename(self.folder(name), temporary.0.join("deleted")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_found(name)),
            Err(error) => return Err(storage(error)),
        }
        self.known.lock().remove(name);
        self.events.add(|revision| RegistryEvent::Deleted { revision, name: name.clone() });
        Ok(())
    }

    fn temporary(&self) -> io::Result<Temporary> {
        let n = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let own = self as *const Shared as usize;
        let name = format!("{TEMPORARY}{}-{own:x}-{n}", std::process::id());
        let path = self.root.join(name);
        fs::create_dir(&path)?;
        Ok(Temporary(path))
    }
}

/// A folder in the root, removed by Drop.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove a temporary folder");
        }
    }
}

/// Puts `from` in the place of `to` at one stroke; what was there is at `from` then.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    loop {
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => {
                // So that the caller's clean-up finds something.
                return fs::create_dir(from);
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        match renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            // Gone meanwhile.
            Err(rustix::io::Errno::NOENT) => {}
            done => return Ok(done?),
        }
    }
}

/// Looks no further than a bundle may reach: what is deeper, or more, is refused when it is packed.
fn look(folder: &Path) -> io::Result<Look> {
    let mut left = bundle::Limits::default().entries;
    let fits = |path: &Path| {
        path.as_os_str().len() <= bundle::PATH_LIMIT
            && path.components().count() <= bundle::DEPTH_LIMIT
    };
    let mut facts = Vec::new();
    let mut newest = 0;
    let mut visit = |path: &Path, metadata: &fs::Metadata| {
        let changed_us = metadata.ctime() * 1_000_000 + metadata.ctime_nsec() / 1000;
        newest = newest.max(u64::try_from(changed_us).unwrap_or(0));
        facts.extend_from_slice(path.as_os_str().as_encoded_bytes());
        let numbers = [
            metadata.ino(),
            metadata.size(),
            metadata.mode().into(),
            metadata.ctime() as u64,
            metadata.ctime_nsec() as u64,
        ];
        facts.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    };
    visit(Path::new(""), &fs::metadata(folder)?);
    let ignore = Ignore::of(folder).unwrap_or_else(|_| Ignore::usual());
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        let mut entries = fs::read_dir(folder.join(&below))?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = below.join(entry.file_name());
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if path.to_str().is_some_and(|path| !ignore.matters(path, is_folder)) {
                continue;
            }
            // One that is gone again: the folder's own time has changed with it.
            let Ok(metadata) = entry.metadata() else { continue };
            visit(&path, &metadata);
            let Some(less) = left.checked_sub(1) else {
                folders.clear();
                break;
            };
            left = less;
            if metadata.is_dir() && fits(&path) {
                folders.push(path);
            }
        }
    }
    Ok(Look { hash: openlambda_core::hash::stable_hash(0, &facts), newest })
}

fn not_found(name: &FunctionName) -> RegistryError {
    RegistryError::NotFound { what: format!("function \"{name}\"") }
}

fn storage(error: impl Into<openlambda_core::invocation::BoxError>) -> RegistryError {
    RegistryError::Storage(error.into())
}
