//! The smallest durable registry: a folder with one JSON index and a file per bundle.
//!
//! ```text
//! <folder>/index.json       names, versions and aliases
//!         /<digest>.tar     a bundle
//! ```
//!
//! `openlambda_core::registry::kit` keeps the rest of the contract: bundles in canonical form, numbers
//! that are not used again, aliases, events, and publications that happen completely or not at all. This
//! file does the folder's part: what was acknowledged survives kill −9.
//!
//! The index is read once, so one process at a time can use the folder; several processes need a registry
//! that they reach over the network.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use openlambda_core::function::Digest;
use openlambda_core::registry::kit::{Shelf, Simple};
use openlambda_core::registry::{Bundle, Index, Registry};
use tempfile::NamedTempFile;

/// The registry in a folder.
fn open(folder: impl Into<PathBuf>) -> io::Result<Simple<Folder>> {
    let folder = Folder(folder.into());
    let index = match fs::read(folder.index()) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Index::default(),
        Err(error) => return Err(error),
    };
    Ok(Simple::over("json", folder, index))
}

#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn index(&self) -> PathBuf {
        self.0.join("index.json")
    }

    fn bundle(&self, digest: &Digest) -> PathBuf {
        self.0.join(digest.hex()).with_extension("tar")
    }

    /// Puts into `place` what `write` writes.
    fn replace(
        &self,
        place: &Path,
        write: impl FnOnce(&mut NamedTempFile) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.0)?;
        write(&mut file)?;
        // A rename is atomic. To survive a power cut as well, sync before it.
        file.persist(place)?;
        Ok(())
    }
}

impl Shelf for Folder {
    fn keep(&self, bundle: &mut Bundle) -> io::Result<()> {
        let place = self.bundle(&bundle.digest);
        self.replace(&place, |file| io::copy(bundle, file).map(drop))
    }

    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(self.bundle(digest))?))
    }

    fn remove(&self, digest: &Digest) -> io::Result<()> {
        fs::remove_file(self.bundle(digest))
    }

    fn write(&self, index: &Index) -> io::Result<()> {
        self.replace(&self.index(), |file| Ok(serde_json::to_writer_pretty(file, index)?))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let registry = open(folder.path())?;
    for function in ["echo", "hello", "echo"] {
        let code = Path::new(env!("CARGO_MANIFEST_DIR")).join("functions").join(function);
        let published = registry.publish_dir(&function.parse()?, &code).await?;
        let news = if published.new { "new" } else { "there already" };
        println!("published {function}:{} ({news})", published.version);
    }
    drop(registry);

    let reopened = open(folder.path())?;
    for listing in reopened.list().await? {
        println!("{}:{} {}", listing.name, listing.version, listing.digest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use openlambda_core::conformance::registry::{Fixture, suite};
    use tempfile::TempDir;

    use super::*;

    #[derive(Default)]
    struct Folders {
        last: Mutex<Option<TempDir>>,
    }

    impl Folders {
        fn open(&self) -> Option<Arc<dyn Registry>> {
            let last = self.last.lock().unwrap();
            Some(Arc::new(open(last.as_ref()?.path()).unwrap()))
        }
    }

    #[async_trait]
    impl Fixture for Folders {
        async fn empty(&self) -> Arc<dyn Registry> {
            *self.last.lock().unwrap() = Some(tempfile::tempdir().unwrap());
            self.open().unwrap()
        }

        async fn reopened(&self) -> Option<Arc<dyn Registry>> {
            self.open()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_registry_honours_the_contract() {
        suite(&Folders::default()).await;
    }
}
