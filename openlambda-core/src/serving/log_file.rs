//! A log file of bounded size, so that it cannot fill the disk: [`LogFile`].

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::OFlags;

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
    bytes: u64,
    /// For its user alone.
    private: bool,
}

impl LogFile {
    /// Appends to the file at `path`, which is made if it is not there, up to `most` bytes.
    ///
    /// # Errors
    ///
    /// The file cannot be opened.
    pub fn open(path: impl Into<PathBuf>, most: u64) -> io::Result<Self> {
        LogFile::at(path.into(), most, false)
    }

    /// The same, for its user alone: what is made has mode 600, and no link is followed.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or is a link.
    pub fn private(path: impl Into<PathBuf>, most: u64) -> io::Result<Self> {
        LogFile::at(path.into(), most, true)
    }

    fn at(path: PathBuf, most: u64, private: bool) -> io::Result<Self> {
        let mut options = File::options();
        options.create(true).append(true);
        if private {
            options.mode(0o600).custom_flags(OFlags::NOFOLLOW.bits() as i32);
        }
        let file = options.open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(LogFile { path, most, file, bytes, private })
    }

    fn anew(&self) -> io::Result<Self> {
        LogFile::at(self.path.clone(), self.most, self.private)
    }
}

impl Write for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        if !self.path.exists() {
            // With its folder, perhaps.
            std::fs::create_dir_all(self.path.parent().unwrap_or(&self.path))?;
            *self = self.anew()?;
        } else if self.bytes > 0 && self.bytes + lines.len() as u64 > self.most {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            *self = self.anew()?;
        }
        if let Err(error) = self.file.write_all(lines) {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(self.bytes);
            return Err(error);
        }
        self.bytes += lines.len() as u64;
        Ok(lines.len())
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
}
