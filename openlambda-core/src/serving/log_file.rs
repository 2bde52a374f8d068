//! A log file of bounded size, so that it cannot fill the disk: [`LogFile`].

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};

use crate::files::open_private;

/// A file that grows at its end, up to a bound: then it becomes `FILE.1`, which replaces an older one,
/// and begins anew. One that somebody has moved away or removed begins anew too, where readers look.
///
/// It takes whole lines: what one `write` gets stays together in one file, and reaches it at once.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    /// Bytes.
    most: u64,
    file: File,
    /// For its user alone.
    private: bool,
}

/// How often the file is looked for anew, if each time another process has just begun it anew.
const MOST_LOOKS: u32 = 100;

impl LogFile {
    /// Appends to the file at `path`, which is made if it is not there, up to `most` bytes. One process
    /// writes to it. It may also be a pipe that somebody reads.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: impl Into<PathBuf>, most: u64) -> io::Result<Self> {
        LogFile::at(path.into(), most, false)
    }

    /// The same, for its user alone, of whom several processes may write to it: it has mode 600, and nothing
    /// but a file is opened.
    ///
    /// # Errors
    ///
    /// The file cannot be opened; it is a link, no file, or another user's.
    pub fn private(path: impl Into<PathBuf>, most: u64) -> io::Result<Self> {
        LogFile::at(path.into(), most, true)
    }

    fn at(path: PathBuf, most: u64, private: bool) -> io::Result<Self> {
        let mut options = File::options();
        options.create(true).append(true);
        let file = match private {
            true => open_private(&path, &mut options)?,
            false => open_at_once(&path, &mut options)?,
        };
        Ok(LogFile { path, most, file, private })
    }

    /// What is at the path now is written to from now on.
    fn open_anew(&mut self) -> io::Result<()> {
        *self = LogFile::at(self.path.clone(), self.most, self.private)?;
        Ok(())
    }

    /// Sees to it that the file is the one at the path, and has room for so many bytes. Returns its length.
    fn make_room(&mut self, bytes: u64) -> io::Result<u64> {
        for _ in 0..MOST_LOOKS {
            if self.private {
                // Others wait meanwhile, here or with the file that was at the path before. Only this user
                // can open the file, so nobody else can keep us waiting. It ends with the file, or below.
                rustix::io::retry_on_intr(|| {
                    rustix::fs::flock(&self.file, FlockOperation::LockExclusive)
                })?;
            }
            let own = self.file.metadata()?;
            match std::fs::metadata(&self.path) {
                Ok(there) if is_same(&there, &own) => {}
                Ok(_) => {
                    self.open_anew()?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // With its folder, perhaps.
                    std::fs::create_dir_all(self.path.parent().unwrap_or(&self.path))?;
                    self.open_anew()?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if own.len() == 0 || own.len() + bytes <= self.most {
                return Ok(own.len());
            }
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            self.open_anew()?;
        }
        Err(io::Error::other("another process begins it anew all the time"))
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let before = self.make_room(lines.len() as u64)?;
        self.file.write_all(lines).inspect_err(|_| {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(before);
        })
    }
}

/// Opens a file, or a pipe that somebody reads: another is not waited for.
fn open_at_once(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(OFlags::NONBLOCK.bits() as i32).open(path);
    let file = file.map_err(|error| match error.raw_os_error() {
        // A socket is refused so too, and a device that is not there.
        Some(number) if number == rustix::io::Errno::NXIO.raw_os_error() && is_pipe(path) => {
            io::Error::other("it is a pipe that nobody reads")
        }
        _ => error,
    })?;
    if file.metadata()?.file_type().is_fifo() {
        // What does not fit into it waits; half a line would be lost.
        rustix::fs::fcntl_setfl(&file, rustix::fs::fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    }
    Ok(file)
}

fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo())
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

impl Write for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let appended = self.append(lines);
        if self.private {
            let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
        }
        appended.map(|()| lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_bounded_and_begins_anew_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("logs/f.jsonl");
        assert!(LogFile::open(&path, 8).is_err(), "its folder is the caller's to make");
        std::fs::create_dir(folder.path().join("logs")).unwrap();
        let mut log = LogFile::open(&path, 8).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        for line in ["one\n", "two\n", "three\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(
            (read("logs/f.jsonl.1"), read("logs/f.jsonl")),
            ("one\ntwo\n".into(), "three\n".into())
        );
        // Longer than the bound: it has a file of its own.
        log.write_all(b"a longer line\n").unwrap();
        log.write_all(b"four\n").unwrap();
        assert_eq!(
            (read("logs/f.jsonl.1"), read("logs/f.jsonl")),
            ("a longer line\n".into(), "four\n".into())
        );
        // One that nobody else can read is so again and again, and follows no link.
        let own = folder.path().join("own.jsonl");
        let mut log = LogFile::private(&own, 8).unwrap();
        for _ in 0..3 {
            log.write_all(b"12345\n").unwrap();
            let mode = std::fs::metadata(&own).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        std::fs::remove_file(&own).unwrap();
        std::os::unix::fs::symlink(folder.path().join("victim"), &own).unwrap();
        log.write_all(b"1\n").unwrap_err();
        assert!(!folder.path().join("victim").exists());
        LogFile::private(&own, 8).unwrap_err();

        let mut log = LogFile::open(&path, 8).unwrap();
        std::fs::remove_dir_all(folder.path().join("logs")).unwrap();
        log.write_all(b"five\n").unwrap();
        assert_eq!(read("logs/f.jsonl"), "five\n");
    }

    #[test]
    fn several_that_write_to_one_file_lose_nothing_and_begin_it_anew_once() {
        const WRITERS: usize = 8;
        const LINES: usize = 200;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        let line = |writer: usize, n: usize| format!("{writer} {n:03} {}\n", "x".repeat(n % 50));
        let all: u64 = (0..LINES).map(|n| line(0, n).len() as u64).sum::<u64>() * WRITERS as u64;
        // Two files have just room for all of it.
        let most = all / 2 + 100;
        std::thread::scope(|threads| {
            for writer in 0..WRITERS {
                let mut log = LogFile::private(&path, most).unwrap();
                threads.spawn(move || {
                    for n in 0..LINES {
                        log.write_all(line(writer, n).as_bytes()).unwrap();
                    }
                });
            }
        });
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        let (older, newer) = (read("own.jsonl.1"), read("own.jsonl"));
        assert!(older.len() as u64 <= most && newer.len() as u64 <= most);
        let mut found: Vec<_> = older.lines().chain(newer.lines()).collect();
        found.sort_unstable();
        let lines = (0..WRITERS).flat_map(|writer| (0..LINES).map(move |n| line(writer, n)));
        let mut expected: Vec<_> =
            lines.map(|line| line.trim_end_matches('\n').to_owned()).collect();
        expected.sort_unstable();
        assert!(found == expected, "{} of {} lines", found.len(), expected.len());
    }

    /// Another program has put a file, or no file, in the place of one that is open.
    #[test]
    fn what_is_put_in_its_place_is_written_to_if_it_is_a_file_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let make_pipe = |path: &Path| {
            assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
        };
        for private in [true, false] {
            let path = folder.path().join(format!("{private}.jsonl"));
            let mut log = LogFile::at(path.clone(), 1000, private).unwrap();
            log.write_all(b"1\n").unwrap();
            std::fs::rename(&path, folder.path().join("moved")).unwrap();
            std::fs::write(&path, "others\n").unwrap();
            log.write_all(b"2\n").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "others\n2\n");
            std::fs::remove_file(&path).unwrap();
            make_pipe(&path);
            log.write_all(b"3\n").unwrap_err();
            let error = LogFile::at(path.clone(), 1000, private).unwrap_err();
            let why =
                if private { "no file of this user's alone" } else { "a pipe that nobody reads" };
            // By the system, before it is looked at.
            let unread = error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error());
            assert!(error.to_string().contains(why) || (private && unread), "{error}");
            // Another begins where there is a file again.
            std::fs::remove_file(&path).unwrap();
            log.write_all(b"4\n").unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "4\n");
        }
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = LogFile::open(&socket, 4).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NXIO.raw_os_error()), "{error}");
        let pipe = folder.path().join("pipe");
        make_pipe(&pipe);
        let reader = File::options().read(true).write(true).open(&pipe).unwrap();
        let mut log = LogFile::open(&pipe, 4).unwrap();
        for line in ["one\n", "two\n", "three\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let mut lines = std::io::BufRead::lines(io::BufReader::new(reader));
        assert_eq!([0; 3].map(|_| lines.next().unwrap().unwrap()), ["one", "two", "three"]);
        assert!(!folder.path().join("pipe.1").exists());
    }
}
