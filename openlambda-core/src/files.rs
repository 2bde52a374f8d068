//! Reads files that somebody else may have put there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Reads a regular file of at most `most` bytes. Anything else in its place is not opened: a link would be
/// followed, a pipe waited for, a device read for ever. Whoever can put something else there between the
/// look and the opening can make it wait, but not read on.
///
/// # Errors
///
/// There is no such file; it is no regular file, or is longer; it cannot be read.
pub fn read_regular(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let refuse = |why: String| Err(io::Error::new(io::ErrorKind::InvalidData, why));
    let found = fs::symlink_metadata(path)?;
    if !found.is_file() {
        return refuse("it is no regular file; put the file itself there".to_owned());
    }
    let file = File::open(path)?;
    let opened = file.metadata()?;
    if (opened.dev(), opened.ino()) != (found.dev(), found.ino()) {
        return refuse("it was replaced while it was opened; try again".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return refuse(format!("it is over {} KiB", most >> 10));
    }
    Ok(bytes)
}

/// Opens a file of this user's own as `options` say, and makes it one that nobody else can read.
///
/// # Errors
///
/// It cannot be opened; it is a link, no file, another user's, or has another name elsewhere.
#[cfg(feature = "serving")]
pub fn open_private(path: &Path, options: &mut fs::OpenOptions) -> io::Result<File> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    use rustix::fs::OFlags;

    // A pipe in its place would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.mode(0o600).custom_flags(flags.bits() as i32).open(path)?;
    let found = file.metadata()?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    if !found.is_file() || found.nlink() > 1 || !own {
        return Err(io::Error::other("it is no file of this user's alone; remove it"));
    }
    if found.mode() & 0o7777 != 0o600 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_length_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), [7; 1024]).unwrap();
        assert_eq!(read_regular(&at("file"), 1024).unwrap(), [7; 1024]);
        let error = read_regular(&at("file"), 1023).unwrap_err();
        assert!(error.to_string().contains("over 0 KiB"), "{error}");
        assert_eq!(read_regular(&at("none"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
        let pipe = std::process::Command::new("mkfifo").arg(at("pipe")).status();
        assert!(pipe.unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        for (name, path) in [("pipe", at("pipe")), ("zero", at("zero")), ("link", at("link"))] {
            let error = read_regular(&path, 9000).unwrap_err();
            assert!(error.to_string().contains("no regular file"), "{name}: {error}");
        }
        let error = read_regular(folder.path(), 9000).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }
}
