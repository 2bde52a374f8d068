//! A registry without a disk.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::function::Digest;
use crate::registry::kit::{Shelf, Simple};
use crate::registry::{Bundle, Index};

/// Keeps bundles in memory: for programs that embed a cluster, and for tests. Clones share them.
pub type MemoryRegistry = Simple<MemoryShelf>;

/// Where a [`MemoryRegistry`] keeps its bundles. What is on it lasts as long as the process.
#[derive(Debug, Default)]
pub struct MemoryShelf {
    bundles: Mutex<BTreeMap<Digest, Bytes>>,
}

impl MemoryRegistry {
    /// A registry without functions.
    pub fn new() -> Self {
        Simple::over("memory", MemoryShelf::default(), Index::default())
    }
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        MemoryRegistry::new()
    }
}

impl Shelf for MemoryShelf {
    fn keep(&self, bundle: &mut Bundle) -> io::Result<()> {
        let mut tar = Vec::new();
        bundle.read_to_end(&mut tar)?;
        self.bundles.lock().insert(bundle.digest, tar.into());
        Ok(())
    }

    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>> {
        let tar = self.bundles.lock().get(digest).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(tar)))
    }

    fn remove(&self, digest: &Digest) -> io::Result<()> {
        self.bundles.lock().remove(digest);
        Ok(())
    }

    fn write(&self, _: &Index) -> io::Result<()> {
        // It is in memory already.
        Ok(())
    }
}
