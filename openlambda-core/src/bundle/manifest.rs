//! The text of a bundle's manifest.

use std::io::Read;

use crate::manifest::{MANIFEST_FILES, MANIFEST_LIMIT};

/// The name and the text of the manifest in a bundle in canonical form, if there is one in it.
pub fn manifest_text(bundle: impl Read) -> Option<(&'static str, String)> {
    let mut tar = tar::Archive::new(bundle);
    for entry in tar.entries().ok()? {
        let entry = entry.ok()?;
        let path = entry.path_bytes();
        let found = MANIFEST_FILES.into_iter().find(|file| file.as_bytes() == &*path);
        drop(path);
        if let Some(file) = found {
            let mut text = String::new();
            entry.take(MANIFEST_LIMIT as u64).read_to_string(&mut text).ok()?;
            return Some((file, text));
        }
    }
    None
}
