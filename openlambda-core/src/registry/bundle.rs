//! Bundles on the way into a registry and out of it.

use std::fs::File;
use std::io::{self, Read};

use bytes::Bytes;
use futures_core::stream::BoxStream;

use crate::function::Digest;
use crate::manifest::Manifest;

/// A bundle on its way: the bytes of a tar. Into a registry it may be gzipped, and anybody's; out of
/// one it has the canonical form. An error in it that is a [`RegistryError`](super::RegistryError) says why it broke off.
pub type BundleStream = BoxStream<'static, io::Result<Bytes>>;

/// A bundle in canonical form, as a registry is asked to keep it: reading it gives its tar, from the
/// beginning, once. `Bundle::of` makes one.
#[derive(Debug)]
#[non_exhaustive]
pub struct Bundle {
    /// Its digest: of the tar's bytes.
    pub digest: Digest,
    /// Its manifest, complete.
    pub manifest: Manifest,
    /// The size of its tar, bytes.
    pub bytes: u64,
    /// An unnamed file.
    pub(super) tar: File,
}

impl Read for Bundle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tar.read(buffer)
    }
}
