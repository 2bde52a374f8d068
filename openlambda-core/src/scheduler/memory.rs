//! The worker's one memory pool.

/// Bytes that instances (and zygotes and caches) take from what the worker may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPool {
    total: u64,
    used: u64,
}

impl MemoryPool {
    /// A pool of `total` bytes, all free.
    pub fn new(total: u64) -> Self {
        MemoryPool { total, used: 0 }
    }

    /// Takes `bytes` if that many are free.
    #[must_use]
    pub fn take(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.free();
        if fits {
            self.used += bytes;
        }
        fits
    }

    /// Gives back what was taken.
    ///
    /// # Panics
    ///
    /// When more comes back than was taken: the caller's books are wrong.
    pub fn give_back(&mut self, bytes: u64) {
        self.used = self.used.checked_sub(bytes).expect("gave back more memory than was taken");
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        self.total - self.used
    }

    /// The pool's size in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }
}
