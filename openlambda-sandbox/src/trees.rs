//! Removes folders that functions have written, or changes their owner, however deep they are.
//!
//! A function can nest folders deeper than a path may be long, than a stack allows, and than there may be
//! open descriptors; and it may still be moving them. So these walks neither recurse nor build paths: they
//! hold one folder at a time, go down by name without following links, and up by `..`, which counts only
//! if it is the folder that they came from.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, Gid, Mode, OFlags, Uid, chmod, chownat, fchmod, fstat, openat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::Arg;

/// What a walk finds in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A folder, after everything in it.
    Folder,
    /// Something else: a file, a link.
    Other,
}

/// Removes a folder and all that is in it, also folders that their owner has locked. Follows no link,
/// not even from `path` itself.
///
/// # Errors
///
/// Something cannot be removed; what came before it is.
pub fn remove(path: &Path) -> io::Result<()> {
    let top = match open_locked(CWD, path) {
        Err(Errno::NOTDIR | Errno::LOOP) => return std::fs::remove_file(path),
        opened => opened?,
    };
    walk(top, |parent, name| open_locked(parent, name), &mut |folder, name, found| {
        let flags = match found {
            Found::Folder => AtFlags::REMOVEDIR,
            Found::Other => AtFlags::empty(),
        };
        match unlinkat(folder, name, flags) {
            // Somebody else removes it too.
            Err(Errno::NOENT) => Ok(()),
            removed => removed,
        }
    })?;
    std::fs::remove_dir(path)
}

/// Gives a folder and all that is in it to the user and group of this number. The top comes last, so
/// that whoever finds it given finds the rest so too.
///
/// # Errors
///
/// Something cannot be given; what came before it is.
#[cfg(any(feature = "docker", feature = "sock"))]
pub(crate) fn give(path: &Path, id: u32) -> io::Result<()> {
    let (owner, group) = (Some(Uid::from_raw(id)), Some(Gid::from_raw(id)));
    let top = open(CWD, path)?;
    let again = top.try_clone()?;
    walk(top, |parent, name| open(parent, name), &mut |folder, name, _| match chownat(
        folder,
        name,
        owner,
        group,
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        // Removed meanwhile.
        Err(Errno::NOENT) => Ok(()),
        given => given,
    })?;
    Ok(rustix::fs::fchown(again, owner, group)?)
}

/// Opens a folder that is none by way of a link.
fn open(parent: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

/// The same, for us to read and write even if it was locked, as far as it is ours.
fn open_locked(parent: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    let folder = match open(&parent, name) {
        Err(Errno::ACCESS) => {
            let place = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let place = openat(&parent, name, place, Mode::empty())?;
            chmod(format!("/proc/self/fd/{}", place.as_raw_fd()), Mode::RWXU)?;
            open(&parent, name)?
        }
        opened => opened?,
    };
    if fstat(&folder)?.st_mode & 0o700 != 0o700 {
        // Whoever may do all the same does.
        let _ = fchmod(&folder, Mode::RWXU);
    }
    Ok(folder)
}

/// A folder above the one that a walk is in.
struct Above {
    /// Which one it is: device and inode.
    identity: (u64, u64),
    /// What is left to do in it, the one that the walk is in last.
    left: Vec<CString>,
}

/// Visits all that is below a folder, what is in a folder before the folder itself. `open` opens those
/// on the way.
fn walk(
    mut folder: OwnedFd,
    open: fn(BorrowedFd<'_>, &CStr) -> Result<OwnedFd, Errno>,
    visit: &mut dyn FnMut(&OwnedFd, &CStr, Found) -> Result<(), Errno>,
) -> io::Result<()> {
    let mut above: Vec<Above> = Vec::new();
    let mut left = names(&folder)?;
    loop {
        if let Some(name) = left.last() {
            match open(folder.as_fd(), name) {
                Ok(below) => {
                    let names = names(&below)?;
                    let identity = identity(&folder)?;
                    folder = below;
                    above.push(Above { identity, left: std::mem::replace(&mut left, names) });
                    continue;
                }
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                    visit(&folder, name, Found::Other)?
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            left.pop();
            continue;
        }
        let Some(next) = above.pop() else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        folder = openat(&folder, c"..", flags, Mode::empty())?;
        if identity(&folder)? != next.identity {
            return Err(io::Error::other("a folder was moved meanwhile; try again"));
        }
        left = next.left;
        if let Some(name) = left.pop() {
            visit(&folder, &name, Found::Folder)?;
        }
    }
}

fn names(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

fn identity(folder: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// Deeper than a path is long, and than descriptors or a stack would last.
    fn deep(levels: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let program = format!(
            "import os\nfor _ in range({levels}):\n os.mkdir('a'); os.chdir('a')\nopen('f', 'w')"
        );
        let made = std::process::Command::new("python3")
            .args(["-c", &program])
            .current_dir(dir.path())
            .status();
        assert!(made.unwrap().success());
        dir
    }

    #[test]
    fn a_folder_without_bottom_is_given_and_removed_on_a_small_stack() {
        let dir = deep(3000);
        let path = dir.path().join("a");
        let walk = move || {
            let own = fs::metadata(&path).unwrap().uid();
            give(&path, own).unwrap();
            remove(&path).unwrap();
        };
        std::thread::Builder::new().stack_size(256 << 10).spawn(walk).unwrap().join().unwrap();
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir_all(inside.join("b")).unwrap();
        symlink(&outside, inside.join("b/link")).unwrap();
        symlink("nowhere", inside.join("dangling")).unwrap();
        symlink(&outside, dir.path().join("top")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap();
        for (folder, mode) in [("b", 0), ("c", 0o400), ("d", 0o500), ("e", 0o300)] {
            fs::create_dir_all(inside.join(folder).join("below")).unwrap();
            fs::set_permissions(inside.join(folder), fs::Permissions::from_mode(mode)).unwrap();
        }
        remove(&inside).unwrap();
        remove(&dir.path().join("top")).unwrap();
        assert!(outside.join("kept").exists() && !inside.exists());
        let gone = remove(&inside).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_is_given_is_given_whole_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "").unwrap();
        let inside = dir.path().join("inside");
        fs::create_dir_all(inside.join("a/b")).unwrap();
        fs::write(inside.join("a/b/f"), "").unwrap();
        symlink(&outside, inside.join("a/link")).unwrap();
        let given = give(&inside, 1234);
        if !rustix::process::geteuid().is_root() {
            // Nobody else can give anything away.
            assert_eq!(given.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        given.unwrap();
        for path in ["", "a", "a/b", "a/b/f", "a/link"] {
            let metadata = fs::symlink_metadata(inside.join(path)).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1234, 1234), "{path}");
        }
        assert_eq!(fs::metadata(&outside).unwrap().uid(), 0);
        symlink(&inside, dir.path().join("top")).unwrap();
        assert!(give(&dir.path().join("top"), 4321).is_err());
    }
}
