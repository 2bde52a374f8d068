//! Bundles: a function's code and manifest as one content-addressed archive.
//!
//! A bundle is a tar in *canonical form*, so that its [`Digest`] depends on its content alone and not
//! on who packed it, when, or on which machine:
//!
//! * entries in order of their paths' bytes, every folder before its content;
//! * folders (mode 755), regular files (644, or 755 when an execute bit is set) and symbolic links;
//!   owner 0, group 0, time 0, no user names;
//! * GNU headers, with the GNU extension for paths over 100 bytes.
//!
//! [`pack_dir`] makes a bundle from a folder, [`canonicalise`] from any tar, plain or gzipped, and
//! [`unpack`] turns one into a folder again. All three refuse entries that could do harm outside of
//! that folder: absolute paths, `..`, links that lead out, devices, two entries with one path, and more
//! than [`Limits`] allow. They also refuse what some worker could not store: paths over 2,048 bytes,
//! names over 255, over 128 nested folders. A refusal names the entry and the reason.
//!
//! An archive may come from anybody. So its parts are bounded in size and depth before they are read
//! into memory or walked: descriptions of an entry (1 MiB), all names together (16 MiB), a manifest
//! ([`MANIFEST_LIMIT`](crate::manifest::MANIFEST_LIMIT)).
//!
//! # Why a link cannot lead out
//!
//! A link's target is relative. `..` may stand only at its beginning, at most as often as the link is
//! deep. No entry's path goes through a link, so a link's folder is a real folder, and so is each folder
//! that `..` reaches. The rest of the target only goes down, perhaps through other links, for which the
//! same holds. (A `..` after a name could lead out: the name could be a link to a less deep folder.)

mod archive;
mod canonical;
mod describe;
mod entries;
mod error;
mod ignore;
mod limits;
mod list;
mod manifest;
mod pack;
mod stream;
#[cfg(test)]
mod tests;
mod unpack;
mod write;

pub use canonical::canonicalise;
pub use entries::{DEPTH_LIMIT, PATH_LIMIT};
pub use error::BundleError;
pub use ignore::{IGNORE_FILE, Ignore, LEFT_OUT, PAGE_CONFIG, USUALLY_LEFT_OUT, is_left_out};
pub use limits::Limits;
pub use list::files_in;
pub use manifest::manifest_text;
pub use pack::{pack_dir, pack_dir_telling};
pub use stream::{PIECE, Pace, spool, stream};
pub use unpack::unpack;

use crate::function::Digest;
use crate::manifest::Manifest;

/// A bundle that was packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Its digest.
    pub digest: Digest,
    /// Its manifest, complete.
    pub manifest: Manifest,
    /// The size of its tar, bytes.
    pub bytes: u64,
    /// What [patterns](Ignore) have left out, in order; a folder ends with `/`, and stands for all that is in
    /// it.
    pub left_out: Vec<String>,
}
