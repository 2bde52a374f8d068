//! The project's one hash for placement: fixed, seeded, the same on every machine and in every
//! version.
//!
//! Rings and tables hash names with it, so a worker's place does not depend on the process, the
//! machine or the order in which things joined. It is XXH3 (64 bit), whose output is specified.

use std::hash::{BuildHasher, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Version of the hash. A change of [`stable_hash`] moves every key on every ring, so it gets a new
/// number and an entry in the changelog.
pub const HASH_VERSION: u32 = 1;

/// The 64-bit hash of `bytes` under `seed`.
pub fn stable_hash(seed: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, seed)
}

/// Mixes two 64-bit values into one, for combining hashes (key × worker) without bytes.
///
/// This is the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA'14) over the combined value.
pub const fn mix(a: u64, b: u64) -> u64 {
    let mut z = a ^ b.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Builds hashers for keys that are hashes already, or begin with one: digests, and 64-bit hashes of
/// names. For look-ups only: do not depend on the order of such a map.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Hashed;

impl BuildHasher for Hashed {
    type Hasher = Leading;
    fn build_hasher(&self) -> Leading {
        Leading(0)
    }
}

/// The first eight bytes of what is written, or a number as it is.
#[derive(Debug)]
pub(crate) struct Leading(u64);

impl Hasher for Leading {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Of an array of bytes, whose length is always the same.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pinned_so_that_placements_never_move_by_accident() {
        assert_eq!(stable_hash(0, b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(mix(1, 2), mix(1, 2));
        assert_ne!(mix(1, 2), mix(2, 1));
    }
}
