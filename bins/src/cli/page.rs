//! Writes the function's URL into the function's web page at `ol deploy`.
//!
//! A folder `static/` in a function's folder is such a page, opened as a file or from any server.
//! `config.json` in it is for pages from a server. `config.js` is for pages that are opened as files,
//! because a browser lets those read scripts only. Bundles leave both files out ([`PAGE_CONFIG`]), so a
//! deployment to another cluster is the same bundle.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use openlambda_core::bundle::PAGE_CONFIG;
use openlambda_core::files::read_regular;

use crate::error::{CliError, Result};

/// How a `config.js` of ours begins.
const SCRIPT_HEAD: &str = "// Written by `ol deploy`: where the function of this page is.\n";

/// The longest file of ours, bytes: an address and some words.
const LENGTH_LIMIT: u64 = 64 << 10;

/// A function's page.
#[derive(Debug)]
pub(super) struct Page {
    /// The function's folder.
    folder: PathBuf,
}

impl Page {
    /// The page of the function in this folder, if it has one.
    ///
    /// # Errors
    ///
    /// A file of the author's is where `ol deploy` writes: it would be overwritten, and the bundle
    /// would lack it.
    pub(super) fn of(folder: &Path) -> Result<Option<Page>> {
        if !folder.join("static").is_dir() {
            return Ok(None);
        }
        for (file, is_ours) in PAGE_CONFIG.into_iter().zip([is_our_json, is_our_script]) {
            let path = folder.join(file);
            match read_regular(&path, LENGTH_LIMIT) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(text) if is_ours(&text) => {}
                _ => {
                    return Err(CliError::new(format!(
                        "{} is a file of your own, and `ol deploy` writes the function's URL \
                         there; rename it",
                        path.display()
                    )));
                }
            }
        }
        Ok(Some(Page { folder: folder.to_owned() }))
    }

    /// Tells the page the function's URL.
    ///
    /// # Errors
    ///
    /// The folder cannot be written; the function is deployed nevertheless.
    pub(super) fn tell(&self, url: &str) -> io::Result<()> {
        let config = serde_json::json!({ "url": url });
        let texts =
            [format!("{config}\n"), format!("{SCRIPT_HEAD}window.OPENLAMBDA = {config};\n")];
        for (file, text) in PAGE_CONFIG.into_iter().zip(texts) {
            put(&self.folder.join(file), &text)?;
        }
        Ok(())
    }

    /// What to open in a browser.
    pub(super) fn index(&self) -> Option<PathBuf> {
        Some(self.folder.join("static/index.html")).filter(|index| index.exists())
    }
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
fn put(path: &Path, text: &str) -> io::Result<()> {
    if read_regular(path, LENGTH_LIMIT).is_ok_and(|before| before == text.as_bytes()) {
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
    fn the_url_is_written_and_a_file_of_somebody_s_own_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Page::of(folder.path()).unwrap().is_none());
        let file = |name: &str| folder.path().join("static").join(name);
        fs::create_dir(folder.path().join("static")).unwrap();
        for url in ["http://127.0.0.1:8080/run/f", "http://127.0.0.1:9/ns/a/run/f"] {
            Page::of(folder.path()).unwrap().unwrap().tell(url).unwrap();
            let json: serde_json::Value =
                serde_json::from_slice(&fs::read(file("config.json")).unwrap()).unwrap();
            assert_eq!(json, serde_json::json!({ "url": url }));
            let script = fs::read_to_string(file("config.js")).unwrap();
            assert!(script.ends_with(&format!("window.OPENLAMBDA = {{\"url\":\"{url}\"}};\n")));
        }
        assert_eq!(fs::read_dir(folder.path().join("static")).unwrap().count(), 2);
        for (name, text) in [("config.json", r#"{"theme": 1}"#), ("config.js", "let a = 1;")] {
            let ours = fs::read(file(name)).unwrap();
            fs::write(file(name), text).unwrap();
            let error = Page::of(folder.path()).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("rename it"), "{error}");
            assert_eq!(fs::read_to_string(file(name)).unwrap(), text);
            fs::write(file(name), ours).unwrap();
        }
        // Nor is what has no end, or never begins, read.
        fs::remove_file(file("config.json")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", file("config.json")).unwrap();
        assert!(Page::of(folder.path()).unwrap_err().to_string().contains("rename it"));
        fs::remove_file(file("config.json")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(file("config.json")).status();
        assert!(pipe.unwrap().success());
        assert!(Page::of(folder.path()).unwrap_err().to_string().contains("rename it"));
    }
}
