//! Waits until somebody saves a file in a folder.
//!
//! The files' metadata is polled. That costs little for a folder that a person edits, works on every file
//! system, and needs no kernel watch for each folder.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openlambda_core::bundle::Ignore;

/// How often a folder is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How long a folder must stay as it is before it counts as saved: a save may write several files,
/// and metadata tells changes apart only by the kernel's tick, at most 10 ms.
const SETTLED: Duration = Duration::from_millis(50);

/// What metadata shows of a folder: another value when anything in it has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look(Vec<Fact>);

/// Path, inode, size, mode and times of one file.
type Fact = (PathBuf, u64, u64, u32, [i64; 4]);

impl Look {
    /// The folder as it is now.
    pub(super) fn at(folder: &Path) -> Self {
        let mut facts = Vec::new();
        let ignore = Ignore::of(folder).unwrap_or_else(|_| Ignore::usual());
        visit(folder, Path::new(""), &ignore, &mut facts);
        facts.sort();
        Look(facts)
    }

    /// Waits until the folder looks different, and then stays as it is for a moment.
    pub(super) fn wait_for_another(&self, folder: &Path) -> Self {
        let mut look = Look::at(folder);
        while look == *self {
            std::thread::sleep(LOOK_AGAIN);
            look = Look::at(folder);
        }
        loop {
            std::thread::sleep(SETTLED);
            let again = Look::at(folder);
            if again == look {
                return look;
            }
            look = again;
        }
    }
}

/// What cannot be read is left out; packing says why.
fn visit(folder: &Path, below: &Path, ignore: &Ignore, facts: &mut Vec<Fact>) {
    for entry in std::fs::read_dir(folder.join(below)).into_iter().flatten().flatten() {
        let path = below.join(entry.file_name());
        let Ok(metadata) = entry.metadata() else { continue };
        if path.to_str().is_some_and(|path| !ignore.matters(path, metadata.is_dir())) {
            continue;
        }
        if metadata.is_dir() {
            visit(folder, &path, ignore, facts);
        }
        facts.push(fact(path, &metadata));
    }
}

fn fact(path: PathBuf, metadata: &Metadata) -> Fact {
    // A folder's own times change with files that are left out; its entries tell enough.
    let (size, times) = match metadata.is_dir() {
        true => (0, [0; 4]),
        false => (
            metadata.size(),
            [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()],
        ),
    };
    (path, metadata.ino(), size, metadata.mode(), times)
}
