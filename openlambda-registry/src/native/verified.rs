//! Reads a bundle and says at its end whether it is the one that its digest names: [`Verified`].

use std::io::{self, Read};

use openlambda_core::function::Digest;
use openlambda_core::registry::RegistryError;
use sha2::{Digest as _, Sha256};

/// Reads what `inner` reads. In the place of the end there is [`RegistryError::Damaged`], inside of an
/// [`io::Error`], unless what was read has the digest.
pub(super) struct Verified<R> {
    inner: R,
    digest: Digest,
    hash: Sha256,
}

impl<R: Read> Verified<R> {
    pub(super) fn new(inner: R, digest: Digest) -> Self {
        Verified { inner, digest, hash: Sha256::new() }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        if count == 0 && !buffer.is_empty() {
            let found = Digest::from_bytes(self.hash.clone().finalize().into());
            if found != self.digest {
                return Err(io::Error::other(RegistryError::damaged(&self.digest)));
            }
        }
        Ok(count)
    }
}
