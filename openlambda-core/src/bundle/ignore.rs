//! Which of a function's files are no part of its bundle: [`Ignore`].

use std::io::ErrorKind;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::error::{BundleError, refuse};
use crate::files::read_regular;

/// Names that [`pack_dir`](super::pack_dir) always leaves out, wherever they are: what tools leave behind, and what is not
/// the function's.
pub const LEFT_OUT: [&str; 7] =
    [".git", ".gitignore", ".hg", ".svn", "__pycache__", ".DS_Store", ".pytest_cache"];

/// What `ol deploy` writes beside a function's web page: where the function is. Each cluster has its
/// own, so it is no part of the bundle, whose digest is the same everywhere.
pub const PAGE_CONFIG: [&str; 2] = ["static/config.json", "static/config.js"];

/// Whether [`pack_dir`](super::pack_dir) always leaves out what is at this path below the function's folder: [`IGNORE_FILE`], [`PAGE_CONFIG`],
/// and wherever it is, what is named like one of [`LEFT_OUT`] or like what an editor keeps beside a
/// file for as long as it is open (`.f.py.swp`, `f.py~`, `.#f.py`, `#f.py#`), which would make every
/// look of a bundle another one.
pub fn is_left_out(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let editor = (name.starts_with('.') && (name.ends_with(".swp") || name.ends_with(".swx")))
        || (name.len() > 1 && name.ends_with('~'))
        || name.starts_with(".#")
        || (name.len() > 1 && name.starts_with('#') && name.ends_with('#'));
    editor || LEFT_OUT.contains(&name) || PAGE_CONFIG.contains(&path) || path == IGNORE_FILE
}

/// The file in a function's folder that says what else its bundle leaves out, in the syntax of `.gitignore`.
/// A pattern after `!` takes back one before it, or one of [`USUALLY_LEFT_OUT`].
pub const IGNORE_FILE: &str = ".olignore";

/// What bundles leave out unless [`IGNORE_FILE`] says otherwise, in its syntax: virtual environments, secrets of
/// the author's machine, caches, results of builds, and what editors and tools keep.
pub const USUALLY_LEFT_OUT: [&str; 26] = [
    ".venv/",
    "venv/",
    ".env",
    ".env.*",
    ".envrc",
    ".npmrc",
    ".pypirc",
    ".netrc",
    ".tox/",
    ".nox/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".hypothesis/",
    ".ipynb_checkpoints/",
    ".coverage",
    "**/node_modules/.cache/",
    ".npm/",
    "**/.yarn/cache/",
    "/target/",
    ".aws-sam/",
    ".serverless/",
    ".idea/",
    ".vscode/",
    "*.sublime-workspace",
    "*.swo",
    ".direnv/",
];

/// The longest [`IGNORE_FILE`], bytes.
const IGNORE_LIMIT: u64 = 64 << 10;

/// Says of each path in a function's folder whether its bundle leaves it out.
#[derive(Clone, Debug)]
pub struct Ignore {
    patterns: Gitignore,
}

impl Ignore {
    /// What holds in this folder.
    ///
    /// # Errors
    ///
    /// [`BundleError::Entry`]: its [`IGNORE_FILE`] cannot be read, or a line of it is no pattern.
    pub fn of(folder: &Path) -> Result<Ignore, BundleError> {
        let own = match read_regular(&folder.join(IGNORE_FILE), IGNORE_LIMIT) {
            Ok(text) => String::from_utf8(text)
                .map_err(|_| refuse(IGNORE_FILE, "is not UTF-8; write it as plain text"))?,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                String::new()
            }
            Err(error) => {
                return Err(refuse(
                    IGNORE_FILE,
                    format!("cannot be read ({error}); make it readable"),
                ));
            }
        };
        let usual = USUALLY_LEFT_OUT.iter().map(|pattern| (None, *pattern));
        let own = own.trim_start_matches('\u{feff}').lines().zip(1..);
        let own = own.map(|(line, number)| (Some(number), line));
        // Paths are told relative to the folder, so it is the root, wherever it is.
        let mut patterns = GitignoreBuilder::new("");
        for (number, line) in usual.chain(own) {
            patterns.add_line(None, line).map_err(|error| wrong(number, line, &error))?;
        }
        let patterns = patterns.build().map_err(|error| wrong(None, "", &error))?;
        Ok(Ignore { patterns })
    }

    /// Whether the bundle leaves out what is at this path below the function's folder: what
    /// [`is_left_out`] names, and what the patterns say. Whoever walks the folder asks of each folder before
    /// what is in it.
    pub fn leaves_out(&self, path: &str, is_folder: bool) -> bool {
        is_left_out(path) || self.patterns_leave_out(path, is_folder)
    }

    /// Whether another bundle may come of another file at this path: one that is not left out, or that says
    /// what is.
    pub fn matters(&self, path: &str, is_folder: bool) -> bool {
        path == IGNORE_FILE || !self.leaves_out(path, is_folder)
    }

    /// What holds in a folder whose own patterns cannot be used: packing says why.
    #[must_use]
    pub fn usual() -> Ignore {
        Ignore::of(Path::new("/dev/null")).unwrap_or(Ignore { patterns: Gitignore::empty() })
    }

    /// Whether the patterns do.
    pub(super) fn patterns_leave_out(&self, path: &str, is_folder: bool) -> bool {
        path != IGNORE_FILE && self.patterns.matched(path, is_folder).is_ignore()
    }
}

fn wrong(line: Option<u32>, pattern: &str, error: &ignore::Error) -> BundleError {
    let place = line.map_or_else(String::new, |line| format!(", line {line}: "));
    let why = format!("{place}\"{pattern}\" is no pattern ({error}); write it as in .gitignore");
    refuse(IGNORE_FILE, why)
}
