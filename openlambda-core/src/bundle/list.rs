//! What is in a bundle.

use std::io::{self, Read};

/// The paths of the files and links in a bundle in canonical form, in its order.
///
/// # Errors
///
/// It is no archive.
pub fn files_in(bundle: impl Read) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(bundle).entries()? {
        let entry = entry?;
        if !entry.header().entry_type().is_dir() {
            files.push(String::from_utf8_lossy(&entry.path_bytes()).into_owned());
        }
    }
    Ok(files)
}
