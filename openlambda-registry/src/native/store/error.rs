//! Why a store cannot be opened: [`StoreError`].

use std::io;
use std::path::PathBuf;

use openlambda_core::format::FormatError;
use thiserror::Error;

use super::rows::TABLES;

/// Why a store cannot be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store in {} is in use by another process; stop that one or use another folder", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// It is no store of this release or an earlier one.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It has no tables any more.
    #[error(
        "the store in {} has lost its {TABLES}, or what was in it, without which nobody knows whose its \
         bundles are; put that file back, or make it anew with `ol registry rebuild`, or use another folder",
        dir.display()
    )]
    NoTables {
        /// The folder.
        dir: PathBuf,
    },
    /// Its tables are older than what it has acknowledged.
    #[error(
        "the tables of the store in {} are of change {tables}, and its functions' files of change {files}; put \
         the last {TABLES} back, or make it anew with `ol registry rebuild`",
        dir.display()
    )]
    Behind {
        /// The folder.
        dir: PathBuf,
        /// The last change in the tables.
        tables: u64,
        /// The last change in the files.
        files: u64,
    },
    /// There is nothing that its tables can be made of.
    #[error("the store in {} has no functions' files to make its tables of; restore a backup", dir.display())]
    NoRecords {
        /// The folder.
        dir: PathBuf,
    },
    /// The folder cannot be used.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The tables cannot be read.
    #[error("the tables in {} cannot be read", dir.display())]
    Database {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: Box<redb::Error>,
    },
}
