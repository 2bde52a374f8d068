//! Names, versions and aliases without the bundles: the part of a registry that does not depend on where
//! the bundles are stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Bundle, Listing, Published, RegistryError, RegistryEvent, Resolved, Revision, VersionInfo,
};
use crate::function::{Digest, FunctionName, FunctionRef, Qualifier, Version, check_alias};
use crate::manifest::Manifest;

/// What a registry knows of its functions: a value to keep in memory, or to write down with serde.
///
/// Its methods keep the contract of [`Registry`](super::Registry) for numbers, aliases and errors.
/// Each change gives the [`RegistryEvent`] to tell watchers, with the next revision.
///
/// ```
/// use openlambda_core::registry::Index;
///
/// let index = Index::default();
/// assert!(index.list().is_empty());
/// assert!(index.resolve(&"echo".parse().unwrap()).is_err());
/// ```
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Index {
    revision: u64,
    functions: BTreeMap<FunctionName, Function>,
}

/// One name. It stays when it is deleted, so that no version's number is used again.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Function {
    last: u64,
    versions: BTreeMap<Version, Entry>,
    aliases: BTreeMap<String, Version>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    info: VersionInfo,
    manifest: Manifest,
}

impl Index {
    /// The revision of the last change; 0 when there was none.
    pub fn revision(&self) -> Revision {
        Revision(self.revision)
    }

    /// Adds `bundle` as the next version of `name`, at `now_ms` milliseconds since 1970; no event when
    /// it is the newest already.
    pub fn publish(
        &mut self,
        name: &FunctionName,
        bundle: &Bundle,
        now_ms: u64,
    ) -> (Published, Option<RegistryEvent>) {
        let digest = bundle.digest;
        let function = self.functions.entry(name.clone()).or_default();
        if let Some((version, newest)) = function.versions.last_key_value()
            && newest.info.digest == digest
        {
            return (Published { version: *version, digest, new: false }, None);
        }
        function.last += 1;
        let version = Version(function.last);
        let mut info = VersionInfo::new(version, digest);
        info.bytes = Some(bundle.bytes);
        info.published_ms = Some(now_ms);
        function.versions.insert(version, Entry { info, manifest: bundle.manifest.clone() });
        let (revision, name) = (self.next(), name.clone());
        let event = RegistryEvent::Published { revision, name, version, digest };
        (Published { version, digest, new: true }, Some(event))
    }

    /// See [`Registry::resolve`](super::Registry::resolve).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`].
    pub fn resolve(&self, reference: &FunctionRef) -> Result<Resolved, RegistryError> {
        let missing = || RegistryError::NotFound { what: format!("function \"{reference}\"") };
        let function = self.functions.get(&reference.name).ok_or_else(missing)?;
        let versions = &function.versions;
        let found = match &reference.qualifier {
            Qualifier::Latest => versions.last_key_value(),
            Qualifier::Version(version) => versions.get_key_value(version),
            Qualifier::Alias(alias) => {
                function.aliases.get(&**alias).and_then(|version| versions.get_key_value(version))
            }
            // The newest of that digest.
            Qualifier::Digest(wanted) => {
                versions.iter().rev().find(|(_, entry)| entry.info.digest == *wanted)
            }
        };
        let (version, Entry { info, manifest }) = found.ok_or_else(missing)?;
        let name = reference.name.clone();
        let mut resolved = Resolved::new(name, *version, info.digest, manifest.clone());
        resolved.born = versions.first_key_value().map(|(first, _)| *first);
        Ok(resolved)
    }

    /// See [`Registry::list`](super::Registry::list).
    pub fn list(&self) -> Vec<Listing> {
        let listing = |(name, function): (&FunctionName, &Function)| {
            let (version, newest) = function.versions.last_key_value()?;
            let (name, aliases) = (name.clone(), function.aliases.clone());
            Some(Listing { name, version: *version, digest: newest.info.digest, aliases })
        };
        self.functions.iter().filter_map(listing).collect()
    }

    /// See [`Registry::versions`](super::Registry::versions).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`].
    pub fn versions(&self, name: &FunctionName) -> Result<Vec<VersionInfo>, RegistryError> {
        let function = self.functions.get(name).filter(|function| !function.versions.is_empty());
        let function = function.ok_or_else(|| unknown(name))?;
        Ok(function.versions.values().map(|entry| entry.info.clone()).collect())
    }

    /// Removes `name` with its versions and aliases. [`holds`](Self::holds) tells which of their
    /// bundles are still needed.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`].
    pub fn delete(&mut self, name: &FunctionName) -> Result<RegistryEvent, RegistryError> {
        let function = self.there(name)?;
        function.versions.clear();
        function.aliases.clear();
        Ok(RegistryEvent::Deleted { revision: self.next(), name: name.clone() })
    }

    /// See [`Registry::set_alias`](super::Registry::set_alias).
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`], [`RegistryError::Conflict`], [`RegistryError::Unsupported`] for
    /// a name that is no alias.
    pub fn set_alias(
        &mut self,
        name: &FunctionName,
        alias: &str,
        version: Option<Version>,
        expected: Option<Version>,
    ) -> Result<RegistryEvent, RegistryError> {
        check_alias(alias).map_err(|error| RegistryError::Unsupported(error.to_string()))?;
        let function = self.there(name)?;
        let at = function.aliases.get(alias).copied();
        if at != expected {
            return Err(RegistryError::Conflict { alias: alias.to_owned(), at });
        }
        match version {
            Some(version) if !function.versions.contains_key(&version) => {
                let what = format!("version {version} of {name}");
                return Err(RegistryError::NotFound { what });
            }
            Some(version) => function.aliases.insert(alias.to_owned(), version),
            None => function.aliases.remove(alias),
        };
        let (revision, name, alias) = (self.next(), name.clone(), alias.to_owned());
        Ok(RegistryEvent::Aliased { revision, name, alias, version })
    }

    /// Whether any version has this bundle.
    pub fn holds(&self, digest: &Digest) -> bool {
        let mut versions = self.functions.values().flat_map(|function| function.versions.values());
        versions.any(|entry| entry.info.digest == *digest)
    }

    fn there(&mut self, name: &FunctionName) -> Result<&mut Function, RegistryError> {
        let function = self.functions.get_mut(name).filter(|f| !f.versions.is_empty());
        function.ok_or_else(|| unknown(name))
    }

    fn next(&mut self) -> Revision {
        self.revision += 1;
        Revision(self.revision)
    }
}

fn unknown(name: &FunctionName) -> RegistryError {
    RegistryError::NotFound { what: format!("function \"{name}\"") }
}
