//! Bundles: a function's code and manifest as one content-addressed archive.
//!
//! A bundle is a tar in *canonical form*, so that its [`Digest`] depends on what is in it and not on
//! who packed it, when, or on which machine:
//!
//! * entries in order of their paths' bytes, every folder named before what is in it;
//! * folders (mode 755), regular files (644, or 755 when somebody may execute them) and symbolic
//!   links; owner 0, group 0, time 0, no names of users;
//! * GNU headers, with the GNU extension for paths over 100 bytes.
//!
//! [`pack_dir`] makes one from a folder, [`canonicalise`] from any tar, plain or gzipped, and
//! [`unpack`] turns one into a folder again. All three refuse what could do harm outside of the
//! folder that it is unpacked into: absolute paths, `..`, links that lead out, devices, two entries
//! of one path, and more than [`Limits`] allow. A refusal says which entry and why.
//!
//! # Why a link cannot lead out
//!
//! A target is relative, and `..` stands only at its beginning, at most as often as its link is deep.
//! No entry's path leads through a link, so a link's folder is a real one, and so is each folder that
//! `..` leads to; the rest of the target leads down, perhaps over other links, which hold the same
//! promise. (A `..` after a name would not: the name could be a link to somewhere less deep.)

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::{Buf, Bytes};
use futures_core::Stream;
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use thiserror::Error;

use crate::function::Digest;
use crate::manifest::{MANIFEST_FILES, Manifest, ManifestError};
use crate::registry::{BundleStream, RegistryError};

/// Names that [`pack_dir`] leaves out wherever they are: what tools leave behind, and what is not
/// the function's.
pub const LEFT_OUT: [&str; 7] =
    [".git", ".gitignore", ".hg", ".svn", "__pycache__", ".DS_Store", ".pytest_cache"];

/// What `ol deploy` writes beside a function's web page: where the function is. Each cluster has its
/// own, so it is no part of the bundle, whose digest is the same everywhere.
pub const PAGE_CONFIG: [&str; 2] = ["static/config.json", "static/config.js"];

/// Whether [`pack_dir`] leaves out what is at this path below the function's folder: [`PAGE_CONFIG`],
/// and wherever it is, what is named like one of [`LEFT_OUT`] or like what an editor keeps beside a
/// file for as long as it is open (`.f.py.swp`, `f.py~`, `.#f.py`, `#f.py#`), which would make every
/// look of a bundle another one.
pub fn is_left_out(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let editor = (name.starts_with('.') && (name.ends_with(".swp") || name.ends_with(".swx")))
        || (name.len() > 1 && name.ends_with('~'))
        || name.starts_with(".#")
        || (name.len() > 1 && name.starts_with('#') && name.ends_with('#'));
    editor || LEFT_OUT.contains(&name) || PAGE_CONFIG.contains(&path)
}

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

/// The largest manifest, bytes.
const MANIFEST_LIMIT: u64 = 1 << 20;

fn is_manifest(path: &str) -> bool {
    MANIFEST_FILES.contains(&path)
}

/// A bundle that was packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Its digest.
    pub digest: Digest,
    /// Its manifest, complete.
    pub manifest: Manifest,
    /// The size of its tar, bytes.
    pub bytes: u64,
}

/// Why something is no bundle.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BundleError {
    /// An entry is refused.
    #[error("\"{path}\" {why}")]
    Entry {
        /// The entry's path, as the archive names it.
        path: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// It is too large as a whole.
    #[error("{0}")]
    TooLarge(String),
    /// Its manifest is not valid, or the files do not tell what to run.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its bytes are not those that the digest names.
    #[error("the bundle is damaged: it has the digest {found}, not {wanted}")]
    Damaged {
        /// The digest that was asked for.
        wanted: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// The archive, or the folder, cannot be read.
    #[error("the bundle cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The result cannot be written.
    #[error("the bundle cannot be written: {0}")]
    Write(#[source] io::Error),
}

impl From<BundleError> for RegistryError {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::Write(_) | BundleError::Damaged { .. } => {
                RegistryError::Storage(error.into())
            }
            _ => RegistryError::BadBundle { reason: error.to_string() },
        }
    }
}

/// Packs the function in the folder `dir` as a bundle. What [`is_left_out`] names is left out.
///
/// # Errors
///
/// [`BundleError`]; `out` may have got a part by then.
pub fn pack_dir(dir: &Path, out: impl Write) -> Result<Packed, BundleError> {
    let mut found = Checker::new(Limits::default());
    collect(dir, "", &mut found)?;
    let manifest = Manifest::load(dir)?;
    let mut writer = Writer::new(out);
    for (path, kind) in &found.entries {
        match kind {
            Kind::Folder => writer.folder(path)?,
            Kind::Link { target } => writer.link(path, target)?,
            Kind::File { bytes, executable } => {
                let file = File::open(dir.join(path)).map_err(|error| {
                    refuse(path, format!("cannot be read ({error}); make it readable"))
                })?;
                writer.file(path, *bytes, *executable, file)?;
            }
        }
    }
    let (digest, bytes) = writer.finish()?;
    Ok(Packed { digest, manifest, bytes })
}

/// Reads a tar, plain or gzipped, from anybody, and writes the bundle that it stands for.
///
/// The content of its files is spooled in an unnamed temporary file, since a canonical order needs
/// all names first.
///
/// # Errors
///
/// [`BundleError`]; nothing was written to `out` unless writing itself failed.
pub fn canonicalise(
    mut archive: impl Read,
    limits: Limits,
    out: impl Write,
) -> Result<Packed, BundleError> {
    let mut checker = Checker::new(limits);
    let mut spool = BufWriter::new(tempfile::tempfile().map_err(BundleError::Write)?);
    let mut places = BTreeMap::<String, u64>::new();
    let mut spooled = 0;
    let mut manifests = BTreeMap::<String, Vec<u8>>::new();
    let mut tar = tar::Archive::new(plain(&mut archive, limits)?);
    for entry in tar.entries().map_err(BundleError::Read)? {
        let mut entry = entry.map_err(read_error)?;
        let path = path_of(&entry.path_bytes())?;
        if path.is_empty() {
            continue;
        }
        match entry.header().entry_type() {
            EntryType::Directory => checker.folder(&path)?,
            EntryType::Symlink => {
                let target = target_of(&path, entry.link_name_bytes().as_deref())?;
                checker.add(path, Kind::Link { target })?;
            }
            EntryType::Link => {
                if is_manifest(&path) {
                    return Err(refuse(&path, "is a hard link; put the manifest itself there"));
                }
                // A second name of a file that came before: the bundle holds it twice.
                let target = target_of(&path, entry.link_name_bytes().as_deref())?;
                let of = path_of(target.as_bytes())?;
                let (Some(kind @ Kind::File { .. }), Some(place)) =
                    (checker.entries.get(&of).cloned(), places.get(&of).copied())
                else {
                    return Err(refuse(
                        &path,
                        "is a hard link to no file of the bundle; pack a copy",
                    ));
                };
                places.insert(path.clone(), place);
                checker.add(path, kind)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let bytes = entry.size();
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                places.insert(path.clone(), spooled);
                checker.add(path.clone(), Kind::File { bytes, executable })?;
                let copied = if is_manifest(&path) {
                    let mut text = Vec::new();
                    (&mut entry)
                        .take(MANIFEST_LIMIT + 1)
                        .read_to_end(&mut text)
                        .map_err(read_error)?;
                    if text.len() as u64 > MANIFEST_LIMIT {
                        return Err(refuse(&path, "is over 1 MiB; a manifest is a few lines"));
                    }
                    spool.write_all(&text).map_err(BundleError::Write)?;
                    let length = text.len() as u64;
                    manifests.insert(path.clone(), text);
                    length
                } else {
                    copy(&mut entry, &mut spool)?
                };
                if copied != bytes {
                    return Err(refuse(&path, "is cut short; pack the archive anew"));
                }
                spooled += copied;
            }
            // Headers for the entries after it, which the reader has dealt with.
            EntryType::XGlobalHeader | EntryType::XHeader => {}
            _ => {
                return Err(refuse(
                    &path,
                    "is neither a file nor a folder nor a link; leave it out of the bundle",
                ));
            }
        }
    }
    drop(tar);
    // What follows the end of the archive means nothing, and is not unpacked. But it has to come: who
    // breaks off there has not said that this is all.
    let rest = io::copy(&mut archive.take(limits.bytes.saturating_add(1)), &mut io::sink());
    if rest.map_err(read_error)? > limits.bytes {
        return Err(too_large(limits));
    }
    let text = |file: &str| match manifests.get(file) {
        Some(text) => std::str::from_utf8(text)
            .map(|text| Some(text.to_owned()))
            .map_err(|_| refuse(file, "is not UTF-8; save it as UTF-8")),
        None => Ok(None),
    };
    let has = |file: &str| matches!(checker.entries.get(file), Some(Kind::File { .. }));
    let manifest = Manifest::of_files(text, has)?;
    let mut spool = spool.into_inner().map_err(|error| BundleError::Write(error.into_error()))?;
    let mut writer = Writer::new(out);
    for (path, kind) in &checker.entries {
        match kind {
            Kind::Folder => writer.folder(path)?,
            Kind::Link { target } => writer.link(path, target)?,
            Kind::File { bytes, executable } => {
                let place = places.get(path).copied().unwrap_or_default();
                spool.seek(SeekFrom::Start(place)).map_err(BundleError::Read)?;
                writer.file(path, *bytes, *executable, &mut spool)?;
            }
        }
    }
    let (digest, bytes) = writer.finish()?;
    Ok(Packed { digest, manifest, bytes })
}

/// Unpacks a bundle, as [`pack_dir`] or [`canonicalise`] wrote it, into the empty folder `into`.
///
/// # Errors
///
/// [`BundleError`]; the folder's content is undefined then. [`BundleError::Damaged`] when the bytes
/// are not those of `digest`: nobody has to trust the way that they came.
pub fn unpack(bundle: impl Read, digest: &Digest, into: &Path) -> Result<(), BundleError> {
    let mut checker = Checker::new(Limits::default());
    let limited = Limited::new(bundle, checker.limits.bytes);
    let hashing =
        Hashing { inner: BufReader::with_capacity(64 << 10, limited), hash: Sha256::new() };
    let mut tar = tar::Archive::new(hashing);
    for entry in tar.entries().map_err(BundleError::Read)? {
        let mut entry = entry.map_err(read_error)?;
        let path = path_of(&entry.path_bytes())?;
        let place = into.join(&path);
        match entry.header().entry_type() {
            EntryType::Directory => {
                checker.folder(&path)?;
                match fs::create_dir(&place) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(BundleError::Write(error));
                    }
                    _ => set_mode(&place, 0o755)?,
                }
            }
            EntryType::Symlink => {
                let target = target_of(&path, entry.link_name_bytes().as_deref())?;
                checker.add(path, Kind::Link { target: target.clone() })?;
                std::os::unix::fs::symlink(target, &place).map_err(BundleError::Write)?;
            }
            EntryType::Regular => {
                let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
                checker.add(path, Kind::File { bytes: entry.size(), executable })?;
                let mode = if executable { 0o755 } else { 0o644 };
                let mut file = File::options()
                    .write(true)
                    .create_new(true)
                    .open(&place)
                    .map_err(BundleError::Write)?;
                set_mode(&place, mode)?;
                copy(&mut entry, &mut file)?;
            }
            _ => return Err(refuse(&path, "has no place in a bundle; publish it again")),
        }
    }
    let found = tar.into_inner().digest().map_err(BundleError::Read)?;
    if found != *digest {
        return Err(BundleError::Damaged { wanted: *digest, found });
    }
    set_mode(into, 0o755)
}

/// Whatever our umask is: sandboxes read it as other users.
fn set_mode(path: &Path, mode: u32) -> Result<(), BundleError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(BundleError::Write)
}

/// A bundle on its way in, for code that reads and waits. Call it on a thread that may block, while
/// the stream's own runtime goes on elsewhere.
pub fn reader(stream: BundleStream) -> impl Read + Send {
    StreamReader { stream: Some(stream), chunk: Bytes::new() }
}

/// The most that one piece of [`stream`] holds, bytes.
pub const PIECE: usize = 256 << 10;

/// A bundle on its way out, from what can be read: the counterpart of [`reader`]. It is read on
/// threads that may block, so the stream must be polled within a tokio runtime.
pub fn stream(tar: impl Read + Send + 'static) -> BundleStream {
    Box::pin(futures_util::stream::try_unfold(tar, |mut tar| async {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::new();
            (&mut tar).take(PIECE as u64).read_to_end(&mut piece)?;
            Ok((!piece.is_empty()).then(|| (Bytes::from(piece), tar)))
        });
        read.await?
    }))
}

/// What a path in a bundle names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Folder,
    File { bytes: u64, executable: bool },
    Link { target: String },
}

/// The entries so far, and whether the next one may join them.
struct Checker {
    limits: Limits,
    entries: BTreeMap<String, Kind>,
    bytes: u64,
}

impl Checker {
    fn new(limits: Limits) -> Self {
        Checker { limits, entries: BTreeMap::new(), bytes: 0 }
    }

    /// A folder may be named more than once.
    fn folder(&mut self, path: &str) -> Result<(), BundleError> {
        match self.entries.get(path) {
            Some(Kind::Folder) => Ok(()),
            Some(_) => Err(refuse(path, "is named twice, as a folder and as something else")),
            None => self.insert(path.to_owned(), Kind::Folder),
        }
    }

    fn add(&mut self, path: String, kind: Kind) -> Result<(), BundleError> {
        if self.entries.contains_key(&path) {
            return Err(refuse(&path, "is named twice; pack the folder anew"));
        }
        if let Kind::Link { target } = &kind {
            check_target(&path, target)?;
        }
        if is_manifest(&path) && !matches!(kind, Kind::File { .. }) {
            return Err(refuse(&path, "is no regular file; put the manifest itself there"));
        }
        if let Kind::File { bytes, .. } = kind {
            self.bytes = self.bytes.saturating_add(bytes);
            if self.bytes > self.limits.bytes {
                return Err(too_large(self.limits));
            }
        }
        self.insert(path, kind)
    }

    fn insert(&mut self, path: String, kind: Kind) -> Result<(), BundleError> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            match self.entries.get(parent) {
                Some(Kind::Folder) => {}
                Some(_) => {
                    let why = format!("lies below \"{parent}\", which is no folder");
                    return Err(refuse(&path, why));
                }
                // Some archives name files only.
                None => self.insert(parent.to_owned(), Kind::Folder)?,
            }
        }
        if self.entries.len() >= self.limits.entries {
            return Err(BundleError::TooLarge(format!(
                "it has more than {} files; deploy fewer, or pack them into one",
                self.limits.entries
            )));
        }
        self.entries.insert(path, kind);
        Ok(())
    }
}

/// Lists what is in a folder.
fn collect(dir: &Path, below: &str, found: &mut Checker) -> Result<(), BundleError> {
    let folder = dir.join(below);
    let named = |error: io::Error| match below {
        "" => BundleError::Read(error),
        below => refuse(below, format!("cannot be read ({error}); make it readable")),
    };
    for entry in fs::read_dir(&folder).map_err(named)? {
        let entry = entry.map_err(named)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(refuse(&name.to_string_lossy(), "has a name that is not UTF-8; rename it"));
        };
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if is_left_out(&path) {
            continue;
        }
        let metadata = entry.metadata().map_err(named)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            found.folder(&path)?;
            collect(dir, &path, found)?;
        } else if kind.is_file() {
            let executable = metadata.permissions().mode() & 0o111 != 0;
            found.add(path, Kind::File { bytes: metadata.len(), executable })?;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).map_err(named)?;
            let Some(target) = target.to_str() else {
                return Err(refuse(&path, "leads to a name that is not UTF-8; rename it"));
            };
            found.add(path, Kind::Link { target: target.to_owned() })?;
        } else {
            let why = "is neither a file nor a folder nor a link; move it out of the folder";
            return Err(refuse(&path, why));
        }
    }
    Ok(())
}

/// Reads an entry's path: relative, downwards, UTF-8. Empty for the archive's own folder, `./`.
fn path_of(bytes: &[u8]) -> Result<String, BundleError> {
    let lossy = || String::from_utf8_lossy(bytes).chars().take(200).collect::<String>();
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(refuse(&lossy(), "is a path that is not UTF-8; rename it"));
    };
    if text.starts_with('/') {
        return Err(refuse(&lossy(), "is an absolute path; pack with relative ones"));
    }
    let mut path = String::with_capacity(text.len());
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                return Err(refuse(&lossy(), "leads out of the bundle by \"..\"; pack without it"));
            }
            part if part.len() > 255 || part.contains('\0') => {
                return Err(refuse(&lossy(), "is a name that no file can have; rename it"));
            }
            part => {
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(part);
            }
        }
    }
    Ok(path)
}

fn target_of(path: &str, target: Option<&[u8]>) -> Result<String, BundleError> {
    let target = target.and_then(|target| std::str::from_utf8(target).ok());
    let target = target.filter(|target| !target.is_empty());
    target.map(str::to_owned).ok_or_else(|| refuse(path, "is a link without a valid target"))
}

/// See the module's documentation.
fn check_target(path: &str, target: &str) -> Result<(), BundleError> {
    let leads_out = |target: &str| {
        refuse(
            path,
            format!(
                "is a link that leads out of the bundle, to \"{target}\"; pack what it leads to"
            ),
        )
    };
    if target.starts_with('/') {
        return Err(leads_out(target));
    }
    let mut up = 0;
    let mut down = false;
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if down => {
                let why =
                    format!("is a link with \"..\" after a name, \"{target}\"; write it without");
                return Err(refuse(path, why));
            }
            ".." => up += 1,
            _ => down = true,
        }
    }
    if up > path.matches('/').count() {
        return Err(leads_out(target));
    }
    Ok(())
}

fn refuse(path: &str, why: impl Into<String>) -> BundleError {
    BundleError::Entry { path: path.to_owned(), why: why.into() }
}

fn too_large(limits: Limits) -> BundleError {
    BundleError::TooLarge(format!(
        "it is over {} MiB unpacked; deploy less, or fetch large data at run time",
        limits.bytes >> 20
    ))
}

/// The limit was reached inside of a decoder, which knows only I/O errors.
fn read_error(error: io::Error) -> BundleError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<OverLimit>()) {
        Some(OverLimit(bytes)) => too_large(Limits { bytes: *bytes, ..Limits::default() }),
        None => BundleError::Read(error),
    }
}

/// Tells apart whether reading or writing failed.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<u64, BundleError> {
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
fn plain<'a>(archive: impl Read + 'a, limits: Limits) -> Result<Box<dyn Read + 'a>, BundleError> {
    use std::io::BufRead;
    let mut archive = BufReader::with_capacity(64 << 10, archive);
    let start = archive.fill_buf().map_err(BundleError::Read)?;
    // Headers and padding count too, but a bundle at the limit must get through.
    let bytes = limits.bytes.saturating_add(1024 * limits.entries as u64);
    if start.starts_with(&[0x1f, 0x8b]) {
        let decoded = flate2::bufread::MultiGzDecoder::new(archive);
        return Ok(Box::new(Limited::new(decoded, bytes)));
    }
    Ok(Box::new(Limited::new(archive, bytes)))
}

/// Fails when more than a number of bytes come.
struct Limited<R> {
    inner: R,
    left: u64,
    limit: u64,
}

#[derive(Debug, Error)]
#[error("it is over the limit of {0} bytes")]
struct OverLimit(u64);

impl<R> Limited<R> {
    fn new(inner: R, limit: u64) -> Self {
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

/// Hashes what is read.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

impl<R: Read> Hashing<R> {
    /// The digest of everything, also of what a tar reader leaves unread after the last entry.
    fn digest(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_bytes(self.hash.finalize().into()))
    }
}

/// Writes a canonical tar and hashes it.
struct Writer<W: Write> {
    tar: tar::Builder<HashingWriter<W>>,
}

struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
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
    fn new(out: W) -> Self {
        let out = HashingWriter { inner: out, hash: Sha256::new(), bytes: 0 };
        Writer { tar: tar::Builder::new(out) }
    }

    fn folder(&mut self, path: &str) -> Result<(), BundleError> {
        let mut header = header(EntryType::Directory, 0, 0o755);
        // A folder's path ends with a slash, as tar programs write it.
        let result = self.tar.append_data(&mut header, format!("{path}/"), io::empty());
        result.map_err(BundleError::Write)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), BundleError> {
        let mut header = header(EntryType::Symlink, 0, 0o777);
        self.tar.append_link(&mut header, path, target).map_err(BundleError::Write)
    }

    fn file(
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

    fn finish(self) -> Result<(Digest, u64), BundleError> {
        let mut out = self.tar.into_inner().map_err(BundleError::Write)?;
        out.flush().map_err(BundleError::Write)?;
        Ok((Digest::from_bytes(out.hash.finalize().into()), out.bytes))
    }
}

struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

fn header(kind: EntryType, bytes: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// A stream as a reader: parks the thread until more comes.
struct StreamReader {
    /// `None` after its end: a reader may be asked again, a stream may not.
    stream: Option<BundleStream>,
    chunk: Bytes,
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        while self.chunk.is_empty() {
            let Some(stream) = &mut self.stream else { return Ok(0) };
            match Pin::new(stream).poll_next(&mut context) {
                Poll::Ready(Some(chunk)) => self.chunk = chunk?,
                Poll::Ready(None) => self.stream = None,
                Poll::Pending => std::thread::park(),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests;
