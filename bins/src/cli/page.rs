//! Puts a function's web page, with the function's URL, into the cluster's folder at `ol deploy`.
//!
//! A folder `static/` in a function's folder is such a page, opened as a file or from any server. It is copied
//! to `pages/<namespace>/<function>` of the cluster's folder, and `config.json` and `config.js` there say
//! where the function is; the author's folder is not written to. `config.json` is for pages from a server,
//! `config.js` for pages that are opened as files, because a browser lets those read scripts only. Bundles
//! leave both names out ([`PAGE_CONFIG`]), so a deployment to another cluster is the same bundle.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use openlambda_core::bundle::{Ignore, PAGE_CONFIG};
use openlambda_core::files::read_regular;

use crate::error::{CliError, Result};

/// How a `config.js` of ours begins.
const SCRIPT_HEAD: &str = "// Written by `ol deploy`: where the function of this page is.\n";

/// The longest file of ours, bytes: an address and some words.
const LENGTH_LIMIT: u64 = 64 << 10;

/// A function's page.
#[derive(Debug)]
pub(super) struct Page {
    /// The author's, which is read.
    source: PathBuf,
    ignore: Ignore,
    /// The cluster's copy.
    copy: PathBuf,
}

impl Page {
    /// The page of the function in this folder, if it has one, and where its copy goes.
    ///
    /// # Errors
    ///
    /// A file of the author's has a name that a page's URL is written to: the copy and the bundle would lack
    /// it.
    pub(super) fn of(folder: &Path, copy: PathBuf) -> Result<Option<Page>> {
        let source = folder.join("static");
        if !source.is_dir() {
            return Ok(None);
        }
        for (file, is_ours) in PAGE_CONFIG.into_iter().zip([is_our_json, is_our_script]) {
            let path = folder.join(file);
            match read_regular(&path, LENGTH_LIMIT) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Ok(text) if is_ours(&text) => {}
                _ => {
                    return Err(CliError::new(format!(
                        "{} is a file of your own, and a page finds the function's URL under that \
                         name; rename it",
                        path.display()
                    )));
                }
            }
        }
        let ignore = Ignore::of(folder).unwrap_or_else(|_| Ignore::usual());
        Ok(Some(Page { source, ignore, copy }))
    }

    /// Brings the copy up to date, and tells it the function's URL.
    ///
    /// # Errors
    ///
    /// It cannot be written; the function is deployed nevertheless.
    pub(super) fn publish(&self, url: &str) -> io::Result<()> {
        let mut folders = vec![PathBuf::new()];
        while let Some(below) = folders.pop() {
            let (from, to) = (self.source.join(&below), self.copy.join(&below));
            make_way(&to, true)?;
            fs::create_dir_all(&to)?;
            let mut kept: Vec<OsString> = Vec::new();
            for entry in fs::read_dir(from)?.flatten() {
                let name = entry.file_name();
                let path = below.join(&name);
                // What a link leads to is read: the copy is not where the link is.
                let Ok(metadata) = fs::metadata(entry.path()) else { continue };
                if is_config(&path) || self.leaves_out(&path, metadata.is_dir()) {
                    continue;
                }
                if metadata.is_dir() && !entry.path().is_symlink() {
                    folders.push(path);
                } else if metadata.is_file() {
                    make_way(&to.join(&name), false)?;
                    put(&to.join(&name), &fs::read(entry.path())?)?;
                } else {
                    continue;
                }
                kept.push(name);
            }
            for entry in fs::read_dir(&to)?.flatten() {
                let name = entry.file_name();
                // Another deployment may be writing what ends so.
                let temporary = name.as_encoded_bytes().ends_with(b"~");
                if !kept.contains(&name) && !temporary && !is_config(&below.join(&name)) {
                    remove(&entry.path())?;
                }
            }
        }
        let config = serde_json::json!({ "url": url });
        let texts =
            [format!("{config}\n"), format!("{SCRIPT_HEAD}window.OPENLAMBDA = {config};\n")];
        for (file, text) in PAGE_CONFIG.into_iter().zip(texts) {
            let name = Path::new(file).file_name().unwrap_or_default();
            put(&self.copy.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// Whether a path in `static/` is no part of the page, as it is none of the bundle.
    fn leaves_out(&self, path: &Path, is_folder: bool) -> bool {
        let path = Path::new("static").join(path);
        path.to_str().is_none_or(|path| self.ignore.leaves_out(path, is_folder))
    }

    /// Where the copy is.
    pub(super) fn folder(&self) -> &Path {
        &self.copy
    }

    /// What to open in a browser.
    pub(super) fn index(&self) -> Option<PathBuf> {
        Some(self.copy.join("index.html")).filter(|index| index.exists())
    }
}

/// Removes what is there if it is not a folder where one goes, or the other way round.
fn make_way(path: &Path, folder: bool) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() != folder => remove(path),
        _ => Ok(()),
    }
}

/// Removes a file or a folder, which may be gone already.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        _ => fs::remove_file(path),
    };
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Whether a path in `static/` is one of [`PAGE_CONFIG`].
fn is_config(path: &Path) -> bool {
    PAGE_CONFIG.iter().any(|file| Path::new("static").join(path) == Path::new(file))
}

fn is_our_json(text: &[u8]) -> bool {
    let value = serde_json::from_slice::<serde_json::Value>(text).ok();
    let fields = value.as_ref().and_then(|value| value.as_object());
    let Some(fields) = fields.filter(|fields| fields.len() == 1) else { return false };
    fields.get("url").is_some_and(|url| url.is_string())
}

fn is_our_script(text: &[u8]) -> bool {
    text.starts_with(SCRIPT_HEAD.as_bytes())
}

/// Whole or not at all: a browser may be reading it, and another deployment writing.
fn put(path: &Path, text: &[u8]) -> io::Result<()> {
    if read_regular(path, text.len() as u64).is_ok_and(|before| before == text) {
        return Ok(());
    }
    let mut name = path.as_os_str().to_owned();
    // A name that bundles leave out.
    name.push(format!(".{}~", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_the_url_and_the_author_s_folder_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("pages/default/f");
        let page = || Page::of(folder.path(), copy.clone());
        assert!(page().unwrap().is_none());
        let file = |name: &str| folder.path().join("static").join(name);
        fs::create_dir_all(file("art/old")).unwrap();
        for (name, text) in
            [("index.html", "<p>"), ("art/a.svg", "<svg>"), ("art/old/b.svg", "<svg>")]
        {
            fs::write(file(name), text).unwrap();
        }
        for url in ["http://127.0.0.1:8080/run/f", "http://127.0.0.1:9/ns/a/run/f"] {
            page().unwrap().unwrap().publish(url).unwrap();
            let json: serde_json::Value =
                serde_json::from_slice(&fs::read(copy.join("config.json")).unwrap()).unwrap();
            assert_eq!(json, serde_json::json!({ "url": url }));
            let script = fs::read_to_string(copy.join("config.js")).unwrap();
            assert!(script.ends_with(&format!("window.OPENLAMBDA = {{\"url\":\"{url}\"}};\n")));
        }
        assert_eq!(fs::read_to_string(copy.join("art/old/b.svg")).unwrap(), "<svg>");
        assert_eq!(fs::read_dir(file("")).unwrap().count(), 2);
        // What is gone is gone in the copy, too, and nothing else is.
        fs::remove_dir_all(file("art/old")).unwrap();
        fs::write(file("index.html"), "<p>2").unwrap();
        page().unwrap().unwrap().publish("http://x/").unwrap();
        assert!(!copy.join("art/old").exists() && copy.join("art/a.svg").exists());
        assert_eq!(fs::read_to_string(copy.join("index.html")).unwrap(), "<p>2");
        // A file in a folder's place, and the other way round; and what bundles leave out.
        fs::remove_dir_all(file("art")).unwrap();
        fs::write(file("art"), "").unwrap();
        fs::remove_file(file("index.html")).unwrap();
        fs::create_dir(file("index.html")).unwrap();
        fs::write(file(".env"), "KEY=1").unwrap();
        fs::write(file("notes.txt"), "").unwrap();
        fs::write(folder.path().join(".olignore"), "*.txt").unwrap();
        page().unwrap().unwrap().publish("http://x/").unwrap();
        assert!(copy.join("art").is_file() && copy.join("index.html").is_dir());
        assert!(!copy.join(".env").exists() && !copy.join("notes.txt").exists());

        // An earlier release wrote its own beside the author's files; one of the author's is not passed over.
        fs::write(file("config.json"), r#"{"url": "http://old/"}"#).unwrap();
        assert!(page().is_ok());
        for (name, text) in [("config.json", r#"{"theme": 1}"#), ("config.js", "let a = 1;")] {
            fs::write(file(name), text).unwrap();
            let error = page().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("rename it"), "{error}");
            fs::remove_file(file(name)).unwrap();
        }
        // Nor is what has no end, or never begins, read.
        std::os::unix::fs::symlink("/dev/zero", file("config.json")).unwrap();
        assert!(page().unwrap_err().to_string().contains("rename it"));
        fs::remove_file(file("config.json")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(file("config.json")).status();
        assert!(pipe.unwrap().success());
        assert!(page().unwrap_err().to_string().contains("rename it"));
    }
}
