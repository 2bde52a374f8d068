//! Which bundles are compiled ahead of their imports, and when: [`Compiling`].
//!
//! An interpreter that finds no compiled form of what it imports compiles it anew at every start, which may take
//! several times as long as the rest. So a bundle with much source is compiled once. Not before its first instance has
//! started: that one waits for its imports alone, and not for files that nobody imports. One bundle at a time, since this
//! is work that no call waits for.
//!
//! ```text
//!             sources                 an instance is ready, or failed           its turn              compiled
//! (nothing) ───────────▶ unpacked ────────────────────────────────────▶ due ────────────▶ running ──────────▶ (nothing)
//!                            └───────────── removed ────────────────────┘
//! ```

use std::collections::{BTreeSet, VecDeque};

use crate::function::Digest;

/// From so many bytes of source on. What is below is compiled in some ten milliseconds, about what a sandbox to do it in
/// takes.
const LEAST: u64 = 64 << 10;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Compiling {
    unpacked: BTreeSet<Digest>,
    due: VecDeque<Digest>,
    running: bool,
}

impl Compiling {
    /// A bundle that was unpacked has so many bytes of source.
    pub(super) fn unpacked(&mut self, digest: Digest, sources: u64) {
        if sources >= LEAST {
            self.unpacked.insert(digest);
        }
    }

    /// An instance from this bundle has started, or has failed to.
    pub(super) fn started(&mut self, digest: Digest) {
        if self.unpacked.remove(&digest) {
            self.due.push_back(digest);
        }
    }

    /// The bundle is not unpacked any more.
    pub(super) fn removed(&mut self, digest: &Digest) {
        self.unpacked.remove(digest);
        self.due.retain(|due| due != digest);
    }

    /// The bundle to compile now, if there is one; then tell [`compiled`](Self::compiled).
    pub(super) fn next(&mut self) -> Option<Digest> {
        let next = if self.running { None } else { self.due.pop_front() };
        self.running |= next.is_some();
        next
    }

    /// What was to be compiled is, or cannot be.
    pub(super) fn compiled(&mut self) {
        self.running = false;
    }
}
