//! Which entries a bundle may have: their paths, links and number.

use std::collections::BTreeMap;

use super::error::{BundleError, refuse};
use super::limits::{Limits, is_manifest, too_large};

/// What a path in a bundle names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File { bytes: u64, executable: bool },
    Link { target: String },
}

/// The longest path, and the longest target of a link, bytes. The kernel takes 4,096 with the folder
/// in front that the bundle is unpacked into, which is another one on each worker.
pub const PATH_LIMIT: usize = 2048;

/// The most parts of a path.
pub const DEPTH_LIMIT: usize = 128;

/// What all paths and targets of one bundle may take together, bytes: they are held in memory.
pub(super) const NAMES_LIMIT: usize = 16 << 20;

/// The unit of a tar, bytes.
const BLOCK: u64 = 512;

/// What an entry takes in the canonical tar, bytes, as the [`Writer`](super::write::Writer) writes it: a
/// worker unpacks the whole of it, and has the same limit.
fn takes(path: &str, kind: &Kind) -> u64 {
    // A name that does not fit into the header has an entry of its own, and a zero behind it.
    let name = |length: usize| match length {
        0..=100 => 0,
        long => BLOCK + (long as u64 + 1).next_multiple_of(BLOCK),
    };
    let more = match kind {
        Kind::Folder => name(path.len() + 1),
        Kind::File { bytes, .. } => {
            let content = bytes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            content.saturating_add(name(path.len()))
        }
        Kind::Link { target } => name(path.len()) + name(target.len()),
    };
    more.saturating_add(BLOCK)
}

/// The entries so far, and whether the next one may join them.
pub(super) struct Checker {
    pub(super) limits: Limits,
    pub(super) entries: BTreeMap<String, Kind>,
    /// What they take in the canonical tar, with its end.
    pub(super) bytes: u64,
    /// What the paths and targets take.
    names: usize,
}

impl Checker {
    pub(super) fn new(limits: Limits) -> Self {
        Checker { limits, entries: BTreeMap::new(), bytes: 2 * BLOCK, names: 0 }
    }

    /// A folder may be named more than once.
    pub(super) fn folder(&mut self, path: &str) -> Result<(), BundleError> {
        match self.entries.get(path) {
            Some(Kind::Folder) => Ok(()),
            Some(_) => Err(refuse(path, "is named twice, as a folder and as something else")),
            None => self.insert(path.to_owned(), Kind::Folder),
        }
    }

    pub(super) fn add(&mut self, path: String, kind: Kind) -> Result<(), BundleError> {
        if self.entries.contains_key(&path) {
            return Err(refuse(&path, "is named twice; pack the folder anew"));
        }
        if let Kind::Link { target } = &kind {
            check_target(&path, target)?;
        }
        self.insert(path, kind)
    }

    /// Some archives name files only: the folders that lead to one are made here. What a path may be
    /// was looked at before ([`path_of`]), so there are few of them.
    fn insert(&mut self, path: String, kind: Kind) -> Result<(), BundleError> {
        let parents = path.match_indices('/').map(|(end, _)| &path[..end]);
        let mut missing = Vec::new();
        for parent in parents.rev() {
            match self.entries.get(parent) {
                Some(Kind::Folder) => break,
                Some(_) => {
                    let why = format!("lies below \"{parent}\", which is no folder");
                    return Err(refuse(&path, why));
                }
                None => missing.push(parent.to_owned()),
            }
        }
        let missing = missing.into_iter().map(|parent| (parent, Kind::Folder));
        for (path, kind) in missing.chain([(path, kind)]) {
            if self.entries.len() >= self.limits.entries {
                return Err(BundleError::TooLarge(format!(
                    "it has more than {} files; deploy fewer, or pack them into one",
                    self.limits.entries
                )));
            }
            if is_manifest(&path) && !matches!(kind, Kind::File { .. }) {
                return Err(refuse(&path, "is no regular file; put the manifest itself there"));
            }
            self.bytes = self.bytes.saturating_add(takes(&path, &kind));
            if self.bytes > self.limits.bytes {
                return Err(too_large(self.limits));
            }
            self.names += path.len();
            if let Kind::Link { target } = &kind {
                self.names += target.len();
            }
            if self.names > NAMES_LIMIT {
                return Err(BundleError::TooLarge(format!(
                    "its files' paths are over {} MiB together; give them shorter names, or pack \
                     them into one",
                    NAMES_LIMIT >> 20
                )));
            }
            self.entries.insert(path, kind);
        }
        Ok(())
    }
}

/// Whether the path of an entry can be stored wherever the bundle is unpacked. Looked at before a
/// path is taken apart.
fn check_path(path: &[u8]) -> Result<(), BundleError> {
    let why = if path.len() > PATH_LIMIT {
        format!("is a path of {} bytes; {PATH_LIMIT} is the most, so rename it", path.len())
    } else if path.split(|byte| *byte == b'/').count() > DEPTH_LIMIT {
        format!("is over {DEPTH_LIMIT} folders deep; move it up")
    } else {
        return Ok(());
    };
    let shown = String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    Err(refuse(&shown, why))
}

/// Reads an entry's path: relative, downwards, UTF-8. Empty for the archive's own folder, `./`.
///
/// # Errors
///
/// It is something else, or nothing that every worker could store: see [`PATH_LIMIT`] and
/// [`DEPTH_LIMIT`].
pub(super) fn path_of(bytes: &[u8]) -> Result<String, BundleError> {
    check_path(bytes)?;
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

pub(super) fn target_of(path: &str, target: Option<&[u8]>) -> Result<String, BundleError> {
    let target = target.and_then(|target| std::str::from_utf8(target).ok());
    let fits = |target: &&str| !target.is_empty() && target.len() <= PATH_LIMIT;
    let target = target.filter(fits).filter(|target| !target.contains('\0'));
    target.map(str::to_owned).ok_or_else(|| refuse(path, "is a link without a valid target"))
}

/// See the module's documentation.
pub(super) fn check_target(path: &str, target: &str) -> Result<(), BundleError> {
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
