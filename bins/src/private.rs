//! Folders and files that belong to one user alone, as `ssh` requires of its keys.
//!
//! A cluster's folder decides what its daemons do as the user that starts them: programs to run, files to
//! append to, trees whose owner to change. A user who can write there, or put another folder in its place,
//! can act as that user. So no other user may write: neither in the folder, nor in any folder on the way to
//! it, links included. Its content is opened without following links, in case another user could write
//! there at an earlier time.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

pub(crate) use openlambda_core::files::open_private as open_file;
use openlambda_core::serving::Secret;
use rustix::fs::OFlags;
use tokio::net::UnixListener;

use crate::error::{CliError, Context, Result};

/// The most links on the way to a folder, as in the kernel.
const MOST_LINKS: usize = 40;

/// Checks that nobody but us and root can put something else in the place of `folder`, or write in
/// it. What is not there yet is for us to make.
///
/// # Errors
///
/// Which folder is another user's, or open to others, and what to do.
pub(crate) fn check_way(folder: &Path) -> Result<()> {
    let parts = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
    };
    let (mut left, mut links) = (parts(folder), 0);
    let mut at = PathBuf::from("/");
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::RootDir) => at = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(at.pop()),
            Some(Component::Normal(name)) => at.push(name),
            _ => continue,
        }
        let found = match std::fs::symlink_metadata(&at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found.context(|| format!("cannot look at {}", at.display()))?,
        };
        if found.is_symlink() {
            links += 1;
            if !ours_or_roots(&found) || links > MOST_LINKS {
                return Err(not_private(&at, folder, "is another user's link"));
            }
            let target = std::fs::read_link(&at);
            left.extend(parts(&target.context(|| format!("cannot read {}", at.display()))?));
            at.pop();
            continue;
        }
        let is_last = left.is_empty();
        if !ours_or_roots(&found) || (is_last && found.uid() != own_id()) {
            return Err(not_private(&at, folder, "belongs to another user"));
        }
        // In a folder like /tmp nobody can move what is another's.
        let sticky = !is_last && found.mode() & 0o1000 != 0;
        if open_to_others(&found) && !sticky {
            return Err(not_private(&at, folder, "can be written by other users"));
        }
    }
    Ok(())
}

fn not_private(at: &Path, folder: &Path, what: &str) -> CliError {
    CliError::new(format!(
        "{} {what}, and whoever may write there decides what this cluster runs; use a folder of your \
         own for {}, with --data-dir, or be the user that it belongs to",
        at.display(),
        folder.display()
    ))
}

fn own_id() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn ours_or_roots(found: &Metadata) -> bool {
    [0, own_id()].contains(&found.uid())
}

/// Whether its mode lets others write. A user's own group, which has the user's number, is the user.
fn open_to_others(found: &Metadata) -> bool {
    let own_group = own_id() != 0 && found.gid() == own_id();
    found.mode() & if own_group { 0o002 } else { 0o022 } != 0
}

/// Makes a folder for this user alone, or what is there.
///
/// # Errors
///
/// It cannot be made; it is a link, no folder, or another user's.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => open_folder(path)
            .and_then(|folder| folder.set_permissions(Permissions::from_mode(0o700))),
    }
    .context(|| format!("cannot use {} as a folder of this user's own", path.display()))
}

/// Opens a folder, if it is this user's own.
fn open_folder(path: &Path) -> io::Result<File> {
    // A pipe in its place would be waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let folder = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let found = folder.metadata()?;
    if !found.is_dir() || found.uid() != own_id() {
        return Err(io::Error::other("it is no folder of this user's alone; remove it"));
    }
    Ok(folder)
}

/// Makes a file with a new secret, at one stroke: no other process sees half of it.
///
/// # Errors
///
/// It is there already ([`AlreadyExists`](io::ErrorKind::AlreadyExists)), or cannot be made.
pub(crate) fn make_secret(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    writeln!(file, "{}", Secret::generate()?.text())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    Ok(())
}

/// Listens at a Unix socket that this user alone can connect to. What an earlier process has left in its
/// place is removed. Must be called within a tokio runtime.
///
/// # Errors
///
/// The file system has no sockets, or something else is in its place.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        _ => {}
    }
    // A socket's address is short; a path through an open folder always is.
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let folder = File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    let listener = UnixListener::bind(&short)?;
    std::fs::set_permissions(&short, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Makes a folder and what is in it this user's alone, as earlier releases or other hands have left it:
/// folders 700, files 600. Goes into the folders for which `enter` says so, by their path below `root`.
///
/// # Errors
///
/// There is a link, or something of another user's, among them.
pub(crate) fn close_to_others(root: &Path, enter: impl Fn(&Path) -> bool) -> Result<()> {
    make_folder(root)?;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = || format!("cannot look into {}", folder.display());
        for entry in std::fs::read_dir(&folder).context(failed)? {
            let path = entry.context(failed)?.path();
            let found = std::fs::symlink_metadata(&path);
            let found = found.context(|| format!("cannot look at {}", path.display()))?;
            if found.is_dir() {
                if enter(path.strip_prefix(root).unwrap_or(&path)) {
                    make_folder(&path)?;
                    folders.push(path);
                }
            } else if found.uid() != own_id() || found.is_symlink() {
                return Err(CliError::new(format!(
                    "{} is a link, or another user's; look at who put it there, and remove it",
                    path.display()
                )));
            } else if found.is_file() && found.mode() & 0o077 != 0 {
                open_file(&path, OpenOptions::new().read(true))
                    .context(|| format!("cannot make {} private", path.display()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_that_others_may_write_or_replace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let way = dir.path().join("way");
        let data = way.join("data");
        fs::create_dir_all(&data).unwrap();
        let refused = |path: &Path| check_way(path).unwrap_err().to_string();
        check_way(&data).unwrap();
        check_way(&data.join("not/there/yet")).unwrap();
        set_mode(&data, 0o777);
        assert!(refused(&data).contains("can be written by other users"));
        set_mode(&data, 0o1777);
        assert!(refused(&data).contains("can be written by other users"));
        check_way(&data.join("below")).unwrap();
        set_mode(&data, 0o700);
        set_mode(&way, 0o777);
        assert!(refused(&data).contains("way can be written"));
        // By way of a link too, whose own folder is ours.
        let link = dir.path().join("link");
        symlink("way/../way/data", &link).unwrap();
        assert!(refused(&link).contains("way can be written"));
        set_mode(&way, 0o755);
        check_way(&link).unwrap();
        symlink("round", dir.path().join("round")).unwrap();
        assert!(check_way(&dir.path().join("round")).is_err());
        if own_id() == 0 {
            for path in [&data, &way] {
                chown(path, Some(1234), None).unwrap();
                assert!(refused(&link).contains("belongs to another user"));
                chown(path, Some(0), None).unwrap();
            }
            std::os::unix::fs::lchown(&link, Some(1234), None).unwrap();
            assert!(refused(&link).contains("another user's link"));
        } else {
            // Root's folders may lie on the way, and be none of ours.
            assert!(refused(Path::new("/usr")).contains("belongs to another user"));
        }
    }

    #[test]
    fn what_is_there_becomes_private_and_is_not_opened_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        let outside = dir.path().join("outside");
        fs::write(&outside, "kept").unwrap();
        fs::create_dir_all(root.join("logs")).unwrap();
        fs::create_dir_all(root.join("code")).unwrap();
        fs::write(root.join("logs/old"), "").unwrap();
        for path in ["logs", "code", "logs/old"] {
            set_mode(&root.join(path), 0o777);
        }
        close_to_others(&root, |path| path != Path::new("code")).unwrap();
        let modes = ["logs", "code", "logs/old"].map(|path| mode(&root.join(path)));
        assert_eq!(modes, [0o700, 0o777, 0o600]);

        let append = || OpenOptions::new().create(true).append(true).to_owned();
        let file = root.join("logs/new");
        open_file(&file, &mut append()).unwrap();
        assert_eq!(mode(&file), 0o600);
        symlink(&outside, root.join("logs/link")).unwrap();
        assert!(open_file(&root.join("logs/link"), &mut append()).is_err());
        assert!(close_to_others(&root, |_| true).unwrap_err().to_string().contains("is a link"));
        fs::remove_file(root.join("logs/link")).unwrap();
        fs::hard_link(&outside, root.join("logs/link")).unwrap();
        assert!(open_file(&root.join("logs/link"), &mut append()).is_err());
        symlink(dir.path(), root.join("folder")).unwrap();
        assert!(make_folder(&root.join("folder")).is_err());
        let pipe = root.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert!(open_file(&pipe, OpenOptions::new().read(true)).is_err());
        assert_eq!((fs::read_to_string(&outside).unwrap(), mode(&outside)), ("kept".into(), 0o644));
    }
}
