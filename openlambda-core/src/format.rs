//! The format numbers of data on disk, by which a release knows what another release wrote.
//!
//! A folder that outlives the release that made it names its format in the file [`FILE`]:
//!
//! ```text
//! {"kind":"registry store","format":2,"release":"0.1.0"}
//! ```
//!
//! A release reads all formats up to its own. It refuses a later one before it changes anything, and says
//! which release wrote it. A folder without that file has format 1, since early releases did not write
//! the file. Lines of JSON carry a number instead, [`FormatNumber`].
//!
//! # To change a format
//!
//! Under the folder's lock: [`check`](Format::check) the present format, [`mark`](Format::mark) the folder
//! with the new number, and only then change it. So after a crash in between, a release is either refused
//! or knows that the change is not complete.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::files::read_regular;

/// This release: what `make dist` names it, from `git describe`, else the package's version.
pub const RELEASE: &str = match option_env!("OPENLAMBDA_VERSION") {
    Some(release) => release,
    None => env!("CARGO_PKG_VERSION"),
};

/// The file that says in which format its folder is: one line of JSON, in this form for good. Keys may
/// be added.
pub const FILE: &str = "FORMAT";

/// The longest such file, bytes.
const LENGTH_LIMIT: u64 = 64 << 10;

/// A kind of folder, and the latest format of it that this release reads, which is also the one that
/// it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// What such a folder is called: `data folder`.
    pub kind: &'static str,
    /// The format's number, from 1.
    pub number: u32,
}

/// What a [`FILE`] says.
#[derive(Serialize, Deserialize)]
struct Said {
    kind: String,
    format: u32,
    /// The release that brought the folder into this format.
    #[serde(default)]
    release: String,
}

impl Format {
    /// The format that the folder says it has; `None` when it says nothing, or is not there. Changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`FormatError`]: above all that it is later than this release can read.
    pub fn check(&self, folder: &Path) -> Result<Option<u32>, FormatError> {
        let path = folder.join(FILE);
        let text = match read_regular(&path, LENGTH_LIMIT) {
            Ok(text) => text,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(source) => return Err(FormatError::Io { path, source }),
        };
        let said: Said = serde_json::from_slice(&text)
            .map_err(|source| FormatError::Unreadable { path, source })?;
        let folder = folder.to_owned();
        if said.kind != self.kind {
            return Err(FormatError::Other { folder, found: said.kind, wanted: self.kind });
        }
        if said.format > self.number {
            let release = Some(said.release).filter(|release| !release.is_empty());
            return Err(self.later(folder, said.format, release));
        }
        Ok(Some(said.format))
    }

    /// Writes into the folder that it has this format, unless it says so already. A crash leaves it
    /// saying what it did before.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check), and that the file cannot be written.
    pub fn mark(&self, folder: &Path) -> Result<(), FormatError> {
        if self.check(folder)? == Some(self.number) {
            return Ok(());
        }
        let said =
            Said { kind: self.kind.to_owned(), format: self.number, release: RELEASE.to_owned() };
        let (path, temporary) = (folder.join(FILE), folder.join(format!("{FILE}.new")));
        let write = || {
            // What a crash has left, or somebody has put there, is not written through.
            match fs::remove_file(&temporary) {
                Err(error) if !is_missing(&error) => return Err(error),
                _ => {}
            }
            // Its user's alone, as what is beside it.
            let mut options = File::options();
            options.write(true).create_new(true).mode(0o600);
            let mut file = options.open(&temporary)?;
            serde_json::to_writer(&mut file, &said)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(folder)?.sync_all()
        };
        write().map_err(|source| FormatError::Io { path: path.clone(), source })
    }

    /// That `folder` is in a later format, `found`, than this release reads; `release` wrote it.
    pub fn later(&self, folder: PathBuf, found: u32, release: Option<String>) -> FormatError {
        let Format { kind, number } = *self;
        FormatError::Later { folder, kind, found, reads: number, release }
    }
}

/// No such file, or no such folder.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Why a folder is not used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A later release wrote it.
    #[error(
        "{} is a {kind} of format {found}, written by {}; this is release {RELEASE}, which reads \
         formats up to {reads}: use {}, or another folder (nothing was changed)",
        folder.display(),
        release.as_ref().map_or("a later release".to_owned(), |release| format!("release {release}")),
        release.as_ref().map_or("that one".to_owned(), |release| format!("release {release} or a later one")),
    )]
    Later {
        /// The folder.
        folder: PathBuf,
        /// What it is.
        kind: &'static str,
        /// Its format.
        found: u32,
        /// The latest that this release reads.
        reads: u32,
        /// Who wrote it, where that is known.
        release: Option<String>,
    },
    /// It is something else.
    #[error("{} is a {found} and no {wanted}; use another folder", folder.display())]
    Other {
        /// The folder.
        folder: PathBuf,
        /// What it says that it is.
        found: String,
        /// What it was to be.
        wanted: &'static str,
    },
    /// The file is not what releases write.
    #[error(
        "{} cannot be understood, so nobody knows who wrote the folder; if no later release has used \
         it, remove that file",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The file cannot be read or written.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The number of a format in a line of JSON, `N` for lines that this release writes. Lines without it
/// have format 1; one that is later than `N` is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormatNumber<const N: u32>;

impl<const N: u32> Serialize for FormatNumber<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(N)
    }
}

impl<'de, const N: u32> Deserialize<'de> for FormatNumber<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            found if found <= N => Ok(FormatNumber),
            found => Err(serde::de::Error::custom(format_args!(
                "it has format {found}, of a later release; release {RELEASE} reads formats up to {N}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUPBOARD: Format = Format { kind: "cupboard", number: 2 };

    #[test]
    fn a_folder_says_its_format_and_a_later_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, file) = (folder.path(), folder.path().join(FILE));
        assert_eq!(CUPBOARD.check(folder).unwrap(), None);
        assert_eq!(CUPBOARD.check(&folder.join("missing")).unwrap(), None);
        Format { number: 1, ..CUPBOARD }.mark(folder).unwrap();
        assert_eq!(CUPBOARD.check(folder).unwrap(), Some(1));
        CUPBOARD.mark(folder).unwrap();
        assert_eq!(CUPBOARD.check(folder).unwrap(), Some(2));
        let text = format!("{{\"kind\":\"cupboard\",\"format\":2,\"release\":\"{RELEASE}\"}}\n");
        assert_eq!(fs::read_to_string(&file).unwrap(), text);

        for (text, expected) in [
            (
                r#"{"kind": "cupboard", "format": 3, "release": "9.9.9", "more": 1}"#,
                "format 3, written by release 9.9.9",
            ),
            (r#"{"kind": "cupboard", "format": 3}"#, "written by a later release"),
            (r#"{"kind": "wardrobe", "format": 1}"#, "is a wardrobe and no cupboard"),
            ("", "remove that file"),
        ] {
            fs::write(&file, text).unwrap();
            let checked = CUPBOARD.check(folder).unwrap_err().to_string();
            assert!(checked.contains(expected), "{checked}");
            CUPBOARD.mark(folder).unwrap_err();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_file_in_its_place_is_neither_read_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let pipe = || std::process::Command::new("mkfifo").arg(&file).status().unwrap();
        assert!(pipe().success());
        let refused = || {
            let error = crate::failure::chain(&CUPBOARD.check(folder.path()).unwrap_err());
            CUPBOARD.mark(folder.path()).unwrap_err();
            error
        };
        assert!(refused().contains("no regular file"), "{}", refused());
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        assert!(refused().contains("no regular file"), "{}", refused());
        fs::remove_file(&file).unwrap();
        fs::write(&file, vec![b' '; 1 << 20]).unwrap();
        assert!(refused().contains("over 64 KiB"), "{}", refused());
    }

    /// What a crash can leave at each step of writing the file.
    #[test]
    fn a_folder_whose_mark_was_half_written_is_marked_again() {
        let folder = tempfile::tempdir().unwrap();
        for left in ["", "{\"kind\":\"cup"] {
            fs::write(folder.path().join("FORMAT.new"), left).unwrap();
            CUPBOARD.mark(folder.path()).unwrap();
            assert_eq!(CUPBOARD.check(folder.path()).unwrap(), Some(2));
            assert!(!folder.path().join("FORMAT.new").exists());
            fs::remove_file(folder.path().join(FILE)).unwrap();
        }
        // Nor does a link in its place lead anywhere.
        let outside = folder.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        std::os::unix::fs::symlink(&outside, folder.path().join("FORMAT.new")).unwrap();
        CUPBOARD.mark(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "kept");
        assert_eq!(CUPBOARD.check(folder.path()).unwrap(), Some(2));
    }

    #[test]
    fn a_line_without_a_number_is_of_format_1_and_a_later_one_is_refused() {
        #[derive(Debug, Serialize, Deserialize)]
        struct Line {
            #[serde(default)]
            v: FormatNumber<1>,
        }
        assert_eq!(serde_json::to_string(&Line { v: FormatNumber }).unwrap(), r#"{"v":1}"#);
        serde_json::from_str::<Line>("{}").unwrap();
        serde_json::from_str::<Line>(r#"{"v": 1}"#).unwrap();
        let later = serde_json::from_str::<Line>(r#"{"v": 2}"#).unwrap_err().to_string();
        assert!(later.starts_with("it has format 2, of a later release"), "{later}");
    }
}
