//! Whether all that a store holds is what was written: [`Store::check`].

use std::collections::BTreeMap;
use std::io;

use openlambda_core::function::Digest;
use openlambda_core::registry::RegistryError;

use super::super::verified::Verified;
use super::reconcile::Content;
use super::{Store, storage};

/// What [`Store::check`] has found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Checked {
    /// Bundles that versions name.
    pub bundles: usize,
    /// Those that are damaged or missing, with the versions whose code they are, `NAME:VERSION`. To deploy
    /// that code again heals them.
    pub damaged: BTreeMap<Digest, Vec<String>>,
    /// What is wrong with the tables: [`Store::rebuild`] makes them anew.
    pub wrong: Vec<String>,
}

impl Checked {
    /// Whether all is well.
    pub fn is_whole(&self) -> bool {
        self.damaged.is_empty() && self.wrong.is_empty()
    }
}

impl Store {
    /// Reads every row and every bundle: takes as long as the disk needs for all of them.
    ///
    /// # Errors
    ///
    /// The tables cannot be read at all.
    pub fn check(&self) -> Result<Checked, RegistryError> {
        let content = self.read(Content::read)?;
        let mut versions = BTreeMap::<Digest, Vec<String>>::new();
        for record in &content.records {
            for (version, row) in &record.versions {
                versions.entry(row.digest).or_default().push(format!("{}:{version}", record.name));
            }
        }
        let mut checked =
            Checked { bundles: versions.len(), wrong: content.wrong, ..Checked::default() };
        if checked.wrong.is_empty() {
            checked.wrong.extend(self.doubt.read().clone());
        }
        for (digest, versions) in versions {
            let read = match self.bundle(&digest) {
                Ok(file) => io::copy(&mut Verified::new(file, digest), &mut io::sink()).map(drop),
                // Deleted meanwhile.
                Err(RegistryError::NotFound { .. }) => Ok(()),
                Err(error) => Err(io::Error::other(error)),
            };
            match read.map_err(|error| error.downcast::<RegistryError>()) {
                Ok(()) => {}
                Err(Ok(RegistryError::Damaged { .. }) | Err(_)) => {
                    checked.damaged.insert(digest, versions);
                }
                Err(Ok(error)) => return Err(storage(error)),
            }
        }
        Ok(checked)
    }
}
