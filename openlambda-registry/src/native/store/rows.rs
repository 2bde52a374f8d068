//! What the tables hold: their rows, and the sums by which a row is known that the disk has changed.
//!
//! A row is JSON, and behind it the first 8 bytes of the SHA-256 of its table, its key and that JSON. A number
//! has the first 4 bytes of the same in its upper half. redb has sums of its own, but looks at them only when
//! it repairs a file.

use std::collections::BTreeMap;

use openlambda_core::function::{Digest, FunctionName, Version};
use openlambda_core::manifest::Manifest;
use openlambda_core::registry::RegistryError;
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A function's name to its [`FunctionRow`]. A deleted function keeps its row, so that its versions' numbers
/// are not used again.
pub(super) const FUNCTIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("functions");
/// A function's name and a version to its [`VersionRow`].
pub(super) const VERSIONS: TableDefinition<'_, (&str, u64), &[u8]> =
    TableDefinition::new("versions");
/// A digest to the number of versions that name it.
pub(super) const BUNDLES: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("bundles");
/// A revision to its [`RegistryEvent`](openlambda_core::registry::RegistryEvent); the last
/// [`EVENTS`](super::EVENTS) ones.
pub(super) const EVENT_LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// What is true of the store as a whole.
pub(super) const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

/// The file that has all tables.
pub(super) const TABLES: &str = "meta.redb";

/// The fact that says in which format the tables are. It has no sum: every release reads it.
pub(super) const FORMAT: &str = "format";
/// The fact that holds the revision of the last change.
pub(super) const REVISION: &str = "revision";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct FunctionRow {
    /// The highest number that was ever given out.
    pub(super) last: u64,
    /// The newest version; `None` when the function is deleted.
    pub(super) newest: Option<u64>,
    pub(super) aliases: BTreeMap<String, Version>,
    /// The version with which its present life began; missing in rows that releases before it wrote.
    #[serde(default)]
    pub(super) born: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct VersionRow {
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
    /// Size and time are missing in rows that releases before them wrote.
    #[serde(default)]
    pub(super) bytes: Option<u64>,
    #[serde(default)]
    pub(super) published_ms: Option<u64>,
}

/// Where a row is, for its sum, and for whoever is told that it is damaged.
pub(super) enum Place<'a> {
    Function(&'a str),
    Version(&'a str, u64),
    Event(u64),
    Bundle(&'a [u8; 32]),
    Fact(&'a str),
}

impl Place<'_> {
    /// Two places never have the same: no name has a space.
    fn sum(&self, value: &[u8]) -> [u8; 8] {
        let place = match self {
            Place::Function(name) => format!("function {name} "),
            Place::Version(name, version) => format!("version {name} {version} "),
            Place::Event(revision) => format!("event {revision} "),
            Place::Bundle(digest) => format!("bundle {} ", Digest::from_bytes(**digest).hex()),
            Place::Fact(name) => format!("fact {name} "),
        };
        let sum: [u8; 32] = Sha256::new().chain_update(place).chain_update(value).finalize().into();
        sum.first_chunk().copied().unwrap_or_default()
    }

    fn damaged(&self) -> RegistryError {
        let what = match self {
            Place::Function(name) => format!("function {name}"),
            Place::Version(name, version) => format!("version {version} of {name}"),
            Place::Event(revision) => format!("change {revision}"),
            Place::Bundle(digest) => format!("bundle {}", Digest::from_bytes(**digest)),
            Place::Fact(name) => format!("the {name}"),
        };
        RegistryError::Damaged {
            what: format!(
                "entry for {what} is damaged; stop the registry and run `ol registry rebuild`"
            ),
        }
    }

    /// The row that holds `value`.
    pub(super) fn seal(&self, value: &impl Serialize) -> Result<Vec<u8>, RegistryError> {
        let mut row = serde_json::to_vec(value).map_err(RegistryError::storage)?;
        row.extend(self.sum(&row));
        Ok(row)
    }

    /// What a row holds.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Damaged`].
    pub(super) fn open<T: for<'de> Deserialize<'de>>(
        &self,
        row: &[u8],
    ) -> Result<T, RegistryError> {
        match row.split_last_chunk::<8>() {
            Some((value, sum)) if *sum == self.sum(value) => {
                serde_json::from_slice(value).map_err(RegistryError::storage)
            }
            _ => Err(self.damaged()),
        }
    }

    /// The number's row. Numbers are below 2^32.
    pub(super) fn seal_number(&self, number: u64) -> u64 {
        let number = number & u64::from(u32::MAX);
        let sum = u64::from_be_bytes(self.sum(&number.to_be_bytes()));
        number | (sum & !u64::from(u32::MAX))
    }

    /// The number that a row holds.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Damaged`].
    pub(super) fn open_number(&self, row: u64) -> Result<u64, RegistryError> {
        match self.seal_number(row) == row {
            true => Ok(row & u64::from(u32::MAX)),
            false => Err(self.damaged()),
        }
    }
}

pub(super) fn read_function(
    transaction: &WriteTransaction,
    name: &FunctionName,
) -> Result<Option<FunctionRow>, RegistryError> {
    let table = transaction.open_table(FUNCTIONS).map_err(storage)?;
    let text = name.to_string();
    let row = table.get(&*text).map_err(storage)?;
    row.map(|row| Place::Function(&text).open(row.value())).transpose()
}

pub(super) fn write_function(
    transaction: &WriteTransaction,
    name: &FunctionName,
    row: &FunctionRow,
) -> Result<(), RegistryError> {
    let mut table = transaction.open_table(FUNCTIONS).map_err(storage)?;
    let text = name.to_string();
    table.insert(&*text, &*Place::Function(&text).seal(row)?).map_err(storage)?;
    Ok(())
}

pub(super) fn read_version(
    transaction: &WriteTransaction,
    name: &FunctionName,
    version: u64,
) -> Result<Option<VersionRow>, RegistryError> {
    let table = transaction.open_table(VERSIONS).map_err(storage)?;
    let text = name.to_string();
    let row = table.get((&*text, version)).map_err(storage)?;
    row.map(|row| Place::Version(&text, version).open(row.value())).transpose()
}

pub(super) fn write_version(
    transaction: &WriteTransaction,
    name: &FunctionName,
    version: u64,
    row: &VersionRow,
) -> Result<(), RegistryError> {
    let mut table = transaction.open_table(VERSIONS).map_err(storage)?;
    let text = name.to_string();
    let sealed = Place::Version(&text, version).seal(row)?;
    table.insert((&*text, version), &*sealed).map_err(storage)?;
    Ok(())
}

/// Changes how many versions name a bundle. Returns how many do now.
pub(super) fn count(
    transaction: &WriteTransaction,
    digest: &Digest,
    change: i64,
) -> Result<u64, RegistryError> {
    let mut table = transaction.open_table(BUNDLES).map_err(storage)?;
    let place = Place::Bundle(digest.as_bytes());
    let row = table.get(digest.as_bytes()).map_err(storage)?.map(|row| row.value());
    let known = row.map_or(Ok(0), |row| place.open_number(row))?;
    let count = known.saturating_add_signed(change);
    if count == 0 {
        table.remove(digest.as_bytes()).map_err(storage)?;
    } else {
        table.insert(digest.as_bytes(), place.seal_number(count)).map_err(storage)?;
    }
    Ok(count)
}

/// Gives the rows of format 1, which had no sums, their sums.
pub(super) fn seal_all(transaction: &WriteTransaction) -> Result<(), RegistryError> {
    let sealed = |place: Place<'_>, mut row: Vec<u8>| {
        row.extend(place.sum(&row));
        row
    };
    let mut functions = transaction.open_table(FUNCTIONS).map_err(storage)?;
    let mut rows = Vec::new();
    for row in functions.iter().map_err(storage)? {
        let (key, row) = row.map_err(storage)?;
        rows.push((key.value().to_owned(), row.value().to_vec()));
    }
    for (key, row) in rows {
        functions.insert(&*key, &*sealed(Place::Function(&key), row)).map_err(storage)?;
    }
    let mut versions = transaction.open_table(VERSIONS).map_err(storage)?;
    let mut rows = Vec::new();
    for row in versions.iter().map_err(storage)? {
        let (key, row) = row.map_err(storage)?;
        let (name, version) = key.value();
        rows.push((name.to_owned(), version, row.value().to_vec()));
    }
    for (name, version, row) in rows {
        let row = sealed(Place::Version(&name, version), row);
        versions.insert((&*name, version), &*row).map_err(storage)?;
    }
    let mut events = transaction.open_table(EVENT_LOG).map_err(storage)?;
    let mut rows = Vec::new();
    for row in events.iter().map_err(storage)? {
        let (key, row) = row.map_err(storage)?;
        rows.push((key.value(), row.value().to_vec()));
    }
    for (key, row) in rows {
        events.insert(key, &*sealed(Place::Event(key), row)).map_err(storage)?;
    }
    let mut bundles = transaction.open_table(BUNDLES).map_err(storage)?;
    let mut rows = Vec::new();
    for row in bundles.iter().map_err(storage)? {
        let (key, row) = row.map_err(storage)?;
        rows.push((*key.value(), row.value()));
    }
    for (key, row) in rows {
        bundles.insert(&key, Place::Bundle(&key).seal_number(row)).map_err(storage)?;
    }
    let mut facts = transaction.open_table(FACTS).map_err(storage)?;
    let revision = facts.get(REVISION).map_err(storage)?.map(|row| row.value());
    if let Some(revision) = revision {
        let sealed = Place::Fact(REVISION).seal_number(revision);
        facts.insert(REVISION, sealed).map_err(storage)?;
    }
    Ok(())
}

pub(super) fn storage(error: impl Into<openlambda_core::invocation::BoxError>) -> RegistryError {
    RegistryError::Storage(error.into())
}

/// The revision of the last change; that of the last event where the fact is damaged.
pub(super) fn last_revision(transaction: &ReadTransaction) -> Result<u64, RegistryError> {
    let facts = transaction.open_table(FACTS).map_err(storage)?;
    let Some(row) = facts.get(REVISION).map_err(storage)? else { return Ok(0) };
    Place::Fact(REVISION).open_number(row.value()).or_else(|_| {
        let events = transaction.open_table(EVENT_LOG).map_err(storage)?;
        let last = events.last().map_err(storage)?;
        Ok(last.map_or(0, |(key, _)| key.value()))
    })
}
